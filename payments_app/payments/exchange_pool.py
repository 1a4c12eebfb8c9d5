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
    """The result of a claim's exchange. Its log lines belong to `span`."""

    claim: Claim
    seen: Observation
    span: Span


ExchangeJob = Callable[[], ExchangeResult]


class ExchangePool(Protocol):
    """Runs a limited number of jobs at a time. One thread submits them and collects results."""

    @property
    def free_slots(self) -> int:
        """How many jobs would start at once."""
        ...

    @property
    def is_idle(self) -> bool:
        """Whether every job has ended and its result was collected."""
        ...

    def submit(self, job: ExchangeJob) -> None:
        """Start a job. There must be a free slot: a claim's lease runs from the claim."""
        ...

    def collect(self) -> list[ExchangeResult]:
        """The results that are ready, after waiting for a while if any job runs.

        Empty when no job runs, or when the pool was woken to claim more first.
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
