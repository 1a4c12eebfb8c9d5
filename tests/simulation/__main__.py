"""`make simulate`: many seeds over all cores, or one seed with its trace."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from itertools import count, islice
from multiprocessing import get_context
from multiprocessing.queues import Queue
from typing import Final

import click

from devstack.servers import Servers
from tests.simulation.fleet import Urls, killer_of, play, prepare, run_one, shorten
from tests.simulation.mutants import ALL
from tests.simulation.pairs import ALL as ALL_PAIRS
from tests.simulation.pairs import Pair, missing, shortly, table
from tests.simulation.run import Run

SEEDS_AT_ONCE: Final = 20
# With this many seeds, every pair was played several times.
ALL_PAIRS_FROM: Final = 2_000


@click.command()
@click.option("--seeds", default=1_000, help="How many.")
@click.option("--start", default=1, help="The first of them.")
@click.option("--seed", type=int, help="Only this one, with its trace.")
@click.option("--jobs", default=(os.cpu_count() or 1) + 2, help="How many processes.")
@click.option("--mutant", type=click.Choice(sorted(ALL)), help="With this bug switched on.")
@click.option("--mutants", is_flag=True, help="Each bug in turn, as a row of docs/mutants.md.")
def main(
    *, seeds: int, start: int, seed: int | None, jobs: int, mutant: str | None, mutants: bool
) -> None:
    """Play SEEDS worlds, and fail with a short trace at the first broken promise."""
    with Servers() as servers:
        context = get_context("spawn")
        databases: Queue[Urls] = context.Queue()
        for _ in range(jobs):
            name = servers.new_database()
            postgres = servers.postgres
            databases.put((postgres.application_url(name), postgres.administrator_url(name)))
        with ProcessPoolExecutor(jobs, context, prepare, (databases,)) as pool:
            if mutants:
                _show_mutants(pool, start)
            elif seed is not None:
                _show(pool.submit(run_one, seed, mutant).result())
            else:
                sys.exit(_explore(pool, iter(range(start, start + seeds)), jobs, mutant))


def _explore(pool: ProcessPoolExecutor, seeds: Iterator[int], jobs: int, mutant: str | None) -> int:
    """0 if all is well, 1 at the first violation, 2 if the run covers too little."""
    begun = time.monotonic()
    done = payments = 0
    counts: Counter[Pair] = Counter()
    for played in _played(pool, seeds, jobs, mutant):
        done += len(played)
        payments += sum(one.payments for one in played)
        for one in played:
            counts.update(one.pairs)
        if played[-1].broken:
            _show(played[-1])
            click.secho("── the same, as short as it gets", bold=True)
            _show(pool.submit(shorten, played[-1], mutant).result())
            under = f" MUTANT={mutant}" if mutant else ""
            click.echo(f"again: make simulate SEED={played[-1].seed}{under}")
            return 1
        rate = done / (time.monotonic() - begun)
        click.echo(f"\r{done} seeds, {payments} payments, {rate:.1f} seeds/s", nl=False)
    click.echo()
    return tell_pairs(counts, is_big=done >= ALL_PAIRS_FROM)


def tell_pairs(counts: Mapping[Pair, int], *, is_big: bool) -> int:
    """Print how often each pair happened. A big run that misses one covers too little: return 2."""
    never = missing(counts)
    if is_big:
        click.echo("\n".join(table(counts)))
    for line in shortly(never):
        click.echo(f"never came: {line}")
    click.echo(f"{len(ALL_PAIRS) - len(never)} of {len(ALL_PAIRS)} pairs came")
    if is_big and never:
        click.secho("no promise broken, but the run does not count", fg="red", bold=True)
        return 2
    click.secho("all promises kept", fg="green", bold=True)
    return 0


def _played(
    pool: ProcessPoolExecutor, seeds: Iterator[int], jobs: int, mutant: str | None
) -> Iterator[list[Run]]:
    running: set[Future[list[Run]]] = set()
    for _ in count():
        while len(running) < 2 * jobs and (some := list(islice(seeds, SEEDS_AT_ONCE))):
            running.add(pool.submit(play, some, mutant))
        if not running:
            return
        done, running = wait(running, return_when=FIRST_COMPLETED)
        for future in done:
            yield future.result()


def _show(found: Run) -> None:
    click.echo("\n".join(found.trace))
    click.secho(f"seed {found.seed}: {found.why}", fg="red" if found.broken else "green", bold=True)


def _show_mutants(pool: ProcessPoolExecutor, start: int) -> None:
    for name, future in [(name, pool.submit(killer_of, name, start)) for name in ALL]:
        found = future.result()
        caught = f"{found.broken} | {found.seed}" if found else "NOTHING | -"
        click.echo(f"| `{name}` | {ALL[name].wrong} | {caught} |")


if __name__ == "__main__":
    main()
