"""Whether speed stays the same: the same requests with few, more and a million payments in the tables.

Each size has its own database and its own API. The sizes take turns, so that other load on the machine
affects all of them alike.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import click
import requests

from bench.accept import PAYMENTS, Accepting, Effort, Row, in_turn, our_rows
from bench.counts import looking, serving
from bench.fill import fill
from bench.load import Shot
from bench.plans import Plan, explained, plans_of
from bench.sites import SETTINGS, WORKERS, durable_servers, site_of
from devstack.programs import Programs
from devstack.servers import Servers
from devstack.stack import Stack

SIZES = (10_000, 100_000, 1_000_000)
LOOKS = 200
# Enough for psycopg to prepare its statements, and for PostgreSQL to choose a generic plan.
WARM = 12


@dataclass(frozen=True)
class Grown:
    """One size: how long a worker pass takes when nothing is due, and the plans of a pass and a list."""

    looks_s: list[float]
    look_plans: list[Plan]
    list_plans: list[Plan]


@dataclass(frozen=True)
class Growth:
    """All sizes. The rows of `requests` are named `accept at 10000` and so on."""

    requests: Accepting
    sizes: dict[int, Grown]


def run(effort: Effort, sizes: Sequence[int] = SIZES, *, servers: Servers | None = None) -> Growth:
    """Fill the tables, time worker passes, and then measure the sizes in turns."""
    rows, grown = [], {}
    with ExitStack() as cleanup:
        running = cleanup.enter_context(durable_servers(servers))
        for size in sizes:
            stack = Stack(
                workers=WORKERS, celery_workers=1, beats=0, settings=SETTINGS, servers=running
            )
            cleanup.enter_context(stack)
            key = stack.issue_key("bench")
            ids = fill(stack, key, size)
            # The worker was needed for the template only.
            stack.processes["worker-1"].terminate()
            click.echo(f"{size} payments are there", err=True)
            grown[size] = look_at(stack, running, key)
            rows += rows_at(stack, key, size, ids, effort.known)
        return Growth(in_turn(rows, effort), grown)


def rows_at(stack: Stack, key: str, size: int, ids: Sequence[str], known: int) -> list[Row]:
    """Our rows on the filled tables: any payment, the newest page, and a page from the middle."""
    site = site_of(stack)
    asks = {"X-API-Key": key}
    paths = tuple(f"{PAYMENTS}/{one}" for one in ids[: known * 4])
    rows = {row.name: row for row in our_rows(stack, key, known)}
    rows["get"] = replace(rows["get"], shot=Shot(site.url, "GET", paths, asks))
    middle = _cursors(site.url, asks, ids)
    rows["list, old page"] = Row(
        "list, old page", site, Shot(site.url, "GET", middle, asks), makes_payments=False
    )
    return [replace(row, name=f"{name} at {size}") for name, row in rows.items()]


def _cursors(url: str, asks: dict[str, str], ids: Sequence[str]) -> tuple[str, ...]:
    """Paths of pages that begin at the times of some payments."""
    some = ids[:: max(1, len(ids) // 20)]
    times = [
        requests.get(f"{url}{PAYMENTS}/{one}", headers=asks, timeout=30).json()["created_at"]
        for one in some
    ]
    return tuple(f"{PAYMENTS}?created_to={time.replace('+', '%2B')}" for time in times)


def look_at(stack: Stack, servers: Servers, key: str) -> Grown:
    """Time worker passes, and read the plans of a pass and of a page."""
    with looking(stack.environment) as look:
        look(WARM)
        looks_s = look(LOOKS)
    headers = {"X-API-Key": key}
    api = Programs(stack.environment).api
    with explained(stack), serving(servers, lambda port: api(port=port, workers=1)) as url:
        with looking(stack.environment) as look:
            look(WARM)
            look_plans = plans_of(stack, lambda: look(1))
        with requests.Session() as session:

            def ask_for_a_page() -> None:
                session.get(f"{url}{PAYMENTS}", headers=headers, timeout=30).raise_for_status()

            for _ in range(WARM):
                ask_for_a_page()
            list_plans = plans_of(stack, ask_for_a_page)
    return Grown(looks_s, look_plans, list_plans)


def tables(done: Growth) -> str:
    """Markdown tables."""
    return "\n\n".join([_requests(done), _looks(done), _plans(done)])


def _requests(done: Growth) -> str:
    (many,) = {connections for _, connections in done.requests.rounds}
    sizes = list(done.sizes)
    kinds = dict.fromkeys(name.rpartition(" at ")[0] for name, _ in done.requests.rounds)
    head = f"| {many} connections, payments in the tables | req/s | p50 ms | p99 ms | errors"
    lines = [
        f"{head} | CPU ms, all | rate, of that at {sizes[0]} | CPU, of that at {sizes[0]} |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for kind in kinds:
        for size in sizes:
            name, first = f"{kind} at {size}", f"{kind} at {sizes[0]}"
            taken = done.requests.rounds[name, many]
            told = (
                f"{done.requests.median(name, many):.0f}",
                f"{statistics.median(one.load.p50_ms for one in taken):.1f}",
                f"{statistics.median(one.load.p99_ms for one in taken):.1f}",
                str(sum(one.load.errors for one in taken)),
                f"{statistics.median(one.processor_ms for one in taken):.2f}",
                f"{done.requests.ratio(name, first, many):.2f}",
                f"{done.requests.processor_ratio(name, first, many):.2f}",
            )
            lines.append(f"| {name} | {' | '.join(told)} |")
    return "\n".join(lines)


def _looks(done: Growth) -> str:
    lines = [
        "| look for due work, nothing due | p50 ms | p99 ms | pages touched | pages for a list |",
        "|---|--:|--:|--:|--:|",
    ]
    for size, grown in done.sizes.items():
        looks = sorted(one * 1000 for one in grown.looks_s)
        lines.append(
            f"| at {size} | {statistics.median(looks):.2f} | {looks[int(len(looks) * 0.99)]:.2f}"
            f" | {sum(plan.pages for plan in grown.look_plans)}"
            f" | {sum(plan.pages for plan in grown.list_plans)} |"
        )
    return "\n".join(lines)


def _plans(done: Growth) -> str:
    lines = []
    for size, grown in done.sizes.items():
        for what, plans in (("look", grown.look_plans), ("list", grown.list_plans)):
            told = (f"{plan.pages} pages, {plan.outline}" for plan in plans)
            lines += [f"- {what} at {size}: {one}" for one in told]
    return "\n".join(lines)
