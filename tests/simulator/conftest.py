"""One simulator process for the session, emptied before each test; and a receiver of callbacks."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import requests

from tests.simulator.driving import Merchant, SimulatorProcess, eventually, seeds


@pytest.fixture(scope="session")
def simulator_process() -> Iterator[SimulatorProcess]:
    """A simulator with one account for collections and disbursements."""
    process = SimulatorProcess(*seeds("collection", "disbursement"))
    yield process
    code, output = process.stop()
    assert (code, output) == (0, ""), "the simulator printed a traceback or ended badly"


@pytest.fixture
def url(simulator_process: SimulatorProcess) -> str:
    """The simulator's address; all data of earlier tests is deleted."""
    answer = requests.post(f"{simulator_process.url}/_admin/reset", json={"data": True}, timeout=5)
    assert answer.ok
    return simulator_process.url


@pytest.fixture
def merchant(url: str) -> Iterator[Merchant]:
    """A merchant with collections in the sandbox."""
    with requests.Session() as session:
        yield Merchant(url, session=session)


@pytest.fixture
def payer_out(url: str) -> Iterator[Merchant]:
    """A merchant who pays out by transfers."""
    with requests.Session() as session:
        yield Merchant(url, "disbursement", "transfer", session=session)


@dataclass(frozen=True)
class Callback:
    """One callback as it arrived."""

    verb: str
    path: str
    body: dict[str, Any]


class Receiver(ThreadingHTTPServer):
    """Accepts callbacks and records them."""

    daemon_threads = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Receive)
        self.callbacks: list[Callback] = []
        self.pause_s = 0.0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/callbacks/some-token"

    def expect(self, count: int) -> list[Callback]:
        """Wait for this many callbacks, and a little longer, so that one too many would show."""
        eventually(lambda: len(self.callbacks) >= count)
        time.sleep(0.1)
        assert len(self.callbacks) == count
        return self.callbacks


class _Receive(BaseHTTPRequestHandler):
    server: Receiver

    def do_PUT(self) -> None:
        self._take()

    def do_POST(self) -> None:
        self._take()

    def _take(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        time.sleep(self.server.pause_s)
        self.server.callbacks.append(Callback(self.command, self.path, body))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()
