"""Clients that are slow, silent or gone: only their own connections wait."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial

import pytest
import requests

from devstack.stack import Stack
from devstack.supervisor import wait_until
from tests.journeys.connections import PATIENCE_S, connect, connections_of

# One process with eight threads, as in gunicorn.conf.py.
THREADS = 8
# As there, and some more for a busy machine.
REQUEST_MAX_S = 20.0
REQUEST_ENDED_MAX_S = REQUEST_MAX_S + 10
# Far less than the second or more that one of them could make others wait.
PROMPT_S = 1.0
# A machine that does not run the gateway meanwhile delays a round: then once more.
ROUNDS_MAX = 3

# The most connections of a process, in the test that fills it.
FULL = 40
# STOP_KEEPALIVE_LINGER of gunicorn, and some more for a busy machine.
STOP_MAX_S = 2.0 + 8.0
LIMITS = "import runpy; print(runpy.run_path('gunicorn.conf.py')['worker_connections'])"

HEAD = b"GET /health/live HTTP/1.1\r\nHost: gateway\r\n"
ENDLESS_BODY = (
    b"POST /api/v1/payments HTTP/1.1\r\nHost: gateway\r\nContent-Type: application/json\r\n"
    b"X-API-Key: %s\r\nContent-Length: 60000\r\n\r\n{"
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
    """All bytes until the gateway closes its side."""
    answer = b""
    while part := peer.recv(65_536):
        answer += part
    return answer


def answered_after_s(stack: Stack) -> float:
    """How long an unrelated client waits for a response."""
    before = time.monotonic()
    answer = requests.get(f"{stack.api_url}/health/live", timeout=PATIENCE_S)
    assert answer.status_code == 200
    return time.monotonic() - before


def least_s(round_s: Callable[[], float]) -> float:
    """How long the quickest round took; there is another one only after one that was not prompt."""
    rounds: list[float] = []
    while len(rounds) < ROUNDS_MAX and (not rounds or rounds[-1] >= PROMPT_S):
        rounds.append(round_s())
    return min(rounds)


def drip(peer: socket.socket, stop: threading.Event) -> None:
    """Send a byte of a header every second, until the gateway closes."""
    try:
        while not stop.wait(1.0):
            peer.sendall(b"x")
    except OSError:
        return


def is_refused(port: int) -> bool:
    """Whether the port refuses connections."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=PROMPT_S).close()
    except ConnectionRefusedError:
        return True
    return False


def smuggle(peer: socket.socket, stop: threading.Event) -> None:
    """Send whole requests inside a body, one after the other, from just before its time ends."""
    stop.wait(REQUEST_MAX_S - 1)
    try:
        while not stop.wait(0.005):
            peer.sendall(HEAD + b"\r\n")
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
    # Before the connections open: the command takes long, and a silent client is closed.
    key = stack.issue_key("stalling").encode()
    in_head, in_body, dripping, never_reading = (
        [connect(stack, open_until) for _ in range(THREADS // 4)] for _ in range(4)
    )
    for peer in in_head:
        peer.sendall(HEAD)
    for peer in in_body:
        peer.sendall(ENDLESS_BODY % key)
        threading.Thread(target=smuggle, args=(peer, stop), daemon=True).start()
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
        assert b"\r\nConnection: close" in head
        # One response and no other: what was sent later is not read as a request.
        assert json.loads(body)["code"] == "body_malformed"
    # A client that does not read does not see the close either.
    wait_until(lambda: connections_of(stack) == [0], what="some are served on", limit_s=PATIENCE_S)
    assert "Traceback" not in stack.processes["api"].log_text()


def test_who_connects_and_is_silent_holds_no_thread(stack: Stack, open_until: ExitStack) -> None:
    silent: list[socket.socket] = []

    def beside_silent_s() -> float:
        silent[:] = [connect(stack, open_until) for _ in range(4 * THREADS)]
        return answered_after_s(stack)

    assert least_s(beside_silent_s) < PROMPT_S
    # Its request may still be sent, and is then answered.
    silent[0].sendall(HEAD + b"Connection: close\r\n\r\n")
    assert answer_to(silent[0]).startswith(b"HTTP/1.1 200 ")


def test_who_does_not_close_after_the_last_answer_keeps_nobody_waiting(
    stack: Stack, open_until: ExitStack
) -> None:
    def beside_leaving_s() -> float:
        leaving = [connect(stack, open_until) for _ in range(40)]
        for peer in leaving:
            peer.sendall(HEAD + b"Connection: close\r\n\r\n")
            assert answer_to(peer).startswith(b"HTTP/1.1 200 ")
        return answered_after_s(stack)

    assert least_s(beside_leaving_s) < PROMPT_S


def test_what_is_still_sent_after_the_last_answer_cuts_nothing_off_and_is_bounded(
    stack: Stack, open_until: ExitStack
) -> None:
    peer = connect(stack, open_until)
    peer.sendall(HEAD + b"Connection: close\r\n\r\n" + b"x" * 60_000)
    assert answer_to(peer).startswith(b"HTTP/1.1 200 ")

    def cut_off_after_s() -> float:
        flooding = connect(stack, open_until)
        flooding.sendall(HEAD + b"Connection: close\r\n\r\n")
        before = time.monotonic()
        with pytest.raises(OSError, match=r"reset|[Bb]roken pipe"):
            send_for_ever(flooding)
        return time.monotonic() - before

    assert least_s(cut_off_after_s) < PROMPT_S


def test_what_is_no_http_is_told_to_the_log_without_a_word_of_it(
    stack: Stack, open_until: ExitStack
) -> None:
    key = stack.issue_key("misspelling")
    for garbage in (
        f"GET /x HTTP/1.1\r\nX-API-Key {key} 256772123456\r\n\r\n",
        f"X-API-Key: {key}\r\n\r\n",
        f"GET /x?256772123456 {key} HTTP/1.1\r\n\r\n",
        f"GET /x HTTP/1.1\r\nHost: x\r\nExpect: {key}256772123456\r\n\r\n",
        f"GET /x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: {key}\r\n\r\n",
        f"GET /x HTTP/1.1\r\nX-{key}(: x\r\n\r\n",
        f"GET http://[256772123456{key}/x HTTP/1.1\r\n\r\n",
    ):
        peer = connect(stack, open_until)
        peer.sendall(garbage.encode())
        assert answer_to(peer).startswith(b"HTTP/1.1 400 ")

    lines = [json.loads(line) for line in stack.processes["api"].log_text().splitlines()]
    told = [line["event"] for line in lines if "Invalid request" in line["event"]]
    assert "Invalid request from ip=127.0.0.1: InvalidHeader" in told
    text = stack.processes["api"].log_text()
    assert key.rpartition("_")[2] not in text
    assert "256772123456" not in text


def test_a_full_process_has_those_go_that_ask_nothing(stack_factory: partial[Stack]) -> None:
    settings = {"GUNICORN_CMD_ARGS": f"--worker-connections={FULL}"}
    with (
        stack_factory(workers=1, celery_workers=0, beats=0, settings=settings) as stack,
        ExitStack() as kept,
    ):

        def beside_full_s(greeting: bytes) -> float:
            for _ in range(2 * FULL):
                connect(stack, kept).sendall(greeting)
            return answered_after_s(stack)

        for greeting in (b"", HEAD + b"\r\n", HEAD + b"Connection: close\r\n\r\n"):
            assert least_s(partial(beside_full_s, greeting)) < PROMPT_S


def test_who_says_nothing_does_not_keep_it_from_stopping(
    stack_factory: partial[Stack],
) -> None:
    with (
        stack_factory(workers=1, celery_workers=0, beats=0) as stack,
        ExitStack() as kept,
    ):
        silent = [connect(stack, kept) for _ in range(3)]
        silent[0].sendall(HEAD + b"\r\n")
        api, port = stack.processes["api"], int(stack.api_url.rpartition(":")[2])
        time.sleep(PROMPT_S)
        # Opened just before SIGTERM, it is served, though its request comes after SILENT_MAX_S.
        late = connect(stack, kept)
        time.sleep(0.01)
        before = time.monotonic()
        os.kill(api.pid, signal.SIGTERM)
        wait_until(
            lambda: is_refused(port), what="somebody may hang at the door", limit_s=STOP_MAX_S
        )
        late.sendall(HEAD + b"\r\n")
        assert late.recv(65_536).startswith(b"HTTP/1.1 200 ")
        api.terminate()
        assert time.monotonic() < before + STOP_MAX_S
        assert "Traceback" not in api.log_text()


def test_as_many_connections_as_there_may_be_files() -> None:
    told = subprocess.run(
        ["bash", "-c", 'ulimit -n 1024; exec "$0" -c "$1"', sys.executable, LIMITS],
        check=True,
        capture_output=True,
        text=True,
    )
    assert int(told.stdout) < 1024 - 100
