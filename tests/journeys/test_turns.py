"""Simultaneous connections are spread over gunicorn's processes, and stay so."""

from __future__ import annotations

import time
from contextlib import ExitStack
from functools import partial

from devstack.stack import Stack
from devstack.supervisor import wait_until
from tests.journeys.connections import connect, connections_of

WORKERS = 4
TOGETHER = 64
# A fair share is 16. A process that wakes late gets fewer.
FEWEST = 8
ROUNDS_MAX = 5


def all_serve(stack: Stack) -> bool:
    """Whether each process accepts connections by now: they don't start at the same time."""
    with ExitStack() as tried:
        for _ in range(TOGETHER):
            connect(stack, tried)
            time.sleep(0.005)
        return min(connections_of(stack)) > 0


def shares_of_a_round(stack: Stack) -> list[int]:
    """How many of TOGETHER new connections each process takes."""
    with ExitStack() as kept:
        wait_until(lambda: not any(connections_of(stack)), what="some stay open", limit_s=30)
        clients = [connect(stack, kept) for _ in range(TOGETHER)]
        for client in clients:
            client.sendall(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
            assert client.recv(4096).startswith(b"HTTP/1.1 200 ")
        shares = connections_of(stack)
        assert sum(shares) == TOGETHER
        return shares


def test_connections_that_come_together_are_shared(stack_factory: partial[Stack]) -> None:
    rounds: list[list[int]] = []
    with stack_factory(workers=WORKERS, celery_workers=0, beats=0) as stack:
        wait_until(lambda: all_serve(stack), what="some process takes no connection", limit_s=60)
        # A process that the machine doesn't run meanwhile takes fewer: then once more.
        while len(rounds) < ROUNDS_MAX and (not rounds or min(rounds[-1]) < FEWEST):
            rounds.append(shares_of_a_round(stack))

    assert min(rounds[-1]) >= FEWEST, rounds
