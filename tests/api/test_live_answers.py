"""Real responses and webhooks, checked against openapi.json by a stock validator."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import pytest
from werkzeug.exceptions import NotFound
from werkzeug.test import TestResponse

from payments_app.kernel.msisdn import Msisdn
from payments_app.payments import outbox
from payments_app.payments.payers import erase_payer
from payments_app.providers.contract import FailureCode, Mode
from payments_app.tenants.keys import NewKey, issue_key
from payments_app.tenants.scopes import Scope
from payments_app.webhooks import feed
from payments_app.webhooks.endpoints import Owner
from payments_app.webhooks.patterns import TYPES
from tests.api.documented import operations, resolved, validator
from tests.api.http_caller import NOBODYS, PAYMENTS, Engine, HttpCaller, an_order
from tests.builders import ANSWERS, PAYER, ScriptedProvider, an_endpoint
from tests.nobodys_addresses import NOBODYS_URL
from tests.webhooks.dispatching import deliver_due
from tests.webhooks.receiver import Received, Receiver, receiving

ENDPOINTS = "/api/v1/webhook-endpoints"
DELIVERIES = "/api/v1/webhook-deliveries"


@dataclass
class CheckedCaller(HttpCaller):
    """Looks up each response in the document, by route and status, and validates it."""

    spec: dict[str, Any] = field(default_factory=dict)
    asked: set[tuple[str, str]] = field(default_factory=set)

    def send(self, method: str, path: str, **options: Any) -> TestResponse:
        answer = super().send(method, path, **options)
        self._check(method, path.partition("?")[0], answer)
        return answer

    def _check(self, method: str, path: str, answer: TestResponse) -> None:
        name = f"{method} {self._template(method, path)}"
        told = dict(operations(self.spec))[name]["responses"]
        status = str(answer.status_code)
        assert status in told, (name, status, answer.text)
        documented = resolved(self.spec, told[status])
        self.asked.add((name, status))
        for header, described in documented.get("headers", {}).items():
            self._check_header(header, resolved(self.spec, described), answer)
        content = documented.get("content")
        assert (content is None) == (answer.text == ""), (name, status)
        if content is not None:
            schema = content[answer.mimetype]["schema"]
            validator(self.spec, schema).validate(answer.get_json(force=True))

    def _check_header(self, name: str, described: dict[str, Any], answer: TestResponse) -> None:
        value: Any = answer.headers.get(name)
        assert value is not None or not described.get("required"), name
        if value is not None:
            if described["schema"]["type"] == "integer":
                value = int(value)
            validator(self.spec, described["schema"]).validate(value)

    def _template(self, method: str, path: str) -> str:
        try:
            rule, _ = self.app.url_map.bind("localhost").match(
                path, method=method, return_rule=True
            )
        except NotFound:
            pytest.fail(f"no route: {path}")
        written: str = rule.rule
        return written.replace("<uuid:", "{").replace("<", "{").replace(">", "}")


@pytest.fixture
def checked(scripted_caller: HttpCaller) -> CheckedCaller:
    app = scripted_caller.app
    spec: dict[str, Any] = app.test_client().get("/openapi.json").get_json()
    return CheckedCaller(app, scripted_caller.tenant, scripted_caller.key, spec=spec)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as found:
        yield found


def payments_of_every_kind(
    checked: CheckedCaller, engine: Engine, provider: ScriptedProvider
) -> list[dict[str, Any]]:
    """Open, paid, failed, and one whose payer was erased."""
    whole = {"payer_message": "Order 1", "payee_note": "Shop", "description": "2 shirts"}
    waiting = checked.pay(external_id="order-1", metadata={"a": [1, None]}, **whole)
    paid, failed, forgotten = checked.pay(), checked.pay(metadata={"b": "c"}), checked.pay()
    engine.finish(paid)
    provider.checks[:] = [ANSWERS["declined"]]
    engine.finish(failed)
    provider.checks[:] = [ANSWERS["paid"]]
    return [waiting, paid, failed, forgotten]


def test_every_route_answers_as_the_document_says(
    checked: CheckedCaller, engine: Engine, provider: ScriptedProvider
) -> None:
    ask_about_payments(checked, engine, provider)
    ask_about_webhooks(checked)
    ask_what_anybody_may(checked)

    every = {name for name, _ in operations(checked.spec)}
    assert {name for name, status in checked.asked if status < "300"} == every


def ask_about_payments(checked: CheckedCaller, engine: Engine, provider: ScriptedProvider) -> None:
    waiting, paid, failed, forgotten = payments_of_every_kind(checked, engine, provider)
    assert checked.show(failed)["failure"]["code"] == FailureCode.PAYER_REJECTED
    assert [checked.show(one)["failure"] for one in (waiting, paid)] == [None, None]
    for one in (waiting, paid, failed, forgotten):
        checked.get(f"{PAYMENTS}/{one['id']}/events")
    with engine.app.app_context():
        outbox.publish_outbox()
    assert checked.get("/api/v1/events?limit=100").get_json()["data"]
    key = uuid4()
    checked.post(an_order(), key=key)
    assert checked.post(an_order(), key=key).headers["Idempotent-Replayed"] == "true"
    refuse_payments(checked, waiting, key)
    engine.finish(forgotten)
    keyring = engine.app.extensions["maramoja"].keyring
    with engine.app.app_context():
        erase_payer(checked.tenant.id, Msisdn.parse(PAYER), keyring, actor="cli:test")
    assert checked.show(forgotten)["payer"] is None
    assert checked.get(f"{PAYMENTS}?limit=2").get_json()["next_cursor"]


def refuse_payments(checked: CheckedCaller, taken: dict[str, Any], key: Any) -> None:
    refusals: list[tuple[Callable[[], TestResponse], str]] = [
        (lambda: checked.post({}), "validation_failed"),
        (lambda: checked.post(an_order(amount=12), key=key), "idempotency_key_reused"),
        (lambda: checked.post(an_order(), key="order-1"), "idempotency_key_invalid"),
        (lambda: checked.post(an_order(external_id=taken["external_id"])), "external_id_taken"),
        (lambda: checked.post(b"{"), "body_malformed"),
        (lambda: checked.post(b" " * 70_000), "body_too_large"),
        (lambda: checked.post(b"a=1", content_type="text/plain"), "unsupported_media_type"),
        (lambda: checked.get(headers={"X-API-Key": None}), "unauthenticated"),
        (lambda: checked.get(headers={"X-Tenant-Id": "another"}), "tenant_mismatch"),
        (lambda: checked.get(f"{PAYMENTS}/{NOBODYS}"), "payment_not_found"),
        (lambda: checked.get(f"{PAYMENTS}?cursor=x"), "cursor_invalid"),
        (lambda: checked.get(f"{PAYMENTS}?limit=1000"), "validation_failed"),
        (lambda: reader(checked).post(an_order()), "scope_missing"),
    ]
    for refuse, code in refusals:
        assert refuse().get_json()["code"] == code


def reader(checked: CheckedCaller) -> CheckedCaller:
    """The same tenant with a key that may only read."""
    with checked.app.app_context():
        wanted = NewKey(mode=Mode.TEST, scopes=frozenset({Scope.PAYMENTS_READ}))
        key = issue_key(checked.tenant, wanted, actor="cli:test")
    return CheckedCaller(checked.app, checked.tenant, key, spec=checked.spec)


def ask_about_webhooks(checked: CheckedCaller) -> None:
    new = {"url": NOBODYS_URL, "description": "The shop", "event_types": ["payment.*"]}
    for body in ({"url": NOBODYS_URL, "event_types": ["nothing"]}, {"url": "https://127.0.0.1/"}):
        assert checked.send("POST", ENDPOINTS, json=body).status_code == 422
    path = f"{ENDPOINTS}/{checked.send('POST', ENDPOINTS, json=new).get_json()['id']}"
    checked.get(ENDPOINTS)
    checked.get(path)
    checked.send("PATCH", path, json={"status": "disabled"})
    assert checked.send("POST", f"{path}/test").status_code == 409
    checked.send("PATCH", path, json={"status": "enabled"})
    checked.send("POST", f"{path}/rotate-secret", json={})
    assert checked.send("POST", f"{path}/rotate-secret", json={}).get_json()["until"]
    delivery = f"{DELIVERIES}/{checked.send('POST', f'{path}/test').get_json()['id']}"
    checked.send("POST", f"{path}/resend", json={"failed_only": True})
    checked.get(f"{path}/deliveries")
    checked.get(delivery)
    checked.send("POST", f"{delivery}/resend")
    assert checked.get(f"{DELIVERIES}/{NOBODYS}").status_code == 404
    checked.send("DELETE", path)
    assert checked.get(path).status_code == 404


def ask_what_anybody_may(checked: CheckedCaller) -> None:
    checked.get("/problems/rate_limited")
    assert checked.get("/problems/nothing").status_code == 404
    for path in ("/health", "/health/live", "/health/ready"):
        checked.get(path)


def test_every_webhook_is_as_the_document_says(
    checked: CheckedCaller, engine: Engine, provider: ScriptedProvider, receiver: Receiver
) -> None:
    """Deliveries that were attempted are checked too, with the receiver's answers."""
    with engine.app.app_context():
        owner = Owner(checked.tenant.id, Mode.TEST)
        endpoint = an_endpoint(owner, receiver.url, "*").endpoint
    payments = payments_of_every_kind(checked, engine, provider)
    checked.send("POST", f"{ENDPOINTS}/{endpoint.id}/test")
    with engine.app.app_context():
        outbox.publish_outbox()
        for _ in range(3):
            deliver_due(engine.app)

    for received in receiver.received:
        assert_documented(checked.spec, received)
    told = {received.document["type"] for received in receiver.received}
    assert told == {*TYPES} - {"payment.unknown", "payment.contradicted"}
    last = {one.document["data"].get("payment_id"): one.document for one in receiver.received}
    _, paid, failed, _ = payments
    assert last[failed["id"]]["data"]["failure"] == checked.show(failed)["failure"]
    assert last[failed["id"]]["data"]["failure_code"] == FailureCode.PAYER_REJECTED
    assert last[failed["id"]]["data"]["metadata"] == {"b": "c"}
    assert last[paid["id"]]["data"]["failure"] is None
    assert last[paid["id"]]["data"]["reference"] == paid["reference"]
    for one in checked.get(f"{ENDPOINTS}/{endpoint.id}/deliveries").get_json()["data"]:
        shown = checked.get(f"{DELIVERIES}/{one['id']}").get_json()
        assert shown["attempt_log"][0]["http_status"] == 200


def assert_documented(spec: dict[str, Any], received: Received) -> None:
    webhook = spec["webhooks"][received.document["type"]]["post"]
    (content,) = webhook["requestBody"]["content"].values()
    validator(spec, content["schema"]).validate(received.document)
    for header in webhook["parameters"]:
        validator(spec, header["schema"]).validate(received.headers[header["name"]])


def test_a_webhook_of_each_type_is_documented(checked: CheckedCaller) -> None:
    assert set(checked.spec["webhooks"]) == {*TYPES, feed.RESTORED_EVENT}


def test_what_an_earlier_release_has_published_still_fits(checked: CheckedCaller) -> None:
    """Its payload was stored without `failure` and `metadata`."""
    payment = checked.pay()
    with checked.app.app_context():
        outbox.publish_outbox()
    (event,) = checked.get("/api/v1/events").get_json()["data"]
    assert event["data"]["payment_id"] == payment["id"]

    for later in ("failure", "metadata"):
        del event["data"][later]

    validator(checked.spec, {"$ref": "#/components/schemas/FeedEvent"}).validate(event)
