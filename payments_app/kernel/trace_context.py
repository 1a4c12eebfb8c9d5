"""Parses and checks W3C Trace Context's `traceparent`. A malformed header is never an error.

`tracestate` is not stored: it is text of a tenant's vendors, which does not belong in our rows.
"""

from __future__ import annotations

import re
from typing import Final

_FORM: Final = re.compile(
    r"(?!ff)(?P<version>[0-9a-f]{2})-(?P<trace>(?!0{32})[0-9a-f]{32})"
    r"-(?P<span>(?!0{16})[0-9a-f]{16})-(?P<flags>[0-9a-f]{2})(?P<more>-[ -~]*)?"
)
# The flags "sampled" and "random", which we pass on. The others are dropped.
_KNOWN_FLAGS: Final = 0b11


def traceparent_of(header: str | None) -> str | None:
    """The header in the form of version 00; None if W3C says to ignore it."""
    found = _FORM.fullmatch(header or "")
    if found is None or (found["version"] == "00" and found["more"]):
        return None
    flags = int(found["flags"], 16) & _KNOWN_FLAGS
    return f"00-{found['trace']}-{found['span']}-{flags:02x}"


def ids_of(traceparent: str) -> tuple[str, str, int]:
    """Trace id, span id and flags of a checked traceparent."""
    _, trace_id, span_id, flags = traceparent.split("-")
    return trace_id, span_id, int(flags, 16)
