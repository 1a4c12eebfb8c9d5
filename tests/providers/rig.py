"""What the contract suite needs of a provider: a stand-in in which any fault can be caused.

A rig for each adapter; see docs/adding-a-provider.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import ClassVar, Final, Protocol, Self
from uuid import UUID

from payments_app.providers.contract import PaymentOrder, ProviderAccount, Verdict

GROUP: Final = "payments_app.provider_rigs"
BUILT_IN: Final = {"mtn_momo": "tests.providers.mtn_rig:MtnRig"}
# The suite's timeout for a request that won't be answered in time, in place of the adapter's own.
PATIENCE_S: Final = 0.5


@dataclass(frozen=True)
class Trouble:
    """A fault, as the stand-in describes it, and the verdict that the adapter must return.

    `verdict` None means that the fault must not matter: accepted, or the payment's true status.
    `outlasts_us`: it isn't answered within PATIENCE_S, and may still have its effect later.
    `lasts_s`: how long the stand-in needs to process it.
    `changes_amount`: the answer's amount isn't the order's.
    `of_token`: it happens to the request for a token, and to no other.
    """

    recipe: Mapping[str, object]
    verdict: Verdict | None
    outlasts_us: bool = False
    lasts_s: float = 0.0
    changes_amount: bool = False
    of_token: bool = False


class Rig(Protocol):
    """A provider's stand-in with a ledger. No payment ends before `pay` or `fail`."""

    SUBMISSION_TROUBLES: ClassVar[Mapping[str, Trouble]]
    CHECK_TROUBLES: ClassVar[Mapping[str, Trouble]]

    def __enter__(self) -> Self:
        """Start the stand-in."""
        ...

    def __exit__(self, *error: object) -> None:
        """Stop it, and everything that it started."""
        ...

    def account(self) -> ProviderAccount:
        """An account with valid credentials."""
        ...

    def wrong_account(self) -> ProviderAccount:
        """The same with credentials that the provider refuses."""
        ...

    def order(self) -> PaymentOrder:
        """A new order that the account can submit."""
        ...

    def cause(self, trouble: Trouble) -> None:
        """Cause this fault for the next requests."""
        ...

    def calm(self) -> None:
        """Remove all faults."""
        ...

    def delay_tokens(self, delay_s: float) -> None:
        """Delay the next answer to a token request by `delay_s`."""
        ...

    def pay(self, reference: UUID) -> None:
        """The payer approves."""
        ...

    def fail(self, reference: UUID) -> None:
        """The payer refuses."""
        ...

    def submissions(self, reference: UUID) -> int:
        """How many requests for this payment arrived."""
        ...

    def payments(self, reference: UUID) -> int:
        """How many payments have this reference."""
        ...

    def movements(self, reference: UUID) -> int:
        """How often money moved for it."""
        ...


def rigs() -> dict[str, type[Rig]]:
    """The rigs by the code of their adapter, those of partners included."""
    built_in = [EntryPoint(code, where, GROUP) for code, where in BUILT_IN.items()]
    return {point.name: point.load() for point in (*built_in, *entry_points(group=GROUP))}
