"""The one database: where a transaction begins and ends, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Final

from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import Connection, MetaData, func
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.orm import DeclarativeBase, Session
from sqlalchemy.sql.functions import Function

# Constraint names come out the same everywhere, so that a migration can name them.
NAMING: Final = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}
# A statement that takes longer than this is a fault of ours: end it, the client may retry.
STATEMENT_TIMEOUT_MS: Final = 15_000
# Nothing waits for a row longer than a client would.
LOCK_TIMEOUT_MS: Final = 3_000
CONNECT_TIMEOUT_S: Final = 5
_AFTER_COMMIT: Final = "after_commit"


class Base(DeclarativeBase):
    """All tables. Flask-SQLAlchemy shares its metadata."""

    metadata = MetaData(naming_convention=NAMING)


# autobegin=False: a stray query outside transaction() raises instead of opening one silently.
db = SQLAlchemy(
    metadata=Base.metadata,
    session_options={"autobegin": False, "expire_on_commit": False},
)


def init_database(app: Flask, url: str, *, pool_size: int = 16) -> None:
    """Bind the app to the database at `url` (postgresql+psycopg://…)."""
    options = (
        f"-c statement_timeout={STATEMENT_TIMEOUT_MS} -c lock_timeout={LOCK_TIMEOUT_MS}"
        " -c idle_in_transaction_session_timeout=30000 -c timezone=UTC"
    )
    app.config["SQLALCHEMY_DATABASE_URI"] = url
    app.config["SQLALCHEMY_ENGINE_OPTIONS"] = {
        "pool_size": pool_size,
        "max_overflow": 8,
        "pool_timeout": 5,
        "pool_pre_ping": False,
        "connect_args": {
            "options": options,
            "connect_timeout": CONNECT_TIMEOUT_S,
            "application_name": "maramoja",
        },
    }
    db.init_app(app)


@contextmanager
def transaction() -> Iterator[Session]:
    """One transaction: commit at the end, roll back on an error. They don't nest.

    What `after_commit` was given runs once the commit is through, and never else.
    """
    session = db.session()
    if session.in_transaction():
        raise RuntimeError("a transaction is open already: they do not nest")
    session.info[_AFTER_COMMIT] = []
    try:
        with session.begin():
            yield session
    finally:
        callbacks = session.info.pop(_AFTER_COMMIT)
        session.close()
    for callback in callbacks:
        callback()


@contextmanager
def snapshot() -> Iterator[Connection]:
    """A connection for single reads, each its own statement: one round trip, no BEGIN."""
    with db.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        yield connection


def after_commit(session: Session, callback: Callable[[], None]) -> None:
    """Have `callback` run when this session's transaction has committed."""
    session.info[_AFTER_COMMIT].append(callback)


def transaction_is_open() -> bool:
    """Whether this thread's app context holds a transaction (network calls may not)."""
    return bool(db.session().in_transaction())


def database_now() -> Function[datetime]:
    """The database's clock at this very statement, which all machines share."""
    return func.clock_timestamp()


def constraint_of(error: IntegrityError) -> str | None:
    """The name of the constraint that refused."""
    diagnostics = getattr(error.orig, "diag", None)
    name: str | None = getattr(diagnostics, "constraint_name", None)
    return name


def is_lock_timeout(error: OperationalError) -> bool:
    """Whether a statement gave up waiting for a row (SQLSTATE 55P03, lock_not_available)."""
    return getattr(error.orig, "sqlstate", None) == "55P03"
