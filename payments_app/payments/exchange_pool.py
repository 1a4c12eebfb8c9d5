"""A pool carries out claims, several at a time; their results are collected in batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from payments_app.kernel.tracing import Span
from payments_app.payments.claims import Claim
from payments_app.providers.contract import Observation


@dataclass(frozen=True, slots=True)
class ExchangeResult:
    """What came of a claim's exchange. Its lines in the log stand under `span`."""

    claim: Claim
    seen: Observation
    span: Span


ExchangeJob = Callable[[], ExchangeResult]


class ExchangePool(Protocol):
    """So many jobs at a time and no more. One thread submits them and collects their results."""

    @property
    def free_slots(self) -> int:
        """How many jobs would begin at once."""
        ...

    @property
    def is_idle(self) -> bool:
        """Whether every job has ended and its result was collected."""
        ...

    def submit(self, job: ExchangeJob) -> None:
        """Begin a job. There must be a free slot: a claim's lease runs from the claim."""
        ...

    def collect(self) -> list[ExchangeResult]:
        """The results that are in, after waiting for some while any job runs.

        Empty when none runs, and when there is a reason to look for more to do first.
        """
        ...


@dataclass
class SerialExchangePool:
    """Runs each job to its end in the thread that submits it."""

    count: int = 1
    _ended: list[ExchangeResult] = field(default_factory=list)

    @property
    def free_slots(self) -> int:
        """See ExchangePool."""
        return self.count - len(self._ended)

    @property
    def is_idle(self) -> bool:
        """See ExchangePool."""
        return not self._ended

    def submit(self, job: ExchangeJob) -> None:
        """See ExchangePool."""
        self._ended.append(job())

    def collect(self) -> list[ExchangeResult]:
        """See ExchangePool."""
        ended, self._ended = self._ended, []
        return ended
