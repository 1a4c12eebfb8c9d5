"""`flask payers`: find a payer by number, erase it for good; and `payments explain --words`."""

from __future__ import annotations

from uuid import UUID

import pytest
from flask import Flask

from payments_app.payments.callbacks import ReceivedCallback, record_callback
from payments_app.tenants.model import Tenant
from tests.builders import (
    ANSWERS,
    PAYER,
    SCRIPTED,
    ScriptedProvider,
    a_caller,
    a_tenant,
    advance,
    an_accepted_payment,
    an_asker,
    keyring,
    make_due,
    payment_row,
    rails_of,
)
from tests.commands.conftest import Commands


@pytest.fixture
def tenant(app: Flask) -> Tenant:
    with app.app_context():
        return a_tenant()


@pytest.fixture
def payment_id(app: Flask, tenant: Tenant) -> UUID:
    """A payment that was submitted, has a callback, and is still open."""
    with app.app_context():
        # It stays open even if its status is checked meanwhile, a second later.
        gateway = rails_of(app, ScriptedProvider(checks=[ANSWERS["pending"]]))
        context = an_asker(caller=a_caller(tenant=tenant))
        found = an_accepted_payment(gateway, context=context).payment_id
        advance(gateway)
        body = b'{"payer": "' + PAYER.encode() + b'"}'
        reference = payment_row(found).reference
        record_callback(ReceivedCallback(SCRIPTED, reference, "PUT", body, None), keyring())
    return found


def end(app: Flask, payment_id: UUID) -> None:
    with app.app_context():
        make_due(payment_id)
        advance(rails_of(app, ScriptedProvider()))


def test_a_number_is_found_in_whatever_form_and_never_printed(
    flask: Commands, tenant: Tenant, payment_id: UUID
) -> None:
    for form in (PAYER, f"+{PAYER}", f"00{PAYER}"):
        found = flask("payers", "find", tenant.slug, form, "--json")
        assert [row["id"] for row in found.document["data"]] == [str(payment_id)]
    assert PAYER not in flask("payers", "find", tenant.slug, PAYER).out


def test_nothing_found_says_so(flask: Commands, tenant: Tenant) -> None:
    assert "no payments of that number" in flask("payers", "find", tenant.slug, PAYER).out
    assert flask("payers", "find", tenant.slug, PAYER, "--json").document == {"data": []}


def test_a_number_that_is_none_is_refused_and_not_repeated(flask: Commands, tenant: Tenant) -> None:
    refused = flask("payers", "find", tenant.slug, "0772123456")
    assert refused.code == 2
    assert "0772123456" not in refused.out + refused.err


def test_erasing_waits_for_the_end_and_then_forgets(
    app: Flask, flask: Commands, tenant: Tenant, payment_id: UUID
) -> None:
    early = flask("payers", "erase", tenant.slug, PAYER, "--yes", "--json")
    assert (early.code, early.document) == (1, {"erased": 0, "open": 1})
    end(app, payment_id)
    told = flask("payments", "explain", str(payment_id), "--words").out
    assert PAYER in told
    done = flask("payers", "erase", tenant.slug, PAYER, "--yes", "--json")
    assert (done.code, done.document) == (0, {"erased": 1, "open": 0})
    after = flask("payments", "explain", str(payment_id), "--words").out
    assert PAYER not in after
    assert "an erased payer" in after
    assert flask("payments", "show", str(payment_id), "--json").document["payer"] is None
    listed = flask("audit", "list", tenant.slug, "--json").document["data"]
    (entry,) = (entry for entry in listed if entry["action"] == "payer.erased")
    assert entry["detail"] == {"payments": 1, "payer": "*********456"}


def test_without_a_yes_nothing_is_erased(
    app: Flask, flask: Commands, tenant: Tenant, payment_id: UUID
) -> None:
    end(app, payment_id)
    assert flask("payers", "erase", tenant.slug, PAYER).code == 1
    with app.app_context():
        assert payment_row(payment_id).payer is not None


def test_words_stay_sealed_unless_asked_for(flask: Commands, payment_id: UUID) -> None:
    assert PAYER not in flask("payments", "explain", str(payment_id), "--json").out
    assert PAYER in flask("payments", "explain", str(payment_id), "--words", "--json").out
