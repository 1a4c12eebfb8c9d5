"""The tenants' clients: they send orders with keys, retry and change them, and record answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final
from uuid import UUID

import orjson
from sqlalchemy.exc import OperationalError

from payments_app.api.v1.payments.documents import accepted_document
from payments_app.kernel.idempotency import (
    KeyExpired,
    KeyInProgress,
    KeyReused,
    StoredAnswer,
)
from payments_app.kernel.money import Money
from payments_app.kernel.msisdn import Msisdn
from payments_app.payments import accept
from payments_app.payments.accept import AcceptContext, PaymentInsert
from payments_app.payments.gateway import PaymentGateway
from payments_app.payments.routing import NewPayment
from payments_app.tenants.caller import Caller
from tests.simulation.referee import Check, Violation

KEPT_FOR: Final = timedelta(hours=24)
# Each intent has a payer's number of its own, so that its payments are found without its key.
_PAYER: Final = "25677212{:04d}"


@dataclass(eq=False)
class Intent:
    """A payment that a tenant wants once. `key` None: sent without an Idempotency-Key."""

    number: int
    caller: Caller
    key: UUID | None
    minor: int

    @property
    def name(self) -> str:
        """The name in the trace."""
        return f"I{self.number}@{self.caller.tenant_slug}"

    def order(self, variant: int) -> NewPayment:
        """Variant 0 is the intended order; another one is a client's mistake under the same key."""
        return NewPayment(
            money=Money(self.minor + variant, "UGX"),
            payer=Msisdn(_PAYER.format(self.number)),
            provider="mtn_momo",
            description=self.name,
        )


@dataclass(frozen=True)
class Said:
    """One answer to one request. `what` is "ok", or the error's code."""

    intent: Intent
    variant: int
    what: str
    body: bytes = b""
    payment_id: UUID | None = None


@dataclass
class Clients:
    """Sends requests and records every answer, whether or not the client received it."""

    note: Callable[[str], None]
    is_open: Callable[[Intent], bool]
    intents: list[Intent] = field(default_factory=list)
    said: list[Said] = field(default_factory=list)

    def send(self, intent: Intent, variant: int, gateway: PaymentGateway) -> None:
        """Send one request, as the view does."""
        context = AcceptContext(
            caller=intent.caller,
            request_id="simulation",
            idempotency_key=intent.key,
            answer_kept_for=KEPT_FOR,
        )
        try:
            accepted = accept.accept_payment(intent.order(variant), context, gateway, _render)
        except (KeyReused, KeyInProgress, KeyExpired) as error:
            if isinstance(error, KeyExpired) and self.is_open(intent):
                why = f"{intent.name}: the answer expired with the money in flight"
                raise Violation(Check.KEY_LIVES, why) from error
            self._keep(Said(intent, variant, error.code))
        except OperationalError as error:
            self.note(f"{intent.name}: 503 {error.orig}")
        else:
            self._keep(
                Said(intent, variant, "ok", accepted.answer.body, accepted.payment_id),
            )

    def _keep(self, said: Said) -> None:
        self.note(f"{said.intent.name} variant {said.variant}: {said.what}")
        self.said.append(said)


def _render(payment: PaymentInsert, order: NewPayment) -> StoredAnswer:
    return StoredAnswer(
        201, {"Location": f"/{payment.id}"}, orjson.dumps(accepted_document(payment, order))
    )
