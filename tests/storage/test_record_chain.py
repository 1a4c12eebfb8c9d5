"""How the chains grow: no row gets in outside of them, and checkpoints leave no event out."""

from __future__ import annotations

import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from flask import Flask
from psycopg.errors import RestrictViolation
from sqlalchemy import select

from payments_app.audit.model import SEALED, AuditEntry
from payments_app.audit.queries import latest_entries
from payments_app.integrity import checkpoints
from payments_app.integrity.verification import Verdict, verify_record
from payments_app.kernel.database import EVERY_TENANT, transaction
from payments_app.kernel.jobs import Job
from payments_app.payments.model import Payment
from payments_app.payments.outbox import publish_outbox
from payments_app.providers.contract import Mode
from payments_app.tenants.keys import NewKey, issue_key
from payments_app.tenants.model import Tenant
from payments_app.worker.poller import CHECKPOINT_EVERY_S, Poller
from tests.builders import (
    ScriptedProvider,
    a_tenant,
    an_accepted_payment,
    events_of,
    publish_and_checkpoint,
    rails_of,
)
from tests.storage.attacker import Attacker

THREADS = 8
MANY = 20_000
MEBIBYTE = 1024 * 1024


@pytest.fixture
def superuser(administrator_url: str) -> Iterator[psycopg.Connection]:
    """A superuser's connection, subject to the same triggers as the application."""
    with psycopg.connect(administrator_url) as connection:
        yield connection


def verify() -> Verdict:
    return verify_record(None, on_row=lambda: None)


def sealed_events() -> int:
    wanted = select(AuditEntry).where(AuditEntry.action == SEALED)
    with transaction(EVERY_TENANT) as session:
        return sum(entry.detail["events"] for entry in session.scalars(wanted))


def at_once(app: Flask, work: Callable[[], object]) -> None:
    gate = threading.Barrier(THREADS)

    def run(_number: int) -> None:
        with app.app_context():
            gate.wait()
            work()

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(run, range(THREADS)))


def test_an_empty_record_is_whole() -> None:
    assert verify() == Verdict([], 0, None)


def test_eight_writers_of_one_tenant_make_one_unbroken_chain(app: Flask) -> None:
    tenant = a_tenant()

    def change() -> None:
        for _ in range(10):
            # Each key is a new row: only the chain makes the writers wait for each other.
            issue_key(tenant, NewKey(mode=Mode.TEST), actor="cli:ada")

    at_once(app, change)
    verdict = verify()
    assert verdict.fault is None
    assert [record.entries for record in verdict.tenants] == [1 + THREADS * 10]


def test_many_entries_in_one_statement_are_chained_and_verified_in_flat_memory(
    superuser: psycopg.Connection,
) -> None:
    tenant = a_tenant()
    superuser.execute(
        "INSERT INTO audit_entries (tenant_id, actor, action, subject_type, subject_id, detail)"
        " SELECT %s, 'cli:ada', 'tenant.configured', 'test', n::text, jsonb_build_object('n', n)"
        " FROM generate_series(1, %s) AS n",
        (tenant.id, MANY),
    )
    superuser.commit()
    running: set[str] = set()

    def look() -> None:
        if len(running) == 0:
            found = superuser.execute(
                "SELECT query FROM pg_stat_activity"
                " WHERE state = 'idle in transaction' AND application_name = 'maramoja'"
            )
            running.update(query for (query,) in found)

    tracemalloc.start()
    verdict = verify_record(None, on_row=look)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # The peak does not include the driver's memory: check that it fetches rows in batches.
    assert all(query.startswith("FETCH FORWARD ") for query in running), running
    assert running
    assert verdict.fault is None
    assert [record.entries for record in verdict.tenants] == [MANY + 1]
    # All rows in memory would take 20 MiB.
    assert peak < 5 * MEBIBYTE


def test_place_time_and_hashes_of_an_entry_are_the_databases_own(attacker: Attacker) -> None:
    tenant = a_tenant()
    attacker.run("SELECT set_config('maramoja.tenant', '*', false)")
    attacker.run(
        "INSERT INTO audit_entries (tenant_id, actor, action, subject_type, subject_id, position,"
        " previous_hash, hash, created_at)"
        " VALUES (%(tenant)s, 'cli:ada', 'x', 'y', 'z', 77, '\\x00', '\\x00', '2020-01-01')",
        tenant=tenant.id,
    )
    attacker.connection.commit()
    assert verify().fault is None
    newest = latest_entries(tenant.id, limit=1)[0]
    assert (newest.position, newest.created_at.year > 2020) == (2, True)


@pytest.mark.parametrize("sequence", [9, 2_000_000])
def test_an_event_that_leaves_a_gap_is_refused(
    superuser: psycopg.Connection, open_payment: Payment, sequence: int
) -> None:
    with pytest.raises(RestrictViolation, match="has nothing before it"):
        superuser.execute(
            "INSERT INTO events"
            " (tenant_id, mode, payment_id, sequence, type, status, stage, actor)"
            " VALUES (%s, 'live', %s, %s, 'payment.ended', 'FAILED', 'final', 'eve')",
            (open_payment.tenant_id, open_payment.id, sequence),
        )
    superuser.rollback()


# --- checkpoints --------------------------------------------------------------------------------


def test_each_event_is_sealed_once_however_many_seal(app: Flask) -> None:
    gateway = rails_of(app, ScriptedProvider())
    for _ in range(5):
        an_accepted_payment(gateway)
    at_once(app, publish_and_checkpoint)
    assert sealed_events() == 5
    assert publish_and_checkpoint() == 0
    verdict = verify()
    assert (verdict.fault, verdict.seals) == (None, 5), "each payment's tenant has its own"


def test_an_event_is_not_overtaken_by_a_later_one_that_is_there_first(
    app: Flask, superuser: psycopg.Connection
) -> None:
    gateway = rails_of(app, ScriptedProvider())
    slow = an_accepted_payment(gateway).payment_id
    superuser.execute("UPDATE payments SET sequence = 2 WHERE id = %s", (slow,))
    superuser.execute(
        "INSERT INTO events (tenant_id, mode, payment_id, sequence, type, status, stage, actor)"
        " SELECT tenant_id, mode, id, 2, 'payment.noted', status, stage, 'engine' FROM payments"
        " WHERE id = %s",
        (slow,),
    )
    an_accepted_payment(gateway)
    # Published before the transaction ends, however long that takes.
    assert publish_outbox() == 2
    timer = threading.Timer(0.5, superuser.commit)
    timer.start()
    assert checkpoints.write_checkpoints() == 1, "it waits for the transaction that is open"
    timer.join()
    assert publish_and_checkpoint() == 2
    assert len(events_of(slow)) == 2
    assert verify().fault is None


def test_events_are_sealed_each_minute(app: Flask) -> None:
    beat = app.extensions["celery"].conf.beat_schedule.values()
    (every_s,) = [
        entry["schedule"] for entry in beat if entry["task"] == Job.WRITE_CHECKPOINTS.value
    ]
    assert every_s == CHECKPOINT_EVERY_S == 60


def test_a_worker_seals_without_a_broker(app: Flask) -> None:
    an_accepted_payment(rails_of(app, ScriptedProvider()))
    stop = threading.Event()
    poller = Poller(app, stop, checkpoint_every_s=0.05)
    poller.start()
    deadline = time.monotonic() + 10
    while not sealed_events() and time.monotonic() < deadline:
        time.sleep(0.05)
    poller.stop()
    poller.join()
    assert sealed_events() == 1


def test_what_is_many_is_sealed_in_batches(
    superuser: psycopg.Connection, open_payment: Payment
) -> None:
    count = len(events_of(open_payment.id))
    superuser.execute("SET session_replication_role = replica")
    superuser.execute(
        "INSERT INTO events"
        " (tenant_id, mode, payment_id, sequence, type, status, stage, actor, previous_hash, hash,"
        " feed_data)"
        " SELECT %s, 'live', gen_random_uuid(), 1, 'payment.accepted', 'PENDING', 'accepted', 'engine',"
        " sha256(n::text::bytea), sha256(n::text::bytea), '{}' FROM generate_series(1, %s) AS n",
        (open_payment.tenant_id, checkpoints.BATCH + 5),
    )
    superuser.commit()
    assert publish_and_checkpoint() == count + checkpoints.BATCH + 5
    entries = latest_entries(open_payment.tenant_id, limit=9)
    sizes = [entry.detail["events"] for entry in entries if entry.action == SEALED]
    assert sizes == [count + 5, checkpoints.BATCH]


def test_an_entry_that_only_calls_itself_a_seal_is_named(tenant_with_false_seal: Tenant) -> None:
    fault = verify().fault
    assert fault is not None
    assert (fault.table, fault.tenant_id) == ("payment_events", str(tenant_with_false_seal.id))
    assert "entry 2 of the audit trail" in fault.detail


@pytest.fixture(params=["[]", '{"through": 5}', '{"through": "x", "events": 0, "digest": 1}'])
def tenant_with_false_seal(request: pytest.FixtureRequest, superuser: psycopg.Connection) -> Tenant:
    tenant = a_tenant()
    plant_seal(superuser, tenant, request.param)
    return tenant


def plant_seal(superuser: psycopg.Connection, tenant: Tenant, detail: str) -> None:
    superuser.execute(
        "INSERT INTO audit_entries (tenant_id, actor, action, subject_type, subject_id, detail)"
        " VALUES (%s, 'system', %s, 'payment_events', '1-5', %s)",
        (tenant.id, SEALED, detail),
    )
    superuser.commit()


# Values of `through` in a forged checkpoint: beyond all events, none at all, or nonsense.
@pytest.mark.parametrize(
    "through", ["1000000000000000000", "1e400", '"x"', "null", "-9", "[1]", "true"]
)
def test_a_false_seal_does_not_end_the_sealing(
    app: Flask, superuser: psycopg.Connection, through: str
) -> None:
    first = an_accepted_payment(rails_of(app, ScriptedProvider()))
    assert publish_and_checkpoint() == len(events_of(first.payment_id))
    plant_seal(superuser, a_tenant(), f'{{"through": {through}, "events": 0}}')
    later = an_accepted_payment(rails_of(app, ScriptedProvider()))

    assert publish_and_checkpoint() == len(events_of(later.payment_id))
    assert publish_and_checkpoint() == 0
    fault = verify().fault
    assert fault is not None
    assert "of the audit trail sealed 0 events" in fault.detail
