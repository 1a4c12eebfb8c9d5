"""One HTTP exchange with servers that drip, reset, send wrong answers and hang."""

from __future__ import annotations

import gzip
import socket
import struct
import threading
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from flask import Flask

from devstack.supervisor import wait_until
from payments_app.kernel import tracing
from payments_app.kernel.http.messages import HttpRequest, HttpResponse, NoResponse
from payments_app.kernel.http.response_head import HEAD_BYTES_MAX
from payments_app.kernel.http.transport import RESPONSE_BYTES_MAX, Transport
from payments_app.kernel.tracing import Kind
from tests.providers.bare_server import OK, BareServer, Serve, answer_all, answering, drip
from tests.providers.leaping import LeapingClock
from tests.providers.stopwatch import Stopwatch

pytestmark = pytest.mark.usefixtures("app_context")


def get(transport: Transport, url: str, *, timeout_s: float = 5.0) -> HttpResponse | NoResponse:
    return transport.unleased().send(HttpRequest("GET", url, {}, timeout_s=timeout_s))


# --- complete answers -----------------------------------------------------------------------


def test_a_whole_answer_comes_back_whole(serve: Serve, transport: Transport) -> None:
    raw = b"HTTP/1.1 429 Slow\r\nRetry-After: 7\r\nContent-Length: 3\r\n\r\nnot"
    answer = get(transport, serve(answering(raw)).url())
    assert isinstance(answer, HttpResponse)
    assert (answer.status, answer.body, answer.truncated) == (429, b"not", False)
    assert answer.headers["retry-after"] == "7"
    assert 0 < answer.elapsed_s < 5


def test_calls_to_one_host_share_a_connection(serve: Serve, transport: Transport) -> None:
    server = serve(answer_all)
    for _ in range(3):
        assert isinstance(get(transport, server.url()), HttpResponse)
    assert (server.connections, len(server.requests)) == (1, 3)


def test_an_empty_post_has_a_length_and_our_user_agent(serve: Serve, transport: Transport) -> None:
    server = serve(answer_all)
    call = HttpRequest(
        "POST", server.url("/token/"), {"user-agent": "python-requests/2", "X-A": "b"}
    )
    transport.unleased().send(call)
    head = server.requests[0].decode().lower()
    assert "content-length: 0\r\n" in head
    assert "user-agent: maramoja/test\r\n" in head
    assert "x-a: b\r\n" in head
    assert "accept-encoding: identity\r\n" in head
    assert "python-requests" not in head


def test_the_provider_is_told_nothing_of_our_trace(serve: Serve, transport: Transport) -> None:
    server = serve(answer_all)
    told = f"00-{'1' * 32}-{'2' * 16}-01"
    with tracing.span("step", Kind.INTERNAL, parent=told):
        assert isinstance(get(transport, server.url()), HttpResponse)
    head = server.requests[0].decode().lower()
    assert "traceparent" not in head
    assert "1" * 32 not in head


def test_a_redirect_is_an_answer_and_is_not_followed(serve: Serve, transport: Transport) -> None:
    elsewhere = serve(answer_all)
    raw = f"HTTP/1.1 302 Found\r\nLocation: {elsewhere.url()}\r\nContent-Length: 0\r\n\r\n"
    answer = get(transport, serve(answering(raw.encode())).url())
    assert isinstance(answer, HttpResponse)
    assert answer.status == 302
    assert elsewhere.connections == 0


def test_cookies_are_not_kept(serve: Serve, transport: Transport) -> None:
    def behave(server: BareServer, peer: socket.socket) -> None:
        while server.read_request(peer):
            peer.sendall(b"HTTP/1.1 200 OK\r\nSet-Cookie: a=b\r\nContent-Length: 0\r\n\r\n")

    server = serve(behave)
    get(transport, server.url())
    get(transport, server.url())
    assert b"cookie" not in server.requests[1].lower()


def test_the_environment_sets_no_proxy(
    serve: Serve, transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy, server = serve(answer_all), serve(answer_all)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, proxy.url())
    assert isinstance(get(transport, server.url()), HttpResponse)
    assert proxy.connections == 0


def test_many_threads_each_get_their_own_answer(serve: Serve, transport: Transport) -> None:
    def echo(server: BareServer, peer: socket.socket) -> None:
        while request := server.read_request(peer):
            path = request.split(b" ")[1]
            peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(path), path))

    server = serve(echo)
    # One app for all threads: making an app compiles its routes, which threads of CPython 3.11
    # can't do at once (github.com/python/cpython/issues/106905).
    app = Flask(__name__)

    def ask(number: int) -> HttpResponse | NoResponse:
        with app.app_context():
            return get(transport, server.url(f"/{number}"), timeout_s=30)

    with ThreadPoolExecutor(40) as pool:
        for number, answer in enumerate(pool.map(ask, range(400))):
            assert isinstance(answer, HttpResponse), answer
            assert answer.body == b"/%d" % number


# --- heads of any shape, bodies under a coding ---------------------------------------------------


@pytest.mark.parametrize("lines", [101, 1_000, 5_000])
def test_a_head_may_have_any_number_of_lines(
    serve: Serve, transport: Transport, lines: int
) -> None:
    fields = b"".join(b"X-%d: %d\r\n" % (n, n) for n in range(lines))
    server = serve(answering(b"HTTP/1.1 200 OK\r\n" + fields + b"Content-Length: 2\r\n\r\nok"))
    answer = get(transport, server.url())
    assert isinstance(answer, HttpResponse)
    assert (answer.body, len(answer.headers)) == (b"ok", lines + 1)


@pytest.mark.parametrize("announced", [b"", b"HTTP/1.1 103 Early Hints\r\n"])
def test_a_head_has_a_bound_on_its_bytes(
    serve: Serve, transport: Transport, announced: bytes
) -> None:
    fields = b"X-A: b\r\n" * (HEAD_BYTES_MAX // 8)
    raw = (announced or b"HTTP/1.1 200 OK\r\n") + fields + b"\r\nHTTP/1.1 200 OK\r\n\r\n"
    silence = get(transport, serve(answering(raw)).url())
    assert isinstance(silence, NoResponse)
    assert (silence.why, silence.sent) == ("broken_answer", True)


@pytest.mark.parametrize(
    ("head", "body"),
    [
        (b"content-length:2", b"ok"),
        (b"Content-Length : 2", b"ok"),
        (b"Content-Length: 2\r\nContent-Length: 2", b"ok"),
        (b"Content-Length: 2, 2", b"ok"),
        (b"what is this\r\n: x\r\nContent-Length: 2", b"ok"),
        (b"X-Folded: a\r\n  b\r\nContent-Length: 2", b"ok"),
        (b"Transfer-Encoding: CHUNKED", b"2;a=b\r\nok\r\n0\r\nX-Trailer: a\r\n\r\n"),
        (b"Transfer-Encoding: identity\r\nContent-Length: 2", b"ok"),
    ],
)
def test_the_body_is_framed_as_its_head_says(
    serve: Serve, transport: Transport, head: bytes, body: bytes
) -> None:
    def behave(server: BareServer, peer: socket.socket) -> None:
        while server.read_request(peer):
            peer.sendall(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n\r\n" + body)

    server = serve(behave)
    for _ in range(2):
        answer = get(transport, server.url())
        assert isinstance(answer, HttpResponse)
        assert answer.body == b"ok"
    assert server.connections == 1


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3",
        b"HTTP/1.1 200 OK\r\nContent-Length: two",
        b"HTTP/1.1 200 OK\r\nContent-Length: -2",
        b"HTTP/1.1 200 OK\r\nContent-Length: " + b"2" * 5000,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked",
        b"HTTP/1.1 20 OK\r\nContent-Length: 2",
        b"HTTP/2.0 200 OK\r\nContent-Length: 2",
    ],
)
def test_a_head_with_two_readings_or_none_is_a_broken_answer(
    serve: Serve, transport: Transport, head: bytes
) -> None:
    silence = get(transport, serve(answering(head + b"\r\n\r\nok!")).url())
    assert isinstance(silence, NoResponse)
    assert (silence.why, silence.sent) == ("broken_answer", True)


@pytest.mark.parametrize(
    ("version", "connection", "connections"),
    [
        (b"1.1", b"keep-alive", 1),
        (b"1.1", b"Close", 2),
        (b"1.0", b"x", 2),
        (b"1.0", b"Keep-Alive", 1),
    ],
)
def test_a_connection_lives_as_long_as_its_answer_says(
    serve: Serve, transport: Transport, version: bytes, connection: bytes, connections: int
) -> None:
    raw = b"HTTP/%s 200 OK\r\nConnection: %s\r\nContent-Length: 2\r\n\r\nok" % (
        version,
        connection,
    )

    def behave(server: BareServer, peer: socket.socket) -> None:
        while server.read_request(peer):
            peer.sendall(raw)

    server = serve(behave)
    for _ in range(2):
        assert isinstance(get(transport, server.url()), HttpResponse)
    assert server.connections == connections


def coded(coding: str, body: bytes) -> Callable[[BareServer, socket.socket], None]:
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: {coding}\r\nContent-Length: {len(body)}\r\n\r\n"
    return answering(head.encode() + body)


# Without a timestamp: the test's id contains it, and must be the same in each process.
GZIPPED = gzip.compress(b'{"status":"PENDING"}', mtime=0)


@pytest.mark.parametrize(
    ("coding", "body", "unfolds_to", "whole"),
    [
        ("gzip", GZIPPED, b'{"status":"PENDING"}', True),
        ("gzip", b"", b"", True),
        ("gzip", GZIPPED[:-1], b'{"status":"PENDING"}', False),
        ("gzip", GZIPPED[:-8] + b"\0" * 8, b"", False),
        ("gzip", b'{"status":"PENDING"}', b"", False),
        ("gzip, gzip", gzip.compress(GZIPPED, mtime=0), b'{"status":"PENDING"}', True),
        ("deflate", zlib.compress(b"{}"), b"{}", True),
        ("deflate", zlib.compress(b"{}")[:-1], b"{}", False),
        # An unknown coding is left as it is.
        ("br", b"{}", b"{}", True),
        ("utf-8", b"{}", b"{}", True),
        # A thousand times as long as its compressed form.
        ("gzip", gzip.compress(b" " * 10_000_000, mtime=0), b" " * RESPONSE_BYTES_MAX, False),
        ("deflate", zlib.compress(b" " * 10_000_000), b" " * RESPONSE_BYTES_MAX, False),
        ("gzip", GZIPPED * 1_000, b'{"status":"PENDING"}' * 1_000, True),
    ],
)
def test_a_compressed_body_is_unfolded_within_the_bound(
    serve: Serve, transport: Transport, coding: str, body: bytes, unfolds_to: bytes, *, whole: bool
) -> None:
    answer = get(transport, serve(coded(coding, body)).url())
    assert isinstance(answer, HttpResponse)
    assert (answer.body, answer.truncated) == (unfolds_to, not whole)


# --- answers that don't end well --------------------------------------------------------------


def test_an_endless_body_is_cut_and_its_connection_dropped(serve: Serve) -> None:
    transport = Transport(user_agent="Maramoja/test", response_bytes_max=1000)

    def behave(server: BareServer, peer: socket.socket) -> None:
        server.read_request(peer)
        peer.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            peer.sendall(b"400\r\n" + b"x" * 1024 + b"\r\n")

    server = serve(behave)
    for _ in range(2):
        answer = get(transport, server.url())
        assert isinstance(answer, HttpResponse)
        assert (len(answer.body), answer.truncated) == (1000, True)
    assert server.connections == 2


@pytest.mark.parametrize("size", [999, 1000, 1001])
def test_the_cut_is_exact(serve: Serve, size: int) -> None:
    transport = Transport(user_agent="Maramoja/test", response_bytes_max=1000)
    raw = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + b"x" * size
    answer = get(transport, serve(answering(raw)).url())
    assert isinstance(answer, HttpResponse)
    assert (len(answer.body), answer.truncated) == (min(size, 1000), size > 1000)


DRIPS = {
    "nothing": drip(b"", before=b""),
    "headers": drip(b"HTTP/1.1 200 OK\r\n" + b"X-A: b\r\n" * 50),
    "body": drip(b"x" * 100, before=b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n"),
    "chunks": drip(
        b"1\r\nx\r\n" * 50, before=b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    ),
    "no length": drip(b"x" * 100, before=b"HTTP/1.1 200 OK\r\n\r\n"),
}


@pytest.mark.parametrize("part", ["headers", "body", "chunks", "no length"])
def test_a_dripping_answer_ends_at_the_deadline(
    serve: Serve, transport: Transport, part: str
) -> None:
    with Stopwatch() as watch:
        silence = get(transport, serve(DRIPS[part]).url(), timeout_s=0.5)
    assert isinstance(silence, NoResponse)
    assert (silence.why, silence.sent) == ("timeout", True)
    assert watch.elapsed_s >= 0.5
    assert watch.awake_s < 1.5


def test_no_answer_at_all_is_a_timeout_after_sending(serve: Serve, transport: Transport) -> None:
    def behave(server: BareServer, peer: socket.socket) -> None:
        server.read_request(peer)
        peer.recv(1)

    silence = get(transport, serve(behave).url(), timeout_s=0.3)
    assert isinstance(silence, NoResponse)
    assert (silence.why, silence.sent) == ("timeout", True)


def test_a_host_that_does_not_read_ends_at_the_deadline(serve: Serve, transport: Transport) -> None:
    over = threading.Event()

    def behave(_server: BareServer, _peer: socket.socket) -> None:
        over.wait(30)

    server = serve(behave)
    call = HttpRequest("POST", server.url(), {}, b"x" * 20_000_000, timeout_s=0.3)
    with Stopwatch() as watch:
        silence = transport.unleased().send(call)
    over.set()
    assert isinstance(silence, NoResponse)
    assert (silence.why, silence.sent) == ("timeout", True)
    assert silence.elapsed_s - watch.stood_s < 0.95


def reset(server: BareServer, peer: socket.socket) -> None:
    server.read_request(peer)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@pytest.mark.parametrize(
    ("behave", "why"),
    [
        (reset, "connection_lost"),
        (answering(b""), "connection_lost"),
        (answering(b"HTTP/1.1 202 Accepted\r\n"), "broken_answer"),
        (answering(b"HTTP/1.1 202 Accepted\r\nContent-Le"), "broken_answer"),
        (answering(b"220 smtp.example.com ESMTP\r\n"), "broken_answer"),
        (answering(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n12345"), "broken_answer"),
        (
            answering(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n12345\r\n"),
            "broken_answer",
        ),
        (
            answering(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"),
            "broken_answer",
        ),
    ],
    ids=[
        "reset",
        "closed",
        "cut status",
        "cut head",
        "not http",
        "cut body",
        "cut chunks",
        "bad chunk",
    ],
)
def test_a_lost_or_broken_answer_may_have_had_an_effect(
    serve: Serve,
    transport: Transport,
    behave: Callable[[BareServer, socket.socket], None],
    why: str,
) -> None:
    server = serve(behave)
    silence = get(transport, server.url())
    assert isinstance(silence, NoResponse)
    assert (silence.why, silence.sent) == (why, True)
    assert len(server.requests) == 1


# --- proven not to have left ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "headers", "why"),
    [
        ("http://127.0.0.1:{port}/", {}, "connection_refused"),
        ("http://nowhere.invalid/", {}, "name_unknown"),
        ("not an address", {}, "request_unsendable"),
        ("ftp://127.0.0.1/", {}, "request_unsendable"),
        ("http://127.0.0.1:{port}/", {"X-A": "b\r\nX-C: d"}, "request_unsendable"),
    ],
)
def test_what_never_left_is_known_not_to_have_left(
    transport: Transport, url: str, headers: dict[str, str], why: str
) -> None:
    with socket.socket() as deaf:
        # It is bound and does not listen, so nobody else can either.
        deaf.bind(("127.0.0.1", 0))
        call = HttpRequest("POST", url.format(port=deaf.getsockname()[1]), headers, b"{}")
        silence = transport.unleased().send(call)
    assert isinstance(silence, NoResponse)
    assert (silence.why, silence.sent) == (why, False)


def test_a_host_that_takes_no_connection_got_nothing(transport: Transport) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        address = full.getsockname()
        waiting = [socket.socket() for _ in range(4)]
        for one in waiting:
            one.settimeout(0)
            one.connect_ex(address)
        silence = get(transport, f"http://127.0.0.1:{address[1]}/", timeout_s=0.4)
        for one in waiting:
            one.close()
    assert isinstance(silence, NoResponse)
    assert (silence.why, silence.sent) == ("timeout", False)


def test_a_host_that_speaks_no_tls_got_nothing(serve: Serve, transport: Transport) -> None:
    server = serve(answering(b"HTTP/1.1 400 Bad Request\r\n\r\n"))
    silence = get(transport, server.url().replace("http:", "https:"), timeout_s=1)
    assert isinstance(silence, NoResponse)
    assert not silence.sent
    assert server.requests == []


# --- keep-alive --------------------------------------------------------------------------------


def test_a_connection_closed_while_idle_is_replaced(serve: Serve, transport: Transport) -> None:
    server = serve(answering(OK))
    get(transport, server.url())
    wait_until(lambda: server.closed == 1, what="it is not closed", limit_s=30)
    assert isinstance(get(transport, server.url()), HttpResponse)
    assert server.connections == 2


def test_a_connection_that_was_idle_for_long_is_replaced(serve: Serve, clock: LeapingClock) -> None:
    transport = Transport(user_agent="Maramoja/test", idle_max_s=20)
    server = serve(answer_all)
    for pause_s in (0, 5, 20):
        clock.leap(pause_s)
        assert isinstance(get(transport, server.url()), HttpResponse)
    assert server.connections == 2


def test_a_connection_closed_under_a_request_is_ambiguous_and_not_retried(
    serve: Serve, transport: Transport
) -> None:
    def behave(server: BareServer, peer: socket.socket) -> None:
        server.read_request(peer)
        peer.sendall(OK)
        server.read_request(peer)

    server = serve(behave)
    assert isinstance(get(transport, server.url()), HttpResponse)
    silence = transport.unleased().send(HttpRequest("POST", server.url(), {}, b"{}"))
    assert isinstance(silence, NoResponse)
    assert (silence.why, silence.sent) == ("connection_lost", True)
    time.sleep(0.05)
    assert (server.connections, len(server.requests)) == (1, 2)


def test_a_late_answer_is_never_read_as_the_next_ones(serve: Serve, transport: Transport) -> None:
    given_up = threading.Event()

    def behave(server: BareServer, peer: socket.socket) -> None:
        path = server.read_request(peer).split(b" ")[1]
        if path == b"/slow":
            given_up.wait(30)
        peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n" + path)

    server = serve(behave)
    assert isinstance(get(transport, server.url("/slow"), timeout_s=0.2), NoResponse)
    given_up.set()
    wait_until(lambda: server.closed == 1, what="the late answer is not sent", limit_s=30)
    answer = get(transport, server.url("/next"))
    assert isinstance(answer, HttpResponse)
    assert answer.body == b"/next"
