"""A real simulator process, and a merchant who calls it, for the tests in this folder."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests

from devstack.redis_server import START_MAX_S

ROOT = Path(__file__).resolve().parents[2]
ANSWER_S = 5.0

SUBSCRIPTION_KEY = "key-of-the-tests"
API_USER = "5f1c2a34-0d5e-4a7b-9c11-2b3c4d5e6f70"
API_KEY = "0123456789abcdef0123456789abcdef"
PAYER = "256772123456"


class SimulatorProcess:
    """`python -m simulator` on a free port."""

    def __init__(self, *options: str, port: int = 0) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "simulator", "--port", str(port), *options],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        try:
            self.url = self._announced_url()
        except BaseException:
            self.kill()
            raise
        self.port = urlsplit(self.url).port or 0

    def stop(self) -> tuple[int, str]:
        """Stop the process with SIGTERM; return its exit code and its output since the start."""
        self._process.send_signal(signal.SIGTERM)
        output, _ = self._process.communicate(timeout=ANSWER_S)
        return self._process.returncode, output.decode()

    def kill(self) -> None:
        """Kill the process, as in a crash."""
        self._process.kill()
        self._process.communicate(timeout=ANSWER_S)

    def _announced_url(self) -> str:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], START_MAX_S)
        line = self._process.stdout.readline().decode() if ready else "nothing"
        prefix = "simulator listening on "
        assert line.startswith(prefix), f"instead of its address the simulator printed: {line}"
        return line.removeprefix(prefix).strip()


def seeds(*products: str) -> list[str]:
    """Arguments for an account that may use these products."""
    account = f"{SUBSCRIPTION_KEY}:{API_USER}:{API_KEY}"
    return [word for product in products for word in ("--seed-account", f"{product}:{account}")]


@dataclass
class Merchant:
    """Calls MTN's surface as a gateway would, and the admin API as a test does."""

    url: str
    product: str = "collection"
    operation: str = "requesttopay"
    environment: str = "sandbox"
    currency: str = "EUR"
    session: requests.Session = field(default_factory=requests.Session)
    _token: str | None = None

    def call(self, method: str, path: str, **options: Any) -> requests.Response:
        """Send one request, with a timeout."""
        options.setdefault("timeout", ANSWER_S)
        return self.session.request(method, self.url + path, **options)

    def request_token(self, **options: Any) -> requests.Response:
        """POST /{product}/token/"""
        options.setdefault("auth", (API_USER, API_KEY))
        options.setdefault("headers", {"Ocp-Apim-Subscription-Key": SUBSCRIPTION_KEY})
        return self.call("POST", f"/{self.product}/token/", **options)

    @property
    def token(self) -> str:
        """A token, requested once."""
        if self._token is None:
            self._token = str(self.request_token().json()["access_token"])
        return self._token

    @property
    def headers(self) -> dict[str, str]:
        """The headers of every request."""
        return {
            "Authorization": f"Bearer {self.token}",
            "Ocp-Apim-Subscription-Key": SUBSCRIPTION_KEY,
            "X-Target-Environment": self.environment,
        }

    def body(self, msisdn: str = PAYER, **changes: Any) -> dict[str, Any]:
        """A valid body, with changes; a change to None removes the field."""
        party = "payer" if self.operation == "requesttopay" else "payee"
        good = {
            "amount": "5.00" if self.currency == "EUR" else "5",
            "currency": self.currency,
            "externalId": f"order-{uuid.uuid4()}",
            party: {"partyIdType": "MSISDN", "partyId": msisdn},
            "payerMessage": "for the order",
            "payeeNote": "thank you",
        }
        return {name: value for name, value in (good | changes).items() if value is not None}

    def pay(
        self,
        reference: str | None = None,
        *,
        msisdn: str = PAYER,
        headers: dict[str, str] | None = None,
        json: object = None,
        **options: Any,
    ) -> requests.Response:
        """Create a payment."""
        own = {"X-Reference-Id": reference or new_reference()}
        return self.call(
            "POST",
            f"/{self.product}/v1_0/{self.operation}",
            headers=self.headers | own | (headers or {}),
            json=self.body(msisdn) if json is None else json,
            **options,
        )

    def ask(self, reference: str, **options: Any) -> requests.Response:
        """GET the payment."""
        path = f"/{self.product}/v1_0/{self.operation}/{reference}"
        return self.call("GET", path, headers=self.headers, **options)

    def status(self, reference: str) -> str:
        """The payment's status."""
        return str(self.ask(reference).json()["status"])

    def admin(self, method: str, path: str, json: object = None, **params: str) -> Any:
        """Send an admin request, which must succeed."""
        answer = self.call(method, f"/_admin/{path}", json=json, params=params)
        assert answer.ok, answer.text
        return answer.json()

    def fault(self, kind: str, **details: Any) -> Any:
        """Set a fault."""
        return self.admin("POST", "faults", {"kind": kind, **details})

    def set(self, **settings: Any) -> Any:
        """Change settings."""
        return self.admin("POST", "settings", settings)

    def seen(self, view: str, **params: str) -> list[dict[str, Any]]:
        """Rows of the ledger, payments, requests or callbacks."""
        rows: list[dict[str, Any]] = self.admin("GET", view, **params)["data"]
        return rows

    def creations(self, reference: str) -> int:
        """How many payments the simulator has for the reference."""
        return len(self.seen("payments", reference=reference))

    def movements(self, reference: str) -> int:
        """How often it moved money for the reference."""
        return len(self.seen("ledger", reference=reference))

    def submissions(self, reference: str) -> list[dict[str, Any]]:
        """The creating requests that arrived for the reference."""
        rows = self.seen("requests", reference=reference)
        return [row for row in rows if row["operation"] == "create"]


def new_reference() -> str:
    """A version 4 UUID."""
    return str(uuid.uuid4())


def on_the_wire(merchant: Merchant, method: str, path: str, *, body: object = None) -> bytes:
    """Send one request over a bare socket and read to the end; raises what the socket raises."""
    payload = b"" if body is None else json.dumps(body).encode()
    headers = merchant.headers | {"Host": "simulator", "Connection": "close"}
    if body is not None:
        headers |= {"Content-Length": str(len(payload)), "X-Reference-Id": new_reference()}
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    address = urlsplit(merchant.url)
    with socket.create_connection((address.hostname, address.port), ANSWER_S) as connection:
        connection.sendall("\r\n".join((*lines, "", "")).encode() + payload)
        received = b""
        while chunk := connection.recv(65_536):
            received += chunk
    return received


def eventually(truth: Any, within_s: float = ANSWER_S) -> Any:
    """Wait until `truth()` is true; return its value."""
    deadline = time.monotonic() + within_s
    while not (value := truth()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)
    return value
