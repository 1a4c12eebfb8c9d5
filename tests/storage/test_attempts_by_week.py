"""Attempts are partitioned by week; a partition is dropped whole, after its retention time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from flask import Flask
from psycopg.errors import InsufficientPrivilege
from sqlalchemy import text

from payments_app.kernel.database import EVERY_TENANT, db, transaction
from payments_app.webhooks import deliveries
from payments_app.webhooks.endpoints import Owner
from tests.builders import a_tenant, an_endpoint
from tests.conftest import Installation
from tests.webhooks.dispatching import WorkerProcess, answered

OLD = timedelta(weeks=6)
# No test here takes longer.
MIDNIGHT_S = 60.0
PARTITIONS = (
    "SELECT relname FROM pg_inherits JOIN pg_class c ON c.oid = inhrelid"
    " WHERE inhparent = 'webhook_attempts'::regclass"
)
# Its id (UUIDv7) has the time of creation, as the publisher makes it; its `generation` is 2, as it
# has two attempts.
DELIVERY = """
    WITH told AS (
        INSERT INTO events (tenant_id, mode, type, feed_data)
        VALUES (%(tenant)s, 'live', 'payment.x', '{}') RETURNING id)
    INSERT INTO webhook_deliveries (id, tenant_id, mode, endpoint_id, event_number, event_type, body,
        status, delivered_at, lease_until, created_at, generation)
    SELECT %(id)s, %(tenant)s, 'live', %(endpoint)s, told.id, 'payment.x', '{}', %(status)s,
        CASE %(status)s WHEN 'delivered' THEN %(at)s::timestamptz END, %(lease)s, %(at)s, 2 FROM told
"""
ATTEMPTS = """
    INSERT INTO webhook_attempts (tenant_id, delivery_id, generation, trigger, url, started_at)
    SELECT %(tenant)s, %(id)s, n, 'schedule', 'https://x.example', %(at)s FROM generate_series(1, 2) n
"""


@dataclass
class Weeks:
    """A database of the test's own, with partitions for past weeks too."""

    app: Flask
    superuser: psycopg.Connection
    owner: Owner
    endpoint_id: UUID

    def partitions(self) -> set[str]:
        return {name.removeprefix("webhook_attempts_") for (name,) in self.ask(PARTITIONS)}

    def ask(self, query: str, values: Any = None) -> list[tuple[Any, ...]]:
        return self.superuser.execute(query.encode(), values).fetchall()

    def a_delivery(
        self, *, ago: timedelta, status: str = "delivered", in_hand: bool = False
    ) -> UUID:
        at = datetime.now(UTC) - ago
        values = {
            "tenant": self.owner.tenant_id,
            "endpoint": self.endpoint_id,
            "id": UUID(hex=f"{int(at.timestamp() * 1000):012x}7{uuid4().hex[13:]}"),
            "status": status,
            "at": at,
            "lease": datetime.now(UTC) + timedelta(seconds=30) if in_hand else None,
        }
        self.superuser.execute(DELIVERY, values)
        self.superuser.execute(ATTEMPTS, values)
        return UUID(str(values["id"]))

    def attempts_of(self, delivery_id: UUID) -> int:
        query = "SELECT count(*) FROM webhook_attempts WHERE delivery_id = %s"
        return int(self.ask(query, [delivery_id])[0][0])

    def place_of(self, delivery_id: UUID) -> str:
        query = (
            "SELECT DISTINCT tableoid::regclass::text FROM webhook_attempts WHERE delivery_id = %s"
        )
        ((name,),) = self.ask(query, [delivery_id])
        return str(name).removeprefix("webhook_attempts_")

    def forget(self) -> int:
        return deliveries.purge_deliveries()


def week_of(at: datetime) -> str:
    return (at - timedelta(days=at.weekday())).strftime("%Y%m%d")


@pytest.fixture
def _no_midnight() -> None:
    """Weeks begin and retention times end at midnight UTC: no test begins shortly before it."""
    now = datetime.now(UTC)
    midnight = (now + timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
    left_s = (midnight - now).total_seconds()
    if left_s < MIDNIGHT_S:
        time.sleep(left_s + 1)


@pytest.fixture
def weeks(_no_midnight: None, installation_of_its_own: Installation) -> Iterator[Weeks]:
    app = installation_of_its_own.app
    with (
        app.app_context(),
        psycopg.connect(installation_of_its_own.administrator_url, autocommit=True) as superuser,
    ):
        # As the owner, so that the partitions get the rights that they have in production.
        superuser.execute("SET ROLE maramoja_owner")
        superuser.execute("DROP TABLE webhook_attempts_before")
        superuser.execute(
            "SELECT make_webhook_attempts(date_trunc('week', now(), 'UTC') - n * interval '7 days')"
            " FROM generate_series(0, 9) n"
        )
        superuser.execute("RESET ROLE")
        owner = Owner(a_tenant().id, "live")
        yield Weeks(app, superuser, owner, an_endpoint(owner).endpoint.id)
        db.session.remove()


def test_an_attempt_lies_in_the_week_of_its_delivery(weeks: Weeks) -> None:
    for ago in (timedelta(0), timedelta(weeks=1), OLD):
        told = weeks.a_delivery(ago=ago)
        assert weeks.place_of(told) == week_of(datetime.now(UTC) - ago)


def test_weeks_are_made_ahead_once(weeks: Weeks) -> None:
    weeks.forget()
    made = weeks.partitions()
    ahead = {week_of(datetime.now(UTC) + timedelta(weeks=n)) for n in range(5)}
    assert ahead | {"default"} <= made
    weeks.forget()
    assert weeks.partitions() == made


def test_a_week_past_its_time_goes_as_a_whole_and_nothing_else(weeks: Weeks) -> None:
    old, recent, new = (
        weeks.a_delivery(ago=ago) for ago in (OLD, timedelta(weeks=3), timedelta(0))
    )
    events = weeks.ask("SELECT count(*) FROM events")
    assert weeks.forget() == 1
    gone = week_of(datetime.now(UTC) - OLD)
    assert gone not in weeks.partitions()
    assert weeks.attempts_of(old) == 0
    assert (weeks.attempts_of(recent), weeks.attempts_of(new)) == (2, 2)
    left = {found for (found,) in weeks.ask("SELECT id FROM webhook_deliveries")}
    assert left == {recent, new}
    assert weeks.ask("SELECT count(*) FROM events") == events


def test_thirty_days_are_kept_and_no_more(weeks: Weeks) -> None:
    """docs/webhooks.md promises thirty days, for a delivery and for its attempts."""
    kept, gone = (
        weeks.a_delivery(ago=timedelta(days=30) + timedelta(hours=hours)) for hours in (-1, 1)
    )
    assert weeks.forget() == 1
    assert (weeks.attempts_of(kept), weeks.attempts_of(gone)) == (2, 0)


@pytest.mark.parametrize(
    ("status", "in_hand"), [("pending", False), ("pending", True), ("delivered", True)]
)
def test_a_week_with_something_on_its_way_stays_until_that_has_ended(
    weeks: Weeks, status: str, *, in_hand: bool
) -> None:
    ended, open_one = (
        weeks.a_delivery(ago=OLD),
        weeks.a_delivery(ago=OLD, status=status, in_hand=in_hand),
    )
    weeks.forget()
    assert weeks.place_of(open_one) in weeks.partitions()
    assert weeks.attempts_of(open_one) == 2
    # An ended delivery is deleted as a row, as usual.
    assert weeks.attempts_of(ended) == 0
    weeks.superuser.execute(
        "UPDATE webhook_deliveries SET status = 'failed', lease_until = NULL, delivered_at = NULL"
    )
    weeks.forget()
    assert week_of(datetime.now(UTC) - OLD) not in weeks.partitions()
    assert weeks.ask("SELECT * FROM webhook_deliveries") == []


def test_what_is_told_again_after_its_week_was_dropped_is_written_down(weeks: Weeks) -> None:
    (old,) = [weeks.a_delivery(ago=OLD)]
    weeks.superuser.execute(f"DROP TABLE webhook_attempts_{weeks.place_of(old)}".encode())
    deliveries.resend_one(weeks.owner, old, actor="cli:test")
    process = WorkerProcess()
    claim = process.claim_one()
    assert claim.delivery_id == old
    process.record(answered(claim, 503))
    assert weeks.place_of(old) == "default"
    weeks.superuser.execute("UPDATE webhook_deliveries SET status = 'failed', lease_until = NULL")
    assert weeks.forget() == 1
    assert weeks.ask("SELECT * FROM webhook_attempts_default") == []


def test_whoever_reads_is_not_waited_for_and_the_week_goes_next_time(weeks: Weeks) -> None:
    """E.g. a backup that takes hours: a waiting lock would block each later attempt."""
    weeks.a_delivery(ago=OLD)
    (name,) = [weeks.ask("SELECT current_database()")[0][0]]
    url = weeks.superuser.info
    with psycopg.connect(host=url.host, port=url.port, user=url.user, dbname=name) as reader:
        reader.execute("SELECT count(*) FROM webhook_attempts")
        begun = time.monotonic()
        weeks.forget()
        took_s = time.monotonic() - begun
        assert week_of(datetime.now(UTC) - OLD) in weeks.partitions()
    # Each old partition is tried once, with a lock timeout of a fifth of a second.
    assert took_s < 3
    weeks.forget()
    assert week_of(datetime.now(UTC) - OLD) not in weeks.partitions()


@pytest.mark.parametrize(
    "statement",
    [
        "DROP TABLE webhook_attempts_default",
        "DELETE FROM webhook_attempts_default",
        "SELECT FROM webhook_attempts_default",
        "UPDATE webhook_attempts_default SET outcome = 'x'",
        "CREATE TABLE mine PARTITION OF webhook_attempts FOR VALUES FROM (MINVALUE) TO (MAXVALUE)",
        "SELECT make_webhook_attempts(now())",
        "SELECT wall_webhook_attempts('payments')",
    ],
)
@pytest.mark.usefixtures("weeks")
def test_the_gateways_role_has_no_way_to_them_but_one(statement: str) -> None:
    with (
        pytest.raises(Exception, match=r"denied|must be owner") as caught,
        transaction(EVERY_TENANT) as session,
    ):
        session.execute(text(statement))
    assert isinstance(getattr(caught.value, "orig", None), InsufficientPrivilege)
    with transaction(EVERY_TENANT) as session:
        assert session.execute(text("SELECT * FROM turn_webhook_attempts()")).one() is not None


@pytest.mark.parametrize("tenant", ["", "00000000-0000-0000-0000-000000000000"])
def test_it_sees_every_tenants_deliveries_whoever_calls_and_leaves_the_wall_as_it_was(
    weeks: Weeks, tenant: str
) -> None:
    open_one = weeks.a_delivery(ago=OLD, status="pending")
    week = f"webhook_attempts_{weeks.place_of(open_one)}"
    with db.engine.connect() as connection:
        connection.exec_driver_sql("BEGIN")
        connection.exec_driver_sql(f"SELECT set_config('maramoja.tenant', '{tenant}', true)")
        connection.exec_driver_sql("SELECT * FROM turn_webhook_attempts()").one()
        now = connection.exec_driver_sql("SELECT current_setting('maramoja.tenant')").scalar_one()
        seen = connection.exec_driver_sql(
            f"SELECT count(*) FROM webhook_attempts WHERE tableoid = '{week}'::regclass"  # noqa: S608
        ).scalar_one()
        connection.exec_driver_sql("COMMIT")
    assert weeks.attempts_of(open_one) == 2
    assert (now, seen) == (tenant, 0)
