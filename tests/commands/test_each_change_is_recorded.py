"""Each change that docs/audit.md lists is made once here, and has its entry in the audit trail."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import psycopg
from cryptography.fernet import Fernet
from flask import Flask
from sqlalchemy import select

from payments_app import create_app
from payments_app.audit.model import AuditEntry
from payments_app.integrity.invariants import check_everything
from payments_app.kernel.database import EVERY_TENANT, db, transaction
from payments_app.payments import payers
from payments_app.providers.contract import Mode
from payments_app.tenants.caller import Caller
from payments_app.tenants.registry import find_tenant
from tests.builders import (
    ANSWERS,
    PAYER,
    ScriptedProvider,
    a_caller,
    advance,
    an_accepted_payment,
    an_asker,
    publish_and_checkpoint,
    rails_of,
)
from tests.commands.conftest import Commands
from tests.conftest import Installation
from tests.nobodys_addresses import NOBODYS_URL
from tests.shape.test_tables_and_pages import actions_recorded
from tests.storage.bending import LAWLESS

SLUG = "acme"
# Tested elsewhere. By the dispatcher, after days: tests/storage/test_webhooks_out.py. By a
# migration: tests/shape/test_migrations.py.
ELSEWHERE = {
    "payment_events.uncovered",
    "webhook_endpoint.disabled",
    "webhook_endpoint.failing",
}


class Operator:
    """Runs commands; each must succeed."""

    def __init__(self, app: Flask) -> None:
        self._flask = Commands(app)

    def run(self, *words: str, stdin: str = "") -> Any:
        done = self._flask(*words, "--json", stdin=stdin)
        assert done.code == 0, (words, done.err)
        return done.document


def paid(app: Flask, caller: Caller, answer: str = "paid") -> str:
    """A payment of this caller whose submission got this answer; its id."""
    gateway = rails_of(app, ScriptedProvider(submits=[ANSWERS[answer]]))
    payment_id = an_accepted_payment(gateway, context=an_asker(caller=caller)).payment_id
    advance(gateway)
    publish_and_checkpoint()
    return str(payment_id)


def change_all(app: Flask, installation: Installation) -> None:
    operator = Operator(app)
    run = operator.run
    run("tenants", "create", SLUG, "--name", "Acme")
    run("tenants", "set", SLUG, "--rate-limit", "600 per minute")
    for verb in ("suspend", "resume"):
        run("tenants", verb, SLUG)
    run("tenants", "hold", SLUG, "--why", "asked to stop")
    run("tenants", "release", SLUG)
    key = run("keys", "issue", SLUG, "--mode", "test")["prefix"]
    run("keys", "rotate", key, "--overlap", "1h")
    run("keys", "revoke", key)
    account = ("providers", "set", SLUG, "mtn_momo", "--target-environment", "sandbox")
    names = ("collection_api_user", "collection_api_key", "collection_subscription_key")
    given = [word for name in names for word in ("--credential", f"{name}=-")]
    run(*account, "--mode", "test", *given, stdin="user\nkey\nsubscription\n")
    in_test = ("--mode", "test")
    endpoint = run("webhooks", "add", SLUG, NOBODYS_URL, *in_test)["id"]
    run("webhooks", "set", SLUG, endpoint, "--description", "The shop", *in_test)
    run("webhooks", "rotate", SLUG, endpoint, "--overlap", "1h", *in_test)
    run("webhooks", "resend", SLUG, endpoint, "--failed", *in_test)
    with app.app_context():
        caller = a_caller(tenant=find_tenant(SLUG), mode=Mode.LIVE)
        ended, waiting = paid(app, caller), paid(app, caller, "accepted")
    run("payments", "recheck", waiting)
    with psycopg.connect(
        installation.administrator_url, autocommit=True, options=LAWLESS
    ) as superuser:
        superuser.execute(
            "UPDATE provider_exchanges SET verdict = 'PENDING' WHERE verdict = 'SUCCESSFUL'"
        )
        with app.app_context():
            # The stored exchanges contradict the end, as if the provider had given another answer.
            assert check_everything(app.extensions["maramoja"].cipher) == 2
        superuser.execute(
            "UPDATE provider_exchanges SET verdict = 'SUCCESSFUL' WHERE id IN"
            " (SELECT evidence_id FROM payments)"
        )
    for broken in run("invariants", "list", SLUG)["data"]:
        run("invariants", "resolve", str(broken["number"]), "--why", "a test has bent it")
    run("tenants", "release", SLUG)
    # The open payment must end first, and the exit code says so.
    erased = Commands(app)("payers", "erase", SLUG, PAYER, "--yes", "--json").document
    assert erased == {"erased": 1, "open": 1}, ended
    run("webhooks", "remove", SLUG, endpoint, *in_test)


def entries(app: Flask) -> list[tuple[str, str]]:
    with app.app_context(), transaction(EVERY_TENANT) as session:
        rows = session.execute(select(AuditEntry.action, AuditEntry.actor).order_by(AuditEntry.id))
        return [(action, actor) for action, actor in rows]


def test_each_change_has_its_entry(installation_of_its_own: Installation) -> None:
    app = installation_of_its_own.app
    change_all(app, installation_of_its_own)
    with app.app_context():
        paid(app, a_caller())
    with psycopg.connect(
        installation_of_its_own.administrator_url, autocommit=True, options=LAWLESS
    ) as superuser:
        superuser.execute("UPDATE payments SET final_at = final_at - interval '40 days'")
    with app.app_context():
        assert payers.erase_old_payers(30) >= 1
    newer = Fernet.generate_key().decode()
    settings = app.extensions["maramoja"].settings
    rotated = create_app(replace(settings, secret_keys=(newer, *settings.secret_keys)))
    Operator(app).run("webhooks", "add", SLUG, NOBODYS_URL)
    operator = Operator(rotated)
    operator.run("secrets", "rotate")
    operator.run("recovery", "begin")
    with rotated.app_context():
        advance(rails_of(rotated, ScriptedProvider(checks=[ANSWERS["paid"]])))
    operator.run("recovery", "finish")
    found = entries(rotated)
    with rotated.app_context():
        db.engine.dispose()
    rotated.extensions["maramoja"].redis.close()
    missing = actions_recorded() - {action for action, _ in found} - ELSEWHERE
    assert not missing
