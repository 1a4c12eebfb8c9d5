"""Endpoints, deliveries and the feed over HTTP."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest
from flask import Flask
from sqlalchemy import select

from payments_app.kernel.database import transaction
from payments_app.payments import outbox
from payments_app.payments.payment_events import PaymentEvent
from payments_app.providers.contract import Mode
from payments_app.tenants.keys import NewKey, issue_key
from payments_app.tenants.scopes import Scope
from payments_app.webhooks.deliveries import ResendRange, resend_range
from payments_app.webhooks.endpoints import Owner
from tests.api.http_caller import NOBODYS, Engine, HttpCaller, new_caller
from tests.builders import an_endpoint
from tests.nobodys_addresses import NOBODYS_URL
from tests.webhooks.dispatching import deliver_due
from tests.webhooks.receiver import Receiver, receiving

ENDPOINTS = "/api/v1/webhook-endpoints"
DELIVERIES = "/api/v1/webhook-deliveries"
PUBLIC = NOBODYS_URL


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


def test_a_scheme_may_be_in_capitals(caller: HttpCaller) -> None:
    """RFC 3986, 3.1."""
    assert added(caller, url=PUBLIC.replace("https", "HTTPS"))["url"].startswith("HTTPS://")


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({}, "validation_failed"),
        ({"url": "not an address"}, "validation_failed"),
        ({"url": NOBODYS_URL, "event_types": []}, "validation_failed"),
        ({"url": NOBODYS_URL, "event_types": ["Payment.*"]}, "validation_failed"),
        (
            {"url": NOBODYS_URL, "event_types": ["payment.sucessful"]},
            "validation_failed",
        ),
        ({"url": NOBODYS_URL, "events": ["*"]}, "validation_failed"),
        ({"url": NOBODYS_URL, "description": "x" * 201}, "validation_failed"),
        ({"url": NOBODYS_URL.replace("https", "http")}, "webhook_url_refused"),
        ({"url": "https://127.0.0.1/"}, "webhook_url_refused"),
        ({"url": "https://169.254.169.254/latest"}, "webhook_url_refused"),
        ({"url": "https://[::ffff:10.0.0.1]/"}, "webhook_url_refused"),
        ({"url": NOBODYS_URL.replace("[", "user:pw@[")}, "webhook_url_refused"),
    ],
)
def test_what_cannot_be_an_endpoint(caller: HttpCaller, body: dict[str, Any], code: str) -> None:
    answer = caller.send("POST", ENDPOINTS, json=body)

    assert (answer.status_code, answer.get_json()["code"]) == (422, code)
    assert caller.get(ENDPOINTS).get_json()["data"] == []


def test_a_fault_in_a_list_is_told_with_its_place(caller: HttpCaller) -> None:
    body = {"url": PUBLIC, "event_types": ["payment.*", "payment.sucessful", 7]}

    errors = caller.send("POST", ENDPOINTS, json=body).get_json()["errors"]

    assert [error["field"] for error in errors] == ["event_types"] * 2
    assert [error["pointer"] for error in errors] == ["/event_types/1", "/event_types/2"]
    assert errors[0]["detail"].startswith("must be one of *, payment.*")
    assert "{" not in errors[0]["detail"] + errors[1]["detail"]


def test_an_address_that_is_too_long_is_told_the_bound(caller: HttpCaller) -> None:
    body = {"url": f"https://shop.example/{'x' * 2048}"}

    (error,) = caller.send("POST", ENDPOINTS, json=body).get_json()["errors"]

    assert (error["field"], error["detail"]) == ("url", "must be at most 2048 characters")


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


@pytest.mark.parametrize("nothing", [{}, {"failed_only": False}, {"since": None}])
def test_a_resend_of_nothing_in_particular_is_refused(
    engine: Engine, caller: HttpCaller, receiver: Receiver, nothing: dict[str, Any]
) -> None:
    """Without a bound it would resend all that ever happened."""
    with engine.app.app_context():
        endpoint_id, _ = an_open_endpoint(caller, receiver.url)

    refused = caller.send("POST", f"{ENDPOINTS}/{endpoint_id}/resend", json=nothing)

    assert refused.status_code == 422
    (error,) = refused.get_json()["errors"]
    assert (error["pointer"], error["in"]) == ("/since", "body")


def test_test_and_live_mode_of_one_tenant_tell_and_see_nothing_of_each_other(
    engine: Engine,
) -> None:
    """Each event goes to the endpoints of its mode, and is in the feed of its mode."""
    in_test = new_caller(engine.app)
    in_live = in_test.another_key(Mode.LIVE)
    with receiving() as of_test, receiving() as of_live:
        told: dict[str, set[str]] = {}
        for caller, receiver in ((in_test, of_test), (in_live, of_live)):
            with engine.app.app_context():
                endpoint_id, _ = an_open_endpoint(caller, receiver.url)
            told[endpoint_id] = {caller.pay(provider="scripted")["id"] for _ in range(2)}
        deliver(engine.app)
        for caller, receiver, (endpoint_id, own) in zip(
            (in_test, in_live), (of_test, of_live), told.items(), strict=True
        ):
            posted = [json.loads(one.body) for one in receiver.received]
            feed = caller.get("/api/v1/events").get_json()["data"]
            assert [one["data"]["payment_id"] for one in feed] == [
                one["data"]["payment_id"] for one in posted
            ]
            assert {one["data"]["payment_id"] for one in posted} == own
            assert {one["mode"] for one in posted} == {caller.key.mode}
            assert set(caller.listed()) == own
            endpoints = caller.get(ENDPOINTS).get_json()["data"]
            assert [one["id"] for one in endpoints] == [endpoint_id]
            (other,) = told.keys() - {endpoint_id}
            assert caller.get(f"{ENDPOINTS}/{other}/deliveries").status_code == 404


def test_a_last_page_that_is_full_is_the_last(engine: Engine, receiver: Receiver) -> None:
    """Exactly `limit` rows: a next page would be empty, so none is announced."""
    caller = new_caller(engine.app)
    with engine.app.app_context():
        endpoint_id, _ = an_open_endpoint(caller, receiver.url)
    payment = caller.pay(provider="scripted")
    engine.finish(payment)
    caller.pay(provider="scripted")
    caller.pay(provider="scripted")
    deliver(engine.app)
    for path, rows in (
        ("/api/v1/payments", 3),
        (f"/api/v1/payments/{payment['id']}/events", 3),
        (f"{ENDPOINTS}/{endpoint_id}/deliveries", 5),
        ("/api/v1/events", 5),
    ):
        full, short = (caller.get(f"{path}?limit={n}").get_json() for n in (rows, rows - 1))
        assert (len(full["data"]), full["next_cursor"]) == (rows, None), path
        assert len(short["data"]) == rows - 1
        assert short["next_cursor"] is not None, path


def test_what_is_sent_again_begins_with_one_moment_and_ends_before_another(
    engine: Engine, receiver: Receiver
) -> None:
    caller = new_caller(engine.app)
    with engine.app.app_context():
        endpoint_id, _ = an_open_endpoint(caller, receiver.url)
    engine.finish(caller.pay(provider="scripted"))
    deliver(engine.app)
    first, second, third = (one.body for one in receiver.received)
    owner = Owner(caller.tenant.id, caller.key.mode)
    with engine.app.app_context(), transaction(owner.tenant_id) as session:
        times = list(session.scalars(select(PaymentEvent.created_at).order_by(PaymentEvent.id)))
    assert len(set(times)) == 3
    for span, again in (
        (ResendRange(since=times[1]), [second, third]),
        (ResendRange(since=times[1], until=times[2]), [second]),
        (ResendRange(until=times[1]), [first]),
        (ResendRange(since=times[1], until=times[1]), []),
    ):
        before = len(receiver.received)
        with engine.app.app_context():
            assert resend_range(owner, UUID(endpoint_id), span, actor="cli:test") == len(again)
        deliver(engine.app)
        assert sorted(one.body for one in receiver.received[before:]) == sorted(again)


def test_the_feed_is_read_by_position(engine: Engine) -> None:
    caller = new_caller(engine.app)
    empty = caller.get("/api/v1/events").get_json()
    assert empty == {"data": [], "next_cursor": None, "last_position": 0}
    payment = caller.pay(provider="scripted")
    engine.finish(payment)
    with engine.app.app_context():
        outbox.publish_outbox()

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
        # The feed is empty; reading on from this cursor would miss its first event.
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
    """An endpoint at an address of this machine, which the API refuses in this app."""
    new = an_endpoint(Owner(caller.tenant.id, caller.key.mode), url)
    return str(new.endpoint.id), new.secret


def deliver(app: Flask) -> None:
    """Deliver all webhooks that are due."""
    with app.app_context():
        deliver_due(app)
