"""Due deliveries, inserted as rows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from uuid import UUID

import psycopg
from sqlalchemy import QueuePool, text

from payments_app.kernel.database import db
from payments_app.webhooks.endpoints import Owner
from tests.builders import a_caller, an_endpoint
from tests.conftest import Installation

# `payments` payments with `each` events; the body is the event's number in its payment.
FILL = """
    WITH e AS (
        INSERT INTO events (tenant_id, mode, type, feed_data)
        SELECT %(tenant)s, 'live', 'payment.x', '{}' FROM generate_series(1, %(payments)s * %(each)s)
        RETURNING id
    ), n AS (SELECT id AS number, row_number() OVER (ORDER BY id) - 1 AS n FROM e)
    INSERT INTO webhook_deliveries (id, tenant_id, mode, endpoint_id, event_number, event_type,
        payment_id, sequence, body, next_attempt_at)
    SELECT gen_random_uuid(), %(tenant)s, 'live', %(endpoint)s, number, 'payment.x',
        md5(%(endpoint)s || '/' || n / %(each)s)::uuid, n %% %(each)s + 1,
        convert_to((n %% %(each)s + 1)::text, 'UTF8'),
        clock_timestamp() - interval '1 s' + n * interval '1 microsecond'
    FROM n
"""


class Backlogs:
    """Endpoints of new tenants, with due deliveries."""

    def __init__(self, past_rules: psycopg.Connection) -> None:
        self._past_rules = past_rules

    def owner(self) -> Owner:
        caller = a_caller()
        return Owner(caller.tenant_id, caller.mode)

    def endpoint(self, owner: Owner, *, payments: int, each: int = 1) -> UUID:
        endpoint_id = an_endpoint(owner).endpoint.id
        values = {"tenant": owner.tenant_id, "endpoint": endpoint_id}
        self._past_rules.execute(FILL, {**values, "payments": payments, "each": each})
        return endpoint_id

    def rows_read(self) -> int:
        """How many rows of deliveries and endpoints were read so far.

        A connection reports what it has read when it is told to, and otherwise some seconds later.
        """
        flush = "SELECT pg_stat_force_next_flush()"
        pool = db.engine.pool
        assert isinstance(pool, QueuePool)
        with ExitStack() as stack:
            for _ in range(pool.checkedin()):
                stack.enter_context(db.engine.connect()).execute(text(flush))
        self.run(flush)
        ((count,),) = self.run(
            "SELECT sum(seq_tup_read + idx_tup_fetch)::bigint FROM pg_stat_user_tables"
            " WHERE relname IN ('webhook_deliveries', 'webhook_endpoints')"
        )
        return int(str(count))

    def run(self, statement: str, *values: object) -> list[tuple[object, ...]]:
        cursor = self._past_rules.execute(statement.encode(), values)
        return cursor.fetchall() if cursor.description else []


@contextmanager
def backlogs_of_their_own(installation: Installation) -> Iterator[Backlogs]:
    """In a database that nobody else reads, and whose deliveries autovacuum does not analyze."""
    with (
        installation.app.app_context(),
        psycopg.connect(installation.administrator_url, autocommit=True) as superuser,
    ):
        superuser.execute("SET session_replication_role = replica")
        superuser.execute("ALTER TABLE webhook_deliveries SET (autovacuum_enabled = off)")
        yield Backlogs(superuser)
        db.session.remove()
