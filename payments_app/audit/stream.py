"""Reads tables of any length in constant memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from sqlalchemy import Row, text
from sqlalchemy.orm import Session

from payments_app.kernel.pool import wait_without_end

# So many that the round trips cost little, and a few hundred kilobytes at most.
ROWS_AT_ONCE: Final = 1_000


@contextmanager
def stream(session: Session, statement: str, **values: object) -> Iterator[Iterator[Row[Any]]]:
    """The statement's rows through a server-side cursor, ROWS_AT_ONCE at a time."""
    options = {"yield_per": ROWS_AT_ONCE}
    result = session.execute(text(statement), values, execution_options=options)
    try:
        yield iter(result)
    finally:
        result.close()


def take_time(session: Session) -> None:
    """Switch off the timeouts of this transaction, for long statements and slow readers."""
    wait_without_end(session.connection())
    session.execute(text("SET LOCAL statement_timeout = 0"))
    session.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
