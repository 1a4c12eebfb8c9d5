"""Bodies as a socket sends them, to real gunicorn: cut, chunked, too long, or not chunked at all."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Iterator
from functools import partial
from urllib.parse import urlsplit

import pytest

from devstack.stack import Stack
from devstack.supervisor import wait_until
from tests.journeys.connections import PATIENCE_S, unread_from

GOOD = b'{"amount": 1000, "currency": "EUR", "payer": "256772123456"}'
CHUNKED = "Transfer-Encoding: chunked"


def chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


BODIES = {
    "a good chunked one": (CHUNKED, chunk(GOOD) + b"0\r\n\r\n", b"201"),
    "chunked, and more than 64 KiB": (
        CHUNKED,
        chunk(GOOD) + chunk(b" " * 131_072) + b"0\r\n\r\n",
        b"413",
    ),
    "no size of a chunk": (CHUNKED, b"zz\r\nabc\r\n0\r\n\r\n", b"400"),
    "shorter than it said": (f"Content-Length: {len(GOOD) + 900}", GOOD, b"400"),
}


@pytest.fixture(scope="module")
def stack(stack_factory: partial[Stack]) -> Iterator[Stack]:
    with stack_factory(workers=1, celery_workers=0, beats=0) as running:
        yield running


def answer_to(stack: Stack, path: str, header: str, body: bytes) -> bytes:
    address = urlsplit(stack.api_url)
    # Before the connection opens: the command takes longer than a client may be silent.
    key = stack.issue_key("wire")
    head = (
        f"POST {path} HTTP/1.1\r\nHost: gateway\r\nX-API-Key: {key}\r\n"
        f"Content-Type: application/json\r\nConnection: close\r\n{header}\r\n\r\n"
    )
    with socket.create_connection((address.hostname, address.port), timeout=20) as peer:
        peer.sendall(head.encode() + body)
        peer.shutdown(socket.SHUT_WR)
        answer = b""
        while part := peer.recv(65536):
            answer += part
    return answer


@pytest.mark.parametrize("name", BODIES)
def test_a_body_is_taken_whole_or_not_at_all(stack: Stack, name: str) -> None:
    header, body, status = BODIES[name]

    answer = answer_to(stack, "/api/v1/payments", header, body)

    assert answer.split(b" ", 2)[1] == status, answer
    assert b"Traceback" not in stack.processes["api"].log_text().encode()


# A proxy in front, or WSGI, may change a hyphen to an underscore; names as they are sent.
NEAR_MISSES = ("X-Idempotency-Key", "Idempotency_Key", "X_Idempotency_Key", "idempotncy_key")


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_a_misspelt_idempotency_key_is_refused_by_name(stack: Stack, name: str) -> None:
    header = f"Content-Length: {len(GOOD)}\r\n{name}: 5b0e6f1e-4f4c-4b7e-9d0b-0d9a6d1c2f3a"

    answer = answer_to(stack, "/api/v1/payments", header, GOOD)

    assert answer.split(b" ", 2)[1] == b"400", answer
    document = json.loads(answer.partition(b"\r\n\r\n")[2])
    assert document["code"] == "idempotency_key_invalid"
    assert f"sent as {name.title()}," in document["detail"]


def test_no_other_header_with_an_underscore_is_read(stack: Stack) -> None:
    """WSGI would pass it to the app as the header with a hyphen."""
    lines = ("X_Tenant_Id: another", "Content_Length: 1", "X_API_Key: x", "X-Dropped-Headers: x")
    header = "\r\n".join((f"Content-Length: {len(GOOD)}", *lines))

    answer = answer_to(stack, "/api/v1/payments", header, GOOD)

    assert answer.split(b" ", 2)[1] == b"201", answer


@pytest.mark.parametrize(
    ("version", "status"), [pytest.param("1.1", 400, id="1.1"), pytest.param("1.0", 200, id="1.0")]
)
def test_a_request_of_http_1_1_names_its_host(stack: Stack, version: str, status: int) -> None:
    """RFC 9112, 3.2."""
    address = urlsplit(stack.api_url)
    with socket.create_connection((address.hostname, address.port), timeout=20) as peer:
        peer.sendall(f"GET /health/live HTTP/{version}\r\nConnection: close\r\n\r\n".encode())
        answer = b""
        while part := peer.recv(65536):
            answer += part

    assert answer.split(b" ", 2)[1] == str(status).encode(), answer


def test_a_callback_with_broken_chunks_is_no_alarm(stack: Stack) -> None:
    header, body, _ = BODIES["no size of a chunk"]

    answer = answer_to(stack, "/callbacks/mtn_momo/x", header, body)

    assert answer.split(b" ", 2)[1] == b"200", answer
    assert "Traceback" not in stack.processes["api"].log_text()


def test_a_client_that_hangs_up_in_its_body_is_no_alarm(stack: Stack) -> None:
    address = urlsplit(stack.api_url)
    head = (
        f"POST /api/v1/payments HTTP/1.1\r\nHost: gateway\r\nX-API-Key: {stack.issue_key('hasty')}\r\n"
        "Content-Type: application/json\r\nX-Request-Id: hasty\r\nContent-Length: 500\r\n\r\n"
    )
    with socket.create_connection((address.hostname, address.port), timeout=20) as peer:
        peer.sendall(head.encode() + GOOD)
        mine: int = peer.getsockname()[1]
        wait_until(
            lambda: unread_from(mine) == 0, what="it has not read so far", limit_s=PATIENCE_S
        )
        # Close by a reset instead of an orderly end.
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    api = stack.processes["api"]
    wait_until(
        lambda: '"request_id":"hasty"' in api.log_text(), what="no answer", limit_s=PATIENCE_S
    )
    assert "Traceback" not in api.log_text()
    (line,) = [line for line in api.log_text().splitlines() if '"request_id":"hasty"' in line]
    assert json.loads(line)["status"] == 400
