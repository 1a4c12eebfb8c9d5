"""Endpoints, deliveries and the feed over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask

from payments_app.kernel.egress import Egress, EgressRules
from payments_app.payments import news
from payments_app.providers.contract import Mode
from payments_app.tenants.keys import NewKey, issue_key
from payments_app.tenants.scopes import Scope
from payments_app.webhooks import outbound
from payments_app.webhooks.endpoints import Owner
from tests.api.http_caller import NOBODYS, Engine, HttpCaller, new_caller
from tests.builders import an_endpoint
from tests.webhooks.receiver import Receiver, receiving

ENDPOINTS = "/api/v1/webhook-endpoints"
DELIVERIES = "/api/v1/webhook-deliveries"
PUBLIC = "https://93.184.215.14/hook"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as found:
        yield found


def added(caller: HttpCaller, **changes: Any) -> dict[str, Any]:
    answer = caller.send("POST", ENDPOINTS, json={"url": PUBLIC, **changes})
    assert answer.status_code == 201, answer.text
    document: dict[str, Any] = answer.get_json()
    return document


def test_an_endpoint_is_added_shown_listed_changed_and_removed(caller: HttpCaller) -> None:
    new = added(caller, description="The shop", event_types=["payment.*"])
    assert new["secret"].startswith("whsec_")
    path = f"{ENDPOINTS}/{new['id']}"

    shown = caller.get(path).get_json()
    assert {**shown, "secret": new["secret"]} == new
    assert caller.get(ENDPOINTS).get_json() == {"data": [shown], "next_cursor": None}
    assert (shown["status"], shown["mode"]) == ("enabled", "test")

    changed = caller.send("PATCH", path, json={"status": "disabled", "description": "closed"})
    assert changed.get_json()["disabled_reason"] == "by_tenant"
    assert caller.send("PATCH", path, json={"status": "enabled"}).get_json()["missed"] == 0
    assert caller.get(path).get_json()["description"] == "closed"

    assert caller.send("DELETE", path).status_code == 204
    assert caller.get(path).get_json()["code"] == "webhook_endpoint_not_found"
    assert caller.send("DELETE", path).status_code == 404
    assert caller.get(ENDPOINTS).get_json()["data"] == []


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({}, "validation_failed"),
        ({"url": "not an address"}, "validation_failed"),
        ({"url": "https://93.184.215.14/", "event_types": []}, "validation_failed"),
        ({"url": "https://93.184.215.14/", "event_types": ["Payment.*"]}, "validation_failed"),
        (
            {"url": "https://93.184.215.14/", "event_types": ["payment.sucessful"]},
            "validation_failed",
        ),
        ({"url": "https://93.184.215.14/", "events": ["*"]}, "validation_failed"),
        ({"url": "https://93.184.215.14/", "description": "x" * 201}, "validation_failed"),
        ({"url": "http://93.184.215.14/"}, "webhook_url_refused"),
        ({"url": "https://127.0.0.1/"}, "webhook_url_refused"),
        ({"url": "https://169.254.169.254/latest"}, "webhook_url_refused"),
        ({"url": "https://[::ffff:10.0.0.1]/"}, "webhook_url_refused"),
        ({"url": "https://user:pw@93.184.215.14/"}, "webhook_url_refused"),
    ],
)
def test_what_cannot_be_an_endpoint(caller: HttpCaller, body: dict[str, Any], code: str) -> None:
    answer = caller.send("POST", ENDPOINTS, json=body)

    assert (answer.status_code, answer.get_json()["code"]) == (422, code)
    assert caller.get(ENDPOINTS).get_json()["data"] == []


def test_the_seventeenth_is_one_too_many(caller: HttpCaller) -> None:
    for _ in range(16):
        added(caller)

    answer = caller.send("POST", ENDPOINTS, json={"url": PUBLIC})
    assert (answer.status_code, answer.get_json()["code"]) == (409, "webhook_endpoints_too_many")


def test_a_url_is_looked_at_again_when_it_is_changed(caller: HttpCaller) -> None:
    path = f"{ENDPOINTS}/{added(caller)['id']}"

    answer = caller.send("PATCH", path, json={"url": "https://10.0.0.1/"})

    assert answer.get_json()["code"] == "webhook_url_refused"
    assert caller.get(path).get_json()["url"] == PUBLIC


def test_a_rotation_shows_the_new_secret_once(caller: HttpCaller) -> None:
    new = added(caller)
    path = f"{ENDPOINTS}/{new['id']}/rotate-secret"

    rotated = caller.send("POST", path, json={"overlap_hours": 1})

    assert rotated.status_code == 200
    assert rotated.get_json()["secret"] not in (new["secret"], None)
    assert caller.send("POST", path, json={"overlap_hours": 73}).status_code == 422


def test_a_key_needs_the_scope(app: Flask, caller: HttpCaller) -> None:
    with app.app_context():
        wanted = NewKey(mode=Mode.TEST, scopes=frozenset({Scope.PAYMENTS_READ}))
        key = issue_key(caller.tenant, wanted, actor="cli:test")
    reader = HttpCaller(app, caller.tenant, key)

    assert reader.get(ENDPOINTS).get_json()["code"] == "scope_missing"
    assert reader.get("/api/v1/events").status_code == 200


def test_a_payment_is_told_and_the_delivery_shows_how(engine: Engine, receiver: Receiver) -> None:
    caller = new_caller(engine.app)
    with engine.app.app_context():
        endpoint_id, secret = an_open_endpoint(caller, receiver.url)
    payment = caller.pay(provider="scripted")
    engine.finish(payment)
    deliver(engine.app)

    told = [one.verified(secret) for one in receiver.received]
    kinds = ["payment.accepted", "payment.pending", "payment.successful"]
    assert [one["type"] for one in told] == kinds
    page = caller.get(f"{ENDPOINTS}/{endpoint_id}/deliveries?limit=2").get_json()
    assert [one["event_type"] for one in page["data"]] == kinds[:0:-1]
    rest = f"{ENDPOINTS}/{endpoint_id}/deliveries?limit=2&cursor={page['next_cursor']}"
    assert [one["event_type"] for one in caller.get(rest).get_json()["data"]] == kinds[:1]
    whole = caller.get(f"{DELIVERIES}/{page['data'][0]['id']}").get_json()
    assert whole["body"].encode() == receiver.received[-1].body
    (attempt,) = whole["attempt_log"]
    assert (attempt["outcome"], attempt["http_status"], attempt["answer"]) == (
        "delivered",
        200,
        "ok",
    )

    again = caller.send("POST", f"{DELIVERIES}/{whole['id']}/resend")
    assert again.get_json()["status"] == "pending"
    deliver(engine.app)
    assert receiver.received[-1].body == whole["body"].encode()
    assert receiver.received[-1].message_id == whole["message_id"]


def test_the_feed_is_read_by_position(engine: Engine) -> None:
    caller = new_caller(engine.app)
    empty = caller.get("/api/v1/events").get_json()
    assert empty == {"data": [], "next_cursor": None, "last_position": 0}
    payment = caller.pay(provider="scripted")
    engine.finish(payment)
    with engine.app.app_context():
        news.publish_news()

    first = caller.get("/api/v1/events?limit=2").get_json()
    assert [one["position"] for one in first["data"]] == [1, 2]
    assert first["next_cursor"] == "2"
    rest = caller.get(f"/api/v1/events?cursor={first['next_cursor']}").get_json()
    assert [one["type"] for one in rest["data"]] == ["payment.successful"]
    assert (rest["next_cursor"], rest["last_position"]) == (None, 3)
    assert rest["data"][0]["data"]["payment_id"] == payment["id"]
    later = caller.get("/api/v1/events?cursor=3").get_json()
    assert (later["data"], later["last_position"]) == ([], 3)
    beyond = caller.get("/api/v1/events?cursor=4")
    assert (beyond.status_code, beyond.get_json()["code"]) == (400, "cursor_invalid")


@pytest.mark.parametrize(
    "path",
    [
        "/api/v1/events?cursor=x",
        "/api/v1/events?cursor=-1",
        "/api/v1/events?cursor=99999999999999999999",
        # Of a feed that is empty; who reads on from there would miss the first event.
        "/api/v1/events?cursor=1",
        f"{ENDPOINTS}/{{id}}/deliveries?cursor=5",
    ],
)
def test_a_cursor_that_is_none_of_ours(caller: HttpCaller, path: str) -> None:
    answer = caller.get(path.format(id=added(caller)["id"]))

    assert (answer.status_code, answer.get_json()["code"]) == (400, "cursor_invalid")


def test_nothing_is_sent_to_a_disabled_endpoint(caller: HttpCaller) -> None:
    path = f"{ENDPOINTS}/{added(caller)['id']}"
    caller.send("PATCH", path, json={"status": "disabled"})

    for verb, body in (("test", None), ("resend", {"failed_only": True})):
        answer = caller.send("POST", f"{path}/{verb}", json=body)
        assert (answer.status_code, answer.get_json()["code"]) == (409, "webhook_endpoint_disabled")
    assert caller.get(f"{DELIVERIES}/{NOBODYS}").get_json()["code"] == "webhook_delivery_not_found"


def an_open_endpoint(caller: HttpCaller, url: str) -> tuple[str, str]:
    """One at an address of this machine, which the API refuses here."""
    new = an_endpoint(Owner(caller.tenant.id, caller.key.mode), url)
    return str(new.endpoint.id), new.secret


def deliver(app: Flask) -> None:
    """All that is due."""
    egress = Egress(EgressRules(allow_private=True), user_agent="test")
    cipher = app.extensions["maramoja"].cipher
    with app.app_context():
        news.publish_news()
        while (post := outbound.claim_due()) is not None:
            outbound.deliver(post, egress=egress, cipher=cipher)
