"""The payment routes: accept one, show one, list them, list a payment's events."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import UUID

import orjson
from flask import Response, current_app, g

from payments_app.api.authentication import caller, needs, require
from payments_app.api.blueprint import ApiBlueprint
from payments_app.api.idempotent import idempotent, key_of_request, wait_for_original
from payments_app.api.json import json_response
from payments_app.api.v1.payments.documents import (
    EventPageSchema,
    PaymentPageSchema,
    PaymentSchema,
    accepted_document,
    event_document,
    payment_document,
)
from payments_app.api.v1.payments.requests import (
    AN_ORDER,
    EventQuerySchema,
    NewPaymentSchema,
    PaymentQuerySchema,
)
from payments_app.kernel import cursors, tracing
from payments_app.kernel.encryption import TenantKeyring
from payments_app.kernel.idempotency import StoredAnswer
from payments_app.payments import accept, queries
from payments_app.payments.accept import AcceptContext, Accepted, PaymentInsert
from payments_app.payments.model import Payment
from payments_app.payments.payers import payer_of
from payments_app.payments.routing import NewPayment
from payments_app.tenants.scopes import Scope

blp = ApiBlueprint("payments", __name__, url_prefix="/api/v1/payments", description="Collections")
# A sequence is an INTEGER.
_SEQUENCE_DIGITS_MAX = 9
_SHOWN = {
    "show": {
        "operationId": "show_payment",
        "parameters": {"payment_id": "$response.body#/id"},
        "description": "The payment as it is now.",
    },
    "events": {
        "operationId": "list_events",
        "parameters": {"payment_id": "$response.body#/id"},
        "description": "What happened to it.",
    },
}


@blp.route("", methods=["POST"])
@blp.doc(operationId="create_payment", responses={201: {"links": _SHOWN}})
@blp.arguments(NewPaymentSchema(), example=AN_ORDER)
@blp.response(
    201,
    PaymentSchema,
    description="Accepted, or an earlier request's answer given again",
    headers={name: name for name in ("Location", "Idempotent-Replayed", "Payment-Status")},
)
@blp.alt_response(400, "BAD_REQUEST")
@blp.alt_response(409, "CONFLICT")
@blp.alt_response(413, "REQUEST_ENTITY_TOO_LARGE")
@blp.alt_response(415, "UNSUPPORTED_MEDIA_TYPE")
@idempotent
@needs(Scope.PAYMENTS_WRITE)
def create_payment(order: NewPayment) -> Response:
    """Ask a payer for money.

    Answers once the payment is accepted; its end comes later, on the provider's word. The same
    Idempotency-Key with the same request gives the same bytes again and charges nothing.
    """
    settings = current_app.extensions["maramoja"].settings
    context = AcceptContext(
        caller=caller(),
        request_id=g.request_id,
        idempotency_key=key_of_request(required=caller().require_idempotency_key),
        answer_kept_for=timedelta(hours=settings.idempotency_ttl_hours),
        traceparent=tracing.here(),
    )
    gateway = current_app.extensions["maramoja"].gateway
    # A second request with the same key waits here, not in PostgreSQL.
    earlier = wait_for_original(lambda: accept.replay_payment(order, context, gateway.keyring))
    return _answer(earlier or accept.accept_payment(order, context, gateway, _render))


@blp.route("", methods=["GET"])
@blp.doc(operationId="list_payments")
@blp.arguments(PaymentQuerySchema(), location="query")
@blp.response(200, PaymentPageSchema, description="A page")
@blp.alt_response(400, "BAD_REQUEST")
@needs(Scope.PAYMENTS_READ)
def list_payments(query: dict[str, Any]) -> Response:
    """List payments, newest first.

    Of the key's tenant and mode. While payments are added, a walk by `next_cursor` neither
    leaves out nor repeats one that was there when it began. The filter `payer` needs the scope
    `payers:read`: who may not see numbers could find them by trying.
    """
    if query["wanted"].payer is not None:
        require(Scope.PAYERS_READ)
    page = queries.list_payments(caller(), keyring=_vault(), **query)
    return json_response(
        {
            "data": [_shown(payment) for payment in page.payments],
            "next_cursor": page.next_cursor,
        }
    )


@blp.route("/<uuid:payment_id>", methods=["GET"])
@blp.doc(operationId="show_payment")
@blp.response(200, PaymentSchema, description="The payment")
@blp.alt_response(404, "NOT_FOUND")
@needs(Scope.PAYMENTS_READ)
def show_payment(payment_id: UUID) -> Response:
    """Show one payment.

    As it is now. Another tenant's or mode's payment looks like one that doesn't exist.
    """
    return json_response(_shown(queries.find_payment(caller(), payment_id)))


@blp.route("/<uuid:payment_id>/events", methods=["GET"])
@blp.doc(operationId="list_events")
@blp.arguments(EventQuerySchema(), location="query")
@blp.response(200, EventPageSchema, description="A page of events")
@blp.alt_response(400, "BAD_REQUEST")
@blp.alt_response(404, "NOT_FOUND")
@needs(Scope.PAYMENTS_READ)
def list_events(query: dict[str, Any], payment_id: UUID) -> Response:
    """List a payment's events.

    From its beginning, each change that concerns you with its time. `sequence` counts without gaps.
    """
    limit = query["limit"]
    after = cursors.number(query["cursor"], digits_max=_SEQUENCE_DIGITS_MAX)
    found = queries.find_events(caller(), payment_id, after=after, limit=limit + 1)
    page = found[:limit]
    following = str(page[-1].sequence) if len(found) > limit else None
    return json_response(
        {"data": [event_document(event) for event in page], "next_cursor": following}
    )


def _shown(payment: Payment) -> dict[str, Any]:
    """The payment with the fields that this key may read."""
    if Scope.PAYERS_READ not in caller().scopes:
        return payment_document(payment, payer=payment.payer_masked)
    payer = payer_of(_vault(), payment)
    return payment_document(payment, payer=payer and payer.msisdn.digits)


def _vault() -> TenantKeyring:
    found: TenantKeyring = current_app.extensions["maramoja"].keyring
    return found


def _render(payment: PaymentInsert, order: NewPayment) -> StoredAnswer:
    # The payer's number is complete for every key: each caller that gets this answer has sent it.
    body = orjson.dumps(accepted_document(payment, order))
    return StoredAnswer(201, {"Location": f"/api/v1/payments/{payment.id}"}, body)


def _answer(accepted: Accepted) -> Response:
    answer = accepted.answer
    response = Response(answer.body, answer.status, content_type="application/json")
    response.headers.update(answer.headers)
    if accepted.status_now is not None:
        response.headers["Idempotent-Replayed"] = "true"
        response.headers["Payment-Status"] = accepted.status_now
    return response
