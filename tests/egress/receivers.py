"""Receivers over TLS, their certificates, and ways to answer without end."""

from __future__ import annotations

import datetime as dt
import ipaddress
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.providers.bare_server import BareServer

Behave = Callable[[BareServer, socket.socket], None]
DAY = dt.timedelta(days=1)
HOOKS = "hooks.example.com"


class Authority:
    """A certificate authority; `path` is its certificate."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Test Authority")])
        self.path = folder / "authority.pem"
        builder = self._builder(self._name, self._key).add_extension(
            x509.BasicConstraints(ca=True, path_length=None), critical=True
        )
        signed = builder.sign(self._key, hashes.SHA256())
        self.path.write_bytes(signed.public_bytes(serialization.Encoding.PEM))

    def certificate(self, *names: str, days: int = 1) -> Path:
        """A certificate for names and addresses, with its key; it expires in `days`."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])])
        builder = self._builder(subject, key, dt.timedelta(days=days)).add_extension(
            x509.SubjectAlternativeName([_general(name) for name in names]), critical=False
        )
        path = self._folder / f"{x509.random_serial_number()}.pem"
        path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
            + builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        )
        return path

    def _builder(
        self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, lasts: dt.timedelta = DAY
    ) -> x509.CertificateBuilder:
        now = dt.datetime.now(dt.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - 10 * DAY)
            .not_valid_after(now + lasts)
        )


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def over_tls(
    certificate: Path, behave: Behave, asked_for: list[str | None] | None = None
) -> Behave:
    """The same over TLS; adds each requested server name (SNI) to `asked_for`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)

    def note(_socket: object, name: str | None, _context: object) -> None:
        if asked_for is not None:
            asked_for.append(name)

    context.sni_callback = note

    def wrapped(server: BareServer, peer: socket.socket) -> None:
        with context.wrap_socket(peer, server_side=True) as channel:
            behave(server, channel)

    return wrapped


class Flood:
    """Reads a request, sends `before`, and then all that `parts` yields, until the peer closes."""

    def __init__(self, before: bytes, parts: Callable[[], Iterator[bytes]], pause_s: float) -> None:
        self._before = before
        self._parts = parts
        self._pause_s = pause_s
        self.sent = 0

    def __call__(self, server: BareServer, peer: socket.socket) -> None:
        # A small buffer, so that what was sent was nearly all received.
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        server.read_request(peer)
        peer.sendall(self._before)
        for part in self._parts():
            self.sent += peer.send(part)
            time.sleep(self._pause_s)


def endless(part: bytes) -> Callable[[], Iterator[bytes]]:
    """`part` over and over, beyond a gigabyte."""
    return lambda: (part for _ in range(1 + 2**30 // len(part)))
