"""Whatever a superuser without triggers does to the record, `verify` names the row."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import UUID, uuid4

import psycopg
import pytest
from flask import Flask

from payments_app.audit.chain import Fault
from payments_app.integrity.verification import Verdict, verify_record
from payments_app.payments.model import Payment
from payments_app.payments.outbox import publish_outbox
from payments_app.tenants.model import Tenant
from payments_app.tenants.registry import configure_tenant
from tests.builders import (
    ScriptedProvider,
    a_tenant,
    advance,
    an_accepted_payment,
    events_of,
    make_due,
    payment_row,
    publish_and_checkpoint,
    rails_of,
)
from tests.storage.bending import LAWLESS, Superuser, another

ENTRIES = "audit_entries"
EVENTS = "payment_events"
# The table that holds them; EVENTS is the name that `verify` uses.
TABLE = "events"
OTHER = str(another("", "uuid"))
AS_AT_BIRTH = {
    "status": "PENDING",
    "stage": "accepted",
    "sequence": 1,
    "external_id": None,
    "evidence_id": None,
    "final_at": None,
    "next_action_at": "2026-11-01T00:00:00Z",
}


@pytest.fixture
def superuser(administrator_url: str) -> Iterator[Superuser]:
    with psycopg.connect(administrator_url, autocommit=True, options=LAWLESS) as connection:
        yield Superuser(connection)


@pytest.fixture
def tenant() -> Tenant:
    """A tenant with five audit entries."""
    tenant = a_tenant()
    for number in range(4):
        configure_tenant(tenant, actor="cli:ada", rate_limit=f"{number + 1} per minute")
    return tenant


@pytest.fixture
def paid(app: Flask) -> Payment:
    """A final payment with all of its three events."""
    return a_paid_payment(app)


def a_paid_payment(app: Flask) -> Payment:
    gateway = rails_of(app, ScriptedProvider())
    accepted = an_accepted_payment(gateway)
    advance(gateway)
    make_due(accepted.payment_id)
    advance(gateway)
    publish_outbox()
    return payment_row(accepted.payment_id)


def verify(tenant_id: UUID | None = None, *, head: str | None = None) -> Verdict:
    return verify_record(tenant_id, sought=[head] if head else [], on_row=lambda: None)


def fault(tenant_id: UUID | None = None, *, head: str | None = None) -> Fault:
    found = verify(tenant_id, head=head).fault
    assert found is not None, "nobody saw it"
    return found


def entry_ids(superuser: Superuser, tenant: Tenant) -> list[int]:
    found = superuser.run(
        "SELECT id FROM audit_entries WHERE tenant_id = %s ORDER BY position", tenant.id
    )
    return [row[0] for row in found.fetchall()]


def told(found: Fault) -> tuple[str, str]:
    return found.table, found.problem.value


# --- one byte -----------------------------------------------------------------------------------


def test_one_byte_in_any_column_of_an_audit_entry(superuser: Superuser, tenant: Tenant) -> None:
    third = entry_ids(superuser, tenant)[2]
    row = superuser.row(ENTRIES, third)
    missed = {}
    for column, data_type in superuser.columns(ENTRIES).items():
        with superuser.bent(ENTRIES, third, **{column: another(row[column], data_type)}):
            named = fault().row
        if column in ("position", "tenant_id"):
            # Its old position is now empty; at its new one it does not fit.
            missed[column] = "position 3" not in named and "position 1" not in named
        elif column == "id":
            missed[column] = "position 3" not in named
        else:
            missed[column] = f"position 3 (id {third})" != named
    assert len(missed) == 13
    assert {column for column, missing in missed.items() if missing} == set()
    assert verify().fault is None


def test_one_byte_in_any_column_of_a_payments_event(superuser: Superuser, paid: Payment) -> None:
    second = events_of(paid.id)[1]
    row = superuser.row(TABLE, second.id)
    missed = {}
    for column, data_type in superuser.columns(TABLE).items():
        with superuser.bent(TABLE, second.id, **{column: another(row[column], data_type)}):
            named = fault().row
        if column == "payment_id":
            missed[column] = "sequence 2" not in named and OTHER not in named
        else:
            missed[column] = f"payment {paid.id} sequence 2" not in named
    assert len(missed) == 20
    assert {column for column, missing in missed.items() if missing} == set()
    assert verify().fault is None


# --- rows removed, inserted, exchanged, rewritten -----------------------------------------------


def test_an_entry_removed_from_the_middle(superuser: Superuser, tenant: Tenant) -> None:
    superuser.remove(ENTRIES, entry_ids(superuser, tenant)[2])
    found = fault()
    assert (*told(found), found.row) == (ENTRIES, "missing", "position 3")
    assert found.tenant_id == str(tenant.id)


def test_the_newest_entries_removed_are_missed_by_a_head_kept_elsewhere(
    superuser: Superuser, tenant: Tenant
) -> None:
    # Two entries that do not change the tenant: its row would show the removal of others.
    configure_tenant(tenant, actor="cli:ada", tenant_rate_limit=None)
    (kept,) = [record.head for record in verify().tenants]
    configure_tenant(tenant, actor="cli:ada", tenant_rate_limit=None)
    assert verify(head=kept).fault is None

    for row_id in entry_ids(superuser, tenant)[-2:]:
        superuser.remove(ENTRIES, row_id)
    assert verify().fault is None
    found = fault(head=kept)
    assert (*told(found), found.row) == (ENTRIES, "missing", f"hash {kept}")


def test_all_entries_of_a_tenant_removed(superuser: Superuser, tenant: Tenant) -> None:
    for row_id in entry_ids(superuser, tenant):
        superuser.remove(ENTRIES, row_id)
    assert (*told(fault()), fault().row) == (ENTRIES, "missing", "position 1")
    assert fault(tenant.id).row == "position 1"


def test_two_entries_exchanged(superuser: Superuser, tenant: Tenant) -> None:
    second, third = (superuser.row(ENTRIES, i) for i in entry_ids(superuser, tenant)[1:3])
    superuser.remove(ENTRIES, third["id"])
    superuser.put(ENTRIES, second["id"], {**second, "position": 3})
    superuser.insert(ENTRIES, {**third, "position": 2})
    found = fault()
    assert (*told(found), found.row) == (ENTRIES, "altered", f"position 2 (id {third['id']})")


@pytest.mark.usefixtures("tenant")
def test_an_entry_written_anew_with_a_hash_that_fits(superuser: Superuser, tenant: Tenant) -> None:
    third, fourth = entry_ids(superuser, tenant)[2:4]
    superuser.run("UPDATE audit_entries SET actor = 'cli:eve' WHERE id = %s", third)
    superuser.run("UPDATE audit_entries e SET hash = audit_entry_hash(e) WHERE id = %s", third)
    found = fault()
    assert (*told(found), found.row) == (ENTRIES, "broken_link", f"position 4 (id {fourth})")


def test_an_entry_put_in_with_a_hash_that_fits(superuser: Superuser, tenant: Tenant) -> None:
    last = superuser.row(ENTRIES, entry_ids(superuser, tenant)[-1])
    superuser.insert(ENTRIES, {**last, "id": 999_999, "position": 6})
    superuser.run("UPDATE audit_entries e SET hash = audit_entry_hash(e) WHERE id = 999999")
    found = fault()
    assert (*told(found), found.row) == (ENTRIES, "broken_link", "position 6 (id 999999)")


def test_a_second_entry_at_one_position(superuser: Superuser, tenant: Tenant) -> None:
    first = superuser.row(ENTRIES, entry_ids(superuser, tenant)[0])
    superuser.insert(ENTRIES, {**first, "id": 999_999, "position": 0})
    found = fault()
    assert (*told(found), found.row) == (ENTRIES, "inserted", "position 0 (id 999999)")


# --- payments' events ---------------------------------------------------------------------------


def test_an_event_removed_from_the_middle(superuser: Superuser, paid: Payment) -> None:
    superuser.remove(TABLE, events_of(paid.id)[1].id)
    found = fault()
    assert (*told(found), found.row) == (EVENTS, "missing", f"payment {paid.id} sequence 2")


def test_a_storys_end_removed_is_missed_by_its_payment(superuser: Superuser, paid: Payment) -> None:
    superuser.remove(TABLE, events_of(paid.id)[-1].id)
    found = fault()
    assert (*told(found), found.row) == (EVENTS, "missing", f"payment {paid.id} sequence 3")


def test_a_storys_end_removed_with_its_payment_made_to_fit_is_missed_by_the_seal(
    superuser: Superuser, paid: Payment
) -> None:
    publish_and_checkpoint()
    gone = events_of(paid.id)[-1]
    superuser.remove(TABLE, gone.id)
    superuser.run(
        "UPDATE payments SET sequence = 2, status = 'PENDING', stage = 'unknown', final_at = NULL,"
        " evidence_id = NULL, next_action_at = now() WHERE id = %s",
        paid.id,
    )
    found = fault()
    assert told(found) == (EVENTS, "missing")
    assert f"to {gone.id}" in found.row


def test_a_whole_payment_removed_is_missed_by_the_seal(superuser: Superuser, paid: Payment) -> None:
    publish_and_checkpoint()
    superuser.run("DELETE FROM events WHERE payment_id = %s", paid.id)
    superuser.run("DELETE FROM payments WHERE id = %s", paid.id)
    assert told(fault()) == (EVENTS, "missing")
    assert told(fault(paid.tenant_id)) == (EVENTS, "missing")


def test_a_payment_without_any_event_or_events_without_their_payment(
    superuser: Superuser, paid: Payment
) -> None:
    row = superuser.run("SELECT to_jsonb(p) FROM payments p WHERE id = %s", paid.id).fetchone()[0]
    superuser.run("DELETE FROM payments WHERE id = %s", paid.id)
    assert told(fault()) == ("payments", "missing")
    superuser.insert("payments", row)
    superuser.run("DELETE FROM events WHERE payment_id = %s", paid.id)
    assert (*told(fault()), fault().row) == (EVENTS, "missing", f"payment {paid.id} sequence 1")


def test_an_event_written_anew_with_a_hash_that_fits(superuser: Superuser, paid: Payment) -> None:
    first, second, third = events_of(paid.id)
    superuser.run("UPDATE events SET actor = 'key:eve' WHERE id = %s", second.id)
    superuser.make_hashes_fit(second.id)
    assert fault().row == f"payment {paid.id} sequence 3 (id {third.id})"
    assert told(fault()) == (EVENTS, "broken_link")
    assert first.sequence == 1


def test_a_whole_story_written_anew_is_not_what_was_sealed(
    superuser: Superuser, paid: Payment
) -> None:
    publish_and_checkpoint()
    last = events_of(paid.id)[-1]
    superuser.run("UPDATE events SET actor = 'key:eve' WHERE id = %s", last.id)
    superuser.make_hashes_fit(last.id)
    assert told(fault()) == (EVENTS, "altered")


@pytest.mark.parametrize("whose", ["of the first tenant", "of the one sealed last"])
def test_a_payment_put_in_among_those_that_are_sealed(
    superuser: Superuser, paid: Payment, app: Flask, whose: str
) -> None:
    publish_and_checkpoint()
    first = events_of(paid.id)[0].id
    superuser.run("ALTER SEQUENCE events_id_seq RESTART WITH %s" % (first + 500))
    other = a_paid_payment(app)
    publish_and_checkpoint()
    assert verify().fault is None

    model = paid if whose == "of the first tenant" else other
    event = superuser.row(TABLE, events_of(model.id)[0].id)
    forged = superuser.run("SELECT to_jsonb(p) FROM payments p WHERE id = %s", model.id)
    payment = {**forged.fetchone()[0], **AS_AT_BIRTH, "id": str(uuid4()), "reference": str(uuid4())}
    superuser.insert("payments", payment)
    superuser.insert(
        TABLE, {**event, "id": first + 100, "payment_id": payment["id"], "position": 99}
    )
    superuser.run(
        "UPDATE events e SET previous_hash = payment_hash(p) FROM payments p"
        " WHERE p.id = e.payment_id AND p.id = %s",
        payment["id"],
    )
    superuser.make_hashes_fit(first + 100)
    assert told(fault()) == (EVENTS, "inserted")


@pytest.mark.parametrize(
    ("column", "value"),
    [
        *(("mode", "test"), ("provider", "airtel_money"), ("amount_minor", 999_999)),
        *(("currency", "KES"), ("merchant", "eve"), ("base_url", "https://thief.example")),
        *(("target_environment", "mtncongo"), ("created_at", "2020-01-01T00:00:00Z")),
        *(("reference", OTHER), ("account_id", OTHER), ("tenant_id", OTHER)),
        *(("sequence", 2), ("status", "FAILED")),
    ],
)
def test_what_a_payment_is_for_and_how_it_ended(
    superuser: Superuser, paid: Payment, column: str, value: object
) -> None:
    code = ", failure_code = 'other'" if value == "FAILED" else ""
    superuser.run(f"UPDATE payments SET {column} = %s{code} WHERE id = %s", value, paid.id)  # noqa: S608  the test's own
    found = fault()
    assert (*told(found), found.row) == ("payments", "altered", f"id {paid.id}")
