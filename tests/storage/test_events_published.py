"""An event is one row: it commits with its change, and the publisher completes it once."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Final
from uuid import UUID

import psycopg
import pytest
from flask import Flask
from psycopg.errors import InsufficientPrivilege, RestrictViolation
from sqlalchemy import event as listened
from sqlalchemy.exc import OperationalError

from devstack.supervisor import wait_until
from payments_app.integrity.checkpoints import write_checkpoints
from payments_app.integrity.verification import verify_record
from payments_app.kernel.database import db
from payments_app.payments.model import Payment
from payments_app.payments.outbox import BATCH, publish_outbox
from payments_app.webhooks.endpoints import Owner
from payments_app.webhooks.feed import read_events
from tests.builders import (
    ScriptedProvider,
    a_caller,
    advance,
    an_accepted_payment,
    an_asker,
    an_endpoint,
    make_due,
    rails_of,
)
from tests.storage.attacker import Attacker
from tests.storage.bending import LAWLESS, Superuser
from tests.webhooks.dispatching import WorkerProcess

PATIENCE_S: Final = 30.0

# The columns that only the publisher sets, all of them at once.
GIVEN = (
    *("position = 1", "feed_data = '{}'", "previous_hash = sha256('a')", "hash = sha256('b')"),
    *("content_hash = sha256('c')", "covers = '{}'"),
)
UNPUBLISHED = ", ".join(f"{part.partition(' ')[0]} = NULL" for part in GIVEN)
SET = "UPDATE events SET "
COMPLETE = SET + ", ".join(GIVEN)
OWN = {
    "event_id": UUID(int=9),
    "mode": "test",
    "type": "payment.failed",
    "payment_id": UUID(int=9),
    "sequence": 9,
    "status": "FAILED",
    "stage": "final",
    "actor": "eve",
    "request_id": "eve",
    "data": '{"verdict": "FAILED"}',
    "transaction_id": 1,
    "created_at": "2020-01-01T00:00:00Z",
}


@pytest.fixture
def superuser(administrator_url: str) -> Iterator[Superuser]:
    with psycopg.connect(administrator_url, autocommit=True, options=LAWLESS) as connection:
        yield Superuser(connection)


@pytest.fixture
def accepted(app: Flask) -> UUID:
    """A payment whose one event is not published yet."""
    return an_accepted_payment(rails_of(app, ScriptedProvider())).payment_id


def fault() -> str | None:
    found = verify_record(None, on_row=lambda: None).fault
    return None if found is None else f"{found.problem} {found.row}"


def published(superuser: Superuser) -> list[tuple[int, int]]:
    """Position and sequence of each published event, in the order of the feed."""
    query = "SELECT position, sequence FROM events WHERE feed_data IS NOT NULL ORDER BY position"
    return list(superuser.run(query).fetchall())


# --- what commits, and when -----------------------------------------------------------------------


def test_an_accepted_payments_event_is_there_at_once_and_published_later(
    superuser: Superuser, accepted: UUID
) -> None:
    columns = "position, feed_data, previous_hash, hash"
    query = f"SELECT {columns} FROM events WHERE payment_id = %s"  # noqa: S608  the test's own
    assert superuser.run(query, accepted).fetchall() == [(None, None, None, None)]
    assert publish_outbox() == 1
    (row,) = superuser.run(query, accepted).fetchall()
    assert None not in row
    assert publish_outbox() == 0


def test_each_hash_is_what_the_database_makes_of_the_row(app: Flask, superuser: Superuser) -> None:
    gateway = rails_of(app, ScriptedProvider())
    first = an_accepted_payment(gateway).payment_id
    publish_outbox()
    # Now events are linked to a published event, and to one of the same batch.
    advance(gateway)
    second = an_accepted_payment(gateway).payment_id
    for payment_id in (first, second):
        make_due(payment_id)
    advance(gateway)
    publish_outbox()
    rows = superuser.run(
        "SELECT hash = payment_event_hash(e), previous_hash = coalesce("
        " lag(hash) OVER (PARTITION BY e.payment_id ORDER BY e.sequence), payment_hash(p))"
        " FROM events e JOIN payments p ON p.id = e.payment_id"
    ).fetchall()
    assert set(rows) == {(True, True)}
    assert len(rows) >= 5
    assert fault() is None


def test_more_than_a_batch_is_published_in_one_order(app: Flask, superuser: Superuser) -> None:
    caller, gateway = a_caller(), rails_of(app, ScriptedProvider())
    for _ in range(BATCH // 2 + 5):
        an_accepted_payment(gateway, context=an_asker(caller=caller))
    advance(gateway)
    count = publish_outbox()
    assert count > BATCH
    assert [position for position, _ in published(superuser)] == list(range(1, count + 1))
    assert fault() is None


# --- what the database enforces -------------------------------------------------------------------


@pytest.mark.usefixtures("accepted")
def test_an_unpublished_event_takes_what_the_publisher_gives_and_nothing_else(
    attacker: Attacker,
) -> None:
    for column, value in OWN.items():
        # All columns of the publisher are set; only this column is wrong.
        refused = attacker.refusal_of(
            lambda c=column, v=value: attacker.run(f"{COMPLETE}, {c} = %(v)s", v=v)  # type: ignore[misc]
        )
        expected = "denied" if attacker.role == "application" else "published once"
        assert expected in refused, column
    for part in GIVEN:
        assert attacker.refusal_of(lambda p=part: attacker.run(SET + p)), part  # type: ignore[misc]
    assert attacker.refusal_of(lambda: attacker.run(COMPLETE)) == ""


@pytest.mark.usefixtures("accepted")
def test_a_published_event_never_changes_again(attacker: Attacker) -> None:
    publish_outbox()
    for change in (*GIVEN, *(f"{part.partition(' ')[0]} = NULL" for part in GIVEN)):
        refused = attacker.refusal_of(lambda c=change: attacker.run(SET + c))  # type: ignore[misc]
        assert "published once" in refused, change


@pytest.mark.parametrize(
    "given", ["position", "feed_data", "hash", "previous_hash", "content_hash", "covers"]
)
def test_nobody_adds_a_payments_event_that_is_published_already(
    attacker: Attacker, open_payment: Payment, given: str
) -> None:
    value = "7" if given == "position" else "'x'"
    with pytest.raises(RestrictViolation, match="the publisher gives"):
        attacker.run(
            f"INSERT INTO events (tenant_id, mode, payment_id, sequence, type, status, stage, actor,"  # noqa: S608
            f" {given}) SELECT tenant_id, mode, id, sequence + 1, 'payment.noted', status, stage,"
            f" 'eve', {value} FROM payments WHERE id = %(id)s",
            id=open_payment.id,
        )


def test_the_application_may_change_what_the_publisher_gives(database_url: str) -> None:
    with psycopg.connect(database_url) as connection:
        found = connection.execute(
            "SELECT array_agg(attname::text ORDER BY attname) FROM pg_attribute"
            " WHERE attrelid = 'events'::regclass AND attnum > 0"
            " AND has_column_privilege(attrelid, attnum, 'UPDATE')"
        ).fetchone()
        given = ["content_hash", "covers", "feed_data", "hash", "position", "previous_hash"]
        assert found == (given,)
        with pytest.raises(InsufficientPrivilege):
            connection.execute("DELETE FROM events")


# --- unpublished events ---------------------------------------------------------------------------


def test_seals_wait_for_what_is_not_published(app: Flask, superuser: Superuser) -> None:
    gateway = rails_of(app, ScriptedProvider())
    an_accepted_payment(gateway)
    publish_outbox()
    an_accepted_payment(gateway)
    assert write_checkpoints() == 1
    assert write_checkpoints() == 0
    assert fault() is None
    publish_outbox()
    assert write_checkpoints() == 1
    # An unpublished event before a published one: the later one waits too.
    later = an_accepted_payment(gateway).payment_id
    an_accepted_payment(gateway)
    publish_outbox()
    superuser.run(
        f"UPDATE events SET {UNPUBLISHED}"  # noqa: S608  the test's own
        " WHERE payment_id = %s",
        later,
    )
    assert write_checkpoints() == 0
    publish_outbox()
    assert write_checkpoints() == 2
    assert fault() is None


def test_a_hash_taken_from_the_middle_or_the_beginning_is_named(
    app: Flask, superuser: Superuser
) -> None:
    gateway = rails_of(app, ScriptedProvider())
    payment_id = an_accepted_payment(gateway).payment_id
    advance(gateway)
    publish_outbox()
    superuser.run(
        f"UPDATE events SET {UNPUBLISHED}"  # noqa: S608  the test's own
        " WHERE payment_id = %s AND sequence = 1",
        payment_id,
    )
    assert "broken_link" in (fault() or "")
    assert f"payment {payment_id} sequence 2" in (fault() or "")


def test_what_was_altered_and_stripped_of_its_hash_is_missed_by_the_seal(
    superuser: Superuser, accepted: UUID
) -> None:
    publish_outbox()
    assert write_checkpoints() == 1
    superuser.run(
        f"UPDATE events SET actor = 'key:eve', {UNPUBLISHED} WHERE payment_id = %s",  # noqa: S608  the test's own
        accepted,
    )
    assert "altered" in (fault() or "")


@pytest.mark.usefixtures("unhurried")
def test_an_event_whose_predecessor_is_gone_holds_up_nobody(
    app: Flask, superuser: Superuser
) -> None:
    gateway = rails_of(app, ScriptedProvider())
    bent = an_accepted_payment(gateway).payment_id
    advance(gateway)
    superuser.run("DELETE FROM events WHERE payment_id = %s AND sequence = 1", bent)
    an_accepted_payment(gateway)
    assert publish_outbox() == 2
    assert fault() == f"missing payment {bent} sequence 1"


# --- a publisher that dies ------------------------------------------------------------------------


@pytest.mark.usefixtures("unhurried")
def test_a_publisher_killed_at_any_statement_loses_nothing_and_publishes_nothing_twice(
    app: Flask, superuser: Superuser, administrator_url: str
) -> None:
    caller, gateway = a_caller(), rails_of(app, ScriptedProvider())
    owner = Owner(caller.tenant_id, caller.mode)
    an_endpoint(owner, "http://127.0.0.1:9/")
    an_accepted_payment(gateway, context=an_asker(caller=caller))
    advance(gateway)
    killed = 0
    while not published(superuser):
        # Events and deliveries commit together, or not at all.
        assert superuser.run("SELECT count(*) FROM webhook_deliveries").fetchone() == (0,)
        killed += _dies_at(app, administrator_url, killed + 1)
    assert killed > 6, "it never came to its statements"
    told = [(one.position, one.sequence) for one in read_events(owner, after=0, limit=9).events]
    assert told == published(superuser) == [(1, 1), (2, 2)]
    assert superuser.run("SELECT count(*) FROM webhook_deliveries").fetchone() == (2,)
    assert fault() is None


def _dies_at(app: Flask, administrator_url: str, nth: int) -> bool:
    """Publish, and terminate the connection before the n-th statement. False if there are fewer."""
    seen = 0
    with app.app_context():
        engine = db.engine

    def kill(connection: object, *_: object) -> None:
        nonlocal seen
        seen += 1
        if seen == nth:
            driver = connection.connection.driver_connection  # type: ignore[attr-defined]
            with psycopg.connect(administrator_url, autocommit=True) as other:
                other.execute("SELECT pg_terminate_backend(%s)", [driver.info.backend_pid])

    listened.listen(engine, "before_cursor_execute", kill)
    try:
        publish_outbox()
    except OperationalError:
        return True
    finally:
        listened.remove(engine, "before_cursor_execute", kill)
    return False


def test_two_publishers_give_each_event_one_position(app: Flask, superuser: Superuser) -> None:
    caller, gateway = a_caller(), rails_of(app, ScriptedProvider())
    stop = threading.Event()
    counts: list[int] = []

    def publish() -> None:
        with app.app_context():
            while not stop.is_set():
                counts.append(publish_outbox())
                time.sleep(0.001)

    threads = [threading.Thread(target=publish) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(30):
        an_accepted_payment(gateway, context=an_asker(caller=caller))
    try:
        wait_until(lambda: sum(counts) > 0, what="no thread publishes", limit_s=PATIENCE_S)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert sum(counts) + publish_outbox() == 30
    assert [position for position, _ in published(superuser)] == list(range(1, 31))
    assert fault() is None


def test_the_bytes_of_a_delivery_are_those_of_the_feed(app: Flask, superuser: Superuser) -> None:
    caller, gateway = a_caller(), rails_of(app, ScriptedProvider())
    an_endpoint(Owner(caller.tenant_id, caller.mode), "http://127.0.0.1:9/")
    an_accepted_payment(gateway, context=an_asker(caller=caller))
    publish_outbox()
    claim = WorkerProcess().claim_one()
    row = superuser.run("SELECT feed_data, event_id, position FROM events").fetchone()
    assert bytes(row[0]) in claim.body
    assert f'"evt_{row[1].hex}"'.encode() in claim.body
    assert b'"position":1' in claim.body


@pytest.fixture
def read_by_index(superuser: Superuser) -> Iterator[None]:
    """The next connections read a table by an index also where it has few rows."""
    (name,) = superuser.run("SELECT quote_ident(current_database())").fetchone()
    superuser.run(f"ALTER DATABASE {name} SET enable_seqscan = off")
    yield
    superuser.run(f"ALTER DATABASE {name} RESET enable_seqscan")
    # A connection that was opened meanwhile would keep the setting, for later tests too.
    db.engine.dispose()


@pytest.mark.usefixtures("read_by_index")
def test_accepting_reads_no_index_of_all_that_a_tenant_has(
    app: Flask, superuser: Superuser
) -> None:
    """A cached plan from a time with few events would read all of a tenant's, for ever."""
    caller = a_caller()
    with app.app_context():
        db.engine.dispose()
    wait_until(
        lambda: all(idle_s > 11 for idle_s in others_idle(superuser).values()),
        what="another connection is not idle",
        limit_s=PATIENCE_S,
    )
    others = others_idle(superuser)
    before = index_reads(superuser)
    gateway = rails_of(app, ScriptedProvider())
    for _ in range(13):
        an_accepted_payment(gateway, context=an_asker(caller=caller))
    with app.app_context():
        db.engine.dispose()
    wait_until(
        lambda: others_idle(superuser).keys() <= others.keys(),
        what="the connection that accepted is open",
        limit_s=PATIENCE_S,
    )
    after = index_reads(superuser)
    read = {name for name, count in after.items() if count > before[name]}
    assert read == {"uq_events_payment_id_sequence"}


def others_idle(superuser: Superuser) -> dict[int, float]:
    """For each other connection, by process id, the seconds that it has been idle.

    A connection reports its statistics when it ends, or after ten idle seconds at the latest.
    """
    return dict(
        superuser.run(
            "SELECT pid, extract(epoch FROM clock_timestamp() - state_change)::float8"
            " FROM pg_stat_activity WHERE datname = current_database()"
            " AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
        ).fetchall()
    )


def index_reads(superuser: Superuser) -> dict[str, int]:
    """How often each index of `events` was used, as the connections have reported."""
    return dict(
        superuser.run(
            "SELECT indexrelname, idx_scan FROM pg_stat_user_indexes WHERE relname = 'events'"
        ).fetchall()
    )
