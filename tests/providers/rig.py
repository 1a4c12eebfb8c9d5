"""What the contract suite needs of a provider: a stand-in that can be put in any kind of trouble.

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
# The suite's patience with a call that won't be answered in time, in place of the adapter's own.
PATIENCE_S: Final = 0.5


@dataclass(frozen=True)
class Trouble:
    """What goes wrong, in the stand-in's own words, and what the adapter must say to it.

    `verdict` None means that it must come through all the same: accepted, or the truth.
    `outlasts_us`: it isn't answered within PATIENCE_S, and may still have its effect later.
    `lasts_s`: how long the stand-in is busy with it.
    `changes_amount`: the answer's amount isn't the order's.
    """

    recipe: Mapping[str, object]
    verdict: Verdict | None
    outlasts_us: bool = False
    lasts_s: float = 0.0
    changes_amount: bool = False


class Rig(Protocol):
    """A provider's stand-in with a ledger. No payment ends before `pay` or `fail`."""

    SUBMISSION_TROUBLES: ClassVar[Mapping[str, Trouble]]
    CHECK_TROUBLES: ClassVar[Mapping[str, Trouble]]

    def __enter__(self) -> Self:
        """Start it."""
        ...

    def __exit__(self, *error: object) -> None:
        """End it, and all that it started."""
        ...

    def account(self) -> ProviderAccount:
        """An account that works."""
        ...

    def wrong_account(self) -> ProviderAccount:
        """The same with credentials that the provider refuses."""
        ...

    def order(self) -> PaymentOrder:
        """A new order that the account takes."""
        ...

    def cause(self, trouble: Trouble) -> None:
        """Have it strike the next calls."""
        ...

    def calm(self) -> None:
        """No more trouble."""
        ...

    def delay_tokens(self, delay_s: float) -> None:
        """Have the next answer to a request for credentials come this late."""
        ...

    def pay(self, reference: UUID) -> None:
        """The payer says yes."""
        ...

    def fail(self, reference: UUID) -> None:
        """The payer says no."""
        ...

    def submissions(self, reference: UUID) -> int:
        """How many requests for this payment arrived."""
        ...

    def payments(self, reference: UUID) -> int:
        """How many payments there are under it."""
        ...

    def movements(self, reference: UUID) -> int:
        """How often money moved for it."""
        ...


def rigs() -> dict[str, type[Rig]]:
    """The rigs by the code of their adapter, partners' too."""
    built_in = [EntryPoint(code, where, GROUP) for code, where in BUILT_IN.items()]
    return {point.name: point.load() for point in (*built_in, *entry_points(group=GROUP))}
