"""The log of requests: events and ids, and never a phone number, a key or a credential."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from io import StringIO
from typing import Any
from uuid import uuid4

import pytest
from flask import Flask

from devstack.supervisor import wait_until
from payments_app.kernel import jobs
from payments_app.kernel.logs import configure_logs
from tests.api.http_caller import PAYMENTS, HttpCaller, MakeApp, an_order, new_caller
from tests.builders import PAYER
from tests.metrics.conftest import PATIENCE_S

SECRET_TEXT = "a shirt that nobody may know of"
GROUPED = "+256 772 123456"


@pytest.fixture
def log() -> Iterator[StringIO]:
    """Every line that is logged, at level DEBUG, in the product's own format."""
    # The notifications of earlier tests are logged by a thread of their own.
    wait_until(all_notified, what="a notification is still under way", limit_s=PATIENCE_S)
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    configure_logs(level="DEBUG", log_format="json")
    written = StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(root.handlers[0].formatter)
    root.handlers[:] = [handler]
    yield written
    root.handlers[:] = before
    root.setLevel(level)


def all_notified() -> bool:
    # Under its lock: it takes a notification from the one before it sets the other.
    with jobs._notifier._changed:
        return not (jobs._notifier._wanted or jobs._notifier._is_sending)


def test_no_line_after_a_request_is_told_as_a_part_of_it(caller: HttpCaller, log: StringIO) -> None:
    """The server logs a request that it can't read on the thread of an earlier request."""
    caller.pay()
    logging.getLogger("gunicorn.error").warning("a request that can't be read")
    # Not the last line: the notification's thread may log too.
    (told,) = [line for line in lines(log) if line["event"] == "a request that can't be read"]
    assert not told.keys() & {"tenant_id", "key_id", "request_id"}


def lines(log: StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.getvalue().splitlines()]


def ask_in_every_way(caller: HttpCaller) -> None:
    """Use all routes, well and badly, with the number and the key wherever they can be."""
    key, idempotency_key = caller.key.key, uuid4()
    order = an_order(description=SECRET_TEXT, metadata={"payer": PAYER})
    payment = caller.post(order, key=idempotency_key).get_json()
    caller.post(order, key=idempotency_key)
    caller.post(an_order(payer=GROUPED), key=idempotency_key)
    caller.post(an_order(payer=PAYER + "1"))
    caller.post(an_order(provider="nobody"))
    caller.post(f'{{"payer": "{PAYER}", '.encode())
    caller.post(f'{{"{PAYER}": 1, "{PAYER}": 2}}'.encode())
    caller.post(order, key=PAYER)
    caller.post(order, key=key)
    caller.post(order, content_type=f"text/{PAYER}")
    for query in (f"payer={PAYER}", f"payer=%2B{PAYER}", f"cursor={PAYER}", f"{PAYER}=1"):
        caller.get(f"{PAYMENTS}?{query}")
    caller.get(f"{PAYMENTS}/{payment['id']}")
    caller.get(f"{PAYMENTS}/{payment['id']}/events")
    caller.get(f"{PAYMENTS}/{PAYER}")
    caller.get(f"/{PAYER}/{key}")
    caller.get(headers={"X-Request-Id": PAYER})
    caller.get(headers={"X-Tenant-Id": PAYER})
    caller.get(headers={"X-API-Key": None, "Authorization": f"Bearer {key}"})
    caller.get(headers={"X-API-Key": f"{key}x"})
    caller.send("POST", f"/callbacks/{PAYER}/{payment['reference']}", data=PAYER)
    caller.send(
        "POST", f"/callbacks/mtn_momo/{uuid4()}", data=json.dumps({"payer": PAYER, "key": key})
    )
    caller.send("POST", f"/callbacks/mtn_momo/{payment['reference']}", data=PAYER)


def test_no_number_key_or_text_of_a_payer_is_in_it(caller: HttpCaller, log: StringIO) -> None:
    ask_in_every_way(caller)

    written = log.getvalue()
    assert len(lines(log)) > 20
    for secret in (PAYER, PAYER[3:], "772 123456", caller.key.key, SECRET_TEXT):
        assert secret not in written, [line for line in lines(log) if secret in str(line)]


def test_nor_when_the_databases_are_away(
    make_app: MakeApp, app: Flask, request: pytest.FixtureRequest
) -> None:
    """Messages of SQLAlchemy, redis-py and kombu contain values and addresses."""
    known = new_caller(app)
    away = make_app(
        database_url="postgresql+psycopg://app:hunter2@127.0.0.1:1/maramoja",
        redis_url="redis://:hunter2@127.0.0.1:1/0",
    )
    caller = HttpCaller(away, known.tenant, known.key)
    # Creating an app replaces the log handlers, so the capture starts after it.
    log: StringIO = request.getfixturevalue("log")

    assert caller.post(an_order()).status_code == 503

    assert "database.away" in log.getvalue()
    for secret in (PAYER, caller.key.key, "hunter2"):
        assert secret not in log.getvalue()


def test_each_request_is_one_line_with_what_finds_it_again(
    caller: HttpCaller, log: StringIO
) -> None:
    answer = caller.post(
        an_order(),
        headers={"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"},
    )

    (served,) = [line for line in lines(log) if line["event"] == "request.served"]
    assert served["request_id"] == answer.headers["X-Request-Id"]
    assert served["tenant_id"] == str(caller.tenant.id)
    assert served["key_id"] == str(caller.key.id)
    assert served["trace_id"] == "4bf92f3577b34da6a3ce929d0e0e4736"
    assert (served["method"], served["route"], served["status"]) == ("POST", PAYMENTS, 201)
    assert served["duration_ms"] > 0


def test_what_one_request_bound_is_not_in_the_next_ones_lines(
    caller: HttpCaller, log: StringIO
) -> None:
    caller.get(headers={"traceparent": f"00-{'1' * 32}-{'2' * 16}-01"})
    caller.get("/nothing")

    served = [line for line in lines(log) if line["event"] == "request.served"]
    assert "tenant_id" in served[0]
    assert not {"tenant_id", "key_id", "trace_id"} & set(served[1])
    assert served[1]["route"] is None


def test_probes_leave_nothing(caller: HttpCaller, log: StringIO) -> None:
    for path in ("/health", "/health/live", "/health/ready"):
        caller.get(path)

    assert [line["event"] for line in lines(log) if line["level"] != "debug"] == []
