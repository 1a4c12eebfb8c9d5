"""A key's bounds: scopes, networks and expiry; and when it was last used."""

from __future__ import annotations

from datetime import timedelta
from ipaddress import ip_network
from uuid import UUID

import pytest
from flask import Flask
from sqlalchemy import event, select, update

from payments_app.api.authentication import API_PREFIX, scope_of
from payments_app.kernel.database import EVERY_TENANT, db, transaction
from payments_app.providers.contract import Mode
from payments_app.tenants.caller import UseNotes
from payments_app.tenants.keys import NewKey, issue_key, list_keys
from payments_app.tenants.model import ApiKey
from payments_app.tenants.scopes import ALL_SCOPES, Scope
from tests.api.http_caller import (
    PAYMENTS,
    HttpCaller,
    MakeApp,
    an_order,
    await_known,
    code_of,
    new_caller,
)
from tests.builders import PAYER

OPERATIONS = {
    Scope.PAYMENTS_WRITE: ("POST", PAYMENTS),
    Scope.PAYMENTS_READ: ("GET", PAYMENTS),
}


def a_key(caller: HttpCaller, **bounds: object) -> str:
    with caller.app.app_context():
        wanted = NewKey(mode=Mode.TEST, **bounds)  # type: ignore[arg-type]
        return issue_key(caller.tenant, wanted, actor="cli:test").key


def test_every_route_of_the_api_declares_its_scope(app: Flask) -> None:
    rules = [rule for rule in app.url_map.iter_rules() if rule.rule.startswith(API_PREFIX)]

    assert rules
    assert [rule.rule for rule in rules if scope_of(app, rule.endpoint) is None] == []


@pytest.mark.parametrize("scope", OPERATIONS)
def test_a_key_without_the_scope_is_refused_and_one_with_it_alone_is_not(
    caller: HttpCaller, scope: Scope
) -> None:
    method, path = OPERATIONS[scope]
    lacking = a_key(caller, scopes=ALL_SCOPES - {scope})
    having = a_key(caller, scopes=frozenset({scope}))
    body = an_order() if method == "POST" else None

    refused = caller.send(method, path, headers={"X-API-Key": lacking}, json=body)

    assert refused.status_code == 403
    assert code_of(refused) == "scope_missing"
    assert refused.get_json()["scope"] == scope
    taken = caller.send(method, path, headers={"X-API-Key": having}, json=body)
    assert taken.status_code in (200, 201)


def test_a_payers_number_is_masked_for_a_key_that_may_not_read_it(caller: HttpCaller) -> None:
    whole = caller.pay()
    key = {"X-API-Key": a_key(caller, scopes=frozenset({Scope.PAYMENTS_READ}))}

    shown = caller.get(f"{PAYMENTS}/{whole['id']}", headers=key).get_json()
    listed = caller.get(headers=key)

    assert whole["payer"] == PAYER
    assert shown["payer"] == "*********456"
    assert {**shown, "payer": PAYER} == caller.get(f"{PAYMENTS}/{whole['id']}").get_json()
    assert [payment["payer"] for payment in listed.get_json()["data"]] == ["*********456"]
    assert PAYER not in listed.text


def test_a_key_ends_with_its_time(caller: HttpCaller) -> None:
    lifetime = timedelta(hours=1)
    key = {"X-API-Key": a_key(caller, lifetime=lifetime)}
    assert caller.get(headers=key).status_code == 200

    # The hour passes.
    with caller.app.app_context(), transaction(caller.tenant.id) as session:
        session.execute(update(ApiKey).values(expires_at=ApiKey.expires_at - lifetime))
    await_known()
    refused = caller.get(headers=key)

    assert refused.status_code == 401
    assert code_of(refused) == "api_key_expired"
    assert refused.headers["WWW-Authenticate"].startswith("Bearer")


@pytest.mark.parametrize(
    ("address", "status"),
    [
        ("203.0.113.7", 200),
        ("::ffff:203.0.113.7", 200),
        ("203.0.113.128", 403),
        ("2001:db8:7::1", 200),
        ("2001:db8:8::1", 403),
        ("nonsense", 403),
    ],
)
def test_a_key_is_bound_to_its_networks(caller: HttpCaller, address: str, status: int) -> None:
    networks = (ip_network("203.0.113.0/25"), ip_network("2001:db8:7::/48"))
    key = {"X-API-Key": a_key(caller, networks=networks)}

    answer = caller.get(headers=key, environ_base={"REMOTE_ADDR": address})

    assert answer.status_code == status
    assert status == 200 or code_of(answer) == "network_not_allowed"


@pytest.mark.parametrize(
    ("proxies", "forwarded", "status"),
    [
        (0, "203.0.113.7", 403),
        (1, "203.0.113.7", 200),
        (1, "203.0.113.7, 198.51.100.1", 403),
        (2, "203.0.113.7, 198.51.100.1", 200),
        (1, None, 403),
    ],
)
def test_only_as_many_proxies_are_believed_as_there_are(
    make_app: MakeApp, proxies: int, forwarded: str | None, status: int
) -> None:
    caller = new_caller(make_app(trusted_proxies=proxies))
    key = a_key(caller, networks=(ip_network("203.0.113.0/24"),))

    answer = caller.get(headers={"X-API-Key": key, "X-Forwarded-For": forwarded})

    assert answer.status_code == status


def test_its_last_use_is_noted_once_a_minute(caller: HttpCaller) -> None:
    written: list[str] = []

    def note(*call: object) -> None:
        if str(call[2]).startswith("UPDATE api_keys"):
            written.append(str(call[2]))

    with caller.app.app_context():
        engine = db.engine
    event.listen(engine, "before_cursor_execute", note)
    for _ in range(5):
        caller.get().close()
    event.remove(engine, "before_cursor_execute", note)

    assert len(written) == 1
    with caller.app.app_context():
        (key,) = list_keys(caller.tenant)
        assert key.last_used_at is not None
        with transaction(EVERY_TENANT) as session:
            others = select(ApiKey.last_used_at).where(ApiKey.tenant_id != caller.tenant.id)
            assert key.last_used_at not in session.scalars(others).all()


def test_notes_are_due_again_after_a_minute() -> None:
    now = [0.0]
    notes = UseNotes(lambda: now[0])
    key, other = (UUID(int=number) for number in (1, 2))

    assert notes.is_due(key)
    assert notes.is_due(other)
    now[0] = 59.9
    assert not notes.is_due(key)
    now[0] = 60.0
    assert notes.is_due(key)
