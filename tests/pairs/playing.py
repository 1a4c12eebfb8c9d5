"""Each ordered pair of effects, once, on the real engine, adapter, PostgreSQL and HTTP.

Each pair has a payment of its own, for which its faults are set in the simulator. The status that
the tenant gets in the end is compared with the simulator's ledger.
"""

from __future__ import annotations

import socket
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Final, Self
from uuid import UUID

import requests
from flask import Flask

from chaos.pairs import QUESTIONS, SUBMISSIONS, Effect, Pair, Second
from devstack.supervisor import wait_until
from payments_app import Parts
from payments_app.kernel.http.messages import HttpRequest, HttpResponse, LeaseLost, NoResponse
from payments_app.kernel.http.transport import Transport
from payments_app.payments import processor
from payments_app.payments.gateway import PaymentGateway
from payments_app.payments.states import Step
from payments_app.providers.contract import AccountKey, Mode, Observation, ProviderAccount
from payments_app.tenants.accounts import ProviderAccounts
from payments_app.tenants.caller import Caller
from payments_app.worker.exchange_threads import ThreadExchangePool
from tests.builders import a_caller, an_accepted_payment, an_asker, an_order, let_time_pass
from tests.builders import payment_row as row_of

# In real time; a late answer takes longer than that.
PATIENCE_S: Final = 0.4
LATE_S: Final = 0.8
SLOTS: Final = 8
ROWS_AT_ONCE: Final = 3
# How long the provider hides an accepted payment when the second effect is on a submission: nearly
# as long as the adapter expects at most (visible_after_s).
HIDDEN_S: Final = 250.0
QUESTIONS_STRUCK: Final = 3
# Seconds between the engine's runs: at first as short as its own pauses, later in leaps.
_FIRST_STEPS_S: Final = (1, 1, 2, 4)
_LEAP_S: Final = 120
_PAYER_APPROVES_S: Final = 240.0
_STUCK_S: Final = 3_000.0
# A status check, a submission, and the same once more under a new token.
_CALLS_IN_A_TURN: Final = 3


@dataclass(frozen=True, slots=True)
class Outcome:
    """The tenant's status, and the ledger's counts. `had_second`: the second effect happened."""

    told: str
    taken: int
    moved: int
    had_second: bool

    @property
    def fault(self) -> str:
        """The kind of broken promise; empty if there is none."""
        if self.taken > 1 or self.moved > 1:
            return "DUPLICATE"
        if self.told == "PENDING":
            return "STUCK"
        if self.moved != (self.told == "SUCCESSFUL") or self.taken != self.moved:
            return "LIE"
        return ""

    def __str__(self) -> str:
        told = f"{self.told[0]}{self.moved}"
        told += "" if self.had_second else "·"
        return f"**{self.fault}** {told}" if self.fault else told


@dataclass
class Wires(Transport):
    """The real transport. Causes the effects that the simulator can't.

    Its timeout is shorter where the answer comes too late: a slow machine may take its time for
    the others.

    `script`: (reference, which submission) → the effect's name.
    """

    script: dict[tuple[str, int], str] = field(default_factory=dict)
    # The submissions, and the payments' status checks, that the simulator answers too late.
    late: set[tuple[str, int]] = field(default_factory=set)
    late_checks: set[str] = field(default_factory=set)
    submitted: Counter[str] = field(default_factory=Counter)
    closed_port: int = 0
    calls: int = 0

    def __post_init__(self) -> None:
        super().__init__(user_agent="Maramoja/test")
        self._lock = threading.Lock()

    def exchange(
        self, call: HttpRequest, *, leave_before: float | None
    ) -> HttpResponse | NoResponse:
        """See Transport."""
        reference = call.headers.get("X-Reference-Id", "")
        with self._lock:
            self.calls += 1
            self.submitted[reference] += 1
            nth = (reference, self.submitted[reference])
            effect = self.script.get(nth, "")
        if effect == "lease over":
            raise LeaseLost
        if effect == "not connected":
            call = replace(call, url=f"http://127.0.0.1:{self.closed_port}/")
        if nth in self.late or call.url.rpartition("/")[2] in self.late_checks:
            call = replace(call, timeout_s=PATIENCE_S)
        return super().exchange(call, leave_before=leave_before)


class Unlimited:
    """Replaces AccountPace, which uses real time: here the clock leaps, and it would lag behind."""

    def advise(self, _account: AccountKey, _checks_per_s: float | None) -> None:
        """Do nothing."""

    def is_open(self, _account: AccountKey, _step: Step) -> bool:
        return True

    def grant(self, wanted: Mapping[AccountKey, int]) -> Mapping[AccountKey, int]:
        return wanted

    def learn(self, _account: AccountKey, _step: Step, _seen: Observation, _calls: int) -> None:
        """Do nothing."""


@dataclass(frozen=True)
class Provider:
    """The simulator's admin API."""

    url: str
    session: requests.Session = field(default_factory=requests.Session)

    def begin(self) -> None:
        """Let no payment end until the payer approves."""
        self._call("POST", "reset")
        self._call("POST", "settings", {"approval_delay_s": None, "callback_mode": "none"})

    def script(self, pair: Pair, reference: str) -> None:
        """Set what happens to this payment's requests."""
        if pair.of is Second.SUBMISSION:
            self._fault(reference, "invisible", {"delay_s": HIDDEN_S}, times=None)
            # If the first request does not arrive, the simulator counts the second as its first.
            nth = 1 if pair.first.on_the_wire else 2
            second: dict[str, Any] = {"nth": nth, "times": None if pair.second.lasts else 1}
        else:
            second = {"operation": "status", "times": QUESTIONS_STRUCK}
        self._effect(reference, pair.first)
        self._effect(reference, pair.second, **second)

    def pass_time(self, seconds: float) -> None:
        self._call("POST", "clock", {"advance_s": seconds})

    def approve_all(self) -> None:
        """Each payer with a pending payment approves."""
        for row in self.rows("payments"):
            if row["status"] == "PENDING":
                self._call("POST", f"approve/{row['reference_id']}")

    def rows(self, view: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._call("GET", f"{view}?limit=10000")["data"]
        return found

    def forget(self) -> None:
        self._call("POST", "reset", {"data": True})

    def _effect(self, reference: str, effect: Effect, **details: Any) -> None:
        if effect.kind:
            parameters = dict(effect.parameters)
            if effect.is_late:
                parameters["delay_s"] = LATE_S
            self._fault(reference, effect.kind, parameters, **details)

    def _fault(
        self, reference: str, kind: str, parameters: Mapping[str, Any], **details: Any
    ) -> None:
        fault = {"kind": kind, "match": {"reference": reference}, "parameters": dict(parameters)}
        self._call("POST", "faults", {**fault, **details})

    def _call(self, method: str, path: str, document: object = None) -> dict[str, Any]:
        answer = self.session.request(
            method, f"{self.url}/_admin/{path}", json=document, timeout=10
        )
        answer.raise_for_status()
        found: dict[str, Any] = answer.json()
        return found


@dataclass
class Stage:
    """An app with an empty database, and a simulator, on which the pairs are played."""

    app: Flask
    provider: Provider
    gateway: PaymentGateway
    wires: Wires
    pool: ThreadExchangePool
    caller: Caller
    passed_s: float = 0.0
    payments: int = 0
    # The payments whose first submission arrives after we have left.
    late_ones: set[str] = field(default_factory=set)

    @classmethod
    @contextmanager
    def set_up(cls, app: Flask, account: ProviderAccount) -> Iterator[Self]:
        """`account`: a sandbox account at the simulator."""
        parts: Parts = app.extensions["maramoja"]
        pool = ThreadExchangePool(app, SLOTS)
        with app.app_context(), socket.socket() as deaf:
            # The socket is bound and does not listen, so that each connection is refused.
            deaf.bind(("127.0.0.1", 0))
            wires = Wires(closed_port=deaf.getsockname()[1])
            platform = replace(account, mode=Mode.TEST, target_environment="sandbox", version="1")
            accounts = ProviderAccounts((platform,), parts.cipher)
            gateway = replace(parts.gateway, accounts=accounts, transport=wires, pace=Unlimited())
            yield cls(
                app, Provider(account.base_url), gateway, wires, pool, a_caller(mode=Mode.TEST)
            )
        pool.join()

    def play(self, pairs: Sequence[Pair]) -> dict[Pair, Outcome]:
        """Play these at the same time, until all of them have ended."""
        self.passed_s = 0.0
        self.late_ones.clear()
        self.provider.forget()
        self.provider.begin()
        payments = {pair: self._payment(pair) for pair in pairs}
        self.payments = len(payments)
        self._turn()
        for step in _FIRST_STEPS_S:
            self._let_pass(step)
        # Requests that timed out must have arrived before time leaps.
        wait_until(
            lambda: (
                self.late_ones <= {row["reference_id"] for row in self.provider.rows("payments")}
            ),
            what="a late request does not arrive",
            limit_s=30,
        )
        self._until_ended(list(payments.values()), pairs[0].of)
        return self._judge(payments)

    def _payment(self, pair: Pair) -> UUID:
        context = an_asker(caller=self.caller)
        payment_id = an_accepted_payment(self.gateway, order=an_order(), context=context).payment_id
        reference = str(row_of(payment_id).reference)
        for number, effect in enumerate((pair.first, pair.second), start=1):
            if effect.on_the_wire:
                self.wires.script[reference, number] = effect.name
            if effect.is_late and (number == 1 or pair.of is Second.SUBMISSION):
                self.wires.late.add((reference, number))
        if pair.first.is_late:
            self.late_ones.add(reference)
        if pair.of is Second.QUESTION and pair.second.is_late:
            self.wires.late_checks.add(reference)
        self.provider.script(pair, reference)
        return payment_id

    def _until_ended(self, payment_ids: Sequence[UUID], of: Second) -> None:
        still_open = list(payment_ids)
        while self.passed_s < _STUCK_S and still_open:
            if of is Second.QUESTION or self.passed_s >= _PAYER_APPROVES_S:
                self.provider.approve_all()
            self._let_pass(_LEAP_S)
            still_open = [one for one in still_open if not row_of(one).is_final]
        # Approve once more, also payments that the gateway calls failed.
        self.provider.approve_all()

    def _let_pass(self, seconds: float) -> None:
        self.passed_s += seconds
        let_time_pass(seconds=seconds)
        self.provider.pass_time(seconds)
        self._turn()

    def _turn(self) -> None:
        """Process each payment once. On a slow machine they would be due again meanwhile."""
        until = self.wires.calls + _CALLS_IN_A_TURN * self.payments
        gateway = replace(self.gateway, stopping=lambda: self.wires.calls > until)
        processor.process_due(gateway, self.pool)

    def _judge(self, payments: Mapping[Pair, UUID]) -> dict[Pair, Outcome]:
        taken = Counter(row["reference_id"] for row in self.provider.rows("payments"))
        moved = Counter(row["reference_id"] for row in self.provider.rows("ledger"))
        struck: dict[str, list[tuple[str, str]]] = defaultdict(list)
        for row in self.provider.rows("requests"):
            struck[row["reference_id"]].append((row["operation"], row["fault"] or ""))
        outcomes = {}
        for pair, payment_id in payments.items():
            payment = row_of(payment_id)
            reference = str(payment.reference)
            outcomes[pair] = Outcome(
                told=str(payment.status),
                taken=taken[reference],
                moved=moved[reference],
                had_second=self._had_second(pair, reference, struck[reference]),
            )
        return outcomes

    def _had_second(self, pair: Pair, reference: str, calls: Sequence[tuple[str, str]]) -> bool:
        """Whether both effects happened, in order. Raises AssertionError if the first did not."""
        submissions = [fault for operation, fault in calls if operation == "create"]
        sent = self.wires.submitted[reference]
        if pair.first.on_the_wire:
            assert sent
            submissions.insert(0, "")
        assert submissions[0] == pair.first.kind, f"the first of {pair} did not strike"
        if pair.second.on_the_wire:
            return sent > 1
        if pair.of is Second.QUESTION:
            # Some faults happen only to a status check that finds the payment.
            return pair.second.kind in [
                fault for operation, fault in calls if operation == "status"
            ]
        return submissions[1:2] == [pair.second.kind]


def all_pairs() -> list[list[Pair]]:
    """The rows of both tables: a first effect with all its second ones."""
    return [
        [Pair(first, second, of) for second in seconds]
        for of, seconds in ((Second.SUBMISSION, SUBMISSIONS), (Second.QUESTION, QUESTIONS))
        for first in SUBMISSIONS
    ]


def play_all(stage: Stage) -> dict[Pair, Outcome]:
    """Play every pair, some rows at a time: more would take longer than a step of time."""
    rows, outcomes = all_pairs(), {}
    for of in Second:
        of_this = [row for row in rows if row[0].of is of]
        for start in range(0, len(of_this), ROWS_AT_ONCE):
            batch = of_this[start : start + ROWS_AT_ONCE]
            outcomes |= stage.play([pair for row in batch for pair in row])
    return outcomes
