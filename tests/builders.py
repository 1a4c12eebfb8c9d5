"""Builders for tests, keyword-only with sane defaults, and a provider with scripted answers."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from uuid import UUID, uuid4

import orjson
import psycopg
from flask import Flask, current_app
from sqlalchemy import select, text

from devstack.supervisor import wait_until
from payments_app import Parts
from payments_app.integrity.checkpoints import write_checkpoints
from payments_app.kernel import jobs
from payments_app.kernel.clock import boot_seconds
from payments_app.kernel.concurrency import LimitRules
from payments_app.kernel.database import EVERY_TENANT, db, transaction
from payments_app.kernel.encryption import TenantKeyring
from payments_app.kernel.http.egress import EgressRules
from payments_app.kernel.http.messages import (
    HttpClient,
    HttpRequest,
    HttpResponse,
    LeaseLost,
    NoResponse,
)
from payments_app.kernel.http.transport import Transport
from payments_app.kernel.idempotency import StoredAnswer
from payments_app.kernel.money import Money
from payments_app.kernel.msisdn import Msisdn
from payments_app.kernel.tracing import Span
from payments_app.payments import accept, processor
from payments_app.payments.accept import AcceptContext, Accepted, PaymentInsert
from payments_app.payments.account_slots import AccountSlots
from payments_app.payments.claims import Claim
from payments_app.payments.exchange_pool import ExchangeResult, SerialExchangePool
from payments_app.payments.gateway import PaymentGateway
from payments_app.payments.model import Payment, ProviderExchange
from payments_app.payments.outbox import publish_outbox
from payments_app.payments.routing import NewPayment
from payments_app.providers.contract import (
    Capabilities,
    Failure,
    FailureCode,
    Mode,
    Observation,
    PaymentOrder,
    ProviderAccount,
    Terms,
    Verdict,
)
from payments_app.providers.registry import Registry
from payments_app.tenants.accounts import ProviderAccounts
from payments_app.tenants.caller import Caller
from payments_app.tenants.keys import IssuedKey, NewKey, issue_key
from payments_app.tenants.model import Tenant
from payments_app.tenants.registry import create_tenant
from payments_app.webhooks.endpoints import EndpointChanges, NewEndpoint, Owner, add_endpoint
from payments_app.webhooks.model import PaymentEvent

SCRIPTED = "scripted"
PAYER = "256772123456"
ANSWERS = {
    "accepted": Observation(Verdict.PENDING, "accepted", http_status=202),
    "pending": Observation(Verdict.PENDING, "pending", http_status=200, body=b"{}"),
    "paid": Observation(
        Verdict.SUCCESSFUL,
        "successful",
        http_status=200,
        body=b'{"status":"SUCCESSFUL"}',
        provider_transaction_id="1234567890",
    ),
    "declined": Observation(
        Verdict.FAILED,
        "failed",
        http_status=200,
        body=b'{"status":"FAILED"}',
        failure=Failure(FailureCode.PAYER_REJECTED, "APPROVAL_REJECTED"),
    ),
    "refused": Observation(
        Verdict.REFUSED,
        "refused",
        http_status=400,
        failure=Failure(FailureCode.REQUEST_REFUSED, ""),
    ),
    "not_sent": Observation(Verdict.NOT_SENT, "connection_refused"),
    "throttled": Observation(Verdict.NOT_SENT, "throttled", http_status=429),
    "duplicate": Observation(Verdict.DUPLICATE, "duplicate_reference", http_status=409),
    "not_found": Observation(Verdict.NOT_FOUND, "not_found", http_status=404),
    "unknown": Observation(Verdict.UNKNOWN, "timeout"),
}
Move = Observation | Callable[[PaymentOrder, HttpClient], Observation]


SUBMISSION = HttpRequest("POST", "http://rail.test/", {}, b"{}")


class Arriving(Transport):
    """Answers a scripted provider's submission without a network; sends all other requests."""

    def exchange(
        self, call: HttpRequest, *, leave_before: float | None
    ) -> HttpResponse | NoResponse:
        if call.url != SUBMISSION.url:
            return super().exchange(call, leave_before=leave_before)
        if leave_before is not None and leave_before <= boot_seconds():
            raise LeaseLost
        return HttpResponse(200, {}, b"{}")


@dataclass
class ScriptedProvider:
    """A provider that gives the answers that a test has set, and records each request.

    `submits`, `checks`: the answers in order; the last one is repeated. `ledger`: references of
    submissions that arrived.
    """

    submits: list[Move] = field(default_factory=lambda: [ANSWERS["accepted"]])
    checks: list[Move] = field(default_factory=lambda: [ANSWERS["paid"]])
    not_ready: Observation | None = None
    capabilities: Capabilities = field(
        default_factory=lambda: Capabilities(
            idempotent_submit=True, visible_after_s=60, resend_after_s=3, payer_window_s=300
        )
    )
    code: str = SCRIPTED
    credential_names: tuple[str, ...] = ()
    currencies: dict[str, int] = field(default_factory=lambda: {"EUR": 2, "UGX": 0, "KES": 2})
    submissions: list[UUID] = field(default_factory=list)
    questions: list[UUID] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def terms(self, _account: ProviderAccount) -> Terms:
        return Terms(self.currencies, None, r"[A-Za-z0-9 .,\-_:/]*", 160, None)

    def merchant(self, account: ProviderAccount) -> str:
        return account.credentials.get("merchant", "shop")

    def prepare(self, _account: ProviderAccount, _wire: HttpClient) -> Observation | None:
        return self.not_ready

    def submit(
        self, order: PaymentOrder, _account: ProviderAccount, http_client: HttpClient
    ) -> Observation:
        with self._lock:
            self.submissions.append(order.reference)
            move = self.submits.pop(0) if len(self.submits) > 1 else self.submits[0]
        if not isinstance(move, Observation):
            return move(order, http_client)
        if move.http_status is not None:
            # An answer with an HTTP status means that the submission was sent.
            http_client.send(SUBMISSION)
        return move

    def check(
        self, order: PaymentOrder, _account: ProviderAccount, http_client: HttpClient
    ) -> Observation:
        with self._lock:
            self.questions.append(order.reference)
            move = self.checks.pop(0) if len(self.checks) > 1 else self.checks[0]
        return move if isinstance(move, Observation) else move(order, http_client)

    def probe(self, _account: ProviderAccount, http_client: HttpClient) -> Observation:
        http_client.send(HttpRequest("GET", "http://127.0.0.1:1", {}))
        return ANSWERS["pending"]


@dataclass
class Ledger:
    """A provider's own ledger; `provider()` is a ScriptedProvider that answers from it.

    `arrivals`: every submission that reached it. `truths`: the status by reference. A second
    submission under one reference is answered as a duplicate and changes nothing.
    """

    arrivals: list[UUID] = field(default_factory=list)
    truths: dict[UUID, str] = field(default_factory=dict)
    at_first: str = "pending"

    def take(self, order: PaymentOrder, _wire: HttpClient) -> Observation:
        self.arrivals.append(order.reference)
        if order.reference in self.truths:
            return ANSWERS["duplicate"]
        self.truths[order.reference] = self.at_first
        return ANSWERS["accepted"]

    def tell(self, order: PaymentOrder, _wire: HttpClient) -> Observation:
        return ANSWERS[self.truths.get(order.reference, "not_found")]

    def provider(self) -> ScriptedProvider:
        return ScriptedProvider(submits=[self.take], checks=[self.tell])


def rails_of(app: Flask, *providers: ScriptedProvider) -> PaymentGateway:
    """The app's gateway with `providers` as the only adapters, on platform accounts."""
    parts: Parts = app.extensions["maramoja"]
    accounts = tuple(
        ProviderAccount(
            id=None,
            provider=provider.code,
            mode=mode,
            base_url="http://127.0.0.1:1",
            target_environment="sandbox" if mode is Mode.TEST else "real",
            credentials={},
            version="1",
        )
        for provider in providers
        for mode in Mode
    )
    return replace(
        parts.gateway,
        registry=Registry({provider.code: provider for provider in providers}),
        accounts=ProviderAccounts(accounts, parts.cipher),
        transport=Arriving(user_agent="Maramoja/test"),
    )


def as_the_owner(app: Flask, statement: str, **values: object) -> None:
    """Change rows as the tables' owner, where the application's role has no right to."""
    url = app.extensions["maramoja"].settings.migration_database_url
    with psycopg.connect(
        url.replace("+psycopg", ""), options="-c maramoja.tenant=*", autocommit=True
    ) as connection:
        assert connection.execute(statement.encode(), values).rowcount > 0


def a_tenant(*, slug: str | None = None) -> Tenant:
    return create_tenant(slug=slug or f"t-{uuid4().hex[:12]}", actor="cli:test")


def an_issued_key(*, tenant: Tenant | None = None, mode: Mode = Mode.LIVE) -> IssuedKey:
    return issue_key(tenant or a_tenant(), NewKey(mode=mode), actor="cli:test")


def a_caller(*, tenant: Tenant | None = None, mode: Mode = Mode.LIVE) -> Caller:
    tenant = tenant or a_tenant()
    key = an_issued_key(tenant=tenant, mode=mode)
    return Caller(
        tenant_id=tenant.id,
        tenant_slug=tenant.slug,
        key_id=key.id,
        mode=mode,
        require_idempotency_key=False,
        rate_limit=None,
        default_provider=None,
    )


def an_order(
    *,
    amount: str = "1000",
    currency: str = "EUR",
    payer: str = PAYER,
    external_id: str | None = None,
    provider: str | None = None,
) -> NewPayment:
    return NewPayment(
        money=Money.parse(amount, currency),
        payer=Msisdn.parse(payer),
        external_id=external_id,
        provider=provider,
    )


def an_asker(
    *, caller: Caller | None = None, key: UUID | None = None, kept_for: timedelta | None = None
) -> AcceptContext:
    return AcceptContext(
        caller=caller or a_caller(),
        request_id="test",
        idempotency_key=key,
        answer_kept_for=kept_for or timedelta(hours=24),
    )


def an_endpoint(owner: Owner, url: str = "http://127.0.0.1:9/", *event_types: str) -> NewEndpoint:
    """A webhook endpoint, by default at an address where nothing listens."""
    return add_endpoint(
        owner,
        EndpointChanges(url=url, event_types=event_types or None),
        cipher=current_app.extensions["maramoja"].cipher,
        rules=EgressRules(allow_private=True),
        actor="cli:test",
    )


def keyring() -> TenantKeyring:
    """The keyring of the app whose context is open."""
    found: TenantKeyring = current_app.extensions["maramoja"].keyring
    return found


def render(payment: PaymentInsert, _order: NewPayment) -> StoredAnswer:
    return StoredAnswer(201, {"Location": f"/{payment.id}"}, orjson.dumps({"id": str(payment.id)}))


def an_accepted_payment(
    gateway: PaymentGateway,
    *,
    order: NewPayment | None = None,
    context: AcceptContext | None = None,
) -> Accepted:
    return accept.accept_payment(order or an_order(), context or an_asker(), gateway, render)


def let_rings_be_heard() -> None:
    """Forget that the broker was away, and wait until it takes a notification."""

    def heard() -> bool:
        jobs._broker_away_until = 0.0
        jobs.notify(jobs.Job.PROCESS_DUE)
        return not jobs._broker_away_until

    # A notification that is under way may still find the broker away.
    jobs._notifier.flush()
    # A connection that broke meanwhile fails the notification that uses it.
    wait_until(heard, what="the broker hears no ring", limit_s=10)


def advance(gateway: PaymentGateway, *, hands: int = 1) -> int:
    """Process what is due, at most `hands` payments at a time."""
    return processor.process_due(gateway, SerialExchangePool(hands), many_slots())


def many_slots() -> AccountSlots:
    """So many payments of an account may be under way that no test reaches the bound by chance."""
    return AccountSlots(LimitRules(first=400, least=400, most=400, quick_s=2.0, slow_s=5.0))


def a_claim() -> Claim:
    """The one due payment, claimed as a worker does; the test does the next step."""
    (claim,) = claims(1)
    return claim


def claims(limit: int) -> list[Claim]:
    """Claim the due payments, at most `limit`."""
    gateway: PaymentGateway = current_app.extensions["maramoja"].gateway
    return processor._claim_due(limit, gateway, many_slots())


def advance_payment(claim: Claim, gateway: PaymentGateway) -> None:
    """Take the next step of a claimed payment and record the result, as a worker does."""
    processor.record([processor.carry_out(claim, gateway)], gateway)


def found(claim: Claim, seen: Observation) -> ExchangeResult:
    """The result of a worker's exchange."""
    return ExchangeResult(claim, seen, Span(None))


def record(claim: Claim, seen: Observation, gateway: PaymentGateway) -> None:
    """Record the result of a worker's exchange."""
    processor.record([found(claim, seen)], gateway)


def make_due(payment_id: UUID, *, forget_lease: bool = False) -> None:
    """Make the payment's next action due now; `forget_lease` ends its lease too."""
    lease = ", lease_until = LEAST(lease_until, statement_timestamp())" if forget_lease else ""
    with transaction(EVERY_TENANT) as session:
        session.execute(
            text(
                f"UPDATE payments SET next_action_at = statement_timestamp(){lease}"  # noqa: S608
                " WHERE id = :id AND status = 'PENDING'"
            ),
            {"id": payment_id},
        )


def let_time_pass(*, seconds: float) -> None:
    """Move the times of every open payment back by this many seconds."""
    with transaction(EVERY_TENANT) as session:
        session.execute(
            text(
                "UPDATE payments SET next_action_at = next_action_at - span,"
                " lease_until = lease_until - span, submitted_at = submitted_at - span"
                " FROM make_interval(secs => :s) AS span WHERE status = 'PENDING'"
            ),
            {"s": seconds},
        )


def age_submission(payment_id: UUID, *, seconds: float) -> None:
    """Move the payment's last submission back by `seconds`."""
    with transaction(EVERY_TENANT) as session:
        session.execute(
            text(
                "UPDATE payments SET submitted_at = submitted_at - make_interval(secs => :s)"
                " WHERE id = :id"
            ),
            {"id": payment_id, "s": seconds},
        )


def payment_row(payment_id: UUID) -> Payment:
    with transaction(EVERY_TENANT) as session:
        return session.get_one(Payment, payment_id)


def due_in_s(payment_id: UUID) -> float:
    """Seconds until the payment's next action, by the database's clock."""
    with transaction(EVERY_TENANT) as session:
        seconds = session.scalar(
            text(
                "SELECT extract(epoch FROM next_action_at - clock_timestamp())"
                " FROM payments WHERE id = :id"
            ),
            {"id": payment_id},
        )
    return float(seconds)


def events_of(payment_id: UUID) -> list[PaymentEvent]:
    """The payment's events, in order."""
    story = select(PaymentEvent).where(PaymentEvent.payment_id == payment_id)
    with transaction(EVERY_TENANT) as session:
        return list(session.scalars(story.order_by(PaymentEvent.sequence)))


def exchanges_of(payment_id: UUID) -> list[ProviderExchange]:
    """The payment's exchanges with the provider, in the order of the claims."""
    exchanges = select(ProviderExchange).where(ProviderExchange.payment_id == payment_id)
    with transaction(EVERY_TENANT) as session:
        return list(session.scalars(exchanges.order_by(ProviderExchange.generation)))


def in_threads(app: Flask, act: Callable[[], object], *, times: int) -> list[object]:
    """Run `act` in `times` threads that start together; what each returned or raised."""
    barrier = threading.Barrier(times)
    results: list[object] = []

    def run() -> None:
        with app.app_context():
            barrier.wait()
            try:
                results.append(act())
            except Exception as error:  # noqa: BLE001  handed to the test
                results.append(error)
            finally:
                db.session.remove()

    threads = [threading.Thread(target=run) for _ in range(times)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def await_lock_waits(url: str, count: int) -> None:
    """Wait until `count` backends of this database wait for another's transaction."""
    waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'transactionid'"
    with psycopg.connect(url, autocommit=True) as connection:
        wait_until(
            lambda: connection.execute(waiting).fetchone() == (count,),
            what=f"{count} wait for nobody",
            limit_s=30,
        )


def publish_and_checkpoint() -> int:
    """Publish all events and write checkpoints; how many events the checkpoints cover."""
    publish_outbox()
    return write_checkpoints()
