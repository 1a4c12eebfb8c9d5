"""Where a request is sent, and what is sent: over real sockets, with real certificates."""

from __future__ import annotations

import logging
import socket
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from payments_app.kernel.clock import boot_seconds
from payments_app.kernel.database import EVERY_TENANT, init_database, transaction
from payments_app.kernel.http.egress import Egress, EgressRules, check_url
from payments_app.kernel.http.messages import HttpResponse, LeaseLost, NoResponse
from tests.egress.conftest import Making
from tests.egress.receivers import HOOKS, Authority, over_tls
from tests.providers.bare_server import OK, BareServer, Serve, answer_all, answering
from tests.pure.hostile_urls import FORMS, NOT_PUBLIC, PUBLIC, Names

pytestmark = pytest.mark.usefixtures("app_context")
ENVIRONMENT = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")
TRUST = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE")


class Rebinding(Names):
    """Resolves to another address at each lookup."""

    def __call__(self, host: str, port: int, **_: object) -> list[tuple[Any, ...]]:
        self.asked.append(host)
        return [(0, 0, 0, "", (self.addresses[len(self.asked) - 1], port))]


def secure(server: BareServer, path: str = "/", host: str = HOOKS) -> str:
    return f"https://{host}:{server.port}{path}"


def post(egress: Egress, url: str, **options: Any) -> HttpResponse | NoResponse:
    options.setdefault("timeout_s", 5.0)
    return egress.post(url, options.pop("headers", {}), options.pop("body", b"{}"), **options)


# --- the address ---------------------------------------------------------------------------------


@pytest.mark.parametrize("url", [url for url, _ in FORMS.values()], ids=FORMS)
def test_a_hostile_url_is_refused_at_sending_too(url: str) -> None:
    names = Names(*PUBLIC)
    silence = post(Egress(EgressRules(), user_agent="Maramoja/test", resolve=names), url)
    assert isinstance(silence, NoResponse)
    assert (silence.why, silence.sent) == ("address_refused", False)
    assert names.asked == []


@pytest.mark.parametrize("address", NOT_PUBLIC.values(), ids=NOT_PUBLIC)
def test_a_name_that_came_to_lead_inside_is_refused(address: str) -> None:
    names = Names(*PUBLIC, address)
    egress = Egress(EgressRules(), user_agent="Maramoja/test", resolve=names)
    silence = post(egress, "https://hooks.example.com/")
    assert isinstance(silence, NoResponse)
    assert (silence.why, silence.sent) == ("address_refused", False)


def test_the_address_that_was_checked_is_the_one_used(
    serve: Serve, guarded: Making, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_other_way(*_: object, **__: object) -> None:
        raise AssertionError("looked up a second time")

    monkeypatch.setattr(socket, "getaddrinfo", no_other_way)
    server = serve(over_tls(authority.certificate(HOOKS), answer_all))
    names = Rebinding("127.0.0.1", "10.0.0.1")
    answer = post(guarded(server.port, names), secure(server))
    assert isinstance(answer, HttpResponse)
    assert (names.asked, server.connections) == ([HOOKS], 1)


def test_a_name_bound_anew_after_it_was_saved_gets_nothing(serve: Serve, guarded: Making) -> None:
    server = serve(answer_all)
    names = Rebinding("127.0.0.1", "127.0.0.2")
    egress = guarded(server.port, names)
    check_url(secure(server), EgressRules(ports=(server.port,)), resolve=names)
    silence = post(egress, secure(server))
    assert isinstance(silence, NoResponse)
    assert (silence.why, silence.sent) == ("address_refused", False)
    assert server.connections == 0


def test_one_inner_address_among_public_ones_refuses_all(serve: Serve, guarded: Making) -> None:
    server = serve(answer_all)
    silence = post(guarded(server.port, Names("127.0.0.1", "10.0.0.1")), secure(server))
    assert isinstance(silence, NoResponse)
    assert (silence.why, server.connections) == ("address_refused", 0)


def test_the_next_address_is_tried_when_one_takes_no_connection(serve: Serve) -> None:
    server = serve(answer_all)
    rules = EgressRules(allow_private=True)
    names = Names("::1", "127.0.0.1")
    answer = post(Egress(rules, user_agent="Maramoja/test", resolve=names), server.url())
    assert isinstance(answer, HttpResponse)


def test_plain_http_and_other_ports_are_for_development(serve: Serve, guarded: Making) -> None:
    server = serve(answer_all)
    for url in (server.url(), secure(server).replace(str(server.port), "6379")):
        silence = post(guarded(server.port, Names("127.0.0.1")), url)
        assert isinstance(silence, NoResponse)
        assert silence.why == "address_refused"
    assert server.connections == 0


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_an_answer_and_is_not_followed(
    serve: Serve, egress: Egress, status: int
) -> None:
    inner = serve(answer_all)
    raw = f"HTTP/1.1 {status} Go\r\nLocation: {inner.url()}\r\nContent-Length: 0\r\n\r\n"
    server = serve(answering(raw.encode()))
    answer = post(egress, server.url())
    assert isinstance(answer, HttpResponse)
    assert (answer.status, inner.connections, len(server.requests)) == (status, 0, 1)


# --- TLS -----------------------------------------------------------------------------------------


def test_the_hosts_name_is_asked_for_and_must_be_certified(
    serve: Serve, guarded: Making, authority: Authority
) -> None:
    asked_for: list[str | None] = []
    server = serve(over_tls(authority.certificate(HOOKS), answer_all, asked_for))
    answer = post(guarded(server.port, Names("127.0.0.1")), secure(server))
    assert isinstance(answer, HttpResponse)
    assert asked_for == [HOOKS]
    assert f"Host: {HOOKS}:{server.port}\r\n".encode() in server.requests[0]


@pytest.mark.parametrize(
    ("names", "days"),
    [(("other.example.com",), 1), (("127.0.0.1",), 1), (("*.com",), 1), ((HOOKS,), -1)],
    ids=["another name", "the address", "a wide wildcard", "expired"],
)
def test_a_wrong_certificate_gets_nothing(
    serve: Serve, guarded: Making, authority: Authority, names: tuple[str, ...], days: int
) -> None:
    server = serve(over_tls(authority.certificate(*names, days=days), answer_all))
    silence = post(guarded(server.port, Names("127.0.0.1")), secure(server))
    assert isinstance(silence, NoResponse)
    assert (silence.why, silence.sent) == ("tls_failed", False)
    assert server.requests == []


def test_an_address_is_certified_as_an_address(
    serve: Serve, guarded: Making, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("payments_app.kernel.http.destination.is_public", lambda _: True)
    server = serve(over_tls(authority.certificate("127.0.0.1"), answer_all))
    answer = post(guarded(server.port, Names()), secure(server, host="127.0.0.1"))
    assert isinstance(answer, HttpResponse)


def test_a_host_that_speaks_no_tls_gets_nothing(serve: Serve, guarded: Making) -> None:
    server = serve(answering(b"HTTP/1.1 400 Bad Request\r\n\r\n"))
    silence = post(guarded(server.port, Names("127.0.0.1")), secure(server), timeout_s=1)
    assert isinstance(silence, NoResponse)
    assert not silence.sent
    assert server.requests == []


# --- what is sent --------------------------------------------------------------------------------


def test_the_environment_changes_nothing(
    serve: Serve,
    guarded: Making,
    authority: Authority,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    proxy = serve(answer_all)
    logins = tmp_path / "netrc"
    logins.write_text(f"machine {HOOKS} login me password s3cret\n")
    monkeypatch.setenv("NETRC", str(logins))
    for name in ENVIRONMENT:
        monkeypatch.setenv(name, proxy.url())
    for name in TRUST:
        monkeypatch.setenv(name, str(authority.path))
    server = serve(over_tls(authority.certificate(HOOKS), answer_all))
    assert isinstance(post(guarded(server.port, Names("127.0.0.1")), secure(server)), HttpResponse)
    assert b"authorization" not in server.requests[0].lower()
    untrusting = guarded(server.port, Names("127.0.0.1"), None)
    silence = post(untrusting, secure(server))
    assert isinstance(silence, NoResponse)
    assert silence.why == "tls_failed"
    assert proxy.connections == 0


def test_the_request_is_what_was_given_and_no_more(serve: Serve, egress: Egress) -> None:
    server = serve(answer_all)
    url = f"http://hooks.example.com:{server.port}/in?a=b%20c"
    post(egress, url, headers={"webhook-id": "evt_1", "Content-Type": "application/json"})
    assert server.requests[0].decode() == (
        "POST /in?a=b%20c HTTP/1.1\r\n"
        f"Host: hooks.example.com:{server.port}\r\n"
        "webhook-id: evt_1\r\n"
        "Content-Type: application/json\r\n"
        "Accept-Encoding: identity\r\n"
        "User-Agent: Maramoja/test\r\n"
        "Content-Length: 2\r\n"
        "\r\n"
        "{}"
    )


def test_the_body_arrives_byte_for_byte(
    serve: Serve, guarded: Making, authority: Authority
) -> None:
    server = serve(over_tls(authority.certificate(HOOKS), answer_all))
    body = bytes(range(256)) * 300
    assert isinstance(
        post(guarded(server.port, Names("127.0.0.1")), secure(server), body=body), HttpResponse
    )
    assert server.requests[0].endswith(b"\r\n\r\n" + body)


@pytest.mark.parametrize(
    "name",
    ["host", "content-length", "Transfer-Encoding", "CONNECTION", "accept-encoding", "Cookie",
     "user-agent", "Expect", "Upgrade", "Trailer", "TE", "Keep-Alive", "Proxy-Connection"],
)  # fmt: skip
def test_a_caller_cannot_say_how_it_is_sent(serve: Serve, egress: Egress, name: str) -> None:
    server = serve(answer_all)
    assert isinstance(post(egress, server.url(), headers={name: "theirs"}), HttpResponse)
    assert b"theirs" not in server.requests[0]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("X-A", "b\r\nX-C: d"),
        ("X-A", "b\nX-C: d"),
        ("X-A", "b\r\n X-C: d"),
        ("X-A", "b\r"),
        ("X-A", "b\x00"),
        ("X-A", "b\x85X-C: d"),
        ("X-A", "b\u2028X-C: d"),
        ("X-A", "zoë"),
        ("X-A: b\r\nX-C", "d"),
        ("X A", "b"),
        ("X-A:", "b"),
        ("", "b"),
    ],
)
def test_a_header_is_one_header(serve: Serve, egress: Egress, name: str, value: str) -> None:
    server = serve(answer_all)
    silence = post(egress, server.url(), headers={name: value})
    assert isinstance(silence, NoResponse)
    assert (silence.why, silence.sent) == ("request_unsendable", False)
    assert server.connections == 0


def test_a_kept_connection_carries_no_cookies(serve: Serve, egress: Egress) -> None:
    raw = b"HTTP/1.1 200 OK\r\nSet-Cookie: a=b\r\nContent-Length: 0\r\n\r\n"

    def behave(server: BareServer, peer: socket.socket) -> None:
        while server.read_request(peer):
            peer.sendall(raw)

    server = serve(behave)
    for _ in range(2):
        assert isinstance(post(egress, server.url()), HttpResponse)
    assert (server.connections, len(server.requests)) == (1, 2)
    assert b"cookie" not in server.requests[1].lower()


# --- leases, transactions and the log ------------------------------------------------------------


def test_a_lease_that_is_over_sends_nothing(serve: Serve, egress: Egress) -> None:
    server = serve(answer_all)
    with pytest.raises(LeaseLost):
        post(egress, server.url(), leave_before=boot_seconds())
    assert server.connections == 0


def test_a_lease_that_ends_while_connecting_sends_nothing(serve: Serve) -> None:
    server = serve(answer_all)

    class Slow(Names):
        def __call__(self, host: str, port: int, **_: object) -> list[tuple[Any, ...]]:
            while boot_seconds() < ends:
                pass
            return super().__call__(host, port)

    ends = boot_seconds() + 0.2
    rules = EgressRules(allow_private=True)
    egress = Egress(rules, user_agent="Maramoja/test", resolve=Slow("127.0.0.1"))
    with pytest.raises(LeaseLost):
        post(egress, f"http://receiver:{server.port}/", leave_before=ends)
    assert server.requests == []


def test_nothing_is_sent_inside_a_transaction(serve: Serve, egress: Egress) -> None:
    server = serve(answer_all)
    app = Flask(__name__)
    init_database(app, "postgresql+psycopg://nobody@127.0.0.1:1/none")
    with (
        app.app_context(),
        transaction(EVERY_TENANT),
        pytest.raises(RuntimeError, match="transaction"),
    ):
        post(egress, server.url())
    assert server.connections == 0


def test_nothing_is_logged(serve: Serve, egress: Egress, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    broken = b"HTTP/1.1 200 OK\r\nno colon here\r\n\r\nok"
    for server in (serve(answering(OK)), serve(answering(broken)), serve(answering(b""))):
        post(egress, server.url("/s3cret-path"), headers={"X-Secret": "s3cret"})
    assert caplog.records == []
