"""What each failure code means, who must act, and whether a new payment may help. Pure.

The one table behind the API's `failure` member and docs/errors.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from payments_app.providers.contract import FailureCode


class Actor(StrEnum):
    """Who can fix it."""

    PAYER = "payer"
    TENANT = "tenant"
    OPERATOR = "operator"
    PROVIDER = "provider"


@dataclass(frozen=True, slots=True)
class FailureMeaning:
    """`description`: a sentence for a person.

    `new_payment_may_help`: whether it makes sense that the tenant tries again, as a new payment
    under a new Idempotency-Key, without anyone changing a setting first.
    """

    description: str
    actor: Actor
    new_payment_may_help: bool


def _meaning(description: str, actor: Actor, *, retry: bool) -> FailureMeaning:
    return FailureMeaning(description, actor, new_payment_may_help=retry)


FAILURES: Final[Mapping[FailureCode, FailureMeaning]] = {
    FailureCode.PAYER_REJECTED: _meaning(
        "The payer said no to the payment.", Actor.PAYER, retry=True
    ),
    FailureCode.PAYER_DID_NOT_APPROVE: _meaning(
        "The payer did not approve the payment in time.", Actor.PAYER, retry=True
    ),
    FailureCode.PAYER_NOT_FOUND: _meaning(
        "The number has no wallet at this provider.", Actor.TENANT, retry=False
    ),
    FailureCode.PAYER_LIMIT_REACHED: _meaning(
        "The payment would go beyond a limit of the payer's wallet.", Actor.PAYER, retry=True
    ),
    FailureCode.PAYER_NOT_ACTIVE: _meaning(
        "The payer's wallet is not active.", Actor.PAYER, retry=False
    ),
    FailureCode.INSUFFICIENT_FUNDS: _meaning(
        "The payer's balance is too low, or a limit of the wallet stands against it.",
        Actor.PAYER,
        retry=True,
    ),
    FailureCode.PAYEE_NOT_FOUND: _meaning(
        "The provider does not know the account that was to receive the money.",
        Actor.OPERATOR,
        retry=False,
    ),
    FailureCode.PAYEE_CANNOT_RECEIVE: _meaning(
        "The account that was to receive the money may not, or has reached a limit.",
        Actor.OPERATOR,
        retry=False,
    ),
    FailureCode.CANCELLED: _meaning(
        "The payment was cancelled at the provider.", Actor.PAYER, retry=True
    ),
    FailureCode.CURRENCY_REFUSED: _meaning(
        "The provider does not take this currency for this account.", Actor.OPERATOR, retry=False
    ),
    FailureCode.REQUEST_REFUSED: _meaning(
        "The provider refused the request as it was written; nothing was charged.",
        Actor.TENANT,
        retry=False,
    ),
    FailureCode.PROVIDER_NOT_ALLOWED: _meaning(
        "The provider does not let this account do this; nothing was charged.",
        Actor.OPERATOR,
        retry=False,
    ),
    FailureCode.PROVIDER_MISCONFIGURED: _meaning(
        "The gateway's settings for this provider are wrong; nothing was charged.",
        Actor.OPERATOR,
        retry=False,
    ),
    FailureCode.PROVIDER_UNAVAILABLE: _meaning(
        "The provider ended the payment because a service of its own was not available.",
        Actor.PROVIDER,
        retry=True,
    ),
    # MTN says itself that its INTERNAL_PROCESSING_ERROR most often means insufficient funds.
    FailureCode.PROVIDER_ERROR: _meaning(
        "The provider ended the payment with an internal error; at MTN this most often means"
        " that the payer's balance was too low.",
        Actor.PAYER,
        retry=True,
    ),
    FailureCode.OTHER: _meaning(
        "The provider ended the payment for a reason that it names only in its own words.",
        Actor.PROVIDER,
        retry=True,
    ),
}
_BY_CODE: Final[Mapping[str, FailureMeaning]] = {
    str(code): meaning for code, meaning in FAILURES.items()
}


def failure_document(code: str | None, provider_code: str | None) -> dict[str, Any] | None:
    """The `failure` of a payment, as the API and webhooks show it; None if it has none."""
    if code is None:
        return None
    # A code of a later release, written before a rollback to this one.
    meaning = _BY_CODE.get(code, FAILURES[FailureCode.OTHER])
    return {
        "code": code,
        "provider_code": provider_code,
        "message": meaning.description,
        "who_must_act": meaning.actor,
        "new_payment_may_help": meaning.new_payment_may_help,
    }
