"""A superuser without triggers plants violations: each is found, and its tenant is held."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from uuid import UUID, uuid4

import psycopg
import pytest
from cryptography.fernet import Fernet
from flask import Flask, current_app
from sqlalchemy import text

from payments_app.integrity.invariants import Invariant, check_everything
from payments_app.integrity.violations import list_violations, release_tenant, resolve_violation
from payments_app.kernel.database import transaction
from payments_app.kernel.secrets import Cipher
from payments_app.payments.errors import ViolationNotFound
from payments_app.payments.model import Payment
from payments_app.tenants.errors import ReasonMissing, ViolationsOpen
from payments_app.tenants.holds import held_tenants
from tests.builders import (
    ANSWERS,
    ScriptedProvider,
    a_caller,
    advance,
    an_accepted_payment,
    an_asker,
    make_due,
    payment_row,
    publish_and_checkpoint,
    rails_of,
)
from tests.storage.bending import LAWLESS, Superuser

Planted = Callable[[Superuser, Payment], object]


@pytest.fixture
def superuser(administrator_url: str) -> Iterator[Superuser]:
    with psycopg.connect(administrator_url, autocommit=True, options=LAWLESS) as connection:
        yield Superuser(connection)


def check_all() -> int:
    """Check as the nightly task does."""
    return check_everything(current_app.extensions["maramoja"].cipher)


def an_ended_payment(app: Flask, answer: str = "paid") -> Payment:
    gateway = rails_of(app, ScriptedProvider(checks=[ANSWERS[answer]]))
    accepted = an_accepted_payment(gateway)
    advance(gateway)
    make_due(accepted.payment_id)
    advance(gateway)
    return payment_row(accepted.payment_id)


def sent_under_another_reference(superuser: Superuser, payment: Payment) -> None:
    superuser.run(
        "UPDATE provider_exchanges SET reference = %s WHERE payment_id = %s AND kind = 'submit'",
        uuid4(),
        payment.id,
    )


def ended_otherwise_than_its_evidence(superuser: Superuser, payment: Payment) -> None:
    superuser.run(
        "UPDATE provider_exchanges SET verdict = 'PENDING' WHERE id = %s", payment.evidence_id
    )


def ended_by_a_refusal_of_one_of_two(superuser: Superuser, payment: Payment) -> None:
    """Its last submission was refused; an earlier one had been sent as well."""
    superuser.run(
        "UPDATE payments SET status = 'FAILED', failure_code = 'other' WHERE id = %s", payment.id
    )
    superuser.run("UPDATE events SET status = 'FAILED' WHERE payment_id = %s", payment.id)
    superuser.run(
        "UPDATE provider_exchanges SET kind = 'submit', verdict = 'REFUSED', requests_left = 1"
        " WHERE id = %s",
        payment.evidence_id,
    )


def ended_on_anothers_evidence(superuser: Superuser, payment: Payment) -> None:
    superuser.run("UPDATE payments SET evidence_id = 0 WHERE id = %s", payment.id)


def says_otherwise_than_its_story(superuser: Superuser, payment: Payment) -> None:
    superuser.run(
        "UPDATE events SET status = 'PENDING' WHERE payment_id = %s AND sequence = %s",
        payment.id,
        payment.sequence,
    )


def contradicted(superuser: Superuser, payment: Payment) -> None:
    superuser.run(
        "UPDATE events SET type = 'payment.contradicted', data = '{\"verdict\": \"FAILED\"}'"
        " WHERE payment_id = %s AND sequence = %s",
        payment.id,
        payment.sequence,
    )


PLANTED: dict[str, tuple[Planted, Invariant]] = {
    "reference": (sent_under_another_reference, Invariant.ONE_REFERENCE),
    "verdict": (ended_otherwise_than_its_evidence, Invariant.END_HAS_EVIDENCE),
    "evidence": (ended_on_anothers_evidence, Invariant.END_HAS_EVIDENCE),
    "refusal": (ended_by_a_refusal_of_one_of_two, Invariant.REFUSAL_OF_ONLY_REQUEST),
    "story": (says_otherwise_than_its_story, Invariant.STORY_AGREES),
    "contradiction": (contradicted, Invariant.END_STANDS),
}


@pytest.mark.parametrize("name", PLANTED)
@pytest.mark.parametrize("look", [publish_and_checkpoint, check_all])
def test_a_break_is_found_and_puts_its_tenants_brake_on(
    app: Flask, superuser: Superuser, name: str, look: Callable[[], int]
) -> None:
    plant, invariant = PLANTED[name]
    an_ended_payment(app)
    broken = an_ended_payment(app)
    plant(superuser, broken)

    look()

    found = [one for one in list_violations(None, resolved=False) if one.invariant == invariant]
    assert [(one.tenant_id, one.subject) for one in found] == [(broken.tenant_id, str(broken.id))]
    held = held_tenants()
    assert [tenant.id for tenant in held if invariant in (tenant.held_why or "")] == [
        broken.tenant_id
    ]


@pytest.mark.parametrize("look", [publish_and_checkpoint, check_all])
def test_what_is_well_breaks_nothing(app: Flask, look: Callable[[], int]) -> None:
    an_ended_payment(app, "declined")
    an_ended_payment(app)
    an_accepted_payment(rails_of(app, ScriptedProvider()))
    look()
    assert list_violations(None, resolved=True) == []
    assert held_tenants() == []


def test_one_transaction_of_the_provider_ends_one_payment(app: Flask, superuser: Superuser) -> None:
    first, second = an_ended_payment(app), an_ended_payment(app)
    superuser.run("UPDATE payments SET mode = 'live', provider_transaction_id = '77'")
    check_all()
    found = list_violations(None, resolved=False)
    shared = [one for one in found if one.invariant == Invariant.ONE_PAYMENT_A_TRANSACTION]
    assert {one.subject for one in shared} == {str(first.id), str(second.id)}
    assert len(held_tenants()) == 2


@pytest.mark.parametrize(
    "differs",
    ["provider = 'another'", "target_environment = 'mtnzambia'", "mode = 'test'"],
)
def test_the_same_number_elsewhere_is_another_transaction(
    app: Flask, superuser: Superuser, differs: str
) -> None:
    """Provider and environment are part of a transaction's name; a sandbox invents the numbers."""
    first, _second = an_ended_payment(app), an_ended_payment(app)
    superuser.run("UPDATE payments SET mode = 'live', provider_transaction_id = '77'")
    superuser.run(f"UPDATE payments SET {differs} WHERE id = %s", first.id)  # noqa: S608  ours
    with app.app_context():
        check_all()
        found = list_violations(None, resolved=False)
    assert Invariant.ONE_PAYMENT_A_TRANSACTION not in {one.invariant for one in found}


def test_a_bent_record_is_a_break_of_its_tenant(app: Flask, superuser: Superuser) -> None:
    whole, bent = an_ended_payment(app), an_ended_payment(app)
    superuser.run("UPDATE audit_entries SET actor = 'nobody' WHERE tenant_id = %s", bent.tenant_id)
    check_all()
    record = {
        one.tenant_id
        for one in list_violations(None, resolved=False)
        if one.invariant == Invariant.RECORD_UNBENT
    }
    assert record == {bent.tenant_id}
    held = {tenant.id: tenant.held_why or "" for tenant in held_tenants()}
    assert "record_unbent" in held[bent.tenant_id]
    assert "record_unbent" not in held.get(whole.tenant_id, "")


@pytest.mark.usefixtures("unhurried")
def test_open_payments_that_nobody_can_read_are_named_and_hold_nobody(
    app: Flask, superuser: Superuser
) -> None:
    """As after a downgrade, which drops the column of the tenants' data keys."""
    gateway = rails_of(app, ScriptedProvider())
    lost, whole = a_caller(), a_caller()
    oldest, _, _ = (
        an_accepted_payment(gateway, context=an_asker(caller=caller))
        for caller in (lost, lost, whole)
    )
    an_ended_payment(app)
    superuser.run("UPDATE tenants SET data_key = NULL WHERE id = %s", lost.tenant_id)

    assert check_all() == 1

    (found,) = list_violations(None, resolved=False)
    assert found.invariant == Invariant.OPEN_PAYMENT_READABLE
    assert (found.tenant_id, found.subject) == (lost.tenant_id, str(oldest.payment_id))
    assert found.detail.startswith("2 open payments can't be read (data_key_unreadable)")
    assert held_tenants() == []
    assert check_all() == 0, "known is known"


def test_a_process_with_anothers_secret_keys_finds_no_break(app: Flask) -> None:
    an_accepted_payment(rails_of(app, ScriptedProvider()))
    check_everything(Cipher((Fernet.generate_key().decode(),)))
    assert list_violations(None, resolved=True) == []


def broken_tenant(app: Flask, superuser: Superuser) -> UUID:
    payment = an_ended_payment(app)
    ended_otherwise_than_its_evidence(superuser, payment)
    publish_and_checkpoint()
    return payment.tenant_id


def test_the_brake_is_let_go_once_each_break_is_resolved(app: Flask, superuser: Superuser) -> None:
    tenant_id = broken_tenant(app, superuser)
    (found,) = list_violations(tenant_id, resolved=False)
    with pytest.raises(ViolationsOpen):
        release_tenant(tenant_id, actor="cli:test")
    with pytest.raises(ReasonMissing):
        resolve_violation(found.id, why=" ", actor="cli:test")

    resolve_violation(found.id, why="the provider was asked on the phone", actor="cli:test")
    with pytest.raises(ViolationNotFound):
        resolve_violation(found.id, why="again", actor="cli:test")
    assert release_tenant(tenant_id, actor="cli:test")

    check_all()
    assert list_violations(tenant_id, resolved=False) == [], "what is resolved isn't found again"
    assert held_tenants() == []


def test_a_break_is_never_rewritten(app: Flask, superuser: Superuser) -> None:
    tenant_id = broken_tenant(app, superuser)
    (found,) = list_violations(tenant_id, resolved=False)
    resolve_violation(found.id, why="looked at", actor="cli:test")
    for change, refused in (
        ("detail = 'nothing'", "permission denied"),
        ("resolution = 'otherwise'", "resolved once"),
        ("resolved_at = NULL", "resolved once"),
    ):
        with pytest.raises(Exception, match=refused), transaction(tenant_id) as session:
            session.execute(text(f"UPDATE invariant_breaks SET {change}"))  # noqa: S608  ours
    with pytest.raises(Exception, match=r"denied|refused"), transaction(tenant_id) as session:
        session.execute(text("DELETE FROM invariant_breaks"))
