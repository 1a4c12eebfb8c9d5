"""A statement that was prepared on nearly empty tables still reads little when they have grown.

PostgreSQL keeps the plan of a prepared statement until the next ANALYZE. On a table of a few rows
two indexes cost the same, and the wrong one reads all of a tenant's payments from then on.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final
from uuid import uuid4

import psycopg
from sqlalchemy import text

from payments_app.kernel.database import db
from payments_app.payments.callbacks import ReceivedCallback, record_callback
from payments_app.payments.gateway import PaymentGateway
from payments_app.payments.outbox import publish_outbox
from payments_app.payments.queries import find_events, find_payment
from payments_app.webhooks.endpoints import Owner
from tests.builders import (
    SCRIPTED,
    ScriptedProvider,
    a_caller,
    advance,
    an_accepted_payment,
    an_asker,
    an_endpoint,
    keyring,
    payment_row,
    rails_of,
)
from tests.conftest import Installation
from tests.webhooks.dispatching import WorkerProcess, answered

# psycopg prepares a statement at its sixth execution, and PostgreSQL plans a general one after five
# more.
PREPARED: Final = 14
GROWN: Final = 300
# Rows and index entries read in a table. One wrong index would read GROWN more for a payment.
# For each of many payments: its first event is published and delivered.
DELIVERED_MAX: Final = 30
# For one payment, from its acceptance to its last webhook: its own few rows, each several times.
LIVED_MAX: Final = {
    "payments": 100,
    "events": 60,
    "webhook_deliveries": 100,
    "idempotency_keys": 20,
    # These have only rows of the PREPARED payments, one or two of each.
    "provider_exchanges": 20,
    "callbacks": 8,
}
TABLES: Final = tuple(LIVED_MAX)
_READ: Final = """
SELECT t.relname, t.seq_tup_read + coalesce(sum(i.idx_tup_read), 0)::bigint
FROM pg_stat_user_tables t LEFT JOIN pg_stat_user_indexes i USING (relid)
WHERE t.relname = ANY (%s) GROUP BY t.relname, t.seq_tup_read
"""
# The others stay open, and only their first events are published and delivered.
_NOT_DUE: Final = (
    "UPDATE payments SET next_action_at = now() + interval '1 hour' WHERE status = 'PENDING'"
)


class Life:
    """Payments of one tenant, processed by one connection."""

    def __init__(self, gateway: PaymentGateway) -> None:
        self._gateway = gateway
        self._context = an_asker(caller=a_caller())
        self._deliveries = WorkerProcess()
        caller = self._context.caller
        an_endpoint(Owner(caller.tenant_id, caller.mode))

    def accept(self) -> None:
        an_accepted_payment(self._gateway, context=self._context)

    def live(self) -> None:
        """From the acceptance over its replay, submission, callback and check to the webhooks."""
        context = replace(self._context, idempotency_key=uuid4())
        made, again = (an_accepted_payment(self._gateway, context=context) for _ in range(2))
        payment_id = made.payment_id
        assert again.payment_id == payment_id
        advance(self._gateway)
        reference = payment_row(payment_id).reference
        assert record_callback(ReceivedCallback(SCRIPTED, reference, "PUT", b"{}", None), keyring())
        advance(self._gateway)
        caller = self._context.caller
        assert find_payment(caller, payment_id).status == "SUCCESSFUL"
        assert len(find_events(caller, payment_id, after=0, limit=10)) == 3
        self.deliver()

    def deliver(self) -> None:
        """Publish the events, and record that the receiver has accepted each."""
        publish_outbox()
        while due := self._deliveries.claim(1):
            self._deliveries.record(*[answered(claim) for claim in due])


def rows_read(administrator_url: str) -> dict[str, int]:
    """Rows and index entries read of each table so far, by the app's connection too."""
    with db.engine.connect() as connection:
        assert db.engine.pool.checkedin() == 0, "the app used more than one connection"
        connection.execute(text("SELECT pg_stat_force_next_flush()"))
    with psycopg.connect(administrator_url) as connection:
        return dict(connection.execute(_READ, [list(TABLES)]).fetchall())


def test_one_payment_reads_few_rows_among_many(installation_of_its_own: Installation) -> None:
    url = installation_of_its_own.administrator_url
    with psycopg.connect(url, autocommit=True) as administrator:
        (name,) = administrator.execute("SELECT quote_ident(current_database())").fetchone() or ()
        # A table of one page is read whole; and autovacuum could analyze the tables at any moment.
        administrator.execute(f"ALTER DATABASE {name} SET enable_seqscan = off")
        for table in TABLES:
            administrator.execute(f"ALTER TABLE {table} SET (autovacuum_enabled = false)")
    with installation_of_its_own.app.app_context():
        life = Life(rails_of(installation_of_its_own.app, ScriptedProvider()))
        life.live()
        with psycopg.connect(url, autocommit=True) as administrator:
            administrator.execute("ANALYZE")
        for _ in range(PREPARED - 1):
            life.live()
        for _ in range(GROWN):
            life.accept()
        with psycopg.connect(url, autocommit=True) as administrator:
            administrator.execute(_NOT_DUE)
        before = rows_read(url)
        life.deliver()
        delivered = rows_read(url)
        # It passes the index entries that _NOT_DUE has left; later scans don't.
        life.live()
        before_one = rows_read(url)
        life.live()
        after = rows_read(url)
    for_each = {table: (delivered[table] - before[table]) / GROWN for table in TABLES}
    assert max(for_each.values()) <= DELIVERED_MAX, for_each
    for_one = {table: after[table] - before_one[table] for table in TABLES}
    assert all(for_one[table] <= most for table, most in LIVED_MAX.items()), for_one
