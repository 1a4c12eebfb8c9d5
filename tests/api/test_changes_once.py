"""Each change over HTTP is done once for each Idempotency-Key, and its answer is replayed."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from flask import Flask
from sqlalchemy import func, select, text
from werkzeug.test import TestResponse

from devstack.postgres_server import PostgresServer
from payments_app.audit.model import AuditEntry
from payments_app.kernel.database import EVERY_TENANT, transaction
from payments_app.kernel.idempotency import IdempotencyKey
from payments_app.payments import retention
from payments_app.providers.contract import Mode
from payments_app.webhooks.model import WebhookDelivery, WebhookEndpoint, about_secret
from tests.api.http_caller import PAYMENTS, HttpCaller, an_order, code_of, new_caller
from tests.builders import as_the_owner
from tests.nobodys_addresses import ANOTHER_URL, NOBODYS_URL

ENDPOINTS = "/api/v1/webhook-endpoints"
DELIVERIES = "/api/v1/webhook-deliveries"
SAFE = {"GET", "HEAD", "OPTIONS"}


@dataclass(frozen=True)
class Scene:
    """A tenant with an endpoint and a delivery."""

    caller: HttpCaller
    endpoint: dict[str, Any]
    delivery: dict[str, Any]

    def path(self, rule: str) -> str:
        ids = {"endpoint_id": self.endpoint["id"], "delivery_id": self.delivery["id"]}
        return re.sub(r"<uuid:(\w+)>", lambda found: ids[found[1]], rule)

    def send(
        self, route: str, key: UUID | None, body: dict[str, Any] | None = None
    ) -> TestResponse:
        method, rule = route.split(" ")
        headers: dict[str, str | None] = {} if key is None else {"Idempotency-Key": str(key)}
        sent = {**BODIES[route], **body} if body else BODIES[route]
        return self.caller.send(method, self.path(rule), headers=headers, json=sent)


# What each route that changes something is sent. A new route fails a test below until it is here.
BODIES: dict[str, dict[str, Any]] = {
    f"POST {PAYMENTS}": an_order(),
    f"POST {ENDPOINTS}": {"url": NOBODYS_URL},
    f"PATCH {ENDPOINTS}/<uuid:endpoint_id>": {"url": ANOTHER_URL},
    f"DELETE {ENDPOINTS}/<uuid:endpoint_id>": {},
    f"POST {ENDPOINTS}/<uuid:endpoint_id>/rotate-secret": {"overlap_hours": 2},
    f"POST {ENDPOINTS}/<uuid:endpoint_id>/test": {},
    f"POST {ENDPOINTS}/<uuid:endpoint_id>/resend": {"since": "2026-01-31T12:00:00Z"},
    f"POST {DELIVERIES}/<uuid:delivery_id>/resend": {},
}
CREATE = f"POST {ENDPOINTS}"
ROTATE = f"POST {ENDPOINTS}/<uuid:endpoint_id>/rotate-secret"
DELETE = f"DELETE {ENDPOINTS}/<uuid:endpoint_id>"
# All routes but that of payments, which test_idempotency_key.py covers.
WEBHOOKS = [route for route in BODIES if PAYMENTS not in route]


@pytest.fixture
def scene(caller: HttpCaller) -> Scene:
    endpoint = caller.send("POST", ENDPOINTS, json={"url": NOBODYS_URL}).get_json()
    delivery = caller.send("POST", f"{ENDPOINTS}/{endpoint['id']}/test", json={}).get_json()
    return Scene(caller, endpoint, delivery)


def counts(caller: HttpCaller) -> dict[str, Any]:
    """The number of the tenant's rows, of its audit entries, and its secrets."""
    with caller.app.app_context(), transaction(EVERY_TENANT) as session:
        made = {
            table.__tablename__: session.scalar(
                select(func.count()).select_from(table).where(table.tenant_id == caller.tenant.id)
            )
            for table in (WebhookEndpoint, WebhookDelivery, IdempotencyKey)
        }
        # Only webhook entries: creating the data key, at its first use, is recorded too.
        entries = select(func.count()).select_from(AuditEntry)
        made["audit_entries"] = session.scalar(
            entries.where(
                AuditEntry.tenant_id == caller.tenant.id, AuditEntry.action.like("webhook_%")
            )
        )
        secrets = session.scalars(
            select(WebhookEndpoint.secret)
            .where(WebhookEndpoint.tenant_id == caller.tenant.id)
            .order_by(WebhookEndpoint.created_at)
        ).all()
    return {**made, "secrets": secrets}


def test_every_route_that_changes_something_is_declared_and_documented(app: Flask) -> None:
    spec = app.test_client().get("/openapi.json").get_json()
    declared = set()
    for rule in app.url_map.iter_rules():
        for method in (rule.methods or set()) - SAFE:
            if not rule.rule.startswith("/api/"):
                # A provider's callback is never trusted, and is stored once by its digest.
                assert rule.rule == "/callbacks/<provider>/<reference>"
                continue
            declared.add(f"{method} {rule.rule}")
            assert getattr(app.view_functions[rule.endpoint], "idempotent", False), rule
            path = re.sub(r"<\w+:(\w+)>", r"{\1}", rule.rule)
            operation = spec["paths"][path][method.lower()]
            named = [part.get("$ref", "").rpartition("/")[2] for part in operation["parameters"]]
            assert "Idempotency-Key" in named, rule
            assert {"400", "409"} <= operation["responses"].keys(), rule

    assert declared == set(BODIES)


@pytest.mark.parametrize("route", BODIES)
def test_the_second_time_nothing_is_done_and_the_answer_is_the_same(
    scene: Scene, route: str
) -> None:
    key = uuid4()
    first = scene.send(route, key)
    assert first.status_code in (200, 201, 204), first.text
    done = counts(scene.caller)

    again = scene.send(route, key)

    assert counts(scene.caller) == done
    assert (again.status_code, again.get_data()) == (first.status_code, first.get_data())
    assert again.content_type == first.content_type
    assert again.headers.get("Location") == first.headers.get("Location")
    assert "Idempotent-Replayed" not in first.headers
    assert again.headers["Idempotent-Replayed"] == "true"


@pytest.mark.parametrize("route", BODIES)
def test_under_a_key_that_was_used_for_something_else_it_is_refused(
    scene: Scene, route: str
) -> None:
    key = uuid4()
    other = next(one for one in BODIES if one != route and not one.startswith("DELETE"))
    assert scene.send(other, key).status_code in (200, 201)
    before = counts(scene.caller)

    refused = scene.send(route, key)

    assert (refused.status_code, code_of(refused)) == (422, "idempotency_key_reused")
    assert "route" in refused.get_json()["fields"]
    assert counts(scene.caller) == before


def test_a_payment_under_the_key_of_another_change_is_refused(scene: Scene) -> None:
    key = uuid4()
    scene.send(CREATE, key)

    refused = scene.send(f"POST {PAYMENTS}", key)

    assert (refused.status_code, code_of(refused)) == (422, "idempotency_key_reused")


def test_another_body_under_the_key_is_refused_by_its_fields_without_values(scene: Scene) -> None:
    key = uuid4()
    first = scene.send(CREATE, key)

    refused = scene.send(CREATE, key, {"url": ANOTHER_URL, "description": "x"})

    assert refused.get_json()["fields"] == ["description", "url"]
    assert ANOTHER_URL not in refused.text
    assert scene.send(CREATE, key).get_data() == first.get_data()


def test_what_means_the_same_is_one_request(scene: Scene) -> None:
    route = f"POST {ENDPOINTS}/<uuid:endpoint_id>/resend"
    key = uuid4()
    scene.send(route, key, {"since": "2026-01-31T12:00:00Z", "failed_only": False})

    again = scene.send(route, key, {"since": "2026-01-31T15:00:00+03:00"})

    assert again.headers["Idempotent-Replayed"] == "true"


@pytest.mark.parametrize(
    "bounds",
    [
        {"since": "0001-01-01T00:00:00+10:00"},
        {"since": "2026-01-31T12:00:00Z", "until": "9999-12-31T23:59:59-10:00"},
    ],
)
def test_the_ends_of_time_are_instants_like_others(scene: Scene, bounds: dict[str, str]) -> None:
    """In UTC they are beyond the range of a date."""
    route = f"POST {ENDPOINTS}/<uuid:endpoint_id>/resend"
    key = uuid4()
    first = scene.send(route, key, bounds)
    assert first.status_code == 200, first.text
    assert scene.send(route, key, bounds).headers["Idempotent-Replayed"] == "true"


@pytest.mark.parametrize("route", WEBHOOKS)
def test_without_a_key_each_request_is_a_new_one(scene: Scene, route: str) -> None:
    scene.send(route, None)

    again = scene.send(route, None)

    assert "Idempotent-Replayed" not in again.headers
    assert counts(scene.caller)["idempotency_keys"] == 0


def test_another_tenants_and_the_other_modes_keys_are_unrelated(scene: Scene, app: Flask) -> None:
    key = uuid4()
    first = scene.send(CREATE, key).get_json()
    others = (new_caller(app), scene.caller.another_key(Mode.LIVE))

    made = [
        one.send(
            "POST", ENDPOINTS, json={"url": NOBODYS_URL}, headers={"Idempotency-Key": str(key)}
        )
        for one in others
    ]

    assert [one.status_code for one in made] == [201, 201]
    assert len({first["id"], *(one.get_json()["id"] for one in made)}) == 3


@pytest.mark.parametrize(
    ("route", "body", "status"),
    [
        pytest.param(CREATE, {"url": "https://127.0.0.1/"}, 422, id="an address"),
        pytest.param(CREATE, {"url": NOBODYS_URL, "x": 1}, 422, id="a field"),
        pytest.param(ROTATE, {"overlap_hours": 73}, 422, id="an overlap"),
    ],
)
def test_a_refusal_spends_no_key(
    scene: Scene, route: str, body: dict[str, Any], status: int
) -> None:
    key = uuid4()

    assert scene.send(route, key, body).status_code == status

    accepted = scene.send(route, key)
    assert accepted.status_code in (200, 201)
    assert "Idempotent-Replayed" not in accepted.headers


def test_a_key_that_is_no_uuid_is_refused_before_anything_is_done(scene: Scene) -> None:
    before = counts(scene.caller)
    for route in WEBHOOKS:
        method, rule = route.split(" ")
        refused = scene.caller.send(
            method, scene.path(rule), json=BODIES[route], headers={"Idempotency-Key": "x"}
        )
        assert (refused.status_code, code_of(refused)) == (400, "idempotency_key_invalid"), route
    assert counts(scene.caller) == before


@pytest.mark.parametrize("route", [CREATE, ROTATE, DELETE])
def test_of_many_at_once_one_does_it_and_all_have_its_answer(scene: Scene, route: str) -> None:
    key = uuid4()
    before = counts(scene.caller)

    with ThreadPoolExecutor(6) as threads:
        answers = list(threads.map(lambda _: scene.send(route, key), range(6)))

    assert {one.status_code for one in answers} <= {200, 201, 204}, [a.text for a in answers]
    assert len({one.get_data() for one in answers}) == 1
    assert sum("Idempotent-Replayed" not in one.headers for one in answers) == 1
    after = counts(scene.caller)
    assert after["idempotency_keys"] == 1
    assert after["audit_entries"] == before["audit_entries"] + 1


@pytest.mark.parametrize("route", [CREATE, ROTATE, DELETE])
def test_without_redis_it_is_the_same(
    make_app: Callable[..., Flask], scene: Scene, route: str
) -> None:
    """After the first rotation or removal a second would fail: those that wait get a replay."""
    app = make_app(redis_url="redis://127.0.0.1:1/0")
    caller = HttpCaller(app, scene.caller.tenant, scene.caller.key)
    alone = Scene(caller, scene.endpoint, scene.delivery)
    before = counts(scene.caller)
    key = uuid4()

    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda _: alone.send(route, key), range(4)))

    assert {one.status_code for one in answers} <= {200, 201, 204}, [a.text for a in answers]
    assert len({one.get_data() for one in answers}) == 1
    assert counts(scene.caller)["audit_entries"] == before["audit_entries"] + 1


@contextmanager
def first_request_still_open(url: str, caller: HttpCaller, key: UUID) -> Iterator[None]:
    """Another connection holds the key's row, uncommitted."""
    with psycopg.connect(url, options="-c maramoja.tenant=*") as connection:
        connection.execute(
            "INSERT INTO idempotency_keys (tenant_id, mode, key, fingerprint,"
            " fingerprint_version, resource_path, status, expires_at)"
            " VALUES (%s, 'test', %s, sha256('x'), 2, '/x', 201, now())",
            [caller.tenant.id, key],
        )
        yield
        connection.rollback()


def test_while_the_first_runs_the_second_is_told_to_come_back(
    scene: Scene, postgres_server: PostgresServer, database_name: str
) -> None:
    key = uuid4()
    administrator_url = postgres_server.administrator_url(database_name)
    before = counts(scene.caller)
    with first_request_still_open(administrator_url, scene.caller, key):
        began = time.monotonic()
        refused = scene.send(CREATE, key)
        assert time.monotonic() - began < 8

    assert (refused.status_code, code_of(refused)) == (409, "idempotency_key_in_progress")
    assert int(refused.headers["Retry-After"]) >= 1
    assert counts(scene.caller) == before
    assert scene.send(CREATE, key).status_code == 201


def let_the_answers_expire(caller: HttpCaller) -> None:
    as_the_owner(
        caller.app,
        "UPDATE idempotency_keys SET expires_at = clock_timestamp() - interval '1 second'"
        " WHERE tenant_id = %(tenant)s",
        tenant=caller.tenant.id,
    )


@pytest.mark.parametrize("is_swept", [True, False])
def test_an_expired_answer_is_not_given_and_nothing_is_done(
    scene: Scene, app: Flask, *, is_swept: bool
) -> None:
    key = uuid4()
    first = scene.send(CREATE, key)
    let_the_answers_expire(scene.caller)
    if is_swept:
        with app.app_context():
            retention.purge_responses()
    before = counts(scene.caller)

    refused = scene.send(CREATE, key)

    assert (refused.status_code, code_of(refused)) == (409, "idempotency_key_expired")
    assert refused.headers["Location"] == first.headers["Location"]
    assert refused.get_json()["resource"] == first.headers["Location"]
    assert counts(scene.caller) == before
    other = scene.send(CREATE, key, {"url": ANOTHER_URL})
    assert code_of(other) == "idempotency_key_reused"


def test_a_stored_answer_shows_no_secret_and_goes_when_its_time_is_over(
    scene: Scene, app: Flask
) -> None:
    new = scene.send(CREATE, uuid4()).get_json()
    row = select(IdempotencyKey).where(IdempotencyKey.tenant_id == scene.caller.tenant.id)
    with app.app_context(), transaction(EVERY_TENANT) as session:
        kept = session.scalars(row).one()
        stored = b" ".join(str(getattr(kept, one.key)).encode() for one in kept.__table__.columns)
        assert kept.body is not None
        for word in (new["secret"], new["secret"].removeprefix("whsec_"), NOBODYS_URL, "whsec_"):
            assert word.encode() not in kept.body + stored
    let_the_answers_expire(scene.caller)

    with app.app_context():
        retention.purge_responses()

    with app.app_context(), transaction(EVERY_TENANT) as session:
        kept = session.scalars(row).one()
        assert (kept.body, kept.headers, kept.field_digests) == (None, None, None)


# --- a rotation whose answer was lost ------------------------------------------------------------


def previous_of(scene: Scene) -> tuple[str | None, Any]:
    with scene.caller.app.app_context(), transaction(EVERY_TENANT) as session:
        found = session.get_one(WebhookEndpoint, UUID(scene.endpoint["id"]))
        cipher = scene.caller.app.extensions["maramoja"].cipher
        secret, place = found.previous_secret, about_secret(found.tenant_id, found.id)
        return secret and cipher.decrypt(secret, about=place), found.previous_secret_until


@pytest.mark.parametrize("with_key", [True, False])
def test_a_rotation_in_the_overlap_of_another_is_refused_and_changes_nothing(
    scene: Scene, *, with_key: bool
) -> None:
    scene.send(ROTATE, uuid4() if with_key else None)
    before, standing = counts(scene.caller), previous_of(scene)
    assert standing[0] == scene.endpoint["secret"]

    refused = scene.send(ROTATE, uuid4() if with_key else None)

    assert (refused.status_code, code_of(refused)) == (409, "webhook_rotation_running")
    assert refused.get_json()["until"] == standing[1].isoformat(timespec="microseconds")
    assert counts(scene.caller) == before
    assert previous_of(scene) == standing


def test_a_secret_that_nobody_got_is_replaced_and_the_deployed_one_goes_on(scene: Scene) -> None:
    lost = scene.send(ROTATE, None, {"overlap_hours": 48}).get_json()["secret"]
    _, until = previous_of(scene)

    new = scene.send(ROTATE, None, {"overlap_hours": 1, "discard_current": True}).get_json()

    assert new["secret"] not in (lost, scene.endpoint["secret"])
    # A shorter overlap doesn't shorten the overlap that was promised before.
    assert previous_of(scene) == (scene.endpoint["secret"], until)
    scene.send(ROTATE, None, {"overlap_hours": 72, "discard_current": True})
    secret, later = previous_of(scene)
    assert secret == scene.endpoint["secret"]
    assert later > until + timedelta(hours=20)


def test_without_an_overlap_nothing_is_discarded(scene: Scene) -> None:
    scene.send(ROTATE, None, {"discard_current": True})

    assert previous_of(scene)[0] == scene.endpoint["secret"]


def test_an_overlap_of_nothing_ends_all_old_secrets_at_once(scene: Scene) -> None:
    scene.send(ROTATE, None)

    assert scene.send(ROTATE, None, {"overlap_hours": 0}).status_code == 200

    assert previous_of(scene) == (None, None)


def test_after_the_overlap_the_next_rotation_is_made(scene: Scene) -> None:
    second = scene.send(ROTATE, None).get_json()["secret"]
    with scene.caller.app.app_context(), transaction(EVERY_TENANT) as session:
        session.execute(
            text(
                "UPDATE webhook_endpoints SET previous_secret_until = clock_timestamp()"
                " WHERE id = :id"
            ),
            {"id": scene.endpoint["id"]},
        )

    assert scene.send(ROTATE, None).status_code == 200

    assert previous_of(scene)[0] == second
