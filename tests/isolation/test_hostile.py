"""Hundreds of hostile requests to real gunicorn: no 5xx, no internals shown, no crash."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from urllib.parse import urlsplit

import pytest
import requests

from devstack.stack import Stack
from tests.api.http_caller import PAYMENTS
from tests.isolation.hostile import GOOD, corpus

REQUESTS_MIN = 500
# It takes some ten seconds on two idle cores.
WHOLE_MAX_S = 30.0
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
def test_no_hostile_request_finds_a_way_in_or_a_word_too_much(stack: Stack) -> None:
    key = stack.issue_key("wall").encode()
    parts = urlsplit(stack.api_url)
    address = str(parts.hostname), int(parts.port or 0)
    hostile = {name: sent.replace(b"KEY", key) for name, sent in corpus().items()}
    children = set(stack.processes["api"].children())
    started = time.monotonic()

    with ThreadPoolExecutor(CONNECTIONS) as threads:
        answers = dict(
            zip(hostile, threads.map(partial(answer_to, address), hostile.values()), strict=True)
        )
    seconds = time.monotonic() - started

    wrong = {n: w for n, sent in hostile.items() if (w := wrong_with(sent, answers[n]))}
    answered = sum(bool(answer) for answer in answers.values())
    print(f"{len(hostile)} hostile requests, {answered} answered, {seconds:.1f} s")  # noqa: T201
    assert wrong == {}
    assert len(hostile) >= REQUESTS_MIN
    assert answered > len(hostile) * 0.9
    assert seconds < WHOLE_MAX_S
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
