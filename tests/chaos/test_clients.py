"""Clients behave as good clients do: a request with an unknown outcome is sent again, unchanged."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from chaos.clients import Client, Shared
from chaos.history import Asked, History, Reply
from chaos.scripts import Order, Script, Step

ID = "01900000-0000-7000-8000-000000000001"
CREATED = Reply(201, json.dumps({"id": ID, "status": "PENDING"}))
PAID = Reply(200, json.dumps({"id": ID, "status": "SUCCESSFUL"}))
NOTHING = Reply(error="ReadTimeout")
AWAY = Reply(503, json.dumps({"code": "temporarily_unavailable"}))
RUNNING = Reply(409, json.dumps({"code": "idempotency_key_in_progress"}))


class Scripted:
    """A gateway that answers from a list, and records the requests."""

    def __init__(self, *replies: Reply) -> None:
        self._replies = iter(replies)
        self.sent: list[tuple[Asked, str, object]] = []

    def send(
        self, what: Asked, *, method: str, path: str, body: object = None, patience_s: float
    ) -> Reply:
        assert patience_s > 0
        self.sent.append((what, f"{method} {path}", body))
        return next(self._replies)


def a_step(kind: str, key: str = "key-1", amount: int = 1000) -> Step:
    return Step(kind, key, Order(amount, "256772123456", None), 0.0, 0.01, 0.0)


def run(gateway: Scripted, *steps: Step, shared: Shared | None = None) -> None:
    script = Script("amber-1", "amber", steps)
    Client(script, [gateway], shared or Shared(), threading.Event()).run(threading.Event())


@pytest.mark.parametrize(
    ("reply", "outcome"),
    [
        (NOTHING, "unknown"),
        (AWAY, "unknown"),
        (Reply(500, "oops"), "unknown"),
        (Reply(429, "{}"), "unknown"),
        (RUNNING, "unknown"),
        (Reply(409, json.dumps({"code": "external_id_taken"})), "refused"),
        (Reply(422, json.dumps({"code": "idempotency_key_reused"})), "refused"),
        (Reply(404, "{}"), "refused"),
        (CREATED, "ok"),
        (PAID, "ok"),
    ],
)
def test_only_an_answer_tells_what_became_of_a_request(reply: Reply, outcome: str) -> None:
    assert reply.outcome == outcome


def test_a_request_without_an_answer_is_sent_again_unchanged_until_there_is_one() -> None:
    gateway = Scripted(NOTHING, AWAY, RUNNING, CREATED, PAID)
    run(gateway, a_step("pay"))
    posts = [(what.key, body) for what, where, body in gateway.sent if where.startswith("POST")]
    assert len(posts) == 4
    assert all(post == posts[0] for post in posts)


def test_it_looks_until_the_end() -> None:
    pending = Reply(200, json.dumps({"id": ID, "status": "PENDING"}))
    gateway = Scripted(CREATED, pending, PAID, PAID)
    # One query after the payment, one because the step is `look`, and one of the open payment.
    run(gateway, a_step("pay"), a_step("look"), a_step("peek"))
    assert [where for _, where, _ in gateway.sent[1:]] == [f"GET /api/v1/payments/{ID}"] * 3


def test_a_replay_sends_the_first_order_under_the_first_key() -> None:
    gateway = Scripted(CREATED, PAID, CREATED)
    run(gateway, a_step("pay"), a_step("replay", key="key-2", amount=5))
    first, _, again = gateway.sent
    assert (again[0].key, again[2]) == (first[0].key, first[2])


def test_a_mutation_is_another_amount_under_the_same_key() -> None:
    refused = Reply(422, json.dumps({"code": "idempotency_key_reused"}))
    gateway = Scripted(CREATED, PAID, refused)
    run(gateway, a_step("pay"), a_step("mutate", key="key-2"))
    what, _, body = gateway.sent[-1]
    assert (what.act, what.key) == ("mutate", "key-1")
    assert isinstance(body, dict)
    assert body["amount"] == 1001


def test_a_key_is_borrowed_from_another_tenant_and_only_once() -> None:
    shared = Shared()
    shared.add("basil", "key-of-basil", "payment-of-basil")
    gateway = Scripted(CREATED, PAID)
    run(gateway, a_step("borrow"), a_step("borrow"), shared=shared)
    assert gateway.sent[0][0].key == "key-of-basil"
    assert shared.borrow("basil", 0.0) is None


def test_peeking_is_at_another_tenants_payment() -> None:
    shared = Shared()
    shared.add("amber", "own", "own-payment")
    shared.add("basil", "key-of-basil", "payment-of-basil")
    gateway = Scripted(Reply(404, "{}"))
    run(gateway, a_step("peek"), shared=shared)
    assert gateway.sent[0][1] == "GET /api/v1/payments/payment-of-basil"


def test_who_is_told_to_give_up_stops_asking() -> None:
    gateway, give_up = Scripted(NOTHING), threading.Event()
    give_up.set()
    script = Script("amber-1", "amber", (a_step("pay"),))
    Client(script, [gateway], Shared(), give_up).run(threading.Event())
    assert len(gateway.sent) == 1


@pytest.fixture
def history(tmp_path: Path) -> Iterator[History]:
    with History(tmp_path / "history.jsonl") as running:
        yield running


def test_each_line_is_in_the_file_at_once(history: History, tmp_path: Path) -> None:
    what = Asked("amber-1", "amber", "pay", key="key-1")
    call = history.asked(what, {"amount": 1})
    history.answered(what, call, NOTHING)
    lines = [json.loads(one) for one in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert [one["outcome"] for one in lines] == ["asked", "unknown"]
    assert lines[0]["call"] == lines[1]["call"] == call
    assert (history.count("asked"), history.count("unknown"), history.count("ok")) == (1, 1, 0)
