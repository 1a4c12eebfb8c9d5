"""Clients of several tenants, in threads, that behave as good clients do.

A client that gets no answer to a POST does not know its outcome. It sends the same request with
the same key again until there is an answer; also after the end of the run, during recovery.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from random import Random
from typing import Final, Protocol

import requests

from chaos.history import Asked, History, Reply
from chaos.scripts import Order, Script, Step

# Between two tries of the same request; doubled each time, with jitter.
RETRY_FIRST_S: Final = 0.1
RETRY_MAX_S: Final = 2.0
# How long a client waits, at least, for the answer to a retry.
PATIENCE_S: Final = 6.0
# Payments that a client queries after each step.
LOOKS_PER_STEP: Final = 2
FINAL: Final = frozenset({"SUCCESSFUL", "FAILED"})
_KEPT_HEADERS: Final = ("Idempotent-Replayed", "Payment-Status", "Retry-After", "Content-Type")


class Shared:
    """State that all clients share: the payments that exist, by tenant."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._payments: list[tuple[str, str, str]] = []
        self._borrowed: set[str] = set()

    def add(self, tenant: str, key: str, payment_id: str) -> None:
        """Record a payment that a client has received."""
        with self._lock:
            self._payments.append((tenant, key, payment_id))

    def of_others(self, tenant: str, pick: float) -> tuple[str, str] | None:
        """(key, payment) of another tenant, if there is one."""
        with self._lock:
            others = [(key, found) for owner, key, found in self._payments if owner != tenant]
        return others[int(pick * len(others))] if others else None

    def borrow(self, tenant: str, pick: float) -> str | None:
        """A key of another tenant, for one order of this tenant. Each key is borrowed once."""
        other = self.of_others(tenant, pick)
        with self._lock:
            # Once only, so that a key never goes back to the tenant that used it first.
            if other is None or other[0] in self._borrowed:
                return None
            self._borrowed.add(other[0])
            return other[0]


class Gateway(Protocol):
    """The API as one client reaches it."""

    def send(
        self, what: Asked, *, method: str, path: str, body: object = None, patience_s: float
    ) -> Reply:
        """Send one request; record it before, and its outcome after."""
        ...


class HttpGateway:
    """The API over HTTP with one tenant's key. One thread uses it."""

    def __init__(self, url: str, api_key: str, history: History) -> None:
        self._url = url
        self._session = requests.Session()
        self._session.headers["X-API-Key"] = api_key
        # Requests between two processes of one machine must not go through a developer's proxy.
        self._session.trust_env = False
        self._history = history

    def send(
        self, what: Asked, *, method: str, path: str, body: object = None, patience_s: float
    ) -> Reply:
        """See Gateway."""
        headers = {} if what.key is None else {"Idempotency-Key": what.key}
        call = self._history.asked(what, body)
        try:
            answer = self._session.request(
                method, self._url + path, json=body, headers=headers, timeout=patience_s
            )
            kept = {name: answer.headers[name] for name in _KEPT_HEADERS if name in answer.headers}
            reply = Reply(answer.status_code, answer.text, kept)
        except requests.RequestException as error:
            reply = Reply(error=type(error).__name__)
        self._history.answered(what, call, reply)
        return reply

    def close(self) -> None:
        """Close its connections."""
        self._session.close()


class Client:
    """One client with its script."""

    def __init__(
        self, script: Script, gateways: Sequence[Gateway], shared: Shared, give_up: threading.Event
    ) -> None:
        """`gateways`: one for each of the client's threads (twins need two)."""
        self._script = script
        self._gateway, *self._twins = gateways
        self._shared = shared
        self._give_up = give_up
        self._draw = Random(script.client)
        self._done: list[tuple[str, Order, str]] = []
        self._open: list[str] = []
        self._acts = {
            "pay": self._pay,
            "twins": self._pay_twice_at_once,
            "replay": self._replay,
            "mutate": self._mutate,
            "borrow": self._borrow,
            "peek": self._peek,
            "look": self._look_again,
            "page": self._page,
        }

    def run(self, time_is_over: threading.Event) -> None:
        """Do the steps of the script until the time is over."""
        for step in self._script.steps:
            if time_is_over.wait(step.pause_s):
                return
            self._acts[step.kind](step)
            self._look_at_open_ones()

    def _pay(self, step: Step) -> None:
        reply = self._until_answered("pay", step.key, step, self._gateway)
        self._remember(step.key, step, reply)

    def _pay_twice_at_once(self, step: Step) -> None:
        gateways = (self._gateway, *self._twins)
        with ThreadPoolExecutor(len(gateways)) as pool:
            tries = [
                pool.submit(self._until_answered, "pay", step.key, step, gateway)
                for gateway in gateways
            ]
            replies = [one.result() for one in tries]
        self._remember(step.key, step, replies[0])

    def _replay(self, step: Step) -> None:
        if self._done:
            key, order, _ = self._chosen(step)
            self._until_answered("pay", key, step, self._gateway, order=order)

    def _mutate(self, step: Step) -> None:
        if self._done:
            key, order, _ = self._chosen(step)
            changed = Order(order.amount + 1, order.payer, order.external_id)
            self._until_answered("mutate", key, step, self._gateway, order=changed)

    def _borrow(self, step: Step) -> None:
        key = self._shared.borrow(self._script.tenant, step.pick)
        if key is not None:
            self._remember(key, step, self._until_answered("pay", key, step, self._gateway))

    def _peek(self, step: Step) -> None:
        other = self._shared.of_others(self._script.tenant, step.pick)
        if other is not None:
            self._get("peek", other[1], step.patience_s)

    def _look_again(self, step: Step) -> None:
        if self._done:
            self._get("look", self._chosen(step)[2], step.patience_s)

    def _page(self, step: Step) -> None:
        what = Asked(self._script.client, self._script.tenant, "page")
        path = "/api/v1/payments?limit=50"
        self._gateway.send(what, method="GET", path=path, patience_s=step.patience_s)

    def _look_at_open_ones(self) -> None:
        for payment_id in self._open[:LOOKS_PER_STEP]:
            reply = self._get("look", payment_id, PATIENCE_S)
            self._open.remove(payment_id)
            if reply.document().get("status") not in FINAL:
                self._open.append(payment_id)

    def _get(self, act: str, payment_id: str, patience_s: float) -> Reply:
        what = Asked(self._script.client, self._script.tenant, act, payment_id=payment_id)
        path = f"/api/v1/payments/{payment_id}"
        return self._gateway.send(what, method="GET", path=path, patience_s=patience_s)

    def _until_answered(
        self, act: str, key: str, step: Step, gateway: Gateway, *, order: Order | None = None
    ) -> Reply:
        """Send the same request until its outcome is known, or until all clients must give up."""
        what = Asked(self._script.client, self._script.tenant, act, key=key)
        body = (order or step.order).body(key)
        pause_s, patience_s = RETRY_FIRST_S, step.patience_s
        while True:
            reply = gateway.send(
                what, method="POST", path="/api/v1/payments", body=body, patience_s=patience_s
            )
            if reply.outcome != "unknown" or self._give_up.is_set():
                return reply
            self._wait(pause_s, reply.headers)
            pause_s, patience_s = min(pause_s * 2, RETRY_MAX_S), max(patience_s, PATIENCE_S)

    def _wait(self, pause_s: float, headers: Mapping[str, str]) -> None:
        asked = headers.get("Retry-After", "")
        wanted_s = float(asked) if asked.isdecimal() else 0.0
        self._give_up.wait(max(wanted_s, pause_s * self._draw.uniform(0.5, 1.5)))

    def _remember(self, key: str, step: Step, reply: Reply) -> None:
        payment_id = reply.document().get("id")
        if reply.outcome == "ok" and isinstance(payment_id, str):
            self._done.append((key, step.order, payment_id))
            self._open.append(payment_id)
            self._shared.add(self._script.tenant, key, payment_id)

    def _chosen(self, step: Step) -> tuple[str, Order, str]:
        return self._done[int(step.pick * len(self._done))]


class Crowd:
    """All clients of a run, each in its thread."""

    def __init__(
        self, scripts: Sequence[Script], *, url: str, keys: Mapping[str, str], history: History
    ) -> None:
        self._time_is_over = threading.Event()
        self._give_up = threading.Event()
        self._gateways: list[HttpGateway] = []
        self.failures: list[BaseException] = []
        shared = Shared()
        self._threads = []
        for script in scripts:
            gateways = [HttpGateway(url, keys[script.tenant], history) for _ in range(2)]
            self._gateways += gateways
            client = Client(script, gateways, shared, self._give_up)
            name, target = script.client, self._run
            self._threads.append(
                threading.Thread(target=target, args=(client,), name=name, daemon=True)
            )

    def start(self) -> None:
        """Start all clients."""
        for thread in self._threads:
            thread.start()

    def finish(self) -> None:
        """No new steps from now on; requests whose outcome is unknown are still retried."""
        self._time_is_over.set()

    def leave(self, *, within_s: float) -> None:
        """Wait for the last answers; a client that has none by then gives up."""
        deadline = time.monotonic() + within_s
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        self._give_up.set()
        for thread in self._threads:
            thread.join(2 * PATIENCE_S)
        for gateway in self._gateways:
            gateway.close()

    def _run(self, client: Client) -> None:
        try:
            client.run(self._time_is_over)
        except Exception as error:  # noqa: BLE001  # a bug of the harness must end the run, loudly
            self.failures.append(error)
