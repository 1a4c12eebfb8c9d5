"""Statistics of a run: times until payments were final, and counts of answers and acts. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from chaos.evidence import Evidence, ExchangeRow, Window


@dataclass(frozen=True, slots=True)
class Spread:
    """Percentiles of times, in seconds."""

    count: int
    p50_s: float
    p95_s: float
    max_s: float


@dataclass(frozen=True, slots=True)
class LostAnswers:
    """Seconds to the final status from a lost answer, or from the provider's own end if later.

    `on_the_wire`: the gateway recorded that it lost the answer. `alone`: those of them that met
    no second fault before the payment was final. `with_its_process`: the worker was killed or
    frozen during the exchange, and its lease had to end first. `planned`: two faults were planned
    for it (planned_pairs.py); it counts here and nowhere else.
    """

    on_the_wire: Spread
    alone: Spread
    with_its_process: Spread
    planned: Spread


def lost_answers(
    evidence: Evidence, disturbed: Sequence[Window], planned_keys: Collection[str] = ()
) -> LostAnswers:
    """The times of all final payments whose first submission's answer was lost.

    `disturbed`: when processes that every payment depends on were broken.
    """
    ended_at = {row.reference: row.ended_at for row in evidence.creations}
    final_at = {row.id: row.final_at for row in evidence.payments}
    struck, whole = _struck_again(evidence), _without_a_lost_claim(evidence)
    planned = {row.id for row in evidence.payments if row.chaos_key in planned_keys}
    wire, alone, process, of_pairs = [], [], [], []
    for exchange in _first_submissions(evidence.exchanges):
        final, known = final_at.get(exchange.payment_id), ended_at.get(exchange.reference)
        if final is None or known is None:
            continue
        if exchange.finished_at is None:
            process.append(final - max(exchange.started_at, known))
        elif exchange.verdict == "UNKNOWN" and exchange.payment_id in planned:
            of_pairs.append(final - max(exchange.finished_at, known))
        elif exchange.verdict == "UNKNOWN":
            seconds = final - max(exchange.finished_at, known)
            wire.append(seconds)
            met = any(
                one.began_at < final and exchange.started_at < one.ended_at for one in disturbed
            )
            if not met and exchange.reference not in struck and exchange.payment_id in whole:
                alone.append(seconds)
    return LostAnswers(*(spread(one) for one in (wire, alone, process, of_pairs)))


def spread(seconds: Sequence[float]) -> Spread:
    """Nearest-rank percentiles."""
    ordered = sorted(max(0.0, one) for one in seconds)
    if not ordered:
        return Spread(0, 0.0, 0.0, 0.0)
    return Spread(len(ordered), _rank(ordered, 0.5), _rank(ordered, 0.95), ordered[-1])


def answer_counts(evidence: Evidence) -> Mapping[str, int]:
    """The API's answers by status and code; where none was received, by the client's error."""
    found: Counter[str] = Counter()
    for line in evidence.lines:
        if line.outcome != "asked":
            found[
                f"{line.status} {line.code or ''}".strip() if line.status else str(line.error)
            ] += 1
    return dict(found.most_common())


def act_counts(evidence: Evidence) -> Mapping[str, int]:
    """How many requests of each act were sent."""
    return dict(Counter(line.act for line in evidence.lines if line.outcome == "asked"))


def _struck_again(evidence: Evidence) -> set[str | None]:
    """References of requests that met more than one of the provider's faults."""
    faults = Counter(row.reference for row in evidence.wire if row.fault)
    return {reference for reference, count in faults.items() if count > 1}


def _without_a_lost_claim(evidence: Evidence) -> set[str]:
    """Payments of which each claim recorded its result: no worker died or froze during one."""
    written = Counter(one.payment_id for one in evidence.exchanges if one.finished_at is not None)
    return {row.id for row in evidence.payments if written[row.id] == row.generation}


def _first_submissions(exchanges: Sequence[ExchangeRow]) -> Sequence[ExchangeRow]:
    first: dict[str, ExchangeRow] = {}
    for exchange in sorted(exchanges, key=lambda one: one.generation):
        if exchange.kind == "submit":
            first.setdefault(exchange.payment_id, exchange)
    return list(first.values())


def _rank(ordered: Sequence[float], part: float) -> float:
    return ordered[max(0, math.ceil(part * len(ordered)) - 1)]
