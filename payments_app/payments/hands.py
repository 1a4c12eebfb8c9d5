"""Hands carry out claims, several at a time; what they find out comes home in batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from payments_app.kernel.tracing import Span
from payments_app.payments.claims import Claim
from payments_app.providers.contract import Observation


@dataclass(frozen=True, slots=True)
class Finding:
    """What came of a claim's exchange. Its lines in the log stand under `span`."""

    claim: Claim
    seen: Observation
    span: Span


Errand = Callable[[], Finding]


class Hands(Protocol):
    """So many errands at a time and no more. One thread gives them out and takes them back."""

    @property
    def free(self) -> int:
        """How many errands would begin at once."""
        ...

    @property
    def are_idle(self) -> bool:
        """Whether all has come home and was taken."""
        ...

    def send_out(self, errand: Errand) -> None:
        """Send a free hand out."""
        ...

    def come_home(self) -> list[Finding]:
        """What has come home, after waiting for some of it while any is out.

        Empty when nothing is out, and when there is a reason to look for more to do first.
        """
        ...


@dataclass
class InTurn:
    """Hands of the thread that gives the errands out: each is over before the next begins."""

    count: int = 1
    _home: list[Finding] = field(default_factory=list)

    @property
    def free(self) -> int:
        """See Hands."""
        return self.count - len(self._home)

    @property
    def are_idle(self) -> bool:
        """See Hands."""
        return not self._home

    def send_out(self, errand: Errand) -> None:
        """See Hands."""
        self._home.append(errand())

    def come_home(self) -> list[Finding]:
        """See Hands."""
        home, self._home = self._home, []
        return home
