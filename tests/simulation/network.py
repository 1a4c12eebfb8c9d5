"""The network between gateway and provider. It can cause any fault except a false final status.

Only the sockets are replaced: the real MtnMomo uses the real Transport, which checks whether a
request may still be sent, and reports whether it was.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from payments_app.kernel.http.bounded_connection import ExchangeDeadline
from payments_app.kernel.http.messages import HttpRequest, HttpResponse, NoResponse
from payments_app.kernel.http.transport import Transport
from payments_app.payments.claims import LEASE
from payments_app.payments.states import Step
from payments_app.providers.contract import AccountKey, Observation, ProviderAccount, Verdict
from payments_app.providers.tokens import FetchToken
from tests.simulation.bank import HIDDEN_MAX_S, Bank, BankOrder, Fate, coded
from tests.simulation.cast import Cast, Where
from tests.simulation.choices import Choices
from tests.simulation.clock import VirtualClock
from tests.simulation.pairs import HONEST, LEASE_OVER, NOT_CONNECTED, Requests
from tests.simulation.referee import Referee

# How long a delayed request may take to arrive. With HIDDEN_MAX_S and the lease it stays below the
# adapter's visible_after_s: after that, a 404 proves that there is no order.
STRAGGLE_MAX_S: Final = 150.0
EXCHANGE_S: Final = 0.2
# A payment's id in a body, which may be cut.
_ID: Final = re.compile("[0-9a-f]{8}-[0-9a-f-]*")

Told = HttpResponse | OSError
Fault = Callable[["Network", HttpRequest, str], Told]


@dataclass(frozen=True, slots=True)
class Straggler:
    """A submission that its sender has given up, and that may still arrive."""

    call: HttpRequest
    until_s: float


@dataclass(frozen=True, slots=True)
class Surroundings:
    """The parts of the run that the network uses."""

    cast: Cast
    clock: VirtualClock
    choices: Choices
    bank: Bank
    referee: Referee
    note: Callable[[str], None]


class Network(Transport):
    """One run's network. `submit_odds`, `check_odds`: weights of the faults below, in order."""

    def __init__(self, around: Surroundings) -> None:
        super().__init__(user_agent="simulation")
        self.around = around
        self.bank, self.clock = around.bank, around.clock
        self.submit_odds: Sequence[int] = (1,)
        self.check_odds: Sequence[int] = (1,)
        self.token_odds: Sequence[int] = (1, 0)
        self.stragglers: list[Straggler] = []
        self.requests = Requests()

    def exchange(
        self, call: HttpRequest, *, leave_before: float | None
    ) -> HttpResponse | NoResponse:
        """See Transport. The lease may end before the request is sent."""
        if call.method == "POST":
            reference = self._known(call)
            if self.requests.planned(reference, is_submission=True) == LEASE_OVER:
                self.requests.happened(reference, LEASE_OVER, is_submission=True)
                self.clock.leap(LEASE.total_seconds())
        return super().exchange(call, leave_before=leave_before)

    def _answer(self, call: HttpRequest, leaving: ExchangeDeadline, _start: float) -> HttpResponse:
        """One exchange, in the place of HTTPAdapter and the connections of bounded_connection."""
        reference = reference_of(call)
        name = self.around.referee.name_of(reference)
        what = f"{'submit' if call.method == 'POST' else 'check'} {name}"
        self.around.cast.point(Where.NETWORK, f"{what} is to leave")
        leaving.remaining_s()
        leaving.check_lease()
        ticket = self.around.referee.leaving(call, reference)
        told = self._at_the_provider(call, reference)
        leaving.begun = not isinstance(told, ConnectionRefusedError)
        if leaving.begun and call.method == "POST":
            self.around.referee.has_left(reference)
        self._note(what, told)
        self.clock.spend(call.timeout_s if isinstance(told, TimeoutError) else EXCHANGE_S)
        self.around.cast.point(Where.NETWORK, f"{what} is answered")
        self.around.referee.back(ticket)
        if isinstance(told, OSError):
            raise told
        leaving.remaining_s()
        self.bank.has_said(reference, told)
        return told

    def is_good(self, odds: Sequence[int]) -> bool:
        """Whether no fault happens now."""
        return self.around.cast.calm or self.around.choices.pick(odds) == 0

    def deliver(self, straggler: Straggler) -> None:
        """The late request arrives; no caller waits for the answer."""
        self.stragglers.remove(straggler)
        # The simulation delivers it late; for the provider it arrived in time.
        self.take(straggler.call, at_s=min(straggler.until_s, self.clock.seconds()))

    def take(self, call: HttpRequest, *, at_s: float | None = None) -> HttpResponse:
        """The submission arrives. Its order is invisible while the script expects a second one."""
        hide_s = HIDDEN_MAX_S if self.requests.hides(reference_of(call)) else 0.0
        return self.bank.submit(call, at_s=at_s, hide_s=hide_s)

    def deliver_overdue(self) -> None:
        """Deliver the requests that are under way longer than STRAGGLE_MAX_S."""
        for straggler in list(self.stragglers):
            if straggler.until_s <= self.clock.seconds():
                self.deliver(straggler)

    def _at_the_provider(self, call: HttpRequest, reference: str) -> Told:
        self.deliver_overdue()
        is_submission = call.method == "POST"
        faults = SUBMIT_FAULTS if is_submission else CHECK_FAULTS
        effect = self.requests.planned(reference, is_submission=is_submission)
        if effect is None:
            odds = self.submit_odds if is_submission else self.check_odds
            effect = tuple(faults)[0 if self.around.cast.calm else self.around.choices.pick(odds)]
        self.requests.happened(reference, effect, is_submission=is_submission)
        told = faults[effect](self, call, reference)
        if self.around.cast.calm and not self.requests.hides(reference):
            self.bank.reveal(reference)
        return told

    def _known(self, call: HttpRequest) -> str:
        """Return the reference, and record its payer."""
        reference = reference_of(call)
        self.requests.payers[reference] = json.loads(call.body or b"")["payer"]["partyId"]
        return reference

    def _note(self, what: str, told: Told) -> None:
        actor = self.around.cast.me()
        self.around.note(f"{actor.name if actor else 'worker'}: {what} → {_shown(told)}")


@dataclass(frozen=True)
class Tokens:
    """Replaces TokenCache, which has tests of its own: returns a token, or a NOT_SENT."""

    network: Network

    def token(
        self, _account: ProviderAccount, _product: str, _mint: FetchToken
    ) -> str | Observation:
        if self.network.is_good(self.network.token_odds):
            return "token"
        return Observation(Verdict.NOT_SENT, "token_unavailable", retry_after_s=2.0)

    def discard(self, _account: ProviderAccount, _product: str, _token: str) -> bool:
        """Say that there is a new token."""
        return True

    def note_refused(self, _account: ProviderAccount, _product: str, _token: str) -> None:
        """Do nothing: here each 401 is followed by a second request, however often."""

    def note_accepted(self, _token: str) -> None:
        """Do nothing."""


@dataclass(frozen=True)
class Pace:
    """Replaces AccountPace: status checks may be postponed at any time."""

    network: Network

    def advise(self, _account: AccountKey, _checks_per_s: float | None) -> None:
        """Do nothing."""

    def is_open(self, _account: AccountKey, _step: Step) -> bool:
        return True

    def grant(self, wanted: Mapping[AccountKey, int]) -> Mapping[AccountKey, int]:
        if not any(wanted.values()) or self.network.is_good(self.network.token_odds):
            return wanted
        return dict.fromkeys(wanted, 0)

    def learn(self, _account: AccountKey, _step: Step, _seen: Observation, _calls: int) -> None:
        """Do nothing."""


def reference_of(call: HttpRequest) -> str:
    """The payment's reference, from the request's header or path."""
    return call.headers.get("X-Reference-Id") or call.url.rpartition("/")[2]


# --- outcomes of a submission -----------------------------------------------------------------


def _honest_submit(network: Network, call: HttpRequest, _reference: str) -> Told:
    return network.take(call)


def _answer_lost(network: Network, call: HttpRequest, _reference: str) -> Told:
    network.take(call)
    return ConnectionResetError()


def _never_arrives(_network: Network, _call: HttpRequest, _reference: str) -> Told:
    return TimeoutError()


def _not_connected(_network: Network, _call: HttpRequest, _reference: str) -> Told:
    return ConnectionRefusedError()


def _straggles(network: Network, call: HttpRequest, _reference: str) -> Told:
    network.stragglers.append(Straggler(call, network.clock.seconds() + STRAGGLE_MAX_S))
    return TimeoutError()


def _error_after_accepting(network: Network, call: HttpRequest, _reference: str) -> Told:
    network.take(call)
    return coded(500, "INTERNAL_PROCESSING_ERROR")


def _unavailable(_network: Network, _call: HttpRequest, _reference: str) -> Told:
    return HttpResponse(503, {"retry-after": "5"}, b"<html>Service Unavailable</html>")


def _wrong_page_after_accepting(network: Network, call: HttpRequest, _reference: str) -> Told:
    network.take(call)
    return HttpResponse(200, {}, b"<html>It works!</html>")


def _refused(network: Network, _call: HttpRequest, reference: str) -> Told:
    return network.bank.refuse(reference, HttpResponse(400, {}, b""))


def _refused_by_code(network: Network, _call: HttpRequest, reference: str) -> Told:
    return network.bank.refuse(reference, coded(500, "PAYER_NOT_FOUND"))


def _throttled(_network: Network, _call: HttpRequest, _reference: str) -> Told:
    return HttpResponse(429, {"retry-after": "3"}, b"")


def _unauthorized(network: Network, _call: HttpRequest, reference: str) -> Told:
    network.around.referee.unauthorized(reference)
    return HttpResponse(401, {}, b"")


def _no_such_address(_network: Network, _call: HttpRequest, _reference: str) -> Told:
    return HttpResponse(404, {}, b"Resource not found")


def _forbidden(network: Network, _call: HttpRequest, reference: str) -> Told:
    return network.bank.refuse(reference, HttpResponse(403, {}, b"<html>403 Forbidden</html>"))


def _taken_and(told: Fault) -> Fault:
    def both(network: Network, call: HttpRequest, reference: str) -> Told:
        network.take(call)
        return told(network, call, reference)

    return both


def _there_already(_network: Network, _call: HttpRequest, _reference: str) -> Told:
    return coded(409, "RESOURCE_ALREADY_EXIST")


SUBMIT_FAULTS: Final[Mapping[str, Fault]] = {
    HONEST: _honest_submit,
    "taken, reset": _answer_lost,
    "no answer": _never_arrives,
    NOT_CONNECTED: _not_connected,
    "taken later": _straggles,
    "taken, 500": _error_after_accepting,
    "503": _unavailable,
    "taken, wrong page": _wrong_page_after_accepting,
    "refused, 400": _refused,
    "refused by code": _refused_by_code,
    "429": _throttled,
    "401": _unauthorized,
    "404": _no_such_address,
    "refused, 403": _forbidden,
    "taken, 401": _taken_and(_unauthorized),
    "taken, 404": _taken_and(_no_such_address),
    "taken, 409": _taken_and(_there_already),
    "taken, 429": _taken_and(_throttled),
    "taken, 503": _taken_and(_unavailable),
}
# Odds of their own, for bugs that need a chain of these: the first submission is accepted and not
# visible, the second is refused, and the first order still exists.
_EVASIVE: Final[Mapping[str, int]] = {
    HONEST: 2,
    "taken, reset": 4,
    "taken later": 4,
    "refused, 400": 4,
    "refused by code": 2,
}
EVASIVE_ODDS: Final = tuple(_EVASIVE.get(effect, 0) for effect in SUBMIT_FAULTS)


# --- answers to a status check ----------------------------------------------------------------


def _honest_check(network: Network, _call: HttpRequest, reference: str) -> Told:
    order = network.bank.orders.get(reference)
    if network.around.cast.calm and order is not None and order.fate is Fate.PENDING:
        network.bank.decide(order, Fate.SUCCESSFUL)
    return network.bank.show(reference)


def _not_found_yet(network: Network, call: HttpRequest, reference: str) -> Told:
    order = network.bank.orders.get(reference)
    if order is None or network.clock.seconds() < order.visible_at_s - network.bank.hide_s + (
        HIDDEN_MAX_S
    ):
        return coded(404, "RESOURCE_NOT_FOUND")
    return _honest_check(network, call, reference)


def _still_pending(network: Network, _call: HttpRequest, reference: str) -> Told:
    order = network.bank.orders.get(reference)
    return _changed(network, order, status=Fate.PENDING.value)


def _another_order(network: Network, _call: HttpRequest, reference: str) -> Told:
    """Another payment with another amount: paid, but not this one."""
    order = network.bank.orders.get(reference)
    if order is None:
        return coded(404, "RESOURCE_NOT_FOUND")
    network.bank.mixed_up.add(reference)
    other = replace(order, amount=str(int(order.amount) + 1))
    return HttpResponse(200, {}, network.bank.told(other, Fate.SUCCESSFUL))


def _unknown_word(network: Network, _call: HttpRequest, reference: str) -> Told:
    return _changed(network, network.bank.orders.get(reference), status="ONGOING")


def _cut_short(network: Network, _call: HttpRequest, reference: str) -> Told:
    told = network.bank.show(reference)
    return replace(told, body=told.body[:-5])


CHECK_FAULTS: Final[Mapping[str, Fault]] = {
    HONEST: _honest_check,
    "no answer": _never_arrives,
    NOT_CONNECTED: _not_connected,
    "not found yet": _not_found_yet,
    "still pending": _still_pending,
    "another order": _another_order,
    "503": _unavailable,
    "unknown word": _unknown_word,
    "cut short": _cut_short,
    "404": _no_such_address,
    "429": _throttled,
    "401": _unauthorized,
}


def _changed(network: Network, order: BankOrder | None, *, status: str) -> Told:
    if order is None:
        return coded(404, "RESOURCE_NOT_FOUND")
    told = network.bank.told(order, Fate.PENDING)
    return HttpResponse(200, {}, told.replace(b'"PENDING"', f'"{status}"'.encode()))


def _shown(told: Told) -> str:
    if isinstance(told, OSError):
        return type(told).__name__
    # Without ids: they begin with the real time, and a seed's trace is always the same.
    body = _ID.sub("…", told.body.decode(errors="replace"))
    return f"{told.status} {body[:60]}".strip()
