"""A tenant of a running stack, and the means to stop and kill the stack's processes."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from typing import Any
from uuid import UUID, uuid4

import psutil
import psycopg
import requests

from devstack.errors import StackError
from devstack.programs import await_api, await_worker
from devstack.stack import Stack
from devstack.supervisor import Process, wait_until
from payments_app.kernel.encryption import TenantKeyring
from payments_app.kernel.msisdn import Msisdn
from payments_app.kernel.secrets import Cipher
from payments_app.payments.payers import payer_index
from tests.journeys.provider import Provider

# What takes a second on an idle machine may take many on a busy one.
PATIENCE_S = 60.0
ANSWER_MAX_S = 30.0
SENDERS = 8
TENANT = "journeys"

Row = dict[str, Any]
_payers = count(256_770_000_001)


def new_payer() -> str:
    """A number that no other test uses, so that a fault for this payer affects no other test."""
    return str(next(_payers))


@dataclass(frozen=True)
class Paid:
    """A payment as its 201 returned it: the key, the order, and the bytes of the response."""

    key: str
    order: Row
    body: bytes

    @property
    def id(self) -> str:
        return str(json.loads(self.body)["id"])

    @property
    def reference(self) -> str:
        return str(json.loads(self.body)["reference"])


class Gateway:
    """A tenant's client of the stack; and access to the database, for a test's own queries."""

    def __init__(self, stack: Stack, *, tenant: str = TENANT) -> None:
        self.stack = stack
        self.provider = Provider(stack.simulator_url)
        self.api_key = stack.issue_key(tenant)
        self.url = f"{stack.api_url}/api/v1/payments"
        self.payers: set[str] = set()
        # More secrets that must never be seen, by a name that a message may show.
        self.secrets: dict[str, str] = {}

    # --- the tenant ---------------------------------------------------------------------------

    def order(self, *, payer: str | None = None, amount: int | str = 1000) -> Row:
        """An order of a payer that no other test uses."""
        payer = payer or new_payer()
        self.payers.add(payer)
        return {"amount": amount, "currency": "EUR", "payer": payer}

    def send(self, order: Row, key: str) -> requests.Response:
        """POST once; raises if the connection breaks."""
        headers = {"X-API-Key": self.api_key, "Idempotency-Key": key}
        return requests.post(self.url, json=order, headers=headers, timeout=ANSWER_MAX_S)

    def pay(
        self, *, payer: str | None = None, amount: int | str = 1000, key: str | None = None
    ) -> Paid:
        """POST with one key until the answer is a 201, as a careful client does."""
        order, key = self.order(payer=payer, amount=amount), key or str(uuid4())
        return Paid(key, order, self.send_until_created(order, key).content)

    def pay_all(self, payers: Sequence[str]) -> dict[str, Paid]:
        """Pay for many payers at once; the payment of each."""
        with ThreadPoolExecutor(SENDERS) as threads:
            paid = threads.map(lambda payer: self.pay(payer=payer), payers)
            return dict(zip(payers, paid, strict=True))

    def send_until_created(self, order: Row, key: str) -> requests.Response:
        """Retry what may be retried: no answer, a 503, and a first request that still runs."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            answer = None
            with suppress(requests.ConnectionError, requests.Timeout):
                answer = self.send(order, key)
            if answer is not None and answer.status_code == 201:
                return answer
            assert answer is None or may_be_retried(answer), f"{answer}: {answer.text}"
            if answer is not None and answer.json().get("code") == "tenant_held":
                self.release()
            assert time.monotonic() < deadline, "not accepted in time"
            time.sleep(0.1)

    def release(self) -> None:
        """Release all tenants: up to a minute after a contradiction its tenant is held."""
        self.rows(
            "UPDATE invariant_breaks SET resolved_at = now(), resolution = 'a test'"
            " WHERE resolved_at IS NULL"
        )
        self.rows("UPDATE tenants SET held_at = NULL, held_why = NULL")

    def show(self, paid: Paid) -> Row:
        """The payment as the API shows it now."""
        return self._get(f"{self.url}/{paid.id}")

    def story(self, paid: Paid) -> list[Row]:
        """Its events."""
        events: list[Row] = self._get(f"{self.url}/{paid.id}/events")["data"]
        return events

    def await_end(self, *paid: Paid, limit_s: float = PATIENCE_S) -> None:
        """Wait until none of them is PENDING."""
        try:
            wait_until(lambda: not self.open_of(*paid), what="payments are open", limit_s=limit_s)
        except StackError as error:
            # The cause is in the rows and in the workers' logs, which are deleted with the stack.
            rows = [self.row(one) for one in paid]
            raise AssertionError(
                "\n".join([str(error), *map(str, rows), *(w.log_tail() for w in self.workers)])
            ) from None

    def await_state(self, paid: Paid, **wanted: object) -> None:
        """Wait until the API shows the payment so."""
        wait_until(
            lambda: wanted.items() <= self.show(paid).items(),
            what=f"the payment is not {wanted}",
            limit_s=PATIENCE_S,
        )

    def _get(self, url: str) -> Row:
        answer = requests.get(url, headers={"X-API-Key": self.api_key}, timeout=ANSWER_MAX_S)
        assert answer.status_code == 200, answer.text
        found: Row = answer.json()
        return found

    # --- the database -------------------------------------------------------------------------

    def rows(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        """Run a statement as the superuser, in a connection of its own; the rows."""
        with self.connect() as connection:
            cursor = connection.execute(statement.encode(), values)
            return cursor.fetchall() if cursor.description else []

    def connect(self) -> psycopg.Connection:
        """The superuser's connection, each statement its own transaction."""
        return psycopg.connect(self.stack.administrator_url, autocommit=True)

    def row(self, paid: Paid) -> Row:
        """The payment's whole row."""
        (found,) = self.rows("SELECT to_jsonb(p) FROM payments p WHERE id = %s", paid.id)
        document: Row = found[0]
        return document

    def open_of(self, *paid: Paid) -> int:
        """How many of them are still open."""
        statement = "SELECT count(*) FROM payments WHERE status = 'PENDING' AND id = ANY(%s)"
        return int(self.rows(statement, [one.id for one in paid])[0][0])

    def payments_of(self, order: Row) -> int:
        """How many payments of this order's payer there are, looked up as the gateway does."""
        ((tenant_id,),) = self.rows("SELECT id FROM tenants WHERE slug = %s", TENANT)
        if self.data_key(tenant_id) is None:
            return 0
        cipher = Cipher(self.stack.environment["SECRET_KEYS"].split(","))
        keyring = TenantKeyring(cipher, _DataKeys(self))
        index = payer_index(keyring, tenant_id, Msisdn(order["payer"]))
        statement = "SELECT count(*) FROM payments WHERE tenant_id = %s AND payer_index = %s"
        return int(self.rows(statement, tenant_id, index)[0][0])

    def data_key(self, tenant_id: UUID) -> str | None:
        """The tenant's wrapped data key; None before its first payment."""
        ((found,),) = self.rows("SELECT data_key FROM tenants WHERE id = %s", tenant_id)
        return None if found is None else str(found)

    def end_leases(self, *paid: Paid) -> None:
        """End the leases now, so that a test need not wait 30 seconds."""
        self.rows(
            "UPDATE payments SET lease_until = clock_timestamp() - interval '1 second',"
            " next_action_at = clock_timestamp() - interval '1 second'"
            " WHERE status = 'PENDING' AND lease_until IS NOT NULL AND id = ANY(%s)",
            [one.id for one in paid],
        )

    @contextmanager
    def holding_row(self, paid: Paid) -> Iterator[None]:
        """Lock the payment's row: a write to it waits."""
        with self.connect() as connection, connection.transaction():
            connection.execute("SELECT FROM payments WHERE id = %s FOR UPDATE", [paid.id])
            yield

    def await_waiting_backend(self) -> None:
        """Wait until a process of the gateway waits for a lock in the database."""
        statement = (
            "SELECT 1 FROM pg_stat_activity WHERE datname = current_database()"
            " AND application_name = 'maramoja' AND wait_event_type = 'Lock'"
        )
        wait_until(
            lambda: bool(self.rows(statement)), what="nobody waits for the lock", limit_s=PATIENCE_S
        )

    # --- the processes ------------------------------------------------------------------------

    @property
    def workers(self) -> list[Process]:
        """The Celery workers, the longest running one first."""
        named = [p for name, p in self.stack.processes.items() if name.startswith("worker-")]
        return sorted(named, key=_age_s, reverse=True)

    def await_working(self, worker: Process) -> None:
        """Wait until the worker is ready for tasks."""
        await_worker(worker, self.stack.redis.url)

    @contextmanager
    def one_working(self) -> Iterator[tuple[Process, Process]]:
        """Two workers: the first surely runs, the other is suspended until it is continued."""
        first, second = self.workers
        self._stop_at_rest(second)
        try:
            yield first, second
        finally:
            second.cont()

    def _stop_at_rest(self, worker: Process) -> None:
        """Suspend the worker outside of a transaction: the other would wait for its locks."""

        def at_rest() -> bool:
            worker.stop()
            left = begun = self._transactions()
            deadline = time.monotonic() + 1.0
            while left and time.monotonic() < deadline:
                time.sleep(0.02)
                left = begun & self._transactions()
            if left:
                worker.cont()
            return not left

        wait_until(at_rest, what="its transactions do not end", limit_s=PATIENCE_S)

    def _transactions(self) -> set[tuple[Any, ...]]:
        """The open transactions of the gateway's processes: the backend and the start of each."""
        statement = (
            "SELECT pid, xact_start FROM pg_stat_activity WHERE datname = current_database()"
            " AND application_name = 'maramoja' AND xact_start IS NOT NULL"
        )
        return set(self.rows(statement))

    def await_call(self, paid: Paid, operation: str, *, times: int = 1) -> None:
        """Wait until the provider has received this call for the payment."""
        wait_until(
            lambda: len(self.provider.truth(paid.reference).asked(operation)) >= times,
            what=f"no {operation} has reached the provider",
            limit_s=PATIENCE_S,
        )

    def await_fault(self, kind: str) -> None:
        """Wait until a fault of this kind has been applied to a call."""
        wait_until(
            lambda: self.provider.strikes(kind) > 0,
            what=f"nothing has run into {kind}",
            limit_s=PATIENCE_S,
        )

    def let_token_run_out(self) -> None:
        """Leave the worker with an expired token: before its next call it needs another."""
        self.provider.settings(token_ttl_s=1)
        self.provider.expire_tokens()
        self.await_end(self.pay())
        over_at = time.monotonic() + 1.0
        wait_until(lambda: time.monotonic() > over_at, what="it lives on", limit_s=PATIENCE_S)
        self.provider.settings(token_ttl_s=3600)

    def heal(self) -> None:
        """Restart or repair everything that a test has stopped, killed or set wrong."""
        self.stack.postgres.process.cont()
        self.stack.postgres.start()
        self.stack.redis.process.cont()
        self.stack.redis.start()
        for process in self.stack.processes.values():
            process.cont()
            process.start()
        self.provider.reset()
        await_api(self.stack.processes["api"], self.stack.api_url)


class _DataKeys:
    """Implements payments_app.kernel.encryption.DataKeys: reads the stack's data keys."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def find(self, tenant_id: UUID) -> str | None:
        """The wrapped key as it is stored."""
        return self._gateway.data_key(tenant_id)

    def keep(self, tenant_id: UUID, wrapped: str) -> None:
        """Must not be called."""
        raise AssertionError(f"a test made {wrapped!r} for {tenant_id}, who has a data key")


def may_be_retried(answer: requests.Response) -> bool:
    """Whether the contract says to retry with the same key. Then `Retry-After` says when."""
    if answer.status_code == 409 and answer.json()["code"] != "idempotency_key_in_progress":
        return False
    return answer.status_code in {409, 503} and int(answer.headers["Retry-After"]) > 0


@contextmanager
def repeatedly(act: Callable[[], object], *, every_s: float) -> Iterator[None]:
    """Call `act` again and again while the block runs; at least once."""
    ended = threading.Event()
    failures: list[Exception] = []

    def run() -> None:
        while True:
            try:
                act()
            except Exception as error:  # noqa: BLE001  raised below, in the test's own thread
                failures.append(error)
                return
            if ended.wait(every_s):
                return

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    if failures:
        raise failures[0]


def _age_s(worker: Process) -> float:
    return time.time() - psutil.Process(worker.pid).create_time() if worker.alive else 0.0
