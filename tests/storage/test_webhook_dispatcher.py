"""The dispatcher of a worker process: driven by events, not by its timer."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from uuid import UUID

import psycopg
import pytest
from flask import Flask

from devstack.supervisor import wait_until
from payments_app.kernel.database import db
from payments_app.webhooks import concurrency
from payments_app.webhooks.concurrency import FIRST_LIMIT, LIMIT_MAX
from payments_app.webhooks.endpoints import Owner
from payments_app.worker.heartbeat import Heartbeat
from payments_app.worker.webhook_dispatcher import WebhookDispatcher
from tests.builders import ScriptedProvider, a_caller, an_accepted_payment, an_asker, rails_of
from tests.webhooks.backlogs import Backlogs
from tests.webhooks.receiver import OK, Received, Receiver, Reply, receiving

pytestmark = pytest.mark.usefixtures("app")
LIMIT_S = 20.0


@pytest.fixture(autouse=True)
def no_tick(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a timer of an hour, whatever happens in a test happens without the timer."""
    monkeypatch.setattr("payments_app.worker.webhook_dispatcher.PUBLISH_EVERY_S", 3600.0)


@pytest.fixture(autouse=True)
def nothing_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer for which this machine or a test takes seconds lowers no endpoint's limit."""
    monkeypatch.setattr(concurrency, "_RULES", replace(concurrency._RULES, slow_s=3600.0))
    monkeypatch.setattr("payments_app.webhooks.dispatcher.SLOW_S", 3600.0)


@dataclass
class Running:
    """A dispatcher whose loop runs in a thread, as in a worker."""

    app: Flask
    stop: threading.Event = field(default_factory=threading.Event)
    failed: list[Exception] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.dispatcher = WebhookDispatcher(self.app, self.stop, Heartbeat())
        self._threads: list[threading.Thread] = []

    def start(self) -> threading.Thread:
        thread = threading.Thread(target=self._run)
        thread.start()
        self._threads.append(thread)
        return thread

    def end(self) -> None:
        self.stop.set()
        for thread in self._threads:
            thread.join()
        self.dispatcher.join()

    def _run(self) -> None:
        with self.app.app_context():
            try:
                self.dispatcher.run_once()
            except Exception as error:  # noqa: BLE001  handed to the test
                self.failed.append(error)
            finally:
                db.session.remove()


@pytest.fixture
def running(make_app: Callable[..., Flask]) -> Iterator[Running]:
    found = Running(make_app(webhook_allow_private_addresses=True))
    yield found
    found.end()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as found:
        yield found


@pytest.fixture
def holding(receiver: Receiver) -> Iterator[Holding]:
    found = Holding(receiver)
    yield found
    found.release(1000)


class Holding:
    """A receiver that answers only when the test releases it."""

    def __init__(self, receiver: Receiver) -> None:
        self.receiver = receiver
        self._may = threading.Semaphore(0)
        receiver.reply = self._reply

    def release(self, count: int = 1) -> None:
        self._may.release(count)

    def await_received(self, count: int) -> None:
        wait_until(
            lambda: len(self.receiver.received) >= count,
            what=f"{count} webhooks have not come",
            limit_s=LIMIT_S,
        )
        assert len(self.receiver.received) == count

    def _reply(self, _received: Received) -> Reply:
        self._may.acquire(timeout=LIMIT_S)
        return OK


def all_delivered(backlogs: Backlogs) -> Callable[[], bool]:
    query = "SELECT count(*) FROM webhook_deliveries WHERE status <> 'delivered'"
    return lambda: backlogs.run(query) == [(0,)]


def point(backlogs: Backlogs, endpoint_id: UUID, url: str) -> None:
    backlogs.run("UPDATE webhook_endpoints SET url = %s WHERE id = %s", url, endpoint_id)


def a_backlog(
    backlogs: Backlogs, url: str, *, payments: int, each: int = 1, owner: Owner | None = None
) -> UUID:
    endpoint_id = backlogs.endpoint(owner or backlogs.owner(), payments=payments, each=each)
    point(backlogs, endpoint_id, url)
    return endpoint_id


def test_one_call_delivers_all_that_is_due_each_once_and_in_order(
    backlogs: Backlogs, running: Running, receiver: Receiver
) -> None:
    for _ in range(3):
        a_backlog(backlogs, receiver.url, payments=20, each=3)
    running.start().join()

    assert all_delivered(backlogs)()
    assert len({one.message_id for one in receiver.received}) == len(receiver.received) == 180
    stored = backlogs.run(
        "SELECT 'msg_' || replace(id::text, '-', ''), payment_id, sequence FROM webhook_deliveries"
    )
    places = {message_id: (payment, number) for message_id, payment, number in stored}
    sequences: dict[object, list[object]] = {}
    for one in receiver.received:
        payment, number = places[one.message_id]
        sequences.setdefault(payment, []).append(number)
    assert list(sequences.values()) == [[1, 2, 3]] * 60


def test_a_slot_that_becomes_free_is_used_at_once(
    backlogs: Backlogs, running: Running, holding: Holding
) -> None:
    a_backlog(backlogs, holding.receiver.url, payments=10)
    running.start()
    holding.await_received(FIRST_LIMIT)
    for number in range(1, 4):
        holding.release()
        holding.await_received(FIRST_LIMIT + number)


def test_a_payments_next_event_goes_with_the_answer_to_the_one_before(
    backlogs: Backlogs, running: Running, holding: Holding
) -> None:
    a_backlog(backlogs, holding.receiver.url, payments=1, each=3)
    running.start()
    for number in (1, 2, 3):
        holding.await_received(number)
        holding.release()
    wait_until(all_delivered(backlogs), what="not delivered", limit_s=LIMIT_S)


def test_what_happens_meanwhile_is_published_when_the_dispatcher_is_called(
    app: Flask, backlogs: Backlogs, running: Running, holding: Holding
) -> None:
    a_backlog(backlogs, holding.receiver.url, payments=1)
    running.start()
    holding.await_received(1)
    caller = a_caller()
    owner = Owner(caller.tenant_id, caller.mode)
    a_backlog(backlogs, holding.receiver.url, payments=0, owner=owner)
    an_accepted_payment(rails_of(app, ScriptedProvider()), context=an_asker(caller=caller))
    # This call returns at once, as another thread runs the loop.
    running.start().join()
    holding.await_received(2)


def test_a_hanging_endpoint_holds_its_own_slots_and_nobody_elses(
    backlogs: Backlogs, running: Running, holding: Holding
) -> None:
    with receiving() as quick:
        for _ in range(3):
            a_backlog(backlogs, holding.receiver.url, payments=10)
        a_backlog(backlogs, quick.url, payments=50, each=2)
        running.start()
        wait_until(lambda: len(quick.received) == 100, what="others are held up", limit_s=LIMIT_S)
        holding.await_received(3 * FIRST_LIMIT)


def test_a_tenants_hanging_endpoints_leave_half_of_the_slots(
    backlogs: Backlogs, running: Running, holding: Holding
) -> None:
    owner = backlogs.owner()
    for _ in range(10):
        a_backlog(backlogs, holding.receiver.url, payments=10, owner=owner)
    running.start()
    # Ten endpoints with four slots each would take more.
    holding.await_received(32)
    holding.release(5)
    holding.await_received(37)


def test_an_endpoint_that_is_quick_is_sent_more_at_once_over_connections_that_are_kept(
    backlogs: Backlogs, running: Running, receiver: Receiver
) -> None:
    receiver.reply = lambda _received: (200, {}, 0.01)
    a_backlog(backlogs, receiver.url, payments=600)
    running.start().join()

    assert len(receiver.received) == 600
    assert FIRST_LIMIT < receiver.busy_max <= LIMIT_MAX
    assert receiver.connections <= LIMIT_MAX + 1


def test_who_is_told_to_stop_records_what_is_under_way_and_takes_nothing_new(
    backlogs: Backlogs, running: Running, holding: Holding
) -> None:
    a_backlog(backlogs, holding.receiver.url, payments=10)
    loop = running.start()
    holding.await_received(FIRST_LIMIT)
    running.stop.set()
    holding.release(10)
    loop.join()

    statuses = Counter(
        backlogs.run("SELECT status, lease_until IS NOT NULL FROM webhook_deliveries")
    )
    assert statuses == {("delivered", False): FIRST_LIMIT, ("pending", False): 10 - FIRST_LIMIT}


def test_what_could_not_be_recorded_is_recorded_once_the_database_is_back(
    backlogs: Backlogs, running: Running, holding: Holding, administrator_url: str
) -> None:
    a_backlog(backlogs, holding.receiver.url, payments=FIRST_LIMIT)
    # Terminate only the dispatcher's connections: it has opened none yet.
    ((since,),) = backlogs.run("SELECT clock_timestamp()")
    loop = running.start()
    holding.await_received(FIRST_LIMIT)
    with psycopg.connect(administrator_url, autocommit=True) as administrator:
        administrator.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            " WHERE application_name = 'maramoja' AND datname = current_database()"
            " AND backend_start > %s",
            [since],
        )
    holding.release(FIRST_LIMIT)
    loop.join()
    assert running.failed, "the loss of the connection was not noticed"
    for _ in range(20):
        if all_delivered(backlogs)():
            break
        running.start().join()

    assert all_delivered(backlogs)()
    assert len(holding.receiver.received) == FIRST_LIMIT, "it was sent again"


def test_an_endpoint_that_is_locked_for_a_while_is_recorded_when_it_is_free(
    backlogs: Backlogs, running: Running, holding: Holding, administrator_url: str
) -> None:
    locked = a_backlog(backlogs, holding.receiver.url, payments=FIRST_LIMIT)
    with receiving() as quick:
        a_backlog(backlogs, quick.url, payments=50)
        with psycopg.connect(administrator_url) as person:
            person.execute("SELECT FROM webhook_endpoints WHERE id = %s FOR UPDATE", [locked])
            running.start()
            holding.await_received(FIRST_LIMIT)
            holding.release(FIRST_LIMIT)
            wait_until(
                lambda: len(quick.received) == 50, what="others are held up", limit_s=LIMIT_S
            )
    wait_until(all_delivered(backlogs), what="not recorded", limit_s=LIMIT_S)
    assert len(holding.receiver.received) == FIRST_LIMIT
