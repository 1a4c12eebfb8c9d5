"""All end-to-end measurements in one run, and their tables."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict, dataclass, field

from bench.endtoend.backlog import Drained, drained
from bench.endtoend.measured import Measured
from bench.endtoend.pace import ALLOWED_PER_S, Paced, paced
from bench.endtoend.rows import (
    TENANTS,
    Fairness,
    Loops,
    Size,
    fairness,
    filled_row,
    in_turn,
    shared_rows,
)
from bench.endtoend.site import OURS, Installation, installed
from bench.sites import durable_servers
from devstack.servers import Servers

SHARED = {
    "one": "one tenant, one endpoint",
    "one, no callbacks": "the same, the provider sends no callbacks",
    "ten": f"{TENANTS} tenants, an endpoint each",
    "none": "no endpoint, to `SUCCESSFUL`",
    "plain": "the plain service",
}
BESIDES = {
    "beside hanging": "a tenant whose endpoint hangs",
    "beside slow": "an account at the provider that answers in {slow_answer_s:g} s, {slow_open} payments open",
}
ROWS = (*SHARED, *BESIDES, "pace", "backlog", "fill")


@dataclass
class Results:
    """The results, and the size of the run."""

    size: Size
    loops: dict[str, list[Loops]] = field(default_factory=dict)
    fairness: dict[str, list[Fairness]] = field(default_factory=dict)
    pace: Paced | None = None
    backlog: Drained | None = None


def run(size: Size, servers: Servers | None = None) -> Results:
    """Measure the requested rows. Raises ValueError for an unknown one."""
    names = size.rows.split("|") if size.rows else list(ROWS)
    if unknown := set(names) - set(ROWS):
        raise ValueError(f"no such rows: {', '.join(unknown)}; there are {', '.join(ROWS)}")
    done = Results(size)
    with durable_servers(servers) as running, ExitStack() as cleanup:
        # One installation for all parts, unless each part has its own (`apart`).
        kept = None if size.apart else cleanup.enter_context(installed(running))

        def site() -> AbstractContextManager[Installation]:
            return nullcontext(kept) if kept else installed(running)

        if shared := [name for name in names if name in SHARED]:
            with site() as here, shared_rows(running, here, shared) as rows:
                done.loops |= in_turn(rows, size)
        if besides := [name for name in names if name in BESIDES]:
            with site() as here:
                done.fairness = fairness(here, besides, size)
        if "backlog" in names:
            with site() as here:
                done.backlog = drained(here, deliveries=size.backlog)
        if "fill" in names:
            with site() as here:
                done.loops |= in_turn([filled_row(here, size.fill)], size)
        if "pace" in names:
            with site() as here:
                done.pace = paced(here, payments=size.pace_payments, seconds=size.pace_s)
    return done


def tables(done: Results) -> str:
    """Markdown tables."""
    parts = [
        _loops(done) if done.loops else "",
        _fairness(done) if done.fairness else "",
        _pace(done.pace) if done.pace else "",
        _backlog(done.backlog) if done.backlog else "",
    ]
    return "\n\n".join(part for part in parts if part)


def _loops(done: Results) -> str:
    lines = [
        (
            f"| {done.size.under_way} payments under way | payments/s end to end | webhooks/s | CPU ms a payment:"
            " api + worker + beat + PostgreSQL + Redis | stand-ins"
            " | at half of that: lag s p50 | p99 | CPU ms | wrong |"
        ),
        "|---|--:|--:|---|--:|--:|--:|--:|---|",
    ]
    for name, rounds in done.loops.items():
        closed, opened = [one.closed for one in rounds], [one.open for one in rounds]
        kinds = " + ".join(f"{_median(closed, _of(kind)):.1f}" for kind in OURS)
        wrong = [one for loops in rounds for one in (*loops.closed.wrong, *loops.open.wrong)]
        cells = (
            SHARED.get(name, name),
            f"{_median(closed, lambda one: one.per_s):.1f}",
            f"{_median(closed, lambda one: one.webhooks_per_s):.0f}",
            f"{kinds} = **{_median(closed, lambda one: one.ours_ms):.1f}**",
            f"{_median(closed, lambda one: one.stand_ins_ms):.1f}",
            f"{_median(opened, lambda one: one.lag_s(0.5)):.2f}",
            f"{_median(opened, lambda one: one.lag_s(0.99)):.2f}",
            f"{_median(opened, lambda one: one.ours_ms):.1f}",
            wrong[0] if wrong else "nothing",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _fairness(done: Results) -> str:
    lines = [
        "| one tenant at half of its top rate, beside | lag p99 s alone, by round | beside | ratio | wrong |",
        "|---|---|---|--:|---|",
    ]
    for name, rounds in done.fairness.items():
        alone = ", ".join(f"{one.alone.lag_s(0.99):.2f}" for one in rounds)
        beside = ", ".join(f"{one.beside.lag_s(0.99):.2f}" for one in rounds)
        ratio = statistics.median(one.ratio for one in rounds)
        wrong = [one for pair in rounds for one in (*pair.alone.wrong, *pair.beside.wrong)]
        first_wrong = wrong[0] if wrong else "nothing"
        lines.append(
            f"| {BESIDES[name].format(**asdict(done.size))} | {alone} | {beside} | {ratio:.2f} | {first_wrong} |"
        )
    return "\n".join(lines)


def _pace(found: Paced) -> str:
    lines = [
        f"| a live account, {found.open} payments open, {found.seconds:.0f} s | |",
        "|---|--:|",
        f"| status questions/s that arrive ({ALLOWED_PER_S:.0f} are allowed) | {found.per_s:.1f} |",
        f"| claims for each question | {found.claims_each:.2f} |",
        f"| workers and PostgreSQL, of one core | {found.busy:.0%} |",
    ]
    return "\n".join(lines)


def _backlog(found: Drained) -> str:
    kinds = " + ".join(f"{found.cpu_ms[kind]:.2f}" for kind in OURS)
    tenths = ", ".join(f"{one:.0f}" for one in found.tenths)
    lines = [
        f"| {found.deliveries:,} deliveries wait for one endpoint | |",
        "|---|---|",
        f"| delivered/s | {found.per_s:.0f} |",
        f"| … in each tenth | {tenths} |",
        (
            "| CPU ms a delivery: api + worker + beat + PostgreSQL + Redis |"
            f" {kinds} = {sum(found.cpu_ms.values()):.2f} |"
        ),
    ]
    return "\n".join(lines)


def _of(kind: str) -> Callable[[Measured], float]:
    return lambda one: one.cpu_ms[kind]


def _median(taken: Iterable[Measured], of: Callable[[Measured], float]) -> float:
    return statistics.median(of(one) for one in taken)
