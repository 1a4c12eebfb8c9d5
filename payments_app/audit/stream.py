"""Reading tables of any length in flat memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from sqlalchemy import Row, text
from sqlalchemy.orm import Session

from payments_app.kernel.pool import wait_without_end

# Enough that a round trip doesn't count, and a few hundred kilobytes at most.
ROWS_AT_ONCE: Final = 1_000


@contextmanager
def stream(session: Session, statement: str, **values: object) -> Iterator[Iterator[Row[Any]]]:
    """The statement's rows through a cursor of the server, some at a time."""
    options = {"yield_per": ROWS_AT_ONCE}
    result = session.execute(text(statement), values, execution_options=options)
    try:
        yield iter(result)
    finally:
        result.close()


def take_time(session: Session) -> None:
    """In this transaction a statement may take as long as it needs, and so may who reads."""
    wait_without_end(session.connection())
    session.execute(text("SET LOCAL statement_timeout = 0"))
    session.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
