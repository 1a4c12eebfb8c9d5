"""One payment per key, whatever Redis does: G1, with 64 clients at once on two gunicorn workers."""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import cycle
from urllib.parse import urlsplit
from uuid import uuid4

import pytest
import redis
import requests

from devstack.supervisor import wait_until
from tests.journeys.gateway import PATIENCE_S, Gateway, Paid, may_be_retried, repeatedly
from tests.journeys.overhearing import overheard
from tests.journeys.referee import assert_charged_once, assert_one_payment_a_key

CLIENTS = 64


def stopped(gateway: Gateway) -> AbstractContextManager[None]:
    """Redis is down."""
    gateway.stack.redis.kill()
    return nullcontext()


def frozen(gateway: Gateway) -> AbstractContextManager[None]:
    """Redis accepts connections and never answers."""
    gateway.stack.redis.process.stop()
    return nullcontext()


def emptied(gateway: Gateway) -> AbstractContextManager[None]:
    """Redis is flushed a hundred times a second."""
    return repeatedly(gateway.stack.redis.flush, every_s=0.01)


@contextmanager
def lying(gateway: Gateway) -> Iterator[None]:
    """Redis restores released locks, gives locks to others, corrupts and deletes them.

    The test watches for each lock that is taken, so it knows names and values without our code.
    """
    locks: dict[str, str] = {}
    with gateway.stack.redis.client() as liar, overheard(gateway.stack.redis) as heard:
        lies = cycle(_lies(liar))

        def lie() -> None:
            locks.update(_locks_in(heard))
            for name, value in locks.items():
                next(lies)(name, value)

        with repeatedly(lie, every_s=0.005):
            wait_until(
                lambda: bool(gateway.pay().body) and bool(locks),
                what="no lock is taken",
                limit_s=PATIENCE_S,
            )
            before = len(locks)
            yield
    assert len(locks) > before, "no lock was taken: nothing was lied about"


@pytest.mark.parametrize("trouble", [None, stopped, frozen, emptied, lying])
def test_64_identical_requests_at_once_make_one_payment_and_one_charge(
    gateway: Gateway, trouble: Callable[[Gateway], AbstractContextManager[None]] | None
) -> None:
    order, key = gateway.order(), str(uuid4())
    with trouble(gateway) if trouble else nullcontext():
        first_tries = at_once(gateway, order, key)
        bodies = {gateway.send_until_created(order, key).content for _ in first_tries[:4]}
        accepted = [answer for answer in first_tries if answer.status_code == 201]
        bodies |= {answer.content for answer in accepted}
        (body,) = bodies
        paid = Paid(key, order, body)
        gateway.await_end(paid)
        assert_charged_once(gateway, paid)
    refused = [answer for answer in first_tries if answer.status_code != 201]
    assert all(answer.status_code == 409 and may_be_retried(answer) for answer in refused)
    replays = [answer for answer in accepted if "Idempotent-Replayed" in answer.headers]
    assert len(accepted) - len(replays) <= 1, "two were told that theirs was the first"
    assert_one_payment_a_key(gateway, paid)


def test_a_lock_whose_holder_died_and_that_never_ends_refuses_nobody(gateway: Gateway) -> None:
    order = gateway.order()
    with overheard(gateway.stack.redis) as heard:
        earlier = _pay_under_a_lock(gateway, order, heard)
    # The same lock for another key, as if its holder had died before it reached the database.
    (name, value), key = earlier, str(uuid4())
    with gateway.stack.redis.client() as client:
        client.set(name.replace(name.rpartition(":")[2], key), value)
    answers = at_once(gateway, order, key, clients=8)
    assert {answer.status_code for answer in answers} == {201}
    (body,) = {answer.content for answer in answers}
    paid = Paid(key, order, body)
    gateway.await_end(paid)
    assert_charged_once(gateway, paid)


def test_a_client_that_hangs_up_has_its_payment_made_once_and_is_told_of_it_when_it_asks_again(
    gateway: Gateway,
) -> None:
    order, key = gateway.order(), str(uuid4())
    _hang_up_after_sending(gateway, order, key)
    wait_until(
        lambda: bool(gateway.rows("SELECT 1 FROM idempotency_keys WHERE key = %s", key)),
        what="nobody took it",
        limit_s=PATIENCE_S,
    )
    answer = gateway.send_until_created(order, key)
    assert answer.headers["Idempotent-Replayed"] == "true"
    paid = Paid(key, order, answer.content)
    gateway.await_end(paid)
    assert_charged_once(gateway, paid)
    assert_one_payment_a_key(gateway, paid)


def _hang_up_after_sending(gateway: Gateway, order: dict[str, object], key: str) -> None:
    """Send the whole request, and reset the connection before the first byte of the response."""
    address = urlsplit(gateway.url)
    body = json.dumps(order).encode()
    head = (
        f"POST {address.path} HTTP/1.1\r\nHost: {address.netloc}\r\n"
        f"X-API-Key: {gateway.api_key}\r\nIdempotency-Key: {key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection((address.hostname, address.port), PATIENCE_S) as line:
        line.sendall(head.encode() + body)
        line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def test_another_request_under_a_running_key_is_refused_and_the_first_goes_on(
    gateway: Gateway,
) -> None:
    order, key = gateway.order(amount=10), str(uuid4())
    other = {**order, "amount": 11}
    with ThreadPoolExecutor(2 * CLIENTS) as threads:
        started = threading.Barrier(CLIENTS)

        def send(wanted: dict[str, object]) -> tuple[object, requests.Response]:
            started.wait()
            return wanted["amount"], gateway.send(wanted, key)

        answers = list(threads.map(send, [order, other] * (CLIENTS // 2)))
    by_amount: dict[object, set[int]] = {10: set(), 11: set()}
    for amount, answer in answers:
        by_amount[amount].add(answer.status_code)
    # Either amount may be first; requests with the other are refused, and one amount is charged.
    (winner,) = [amount for amount, statuses in by_amount.items() if 201 in statuses]
    (loser,) = {10, 11} - {winner}
    assert by_amount[winner] <= {201, 409}
    assert by_amount[loser] <= {422, 409}
    won = {**order, "amount": winner}
    paid = Paid(key, won, gateway.send_until_created(won, key).content)
    gateway.await_end(paid)
    assert_charged_once(gateway, paid)
    assert_one_payment_a_key(gateway, paid)


def at_once(
    gateway: Gateway, order: dict[str, object], key: str, *, clients: int = CLIENTS
) -> list[requests.Response]:
    """The answer to each client; they start together."""
    started = threading.Barrier(clients)

    def send() -> requests.Response:
        started.wait()
        return gateway.send(order, key)

    with ThreadPoolExecutor(clients) as threads:
        return [future.result() for future in [threads.submit(send) for _ in range(clients)]]


def _pay_under_a_lock(
    gateway: Gateway, order: dict[str, object], heard: list[str]
) -> tuple[str, str]:
    """Name and value of the lock under which the order was accepted."""
    taken: list[tuple[str, str]] = []

    def pay() -> bool:
        gateway.send_until_created(order, str(uuid4()))
        taken.extend(_locks_in(heard))
        return bool(taken)

    # After an outage processes use no locks for a while.
    wait_until(pay, what="no lock is taken", limit_s=PATIENCE_S)
    return taken[-1]


def _locks_in(heard: list[str]) -> list[tuple[str, str]]:
    """The locks that these commands took; it empties the list."""
    words = [heard.pop(0).split(" ") for _ in range(len(heard))]
    return [
        (word[1], word[2])
        for word in words
        if word[0] == "set" and word[1].startswith("idempotency:")
    ]


def _lies(liar: redis.Redis) -> list[Callable[[str, str], object]]:
    def stale(name: str, value: str) -> None:
        liar.set(name, value)

    def stranger(name: str, _value: str) -> None:
        liar.set(name, "0123456789abcdef")

    def garbage(name: str, _value: str) -> None:
        liar.set(name, b"\xff\xfe not a token")

    def gone(name: str, _value: str) -> None:
        liar.delete(name)

    def of_another_type(name: str, _value: str) -> None:
        liar.pipeline().delete(name).rpush(name, "a list").execute()  # type: ignore[union-attr]

    return [stale, stale, gone, garbage, stale, stranger, of_another_type, gone]
