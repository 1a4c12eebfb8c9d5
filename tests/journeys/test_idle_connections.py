"""How long gunicorn keeps an idle connection: by the real clock, which no test can move."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial

import pytest

from devstack.stack import Stack
from tests.journeys.connections import PATIENCE_S, connect

ASK = b"GET /health/live HTTP/1.1\r\nHost: gateway\r\n\r\n"
# A balancer closes its own after 60: it must never send a request on one that we are closing.
KEPT_S = 75.0


@pytest.fixture
def stack(stack_factory: partial[Stack]) -> Iterator[Stack]:
    """Started before the test's own time limit begins."""
    with stack_factory(workers=1, celery_workers=0, beats=0) as running:
        yield running


def answered(peer: socket.socket) -> bool:
    """Send a request and read the whole response; False if the connection was closed before."""
    answer = b""
    try:
        peer.sendall(ASK)
        while not answer.endswith(b"}"):
            if not (part := peer.recv(65_536)):
                return False
            answer += part
    except ConnectionError:
        return False
    return answer.startswith(b"HTTP/1.1 200 ")


@pytest.mark.timeout(300)
def test_an_idle_connection_is_kept_for_75_seconds_and_no_longer(stack: Stack) -> None:
    with ExitStack() as open_until:
        asking, silent = (connect(stack, open_until) for _ in range(2))
        # The server counts from its responses, which this process may read later.
        since = time.monotonic()
        assert answered(asking)
        assert answered(silent)
        time.sleep(KEPT_S - 1.5)
        is_kept = answered(asking)
        # If the machine stalled for longer than was left, either result is right.
        assert is_kept or time.monotonic() - since > KEPT_S - 0.5
        silent.settimeout(PATIENCE_S)
        assert silent.recv(65_536) == b""
        assert time.monotonic() - since >= KEPT_S - 0.5
