"""`flask webhooks`, as an operator types it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask

from payments_app.audit.queries import latest_entries
from payments_app.payments import outbox
from payments_app.tenants.model import Tenant
from tests.builders import (
    ScriptedProvider,
    a_caller,
    a_tenant,
    an_accepted_payment,
    an_asker,
    rails_of,
)
from tests.nobodys_addresses import NOBODYS_URL
from tests.webhooks.receiver import Receiver, receiving

PUBLIC = NOBODYS_URL


@pytest.fixture
def tenant(app: Flask) -> Tenant:
    with app.app_context():
        return a_tenant()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as found:
        yield found


def run(app: Flask, *words: str, code: int = 0) -> str:
    result = app.test_cli_runner().invoke(args=["webhooks", *words])
    assert result.exit_code == code, result.output
    return result.stdout if code == 0 else result.stderr


def document(app: Flask, *words: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run(app, *words, "--json"))
    return found


def pay(app: Flask, tenant: Tenant, times: int = 1) -> None:
    with app.app_context():
        gateway = rails_of(app, ScriptedProvider())
        caller = a_caller(tenant=tenant)
        for _ in range(times):
            an_accepted_payment(gateway, context=an_asker(caller=caller))
        outbox.publish_outbox()


def test_an_endpoint_lives_by_commands(app: Flask, tenant: Tenant) -> None:
    slug = tenant.slug
    assert "no webhook endpoints" in run(app, "list", slug)
    new = document(app, "add", slug, PUBLIC, "--event", "payment.*", "--description", "shop")
    assert new["secret"].startswith("whsec_")
    (listed,) = document(app, "list", slug)["data"]
    assert listed["event_types"] == ["payment.*"]
    assert "secret" not in listed
    assert document(app, "rotate", slug, new["id"], "--overlap", "1h")["secret"] != new["secret"]
    assert document(app, "test", slug, new["id"])["event_type"] == "webhook.test"
    (delivery,) = document(app, "deliveries", slug, new["id"])["data"]
    assert delivery["status"] == "pending"
    assert document(app, "resend", slug, new["id"], "--delivery", delivery["id"]) == {
        "deliveries": 1
    }
    assert document(app, "remove", slug, new["id"])["removed"] is True
    assert document(app, "list", slug)["data"] == []


def test_an_empty_list_names_the_mode_that_has_endpoints(app: Flask, tenant: Tenant) -> None:
    run(app, "add", tenant.slug, PUBLIC, "--mode", "test")

    told = run(app, "list", tenant.slug)

    assert "no webhook endpoints in live mode" in told
    assert "It has 1 in test mode: --mode test" in told


def test_enabling_offers_what_was_missed_by_a_command_that_sends_it(
    app: Flask, tenant: Tenant
) -> None:
    endpoint_id = document(app, "add", tenant.slug, PUBLIC)["id"]
    run(app, "set", tenant.slug, endpoint_id, "--status", "disabled")
    pay(app, tenant, times=2)

    told = run(app, "set", tenant.slug, endpoint_id, "--status", "enabled")

    assert "was not sent 2 events" in told
    offered = told.strip().splitlines()[-1].removeprefix("flask webhooks ")
    assert "2 deliveries are sent again" in run(app, *offered.split())


def test_resend_wants_to_know_what(app: Flask, tenant: Tenant) -> None:
    endpoint_id = document(app, "add", tenant.slug, PUBLIC)["id"]

    assert "say what" in run(app, "resend", tenant.slug, endpoint_id, code=2)
    assert "0 deliveries" in run(app, "resend", tenant.slug, endpoint_id, "--failed")


def test_a_delivery_is_resent_to_the_endpoint_that_is_named_or_not_at_all(
    app: Flask, tenant: Tenant
) -> None:
    slug = tenant.slug
    mine, other = (document(app, "add", slug, PUBLIC)["id"] for _ in range(2))
    delivery = document(app, "test", slug, other)["id"]
    words = ["webhooks", "resend", slug, mine, "--delivery", delivery]

    refused = app.test_cli_runner().invoke(args=words)

    assert refused.exit_code == 1
    assert "webhook_delivery_not_found" in refused.stderr
    assert "goes with none" in run(
        app, "resend", slug, other, "--delivery", delivery, "--failed", code=2
    )


def test_the_audit_trail_counts_what_is_sent_for_the_first_time_too(
    app: Flask, tenant: Tenant
) -> None:
    endpoint_id = document(app, "add", tenant.slug, PUBLIC)["id"]
    run(app, "set", tenant.slug, endpoint_id, "--status", "disabled")
    pay(app, tenant, times=2)
    run(app, "set", tenant.slug, endpoint_id, "--status", "enabled")
    run(app, "resend", tenant.slug, endpoint_id, "--since", "2026-01-01T00:00:00Z")

    with app.app_context():
        (entry,) = latest_entries(tenant.id, limit=1)
    assert (entry.action, entry.detail) == ("webhook_endpoint.resent", {"deliveries": 2})


@pytest.mark.parametrize("description", ["two\nlines", "nul\0", "x" * 201])
def test_a_description_is_one_short_line(app: Flask, tenant: Tenant, description: str) -> None:
    words = ["webhooks", "add", tenant.slug, PUBLIC, "--description", description]

    result = app.test_cli_runner().invoke(args=words)

    assert result.exit_code == 1
    assert "validation_failed: description must be one line of at most 200" in result.stderr


def test_a_secret_that_is_none_is_told_before_anything_is_sent(
    app: Flask, tenant: Tenant, receiver: Receiver
) -> None:
    pay(app, tenant)
    words = ["listen", tenant.slug, "--from-start", "--once", "--forward", receiver.url]

    for secret in ("nonsense!", "whsec_kurz", f"whsec_{'é' * 40}", f"whsec_{'A' * 92}"):
        told = app.test_cli_runner().invoke(args=["webhooks", *words, "--secret", secret])
        assert told.exit_code == 2, told.output
        assert secret not in told.output
    assert receiver.received == []


def test_an_address_without_a_scheme_is_refused_before_anything_is_sent(
    app: Flask, tenant: Tenant
) -> None:
    words = ["listen", tenant.slug, "--once", "--forward", "localhost:3000/hook"]

    assert "begin with http:// or https://" in run(app, *words, code=1)


def test_tail_prints_the_feed(app: Flask, tenant: Tenant) -> None:
    pay(app, tenant, times=3)

    lines = run(app, "tail", tenant.slug, "--from-start", "--once").splitlines()
    assert [json.loads(line)["position"] for line in lines] == [1, 2, 3]
    assert run(app, "tail", tenant.slug, "--once") == ""
    other = run(app, "tail", tenant.slug, "--from-start", "--once", "--event", "payment.failed")
    assert other == ""


@pytest.mark.parametrize("verb", ["tail", "listen"])
def test_whose_events_it_waits_for_is_said(app: Flask, tenant: Tenant, verb: str) -> None:
    words = ["webhooks", verb, tenant.slug, "--once"]

    told = app.test_cli_runner().invoke(args=words).stderr

    assert f"{tenant.slug}'s live events" in told
    assert "--mode test" in told


def test_listen_forwards_signed(app: Flask, tenant: Tenant, receiver: Receiver) -> None:
    pay(app, tenant)
    words = ("listen", tenant.slug, "--from-start", "--once", "--forward", receiver.url)

    first, second = run(app, *words).splitlines()

    assert receiver.received[0].verified(json.loads(first)["secret"])["type"] == "payment.accepted"
    assert json.loads(second)["answered"] == 200


@pytest.mark.parametrize(
    "url", [NOBODYS_URL.replace("https", "http"), "https://10.0.0.1/", "nonsense"]
)
def test_a_refused_address_says_why(app: Flask, tenant: Tenant, url: str) -> None:
    result = app.test_cli_runner().invoke(args=["webhooks", "add", tenant.slug, url])

    assert result.exit_code == 1
    assert "webhook_url_refused" in result.stderr
