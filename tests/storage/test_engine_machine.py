"""Any order of events: a state machine acts as clients, workers, a provider and the clock.

Workers claim, call the provider, record the result, or die in between. The provider may answer
anything, late or never, but never reports an end that is not true. To let time pass, the test moves
the times in the database back. All spans of the engine are longer than a slow machine needs for a
sequence, so that no other time counts: the same steps must have the same effect each time, or
Hypothesis fails. The promises must hold after each step. At the end all faults stop, and each
payment must reach the state that the provider has.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Final
from uuid import UUID, uuid4

import psycopg
import pytest
from flask import Flask
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from psycopg.rows import dict_row

from payments_app.kernel.http.messages import LeaseLost
from payments_app.kernel.http.transport import Lease
from payments_app.kernel.idempotency import KeyReused
from payments_app.payments import backoff, callbacks, claims, processor
from payments_app.payments.accept import AcceptContext, Accepted
from payments_app.payments.callbacks import ReceivedCallback, record_callback
from payments_app.payments.claims import Claim
from payments_app.providers.contract import (
    Capabilities,
    Mode,
    Observation,
    PaymentOrder,
    Verdict,
)
from payments_app.providers.submission import SubmissionClient
from payments_app.tenants.caller import Caller
from tests.builders import (
    ANSWERS,
    SCRIPTED,
    ScriptedProvider,
    advance,
    an_accepted_payment,
    an_asker,
    an_order,
    found,
    keyring,
    rails_of,
    record,
)
from tests.builders import claims as claims_of_due
from tests.storage.attacker import EVERY_ROW

PAYMENTS_MAX: Final = 3
WORKERS_MAX: Final = 3
# A late submission arrives after this time; a check may not find it for so long after its arrival.
LATE_S: Final = 15.0
HIDDEN_S: Final = 40.0
VISIBLE_AFTER_S: Final = 60.0
# The engine's spans are so many times as long. The seconds here are those of the usual spans.
LONGER: Final = 20

TO_SUBMISSION: Final = st.sampled_from(
    [
        "right",
        "right",
        "lost_before",
        "lost_after",
        "late",
        "not_sent",
        "refused",
        "garbage",
        "ends",
    ]
)
TO_QUESTION: Final = st.sampled_from(
    ["right", "right", "hidden", "stale", "unknown", "not_sent", "garbage"]
)
PAUSES: Final = st.sampled_from([0.0, 0.0, 2.0, 5.0, 31.0, 31.0, 61.0, 700.0, 86_400.0 * 30])
WHICH: Final = st.integers(0, 5)


@dataclass
class Truth:
    """What the provider has under one reference. `charges`: how often the payer was charged."""

    arrived_at: float
    state: str = "pending"
    charges: int = 1


@dataclass
class Provider(ScriptedProvider):
    """Keeps its own ledger, and answers as the rules say. The state machine moves its clock."""

    now: float = 0.0
    book: dict[UUID, Truth] = field(default_factory=dict)
    under_way: list[tuple[float, UUID]] = field(default_factory=list)
    to_submission: str = "right"
    to_question: str = "right"

    def submit(self, order: PaymentOrder, *_: Any) -> Observation:
        reference = order.reference
        match self.to_submission:
            case "not_sent" | "refused" as answer:
                return ANSWERS[answer]
            case "lost_before":
                return ANSWERS["unknown"]
            case "late":
                self.under_way.append((self.now + LATE_S, reference))
                return ANSWERS["unknown"]
        known = reference in self.book and self.capabilities.idempotent_submit
        self.arrive(reference)
        match self.to_submission:
            case "garbage":
                raise ZeroDivisionError
            case "lost_after":
                return ANSWERS["unknown"]
            case "ends":
                self.decide(reference, "paid")
                return ANSWERS[self.book[reference].state]
        return ANSWERS["duplicate" if known else "accepted"]

    def check(self, order: PaymentOrder, *_: Any) -> Observation:
        truth = self.book.get(order.reference)
        match self.to_question:
            case "unknown" | "not_sent" as answer:
                return ANSWERS[answer]
            case "garbage":
                raise ZeroDivisionError
            case "hidden" if truth and self.now - truth.arrived_at < HIDDEN_S:
                return ANSWERS["not_found"]
            case "stale" if truth:
                return ANSWERS["pending"]
        return ANSWERS[truth.state if truth else "not_found"]

    def arrive(self, reference: UUID) -> None:
        if reference not in self.book:
            self.book[reference] = Truth(self.now)
        elif not self.capabilities.idempotent_submit:
            self.book[reference].charges += 1

    def decide(self, reference: UUID, state: str) -> None:
        truth = self.book[reference]
        truth.state = state if truth.state == "pending" else truth.state

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        for arrives_at, reference in [late for late in self.under_way if late[0] <= self.now]:
            self.under_way.remove((arrives_at, reference))
            self.arrive(reference)
            self.book[reference].arrived_at = min(self.book[reference].arrived_at, arrives_at)


@dataclass
class Order:
    """What one client requested, and the response."""

    context: AcceptContext
    amount: str
    accepted: Accepted


class Life(RuleBasedStateMachine):
    """See the module. The test sets the app, a connection to inspect rows, and `empty_tables`."""

    app: ClassVar[Flask]
    onlooker: ClassVar[psycopg.Connection[dict[str, Any]]]
    empty_tables: ClassVar[Callable[[], None]]
    reached: ClassVar[Counter[str]]

    def __init__(self) -> None:
        super().__init__()
        type(self).empty_tables()
        self.provider = Provider()
        self.gateway = rails_of(self.app, self.provider)
        tenant_id = uuid4()
        self.onlooker.execute(
            "INSERT INTO tenants (id, slug, name) VALUES (%(id)s, 'acme', 'Acme')",
            {"id": tenant_id},
        )
        self.caller = Caller(
            tenant_id=tenant_id,
            tenant_slug="acme",
            key_id=uuid4(),
            mode=Mode.LIVE,
            require_idempotency_key=False,
            rate_limit=None,
            default_provider=None,
        )
        self.orders: list[Order] = []
        self.workers: list[tuple[Claim, Observation | None]] = []
        self.ends: dict[UUID, dict[str, Any]] = {}

    @initialize(idempotent=st.sampled_from([True, True, False]))
    def choose_rail(self, idempotent: bool) -> None:  # noqa: FBT001  drawn by name
        self.provider.capabilities = Capabilities(
            idempotent_submit=idempotent,
            visible_after_s=VISIBLE_AFTER_S * LONGER,
            resend_after_s=3 * LONGER,
            payer_window_s=300 * LONGER,
        )

    # --- clients

    @precondition(lambda self: len(self.orders) < PAYMENTS_MAX)
    @rule(amount=st.sampled_from(["10", "20"]))
    def accept(self, amount: str) -> None:
        context = an_asker(caller=self.caller, key=uuid4())
        accepted = an_accepted_payment(self.gateway, order=an_order(amount=amount), context=context)
        self.orders.append(Order(context, amount, accepted))

    @precondition(lambda self: self.orders)
    @rule(which=WHICH)
    def ask_again(self, which: int) -> None:
        order = self.orders[which % len(self.orders)]
        again = an_accepted_payment(
            self.gateway, order=an_order(amount=order.amount), context=order.context
        )
        assert again.answer == order.accepted.answer

    @precondition(lambda self: self.orders)
    @rule(which=WHICH)
    def ask_for_something_else(self, which: int) -> None:
        order = self.orders[which % len(self.orders)]
        with pytest.raises(KeyReused):
            an_accepted_payment(self.gateway, order=an_order(amount="30"), context=order.context)

    # --- workers

    @precondition(lambda self: self.orders)
    @rule(
        after_s=PAUSES,
        to_submission=TO_SUBMISSION,
        to_question=TO_QUESTION,
        hands=st.integers(1, PAYMENTS_MAX),
    )
    def run_once(self, after_s: float, to_submission: str, to_question: str, hands: int) -> None:
        self.time_passes(after_s)
        self.provider.to_submission, self.provider.to_question = to_submission, to_question
        advance(self.gateway, hands=hands)

    @precondition(lambda self: self.orders and len(self.workers) < WORKERS_MAX)
    @rule(after_s=PAUSES, limit=st.integers(1, PAYMENTS_MAX))
    def claim(self, after_s: float, limit: int) -> None:
        self.time_passes(after_s)
        self.workers += [(taken, None) for taken in claims_of_due(limit)]

    @precondition(lambda self: self.workers)
    @rule(which=WHICH, to_submission=TO_SUBMISSION, to_question=TO_QUESTION)
    def go_out(self, which: int, to_submission: str, to_question: str) -> None:
        claim, seen = self.workers[which % len(self.workers)]
        if seen is not None:
            return
        self.provider.to_submission, self.provider.to_question = to_submission, to_question
        try:
            counted = SubmissionClient(self.gateway.http_client(claim.lease))
            seen = processor._observe(claim, self.gateway, counted)
        except LeaseLost:
            self.reached["lease lost"] += 1
            seen = Observation(Verdict.NOT_SENT, "lease_lost")
        except ZeroDivisionError:
            seen = Observation(Verdict.UNKNOWN, "adapter_failed")
        self.workers[which % len(self.workers)] = (claim, seen)

    @precondition(lambda self: self.workers)
    @rule(which=WHICH)
    def write_down(self, which: int) -> None:
        claim, seen = self.workers[which % len(self.workers)]
        if seen is not None:
            del self.workers[which % len(self.workers)]
            record(claim, seen, self.gateway)

    @precondition(lambda self: self.workers)
    @rule()
    def write_down_together(self) -> None:
        """Record all results in one batch, as one worker would: each is fenced separately."""
        home = [(claim, seen) for claim, seen in self.workers if seen is not None]
        self.workers = [(claim, seen) for claim, seen in self.workers if seen is None]
        processor.record([found(claim, seen) for claim, seen in home], self.gateway)

    @precondition(lambda self: self.workers)
    @rule(which=WHICH)
    def die(self, which: int) -> None:
        del self.workers[which % len(self.workers)]

    # --- time, payers and callbacks

    def time_passes(self, seconds: float) -> None:
        if not seconds:
            return
        self.provider.pass_time(seconds)
        self.onlooker.execute(
            "UPDATE payments SET next_action_at = next_action_at - span,"
            " lease_until = lease_until - span, submitted_at = submitted_at - span"
            " FROM make_interval(secs => %s) AS span WHERE status = 'PENDING'",
            [seconds * LONGER],
        )
        self.workers = [
            (replace(claim, lease=Lease(claim.lease.expires_at - seconds * LONGER)), seen)
            for claim, seen in self.workers
        ]

    @precondition(lambda self: self.provider.book)
    @rule(which=WHICH, state=st.sampled_from(["paid", "declined"]))
    def payer_decides(self, which: int, state: str) -> None:
        references = list(self.provider.book)
        self.provider.decide(references[which % len(references)], state)

    @precondition(lambda self: self.orders)
    @rule(which=WHICH, body=st.sampled_from([b"SUCCESSFUL", b"FAILED", b""]))
    def callback(self, which: int, body: bytes) -> None:
        """A callback may be right, forged, early, late or repeated: the gateway can't know."""
        row = self.rows()[which % len(self.orders)]
        record_callback(ReceivedCallback(SCRIPTED, row["reference"], "PUT", body, None), keyring())

    # --- invariants

    def rows(self) -> list[dict[str, Any]]:
        return self.onlooker.execute(
            "SELECT p.*, extract(epoch FROM next_action_at - clock_timestamp()) AS due_s,"
            " (SELECT array_agg(e.sequence ORDER BY e.sequence) FROM events e"
            "  WHERE e.payment_id = p.id) AS lines,"
            " (SELECT x.verdict FROM provider_exchanges x WHERE x.id = p.evidence_id) AS evidence"
            " FROM payments p ORDER BY p.id"
        ).fetchall()

    @invariant()
    def the_promises_hold(self) -> None:
        rows = self.rows()
        assert len(rows) == len(self.orders)
        assert set(self.provider.book) <= {row["reference"] for row in rows}
        for row in rows:
            truth = self.provider.book.get(row["reference"])
            assert truth is None or truth.charges == 1, "charged twice"
            assert row["lines"] == list(range(1, row["sequence"] + 1)), "a gap in the story"
            match row["status"]:
                case "PENDING":
                    assert row["due_s"] <= backoff.CHECK_MAX_S * (1 + backoff.JITTER), "forgotten"
                case "SUCCESSFUL":
                    assert truth is not None
                    assert truth.state == "paid", "told a guess"
                case "FAILED":
                    assert truth is None or truth.state == "declined", "told a guess"
            if row["status"] != "PENDING":
                assert row["evidence"] in (row["status"], "REFUSED")
                self.stays(row)

    def stays(self, row: dict[str, Any]) -> None:
        moving = ("sequence", "lines", "due_s")
        end = {name: value for name, value in row.items() if name not in moving}
        assert self.ends.setdefault(row["id"], end) == end, "an end was left"

    # --- the end

    def teardown(self) -> None:
        self.workers.clear()
        self.provider.to_submission = self.provider.to_question = "right"
        for _ in range(8):
            self.time_passes(700.0)
            advance(self.gateway)
            for reference in self.provider.book:
                self.provider.decide(reference, "paid")
            if self.is_told():
                break
        self.the_promises_hold()
        assert self.is_told(), "stuck"
        self.reached.update(f"{row['status']} {row['evidence']}" for row in self.rows())

    def is_told(self) -> bool:
        """Whether each has ended. One that never arrived may stay open if a resend is unsafe."""
        return all(
            row["status"] != "PENDING"
            or (
                row["reference"] not in self.provider.book
                and not self.provider.capabilities.idempotent_submit
            )
            for row in self.rows()
        )


@pytest.fixture
def _long_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    lease = claims.LEASE * LONGER
    for module in (claims, processor):
        monkeypatch.setattr(module, "LEASE", lease)
    spans = {
        claims: ("LEASE_MARGIN_S", "LEASE_RENEW_BELOW_S"),
        callbacks: ("HINT_GAP_S",),
        backoff: (
            "FIRST_CHECK_S",
            "CHECK_MAX_S",
            "SUBMIT_FIRST_S",
            "SUBMIT_MAX_S",
            "RESEND_MAX_S",
        ),
    }
    for module, names in spans.items():
        for name in names:
            monkeypatch.setattr(module, name, getattr(module, name) * LONGER)
    table = tuple((age_s * LONGER, delay_s * LONGER) for age_s, delay_s in backoff.CHECK_TABLE)
    monkeypatch.setattr(backoff, "CHECK_TABLE", table)


# Two hundred sequences of up to thirty steps. The time goes into work, not into waits.
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("quiet", "_long_spans")
def test_the_promises_hold_in_whatever_order_things_happen(
    app: Flask, database_url: str, empty_tables: Callable[[], None]
) -> None:
    Life.app, Life.empty_tables, Life.reached = app, staticmethod(empty_tables), Counter()
    with psycopg.connect(
        database_url, options=EVERY_ROW, autocommit=True, row_factory=dict_row
    ) as onlooker:
        Life.onlooker = onlooker
        run_state_machine_as_test(
            Life,
            settings=settings(
                max_examples=200,
                stateful_step_count=30,
                deadline=None,
                derandomize=True,
                database=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
    # The sequences have reached the difficult cases.
    assert Life.reached["lease lost"] > 0
    assert {"SUCCESSFUL SUCCESSFUL", "FAILED FAILED", "FAILED REFUSED"} <= set(Life.reached)
