"""The way to the provider and back, where anything may happen to a call but a lie about an end.

Only the sockets are replaced: the real MtnMomo speaks over the real Transport, whose fence
decides whether a call may still leave and whose words say what became of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from payments_app.kernel.departure import Departure
from payments_app.kernel.transport import Transport
from payments_app.kernel.wire import Answer, Call
from payments_app.providers.contract import Observation, ProviderAccount, Verdict
from payments_app.providers.tokens import Mint
from tests.simulation.bank import HIDDEN_MAX_S, Bank, BankOrder, Fate, coded
from tests.simulation.cast import Cast, Where
from tests.simulation.choices import Choices
from tests.simulation.clock import VirtualClock
from tests.simulation.referee import Referee

# How long a request that seems lost may still be on its way. With HIDDEN_MAX_S and the lease it
# stays below the adapter's visible_after_s: an older 404 may be believed.
STRAGGLE_MAX_S: Final = 150.0
EXCHANGE_S: Final = 0.2

Told = Answer | OSError
Fault = Callable[["Network", Call, str], Told]


@dataclass(frozen=True, slots=True)
class Straggler:
    """A submission that its sender has given up, and that may yet arrive."""

    call: Call
    until_s: float


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the network is told of the world around it."""

    cast: Cast
    clock: VirtualClock
    choices: Choices
    bank: Bank
    referee: Referee
    note: Callable[[str], None]


class Network(Transport):
    """One run's network. `submit_odds`, `check_odds`: weights of the faults below, in turn."""

    def __init__(self, around: Surroundings) -> None:
        super().__init__(user_agent="simulation")
        self.around = around
        self.bank, self.clock = around.bank, around.clock
        self.submit_odds: Sequence[int] = (1,)
        self.check_odds: Sequence[int] = (1,)
        self.token_odds: Sequence[int] = (1, 0)
        self.stragglers: list[Straggler] = []

    def _answer(self, call: Call, leaving: Departure, _start: float) -> Answer:
        """One call on the wire, in the place of HTTPAdapter and of departure's connections."""
        reference = reference_of(call)
        name = self.around.referee.name_of(reference)
        what = f"{'submit' if call.method == 'POST' else 'check'} {name}"
        self.around.cast.point(Where.NETWORK, f"{what} is to leave")
        leaving.remaining_s()
        leaving.check_lease()
        ticket = self.around.referee.leaving(call, reference)
        told = self._at_the_provider(call, reference)
        leaving.begun = not isinstance(told, ConnectionRefusedError)
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
        """Whether nothing goes wrong now."""
        return self.around.cast.calm or self.around.choices.pick(odds) == 0

    def deliver(self, straggler: Straggler) -> None:
        """The late request arrives; nobody waits for the answer."""
        self.stragglers.remove(straggler)
        # It is overdue only for us, who look late: it came when it had to.
        self.bank.submit(straggler.call, at_s=min(straggler.until_s, self.clock.seconds()))

    def deliver_overdue(self) -> None:
        """None is on its way longer than STRAGGLE_MAX_S."""
        for straggler in list(self.stragglers):
            if straggler.until_s <= self.clock.seconds():
                self.deliver(straggler)

    def _at_the_provider(self, call: Call, reference: str) -> Told:
        self.deliver_overdue()
        faults = SUBMIT_FAULTS if call.method == "POST" else CHECK_FAULTS
        odds = self.submit_odds if call.method == "POST" else self.check_odds
        chosen = 0 if self.around.cast.calm else self.around.choices.pick(odds)
        return faults[chosen](self, call, reference)

    def _note(self, what: str, told: Told) -> None:
        actor = self.around.cast.me()
        self.around.note(f"{actor.name if actor else 'worker'}: {what} → {_shown(told)}")


@dataclass(frozen=True)
class Tokens:
    """Stands in for TokenCache, which has tests of its own: a token, or none to be had now."""

    network: Network

    def token(self, _account: ProviderAccount, _product: str, _mint: Mint) -> str | Observation:
        if self.network.is_good(self.network.token_odds):
            return "token"
        return Observation(Verdict.NOT_SENT, "token_unavailable", retry_after_s=2.0)

    def discard(self, _account: ProviderAccount, _product: str, _token: str) -> None:
        """A new one is at hand."""


@dataclass(frozen=True)
class Pace:
    """Stands in for SharedPace: questions may be held back at any time."""

    network: Network

    def wait_s(self, _account: ProviderAccount, _checks_per_s: float | None) -> float:
        if self.network.is_good(self.network.token_odds):
            return 0.0
        return 1.5


def reference_of(call: Call) -> str:
    """What the call is about, as it stands on the wire."""
    return call.headers.get("X-Reference-Id") or call.url.rpartition("/")[2]


# --- what may become of a submission ----------------------------------------------------------


def _honest_submit(network: Network, call: Call, _reference: str) -> Told:
    return network.bank.submit(call)


def _answer_lost(network: Network, call: Call, _reference: str) -> Told:
    network.bank.submit(call)
    return ConnectionResetError()


def _never_arrives(_network: Network, _call: Call, _reference: str) -> Told:
    return TimeoutError()


def _not_connected(_network: Network, _call: Call, _reference: str) -> Told:
    return ConnectionRefusedError()


def _straggles(network: Network, call: Call, _reference: str) -> Told:
    network.stragglers.append(Straggler(call, network.clock.seconds() + STRAGGLE_MAX_S))
    return TimeoutError()


def _error_after_accepting(network: Network, call: Call, _reference: str) -> Told:
    network.bank.submit(call)
    return coded(500, "INTERNAL_PROCESSING_ERROR")


def _unavailable(_network: Network, _call: Call, _reference: str) -> Told:
    return Answer(503, {"retry-after": "5"}, b"<html>Service Unavailable</html>")


def _wrong_page_after_accepting(network: Network, call: Call, _reference: str) -> Told:
    network.bank.submit(call)
    return Answer(200, {}, b"<html>It works!</html>")


def _refused(network: Network, _call: Call, reference: str) -> Told:
    return network.bank.refuse(reference, Answer(400, {}, b""))


def _refused_by_code(network: Network, _call: Call, reference: str) -> Told:
    return network.bank.refuse(reference, coded(500, "PAYER_NOT_FOUND"))


def _throttled(_network: Network, _call: Call, _reference: str) -> Told:
    return Answer(429, {"retry-after": "3"}, b"")


def _unauthorized(network: Network, _call: Call, reference: str) -> Told:
    network.around.referee.unauthorized(reference)
    return Answer(401, {}, b"")


SUBMIT_FAULTS: Final[tuple[Fault, ...]] = (
    _honest_submit,
    _answer_lost,
    _never_arrives,
    _not_connected,
    _straggles,
    _error_after_accepting,
    _unavailable,
    _wrong_page_after_accepting,
    _refused,
    _refused_by_code,
    _throttled,
    _unauthorized,
)
# Weather of its own, for what needs a chain of these: the first is lost from sight, the second
# refused, and the first still there.
_EVASIVE: Final[dict[Fault, int]] = {
    _honest_submit: 2,
    _answer_lost: 4,
    _straggles: 4,
    _refused: 4,
    _refused_by_code: 2,
}
EVASIVE_ODDS: Final = tuple(_EVASIVE.get(fault, 0) for fault in SUBMIT_FAULTS)


# --- what may be said to a question -----------------------------------------------------------


def _honest_check(network: Network, _call: Call, reference: str) -> Told:
    order = network.bank.orders.get(reference)
    if network.around.cast.calm and order is not None and order.fate is Fate.PENDING:
        network.bank.decide(order, Fate.SUCCESSFUL)
    return network.bank.show(reference)


def _not_found_yet(network: Network, call: Call, reference: str) -> Told:
    order = network.bank.orders.get(reference)
    if order is None or network.clock.seconds() < order.visible_at_s - network.bank.hide_s + (
        HIDDEN_MAX_S
    ):
        return coded(404, "RESOURCE_NOT_FOUND")
    return _honest_check(network, call, reference)


def _no_route(_network: Network, _call: Call, _reference: str) -> Told:
    return Answer(404, {}, b"Resource not found")


def _still_pending(network: Network, _call: Call, reference: str) -> Told:
    order = network.bank.orders.get(reference)
    return _changed(network, order, status=Fate.PENDING.value)


def _another_order(network: Network, _call: Call, reference: str) -> Told:
    """Somebody else's payment of another amount: paid, but not ours."""
    order = network.bank.orders.get(reference)
    if order is None:
        return coded(404, "RESOURCE_NOT_FOUND")
    network.bank.mixed_up.add(reference)
    other = replace(order, amount=str(int(order.amount) + 1))
    return Answer(200, {}, network.bank.told(other, Fate.SUCCESSFUL))


def _unknown_word(network: Network, _call: Call, reference: str) -> Told:
    return _changed(network, network.bank.orders.get(reference), status="ONGOING")


def _cut_short(network: Network, _call: Call, reference: str) -> Told:
    told = network.bank.show(reference)
    return replace(told, body=told.body[:-5])


CHECK_FAULTS: Final[tuple[Fault, ...]] = (
    _honest_check,
    _never_arrives,
    _not_connected,
    _not_found_yet,
    _still_pending,
    _another_order,
    _unavailable,
    _unknown_word,
    _cut_short,
    _no_route,
    _throttled,
    _unauthorized,
)


def _changed(network: Network, order: BankOrder | None, *, status: str) -> Told:
    if order is None:
        return coded(404, "RESOURCE_NOT_FOUND")
    told = network.bank.told(order, Fate.PENDING)
    return Answer(200, {}, told.replace(b'"PENDING"', f'"{status}"'.encode()))


def _shown(told: Told) -> str:
    if isinstance(told, OSError):
        return type(told).__name__
    return f"{told.status} {told.body[:60].decode(errors='replace')}".strip()
