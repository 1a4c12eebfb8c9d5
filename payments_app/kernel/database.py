"""Transactions: where they begin and end, and whose rows they see (row-level security)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Final, NewType
from uuid import UUID

from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import Connection, MetaData, event, func
from sqlalchemy.orm import DeclarativeBase, Session, SessionTransaction
from sqlalchemy.sql.functions import Function

from payments_app.kernel.pool import DEAD_PEER, bound, counted_pool
from payments_app.kernel.postgres import BEGIN, BEGIN_BY_INDEX, COMMIT, refuse_unsafe_role
from payments_app.kernel.session_settings import SESSION, TIMEOUTS, asking_for, confirm_commits

# Constraint names follow one pattern, so that a migration can name them.
NAMING: Final = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}
CONNECT_TIMEOUT_S: Final = 5
_AFTER_COMMIT: Final = "after_commit"
_TENANT: Final = "tenant"
_BEGIN_WITH: Final = "begin_with"
# Check the deferred constraints now, and defer later checks again.
CHECK_DEFERRED: Final = "SET CONSTRAINTS ALL IMMEDIATE; SET CONSTRAINTS ALL DEFERRED"

AllTenants = NewType("AllTenants", str)
Whose = UUID | AllTenants
# For operator commands, for finding due work, and for counting. Never for a tenant's request.
EVERY_TENANT: Final = AllTenants("*")


class Base(DeclarativeBase):
    """The base class of all tables. Flask-SQLAlchemy shares its metadata."""

    metadata = MetaData(naming_convention=NAMING)


# autobegin=False: a stray query outside transaction() raises instead of opening one silently.
db = SQLAlchemy(
    metadata=Base.metadata,
    session_options={"autobegin": False, "expire_on_commit": False},
)


def init_database(
    app: Flask, url: str, *, pool_size: int = 16, allow_superuser: bool = False
) -> None:
    """Bind the app to the database at `url` (postgresql+psycopg://…).

    Unless `allow_superuser`, a role that row-level security does not restrict raises
    DatabaseRoleUnsafe when it connects.
    """
    app.config["SQLALCHEMY_DATABASE_URI"] = url
    app.config["SQLALCHEMY_ENGINE_OPTIONS"] = {
        **counted_pool(pool_size),
        # psycopg sends no BEGIN by itself: _begin does, and sets the tenant in the same round trip.
        "isolation_level": "AUTOCOMMIT",
        "connect_args": {
            **asking_for({**TIMEOUTS, **SESSION}, url),
            "connect_timeout": CONNECT_TIMEOUT_S,
            **DEAD_PEER,
            "application_name": "maramoja",
        },
    }
    db.init_app(app)
    with app.app_context():
        bound(db.engine)
        event.listen(db.engine, "connect", confirm_commits)
        if not allow_superuser:
            event.listen(db.engine, "connect", refuse_unsafe_role)


@contextmanager
def transaction(tenant: Whose, *, by_index: bool = False) -> Iterator[Session]:
    """One transaction on this tenant's rows: commit at the end, roll back on an error.

    Transactions don't nest. The callbacks of `after_commit` run once the commit has succeeded.
    """
    session = db.session()
    if session.in_transaction():
        raise RuntimeError("a transaction is open already: they do not nest")
    session.info[_AFTER_COMMIT] = []
    session.info[_TENANT] = tenant
    session.info[_BEGIN_WITH] = BEGIN_BY_INDEX if by_index else BEGIN
    try:
        with session.begin():
            yield session
    finally:
        callbacks = session.info.pop(_AFTER_COMMIT)
        session.close()
    for callback in callbacks:
        callback()


def set_tenant(session: Session, tenant_id: UUID) -> None:
    """From here on the transaction sees this tenant's rows only, until its end or the next tenant.

    Deferred constraints are checked first: at the commit, row-level security hides the other rows.
    """
    session.flush()
    _set_tenant(session.connection(), tenant_id, after=CHECK_DEFERRED)


@contextmanager
def snapshot(tenant: Whose | None = None, *, by_index: bool = False) -> Iterator[Connection]:
    """A separate connection for reads, whether or not a transaction is open.

    Without a tenant each statement is its own transaction, and sees rows only through the
    SECURITY DEFINER lookups of migration 0002.
    """
    with db.engine.connect() as connection:
        if tenant is not None:
            _set_tenant(connection, tenant, after=BEGIN_BY_INDEX if by_index else BEGIN)
        yield connection
        if tenant is not None:
            connection.exec_driver_sql(COMMIT)


def after_commit(session: Session, callback: Callable[[], None]) -> None:
    """Run `callback` once this session's transaction has committed."""
    session.info[_AFTER_COMMIT].append(callback)


def transaction_is_open() -> bool:
    """Whether this thread's app context has an open transaction (no network calls then)."""
    return db.session.registry.has() and bool(db.session().in_transaction())


def database_now() -> Function[datetime]:
    """The database's clock when the statement runs; all machines share it."""
    return func.clock_timestamp()


@event.listens_for(db.session, "after_begin")
def _begin(session: Session, _transaction: SessionTransaction, connection: Connection) -> None:
    _set_tenant(connection, session.info[_TENANT], after=session.info[_BEGIN_WITH])


def _set_tenant(connection: Connection, tenant: Whose, *, after: str = BEGIN) -> None:
    """BEGIN and the tenant in one message: tenant isolation costs the accept path no round trip."""
    # The value becomes part of the statement's text, so it must have the form of a UUID.
    whose = tenant if tenant == EVERY_TENANT else UUID(str(tenant))
    connection.exec_driver_sql(
        f"{after}; SELECT set_config('maramoja.tenant', '{whose}', true)",
        execution_options={"no_parameters": True},
    )
