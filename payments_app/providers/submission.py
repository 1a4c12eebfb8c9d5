"""One submission is one request that may create something. Pure: it counts and judges.

The engine prepares and submits through this module only. Whatever an adapter sends inside one
submission, a partner's too, the wire counts the requests that may have created a payment. A weak
verdict about several of them, or about one whose answer was lost, is no proof: it becomes UNKNOWN,
and we ask.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from payments_app.kernel.errors import GatewayError
from payments_app.kernel.wire import Answer, Call, LeaseLost, Silence, Wire
from payments_app.providers.contract import (
    Observation,
    PaymentOrder,
    Provider,
    ProviderAccount,
    Verdict,
)

# They say of one request that it created nothing, or that nothing comes of it any more. Of a second
# request under the same reference they say nothing at all.
ABOUT_ONE_REQUEST: Final = frozenset(
    {Verdict.REFUSED, Verdict.NOT_SENT, Verdict.NOT_FOUND, Verdict.FAILED}
)
# RFC 9110, 9.2.1: a request with one of these methods asks for no change, unless the adapter says so.
_SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})


# What getting ready may come to: it asks for a token, and speaks of no payment.
_NOT_READY: Final = frozenset({Verdict.NOT_SENT, Verdict.UNKNOWN})


@dataclass(slots=True)
class SubmissionWire:
    """The wire of one submission. `left`: requests that may have arrived and created something.

    `unanswered`: those of them without a complete answer.
    """

    wire: Wire
    left: int = 0
    unanswered: int = 0
    _is_begun: bool = False
    _is_closed: bool = False

    @property
    def nothing_began(self) -> bool:
        """Whether the adapter was not asked to submit, and sent nothing that may create before that."""
        return not (self._is_begun or self.left)

    def note_begun(self) -> None:
        """The adapter is asked to submit now."""
        self._is_begun = True

    def send(self, call: Call) -> Answer | Silence:
        """See Wire. Raises RuntimeError once the submission was judged: the wire is not to be kept."""
        if self._is_closed:
            raise RuntimeError("the submission that this wire belongs to is over")
        if _creates_nothing(call):
            return self.wire.send(call)
        # It counts until the opposite is proven, whatever the wire raises.
        self.left += 1
        self.unanswered += 1
        try:
            came = self.wire.send(call)
        except LeaseLost:
            self._did_not_leave()
            raise
        if isinstance(came, Answer):
            self.unanswered -= 1
        elif not came.sent:
            self._did_not_leave()
        return came

    def judge(self, seen: Observation) -> Observation:
        """The verdict of the whole: the weaker one where more than one request may have arrived.

        Nothing is sent after it.
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
class QuestionWire:
    """The wire of one question: `calls` counts what it takes, such as a second one after a 401."""

    wire: Wire
    calls: int = 0

    def send(self, call: Call) -> Answer | Silence:
        """See Wire. A call for a token is no question."""
        self.calls += not call.creates_nothing
        return self.wire.send(call)


def prepare_through(
    counted: SubmissionWire, provider: Provider, account: ProviderAccount
) -> Observation | None:
    """Have the adapter get ready: None when it is, else why not. What it sends counts too.

    Raises LeaseLost or a GatewayError only if no request left that may have created something.
    """
    try:
        seen = provider.prepare(account, counted)
    except (LeaseLost, GatewayError) as error:
        return _raised(counted, error)
    if seen is None:
        return None
    if seen.verdict not in _NOT_READY:
        # It was not asked about a payment, so it can prove nothing about one.
        seen = replace(seen, verdict=Verdict.NOT_SENT, failure=None)
    return counted.judge(seen)


def submit_through(
    counted: SubmissionWire, provider: Provider, order: PaymentOrder, account: ProviderAccount
) -> Observation:
    """Have the adapter submit `order`, and judge the whole of what it sent.

    Raises LeaseLost or a GatewayError only if no request left that may have created something.
    """
    counted.note_begun()
    try:
        return counted.judge(provider.submit(order, account, counted))
    except (LeaseLost, GatewayError) as error:
        return _raised(counted, error)


def _raised(counted: SubmissionWire, error: LeaseLost | GatewayError) -> Observation:
    if not counted.left:
        raise error
    why = "lease_lost" if isinstance(error, LeaseLost) else error.code
    return counted.judge(Observation(Verdict.UNKNOWN, why))


def _creates_nothing(call: Call) -> bool:
    if call.creates_nothing is None:
        return call.method.upper() in _SAFE_METHODS
    return call.creates_nothing
