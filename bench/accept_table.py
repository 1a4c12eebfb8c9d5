"""The measurements of `bench/accept.py` as Markdown tables."""

from __future__ import annotations

import statistics
from collections.abc import Iterable

from bench.accept import Accepting, Taken
from bench.load import BUSY, generator

# The budgets, at 16 connections: the two rows that are compared, and the ratio to reach.
_AT = 16
_HEAD = (
    "| {many} connections | req/s | of the floor | p50 ms | p99 ms | p99 ÷ p50 | errors"
    " | CPU ms: app + PostgreSQL + Redis | of the floor's CPU | WAL B |"
)


def tables(done: Accepting) -> str:
    """One table for each number of connections, then the budgets."""
    connections = sorted({many for _, many in done.rounds})
    parts = [_table(done, many) for many in connections]
    if _AT in connections:
        parts.append(_budgets(done))
    parts.append(_written(done))
    parts.append(_generator(done))
    return "\n\n".join(part for part in parts if part)


def _table(done: Accepting, many: int) -> str:
    lines = [_HEAD.format(many=many), "|---|--:|--:|--:|--:|--:|--:|---|--:|--:|"]
    floor = done.floor(many)
    for name, connections in done.rounds:
        if connections == many:
            title = f"**{name}**" if name == floor else name
            told = (
                _number(done.ratio(name, floor, many)),
                _number(done.processor_ratio(name, floor, many)),
            )
            lines.append(_line(title, done.rounds[name, many], *told))
    return "\n".join(lines)


def _line(name: str, taken: list[Taken], rate: str, processor: str) -> str:
    def median(values: Iterable[float]) -> float:
        return statistics.median(values)

    p50, p99 = (median(one.load.p50_ms for one in taken), median(one.load.p99_ms for one in taken))
    cpu = " + ".join(
        f"{median(values):.2f}"
        for values in (
            [one.ms_of(one.spent.app_s) for one in taken],
            [one.ms_of(one.spent.postgres_s) for one in taken],
            [one.ms_of(one.spent.redis_s) for one in taken],
        )
    )
    wal = sum(one.spent.wal_bytes for one in taken) / sum(one.load.requests for one in taken)
    return (
        f"| {name} | {median(one.per_s for one in taken):.0f}"
        f" | {rate} | {p50:.1f} | {p99:.1f} | {p99 / p50:.1f}"
        f" | {sum(one.load.errors for one in taken)} | {cpu} | {processor} | {wal:.0f} |"
    )


def _number(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}"


def _budgets(done: Accepting) -> str:
    judged = (
        ("accept ÷ floor", done.ratio("accept", done.floor(_AT), _AT), 0.9),
        ("accept ÷ plain", done.ratio("accept", "plain", _AT), 2.5),
        ("replay ÷ accept", done.ratio("replay", "accept", _AT), 1.5),
    )
    lines = [f"| at {_AT} connections | is | at least | |", "|---|--:|--:|---|"]
    lines += [
        f"| {name} | {ratio:.2f} | {least} | {'✓' if ratio >= least else 'missed'} |"
        for name, ratio, least in judged
        if ratio is not None
    ]
    return "\n".join(lines) if len(lines) > 2 else ""  # noqa: PLR2004  the table's head


def _written(done: Accepting) -> str:
    lines = [
        f"| {name} | {rows.written / rows.payments:.2f} |"
        for name, rows in done.written.items()
        if rows.payments and name in ("floor", "plain", "accept")
    ]
    return "\n".join(["| | rows written for each payment |", "|---|--:|", *lines]) if lines else ""


def _generator(done: Accepting) -> str:
    busiest = max(one.load.busy for taken in done.rounds.values() for one in taken)
    doubt = ": it may be what is measured, where it is busiest" if busiest > BUSY else ""
    return f"Load: {generator()}, at its busiest {busiest:.0%} of one core{doubt}."
