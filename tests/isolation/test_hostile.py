"""Hundreds of hostile requests to real gunicorn: no 5xx, no internals shown, no crash."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from statistics import mean
from urllib.parse import urlsplit

import psutil
import pytest
import requests

from devstack.stack import Stack
from tests.api.http_caller import PAYMENTS
from tests.isolation.hostile import GOOD, corpus, request

REQUESTS_MIN = 500
# The processor time that the API uses for all of them, which does not depend on who else runs: some
# three seconds.
WHOLE_MAX_S = 10.0
# How many times as long as an honest request a hostile one takes, at most and on average. Both are
# sent at the same time, one honest one after so many others.
SLOWER_MAX = 3.0
HONEST_EACH = 10
CONNECTIONS = 8
# What would show our internals. Swagger UI's page and openapi.json are not requested here.
INSIDE = re.compile(
    rb"Traceback|psycopg|sqlalchemy|werkzeug|gunicorn|marshmallow|orjson|redis|celery"
    rb"|\.py\b|site-packages|/(?:home|usr)/|SELECT |INSERT |RuntimeError|ValueError|maramoja_",
    re.IGNORECASE,
)
_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3}) ")


@pytest.fixture(scope="module")
def stack(stack_factory: partial[Stack]) -> Iterator[Stack]:
    settings = {"RATE_LIMIT_DEFAULT": "1000000 per minute"}
    with stack_factory(workers=2, celery_workers=0, beats=0, settings=settings) as running:
        yield running


def answer_to(address: tuple[str, int], sent: bytes) -> bytes:
    """All bytes until the server closes or resets the connection."""
    answer = b""
    with socket.create_connection(address, timeout=10) as peer:
        try:
            peer.sendall(sent)
            peer.shutdown(socket.SHUT_WR)
            while part := peer.recv(65536):
                answer += part
        except (ConnectionResetError, BrokenPipeError):
            # It answered before all was sent, or closed without an answer: both are allowed.
            pass
    return answer


def timed_answer_to(address: tuple[str, int], sent: bytes) -> tuple[bytes, float]:
    """The answer, and the seconds until its end."""
    started = time.monotonic()
    answer = answer_to(address, sent)
    return answer, time.monotonic() - started


def processor_seconds(pids: set[int]) -> float:
    """What these processes have used so far."""
    times = [psutil.Process(pid).cpu_times() for pid in pids]
    return sum(one.user + one.system for one in times)


def wrong_with(sent: bytes, answer: bytes) -> str | None:
    """What is wrong with the answer, or None."""
    statuses = [int(status) for status in _STATUS.findall(answer)]
    if answer and not statuses:
        return f"no HTTP: {answer[:200]!r}"
    if bad := [status for status in statuses if status >= 500]:
        return f"{bad}: {answer[-300:]!r}"
    told = [found[0] for found in INSIDE.finditer(answer) if found[0] not in sent]
    if told:
        return f"it tells {told}: {answer[-300:]!r}"
    if answer and b"nosniff" not in answer:
        return f"without our headers: {answer[:300]!r}"
    return None


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_no_hostile_request_finds_a_way_in_or_a_word_too_much(stack: Stack) -> None:
    key = stack.issue_key("wall").encode()
    parts = urlsplit(stack.api_url)
    address = str(parts.hostname), int(parts.port or 0)
    hostile = {name: sent.replace(b"KEY", key) for name, sent in corpus().items()}
    children = set(stack.processes["api"].children())
    used_before = processor_seconds(children)
    honest = request(PAYMENTS.encode(), body=GOOD).replace(b"KEY", key)
    sent_in_order: list[tuple[str | None, bytes]] = []
    for number, one in enumerate(hostile.items()):
        sent_in_order += [one] if number % HONEST_EACH else [(None, honest), one]

    with ThreadPoolExecutor(CONNECTIONS) as threads:
        outcomes = list(
            threads.map(partial(timed_answer_to, address), [sent for _, sent in sent_in_order])
        )
    seconds = processor_seconds(children) - used_before

    named = [(name, *outcome) for (name, _), outcome in zip(sent_in_order, outcomes, strict=True)]
    answers = {name: answer for name, answer, _ in named if name is not None}
    assert {answer[:12] for name, answer, _ in named if name is None} == {b"HTTP/1.1 201"}
    hostile_s = mean(took_s for name, _, took_s in named if name is not None)
    honest_s = mean(took_s for name, _, took_s in named if name is None)
    wrong = {n: w for n, sent in hostile.items() if (w := wrong_with(sent, answers[n]))}
    answered = sum(bool(answer) for answer in answers.values())
    print(f"{len(hostile)} hostile requests, {answered} answered, {seconds:.1f} s")  # noqa: T201
    print(f"{hostile_s * 1000:.1f} ms, honest ones {honest_s * 1000:.1f} ms")  # noqa: T201
    assert wrong == {}
    assert len(hostile) >= REQUESTS_MIN
    assert answered > len(hostile) * 0.9
    assert seconds < WHOLE_MAX_S
    assert hostile_s < SLOWER_MAX * honest_s
    assert set(stack.processes["api"].children()) == children
    alive = requests.post(
        f"{stack.api_url}{PAYMENTS}",
        data=GOOD,
        headers={"X-API-Key": key.decode(), "Content-Type": "application/json"},
        timeout=10,
    )
    assert alive.status_code == 201, alive.text
    assert alive.headers["Server"] == "maramoja"
    log = stack.processes["api"].log_text()
    assert "Traceback" not in log
    assert key.decode() not in log


def test_no_header_says_where_the_app_is(stack: Stack) -> None:
    """By default gunicorn obeys these two from loopback, and answers with its own page."""
    for name in ("SCRIPT_NAME", "PATH_INFO"):
        answer = requests.get(f"{stack.api_url}/health/live", headers={name: "/x"}, timeout=10)
        assert (answer.status_code, answer.json()) == (200, {"status": "ok"}), name
