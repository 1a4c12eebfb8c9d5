"""Parses Retry-After in both forms of RFC 9110, 10.2.3: a number of seconds, or a date."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

_SECONDS: Final = re.compile(r"[0-9]{1,9}", re.ASCII)
# IMF-fixdate, RFC 850's and asctime's.
_DATE: Final = re.compile(
    r"[A-Z][a-z]{2}, \d{2} [A-Z][a-z]{2} \d{4} \d{2}:\d{2}:\d{2} GMT"
    r"|[A-Z][a-z]{5,8}, \d{2}-[A-Z][a-z]{2}-\d{2} \d{2}:\d{2}:\d{2} GMT"
    r"|[A-Z][a-z]{2} [A-Z][a-z]{2} [ \d]\d \d{2}:\d{2}:\d{2} \d{4}",
    re.ASCII,
)


def retry_after_s(header: str | None, now: datetime) -> float | None:
    """Seconds from `now`. There is no upper limit here: the caller applies one.

    None for a header in neither form, for a date in the past, and for an impossible date or time.
    """
    if not header:
        return None
    if _SECONDS.fullmatch(header):
        return float(header)
    if not _DATE.fullmatch(header):
        return None
    try:
        at = parsedate_to_datetime(header)
    except ValueError:
        return None
    # Two of the three forms end in GMT. The third names no zone and means GMT.
    seconds = (at.replace(tzinfo=UTC) - now).total_seconds()
    return seconds if seconds > 0 else None
