"""What payment processing needs from outside: adapters, accounts, the network. One value."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol
from uuid import UUID

from payments_app.kernel.encryption import TenantKeyring
from payments_app.kernel.http.messages import HttpClient
from payments_app.kernel.http.transport import Lease, Transport
from payments_app.payments.model import Payment
from payments_app.payments.payers import known_payer_of
from payments_app.payments.states import Step
from payments_app.providers.contract import (
    AccountKey,
    Mode,
    Observation,
    PaymentOrder,
    Provider,
    ProviderAccount,
)
from payments_app.tenants.accounts import ProviderAccounts


class Registry(Protocol):
    """The adapters by their code."""

    def get(self, code: str) -> Provider:
        """Raises a GatewayError for a code that no adapter has."""
        ...

    def codes(self) -> list[str]:
        """All codes, sorted."""
        ...


class Pace(Protocol):
    """Limits what is sent for an account to what its provider accepts, over all workers."""

    def advise(self, account: AccountKey, checks_per_s: float | None) -> None:
        """Set the rate that the adapter advises; None for no limit."""
        ...

    def is_open(self, account: AccountKey, step: Step) -> bool:
        """Whether anything may be sent now, as far as this process knows."""
        ...

    def grant(self, wanted: Mapping[AccountKey, int]) -> Mapping[AccountKey, int]:
        """How many of the wanted status checks may be sent now."""
        ...

    def learn(self, account: AccountKey, step: Step, seen: Observation, calls: int) -> None:
        """Learn from the result of a submission, or of a status check that took `calls` calls."""
        ...


@dataclass(frozen=True, slots=True)
class PaymentGateway:
    """The dependencies. `stopping`: whether this process was asked to end."""

    registry: Registry
    accounts: ProviderAccounts
    transport: Transport
    pace: Pace
    keyring: TenantKeyring
    public_base_url: str | None
    stopping: Callable[[], bool] = bool

    def account_of(self, payment: Payment, *, anew: bool = False) -> ProviderAccount:
        """The account that the payment was accepted for, at the platform that took it.

        `anew`: read again, not from the cache.
        Raises a GatewayError if it can't be opened any more.
        """
        account = self.accounts.open(
            tenant_id=payment.tenant_id,
            provider=payment.provider,
            mode=Mode(payment.mode),
            account_id=payment.account_id,
            anew=anew,
        )
        return replace(
            account, base_url=payment.base_url, target_environment=payment.target_environment
        )

    def order_for(self, payment: Payment) -> PaymentOrder:
        """The order for the adapter. Raises DataKeyUnreadable."""
        return PaymentOrder(
            reference=payment.reference,
            payment_id=payment.id,
            money=payment.money,
            payer=known_payer_of(self.keyring, payment).msisdn,
            payer_message=payment.payer_message,
            payee_note=payment.payee_note,
            callback_url=self._callback_url(payment.provider, payment.reference),
        )

    def http_client(self, lease: Lease) -> HttpClient:
        """The HTTP client for one claim."""
        return self.transport.http_client(lease)

    def _callback_url(self, provider: str, reference: UUID) -> str | None:
        if self.public_base_url is None:
            return None
        return f"{self.public_base_url}/callbacks/{provider}/{reference}"
