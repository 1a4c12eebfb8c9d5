"""A superuser without triggers or foreign keys, who tampers with rows of the record."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg import sql

from payments_app.webhooks.contents import CONTENT_FIELDS, content_hash

LAWLESS = "-c session_replication_role=replica"
OTHER_VALUES: dict[str, object] = {
    "uuid": "01a209ad-4164-7047-9850-453984927403",
    "jsonb": {"bent": True},
}


class Superuser:
    """Writes fire no trigger and check no reference."""

    def __init__(self, connection: psycopg.Connection) -> None:
        self._connection = connection

    def run(self, statement: str, *values: object) -> Any:
        return self._connection.execute(statement, values)

    def columns(self, table: str) -> dict[str, str]:
        """The table's columns with their types."""
        found = self.run(
            "SELECT column_name, data_type FROM information_schema.columns"
            " WHERE table_schema = 'public' AND table_name = %s",
            table,
        )
        return dict(found.fetchall())

    def row(self, table: str, row_id: object) -> dict[str, Any]:
        """The row as PostgreSQL writes it in JSON."""
        query = sql.SQL("SELECT to_jsonb(t) FROM {} t WHERE id = %s").format(sql.Identifier(table))
        found = self._connection.execute(query, [row_id]).fetchone()
        assert found is not None
        return dict(found[0])

    def remove(self, table: str, row_id: object) -> None:
        query = sql.SQL("DELETE FROM {} WHERE id = %s").format(sql.Identifier(table))
        assert self._connection.execute(query, [row_id]).rowcount == 1

    def insert(self, table: str, row: dict[str, Any]) -> None:
        query = sql.SQL(
            "INSERT INTO {0} OVERRIDING SYSTEM VALUE"
            " SELECT (jsonb_populate_record(NULL::{0}, %s)).*"
        ).format(sql.Identifier(table))
        self._connection.execute(query, [json.dumps(row)])

    def put(self, table: str, row_id: object, row: dict[str, Any]) -> None:
        """Replace the row with this id by `row`."""
        self.remove(table, row_id)
        self.insert(table, row)

    def make_hashes_fit(self, event_id: int) -> None:
        """Recompute an event's hashes from its current content."""
        self.run("UPDATE events e SET hash = payment_event_hash(e) WHERE id = %s", event_id)
        query = f"SELECT encode(hash, 'hex'), ARRAY[{CONTENT_FIELDS}] FROM events e WHERE id = %s"  # noqa: S608  a constant
        own, fields = self.run(query, event_id).fetchone()
        made = bytes.fromhex(content_hash(own, *fields))
        self.run("UPDATE events SET content_hash = %s WHERE id = %s", made, event_id)

    @contextmanager
    def bent(self, table: str, row_id: object, **values: object) -> Iterator[None]:
        """Give the row other values, and restore it at the end."""
        kept = self.row(table, row_id)
        changed = {**kept, **values}
        assert changed != kept
        self.put(table, row_id, changed)
        yield
        self.put(table, changed["id"], kept)


def another(value: Any, data_type: str) -> object:
    """The smallest change of a value of this type."""
    match data_type:
        case "text":
            return f"{value[:-1]}{chr(ord(value[-1]) ^ 1)}" if value else "x"
        case "bytea":
            # In JSON, PostgreSQL writes it as \\x and hexadecimal digits.
            return f"{value[:-1]}{int(value[-1], 16) ^ 1:x}"
        case "bigint" | "integer":
            return value + 1000
        case "timestamp with time zone":
            return f"{value[:-7]}{int(value[-7]) ^ 1}+00:00"
        case _:
            return OTHER_VALUES[data_type]
