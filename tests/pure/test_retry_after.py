"""Retry-After in both forms of RFC 9110, in the answers of providers and of webhook receivers."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from payments_app.kernel.clock import utc_now
from payments_app.kernel.http.messages import HttpResponse
from payments_app.kernel.http.retry_after import retry_after_s
from tests.pure.mtn_script import checked, submitted

NOW = datetime(1994, 11, 6, 8, 0, 0, tzinfo=UTC)
UNTIL_S = 49 * 60 + 37


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("120", 120),
        ("0", 0),
        (None, None),
        ("", None),
        ("-5", None),
        ("soon", None),
        ("1e9", None),
        ("Sun, 06 Nov 1994 08:49:37 GMT", UNTIL_S),
        ("Sunday, 06-Nov-94 08:49:37 GMT", UNTIL_S),
        ("Sun Nov  6 08:49:37 1994", UNTIL_S),
        ("Sun, 06 Nov 1994 07:49:37 GMT", None),
        ("Sun, 06 Nov 1994 08:49:37 +0500", None),
        ("Sun, 32 Nov 1994 08:49:37 GMT", None),
        ("Sun, 06 Foo 1994 08:49:37 GMT", None),
        ("Sun, 06 Nov 1994 25:49:37 GMT", None),
    ],
)
def test_a_retry_after_is_whole_seconds_or_a_date(
    header: str | None, seconds: float | None
) -> None:
    assert retry_after_s(header, NOW) == seconds


@pytest.mark.parametrize("status", [429, 503])
def test_a_provider_may_name_a_date(status: int) -> None:
    """In the answer to a submission and to a status check."""
    at = format_datetime(utc_now() + timedelta(seconds=61), usegmt=True)
    answer = HttpResponse(status, {"retry-after": at}, b"")
    for seen in (submitted(answer), checked(answer)):
        assert 58 < (seen.retry_after_s or 0) <= 61
