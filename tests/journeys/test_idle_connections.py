"""How long gunicorn keeps an idle connection: by the real clock, which no test can move."""

from __future__ import annotations

import socket
import time
from contextlib import ExitStack
from functools import partial

from devstack.stack import Stack
from tests.journeys.connections import PATIENCE_S, connect

ASK = b"GET /health/live HTTP/1.1\r\nHost: gateway\r\n\r\n"
# A balancer closes its own after 60: it must never send a request on one that we are closing.
KEPT_S = 75.0


def answered(peer: socket.socket) -> bool:
    """Send a request and read the whole response; False if the connection was closed before."""
    peer.sendall(ASK)
    answer = b""
    while not answer.endswith(b"}"):
        if not (part := peer.recv(65_536)):
            return False
        answer += part
    return answer.startswith(b"HTTP/1.1 200 ")


def test_an_idle_connection_is_kept_for_75_seconds_and_no_longer(
    stack_factory: partial[Stack],
) -> None:
    with (
        stack_factory(workers=1, celery_workers=0, beats=0) as stack,
        ExitStack() as open_until,
    ):
        asking, silent = (connect(stack, open_until) for _ in range(2))
        assert answered(asking)
        assert answered(silent)
        since = time.monotonic()
        time.sleep(KEPT_S - 1.5)
        asked_after_s = time.monotonic() - since
        # If the machine stalled for longer than was left, either result is right.
        assert answered(asking) or asked_after_s > KEPT_S - 0.5
        silent.settimeout(PATIENCE_S)
        assert silent.recv(65_536) == b""
        assert time.monotonic() - since >= KEPT_S - 0.5
