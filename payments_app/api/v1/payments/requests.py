"""Schemas of requests about payments, for parsing and for openapi.json."""

from __future__ import annotations

from typing import Any, Final

import marshmallow as ma

from payments_app.api.request_schema import RequestSchema
from payments_app.api.v1.fields import (
    METADATA_BYTES_MAX,
    METADATA_DEPTH_MAX,
    Amount,
    AmountText,
    Cursor,
    Instant,
    Limit,
    Metadata,
    MsisdnField,
    Reference,
    Text,
)
from payments_app.kernel.money import EXPONENTS, Money
from payments_app.payments.queries import PaymentFilter
from payments_app.payments.routing import NewPayment
from payments_app.payments.states import Status

CURRENCIES: Final = sorted(EXPONENTS)
_EXTERNAL_ID: Final = (
    "Your own reference, such as an order number; unique for your tenant and mode."
)
_PLAIN: Final = (
    "Providers take plain letters, digits, spaces and `. , - _ : /` only, and some take less."
)


class NewPaymentSchema(RequestSchema):
    """A new payment: a collection from a payer."""

    amount = Amount(
        required=True,
        metadata={
            "description": "In major units: a whole number, or a decimal string with no more"
            " decimals than the currency has at the provider. Never a fractional JSON number.",
            "example": "1000",
        },
    )
    currency = ma.fields.String(
        required=True,
        validate=ma.validate.OneOf(CURRENCIES),
        metadata={
            "description": "ISO 4217. Which ones a payment can have, the provider's account says:"
            " a sandbox of MTN takes EUR.",
            "example": "EUR",
        },
    )
    payer = MsisdnField(
        required=True,
        metadata={
            "description": "The payer's mobile number in international form.",
            "example": "256772123456",
        },
    )
    provider = ma.fields.String(
        load_default=None,
        validate=ma.validate.Regexp(
            r"^[a-z][a-z0-9_]{0,39}\Z", error="must be a provider's code, such as mtn_momo"
        ),
        metadata={
            "description": "The rail; without it the tenant's setting decides, else what takes this number and this money.",
            "pattern": "^[a-z][a-z0-9_]{0,39}$",
            "example": "mtn_momo",
        },
    )
    external_id = Reference(
        load_default=None,
        longest=128,
        metadata={
            "description": f"{_EXTERNAL_ID} In Unicode's form NFC, without characters that don't"
            " show and without a space at its ends.",
            "example": "order-123",
        },
    )
    payer_message = Text(
        load_default=None,
        longest=160,
        metadata={
            "description": f"What the payer reads in the prompt. {_PLAIN}",
            "example": "Order 123",
        },
    )
    payee_note = Text(
        load_default=None,
        longest=160,
        metadata={
            "description": f"What stands in your own statement at the provider. {_PLAIN}",
            "example": "Shop 7",
        },
    )
    description = Text(
        load_default=None,
        longest=500,
        metadata={"description": "For yourself; not sent to the provider.", "example": "2 shirts"},
    )
    metadata = Metadata(
        load_default=None,
        metadata={
            "description": "Your own JSON, given back as it was: at most"
            f" {METADATA_BYTES_MAX} bytes and {METADATA_DEPTH_MAX} levels, without U+0000, and"
            " without numbers beyond ±(2^53 - 1), which JSON's readers take differently.",
            "example": {"cart": "c-981", "clerk": 7},
        },
    )

    @ma.post_load
    def make(self, data: dict[str, Any], **_options: Any) -> NewPayment:
        """The typed order; amount and currency are parsed together."""
        return NewPayment(money=_money(data.pop("amount"), data.pop("currency")), **data)


# The example that /docs sends, any number of times: every test account accepts it.
AN_ORDER: Final = {
    "amount": 1000,
    "currency": "EUR",
    "payer": "256772123456",
    "payer_message": "Order 123",
    "metadata": {"cart": "c-981"},
}


class PaymentQuerySchema(RequestSchema):
    """The filters of a payment list."""

    limit = Limit(metadata={"description": "How many payments a page has."})
    cursor = Cursor(metadata={"description": "`next_cursor` of the page before."})
    status = ma.fields.String(
        load_default=None,
        allow_none=False,
        validate=ma.validate.OneOf([status.value for status in Status]),
        metadata={"description": "Only payments with this status."},
    )
    payer = MsisdnField(
        load_default=None,
        allow_none=False,
        metadata={"description": "Only payments of this number, such as 256772123456."},
    )
    external_id = Text(
        load_default=None,
        allow_none=False,
        longest=128,
        metadata={"description": "The payment with this reference of your own."},
    )
    amount = AmountText(
        load_default=None,
        allow_none=False,
        metadata={"description": "Only payments of this amount; needs currency."},
    )
    currency = ma.fields.String(
        load_default=None,
        allow_none=False,
        validate=ma.validate.OneOf(CURRENCIES),
        metadata={"description": "Only payments in this currency."},
    )
    created_from = Instant(
        load_default=None,
        allow_none=False,
        metadata={
            "description": "Only payments accepted then or later, such as 2026-01-31T00:00:00Z.",
        },
    )
    created_to = Instant(
        load_default=None,
        allow_none=False,
        metadata={
            "description": "Only payments accepted before that, such as 2026-02-01T00:00:00+03:00.",
        },
    )

    @ma.post_load
    def make(self, data: dict[str, Any], **_options: Any) -> dict[str, Any]:
        """The requested page, and the typed filter."""
        limit, cursor = data.pop("limit"), data.pop("cursor")
        return {"limit": limit, "cursor": cursor, "wanted": _filter(data)}


class EventQuerySchema(RequestSchema):
    """The requested page of a payment's events."""

    limit = Limit(metadata={"description": "How many events a page has."})
    cursor = Cursor(metadata={"description": "`next_cursor` of the page before."})


def _filter(query: dict[str, Any]) -> PaymentFilter:
    amount, payer = query.pop("amount"), query.pop("payer")
    money = None
    if amount is not None:
        if query["currency"] is None:
            raise ma.ValidationError("is needed with amount", "currency")
        money = _money(amount, query["currency"])
    return PaymentFilter(money=money, payer=payer, **query)


def _money(amount: int | str, currency: str) -> Money:
    try:
        return Money.parse(amount, currency)
    except ValueError as error:
        raise ma.ValidationError(str(error), "amount") from None
