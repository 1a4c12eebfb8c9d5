"""Inserts ended payments in bulk, as copies of one that a worker has really processed.

Each row has its template's values in all columns, moved in time, and its own ids. The payer is
encrypted for each payment, so that it can be decrypted. Triggers are off during the inserts. Only the
hashes of the events are the template's: `flask audit verify` would refuse them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import uuid_utils.compat

from bench.accept import known_payments
from devstack.stack import Stack
from payments_app.kernel.encryption import TenantKeyring
from payments_app.kernel.msisdn import Msisdn
from payments_app.kernel.secrets import Cipher
from payments_app.payments.payers import encrypt_payer

BATCH = 20_000
# The time between two payments: a million are spread over twelve days.
APART_S = 1.0
TEMPLATE_MAX_S = 60.0
PAYERS = 10_000
# Per table: the column that refers to the payment, and the columns that are not copied.
# `n` is the new payment, `t` the template's row, `k` its place among the template's rows.
_TABLES = {
    "payments": (
        "id",
        {
            "id": "n.id",
            "reference": "n.reference",
            "payer": "n.payer",
            "payer_index": "n.payer_index",
            "payer_masked": "n.payer_masked",
            "evidence_id": "%(first)s + n.n * 8 + %(evidence)s",
        },
    ),
    # Rows exist only for a tenant with an endpoint.
    "webhook_deliveries": (
        "payment_id",
        {
            "event_number": "%(first)s + n.n * 8 + k",
            "id": "gen_random_uuid()",
            "payment_id": "n.id",
        },
    ),
    "provider_exchanges": (
        "payment_id",
        {
            "id": "%(first)s + n.n * 8 + k",
            "payment_id": "n.id",
            "reference": "n.reference",
        },
    ),
    "events": (
        "payment_id",
        {
            "id": "%(first)s + n.n * 8 + k",
            "position": "%(first)s + n.n * 8 + k",
            "event_id": "gen_random_uuid()",
            "payment_id": "n.id",
        },
    ),
    "idempotency_keys": ("resource_id", {"key": "n.key", "resource_id": "n.id"}),
}
# Above all numbers that sequences have given out.
FIRST = 1_000_000
_EVIDENCE = """
SELECT count(*) FROM provider_exchanges e JOIN payments p ON p.id = e.payment_id
WHERE p.id = %s AND e.id <= p.evidence_id
"""
_NEW = """
CREATE UNLOGGED TABLE IF NOT EXISTS bench_fill (
    n bigint, id uuid, reference uuid, key uuid, moved interval,
    payer bytea, payer_index bytea, payer_masked text
)
"""
_COLUMNS = """
SELECT attname, format_type(atttypid, NULL) FROM pg_attribute
WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped AND attgenerated = ''
"""


def fill(stack: Stack, key: str, count: int) -> tuple[str, ...]:
    """Insert `count` payments; returns the ids of some."""
    template = ended_payment(stack, key)
    keyring = _vault_of(stack)
    with psycopg.connect(stack.administrator_url, autocommit=True) as connection:
        connection.execute("SET session_replication_role = replica")
        connection.execute("SET synchronous_commit = off")
        connection.execute(_NEW)
        statements = [_statement(connection, table, template) for table in _TABLES]
        (evidence,) = _one(connection, _EVIDENCE, template)
        values = {"first": FIRST, "evidence": evidence}
        ids: list[str] = []
        for start in range(0, count, BATCH):
            batch = range(start, min(start + BATCH, count))
            ids += _write_new(connection, keyring, template, batch)
            for statement in statements:
                connection.execute(statement, values)
            connection.execute("TRUNCATE bench_fill")
        connection.execute("VACUUM ANALYZE")
        connection.execute("CHECKPOINT")
    return tuple(ids)


def ended_payment(stack: Stack, key: str) -> UUID:
    """A payment that the stack's worker has processed, and whose events are published and delivered."""
    known_payments(stack.api_url, key, 1)
    deadline = time.monotonic() + TEMPLATE_MAX_S
    with psycopg.connect(stack.administrator_url, autocommit=True) as connection:
        while time.monotonic() < deadline:
            found = connection.execute(
                "SELECT id FROM payments p WHERE status = 'SUCCESSFUL' AND NOT EXISTS"
                " (SELECT FROM webhook_deliveries WHERE payment_id = p.id AND status = 'pending')"
                " AND NOT EXISTS"
                " (SELECT FROM events WHERE payment_id = p.id AND feed_data IS NULL)"
            ).fetchone()
            if found:
                return UUID(str(found[0]))
            time.sleep(0.1)
    raise TimeoutError("the template has not ended: is there a worker?")


def _statement(connection: psycopg.Connection, table: str, template: UUID) -> bytes:
    """Store the template's rows in a temporary table; returns the INSERT that copies them."""
    owner, own = _TABLES[table]
    expressions = {}
    for column, kind in connection.execute(_COLUMNS, [table]).fetchall():
        moved = f"t.{column} + n.moved" if kind.startswith("timestamp") else f"t.{column}"
        expressions[f'"{column}"'] = own.get(column, moved)
    rows = (
        f"CREATE TEMP TABLE template_{table} AS"  # noqa: S608
        f" SELECT *, row_number() OVER (ORDER BY {next(iter(own))}) AS k FROM {table}"
        f" WHERE {owner} = '{template}'"
    )
    connection.execute(rows.encode())
    return (
        f"INSERT INTO {table} ({', '.join(expressions)}) OVERRIDING SYSTEM VALUE"  # noqa: S608
        f" SELECT {', '.join(expressions.values())} FROM bench_fill n, template_{table} t"
    ).encode()


def _write_new(
    connection: psycopg.Connection, keyring: TenantKeyring, template: UUID, batch: range
) -> list[str]:
    tenant_id, created_at = _one(
        connection, "SELECT tenant_id, created_at FROM payments WHERE id = %s", template
    )
    some = []
    columns = "n, id, reference, key, moved, payer, payer_index, payer_masked"
    with connection.cursor().copy(f"COPY bench_fill ({columns}) FROM STDIN") as copy:
        for n, at, payment_id in _times(batch):
            msisdn = Msisdn(f"2567{n % PAYERS:08}")
            payer = encrypt_payer(
                keyring, tenant_id=tenant_id, payment_id=payment_id, msisdn=msisdn
            )
            sealed = (payer.payer, payer.index, payer.masked)
            copy.write_row((n, payment_id, uuid4(), uuid4(), at - created_at, *sealed))
            if n % 97 == 0:
                some.append(str(payment_id))
    return some


def _times(batch: range) -> Iterator[tuple[int, datetime, UUID]]:
    """Yield times from an hour ago backwards, with ids of these times."""
    latest = datetime.now(UTC) - timedelta(hours=1)
    for n in batch:
        at = latest - timedelta(seconds=APART_S * n)
        yield n, at, uuid_utils.compat.uuid7(nanoseconds=int(at.timestamp() * 1e9))


def _vault_of(stack: Stack) -> TenantKeyring:
    return TenantKeyring(
        Cipher((stack.environment["SECRET_KEYS"],)), _DataKeys(stack.administrator_url)
    )


class _DataKeys:
    """See kernel.encryption.DataKeys: a tenant has a data key since its first payment."""

    def __init__(self, url: str) -> None:
        self._url = url

    def find(self, tenant_id: UUID) -> str | None:
        with psycopg.connect(self._url) as connection:
            return str(_one(connection, "SELECT data_key FROM tenants WHERE id = %s", tenant_id)[0])

    def keep(self, tenant_id: UUID, wrapped: str) -> None:
        raise NotImplementedError(f"tenant {tenant_id} has no data key yet: {len(wrapped)}")


def _one(connection: psycopg.Connection, question: str, about: UUID) -> tuple[Any, ...]:
    row = connection.execute(question.encode(), [about]).fetchone()
    if row is None:
        raise LookupError(f"nothing under {about}")
    found: tuple[Any, ...] = row
    return found
