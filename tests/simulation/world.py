"""One seed's world: its actors, its faults, and the acts that may happen next."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Final, cast
from uuid import UUID

from payments_app.payments import callbacks, operations, processor, retention
from payments_app.payments.callbacks import ReceivedCallback
from payments_app.payments.exchange_pool import SerialExchangePool
from payments_app.payments.gateway import PaymentGateway
from payments_app.payments.operations import PaymentEnded
from payments_app.providers.contract import Mode, ProviderAccount
from payments_app.providers.mtn_momo import MtnMomo
from payments_app.providers.registry import Registry
from payments_app.providers.tokens import TokenCache
from payments_app.tenants.accounts import ProviderAccounts
from tests.simulation import pairs
from tests.simulation.bank import HIDDEN_MAX_S, Bank, BankOrder, Fate
from tests.simulation.cast import Odds
from tests.simulation.choices import Choices
from tests.simulation.clients import Clients, Intent
from tests.simulation.installation import Installation
from tests.simulation.network import (
    CHECK_FAULTS,
    EVASIVE_ODDS,
    SUBMIT_FAULTS,
    Network,
    Pace,
    Surroundings,
    Tokens,
)

# A worker that does more steps at once than any world has work for is in an endless loop.
WORKER_STEPS_MAX: Final = 25
INTENTS_MAX: Final = 3
HONEST_ODDS: Final = 12
# The distance, in their order, between the pairs of one world's payments.
PAIRS_APART: Final = 270

SHORT_LEAPS_S: Final = (1.0, 4.0, 12.0, 20.0, 31.0)
LONG_LEAPS_S: Final = (65.0, 160.0, 320.0, 3_700.0, 90_000.0)
NIGHT_S: Final = 87_000.0
_OPERATOR, _NIGHT = 1, 2
REASONS: Final = ("APPROVAL_REJECTED", "NOT_ENOUGH_FUNDS", "SOMETHING_NEW")

_PLATFORM: Final = ProviderAccount(
    id=None,
    provider="mtn_momo",
    mode=Mode.LIVE,
    base_url="https://momo.invalid",
    target_environment="mtnuganda",
    credentials={
        "collection_subscription_key": "subscription",
        "collection_api_user": "user",
        "collection_api_key": "secret",
    },
    version="1",
)


@dataclass
class World:
    """The parts of a run; `act` does the next thing that the choices say."""

    installation: Installation
    choices: Choices
    trace: list[str] = field(default_factory=list)
    worker_steps: int = 0
    spawned: int = 0

    def __post_init__(self) -> None:
        here = self.installation
        self.cast, self.clock = here.cast, here.clock
        self.bank = Bank(here.clock)
        self.clients = Clients(
            self.note, lambda intent: here.referee.is_open(intent.name, intent.caller.tenant_id)
        )
        self.network = Network(
            Surroundings(here.cast, here.clock, self.choices, self.bank, here.referee, self.note)
        )
        self.gateway = PaymentGateway(
            registry=Registry({"mtn_momo": MtnMomo(cast("TokenCache", Tokens(self.network)))}),
            accounts=ProviderAccounts((_PLATFORM,), here.cipher),
            transport=self.network,
            pace=Pace(self.network),
            keyring=here.keyring,
            public_base_url="https://gateway.invalid",
            stopping=self._tired,
        )

    def settle_in(self, seed: int) -> None:
        """Draw the odds of the faults, and the intents. Not every world has every fault: some show
        only where another one does not happen.
        """
        self.installation.jitter.seed(seed)
        self.cast.begin(self.choices, self.note)
        pick = self.choices.pick
        self.cast.odds = Odds(
            release_key=(8, 12, 25, 0)[pick((3, 3, 2, 1))],
            die=(0, 1, 3)[pick((3, 2, 1))],
            cut=(0, 1, 3)[pick((4, 2, 1))],
        )
        self.network.submit_odds = self._weather(len(SUBMIT_FAULTS))
        self.network.check_odds = self._weather(len(CHECK_FAULTS))
        if pick((9, 1)):
            self.bank.hide_s = HIDDEN_MAX_S
            self.network.submit_odds = EVASIVE_ODDS
        self.network.token_odds = (9, pick((2, 1)))
        self._stop_odds = (3, 8)[pick((1, 1))]
        self._leaps = SHORT_LEAPS_S + LONG_LEAPS_S * pick((1, 1))
        for number in range(1, 2 + pick((5, 4, 1))):
            intent = self._intent(number)
            self.clients.intents.append(intent)
            self._write_script(intent, turn=seed + (number - 1) * PAIRS_APART)

    def note(self, line: str) -> None:
        """Add a line to the trace."""
        self.trace.append(f"{self.clock.since_start_s():12.3f}  {line}")

    def act(self) -> bool:
        """Do one more act. False: no more acts."""
        room, bell = not self.cast.is_full, self.installation.doorbell
        weights = (
            self._stop_odds,
            30 if self.cast.parked() else 0,
            (6 + 12 * bool(bell.rings)) if room else 0,
            20 if room else 0,
            7 if room else 0,
            8,  # time passes
            8 if self.bank.pending() else 0,
            6 if room else 0,
            3 if room else 0,
            4 if self.network.stragglers else 0,
            2 if self.cast.waiting() else 0,
        )
        self.choices.mark()
        chosen = self.choices.pick(weights)
        if chosen:
            _ACTIONS[chosen - 1](self)
        return bool(chosen)

    # --- what may happen ---

    def resume_someone(self) -> None:
        """An actor that has stopped goes on."""
        actor = self.choices.one_of(self.cast.parked())
        self.note(f"{actor.name} goes on")
        self.cast.resume(actor)

    def look(self) -> None:
        """A worker polls for due work: after a notification, or at its next poll."""
        bell = self.installation.doorbell
        bell.rings = max(bell.rings - 1, 0)
        hands = SerialExchangePool(1 + self.choices.pick((3, 1, 2)))
        self._spawn("worker", partial(processor.process_due, self.gateway, hands))

    def look_when_due(self) -> None:
        """Move the clock until something is due; then a worker polls."""
        due = self.installation.referee.next_due()
        if due is not None:
            self.clock.leap_to(due)
        self.look()

    def request(self) -> None:
        """A client sends: for the first time, or again, or something else under the same key."""
        intent = self.choices.one_of(self.clients.intents)
        variant = self.choices.pick((5, 1))
        act = partial(self.clients.send, intent, variant, self.gateway)
        self._spawn(f"client({intent.name}/{variant})", act)

    def pass_time(self) -> None:
        """Time passes without any act."""
        leap = self.choices.one_of(self._leaps)
        self.note(f"{leap:g} s pass")
        self.clock.leap(leap)

    def payer_decides(self) -> None:
        """The payer approves or refuses one order."""
        order = self.choices.one_of(self.bank.pending())
        fate = (Fate.SUCCESSFUL, Fate.FAILED)[self.choices.pick((3, 2))]
        reason = self.choices.one_of(REASONS) if fate is Fate.FAILED else ""
        self.note(f"the payer decides {self._name(order.reference)}: {fate} {reason}")
        self.bank.decide(order, fate, reason)

    def call_back(self) -> None:
        """The provider calls back, or an attacker does, even before there is an order."""
        references = self.installation.referee.references()
        if not references:
            return
        reference = self.choices.one_of(references)
        order = self.bank.orders.get(reference) or BankOrder(reference, "", "1", "UGX", "1", 0.0)
        fates = (order.fate, Fate.SUCCESSFUL, Fate.FAILED, Fate.PENDING)
        fate = fates[self.choices.pick((3, 1, 1, 1))]
        self.note(f"a callback says {self._name(reference)}: {fate}")
        received = ReceivedCallback(
            provider="mtn_momo",
            reference=UUID(reference),
            method="PUT",
            body=self.bank.told(order, fate),
            source=None,
        )
        self._spawn(
            "callback", partial(callbacks.record_callback, received, self.installation.keyring)
        )

    def keep_house(self) -> None:
        """Old answers are purged, now or a day later, or the operator rechecks a payment."""
        chosen = self.choices.pick((1, 1, 1 if self._leaps[-1] > NIGHT_S else 0))
        if chosen == _NIGHT:
            self.note("a night passes")
            self.clock.leap(NIGHT_S)
        if chosen != _OPERATOR:
            self._spawn("retention", lambda: retention.purge_responses())  # noqa: PLW0108  mutants replace it
            return
        known = [said.payment_id for said in self.clients.said if said.payment_id]
        if known:
            self._spawn("operator", partial(_recheck, self.choices.one_of(known)))

    def straggler_arrives(self) -> None:
        """A submission that seemed lost reaches the provider after all."""
        straggler = self.choices.one_of(self.network.stragglers)
        self.note("a straggler arrives")
        self.network.deliver(straggler)

    def lock_times_out(self) -> None:
        """An actor has waited too long for a row's lock."""
        actor = self.choices.one_of(self.cast.waiting())
        self.note(f"{actor.name} has waited too long")
        self.cast.end_waiting(actor)

    # --- parts ---

    def _spawn(self, role: str, act: Callable[[], object]) -> None:
        self.spawned += 1
        name = f"{role}{self.spawned}"
        self.note(f"{name} begins")
        self.cast.spawn(name, lambda: _ignore(act()))

    def _intent(self, number: int) -> Intent:
        caller = self.choices.one_of(self.installation.callers)
        # Two tenants may use the same key by chance; a tenant doesn't use one twice on purpose.
        shared = number > 1 and self.choices.pick((3, 1))
        key = UUID(int=(0xC0FFEE << 96) + (1 if shared else number), version=4)
        if any((other.caller, other.key) == (caller, key) for other in self.clients.intents):
            key = UUID(int=(0xC0FFEE << 96) + 100 + number, version=4)
        return Intent(number, caller, key, minor=1000 * number)

    def _write_script(self, intent: Intent, turn: int) -> None:
        """The first payment has a script, and most others: over the seeds all pairs are played."""
        if intent.number == 1 or self.choices.pick((1, 6)):
            pair = pairs.ALL[self.choices.in_turn(len(pairs.ALL), turn)]
            payer = intent.order(0).payer.digits
            self.network.requests.scripts[payer] = pair
            self.note(f"{intent.name}: {pair}")

    def _weather(self, faults: int) -> tuple[int, ...]:
        """Weights of the faults: none at all, or each with a weight of its own, often 0."""
        if not self.choices.pick((1, 3)):
            return (HONEST_ODDS, *[0] * (faults - 1))
        self.bank.hide_s = self.choices.one_of((0.0, 10.0, HIDDEN_MAX_S))
        return (HONEST_ODDS, *[(0, 2, 6)[self.choices.pick((4, 2, 1))] for _ in range(faults - 1)])

    def _name(self, reference: str) -> str:
        return self.installation.referee.name_of(reference)

    def _tired(self) -> bool:
        self.worker_steps += 1
        return self.worker_steps % WORKER_STEPS_MAX == 0


_ACTIONS: Final[tuple[Callable[[World], None], ...]] = (
    World.resume_someone,
    World.look,
    World.look_when_due,
    World.request,
    World.pass_time,
    World.payer_decides,
    World.call_back,
    World.keep_house,
    World.straggler_arrives,
    World.lock_times_out,
)


def _ignore(_result: object) -> None:
    """Discard the result: an actor returns nothing."""


def _recheck(payment_id: UUID) -> None:
    try:
        operations.recheck_payment(payment_id, actor="cli:simulation")
    except PaymentEnded:
        return
