"""One HTTP exchange with a provider: limited in time and size, never begun after its lease's end.

The only module that uses `requests`. It logs nothing: bodies, headers and addresses can hold
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

from payments_app.kernel import tracing
from payments_app.kernel.clock import boot_seconds
from payments_app.kernel.database import transaction_is_open
from payments_app.kernel.http import bounded_connection, content_coding
from payments_app.kernel.http.bounded_connection import ExchangeDeadline
from payments_app.kernel.http.messages import HttpClient, HttpRequest, HttpResponse, NoResponse
from payments_app.kernel.tracing import Kind

RESPONSE_BYTES_MAX: Final = 64 * 1024
# A host that accepts no connection within this will not accept one later; stopping loses nothing.
CONNECT_MAX_S: Final = 5.0
# As many as a worker has slots.
POOL_SIZE: Final = 96
# Load balancers and NATs drop an idle connection after some minutes without notice. A request on
# such a connection gets neither a response nor a refusal, and would take the whole timeout.
IDLE_MAX_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to act on a claim, until an instant of `boot_seconds`."""

    expires_at: float

    def remaining_s(self) -> float:
        """Seconds left; zero or less once it is over."""
        return self.expires_at - boot_seconds()


class Transport:
    """Sends requests over pooled connections. Any number of threads may share one.

    It uses an HTTPAdapter without a Session. So nothing can switch on cookies, redirects, .netrc,
    proxies or a CA bundle from the environment.
    """

    def __init__(
        self,
        *,
        user_agent: str,
        response_bytes_max: int = RESPONSE_BYTES_MAX,
        idle_max_s: float = IDLE_MAX_S,
        ca_file: str | None = None,
    ) -> None:
        """`user_agent`: MTN's gateway answers 403 if it names python-requests.

        `ca_file`: certificate authorities to trust instead of certifi's.
        """
        self._user_agent = user_agent
        self._response_bytes_max = response_bytes_max
        self._idle_max_s = idle_max_s
        self._verify = ca_file or True
        # Never waits for a free connection: beyond POOL_SIZE it opens one more and closes it after.
        self._adapter = _Adapter(POOL_SIZE, POOL_SIZE, max_retries=0)

    def http_client(self, lease: Lease) -> HttpClient:
        """A client for one claim: it refuses to begin a request once `lease` is over."""
        return _LeasedClient(self, lease.expires_at)

    def unleased(self) -> HttpClient:
        """A client without a lease: only for requests that move no money, such as probes."""
        return _LeasedClient(self, None)

    def exchange(
        self, call: HttpRequest, *, leave_before: float | None
    ) -> HttpResponse | NoResponse:
        """See HttpClient.send. Raises LeaseLost, with nothing sent."""
        if transaction_is_open():
            raise RuntimeError("a network call inside a database transaction")
        start = boot_seconds()
        leaving = ExchangeDeadline(leave_before, start + call.timeout_s, self._idle_max_s)
        leaving.check_lease()
        before = bounded_connection.current.set(leaving)
        try:
            return self._answer(call, leaving, start)
        except (requests.RequestException, HTTPError, HTTPException, OSError, ValueError) as error:
            # ValueError: an address or a header that can't be sent.
            why = _why(error, leaving)
            return NoResponse(why, sent=leaving.begun, elapsed_s=boot_seconds() - start)
        finally:
            bounded_connection.current.reset(before)

    def _answer(self, call: HttpRequest, leaving: ExchangeDeadline, start: float) -> HttpResponse:
        # A response that is compressed all the same is read within the same limit.
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
            # The connection returns to the pool if the body was read to its end, else it is closed.
            response.close()
        names = {name.lower(): value for name, value in response.headers.items()}
        codings = names.get("content-encoding", "")
        body, whole = content_coding.unfolded(body, codings, self._response_bytes_max)
        took_s = boot_seconds() - start
        return HttpResponse(response.status_code, names, body, took_s, truncated or not whole)


@dataclass(frozen=True, slots=True)
class _LeasedClient:
    _transport: Transport
    _leave_before: float | None

    def send(self, call: HttpRequest) -> HttpResponse | NoResponse:
        # The provider gets no traceparent: the trace belongs to us and the tenant.
        name = f"{call.provider} {call.operation}"
        with tracing.span(name, Kind.CLIENT, parent=tracing.here()) as span:
            span.note({tracing.PROVIDER: call.provider, tracing.OPERATION: call.operation})
            came = self._transport.exchange(call, leave_before=self._leave_before)
            tracing.note_answer(came)
            return came


class _Adapter(HTTPAdapter):
    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        super().init_poolmanager(*args, **options)
        self.poolmanager.pool_classes_by_scheme = bounded_connection.POOL_CLASSES


def _body(raw: Any, bytes_max: int) -> tuple[bytes, bool]:
    """At most `bytes_max` bytes, and whether there were more. Raises if the body was cut short."""
    body = b""
    while len(body) <= bytes_max and (part := raw.read(bytes_max + 1 - len(body))):
        body += part
    return body[:bytes_max], len(body) > bytes_max


# Why a request failed before its first byte was sent: the first entry in the error's chain.
_NOT_BEGUN: Final[tuple[tuple[type[BaseException], str], ...]] = (
    (NameResolutionError, "name_unknown"),
    (ConnectionRefusedError, "connection_refused"),
    (ConnectTimeoutError, "connect_timeout"),
    (requests.exceptions.SSLError, "tls_failed"),
    (ValueError, "request_unsendable"),
)


def _why(error: Exception, leaving: ExchangeDeadline) -> str:
    """The failure as a constant word."""
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
    """The error and its causes: the libraries wrap errors several levels deep."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
