"""What a request adds to the metrics, and who may read them."""

from __future__ import annotations

from ipaddress import ip_network
from uuid import uuid4

import pytest
from flask import Flask
from werkzeug.test import TestResponse

from devstack.servers import Servers
from devstack.supervisor import wait_until
from payments_app.api.metrics import METHODS
from payments_app.kernel.pool import OVERFLOW_MAX
from tests.api.http_caller import PAYMENTS, Engine, HttpCaller, MakeApp, an_order, new_caller
from tests.api.test_health import NO_SERVER
from tests.metrics.conftest import PATIENCE_S
from tests.metrics.figures import Figures, figures_here


class Added:
    """How much each metric has grown since the test began."""

    def __init__(self) -> None:
        self._before = figures_here()

    def __call__(self, name: str, **labels: str) -> float:
        return figures_here().total(name, **labels) - self._before.total(name, **labels)


@pytest.fixture
def added() -> Added:
    return Added()


def scrape(
    app: Flask, method: str = "GET", address: str = "127.0.0.1", **headers: str
) -> TestResponse:
    return app.test_client().open(
        "/metrics", method=method, environ_base={"REMOTE_ADDR": address}, headers=headers
    )


def test_what_became_of_a_key(caller: HttpCaller, added: Added) -> None:
    key = uuid4()
    caller.post(an_order(), key=key)
    caller.post(an_order(), key=key)
    caller.post(an_order(amount=1), key=key)
    caller.post(an_order())
    caller.post({}, key=uuid4())

    outcomes = ("first", "replayed", "reused", "absent", "expired", "in_progress")
    assert [added("idempotency_total", outcome=one) for one in outcomes] == [1, 1, 1, 1, 0, 0]
    taken = ("created", "replayed", "refused")
    assert [added("accept_seconds_count", outcome=one) for one in taken] == [2, 1, 2]
    assert added("payments_accepted_total", provider="mtn_momo", mode="test") == 2
    assert added("key_lock_wait_seconds_count") == 3


def test_what_was_rolled_back_is_not_counted(caller: HttpCaller, added: Added) -> None:
    order = an_order(external_id=uuid4().hex)
    assert caller.post(order, key=uuid4()).status_code == 201
    assert caller.post(order, key=uuid4()).status_code == 409

    assert added("payments_accepted_total") == 1
    assert added("idempotency_total") == 1


def test_an_end_with_what_led_to_it(
    engine: Engine, scripted_caller: HttpCaller, added: Added
) -> None:
    engine.finish(scripted_caller.pay())

    end = {"provider": "scripted", "mode": "test", "status": "SUCCESSFUL", "failure_code": "none"}
    assert added("payments_final_total", **end) == 1
    assert added("time_to_final_seconds_count", provider="scripted", status="SUCCESSFUL") == 1
    for operation, verdict in (("submit", "PENDING"), ("check", "SUCCESSFUL")):
        assert added("provider_answers_total", operation=operation, verdict=verdict) == 1
        assert added("provider_exchange_seconds_count", operation=operation) == 1


def test_what_was_made_of_callbacks(make_app: MakeApp, added: Added) -> None:
    caller = new_caller(make_app(rate_limit_callbacks="4 per minute"))
    place = f"/callbacks/mtn_momo/{caller.pay()['reference']}"
    for path in (place, place, f"/callbacks/mtn_momo/{uuid4()}", "/callbacks/mtn_momo/x", place):
        caller.send("POST", path, data=b"{}")
    stranger = new_caller(make_app(callback_networks=(ip_network("203.0.113.0/24"),)))
    stranger.send("POST", place, data=b"{}")

    outcomes = ("kept", "repeated", "unknown", "malformed", "limited", "foreign")
    assert [added("callbacks_total", outcome=one) for one in outcomes] == [1] * 6


def test_a_callback_after_the_end_is_counted_apart(
    scripted_caller: HttpCaller, engine: Engine, added: Added
) -> None:
    payment = scripted_caller.pay()
    place = f"/callbacks/scripted/{payment['reference']}"
    scripted_caller.send("POST", place, data=b"early")
    engine.finish(payment)
    for body in (b"late", b"late", b"later"):
        scripted_caller.send("POST", place, data=body)

    outcomes = ("kept", "late", "repeated")
    assert [added("callbacks_total", outcome=one) for one in outcomes] == [1, 2, 1]


def test_redis_and_the_broker_away(make_app: MakeApp, servers: Servers, added: Added) -> None:
    redis = servers.new_redis()
    caller = new_caller(make_app(redis_url=redis.url, celery_broker_url=redis.url))
    caller.post(an_order(), key=uuid4())
    assert added("redis_errors_total") == 0, "a script's first use is no error"
    redis.stop()

    assert caller.post(an_order(), key=uuid4()).status_code == 201

    assert added("redis_errors_total") >= 1
    wait_until(
        lambda: added("doorbells_lost_total", job="payments.process_due") >= 1,
        what="no notification is counted as lost",
        limit_s=PATIENCE_S,
    )


def test_connections_are_counted_while_they_are_lent_out(app: Flask, added: Added) -> None:
    with app.app_context():
        engine = app.extensions["sqlalchemy"].engine
    with engine.connect(), engine.connect():
        assert added("database_pool_in_use") == 2
    assert added("database_pool_in_use") == 0
    assert figures_here().total("database_pool_size") == 16 + OVERFLOW_MAX


def test_hostile_requests_make_no_series(app: Flask, caller: HttpCaller) -> None:
    client = app.test_client()
    client.get("/nothing")
    client.open("/nothing", method="BREW")
    caller.send("POST", f"/callbacks/{uuid4().hex}/{uuid4()}", data=b"{}")
    caller.post(an_order(provider="nobody"))
    before = figures_here()
    for number in range(30):
        client.get(f"/nothing/{number}")
        client.get(f"{PAYMENTS}/{uuid4()}/{number}")
        client.open("/nothing", method=f"BREW{number}")
        caller.send("POST", f"/callbacks/mtn_{number}/{uuid4()}", data=b"{}")
        caller.post(an_order(provider=f"mtn_{number}"))

    figures = figures_here()

    assert len(figures.text.splitlines()) == len(before.text.splitlines())
    assert figures.labels("http_requests_total", "method") <= METHODS | {"other"}
    routes = {rule.rule for rule in app.url_map.iter_rules()}
    # Other tests of this process have apps with other routes.
    new = figures.labels("http_requests_total", "route")
    new -= before.labels("http_requests_total", "route")
    assert new <= routes | {"unknown"}


@pytest.mark.parametrize("address", ["127.0.0.1", "10.1.2.3", "::ffff:172.16.0.9", "fd00::1"])
def test_the_operators_networks_see_it(app: Flask, address: str) -> None:
    answer = scrape(app, address=address)

    assert answer.status_code == 200
    assert answer.content_type.startswith("text/plain; version=")
    assert Figures(answer.text).total("survey_up") == 1


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "OPTIONS", "DELETE", "BREW"])
@pytest.mark.parametrize(
    ("address", "header"),
    [
        ("203.0.113.7", {}),
        ("2001:db8::1", {}),
        ("nonsense", {}),
        ("10.1.2.3", {"X-Forwarded-For": "10.0.0.1"}),
        ("10.1.2.3", {"Forwarded": "for=10.0.0.1"}),
        ("10.1.2.3", {"X-Real-IP": "10.0.0.1"}),
        ("10.1.2.3", {"Via": "1.1 proxy"}),
        ("10.1.2.3", {"X-Forwarded-Proto": "https"}),
        ("10.1.2.3", {"X-Forwarded-Host": "pay.example"}),
        ("10.1.2.3", {"CF-Connecting-IP": "203.0.113.7"}),
        ("10.1.2.3", {"cf-ray": "1"}),
        ("10.1.2.3", {"True-Client-IP": "203.0.113.7"}),
        ("10.1.2.3", {"X-Client-IP": "203.0.113.7"}),
        ("10.1.2.3", {"X-Envoy-External-Address": "203.0.113.7"}),
        ("10.1.2.3", {"WL-Proxy-Client-IP": "203.0.113.7"}),
        ("10.1.2.3", {"Ali-CDN-Real-IP": "203.0.113.7"}),
        ("10.1.2.3", {"X-Appengine-User-Ip": "203.0.113.7"}),
        ("10.1.2.3", {"Incap-Client-IP": "203.0.113.7"}),
        ("10.1.2.3", {"X-Varnish": "1"}),
        ("10.1.2.3", {"X-Vercel-Id": "1"}),
        ("10.1.2.3", {"X-Cloud-Trace-Context": "1"}),
        ("10.1.2.3", {"X-Dropped-Headers": "X_Forwarded_For"}),
    ],
)
def test_to_others_it_is_not_there(
    app: Flask, method: str, address: str, header: dict[str, str]
) -> None:
    client, place = app.test_client(), {"REMOTE_ADDR": address}
    there, nothing = (
        client.open(path, method=method, environ_base=place, headers=header)
        for path in ("/metrics", "/metric")
    )

    assert there.status_code == 404
    for one in (there, nothing):
        one.headers.pop("X-Request-Id")
    assert dict(there.headers) == dict(nothing.headers)
    said = [{**(one.get_json(silent=True) or {}), "request_id": ""} for one in (there, nothing)]
    assert said[0] == said[1]


@pytest.mark.parametrize(
    ("proxies", "headers", "status"),
    [
        (1, {}, 200),
        (1, {"X-Forwarded-For": "10.0.0.1"}, 200),
        (1, {"X-Forwarded-For": "203.0.113.7"}, 404),
        (1, {"X-Forwarded-For": "10.0.0.1, 203.0.113.7"}, 404),
        (2, {"X-Forwarded-For": "10.0.0.1"}, 404),
        (1, {"Forwarded": "for=203.0.113.7"}, 404),
        (1, {"X-Forwarded-Proto": "https"}, 404),
        (1, {"X-Forwarded-For": "10.0.0.1", "X-Forwarded-Proto": "https"}, 200),
    ],
)
def test_through_trusted_proxies_the_clients_address_counts(
    make_app: MakeApp, proxies: int, headers: dict[str, str], status: int
) -> None:
    assert scrape(make_app(trusted_proxies=proxies), **headers).status_code == status


def test_the_networks_can_be_others(make_app: MakeApp) -> None:
    app = make_app(metrics_networks=(ip_network("203.0.113.7"),))

    assert scrape(app).status_code == 404
    assert scrape(app, address="203.0.113.7").status_code == 200


def test_without_a_database_the_counts_are_there_and_no_stale_gauge(make_app: MakeApp) -> None:
    answer = scrape(make_app(database_url=NO_SERVER))

    figures = Figures(answer.text)
    assert answer.status_code == 200
    assert figures.total("survey_up") == 0
    assert "maramoja_http_requests_total" in figures.families
    assert "maramoja_open_payments" not in figures.families
