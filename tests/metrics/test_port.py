"""The port of worker and beat: alive while the heartbeat is fresh, metrics for operators only."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from ipaddress import ip_network
from types import SimpleNamespace

import pytest
import requests
from flask import Flask

from devstack.programs import Programs
from devstack.stack import Stack
from devstack.supervisor import Supervisor, wait_until
from payments_app.kernel.database import db
from payments_app.kernel.pool import OVERFLOW_MAX
from payments_app.worker import heartbeat as heartbeats
from payments_app.worker.celery_app import HOUSEKEEPING
from payments_app.worker.health_server import CONNECTIONS_MAX, HealthServer
from payments_app.worker.heartbeat import SILENT_MAX_S, Heartbeat
from payments_app.worker.payment_processor import PROCESSOR, PaymentProcessor
from payments_app.worker.poller import BEAT_EVERY_S, Poller
from payments_app.worker.scheduler import BEAT_HEARTBEAT, TickingScheduler
from tests.metrics.conftest import PATIENCE_S, Installation

CONNECTIONS = 16 + OVERFLOW_MAX
HERE = (ip_network("127.0.0.0/8"),)


class Patient:
    """The process whose liveness the port reports."""

    alive = True

    def is_alive(self) -> bool:
        return self.alive


@pytest.fixture
def patient() -> Patient:
    return Patient()


@pytest.fixture
def url(patient: Patient) -> Iterator[str]:
    with HealthServer(0, HERE, patient.is_alive).open() as server:
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_it_says_whether_it_is_alive(url: str, patient: Patient) -> None:
    assert requests.get(f"{url}/health/live", timeout=5).json() == {"status": "ok"}

    patient.alive = False
    answer = requests.get(f"{url}/health/live?really", timeout=5)

    assert (answer.status_code, answer.json()) == (503, {"status": "silent"})
    assert requests.get(f"{url}/", timeout=5).status_code == 404


@pytest.mark.parametrize("name", ["X-Forwarded-For", "forwarded", "X-Real-IP", "Via"])
def test_through_a_proxy_there_are_no_figures(url: str, name: str) -> None:
    assert requests.get(f"{url}/metrics", timeout=5).status_code == 200
    refused = requests.get(f"{url}/metrics", headers={name: "10.0.0.1"}, timeout=5)
    nothing = requests.get(f"{url}/metric", timeout=5)

    assert (refused.status_code, refused.content) == (nothing.status_code, nothing.content)
    assert refused.status_code == 404


def test_to_others_there_are_no_figures_and_a_probe_is_answered(patient: Patient) -> None:
    with HealthServer(0, (ip_network("203.0.113.0/24"),), patient.is_alive).open() as server:
        url = f"http://127.0.0.1:{server.server_address[1]}"
        assert requests.get(f"{url}/metrics", timeout=5).status_code == 404
        assert requests.get(f"{url}/health/live", timeout=5).status_code == 200
        server.shutdown()


def test_those_who_say_nothing_are_few_and_soon_gone(url: str) -> None:
    port = int(url.rpartition(":")[2])
    threads = threading.active_count()
    silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(2 * CONNECTIONS_MAX)]
    try:
        time.sleep(0.5)
        assert threading.active_count() - threads <= CONNECTIONS_MAX
        wait_until(lambda: _answers(url), what="it does not answer any more", limit_s=PATIENCE_S)
    finally:
        for one in silent:
            one.close()


def _answers(url: str) -> bool:
    try:
        return requests.get(f"{url}/health/live", timeout=1).ok
    except requests.RequestException:
        return False


def test_a_pulse_is_felt_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(heartbeats, "time", SimpleNamespace(monotonic=lambda: now[0]))
    heartbeat = Heartbeat(silent_max_s=2.0)
    for _ in range(2):
        assert heartbeat.is_fresh()
        now[0] += 2.0
        assert heartbeat.is_fresh()
        now[0] += 0.1
        assert not heartbeat.is_fresh()
        heartbeat.touch()
    assert SILENT_MAX_S == 30


def test_a_clockwork_is_alive_while_it_ticks_and_until_it_has_ended(app: Flask) -> None:
    stop = threading.Event()
    poller = Poller(app, stop, heartbeat=Heartbeat(silent_max_s=2.0))
    assert not poller.is_alive(), "none of its threads runs"
    poller.start()
    time.sleep(3.0)
    # The machine may have stopped the threads for a while. A tick makes it alive again.
    wait_until(poller.is_alive, what="it does not tick", limit_s=1.5)
    stop.set()
    poller.join()
    assert poller.is_alive(), "it was told to end"


def test_a_clockwork_with_nothing_to_do_for_a_minute_is_alive(app: Flask) -> None:
    """As in a worker for housekeeping alone."""
    stop = threading.Event()
    poller = Poller(app, stop, heartbeat=Heartbeat(silent_max_s=BEAT_EVERY_S + 2.0))
    poller.start([HOUSEKEEPING])
    time.sleep(BEAT_EVERY_S + 3.0)
    wait_until(poller.is_alive, what="it does not tick", limit_s=BEAT_EVERY_S)
    stop.set()
    poller.join()


def test_a_clockwork_whose_one_poll_is_busy_for_long_is_alive(app: Flask) -> None:
    """As in a worker for payments alone, under load: its one poll does not end."""
    processor: PaymentProcessor = app.extensions[PROCESSOR]
    Poller(app, threading.Event(), heartbeat=(heartbeat := Heartbeat()))
    heartbeat._touched_at -= SILENT_MAX_S + 1
    assert not heartbeat.is_fresh()
    with app.app_context():
        processor.run_once()
    assert heartbeat.is_fresh()


def test_a_clockwork_whose_threads_all_hang_is_silent_until_they_go_on(app: Flask) -> None:
    stop = threading.Event()
    poller = Poller(app, stop, heartbeat=Heartbeat(silent_max_s=1.5))
    with app.app_context(), ExitStack() as all_connections:
        for _ in range(CONNECTIONS):
            all_connections.enter_context(db.engine.connect())
        poller.start()
        wait_until(lambda: not poller.is_alive(), what="it ticks", limit_s=PATIENCE_S)
    wait_until(poller.is_alive, what="it does not go on", limit_s=PATIENCE_S)
    stop.set()
    poller.join()


def test_a_beat_that_does_not_tick_is_silent(app: Flask) -> None:
    BEAT_HEARTBEAT._touched_at = time.monotonic() - SILENT_MAX_S - 1
    assert not BEAT_HEARTBEAT.is_fresh()

    TickingScheduler(app=app.extensions["celery"], lazy=True).tick()

    assert BEAT_HEARTBEAT.is_fresh()


def test_real_ones_are_alive(installation: Installation) -> None:
    for url in (installation.worker_url, installation.beat_url):
        assert requests.get(f"{url}/health/live", timeout=5).json() == {"status": "ok"}


@pytest.mark.slow
def test_an_outage_of_database_and_broker_is_no_reason_to_start_them_anew(
    installation: Installation,
) -> None:
    stack = installation.stack
    stack.redis.kill()
    stack.postgres.kill()
    try:
        over_at = time.monotonic() + SILENT_MAX_S + 5
        while time.monotonic() < over_at:
            for url in (installation.worker_url, installation.beat_url):
                assert requests.get(f"{url}/health/live", timeout=5).status_code == 200
            time.sleep(1)
    finally:
        stack.postgres.start()
        stack.redis.start()


@pytest.mark.parametrize("role", ["worker", "beat"])
def test_a_port_that_is_taken_stops_the_start(
    installation: Installation, role: str, tmp_path: object
) -> None:
    stack: Stack = installation.stack
    name = f"{role.upper()}_PORT"
    with socket.socket() as taken, Supervisor(tmp_path) as supervisor:  # type: ignore[arg-type]
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        programs = Programs({**stack.environment, name: str(taken.getsockname()[1])})
        command = programs.worker("taken") if role == "worker" else programs.beat("taken")
        process = supervisor.start(command)
        wait_until(lambda: not process.alive, what="it runs", limit_s=PATIENCE_S)
        assert process.exit_code not in {0, None}
        assert f"{name}: this port can't be opened" in process.log_text()
        supervisor.forget(process)
