"""W3C Trace Context's `traceparent`, read and checked. What is wrong with one is never an error.

`tracestate` is not kept: it is text of a tenant's vendors, and a row is no place for it.
"""

from __future__ import annotations

import re
from typing import Final

_FORM: Final = re.compile(
    r"(?!ff)(?P<version>[0-9a-f]{2})-(?P<trace>(?!0{32})[0-9a-f]{32})"
    r"-(?P<span>(?!0{16})[0-9a-f]{16})-(?P<flags>[0-9a-f]{2})(?P<more>-[ -~]*)?"
)
# Sampled, and random: what version 00 knows. The rest is not ours to pass on.
_KNOWN_FLAGS: Final = 0b11


def traceparent_of(header: str | None) -> str | None:
    """The header in the form of version 00; None for one that W3C has us ignore."""
    found = _FORM.fullmatch(header or "")
    if found is None or (found["version"] == "00" and found["more"]):
        return None
    flags = int(found["flags"], 16) & _KNOWN_FLAGS
    return f"00-{found['trace']}-{found['span']}-{flags:02x}"


def ids_of(traceparent: str) -> tuple[str, str, int]:
    """Trace, span and flags of one that was checked."""
    _, trace_id, span_id, flags = traceparent.split("-")
    return trace_id, span_id, int(flags, 16)
