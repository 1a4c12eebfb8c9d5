"""Cursors of lists: a client gives back what a page gave out, and nothing else is accepted."""

from __future__ import annotations

import base64
import binascii
from datetime import datetime
from typing import Final
from uuid import UUID

from payments_app.kernel.errors import GatewayError

_NOT_OURS: Final = "The cursor is not one that a list gave out."
# The digits that every BIGINT of at most this length fits into.
NUMBER_DIGITS_MAX: Final = 18


class CursorInvalid(GatewayError):
    """The cursor isn't one that our lists return."""

    code = "cursor_invalid"


def cursor_at(when: datetime, id_: UUID) -> str:
    """The cursor of a list that is ordered by time and id."""
    text = f"{when.isoformat()}|{id_}"
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def time_and_id(cursor: str) -> tuple[datetime, UUID]:
    """What `cursor_at` was given. Raises CursorInvalid."""
    try:
        text = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode()
        instant, _, id_ = text.partition("|")
        when = datetime.fromisoformat(instant)
        if when.tzinfo is None:
            raise ValueError
        return when, UUID(id_)
    except (ValueError, binascii.Error, OverflowError):
        raise CursorInvalid(_NOT_OURS) from None


def number(cursor: str | None, *, digits_max: int = NUMBER_DIGITS_MAX) -> int:
    """The number to continue after; 0 without a cursor. Raises CursorInvalid."""
    if cursor is None:
        return 0
    if not (cursor.isascii() and cursor.isdigit() and len(cursor) <= digits_max):
        raise CursorInvalid(_NOT_OURS)
    return int(cursor)


def uuid(cursor: str | None) -> UUID | None:
    """The id to continue after. Raises CursorInvalid."""
    try:
        return None if cursor is None else UUID(cursor)
    except ValueError:
        raise CursorInvalid(_NOT_OURS) from None
