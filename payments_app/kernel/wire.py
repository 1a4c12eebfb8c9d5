"""One HTTP exchange as plain values: what is asked, and what came back or didn't."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Call:
    """A request that an adapter wants sent. `timeout_s` bounds the whole exchange.

    `provider` and `operation` tell what it is, in constant words: `mtn_momo`, `submit`.
    `creates_nothing`: whether it can't create a payment. Left out, the method tells: a GET, HEAD or
    OPTIONS can't (RFC 9110, 9.2.1), any other may. True for a POST for a token; False for a GET that
    creates.
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
class Answer:
    """A complete answer. `body` is what it unfolds to, if it came compressed.

    `truncated`: `body` is not all of it. It was cut at the transport's bound, or its compression is
    broken. The names of `headers` are in lower case.
    """

    status: int
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)
    elapsed_s: float = 0.0
    truncated: bool = False


@dataclass(frozen=True, slots=True)
class Silence:
    """No complete answer.

    `sent` is False only where it is proven that no byte of the request left this machine
    (the name didn't resolve, the connection was refused). Anything else may have arrived.
    """

    why: str
    sent: bool
    elapsed_s: float = 0.0


class Wire(Protocol):
    """What an adapter sends through. One claim, one wire: it refuses once the lease is over."""

    def send(self, call: Call) -> Answer | Silence:
        """Send and wait, bounded by `call.timeout_s`.

        Raises LeaseLost, with nothing sent, when the lease behind this wire is over.
        """
        ...


class LeaseLost(Exception):
    """The claim's time was over before this call was to leave: it was not sent."""
