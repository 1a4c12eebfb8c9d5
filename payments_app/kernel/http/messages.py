"""One HTTP exchange as plain values: the request, and the response or its absence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """A request that an adapter wants sent. `timeout_s` bounds the whole exchange.

    `provider` and `operation` name it in constant words: `mtn_momo`, `submit`.
    `creates_nothing`: True if it can't create a payment. By default the method decides: a GET, HEAD
    or OPTIONS can't (RFC 9110, 9.2.1), any other method may. Set True for a POST that fetches a
    token, and False for a GET that creates.
    """

    method: str
    url: str
    headers: Mapping[str, str] = field(repr=False)
    body: bytes | None = field(default=None, repr=False)
    timeout_s: float = 15.0
    provider: str = "unknown"
    operation: str = "call"
    creates_nothing: bool | None = None


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """A response. `body` is decompressed.

    `truncated`: `body` is incomplete. It was cut at the transport's size limit, or its compression
    is broken. The names of `headers` are in lower case.
    """

    status: int
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)
    elapsed_s: float = 0.0
    truncated: bool = False


@dataclass(frozen=True, slots=True)
class NoResponse:
    """There was no complete response.

    `sent` is False only if it is proven that no byte of the request left this machine
    (the name didn't resolve, the connection was refused). Else the request may have arrived.
    """

    why: str
    sent: bool
    elapsed_s: float = 0.0


class HttpClient(Protocol):
    """An adapter's HTTP client. Each claim has its own: it sends nothing after the lease's end."""

    def send(self, call: HttpRequest) -> HttpResponse | NoResponse:
        """Send and wait, bounded by `call.timeout_s`.

        Raises LeaseLost, with nothing sent, if the lease of its claim is over.
        """
        ...


class LeaseLost(Exception):
    """The claim's lease ended before the request's first byte: it was not sent."""
