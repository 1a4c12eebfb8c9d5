"""Connections are kept for later requests of the same owner, to the checked address."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from flask import Flask

from devstack.supervisor import wait_until
from payments_app.kernel.clock import boot_seconds
from payments_app.kernel.http.egress import Egress, EgressRules
from payments_app.kernel.http.messages import HttpResponse, NoResponse
from tests.docs.pages import the_page_says
from tests.egress.conftest import Making
from tests.egress.receivers import HOOKS, Authority, over_tls
from tests.providers.bare_server import OK, BareServer, Serve, answer_all
from tests.pure.hostile_urls import Names

pytestmark = pytest.mark.usefixtures("app_context")


def post(egress: Egress, url: str, **options: Any) -> HttpResponse | NoResponse:
    return egress.post(url, {}, options.pop("body", b"{}"), **{"timeout_s": 5.0, **options})


def taken(egress: Egress, url: str, **options: Any) -> HttpResponse:
    answer = post(egress, url, **options)
    assert isinstance(answer, HttpResponse), answer
    return answer


def anywhere(names: Names) -> Egress:
    return Egress(EgressRules(allow_private=True), user_agent="Maramoja/test", resolve=names)


def saying(*answers: bytes) -> Callable[[BareServer, socket.socket], None]:
    """Send the answers one after the other on each connection, then close it."""

    def behave(server: BareServer, peer: socket.socket) -> None:
        for answer in answers:
            if not server.read_request(peer):
                return
            peer.sendall(answer)

    return behave


# --- used again -----------------------------------------------------------------------------------


def test_requests_one_after_the_other_share_a_connection(serve: Serve, egress: Egress) -> None:
    server = serve(answer_all)
    bodies = [taken(egress, server.url(), body=b"x" * size).body for size in (0, 2, 70_000)]
    assert bodies == [b"ok"] * 3
    assert (server.connections, len(server.requests)) == (1, 3)


def test_over_tls_too(serve: Serve, guarded: Making, authority: Authority) -> None:
    server = serve(over_tls(authority.certificate(HOOKS), answer_all))
    egress = guarded(server.port, Names("127.0.0.1"))
    for _ in range(3):
        taken(egress, f"https://{HOOKS}:{server.port}/")
    assert (server.connections, len(server.requests)) == (1, 3)


def test_requests_at_once_have_a_connection_each(serve: Serve, egress: Egress) -> None:
    both = threading.Barrier(2)

    def behave(server: BareServer, peer: socket.socket) -> None:
        while server.read_request(peer):
            both.wait(5)
            peer.sendall(OK)

    server = serve(behave)
    results: list[HttpResponse | NoResponse] = []

    def run() -> None:
        with Flask(__name__).app_context():
            results.append(post(egress, server.url()))

    running = [threading.Thread(target=run) for _ in range(2)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    assert [isinstance(result, HttpResponse) for result in results] == [True, True]
    assert server.connections == 2


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\n\r\n",
        b"HTTP/1.1 500 No\r\nContent-Length: 2\r\n\r\nno",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok",
    ],
    ids=["chunks", "no body", "an error", "after an interim answer", "http/1.0 that keeps"],
)
def test_every_whole_answer_leaves_it_fit(serve: Serve, egress: Egress, answer: bytes) -> None:
    server = serve(saying(*[answer] * 3))
    for _ in range(3):
        taken(egress, server.url())
    assert server.connections == 1


# --- not used again -------------------------------------------------------------------------------

ENDED_BY_CLOSING = [
    b"HTTP/1.1 200 OK\r\n\r\nok",
    b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok",
]


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
        *ENDED_BY_CLOSING,
        b"HTTP/1.1 200 OK\r\nContent-Length: 20000\r\n\r\n" + b"x" * 20_000,
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
        OK + OK,
        OK + b"x",
    ],
    ids=["close", "http/1.0", "no length", "cut", "longer than is read", "another protocol",
         "a second answer", "a byte too many"],
)  # fmt: skip
def test_after_any_other_answer_it_is_closed(serve: Serve, egress: Egress, answer: bytes) -> None:
    closed = threading.Semaphore(0)

    def behave(server: BareServer, peer: socket.socket) -> None:
        server.read_request(peer)
        peer.sendall(answer)
        if answer in ENDED_BY_CLOSING:
            peer.shutdown(socket.SHUT_WR)
        peer.settimeout(5)
        # The peer resets the connection if it has not read all.
        with suppress(ConnectionResetError):
            assert peer.recv(1) == b""
        closed.release()

    server = serve(behave)
    for _ in range(2):
        taken(egress, server.url())
        assert closed.acquire(timeout=5)
    assert (server.connections, len(server.requests)) == (2, 2)


def test_what_comes_unasked_answers_no_later_request(serve: Serve, egress: Egress) -> None:
    sent = threading.Event()

    def behave(server: BareServer, peer: socket.socket) -> None:
        server.read_request(peer)
        peer.sendall(OK)
        if server.connections == 1:
            peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged")
        sent.set()
        peer.recv(1)

    server = serve(behave)
    taken(egress, server.url())
    assert sent.wait(5)
    # Over the loopback it has arrived by now, or arrives before the next response is read.
    assert taken(egress, server.url()).body == b"ok"
    assert server.connections == 2


def test_owners_and_hosts_do_not_share_one(serve: Serve) -> None:
    server = serve(answer_all)
    egress = anywhere(Names("127.0.0.1"))
    for owner, host in (("a", "one"), ("b", "one"), ("a", "two"), ("a", "one")):
        taken(egress, f"http://{host}:{server.port}/", owner=owner)
    assert (server.connections, len(server.requests)) == (3, 4)


def test_idle_ones_are_closed_after_a_while(
    serve: Serve, egress: Egress, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = threading.Event()

    def behave(server: BareServer, peer: socket.socket) -> None:
        answer_all(server, peer)
        closed.set()

    the_page_says("docs/webhooks.md", "close one that was idle for 4 seconds")
    server = serve(behave)
    # From before: it is idle as soon as the answer was read.
    idle_since = boot_seconds()
    taken(egress, server.url())
    wait_until(lambda: egress.close_idle() or closed.is_set(), what="it was not closed", limit_s=30)
    # The upper bound is for a busy machine; the wait itself ends at the close.
    assert 3.9 <= boot_seconds() - idle_since < 20
    taken(egress, server.url())
    assert server.connections == 2
    monkeypatch.setattr("payments_app.kernel.http.egress_connection.AGE_MAX_S", 0.0)
    taken(egress, server.url())
    assert server.connections == 3


def test_so_many_are_kept_for_one_and_in_all(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("payments_app.kernel.http.egress_connection.KEPT_MAX", 3)
    open_now = Counting()
    server = serve(open_now)
    egress = anywhere(Names("127.0.0.1"))
    for number in range(6):
        taken(egress, f"http://host-{number}:{server.port}/")
    wait_until(lambda: open_now.count == 3, what="not three are kept", limit_s=5)
    # The newest ones are kept.
    taken(egress, f"http://host-5:{server.port}/")
    assert server.connections == 6


class Counting:
    """Answers all requests, and counts the open connections."""

    def __init__(self) -> None:
        self.count = 0
        self._lock = threading.Lock()

    def __call__(self, server: BareServer, peer: socket.socket) -> None:
        with self._lock:
            self.count += 1
        try:
            answer_all(server, peer)
        finally:
            with self._lock:
                self.count -= 1


@pytest.mark.parametrize("more", [1, 5_000])
@pytest.mark.parametrize("size", [10, 4_000, 8_000, 8_200, 10_000])
def test_what_comes_behind_an_answer_in_its_tls_record_is_no_answer(
    serve: Serve, guarded: Making, authority: Authority, size: int, more: int
) -> None:
    """OpenSSL has decrypted it by then, and the socket is empty."""
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n".encode()
    prepared = b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nprepared".ljust(more, b" ")
    server = serve(over_tls(authority.certificate(HOOKS), saying(head + b"x" * size + prepared)))
    egress = guarded(server.port, Names("127.0.0.1"))
    url = f"https://{HOOKS}:{server.port}/"
    for _ in range(2):
        assert taken(egress, url).body == b"x" * size
    assert server.connections == 2


# --- the guard ------------------------------------------------------------------------------------


def test_a_new_connection_asks_the_guard_and_a_kept_one_stays_where_it_was(
    serve: Serve, guarded: Making, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("payments_app.kernel.http.egress.NAME_KEPT_S", 0.0)
    names = Names("127.0.0.1")
    server = serve(over_tls(authority.certificate(HOOKS), answer_all))
    egress = guarded(server.port, names)
    url = f"https://{HOOKS}:{server.port}/"
    for _ in range(2):
        taken(egress, url)
    assert (server.connections, names.asked) == (1, [HOOKS] * 2)
    names.addresses = ("10.0.0.1",)
    silence = post(egress, url)
    assert isinstance(silence, NoResponse)
    assert (silence.why, silence.sent) == ("address_refused", False)
    assert len(server.requests) == 2


@pytest.mark.allow_hosts(["127.0.0.1", "127.0.0.2"])
def test_a_name_that_leads_elsewhere_is_followed_and_a_kept_connection_is_left(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("payments_app.kernel.http.egress.NAME_KEPT_S", 0.2)
    server, names = serve(answer_all), Names("127.0.0.1")
    egress = anywhere(names)
    url = f"http://receiver:{server.port}/"
    taken(egress, url)
    names.addresses = ("127.0.0.2",)
    wait_until(
        lambda: isinstance(post(egress, url), NoResponse), what="it went on there", limit_s=5
    )
    names.addresses = ("127.0.0.1",)
    wait_until(lambda: isinstance(post(egress, url), HttpResponse), what="it is lost", limit_s=5)


def test_a_name_is_not_looked_up_for_each_request(serve: Serve) -> None:
    server, names = serve(answer_all), Names("127.0.0.1")
    egress = anywhere(names)
    for _ in range(5):
        taken(egress, f"http://receiver:{server.port}/")
    assert names.asked == ["receiver"]


# --- stale ----------------------------------------------------------------------------------------


def test_a_connection_that_the_receiver_closed_meanwhile_is_not_used(
    serve: Serve, egress: Egress
) -> None:
    server = serve(saying(OK))
    for _ in range(3):
        assert taken(egress, server.url()).body == b"ok"
    assert (server.connections, len(server.requests)) == (3, 3)


def test_one_that_is_closed_just_as_it_is_used_loses_nothing(serve: Serve, egress: Egress) -> None:
    def behave(server: BareServer, peer: socket.socket) -> None:
        server.read_request(peer)
        peer.sendall(OK)
        if server.connections == 1:
            # It reads the next request and closes without an answer, as after its idle time.
            server.read_request(peer)
            return
        answer_all(server, peer)

    server = serve(behave)
    taken(egress, server.url(), body=b"1")
    answer = taken(egress, server.url(), body=b"2")
    assert (answer.status, server.connections) == (200, 2)
    assert [request[-1:] for request in server.requests] == [b"1", b"2", b"2"]
    assert server.requests[1] == server.requests[2]


def test_a_new_connection_that_is_closed_without_a_word_is_a_failure(
    serve: Serve, egress: Egress
) -> None:
    def behave(server: BareServer, peer: socket.socket) -> None:
        server.read_request(peer)
        if server.connections == 1:
            peer.sendall(OK)
            server.read_request(peer)

    server = serve(behave)
    taken(egress, server.url())
    silence = post(egress, server.url())
    assert isinstance(silence, NoResponse)
    assert (silence.why, silence.sent) == ("connection_lost", True)
    # Once on the kept connection, once on a new one, and not again.
    assert (server.connections, len(server.requests)) == (2, 3)


@pytest.mark.parametrize("begun", [b"H", b"HTTP/1.1 200 OK\r\nContent-Le"])
def test_once_an_answer_has_begun_nothing_is_sent_again(
    serve: Serve, egress: Egress, begun: bytes
) -> None:
    server = serve(saying(OK, begun))
    taken(egress, server.url())
    silence = post(egress, server.url())
    assert isinstance(silence, NoResponse)
    assert silence.sent
    assert (server.connections, len(server.requests)) == (1, 2)


def test_a_receiver_that_takes_its_time_is_not_sent_it_again(serve: Serve, egress: Egress) -> None:
    def behave(server: BareServer, peer: socket.socket) -> None:
        server.read_request(peer)
        peer.sendall(OK)
        server.read_request(peer)
        peer.recv(1)

    server = serve(behave)
    taken(egress, server.url())
    silence = post(egress, server.url(), timeout_s=1.0)
    assert isinstance(silence, NoResponse)
    assert silence.why == "timeout"
    assert len(server.requests) == 2


def test_nothing_is_sent_again_once_the_lease_is_over(serve: Serve, egress: Egress) -> None:
    over: list[float] = []

    def behave(server: BareServer, peer: socket.socket) -> None:
        server.read_request(peer)
        peer.sendall(OK)
        server.read_request(peer)
        while boot_seconds() < over[0]:
            pass

    server = serve(behave)
    taken(egress, server.url())
    over.append(boot_seconds() + 1.0)
    silence = post(egress, server.url(), leave_before=over[0])
    assert isinstance(silence, NoResponse)
    assert (silence.why, silence.sent) == ("connection_lost", True)
    assert len(server.requests) == 2
