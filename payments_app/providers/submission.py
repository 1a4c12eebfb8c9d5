"""One submission is one request that may create something. Pure: it counts and judges.

The engine prepares and submits through this module only. Whatever an adapter, a partner's too,
sends inside one submission, the client counts the requests that may have created a payment. A weak
verdict about several of them, or about one whose answer was lost, is no proof: it becomes UNKNOWN,
and the status is checked.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from payments_app.kernel.errors import GatewayError
from payments_app.kernel.http.messages import (
    HttpClient,
    HttpRequest,
    HttpResponse,
    LeaseLost,
    NoResponse,
)
from payments_app.providers.contract import (
    Observation,
    PaymentOrder,
    Provider,
    ProviderAccount,
    Verdict,
)

# They say that one request created nothing, or that nothing comes of it any more. They say nothing
# of a second request under the same reference.
ABOUT_ONE_REQUEST: Final = frozenset(
    {Verdict.REFUSED, Verdict.NOT_SENT, Verdict.NOT_FOUND, Verdict.FAILED}
)
# RFC 9110, 9.2.1: a request with one of these methods changes nothing, unless the adapter says so.
_SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})


# What prepare() may return: it only requests a token, and proves nothing about a payment.
_NOT_READY: Final = frozenset({Verdict.NOT_SENT, Verdict.UNKNOWN})


@dataclass(slots=True)
class SubmissionClient:
    """The HTTP client of one submission.

    `left`: requests that may have arrived and created something.
    `unanswered`: those of them without a complete answer.
    """

    http_client: HttpClient
    left: int = 0
    unanswered: int = 0
    _is_begun: bool = False
    _is_closed: bool = False

    @property
    def nothing_began(self) -> bool:
        """Whether submit() was not called, and nothing that may create a payment was sent yet."""
        return not (self._is_begun or self.left)

    def note_begun(self) -> None:
        """Note that submit() is called now."""
        self._is_begun = True

    def send(self, call: HttpRequest) -> HttpResponse | NoResponse:
        """See HttpClient. Raises RuntimeError after the verdict: no adapter may keep the client."""
        if self._is_closed:
            raise RuntimeError("the submission that this client belongs to is over")
        if _creates_nothing(call):
            return self.http_client.send(call)
        # It counts until the opposite is proven, whatever the client raises.
        self.left += 1
        self.unanswered += 1
        try:
            came = self.http_client.send(call)
        except LeaseLost:
            self._did_not_leave()
            raise
        if isinstance(came, HttpResponse):
            self.unanswered -= 1
        elif not came.sent:
            self._did_not_leave()
        return came

    def judge(self, seen: Observation) -> Observation:
        """The verdict of the whole: UNKNOWN for a weak one if several requests may have arrived.

        Nothing may be sent after it.
        """
        self._is_closed = True
        seen = replace(seen, requests_left=self.left)
        if seen.verdict not in ABOUT_ONE_REQUEST or (self.left <= 1 and not self.unanswered):
            return seen
        why = "answer_lost" if self.unanswered else "sent_more_than_once"
        return replace(seen, verdict=Verdict.UNKNOWN, reason=why, failure=None)

    def _did_not_leave(self) -> None:
        self.left -= 1
        self.unanswered -= 1


@dataclass(slots=True)
class QuestionClient:
    """The HTTP client of one status check. `calls`: its requests, e.g. a second one after a 401."""

    http_client: HttpClient
    calls: int = 0

    def send(self, call: HttpRequest) -> HttpResponse | NoResponse:
        """See HttpClient. A request for a token doesn't count."""
        self.calls += not call.creates_nothing
        return self.http_client.send(call)


def prepare_through(
    counted: SubmissionClient, provider: Provider, account: ProviderAccount
) -> Observation | None:
    """Have the adapter prepare: None when it is ready, else why not. What it sends counts too.

    Raises LeaseLost or a GatewayError only if no request left that may have created something.
    """
    try:
        seen = provider.prepare(account, counted)
    except (LeaseLost, GatewayError) as error:
        return _raised(counted, error)
    if seen is None:
        return None
    if seen.verdict not in _NOT_READY:
        # It was not about a payment, so it can prove nothing about one.
        seen = replace(seen, verdict=Verdict.NOT_SENT, failure=None)
    return counted.judge(seen)


def submit_through(
    counted: SubmissionClient, provider: Provider, order: PaymentOrder, account: ProviderAccount
) -> Observation:
    """Have the adapter submit `order`, and judge the whole of what it sent.

    Raises LeaseLost or a GatewayError only if no request left that may have created something.
    """
    counted.note_begun()
    try:
        return counted.judge(provider.submit(order, account, counted))
    except (LeaseLost, GatewayError) as error:
        return _raised(counted, error)


def _raised(counted: SubmissionClient, error: LeaseLost | GatewayError) -> Observation:
    if not counted.left:
        raise error
    why = "lease_lost" if isinstance(error, LeaseLost) else error.code
    return counted.judge(Observation(Verdict.UNKNOWN, why))


def _creates_nothing(call: HttpRequest) -> bool:
    if call.creates_nothing is None:
        return call.method.upper() in _SAFE_METHODS
    return call.creates_nothing
