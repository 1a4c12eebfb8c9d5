"""A statement that is a transaction by itself: begun, executed and committed in one round trip."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Connection, Table
from sqlalchemy.dialects import postgresql

from payments_app.kernel.database import db, transaction_is_open

# How each begins.
BEGINNING: Final = "WITH wall AS MATERIALIZED (SELECT set_config('maramoja.tenant', "
# Its rows are drawn from `wall`, which names the tenant before the first of them is looked at.
ALONE: Final = f"{BEGINNING}%(wall)s, true))"


def execute_alone(tenant_id: UUID, statement: str, values: Mapping[str, Any]) -> tuple[Any, ...]:
    """The one row of `ALONE …`: begun, executed and committed in one round trip.

    `values`: what psycopg takes, by name. Errors are SQLAlchemy's, as everywhere.
    """
    if transaction_is_open():
        raise RuntimeError("a transaction is open already: they do not nest")
    values = {"wall": str(UUID(str(tenant_id))), **values}
    with db.engine.connect() as connection:
        return _row(connection, statement, values)


def alone_for(tenant: str) -> str:
    """`ALONE` for the tenant that an SQL expression finds; without one no row is seen.

    `tenant`: a call of one of migration 0002's lookups, the only ones that see rows of all tenants.
    """
    return f"{BEGINNING}coalesce({tenant}::text, ''), true))"


def execute_lookup(statement: str, values: Mapping[str, Any]) -> tuple[Any, ...]:
    """The one row of a statement that begins with `alone_for(…)`, on a connection of its own."""
    with db.engine.connect() as connection:
        return _row(connection, statement, dict(values))


def _row(connection: Connection, statement: str, values: dict[str, Any]) -> tuple[Any, ...]:
    """What SQLAlchemy does for a statement, without a context and a result for its one row.

    Who listens to the engine hears it, and an error goes where all others go: it finds out whether
    the connection is lost.
    """
    cursor: Any = None
    try:
        cursor = connection.connection.cursor()
        call = (connection, cursor, statement, values, None, False)
        connection.dispatch.before_cursor_execute(*call)
        cursor.execute(statement, values)
        connection.dispatch.after_cursor_execute(*call)
        found = cursor.fetchone()
    except BaseException as error:
        connection._handle_dbapi_exception(error, statement, values, cursor, None)  # noqa: SLF001
        raise
    if found is None:
        raise RuntimeError("a statement that stands alone has one row")
    return tuple(found)


def insert_from(table: Table, names: Sequence[str], source: str, **expressions: str) -> str:
    """`INSERT INTO table` of one row for each of `source`.

    The value of column c is %(table_c)s, or what `expressions` has for it.
    """
    dialect = postgresql.dialect()  # type: ignore[no-untyped-call]
    given = [f"%({table.name}_{name})s::{table.c[name].type.compile(dialect)}" for name in names]
    columns = ", ".join((*names, *expressions))
    values = ", ".join((*given, *expressions.values()))
    return f"INSERT INTO {table.name} ({columns}) SELECT {values} FROM {source}"  # noqa: S608  names of ours


def values_for(table: Table, **values: Any) -> dict[str, Any]:
    """The values of a row as `insert_from` names them."""
    return {f"{table.name}_{name}": value for name, value in values.items()}
