"""A tenant's order, and which provider (rail) takes it. No transaction is open here."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from payments_app.kernel.errors import FieldsInvalid, GatewayError
from payments_app.kernel.money import EXPONENTS, Money
from payments_app.kernel.msisdn import Msisdn
from payments_app.payments.gateway import PaymentGateway
from payments_app.providers.contract import Provider, ProviderAccount, Terms
from payments_app.tenants.caller import Caller


class ProviderAmbiguous(GatewayError):
    """More than one provider could take the payment and the request doesn't say which."""

    code = "provider_required"


@dataclass(frozen=True, slots=True)
class NewPayment:
    """A tenant's request for a collection, parsed."""

    money: Money
    payer: Msisdn = field(repr=False)
    provider: str | None = None
    external_id: str | None = None
    payer_message: str | None = field(default=None, repr=False)
    payee_note: str | None = field(default=None, repr=False)
    description: str | None = field(default=None, repr=False)
    metadata: dict[str, Any] | None = field(default=None, repr=False)

    def fields(self) -> dict[str, str]:
        """The request in one canonical form, for the fingerprint; omitted fields are left out."""
        texts = {
            "amount": str(self.money.minor),
            "currency": self.money.currency,
            "payer": self.payer.digits,
            "provider": self.provider,
            "external_id": self.external_id,
            "payer_message": self.payer_message,
            "payee_note": self.payee_note,
            "description": self.description,
        }
        if self.metadata is not None:
            texts["metadata"] = json.dumps(self.metadata, sort_keys=True, separators=(",", ":"))
        return {name: value for name, value in texts.items() if value is not None}


class Route(NamedTuple):
    """The provider that takes a payment, and the account it goes through."""

    provider: Provider
    account: ProviderAccount


def select_provider(order: NewPayment, caller: Caller, gateway: PaymentGateway) -> Route:
    """The provider for this order: the requested one, else the tenant's default, else what fits.

    Raises FieldsInvalid when the provider doesn't take this order, ProviderAmbiguous when several
    would, and the registry's and the accounts' own errors.
    """
    asked = order.provider or caller.default_provider
    if asked is not None:
        route = _route(asked, caller, gateway)
        if errors := _violations(order, route):
            raise FieldsInvalid(errors)
        return route
    return _only_fitting(order, caller, gateway)


def _only_fitting(order: NewPayment, caller: Caller, gateway: PaymentGateway) -> Route:
    enabled, fitting, refusal = [], [], None
    for code in gateway.registry.codes():
        try:
            route = _route(code, caller, gateway)
        except GatewayError as error:
            refusal = error
            continue
        enabled.append(route)
        if not _violations(order, route):
            fitting.append(route)
    if len(fitting) == 1:
        return fitting[0]
    if len(fitting) > 1:
        codes = ", ".join(route.provider.code for route in fitting)
        raise ProviderAmbiguous(f"Say which provider the payment is for: {codes} would take it.")
    if enabled:
        raise FieldsInvalid(_violations(order, enabled[0]))
    raise refusal or ProviderAmbiguous("This installation has no provider.")


def _route(code: str, caller: Caller, gateway: PaymentGateway) -> Route:
    provider = gateway.registry.get(code)
    account = gateway.accounts.find(tenant_id=caller.tenant_id, provider=code, mode=caller.mode)
    return Route(provider, account)


def _violations(order: NewPayment, route: Route) -> dict[str, list[str]]:
    terms = route.provider.terms(route.account)
    environment = route.account.target_environment
    errors: dict[str, list[str]] = {}
    if order.money.currency not in terms.currencies:
        taken = ", ".join(sorted(terms.currencies))
        errors["currency"] = [f"{environment} takes {taken}."]
    elif _has_more_decimals(order.money, terms.currencies[order.money.currency]):
        decimals = terms.currencies[order.money.currency]
        errors["amount"] = [f"{environment} takes at most {decimals} decimals."]
    if terms.country is not None and order.payer.country != terms.country:
        errors["payer"] = [f"{environment} takes numbers of {terms.country} only."]
    for name in ("payer_message", "payee_note"):
        if objection := _text_objection(getattr(order, name), terms):
            errors[name] = [objection]
    return errors


def _has_more_decimals(money: Money, decimals: int) -> bool:
    finest = 10 ** max(EXPONENTS[money.currency] - decimals, 0)
    return bool(money.minor % finest)


def _text_objection(value: str | None, terms: Terms) -> str | None:
    if value is None:
        return None
    if len(value) > terms.text_length_max:
        return f"The provider takes at most {terms.text_length_max} characters."
    if not re.fullmatch(terms.text_pattern, value):
        return (
            "The provider takes plain letters, digits, spaces and . , - _ : / only;"
            " other characters make it refuse the whole request."
        )
    return None
