"""From where a change comes: set where a request or a command begins, read by `record`."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Origin:
    """`source`: the address of an API caller, or the host on which a command was typed."""

    source: str | None = None
    request_id: str | None = None


NOWHERE: Final = Origin()
_origin: ContextVar[Origin] = ContextVar("origin", default=NOWHERE)


def begin_at(origin: Origin) -> None:
    """What this thread does from here on comes from there."""
    _origin.set(origin)


def origin() -> Origin:
    """From where this thread's work comes."""
    return _origin.get()
