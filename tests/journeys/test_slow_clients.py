"""Clients that are slow, silent or gone: they keep their own connection waiting, nobody else's."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial

import pytest
import requests

from devstack.stack import Stack
from devstack.supervisor import wait_until
from tests.journeys.connections import PATIENCE_S, connect, connections_of

# One process of eight threads, as gunicorn.conf.py has it.
THREADS = 8
# REQUEST_MAX_S there, and what a busy machine needs besides.
REQUEST_ENDED_MAX_S = 20 + 10
# Far less than the second or more that one of them could make the others wait.
PROMPT_S = 1.0

HEAD = b"GET /health/live HTTP/1.1\r\nHost: gateway\r\n"
ENDLESS_BODY = (
    b"POST /api/v1/payments HTTP/1.1\r\nHost: gateway\r\nContent-Type: application/json\r\n"
    b"X-API-Key: %s\r\nContent-Length: 60\r\n\r\n{"
)


@pytest.fixture(scope="module")
def stack(stack_factory: partial[Stack]) -> Iterator[Stack]:
    with stack_factory(workers=1, celery_workers=0, beats=0) as running:
        yield running


@pytest.fixture
def open_until() -> Iterator[ExitStack]:
    with ExitStack() as clients:
        yield clients


def answer_to(peer: socket.socket) -> bytes:
    """All that comes until the gateway closes its side."""
    answer = b""
    while part := peer.recv(65_536):
        answer += part
    return answer


def answered_after_s(stack: Stack) -> float:
    """How long somebody who has nothing to do with them waits."""
    before = time.monotonic()
    answer = requests.get(f"{stack.api_url}/health/live", timeout=PATIENCE_S)
    assert answer.status_code == 200
    return time.monotonic() - before


def drip(peer: socket.socket, stop: threading.Event) -> None:
    """A byte of a header now and then, as long as it is taken."""
    try:
        while not stop.wait(1.0):
            peer.sendall(b"x")
    except OSError:
        return


def send_for_ever(peer: socket.socket) -> None:
    while True:
        peer.sendall(b"x" * 65_536)


def test_who_stalls_is_ended_and_the_threads_are_free_again(
    stack: Stack, open_until: ExitStack
) -> None:
    stop = threading.Event()
    open_until.callback(stop.set)
    in_head, in_body, dripping, never_reading = (
        [connect(stack, open_until) for _ in range(THREADS // 4)] for _ in range(4)
    )
    key = stack.issue_key("stalling").encode()
    for peer in in_head:
        peer.sendall(HEAD)
    for peer in in_body:
        peer.sendall(ENDLESS_BODY % key)
    for peer in dripping:
        peer.sendall(HEAD + b"X-Slow: ")
        threading.Thread(target=drip, args=(peer, stop), daemon=True).start()
    for peer in never_reading:
        peer.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: gateway\r\n\r\n" * 100)
    time.sleep(PROMPT_S)

    assert PROMPT_S < answered_after_s(stack) < REQUEST_ENDED_MAX_S
    for peer in in_head:
        assert answer_to(peer) == b""
    for peer in in_body:
        head, _, body = answer_to(peer).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400 "), head
        assert json.loads(body)["code"] == "body_malformed"
    # A client that does not read does not see its end either.
    wait_until(lambda: connections_of(stack) == [0], what="some are served on", limit_s=PATIENCE_S)
    assert "Traceback" not in stack.processes["api"].log_text()


def test_who_connects_and_is_silent_holds_no_thread(stack: Stack, open_until: ExitStack) -> None:
    silent = [connect(stack, open_until) for _ in range(4 * THREADS)]

    assert answered_after_s(stack) < PROMPT_S
    # It may still come, and then is served.
    silent[0].sendall(HEAD + b"Connection: close\r\n\r\n")
    assert answer_to(silent[0]).startswith(b"HTTP/1.1 200 ")


def test_who_does_not_close_after_the_last_answer_keeps_nobody_waiting(
    stack: Stack, open_until: ExitStack
) -> None:
    leaving = [connect(stack, open_until) for _ in range(40)]
    for peer in leaving:
        peer.sendall(HEAD + b"Connection: close\r\n\r\n")
        assert answer_to(peer).startswith(b"HTTP/1.1 200 ")

    assert answered_after_s(stack) < PROMPT_S


def test_what_is_still_sent_after_the_last_answer_cuts_nothing_off_and_is_bounded(
    stack: Stack, open_until: ExitStack
) -> None:
    peer = connect(stack, open_until)
    peer.sendall(HEAD + b"Connection: close\r\n\r\n" + b"x" * 60_000)
    assert answer_to(peer).startswith(b"HTTP/1.1 200 ")

    flooding = connect(stack, open_until)
    flooding.sendall(HEAD + b"Connection: close\r\n\r\n")
    before = time.monotonic()
    with pytest.raises(OSError, match=r"reset|[Bb]roken pipe"):
        send_for_ever(flooding)
    assert time.monotonic() < before + PROMPT_S
