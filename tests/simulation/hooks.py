"""SQLAlchemy hooks: before a statement or commit, and after it, an actor is at a point."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
from sqlalchemy import Connection, event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from payments_app.kernel.database import CHECK_DEFERRED, db
from payments_app.kernel.one_statement import BEGINNING
from payments_app.kernel.postgres import BEGIN, COMMIT
from payments_app.payments.claims import QUEUES
from tests.simulation.cast import Cast, Died, Where
from tests.simulation.clock import VirtualClock

# Statements that touch no row, or only find out where work may be: their order does not matter.
ASIDE = (BEGIN, CHECK_DEFERRED, COMMIT, QUEUES)


@dataclass(frozen=True)
class _Hooks:
    cast: Cast
    clock: VirtualClock

    def checked_out(self, raw: Any, *_call: Any) -> None:
        if (actor := self.cast.me()) is not None:
            actor.backend_pid = raw.info.backend_pid

    def checked_in(self, *_call: Any) -> None:
        # From here on another actor may use the connection.
        if (actor := self.cast.me()) is not None:
            actor.backend_pid = 0

    def begins(self, _connection: Connection) -> None:
        self.clock.tell()

    def before_statement(self, *call: Any) -> None:
        if call[2].startswith(BEGINNING):
            # This statement begins its own transaction.
            self.clock.tell()
        if self.cast.me() is not None and not call[2].startswith(ASIDE):
            self.cast.point(Where.STATEMENT, _short(call[2]))

    def after_statement(self, *call: Any) -> None:
        self.cast.landed()
        if call[2].startswith(BEGINNING):
            # This statement began and committed its own transaction.
            self.cast.ended()
            self.cast.point(Where.COMMITTED, _short(call[2]))

    def before_commit(self, _connection: Connection) -> None:
        self.cast.point(Where.COMMIT, "commit")

    def committed(self, _session: Session) -> None:
        self.cast.landed()
        self.cast.ended()
        self.cast.point(Where.COMMITTED, "commit")

    def rolled_back(self, _session: Session) -> None:
        self.cast.ended()

    def failed(self, context: ExceptionContext) -> None:
        self.cast.landed()
        if isinstance(context.original_exception, Died):
            # For PostgreSQL a dead client is a rollback. SQLAlchemy would treat it as a lost server
            # and discard all connections of the pool, which costs a third of a run's time.
            context.is_disconnect = False
            return
        actor = self.cast.me()
        if actor is not None and actor.lock_times_out:
            actor.lock_times_out = False
            late = psycopg.errors.LockNotAvailable("canceling statement due to lock timeout")
            raise OperationalError(context.statement, None, late)


@contextmanager
def listening(cast: Cast, clock: VirtualClock) -> Iterator[None]:
    """Call `cast` and `clock` at every step. An app context must be open."""
    hooks = _Hooks(cast, clock)
    wiring: tuple[tuple[Any, str, Any], ...] = (
        (db.engine, "checkout", hooks.checked_out),
        (db.engine, "checkin", hooks.checked_in),
        (db.engine, "begin", hooks.begins),
        (db.engine, "before_cursor_execute", hooks.before_statement),
        (db.engine, "after_cursor_execute", hooks.after_statement),
        (db.engine, "commit", hooks.before_commit),
        (db.engine, "handle_error", hooks.failed),
        (db.session, "after_commit", hooks.committed),
        (db.session, "after_rollback", hooks.rolled_back),
    )
    for target, name, listener in wiring:
        event.listen(target, name, listener)
    try:
        yield
    finally:
        for target, name, listener in wiring:
            event.remove(target, name, listener)


def _short(statement: str) -> str:
    """`UPDATE payments`, as the trace shows it."""
    words = statement.replace("\n", " ").split()
    verb = words[0]
    if statement.startswith(BEGINNING):
        return _alone(words)
    if verb == "WITH":
        return "keep the callback"
    if verb == "SELECT":
        table = words[words.index("FROM") + 1] if "FROM" in words else ""
        lock = " FOR UPDATE" if "UPDATE" in words[-6:] else ""
        return f"SELECT {table.rstrip(',')}{lock}"
    return " ".join(words[:3] if verb == "INSERT" else words[:2])


def _alone(words: list[str]) -> str:
    if "tenant_of_reference" in " ".join(words):
        return "find the payment"
    return "accept" if "INSERT" in words else "find the key"
