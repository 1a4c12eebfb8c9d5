"""Revoking and rotating a key, on real gunicorn with two workers, under load."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

import requests

from devstack.supervisor import wait_until
from payments_app.tenants.caller import KNOWN_FOR_S
from tests.journeys.gateway import ANSWER_MAX_S, PATIENCE_S, Gateway

TENANT = "journeys"
# Answers before, between and after the steps of a rotation.
ENOUGH = 21


def ask(gateway: Gateway, key: str) -> int:
    """Each request has a new connection, so that either worker may answer."""
    return requests.get(gateway.url, headers={"X-API-Key": key}, timeout=ANSWER_MAX_S).status_code


def issue(gateway: Gateway) -> dict[str, str]:
    issued: dict[str, str] = json.loads(gateway.stack.flask("keys", "issue", TENANT, "--json"))
    return issued


@contextmanager
def asking(gateway: Gateway, keys: list[str]) -> Iterator[list[int]]:
    """Four clients that send requests without a pause, with the newest of `keys`; the statuses."""
    answers: list[int] = []
    stop = threading.Event()

    def client() -> None:
        while not stop.is_set():
            answers.append(ask(gateway, keys[-1]))

    threads = [threading.Thread(target=client) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        yield answers
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def await_more(answers: list[int]) -> None:
    wanted = len(answers) + ENOUGH
    wait_until(lambda: len(answers) >= wanted, what="no answers", limit_s=PATIENCE_S)


def test_a_revoked_key_is_refused_by_both_workers_in_time(gateway: Gateway) -> None:
    issued = issue(gateway)
    assert {ask(gateway, issued["key"]) for _ in range(20)} == {200}

    gateway.stack.flask("keys", "revoke", issued["id"])
    # A thread that read the key just before may use it for as long.
    time.sleep(2 * KNOWN_FOR_S)

    assert {ask(gateway, issued["key"]) for _ in range(100)} == {401}


def test_under_a_rotation_with_overlap_no_request_is_refused(gateway: Gateway) -> None:
    old = issue(gateway)
    keys = [old["key"]]
    with asking(gateway, keys) as answers:
        await_more(answers)
        words = ("keys", "rotate", old["id"], "--overlap", "1h", "--json")
        new = json.loads(gateway.stack.flask(*words))
        with_the_old = len(answers)
        await_more(answers)
        keys.append(new["key"])
        await_more(answers)

    assert set(answers) == {200}
    assert len(answers) > with_the_old > 20
    headers = {"X-API-Key": new["key"], "Idempotency-Key": str(uuid4())}
    paid = requests.post(gateway.url, json=gateway.order(), headers=headers, timeout=ANSWER_MAX_S)
    assert paid.status_code == 201
