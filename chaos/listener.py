"""The tenants' webhook servers: they answer at random during the run, and record every webhook."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from random import Random
from typing import Any, Final

import requests

from chaos.evidence import Told

# A status and headers.
Reply = tuple[int, Mapping[str, str]]
# Percentages of answers: accepted, refused, connection closed without an answer, slow.
_TAKEN, _REFUSED, _CUT, _SLOW = 70, 15, 8, 7
SLOW_S: Final = 2.0
_REFUSALS: Final[tuple[Reply, ...]] = (
    (500, {}),
    (503, {}),
    (429, {"Retry-After": "1"}),
    (302, {"Location": "/"}),
)
_ADD_MAX_S: Final = 30.0


@dataclass
class Listener:
    """`told`: every POST received. After `calm`, all are accepted."""

    random: Random
    url: str = ""
    secrets: dict[str, str] = field(default_factory=dict)
    told: list[Told] = field(default_factory=list)
    _calm: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add_endpoints(self, api_url: str, keys: Mapping[str, str]) -> None:
        """Add one webhook endpoint for each tenant, with a path of its own, for all events."""
        for tenant, key in keys.items():
            answer = requests.post(
                f"{api_url}/api/v1/webhook-endpoints",
                json={"url": f"{self.url}/{tenant}"},
                headers={"X-API-Key": key},
                timeout=_ADD_MAX_S,
            )
            answer.raise_for_status()
            self.secrets[tenant] = answer.json()["secret"]

    def calm(self) -> None:
        """From now on, accept every webhook at once."""
        self._calm.set()

    def take(self, tenant: str, headers: Mapping[str, str], body: bytes) -> Reply | None:
        """Record the webhook and return the answer; None for no answer at all."""
        status, more = self._mood()
        if status == 0:
            status, more = 200, {}
            time.sleep(SLOW_S)
        told = self._read(tenant, headers, body, taken=status == 200)  # noqa: PLR2004
        with self._lock:
            self.told.append(told)
        return None if status == -1 else (status, more)

    def _mood(self) -> Reply:
        """A status and headers; status 0 means a slow 200, -1 no answer."""
        if self._calm.is_set():
            return 200, {}
        with self._lock:
            drawn, refusal = self.random.uniform(0, 100), self.random.choice(_REFUSALS)
        for limit, mood in (
            (_TAKEN, (200, {})),
            (_TAKEN + _REFUSED, refusal),
            (_TAKEN + _REFUSED + _CUT, (-1, {})),
        ):
            if drawn < limit:
                return mood
        return 0, {}

    def _read(self, tenant: str, headers: Mapping[str, str], body: bytes, *, taken: bool) -> Told:
        document: dict[str, Any] = json.loads(body)
        stamp = headers["webhook-timestamp"]
        return Told(
            tenant=tenant,
            message_id=headers["webhook-id"],
            digest=hashlib.sha256(body).hexdigest(),
            payment_id=document["data"].get("payment_id"),
            sequence=document["data"].get("sequence"),
            genuine=self._is_genuine(tenant, headers, body),
            stamped_s=float(stamp) - time.time(),
            taken=taken,
            at=time.time(),
        )

    def _is_genuine(self, tenant: str, headers: Mapping[str, str], body: bytes) -> bool:
        """Check the signature by the specification, not with the gateway's code."""
        key = base64.b64decode(self.secrets[tenant].removeprefix("whsec_"))
        content = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
        wanted = base64.b64encode(hmac.digest(key, content, "sha256")).decode()
        return f"v1,{wanted}" in headers["webhook-signature"].split(" ")


@contextmanager
def listening(random: Random) -> Iterator[Listener]:
    """A listener on a free port."""
    listener = Listener(random)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            reply = listener.take(self.path.lstrip("/"), headers, body)
            if reply is None:
                self.close_connection = True
                return
            self.send_response(reply[0])
            for name, value in {**reply[1], "Content-Length": "0"}.items():
                self.send_header(name, value)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Print nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    listener.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield listener
    finally:
        server.shutdown()
        server.server_close()
