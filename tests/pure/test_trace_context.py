"""`traceparent` is read as W3C Trace Context says; a malformed header counts as absent."""

from __future__ import annotations

import pytest

from payments_app.kernel.trace_context import ids_of, traceparent_of

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
GOOD = f"00-{TRACE}-{SPAN}-01"


@pytest.mark.parametrize(
    ("header", "kept"),
    [
        (GOOD, GOOD),
        (f"00-{TRACE}-{SPAN}-00", f"00-{TRACE}-{SPAN}-00"),
        # Unknown flags must not be passed on.
        (f"00-{TRACE}-{SPAN}-ff", f"00-{TRACE}-{SPAN}-03"),
        # A later version is read as far as version 00 goes, and passed on as version 00.
        (f"01-{TRACE}-{SPAN}-01", GOOD),
        (f"cc-{TRACE}-{SPAN}-01-what-will-be", GOOD),
    ],
)
def test_what_is_in_order_is_kept_as_version_00(header: str, kept: str) -> None:
    assert traceparent_of(header) == kept
    assert ids_of(kept)[:2] == (TRACE, SPAN)


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "x",
        f"{GOOD}-more",
        f"{GOOD},{GOOD}",
        f" {GOOD}",
        f"{GOOD}\n",
        GOOD.upper(),
        f"ff-{TRACE}-{SPAN}-01",
        f"cc-{TRACE}-{SPAN}-01more",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE[:-1]}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE}-{SPAN}-1",
        "00-256772123456-256772123456-01",
    ],
)
def test_what_is_not_is_ignored(header: str | None) -> None:
    assert traceparent_of(header) is None
