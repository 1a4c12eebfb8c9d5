"""`flask payments`: why a payment is in its state, from what is stored, with its number masked."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest
from flask import Flask
from sqlalchemy import text

from payments_app.kernel.database import EVERY_TENANT, transaction
from payments_app.payments.callbacks import ReceivedCallback, record_callback
from payments_app.providers.contract import Mode
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
    an_order,
    keyring,
    make_due,
    payment_row,
    rails_of,
)
from tests.commands.conftest import Commands


@dataclass
class Lived:
    """A tenant's payment, and the means to process it further."""

    app: Flask
    tenant: Tenant
    id: UUID
    provider: ScriptedProvider

    def advance(self) -> None:
        with self.app.app_context():
            make_due(self.id)
            advance(rails_of(self.app, self.provider))

    def call_back(self) -> None:
        with self.app.app_context():
            reference = payment_row(self.id).reference
            body = b'{"payer": "' + PAYER.encode() + b'"}'
            record_callback(
                ReceivedCallback(SCRIPTED, reference, "PUT", body, "192.0.2.7"), keyring()
            )


@pytest.fixture
def payment(app: Flask) -> Lived:
    provider = ScriptedProvider(submits=[ANSWERS["unknown"]])
    with app.app_context():
        tenant = a_tenant()
        context = an_asker(caller=a_caller(tenant=tenant))
        accepted = an_accepted_payment(rails_of(app, provider), context=context)
    return Lived(app, tenant, accepted.payment_id, provider)


def test_explain_tells_events_exchanges_and_callbacks_in_their_order(
    flask: Commands, payment: Lived
) -> None:
    payment.advance()
    payment.call_back()
    payment.advance()
    explained = flask(f"payments explain {payment.id} --json").document
    assert [moment["what"] for moment in explained["story"]] == [
        "payment.accepted",
        "provider.submit",
        "payment.unknown",
        "callback.received",
        "provider.check",
        "payment.successful",
    ]
    asked = explained["story"][4]
    assert (asked["verdict"], asked["http_status"]) == ("SUCCESSFUL", 200)
    assert explained["payment"]["status"] == "SUCCESSFUL"


def test_explain_for_people_starts_with_where_the_payment_stands(
    flask: Commands, payment: Lived
) -> None:
    first = flask(f"payments explain {payment.id}").out.splitlines()[0]
    assert first.startswith("1000.00 EUR from *********456: PENDING, accepted; next submit at 2")
    payment.advance()
    text = flask(f"payments explain {payment.id}").out
    assert "verdict=UNKNOWN  reason=timeout" in text


def test_no_command_shows_the_payers_number(flask: Commands, payment: Lived) -> None:
    payment.advance()
    payment.call_back()
    for verb in ("show", "explain"):
        words = f"payments {verb} {payment.id}"
        printed = flask(words).out + flask(f"{words} --json").out
        assert PAYER not in printed
        assert PAYER[3:] not in printed
        assert PAYER[-3:] in printed
    words = f"payments list --tenant {payment.tenant.slug}"
    assert PAYER not in flask(words).out + flask(f"{words} --json").out


def test_list_filters_by_tenant_and_status(app: Flask, flask: Commands, payment: Lived) -> None:
    words = f"payments list --tenant {payment.tenant.slug} --json"
    assert [p["id"] for p in flask(words).document["data"]] == [str(payment.id)]
    assert flask(f"{words} --status SUCCESSFUL").document["data"] == []
    with app.app_context():
        other = a_tenant()
    empty = flask(f"payments list --tenant {other.slug}")
    assert empty.out == "There are no such payments.\n"
    assert len(flask("payments list --limit 1 --json").document["data"]) == 1


def test_recheck_makes_an_open_payment_due_now_and_leaves_an_audit_entry(
    app: Flask, flask: Commands, payment: Lived
) -> None:
    payment.advance()
    # Else it would be due by itself in a second, perhaps before the command runs.
    later = "UPDATE payments SET next_action_at = next_action_at + interval '1 hour' WHERE id = :id"
    with app.app_context():
        with transaction(EVERY_TENANT) as session:
            session.execute(text(later), {"id": payment.id})
        before = payment_row(payment.id)
    assert before.next_action_at is not None
    asked = flask(f"payments recheck {payment.id} --json").document
    assert datetime.fromisoformat(asked["next_action_at"]) <= datetime.now(UTC)
    with app.app_context():
        after = payment_row(payment.id)
    assert after.next_action_at is not None
    assert after.next_action_at < before.next_action_at
    assert (after.status, after.stage, after.submissions) == ("PENDING", "unknown", 1)
    told = flask(f"audit list {payment.tenant.slug} --json").document["data"]
    assert (told[0]["action"], told[0]["subject_id"]) == (
        "payment.recheck_asked",
        str(payment.id),
    )


def test_rechecking_an_ended_payment_is_refused_and_changes_nothing(
    flask: Commands, payment: Lived
) -> None:
    payment.advance()
    payment.advance()
    before = flask(f"payments show {payment.id} --json").document
    assert before["status"] == "SUCCESSFUL"
    assert flask(f"payments recheck {payment.id} --json").error["code"] == "payment_ended"
    assert flask(f"payments show {payment.id} --json").document == before


@pytest.mark.parametrize("verb", ["show", "explain", "recheck"])
def test_an_unknown_payment_is_not_found(flask: Commands, verb: str) -> None:
    assert flask(f"payments {verb} {uuid4()} --json").error["code"] == "payment_not_found"
    assert flask(f"payments {verb} order-1 --json").error["code"] == "payment_not_found"


def a_payment(app: Flask, tenant: Tenant, mode: Mode, external_id: str) -> UUID:
    with app.app_context():
        context = an_asker(caller=a_caller(tenant=tenant, mode=mode))
        order = an_order(external_id=external_id)
        gateway = rails_of(app, ScriptedProvider())
        return an_accepted_payment(gateway, order=order, context=context).payment_id


def test_a_payment_is_found_by_the_tenants_own_reference(
    app: Flask, flask: Commands, payment: Lived
) -> None:
    name = f"order-{uuid4()}"
    live = a_payment(app, payment.tenant, Mode.LIVE, name)
    assert flask(f"payments show {name} --json").document["id"] == str(live)
    assert flask(f"payments explain {name} --json").document["payment"]["id"] == str(live)
    assert flask(f"payments recheck {name} --json").document["id"] == str(live)

    test = a_payment(app, payment.tenant, Mode.TEST, name)
    refused = flask(f"payments show {name} --json").error
    assert refused["code"] == "payment_ambiguous"
    assert all(f"{one} (" in refused["detail"] for one in (live, test))


def test_payments_are_listed_by_mode_payer_reference_and_time(
    app: Flask, flask: Commands, payment: Lived
) -> None:
    slug, name = payment.tenant.slug, f"order-{uuid4()}"
    test = a_payment(app, payment.tenant, Mode.TEST, name)

    def listed(words: str) -> list[str]:
        found = flask(f"payments list --tenant {slug} --json {words}").document["data"]
        return [one["id"] for one in found]

    both = [str(test), str(payment.id)]
    assert listed("") == both
    assert listed("--mode test") == listed(f"--external-id {name}") == both[:1]
    assert listed("--mode live") == both[1:]
    assert listed(f"--payer {PAYER}") == both
    assert listed("--payer 256772123457") == []
    tomorrow = f"{datetime.now(UTC) + timedelta(days=1):%Y-%m-%d}"
    assert listed(f"--until {tomorrow}") == listed("--since 2020-01-01") == both
    assert listed(f"--since {tomorrow}") == []
    assert name in flask(f"payments list --tenant {slug}").out
    refused = flask(f"payments list --payer {PAYER}")
    assert refused.code == 2
    assert "--tenant" in refused.err
    assert PAYER not in refused.err
