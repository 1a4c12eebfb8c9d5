"""The origin of a change: set at the start of a request or a command, read by `record`."""

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
    """Set the origin of this thread's later changes."""
    _origin.set(origin)


def origin() -> Origin:
    """The origin of this thread's changes."""
    return _origin.get()
