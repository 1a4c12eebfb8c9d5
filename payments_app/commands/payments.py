"""`flask payments`: show any tenant's payment, and explain its status."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Final, NamedTuple

import click

from payments_app.commands.group import GatewayGroup, actor
from payments_app.commands.instants import INSTANT, in_utc
from payments_app.commands.msisdns import Number
from payments_app.commands.parts import keyring
from payments_app.commands.report import Report, fields, shown, table
from payments_app.kernel.msisdn import Msisdn
from payments_app.payments.callbacks import opened_callback
from payments_app.payments.evidence import opened_body
from payments_app.payments.model import Callback, Payment, ProviderExchange
from payments_app.payments.operations import (
    PaymentFilter,
    Story,
    latest_payments,
    payment_called,
    recheck_payment,
    story_of,
)
from payments_app.payments.payers import Payer, payer_index, payer_of
from payments_app.payments.states import Status
from payments_app.providers.contract import Mode
from payments_app.tenants.registry import find_tenant
from payments_app.webhooks.model import PaymentEvent

LIMIT_MAX: Final = 1000
ERASED: Final = "an erased payer"

payments = GatewayGroup("payments", help="See payments, and why each is as it is.")


class Moment(NamedTuple):
    """One entry of a payment's history. `what` is its kind, `fields` are its details."""

    at: datetime
    what: str
    fields: Mapping[str, object]


_payment = click.argument("payment_id", metavar="ID")


@payments.command("show", example="flask payments show 01a209ad-4164-7047-9850-453984927403")
@_payment
def show(payment_id: str) -> Report:
    """Show one payment, by its id or the tenant's external_id; the payer's number masked."""
    document = _document(payment_called(payment_id))
    return Report(document, fields(document))


@payments.command("list", example="flask payments list --tenant acme --status PENDING")
@click.option("--tenant", metavar="SLUG", help="Only this tenant's.")
@click.option("--mode", type=click.Choice([mode.value for mode in Mode]), help="Only this mode's.")
@click.option("--status", type=click.Choice([status.value for status in Status]))
@click.option("--payer", type=Number(), help="Of this number; needs --tenant.")
@click.option("--external-id", help="With this reference of the tenant's own.")
@click.option("--since", type=INSTANT, help="Accepted from this instant on, in UTC.")
@click.option("--until", type=INSTANT, help="Accepted before this instant, in UTC.")
@click.option("--limit", type=click.IntRange(1, LIMIT_MAX), default=20, show_default=True)
def list_latest(  # noqa: PLR0913  one for each thing to look for
    tenant: str | None,
    *,
    mode: str | None,
    status: str | None,
    payer: Msisdn | None,
    external_id: str | None,
    since: datetime | None,
    until: datetime | None,
    limit: int,
) -> Report:
    """List payments, newest first."""
    tenant_id = find_tenant(tenant).id if tenant else None
    index = None
    if payer is not None:
        if tenant_id is None:
            raise click.UsageError("--payer needs --tenant: each tenant's numbers rest apart")
        index = payer_index(keyring(), tenant_id, payer)
    wanted = PaymentFilter(
        tenant_id=tenant_id,
        mode=Mode(mode) if mode else None,
        status=Status(status) if status else None,
        payer_index=index,
        external_id=external_id,
        since=in_utc(since),
        until=in_utc(until),
    )
    found = latest_payments(wanted, limit=limit)
    documents = [_document(payment) for payment in found]
    names = (
        *("created_at", "status", "stage", "amount", "currency", "payer", "mode"),
        *("external_id", "id"),
    )
    rows = [[document[name] for name in names] for document in documents]
    headings = (
        *("CREATED", "STATUS", "STAGE", "AMOUNT", "CURRENCY", "PAYER", "MODE"),
        *("EXTERNAL ID", "ID"),
    )
    return Report({"data": documents}, table(headings, rows, empty="There are no such payments."))


@payments.command("explain", example="flask payments explain 01a209ad-4164-7047-9850-453984927403")
@_payment
@click.option("--words", is_flag=True, help="Also what was said, whole: it names the payer.")
def explain(payment_id: str, *, words: bool) -> Report:
    """Show a payment's history: its events, each exchange with the provider, each callback.

    ID: the payment's, or the tenant's external_id. The provider's answers and the callbacks rest
    sealed; --words opens them, until their payer has been erased.
    """
    story = story_of(payment_called(payment_id).id, with_bodies=words)
    payer = payer_of(keyring(), story.payment) if words else None
    document = _document(story.payment)
    moments = _moments(story, payer)
    rows = [(moment.at, moment.what, _told(moment.fields)) for moment in moments]
    text = f"{_now(story.payment)}\n\n{table(('WHEN', 'WHAT', 'DETAIL'), rows, empty='')}"
    told = [{"at": m.at, "what": m.what, **m.fields} for m in moments]
    return Report({"payment": document, "story": told}, text)


@payments.command("recheck", example="flask payments recheck 01a209ad-4164-7047-9850-453984927403")
@_payment
def recheck(payment_id: str) -> Report:
    """Have an open payment's next step taken now. It may be asked at any time: nothing is sent
    under another reference, and no status changes without the provider's word.

    ID: the payment's, or the tenant's external_id.
    """
    found = payment_called(payment_id)
    due = recheck_payment(found.id, actor=actor())
    text = f"Due now. See what comes of it with: flask payments explain {found.id}"
    return Report({"id": found.id, "next_action_at": due}, text)


def _document(payment: Payment) -> dict[str, object]:
    return {
        "id": payment.id,
        "tenant_id": payment.tenant_id,
        "mode": payment.mode,
        "status": payment.status,
        "stage": payment.stage,
        "amount": str(payment.money),
        "currency": payment.currency,
        "payer": payment.payer_masked,
        "provider": payment.provider,
        "target_environment": payment.target_environment,
        "account_id": payment.account_id,
        "external_id": payment.external_id,
        "reference": payment.reference,
        "provider_transaction_id": payment.provider_transaction_id,
        "failure_code": payment.failure_code,
        "failure_provider_code": payment.failure_provider_code,
        "submissions": payment.submissions,
        "next_step": None if payment.is_final else payment.next_step,
        "next_action_at": payment.next_action_at,
        "lease_until": payment.lease_until,
        "created_at": payment.created_at,
        "final_at": payment.final_at,
    }


def _moments(story: Story, payer: Payer | None) -> list[Moment]:
    """All entries in order of time; at equal times an event comes after what caused it.

    With the payer, the bodies are included.
    """
    moments = [
        *(_exchanged(exchange, payer) for exchange in story.exchanges),
        *(_called_back(callback, payer) for callback in story.callbacks),
        *(_happened(event) for event in story.events),
    ]
    return sorted(moments, key=lambda moment: moment.at)


def _happened(event: PaymentEvent) -> Moment:
    told = {
        "sequence": event.sequence,
        "status": event.status,
        "stage": event.stage,
        "actor": event.actor,
        "request_id": event.request_id,
        "data": event.data,
    }
    return Moment(event.created_at, event.type, told)


def _exchanged(exchange: ProviderExchange, payer: Payer | None) -> Moment:
    told = {
        "exchange_id": exchange.id,
        "generation": exchange.generation,
        # No verdict: it may have been sent, but its worker recorded no result.
        "verdict": exchange.verdict or "open",
        "reason": exchange.reason,
        "http_status": exchange.http_status,
        "failure_code": exchange.failure_code,
        "failure_provider_code": exchange.failure_provider_code,
        "elapsed_ms": exchange.elapsed_ms,
        "requests_left": exchange.requests_left,
        **_said(payer and opened_body(payer, generation=exchange.generation, body=exchange.body)),
    }
    return Moment(exchange.finished_at or exchange.started_at, f"provider.{exchange.kind}", told)


def _called_back(callback: Callback, payer: Payer | None) -> Moment:
    told = {
        "method": callback.method,
        "source": callback.source,
        "digest": callback.digest.hex(),
        **_said(payer and opened_callback(payer, callback.body)),
    }
    return Moment(callback.received_at, "callback.received", told)


def _said(body: bytes | None) -> dict[str, str]:
    return {} if body is None else {"said": body.decode(errors="backslashreplace")}


def _told(told: Mapping[str, object]) -> str:
    """The fields that have a value, in one line."""
    flat = {**told, **(data if isinstance(data := told.get("data"), dict) else {})}
    flat.pop("data", None)
    return "  ".join(f"{name}={shown(value)}" for name, value in flat.items() if value)


def _now(payment: Payment) -> str:
    """The payment's present status, in one sentence."""
    what = f"{payment.money} {payment.currency} from {payment.payer_masked or ERASED}: {payment.status}"
    if payment.is_final:
        return f"{what} since {shown(payment.final_at)}."
    step = f"next {payment.next_step} at {shown(payment.next_action_at)}"
    return f"{what}, {payment.stage}; {step}."
