"""One HTTP exchange, bounded whole, and never begun once the lease behind it is over.

The only module that knows `requests`. It logs nothing: bodies, headers and addresses can hold
secrets and phone numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPException, RemoteDisconnected
from typing import Any, Final

import requests
from requests.adapters import HTTPAdapter
from urllib3.exceptions import ConnectTimeoutError, HTTPError, NameResolutionError

from payments_app.kernel import content_coding, departure, tracing
from payments_app.kernel.clock import boot_seconds
from payments_app.kernel.database import transaction_is_open
from payments_app.kernel.departure import Departure
from payments_app.kernel.tracing import Kind
from payments_app.kernel.wire import Answer, Call, Silence, Wire

RESPONSE_BYTES_MAX: Final = 64 * 1024
# A host that takes no connection within this won't take one at all; nothing is lost by stopping.
CONNECT_MAX_S: Final = 5.0
# As many as a worker has slots.
POOL_SIZE: Final = 96
# Balancers and NATs forget an idle connection after some minutes without telling us; a request
# sent into such a one is neither answered nor refused, and would cost the whole timeout.
IDLE_MAX_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to act, until an instant of `boot_seconds`."""

    expires_at: float

    def remaining_s(self) -> float:
        """Seconds left; zero or less once it is over."""
        return self.expires_at - boot_seconds()


class Transport:
    """Sends calls over pooled connections. Any number of threads may share one.

    It drives an HTTPAdapter without a Session around it: so there are no cookies, no redirects,
    no .netrc, no proxies and no CA bundle from the environment that could be switched on.
    """

    def __init__(
        self,
        *,
        user_agent: str,
        response_bytes_max: int = RESPONSE_BYTES_MAX,
        idle_max_s: float = IDLE_MAX_S,
        ca_file: str | None = None,
    ) -> None:
        """`user_agent`: MTN's gateway answers 403 to one that names python-requests.

        `ca_file`: certificate authorities to trust instead of certifi's.
        """
        self._user_agent = user_agent
        self._response_bytes_max = response_bytes_max
        self._idle_max_s = idle_max_s
        self._verify = ca_file or True
        # Never waits for a free connection: beyond POOL_SIZE it opens one more and drops it after.
        self._adapter = _Adapter(POOL_SIZE, POOL_SIZE, max_retries=0)

    def wire(self, lease: Lease) -> Wire:
        """A wire for one claim: it refuses to begin a call once `lease` is over."""
        return _Wire(self, lease.expires_at)

    def unleased(self) -> Wire:
        """A wire that no lease ends: only for calls that move no money, such as probes."""
        return _Wire(self, None)

    def exchange(self, call: Call, *, leave_before: float | None) -> Answer | Silence:
        """See Wire.send. Raises LeaseLost, with nothing sent."""
        if transaction_is_open():
            raise RuntimeError("a network call inside a database transaction")
        start = boot_seconds()
        leaving = Departure(leave_before, start + call.timeout_s, self._idle_max_s)
        leaving.check_lease()
        before = departure.current.set(leaving)
        try:
            return self._answer(call, leaving, start)
        except (requests.RequestException, HTTPError, HTTPException, OSError, ValueError) as error:
            # ValueError: an address or a header that can't be put on a wire.
            why = _why(error, leaving)
            return Silence(why, sent=leaving.begun, elapsed_s=boot_seconds() - start)
        finally:
            departure.current.reset(before)

    def _answer(self, call: Call, leaving: Departure, start: float) -> Answer:
        # Who compresses all the same is read within the same bound.
        headers = {"Accept-Encoding": "identity", **call.headers, "User-Agent": self._user_agent}
        request = requests.Request(call.method, call.url, headers=headers, data=call.body)
        response = self._adapter.send(
            request.prepare(),
            stream=True,
            timeout=(min(CONNECT_MAX_S, call.timeout_s), call.timeout_s),
            verify=self._verify,
        )
        leaving.answered = True
        try:
            body, truncated = _body(response.raw, self._response_bytes_max)
        finally:
            # Back to the pool if it was read to its end, else closed.
            response.close()
        names = {name.lower(): value for name, value in response.headers.items()}
        codings = names.get("content-encoding", "")
        body, whole = content_coding.unfolded(body, codings, self._response_bytes_max)
        took_s = boot_seconds() - start
        return Answer(response.status_code, names, body, took_s, truncated or not whole)


@dataclass(frozen=True, slots=True)
class _Wire:
    _transport: Transport
    _leave_before: float | None

    def send(self, call: Call) -> Answer | Silence:
        # Told to us only: the provider gets no traceparent, which is our house's and the tenant's.
        name = f"{call.provider} {call.operation}"
        with tracing.span(name, Kind.CLIENT, parent=tracing.here()) as span:
            span.note({tracing.PROVIDER: call.provider, tracing.OPERATION: call.operation})
            came = self._transport.exchange(call, leave_before=self._leave_before)
            tracing.note_answer(came)
            return came


class _Adapter(HTTPAdapter):
    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        super().init_poolmanager(*args, **options)
        self.poolmanager.pool_classes_by_scheme = departure.POOL_CLASSES


def _body(raw: Any, bytes_max: int) -> tuple[bytes, bool]:
    """At most `bytes_max` bytes, and whether there were more. Raises when it was cut short."""
    body = b""
    while len(body) <= bytes_max and (part := raw.read(bytes_max + 1 - len(body))):
        body += part
    return body[:bytes_max], len(body) > bytes_max


# What stopped a call before its first byte left: the first of these in the error's chain.
_NOT_BEGUN: Final[tuple[tuple[type[BaseException], str], ...]] = (
    (NameResolutionError, "name_unknown"),
    (ConnectionRefusedError, "connection_refused"),
    (ConnectTimeoutError, "connect_timeout"),
    (requests.exceptions.SSLError, "tls_failed"),
    (ValueError, "request_unsendable"),
)


def _why(error: Exception, leaving: Departure) -> str:
    """A constant word for what went wrong."""
    if leaving.deadline <= boot_seconds():
        return "timeout"
    causes = tuple(_causes(error))
    if not leaving.begun:
        words = (word for kind, word in _NOT_BEGUN if any(isinstance(c, kind) for c in causes))
        return next(words, "not_connected")
    garbage = any(
        isinstance(c, HTTPException) and not isinstance(c, RemoteDisconnected) for c in causes
    )
    return "broken_answer" if leaving.answered or garbage else "connection_lost"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what it was raised from; the libraries wrap them several deep."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
