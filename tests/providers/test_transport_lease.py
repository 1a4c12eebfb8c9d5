"""When a request may be sent, which servers TLS trusts, and what the transport keeps secret."""

from __future__ import annotations

import datetime as dt
import ipaddress
import logging
import socket
import ssl
import time
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from flask import Flask

from devstack.supervisor import wait_until
from payments_app.kernel.clock import boot_seconds
from payments_app.kernel.database import EVERY_TENANT, init_database, transaction
from payments_app.kernel.http.messages import HttpRequest, HttpResponse, LeaseLost, NoResponse
from payments_app.kernel.http.transport import Lease, Transport
from tests.providers.bare_server import OK, BareServer, Serve, answer_all, drip
from tests.providers.leaping import LeapingClock
from tests.providers.stopwatch import Stopwatch

pytestmark = pytest.mark.usefixtures("app_context")


def get(transport: Transport, url: str, *, timeout_s: float = 5.0) -> HttpResponse | NoResponse:
    return transport.unleased().send(HttpRequest("GET", url, {}, timeout_s=timeout_s))


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for 127.0.0.1, with its key in the same file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = dt.datetime.now(dt.UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
            critical=False,
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + signed.public_bytes(serialization.Encoding.PEM)
    )
    return path


def tls(peer: socket.socket, certificate: Path) -> ssl.SSLSocket:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context.wrap_socket(peer, server_side=True)


# --- the lease -----------------------------------------------------------------------------------


def test_a_lease_that_is_over_sends_nothing(serve: Serve, transport: Transport) -> None:
    server = serve(answer_all)
    with pytest.raises(LeaseLost):
        transport.http_client(Lease(boot_seconds())).send(
            HttpRequest("POST", server.url(), {}, b"{}")
        )
    time.sleep(0.05)
    assert server.connections == 0


def test_a_lease_that_ends_while_connecting_sends_nothing(
    serve: Serve, certificate: Path, transport: Transport, clock: LeapingClock
) -> None:
    seen = []

    def behave(_: BareServer, peer: socket.socket) -> None:
        clock.leap(6)
        with tls(peer, certificate) as channel:
            seen.append(channel.recv(65536))

    server = serve(behave)
    transport = Transport(user_agent="Maramoja/test", ca_file=str(certificate))
    url = server.url().replace("http:", "https:")
    with pytest.raises(LeaseLost):
        transport.http_client(Lease(boot_seconds() + 5)).send(HttpRequest("POST", url, {}, b"{}"))
    wait_until(lambda: bool(seen), what="the connection is not closed", limit_s=30)
    assert seen == [b""]


def test_an_answer_after_the_lease_is_still_an_answer(
    serve: Serve, transport: Transport, clock: LeapingClock
) -> None:
    def behave(server: BareServer, peer: socket.socket) -> None:
        server.read_request(peer)
        clock.leap(6)
        peer.sendall(OK)

    call = HttpRequest("POST", serve(behave).url(), {}, b"{}")
    assert isinstance(transport.http_client(Lease(boot_seconds() + 5)).send(call), HttpResponse)


def test_a_lease_counts_down() -> None:
    assert 9 < Lease(boot_seconds() + 10).remaining_s() <= 10
    assert Lease(boot_seconds() - 1).remaining_s() < 0


# --- TLS -----------------------------------------------------------------------------------------


def test_an_untrusted_certificate_gets_nothing(
    serve: Serve, certificate: Path, transport: Transport
) -> None:
    received = []

    def behave(_: BareServer, peer: socket.socket) -> None:
        received.append(tls(peer, certificate).recv(100))

    url = serve(behave).url().replace("http:", "https:")
    silence = get(transport, url)
    assert isinstance(silence, NoResponse)
    assert (silence.why, silence.sent) == ("tls_failed", False)
    assert received in ([], [b""])


def test_over_tls_everything_holds_as_well(serve: Serve, certificate: Path) -> None:
    def behave(server: BareServer, peer: socket.socket) -> None:
        with tls(peer, certificate) as channel:
            while request := server.read_request(channel):
                if b"/drip" in request:
                    drip(b"x" * 100, before=b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n")(
                        server, channel
                    )
                channel.sendall(OK)

    server = serve(behave)
    url = server.url().replace("http:", "https:")
    transport = Transport(user_agent="Maramoja/test", ca_file=str(certificate))
    assert isinstance(get(transport, url), HttpResponse)
    assert isinstance(get(transport, url), HttpResponse)
    assert server.connections == 1
    with Stopwatch() as watch:
        silence = get(transport, url + "drip", timeout_s=0.5)
    assert isinstance(silence, NoResponse)
    assert (silence.why, silence.sent) == ("timeout", True)
    assert silence.elapsed_s - watch.stood_s < 1.5


# --- house rules ---------------------------------------------------------------------------------


def test_no_call_leaves_inside_a_transaction(serve: Serve, transport: Transport) -> None:
    server = serve(answer_all)
    app = Flask(__name__)
    init_database(app, "postgresql+psycopg://nobody@127.0.0.1:1/none")
    with (
        app.app_context(),
        transaction(EVERY_TENANT),
        pytest.raises(RuntimeError, match="transaction"),
    ):
        get(transport, server.url())
    assert server.connections == 0


def test_nothing_secret_is_logged(
    serve: Serve, transport: Transport, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    call = HttpRequest(
        "POST", serve(answer_all).url(), {"Authorization": "Bearer s3cret"}, b"256772123456"
    )
    transport.unleased().send(call)
    assert "s3cret" not in caplog.text
    assert "256772123456" not in caplog.text
