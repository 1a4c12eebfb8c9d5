"""A held tenant's payments aren't submitted; those submitted before continue to their end."""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID, uuid4

import pytest
from flask import Flask

from payments_app.audit.queries import latest_entries
from payments_app.integrity.violations import release_tenant
from payments_app.payments.processor import HELD_LOOK
from payments_app.payments.states import Stage, Status
from payments_app.tenants.errors import ReasonMissing, TenantHeld
from payments_app.tenants.holds import held_tenants, hold_tenant
from payments_app.tenants.registry import find_tenant
from tests.builders import (
    ScriptedProvider,
    a_caller,
    advance,
    an_accepted_payment,
    an_asker,
    due_in_s,
    make_due,
    payment_row,
    rails_of,
)


def hold(tenant_id: UUID) -> bool:
    return hold_tenant(tenant_id, why="a test", actor="cli:test")


def test_what_waits_is_not_sent_until_the_brake_is_let_go(app: Flask) -> None:
    provider = ScriptedProvider()
    gateway, caller = rails_of(app, provider), a_caller()
    held = an_accepted_payment(gateway, context=an_asker(caller=caller)).payment_id
    other = an_accepted_payment(gateway).payment_id
    hold(caller.tenant_id)

    advance(gateway)
    assert provider.submissions == [payment_row(other).reference]
    assert payment_row(held).stage == Stage.ACCEPTED
    assert 0 < due_in_s(held) <= HELD_LOOK.total_seconds()

    release_tenant(caller.tenant_id, actor="cli:test")
    make_due(held)
    advance(gateway)
    assert provider.submissions[-1] == payment_row(held).reference


def test_what_was_sent_is_asked_about_to_its_end(app: Flask) -> None:
    gateway, caller = rails_of(app, ScriptedProvider()), a_caller()
    sent = an_accepted_payment(gateway, context=an_asker(caller=caller)).payment_id
    advance(gateway)
    hold(caller.tenant_id)

    make_due(sent)
    advance(gateway)
    assert payment_row(sent).status == Status.SUCCESSFUL


def test_nothing_new_is_taken_and_a_key_that_has_its_answer_gets_it(app: Flask) -> None:
    gateway, caller, key = rails_of(app, ScriptedProvider()), a_caller(), uuid4()
    first = an_accepted_payment(gateway, context=an_asker(caller=caller, key=key))
    held = replace(caller, held=True)

    again = an_accepted_payment(gateway, context=an_asker(caller=held, key=key))
    assert again.answer == first.answer
    with pytest.raises(TenantHeld):
        an_accepted_payment(gateway, context=an_asker(caller=held, key=uuid4()))


@pytest.mark.usefixtures("app")
def test_who_is_held_is_told_with_the_reason() -> None:
    tenant_id = a_caller().tenant_id
    assert hold(tenant_id)
    assert not hold(tenant_id), "it was on"
    assert [(tenant.id, tenant.held_why) for tenant in held_tenants()] == [(tenant_id, "a test")]
    assert release_tenant(tenant_id, actor="cli:test")
    assert not release_tenant(tenant_id, actor="cli:test")
    assert held_tenants() == []
    entries = latest_entries(find_tenant(str(tenant_id)).id, limit=2)
    assert [entry.action for entry in entries] == ["tenant.released", "tenant.held"]


@pytest.mark.parametrize("why", ["", "  ", "two\nlines", "x" * 201])
@pytest.mark.usefixtures("app")
def test_nobody_is_held_without_a_reason(why: str) -> None:
    with pytest.raises(ReasonMissing):
        hold_tenant(a_caller().tenant_id, why=why, actor="cli:test")
