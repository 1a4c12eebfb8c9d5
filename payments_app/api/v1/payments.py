"""Payments over HTTP: take one, show one, list them, tell one's story."""

from __future__ import annotations

import hashlib
from datetime import timedelta
from typing import Any, Final
from uuid import UUID

import marshmallow as ma
import orjson
from flask import Response, current_app, g
from flask_smorest import Blueprint

from payments_app.api.authentication import caller
from payments_app.api.idempotent import RequestLock, key_of_request
from payments_app.api.json import json_response
from payments_app.api.v1.fields import Amount, CleanText, Limit, MetadataField, MsisdnField
from payments_app.api.v1.views import event_document, payment_document
from payments_app.api.v1.views import EventPageSchema, PaymentPageSchema, PaymentSchema
from payments_app.kernel.errors import FieldsInvalid
from payments_app.kernel.idempotency import StoredAnswer
from payments_app.kernel.money import EXPONENTS, Money
from payments_app.payments import acceptance, queries
from payments_app.payments.acceptance import Accepted, Asker
from payments_app.payments.errors import CursorInvalid
from payments_app.payments.model import Payment
from payments_app.payments.order import NewPayment
from payments_app.payments.states import Status

blp = Blueprint("payments", __name__, url_prefix="/api/v1/payments", description="Collections")

CURRENCIES: Final = sorted(EXPONENTS)
IDEMPOTENCY_HEADER: Final = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "A UUID kept with the order and sent at each retry; see docs/idempotency.md.",
    "schema": {"type": "string", "format": "uuid"},
}


class NewPaymentSchema(ma.Schema):
    """A collection that is asked for."""

    class Meta:
        """A field that we don't know is an error, not ignored: it may be a misspelt one."""

        unknown = ma.RAISE

    amount = Amount(required=True)
    currency = ma.fields.String(required=True, validate=ma.validate.OneOf(CURRENCIES))
    payer = MsisdnField(required=True)
    provider = ma.fields.String(
        load_default=None, validate=ma.validate.Regexp(r"^[a-z][a-z0-9_]{0,39}\Z")
    )
    external_id = CleanText(load_default=None, longest=128)
    payer_message = CleanText(load_default=None, longest=160)
    payee_note = CleanText(load_default=None, longest=160)
    description = CleanText(load_default=None, longest=500)
    metadata = MetadataField(load_default=None)

    @ma.post_load
    def make(self, data: dict[str, Any], **_options: Any) -> NewPayment:
        """The typed order; amount and currency only mean something together."""
        try:
            money = Money.parse(data.pop("amount"), data.pop("currency"))
        except ValueError as error:
            raise ma.ValidationError(str(error), "amount") from None
        if money.minor == 0:
            raise ma.ValidationError("must be more than zero", "amount")
        return NewPayment(money=money, **data)


class PaymentQuerySchema(ma.Schema):
    """What to list."""

    class Meta:
        """A misspelt filter must not list everything."""

        unknown = ma.RAISE

    limit = Limit()
    cursor = ma.fields.String(load_default=None, validate=ma.validate.Length(max=200))
    status = ma.fields.String(
        load_default=None, validate=ma.validate.OneOf([status.value for status in Status])
    )
    payer = MsisdnField(load_default=None)
    external_id = CleanText(load_default=None, longest=128)
    amount = Amount(load_default=None, metadata={"description": "Needs currency."})
    currency = ma.fields.String(load_default=None, validate=ma.validate.OneOf(CURRENCIES))
    created_from = ma.fields.AwareDateTime(load_default=None, format="iso")
    created_to = ma.fields.AwareDateTime(load_default=None, format="iso")


class EventQuerySchema(ma.Schema):
    """Which part of the story."""

    class Meta:
        """As above."""

        unknown = ma.RAISE

    limit = Limit()
    cursor = ma.fields.String(load_default=None, validate=ma.validate.Length(max=200))


@blp.route("", methods=["POST"])
@blp.doc(parameters=[IDEMPOTENCY_HEADER])
@blp.arguments(NewPaymentSchema)
@blp.response(201, PaymentSchema, headers={"Location": {"schema": {"type": "string"}}})
@blp.alt_response(400, description="Malformed body or Idempotency-Key")
@blp.alt_response(409, description="external_id used, or the key's first request still runs")
@blp.alt_response(415, description="Not JSON")
def create_payment(order: NewPayment) -> Response:
    """Ask a payer for money

    Answers once the payment is accepted; its end comes later. The same Idempotency-Key with
    the same request gives the same bytes again and charges nothing.
    """
    settings = current_app.extensions["maramoja"].settings
    asker = Asker(
        caller=caller(),
        request_id=g.request_id,
        idempotency_key=key_of_request(required=caller().require_idempotency_key),
        answer_kept_for=timedelta(hours=settings.idempotency_ttl_hours),
    )
    rails = current_app.extensions["maramoja"].rails
    if asker.idempotency_key is None:
        return _answer(acceptance.accept_payment(order, asker, rails, _render))
    name = f"idempotency:{asker.caller.tenant_id}:{asker.caller.mode}:{asker.idempotency_key}"
    about = hashlib.sha256(orjson.dumps(order.fields(), option=orjson.OPT_SORT_KEYS)).hexdigest()
    with _lock().hold(name, about=about):
        return _answer(acceptance.accept_payment(order, asker, rails, _render))


@blp.route("", methods=["GET"])
@blp.arguments(PaymentQuerySchema, location="query")
@blp.response(200, PaymentPageSchema)
@blp.alt_response(400, description="Invalid cursor")
def list_payments(query: dict[str, Any]) -> Response:
    """List payments, newest first"""
    limit, cursor = query.pop("limit"), query.pop("cursor")
    page = queries.list_payments(caller(), _filter(query), limit=limit, cursor=cursor)
    return json_response(
        {
            "data": [payment_document(payment) for payment in page.payments],
            "next_cursor": page.next_cursor,
        }
    )


@blp.route("/<uuid:payment_id>", methods=["GET"])
@blp.response(200, PaymentSchema)
@blp.alt_response(404, description="No such payment")
def show_payment(payment_id: UUID) -> Response:
    """Show one payment"""
    return json_response(payment_document(queries.find_payment(caller(), payment_id)))


@blp.route("/<uuid:payment_id>/events", methods=["GET"])
@blp.arguments(EventQuerySchema, location="query")
@blp.response(200, EventPageSchema)
@blp.alt_response(400, description="Invalid cursor")
@blp.alt_response(404, description="No such payment")
def list_events(query: dict[str, Any], payment_id: UUID) -> Response:
    """Tell a payment's story, from its beginning"""
    limit = query["limit"]
    after = _sequence(query["cursor"])
    found = queries.find_events(caller(), payment_id, after=after, limit=limit + 1)
    page = found[:limit]
    following = str(page[-1].sequence) if len(found) > limit else None
    return json_response(
        {"data": [event_document(event) for event in page], "next_cursor": following}
    )


def _render(payment: Payment) -> StoredAnswer:
    body = orjson.dumps(payment_document(payment))
    return StoredAnswer(201, {"Location": f"/api/v1/payments/{payment.id}"}, body)


def _answer(accepted: Accepted) -> Response:
    answer = accepted.answer
    response = Response(answer.body, answer.status, content_type="application/json")
    response.headers.update(answer.headers)
    if accepted.status_now is not None:
        response.headers["Idempotent-Replayed"] = "true"
        response.headers["Payment-Status"] = accepted.status_now
    return response


def _lock() -> RequestLock:
    lock: RequestLock = current_app.extensions["maramoja_lock"]
    return lock


def _filter(query: dict[str, Any]) -> queries.PaymentFilter:
    amount, payer = query.pop("amount"), query.pop("payer")
    money = None
    if amount is not None:
        if query["currency"] is None:
            raise FieldsInvalid({"currency": ["is needed with amount"]})
        try:
            money = Money.parse(amount, query["currency"])
        except ValueError as error:
            raise FieldsInvalid({"amount": [str(error)]}) from None
    return queries.PaymentFilter(money=money, payer=payer.digits if payer else None, **query)


def _sequence(cursor: str | None) -> int:
    if cursor is None:
        return 0
    if not (cursor.isascii() and cursor.isdigit() and len(cursor) < 10):  # noqa: PLR2004
        raise CursorInvalid("The cursor is not one that a list gave out.")
    return int(cursor)
