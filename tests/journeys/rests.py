"""Searches every column of the database and every key of Redis for secrets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import redis
from psycopg import sql

from tests.journeys.gateway import Gateway
from tests.journeys.leaks import found_in


@dataclass(frozen=True)
class Intended:
    """A column that stores a secret in plain text on purpose. `what`: how the secret's name begins.

    Remove the entry when the column is encrypted: an entry without a match fails the test too.
    """

    table: str
    column: str
    what: str
    reason: str


INTENDED = (
    Intended("payments", "metadata", "the payer", "what the tenant itself put there"),
    Intended("events", "feed_data", "the payer", "the same: events tell the metadata"),
    Intended("webhook_events", "data", "the payer", "a view of the same, for the release before"),
    Intended(
        "webhook_endpoints", "url", "the word in a webhook's URL", "where it wants to be told"
    ),
    Intended("webhook_attempts", "url", "the word in a webhook's URL", "where it was told then"),
)


def leaks_in_database(gateway: Gateway, secrets: dict[str, str]) -> set[tuple[str, str, str]]:
    """(table, column, secret): what a dump of the whole database would show."""
    with gateway.connect() as connection:
        # A partition's rows are in its parent table.
        columns = connection.execute(
            "SELECT table_name, column_name, data_type FROM information_schema.columns"
            " WHERE table_schema = 'public' AND NOT EXISTS (SELECT FROM pg_class"
            " WHERE relname = table_name AND relispartition)"
        ).fetchall()
        leaks = set()
        for table, column, kind in columns:
            name = sql.Identifier(column)
            text = (
                sql.SQL("encode({}, 'escape')") if kind == "bytea" else sql.SQL("{}::text")
            ).format(name)
            copy = sql.SQL("COPY (SELECT {} FROM {}) TO STDOUT").format(text, sql.Identifier(table))
            with connection.cursor().copy(copy) as copied:
                dump = b"".join(bytes(part) for part in copied).decode(errors="replace")
            leaks |= {(table, column, found) for found in found_in(dump, secrets)}
    return leaks


def judged(leaks: set[tuple[str, str, str]]) -> tuple[list[str], list[str]]:
    """Leaks that are not intended, and intended ones that were not found."""
    wrong = [
        f"{table}.{column}: {secret}"
        for table, column, secret in sorted(leaks)
        if not any(_covers(one, (table, column, secret)) for one in INTENDED)
    ]
    idle = [
        f"{one.table}.{one.column} holds no {one.what} any more: take its line out"
        for one in INTENDED
        if not any(_covers(one, leak) for leak in leaks)
    ]
    return wrong, idle


def all_of_redis(server: redis.Redis) -> str:
    """Every key with its value."""
    return "\n".join(f"{key!r} {_value(server, key)!r}" for key in server.scan_iter())


def _value(server: redis.Redis, key: bytes) -> Any:
    kind = server.type(key)
    readers = {
        b"string": server.get,
        b"list": lambda name: server.lrange(name, 0, -1),
        b"set": server.smembers,
        b"hash": server.hgetall,
        b"zset": lambda name: server.zrange(name, 0, -1),
        # The key was deleted between the two commands.
        b"none": lambda _: None,
    }
    return readers[kind](key)


def _covers(one: Intended, leak: tuple[str, str, str]) -> bool:
    table, column, secret = leak
    return (one.table, one.column) == (table, column) and secret.startswith(one.what)
