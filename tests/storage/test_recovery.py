"""After a restore: no payment is sent before a status check, and a retry does not charge twice."""

from __future__ import annotations

from uuid import UUID, uuid4

import pytest
from flask import Flask

from payments_app.audit.queries import latest_entries
from payments_app.integrity.violations import release_tenant
from payments_app.payments.accept import reference_for
from payments_app.payments.errors import RecoveryUnfinished
from payments_app.payments.gateway import PaymentGateway
from payments_app.payments.outbox import publish_outbox
from payments_app.payments.recovery import begin_recovery, finish_recovery, progress
from payments_app.payments.states import Stage, Status, Step
from payments_app.providers.contract import Mode
from payments_app.tenants.holds import RESTORED, held_tenants, hold_tenant
from payments_app.webhooks.endpoints import Owner
from payments_app.webhooks.feed import GAP, RESTORED_EVENT, last_position, read_events
from tests.builders import (
    ANSWERS,
    Ledger,
    ScriptedProvider,
    a_caller,
    advance,
    age_submission,
    an_accepted_payment,
    an_asker,
    claims,
    events_of,
    keyring,
    make_due,
    payment_row,
    rails_of,
    record,
)


def begin() -> None:
    begin_recovery(actor="cli:test")


def go_on(gateway: PaymentGateway, payment_id: UUID) -> None:
    make_due(payment_id, forget_lease=True)
    advance(gateway)


def test_a_payment_that_the_backup_calls_unsent_is_asked_about_first(app: Flask) -> None:
    ledger = Ledger()
    provider = ledger.provider()
    gateway = rails_of(app, provider)
    accepted = an_accepted_payment(gateway)
    reference = payment_row(accepted.payment_id).reference
    # Not in the backup: the payment was sent, and paid.
    ledger.truths[reference] = "paid"

    begin()
    assert payment_row(accepted.payment_id).stage == Stage.UNKNOWN
    assert events_of(accepted.payment_id)[-1].data == {"reason": "restored"}
    advance(gateway)
    assert payment_row(accepted.payment_id).status == Status.SUCCESSFUL
    assert provider.submissions == []


def test_one_that_was_never_sent_is_sent_once_the_brake_is_let_go(app: Flask) -> None:
    ledger = Ledger()
    provider = ledger.provider()
    gateway = rails_of(app, provider)
    payment_id = an_accepted_payment(gateway).payment_id
    begin()
    for _ in range(3):
        age_submission(payment_id, seconds=3600)
        go_on(gateway, payment_id)
    assert provider.submissions == [], "the brake is on"
    assert [(one.open, one.waiting) for one in progress() if one.open] == [(1, 0)]

    finish_recovery(actor="cli:test")
    assert held_tenants() == []
    go_on(gateway, payment_id)
    assert len(ledger.arrivals) == 1
    ledger.truths[payment_row(payment_id).reference] = "paid"
    go_on(gateway, payment_id)
    assert payment_row(payment_id).status == Status.SUCCESSFUL


def test_it_is_not_finished_while_the_provider_has_not_answered(app: Flask) -> None:
    provider = ScriptedProvider(checks=[ANSWERS["unknown"]])
    gateway = rails_of(app, provider)
    payment_id = an_accepted_payment(gateway).payment_id
    without = a_caller().tenant_id
    begin()
    advance(gateway)
    with pytest.raises(RecoveryUnfinished, match=r"\(1\)"):
        finish_recovery(actor="cli:test")
    assert {tenant.id for tenant in held_tenants(RESTORED)} == {payment_row(payment_id).tenant_id}
    assert without not in {tenant.id for tenant in held_tenants()}, "it has nothing to wait for"

    provider.checks = [ANSWERS["pending"]]
    go_on(gateway, payment_id)
    assert len(finish_recovery(actor="cli:test")) == 1


def test_an_answer_from_before_the_restore_is_none(app: Flask) -> None:
    gateway = rails_of(app, ScriptedProvider(checks=[ANSWERS["pending"]]))
    payment_id = an_accepted_payment(gateway).payment_id
    advance(gateway)
    go_on(gateway, payment_id)
    begin()
    assert [one.waiting for one in progress()] == [1]


@pytest.mark.usefixtures("app")
def test_who_was_held_before_stays_held() -> None:
    tenant_id = a_caller().tenant_id
    hold_tenant(tenant_id, why="asked to stop", actor="cli:test")
    begin()
    finish_recovery(actor="cli:test")
    assert [(tenant.id, tenant.held_why) for tenant in held_tenants()] == [
        (tenant_id, "asked to stop")
    ]


@pytest.mark.usefixtures("app")
def test_who_is_held_for_another_reason_meanwhile_stays_held() -> None:
    """E.g. for a violation that is found in the restored rows."""
    tenant_id = a_caller().tenant_id
    begin()
    assert hold_tenant(tenant_id, why="broken: end_stands", actor="system:invariants")
    finish_recovery(actor="cli:test")
    assert [(tenant.id, tenant.held_why) for tenant in held_tenants()] == [
        (tenant_id, "broken: end_stands")
    ]


@pytest.mark.usefixtures("app")
def test_who_is_held_for_a_restore_is_let_go_by_its_end_only() -> None:
    """Otherwise what was sent since the backup would be sent again before its status is checked."""
    tenant_id = a_caller().tenant_id
    begin()
    with pytest.raises(RecoveryUnfinished, match="flask recovery finish"):
        release_tenant(tenant_id, actor="cli:test")
    assert tenant_id in {tenant.id for tenant in held_tenants(RESTORED)}
    finish_recovery(actor="cli:test")
    entries = latest_entries(tenant_id, limit=4)
    assert [(entry.action, entry.actor) for entry in reversed(entries)] == [
        ("tenant.held", "cli:test"),
        ("recovery.begun", "cli:test"),
        ("tenant.released", "cli:test"),
        ("recovery.finished", "cli:test"),
    ]


def test_who_had_a_payment_in_hand_when_it_begins_records_nothing(app: Flask) -> None:
    """Its answer is from before the restore. Another worker checks the payment's status."""
    gateway = rails_of(app, ScriptedProvider())
    payment_id = an_accepted_payment(gateway).payment_id
    (in_hand,) = claims(1)
    begin()
    record(in_hand, ANSWERS["accepted"], gateway)
    row = payment_row(payment_id)
    assert (row.stage, row.next_step) == (Stage.SUBMITTING, Step.CHECK)
    assert row.generation > in_hand.generation


def test_to_begin_again_asks_again(app: Flask) -> None:
    """As after a backup taken during a recovery: the checks before it no longer count."""
    gateway = rails_of(app, ScriptedProvider(checks=[ANSWERS["pending"]]))
    payment_id = an_accepted_payment(gateway).payment_id
    begin()
    go_on(gateway, payment_id)
    assert [one.waiting for one in progress() if one.open] == [0]
    begin()
    assert [one.waiting for one in progress() if one.open] == [1]
    go_on(gateway, payment_id)
    assert [one.waiting for one in progress() if one.open] == [0]


@pytest.mark.usefixtures("app")
def test_a_key_has_one_reference_that_nobody_foresees() -> None:
    caller, key = a_caller(), uuid4()
    context = an_asker(caller=caller, key=key)
    reference = reference_for(context, keyring())
    assert reference == reference_for(context, keyring())
    assert (reference.version, reference.variant) == (4, "specified in RFC 4122")
    others = [
        an_asker(caller=caller, key=uuid4()),
        an_asker(caller=a_caller(), key=key),
        an_asker(caller=a_caller(mode=Mode.TEST), key=key),
        an_asker(caller=caller),
        an_asker(caller=caller),
    ]
    assert len({reference, *(reference_for(other, keyring()) for other in others)}) == 6


def test_the_feed_goes_on_behind_all_that_readers_can_have_seen(app: Flask) -> None:
    caller = a_caller()
    owner = Owner(caller.tenant_id, caller.mode)
    an_accepted_payment(rails_of(app, ScriptedProvider()), context=an_asker(caller=caller))
    publish_outbox()
    assert last_position(owner) == 1
    begin()
    publish_outbox()
    page = read_events(owner, after=GAP, limit=10)
    assert [event.type for event in page.events] == [RESTORED_EVENT, "payment.unknown"]
    assert [event.position for event in page.events] == [1 + GAP, 2 + GAP]
