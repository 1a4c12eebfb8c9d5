"""The most that one receiver can cost: this much time, this many bytes, and no more."""

from __future__ import annotations

import gzip
import socket
import struct
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from flask import Flask

from payments_app.kernel.http.egress import HEAD_BYTES_MAX, Egress, EgressRules
from payments_app.kernel.http.messages import HttpResponse, NoResponse
from tests.docs.pages import the_page_says
from tests.egress.conftest import Making
from tests.egress.receivers import HOOKS, Authority, Flood, endless, over_tls
from tests.providers.bare_server import BareServer, Serve, answering, drip
from tests.providers.stopwatch import Stopwatch
from tests.pure.hostile_urls import Hanging, Names

pytestmark = pytest.mark.usefixtures("app_context")
BYTES_MAX = EgressRules().bytes_max
# The most that the buffers of two kernels hold, beside what was read.
BUFFERS = 24 * 1024
LOOPBACKS = [f"127.0.0.{last}" for last in range(1, 100)]
OK_HEAD = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK_HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
NO_LENGTH = OK_HEAD + b"\r\n"


def timed(
    egress: Egress,
    url: str,
    timeout_s: float,
    body: bytes = b"{}",
    *,
    within_s: float | None = None,
) -> HttpResponse | NoResponse:
    """The outcome; asserts that it came in time, or within `within_s`."""
    with Stopwatch() as watch:
        outcome = egress.post(url, {}, body, timeout_s=timeout_s)
    assert watch.awake_s < (within_s or timeout_s + 1)
    return outcome


@pytest.mark.parametrize(("size", "kept"), [(16_384, 16_384), (16_385, 16_384)])
def test_of_an_answer_16_kib_are_read(serve: Serve, egress: Egress, size: int, kept: int) -> None:
    the_page_says("docs/webhooks.md", "15 seconds or 16 kB of answer")
    body = b"x" * size
    head = OK_HEAD + b"Content-Length: %d\r\n\r\n" % size
    answer = egress.post(serve(answering(head + body)).url(), {}, b"{}", timeout_s=30)
    assert isinstance(answer, HttpResponse)
    assert answer.body == body[:kept]


# --- time ----------------------------------------------------------------------------------------


def test_headers_that_drip_end_at_the_deadline(serve: Serve, egress: Egress) -> None:
    flood = Flood(OK_HEAD, endless(b"X"), 0.15)
    silence = timed(egress, serve(flood).url(), 1.5)
    assert isinstance(silence, NoResponse)
    assert (silence.why, silence.sent) == ("timeout", True)
    assert flood.sent < 20


@pytest.mark.parametrize("head", [NO_LENGTH, CHUNKED, OK_HEAD + b"Content-Length: 1000000\r\n\r\n"])
def test_a_body_that_drips_ends_at_the_deadline_and_leaves_the_status(
    serve: Serve, egress: Egress, head: bytes
) -> None:
    part = b"1\r\nx\r\n" if head == CHUNKED else b"x"
    flood = Flood(head, endless(part), 0.15)
    answer = timed(egress, serve(flood).url(), 1.5)
    assert isinstance(answer, HttpResponse)
    assert (answer.status, answer.truncated) == (200, True)
    assert set(answer.body) == {ord("x")}
    assert len(answer.body) < 20


@pytest.mark.parametrize("head", [OK_HEAD, NO_LENGTH], ids=["headers", "body"])
def test_a_byte_a_second_costs_no_more(serve: Serve, egress: Egress, head: bytes) -> None:
    flood = Flood(head, endless(b"x"), 1)
    timed(egress, serve(flood).url(), 1.2)
    assert flood.sent <= 2


def test_over_tls_too(serve: Serve, guarded: Making, authority: Authority) -> None:
    certificate = authority.certificate(HOOKS)
    server = serve(over_tls(certificate, drip(b"X" * 100, before=OK_HEAD)))
    egress = guarded(server.port, Names("127.0.0.1"))
    silence = timed(egress, f"https://{HOOKS}:{server.port}/", 1.5)
    assert isinstance(silence, NoResponse)
    assert (silence.why, silence.sent) == ("timeout", True)


def test_no_answer_is_a_timeout_after_sending(serve: Serve, egress: Egress) -> None:
    def behave(server: BareServer, peer: socket.socket) -> None:
        server.read_request(peer)
        peer.recv(1)

    silence = timed(egress, serve(behave).url(), 1.5)
    assert isinstance(silence, NoResponse)
    assert (silence.why, silence.sent) == ("timeout", True)


@pytest.mark.parametrize("records", [0, 1], ids=["silent", "drips"])
def test_a_handshake_that_does_not_end_has_sent_nothing(
    serve: Serve, guarded: Making, records: int
) -> None:
    def behave(_server: BareServer, peer: socket.socket) -> None:
        peer.recv(65536)
        # The beginning of a TLS record of 16 kB.
        for byte in struct.pack("!BHH", 22, 0x0303, 16384) + b"\x02" * 100 * records:
            peer.sendall(bytes([byte]))
            time.sleep(0.05)
        peer.recv(1)

    server = serve(behave)
    egress = guarded(server.port, Names("127.0.0.1"))
    silence = timed(egress, f"https://{HOOKS}:{server.port}/", 0.5)
    assert isinstance(silence, NoResponse)
    assert (silence.why, silence.sent) == ("timeout", False)


def test_a_handshake_may_take_longer_than_connecting(
    serve: Serve, guarded: Making, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("payments_app.kernel.http.egress_connection.CONNECT_MAX_S", 0.1)
    slow = over_tls(authority.certificate(HOOKS), answering(OK_HEAD + b"\r\n"))

    def behave(server: BareServer, peer: socket.socket) -> None:
        time.sleep(0.4)
        slow(server, peer)

    server = serve(behave)
    egress = guarded(server.port, Names("127.0.0.1"))
    assert isinstance(timed(egress, f"https://{HOOKS}:{server.port}/", 5), HttpResponse)


def test_a_host_that_takes_no_connection_got_nothing(egress: Egress) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        address = full.getsockname()
        waiting = [socket.socket() for _ in range(4)]
        for one in waiting:
            one.settimeout(0)
            one.connect_ex(address)
        silence = timed(egress, f"http://127.0.0.1:{address[1]}/", 0.4)
        for one in waiting:
            one.close()
    assert isinstance(silence, NoResponse)
    assert (silence.why, silence.sent) == ("timeout", False)


@pytest.mark.allow_hosts(LOOPBACKS)
def test_many_addresses_that_take_no_connection_share_the_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("payments_app.kernel.http.egress_connection.CONNECT_MAX_S", 0.2)
    with socket.create_server(("", 0), backlog=0) as full:
        port = full.getsockname()[1]
        waiting = [socket.socket() for _ in range(4)]
        for one in waiting:
            one.settimeout(0)
            one.connect_ex(("127.0.0.1", port))
        names = Names(*LOOPBACKS)
        egress = Egress(EgressRules(allow_private=True), user_agent="M/t", resolve=names)
        silence = timed(egress, f"http://receiver:{port}/", 0.7)
        for one in waiting:
            one.close()
    assert isinstance(silence, NoResponse)
    assert (silence.why, silence.sent) == ("timeout", False)


@pytest.mark.parametrize(
    ("reads", "late_s"),
    [(False, 0), (True, 0), (False, 0.3)],
    ids=["not at all", "slowly", "after a slow handshake"],
)
def test_a_host_that_does_not_read_ends_at_the_deadline(
    serve: Serve, guarded: Making, authority: Authority, *, reads: bool, late_s: float
) -> None:
    def behave(_server: BareServer, peer: socket.socket) -> None:
        until = time.monotonic() + 6
        while time.monotonic() < until:
            time.sleep(0.01)
            if reads:
                peer.recv(65536)

    secure = over_tls(authority.certificate(HOOKS), behave)

    def after_a_while(server: BareServer, peer: socket.socket) -> None:
        time.sleep(late_s)
        secure(server, peer)

    server = serve(after_a_while)
    egress = guarded(server.port, Names("127.0.0.1"))
    silence = timed(egress, f"https://{HOOKS}:{server.port}/", 2.0, b"x" * 16_000_000)
    assert isinstance(silence, NoResponse)
    assert (silence.why, silence.sent) == ("timeout", True)


def test_a_lookup_is_part_of_the_time() -> None:
    with Hanging() as hang:
        egress = Egress(EgressRules(), user_agent="Maramoja/test", resolve=hang)
        silence = timed(egress, "https://hooks.example.com/", 0.3)
    assert isinstance(silence, NoResponse)
    assert (silence.why, silence.sent) == ("timeout", False)


def test_a_lookup_ends_before_the_rest_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("payments_app.kernel.http.egress.RESOLVE_MAX_S", 0.2)
    with Hanging() as hang:
        egress = Egress(EgressRules(), user_agent="Maramoja/test", resolve=hang)
        silence = timed(egress, "https://hooks.example.com/", 5, within_s=1)
    assert isinstance(silence, NoResponse)
    assert (silence.why, silence.sent) == ("lookup_timeout", False)


# --- bytes ---------------------------------------------------------------------------------------

GIGABYTE = OK_HEAD + b"Content-Length: 1073741824\r\n\r\n"
FLOODS = {
    "a gigabyte": (GIGABYTE, b"x" * 65536),
    "no length": (NO_LENGTH, b"x" * 65536),
    "chunks": (CHUNKED, b"4000\r\n" + b"x" * 0x4000 + b"\r\n"),
    "chunks of a byte": (CHUNKED, b"1\r\nx\r\n" * 10_000),
    "chunks with long extensions": (CHUNKED, b"1;" + b"e" * 60_000 + b"\r\nx\r\n"),
    "zeros before a chunk": (CHUNKED, b"0" * 65536),
    "trailers": (CHUNKED + b"1\r\nx\r\n0\r\n", b"X-A: b\r\n" * 8000),
}
HEAD_FLOODS = {
    "status line": (b"HTTP/1.1 200 ", b"x" * 65536),
    "headers": (OK_HEAD, b"X-A: b\r\n" * 8000),
    "one header": (OK_HEAD + b"X-A: ", b"x" * 65536),
    "continues": (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 3000),
    "continues with headers": (b"", b"HTTP/1.1 100 Continue\r\nX-A: b\r\n\r\n" * 3000),
    "noise": (b"", b"\x00\xff" * 30_000),
    "line ends": (b"", b"\r\n" * 30_000),
}


@pytest.mark.parametrize(("head", "part"), FLOODS.values(), ids=FLOODS)
def test_a_body_without_an_end_is_cut(
    serve: Serve, egress: Egress, head: bytes, part: bytes
) -> None:
    flood = Flood(head, endless(part), 0)
    answer = timed(egress, serve(flood).url(), 5, within_s=2)
    assert isinstance(answer, HttpResponse)
    assert (answer.status, answer.truncated) == (200, True)
    assert len(answer.body) <= BYTES_MAX
    time.sleep(0.1)
    assert flood.sent <= BYTES_MAX + HEAD_BYTES_MAX + BUFFERS


@pytest.mark.parametrize(("head", "part"), HEAD_FLOODS.values(), ids=HEAD_FLOODS)
def test_a_head_without_an_end_is_no_answer(
    serve: Serve, egress: Egress, head: bytes, part: bytes
) -> None:
    flood = Flood(head, endless(part), 0)
    silence = timed(egress, serve(flood).url(), 5, within_s=2)
    assert isinstance(silence, NoResponse)
    assert (silence.why, silence.sent) == ("broken_answer", True)
    time.sleep(0.1)
    assert flood.sent <= BYTES_MAX + HEAD_BYTES_MAX + BUFFERS


@pytest.mark.parametrize(("more", "whole"), [(-1000, True), (500, False)])
def test_the_bound_on_all_that_is_read_is_exact(serve: Serve, *, more: int, whole: bool) -> None:
    rules = EgressRules(allow_private=True, bytes_max=1000)
    size = HEAD_BYTES_MAX + rules.bytes_max + more
    head = OK_HEAD + b"X-A: " + b"x" * (size - len(OK_HEAD) - 9) + b"\r\n\r\n"
    egress = Egress(rules, user_agent="Maramoja/test")
    assert isinstance(timed(egress, serve(answering(head)).url(), 5), HttpResponse) is whole


@pytest.mark.parametrize("size", [BYTES_MAX - 1, BYTES_MAX, BYTES_MAX + 1])
@pytest.mark.parametrize("told", [True, False])
def test_the_cut_is_exact(serve: Serve, egress: Egress, size: int, *, told: bool) -> None:
    length = b"Content-Length: %d\r\n" % size if told else b""
    raw = OK_HEAD + length + b"\r\n" + b"x" * size
    answer = timed(egress, serve(answering(raw)).url(), 5)
    assert isinstance(answer, HttpResponse)
    assert (len(answer.body), answer.truncated) == (min(size, BYTES_MAX), size > BYTES_MAX)


def test_a_compressed_answer_is_not_unfolded(serve: Serve, egress: Egress) -> None:
    bomb = gzip.compress(bytes(10_000_000))
    head = b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(bomb)
    answer = timed(egress, serve(answering(OK_HEAD + head + bomb)).url(), 5)
    assert isinstance(answer, HttpResponse)
    assert answer.body == bomb[:BYTES_MAX]


# --- answers that don't end well --------------------------------------------------------------------


def reset(server: BareServer, peer: socket.socket) -> None:
    server.read_request(peer)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def reset_in_the_body(server: BareServer, peer: socket.socket) -> None:
    server.read_request(peer)
    peer.sendall(OK_HEAD + b"Content-Length: 10\r\n\r\n12345")
    time.sleep(0.1)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


BROKEN = {
    "closed": (answering(b""), "connection_lost"),
    "reset": (reset, "connection_lost"),
    "cut status": (answering(b"HTTP/1.1 202 Acc"), "broken_answer"),
    "cut head": (answering(b"HTTP/1.1 202 Accepted\r\nContent-Le"), "broken_answer"),
    "not http": (answering(b"220 smtp.example.com ESMTP\r\n"), "broken_answer"),
    "http of long ago": (answering(b"<html>hello</html>"), "broken_answer"),
    "status of no number": (answering(b"HTTP/1.1 abc OK\r\n\r\n"), "broken_answer"),
    "status of two digits": (answering(b"HTTP/1.1 20 OK\r\n\r\n"), "broken_answer"),
    "only continues": (answering(b"HTTP/1.1 100 Continue\r\n\r\n" * 3), "connection_lost"),
}


@pytest.mark.parametrize(("behave", "why"), BROKEN.values(), ids=BROKEN)
def test_a_lost_or_broken_answer_may_have_been_taken(
    serve: Serve, egress: Egress, behave: Callable[[BareServer, socket.socket], None], why: str
) -> None:
    server = serve(behave)
    silence = timed(egress, server.url(), 2)
    assert isinstance(silence, NoResponse)
    assert (silence.why, silence.sent) == (why, True)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "behave",
    [
        reset_in_the_body,
        answering(OK_HEAD + b"Content-Length: 10\r\n\r\n12345"),
        answering(CHUNKED + b"5\r\n12345\r\n"),
        answering(CHUNKED + b"5\r\n12345\r\nzz\r\n"),
    ],
    ids=["reset", "cut", "cut chunks", "bad chunk"],
)
def test_a_status_stands_whatever_becomes_of_the_body(
    serve: Serve, egress: Egress, behave: Callable[[BareServer, socket.socket], None]
) -> None:
    answer = timed(egress, serve(behave).url(), 2)
    assert isinstance(answer, HttpResponse)
    assert (answer.status, answer.body, answer.truncated) == (200, b"12345", True)


def test_a_whole_answer_comes_back_whole(serve: Serve, egress: Egress) -> None:
    raw = b"HTTP/1.1 429 Slow\r\nRetry-After: 7\r\nContent-Length: 3\r\n\r\nnot"
    answer = timed(egress, serve(answering(raw)).url(), 2)
    assert isinstance(answer, HttpResponse)
    assert (answer.status, answer.body, answer.truncated) == (429, b"not", False)
    assert answer.headers["retry-after"] == "7"
    assert 0 < answer.elapsed_s < 2


def test_a_continue_comes_before_the_answer(serve: Serve, egress: Egress) -> None:
    raw = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n"
    answer = timed(egress, serve(answering(raw)).url(), 2)
    assert isinstance(answer, HttpResponse)
    assert (answer.status, answer.truncated) == (204, False)


@pytest.mark.parametrize(
    ("names", "why"),
    [(Names(), "address_refused"), (Names("127.0.0.1"), "connection_refused")],
    ids=["no such name", "nobody there"],
)
def test_what_never_left_is_known_not_to_have_left(names: Names, why: str) -> None:
    egress = Egress(EgressRules(allow_private=True), user_agent="M/t", resolve=names)
    with socket.socket() as deaf:
        # It is bound and does not listen, so nobody else can either.
        deaf.bind(("127.0.0.1", 0))
        silence = timed(egress, f"http://receiver:{deaf.getsockname()[1]}/", 2)
    assert isinstance(silence, NoResponse)
    assert (silence.why, silence.sent) == (why, False)


def test_many_threads_each_get_their_own_answer(serve: Serve, egress: Egress) -> None:
    def echo(server: BareServer, peer: socket.socket) -> None:
        path = server.read_request(peer).split(b" ")[1]
        peer.sendall(OK_HEAD + b"Content-Length: %d\r\n\r\n%s" % (len(path), path))

    server = serve(echo)
    app = Flask(__name__)

    def ask(number: int) -> HttpResponse | NoResponse:
        with app.app_context():
            return egress.post(f"http://receiver:{server.port}/{number}", {}, b"{}", timeout_s=30)

    with ThreadPoolExecutor(20) as pool:
        for number, answer in enumerate(pool.map(ask, range(200))):
            assert isinstance(answer, HttpResponse), answer
            assert answer.body == b"/%d" % number


# --- what comes before the answer --------------------------------------------------------------


EARLY = b"HTTP/1.1 103 Early Hints\r\nLink: </x>; rel=preload\r\n\r\n"


@pytest.mark.parametrize("before", [EARLY, EARLY * 3, b"HTTP/1.1 100 Continue\r\n\r\n" + EARLY])
def test_an_interim_answer_is_not_the_answer(serve: Serve, egress: Egress, before: bytes) -> None:
    server = serve(answering(before + OK_HEAD + b"Content-Length: 2\r\n\r\nok"))
    answer = egress.post(server.url(), {}, b"{}")
    assert isinstance(answer, HttpResponse)
    assert (answer.status, answer.body) == (200, b"ok")


def test_interim_answers_end(serve: Serve, egress: Egress) -> None:
    silence = egress.post(serve(answering(EARLY * 50 + OK_HEAD + b"\r\n")).url(), {}, b"{}")
    assert isinstance(silence, NoResponse)
