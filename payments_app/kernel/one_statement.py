"""Runs one statement as a whole transaction: begun, executed and committed in one round trip."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Connection, Table
from sqlalchemy.dialects import postgresql

from payments_app.kernel.database import db, transaction_is_open

# The first part of each statement.
BEGINNING: Final = "WITH tenant_scope AS MATERIALIZED (SELECT set_config('maramoja.tenant', "
# The statement selects from `tenant_scope`, so the tenant is set before any row is read.
WITH_TENANT: Final = f"{BEGINNING}%(tenant_scope)s, true))"


def execute_autocommit(
    tenant_id: UUID, statement: str, values: Mapping[str, Any]
) -> tuple[Any, ...]:
    """The one row of `WITH_TENANT …`: begun, executed and committed in one round trip.

    `values`: psycopg's parameters, by name. Errors are SQLAlchemy's, as everywhere.
    """
    if transaction_is_open():
        raise RuntimeError("a transaction is open already: they do not nest")
    values = {"tenant_scope": str(UUID(str(tenant_id))), **values}
    with db.engine.connect() as connection:
        return _row(connection, statement, values)


def with_tenant_found_by(tenant: str) -> str:
    """`WITH_TENANT` for the tenant that an SQL expression finds; if it finds none, no row is seen.

    `tenant`: a call of one of migration 0002's SECURITY DEFINER lookups. Only these see the rows of
    all tenants.
    """
    return f"{BEGINNING}coalesce({tenant}::text, ''), true))"


def execute_lookup(statement: str, values: Mapping[str, Any]) -> tuple[Any, ...]:
    """The one row of a statement with `with_tenant_found_by(…)`, on a separate connection."""
    with db.engine.connect() as connection:
        return _row(connection, statement, dict(values))


def _row(connection: Connection, statement: str, values: dict[str, Any]) -> tuple[Any, ...]:
    """The one row of a statement, which the driver gets as it is. Errors are SQLAlchemy's."""
    return tuple(connection.exec_driver_sql(statement, values).one())


def insert_from(table: Table, names: Sequence[str], source: str, **expressions: str) -> str:
    """`INSERT INTO table` of one row for each row of `source`.

    The value of column c is %(table_c)s, or its SQL expression in `expressions`.
    """
    dialect = postgresql.dialect()  # type: ignore[no-untyped-call]
    given = [f"%({table.name}_{name})s::{table.c[name].type.compile(dialect)}" for name in names]
    columns = ", ".join((*names, *expressions))
    values = ", ".join((*given, *expressions.values()))
    return f"INSERT INTO {table.name} ({columns}) SELECT {values} FROM {source}"  # noqa: S608  names of ours


def values_for(table: Table, **values: Any) -> dict[str, Any]:
    """The values of a row, under the names of `insert_from`."""
    return {f"{table.name}_{name}": value for name, value in values.items()}
