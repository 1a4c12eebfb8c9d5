"""The work of each process of `make simulate`: one database, one installation, run after run."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from multiprocessing.queues import Queue
from typing import Final

from tests.simulation.installation import Installation, installed
from tests.simulation.mutants import ALL
from tests.simulation.run import Run, run
from tests.simulation.shrinking import shrunk

MUTANT_SEEDS_MAX: Final = 1_000
# The database's URLs for the application's role and for the superuser.
Urls = tuple[str, str]


@dataclass
class _Process:
    """The state of a worker process between its tasks."""

    open: ExitStack
    installation: Installation | None = None


_process: Final = _Process(ExitStack())


def prepare(databases: Queue[Urls]) -> None:
    """Take one of the databases; the process uses it until it ends."""
    _process.installation = _process.open.enter_context(installed(*databases.get()))
    # All permanent objects exist by now; a run's garbage is collected between runs.
    gc.freeze()
    gc.disable()


def _here() -> Installation:
    assert _process.installation is not None
    return _process.installation


def play(seeds: Sequence[int], mutant: str | None) -> list[Run]:
    """One run for each seed, up to the first with a violation."""
    runs: list[Run] = []
    for seed in seeds:
        runs.append(run_one(seed, mutant))
        if runs[-1].broken:
            break
    return runs


def run_one(seed: int, mutant: str | None) -> Run:
    """Run one seed."""
    with ALL[mutant].applied() if mutant else nullcontext():
        return run(_here(), seed)


def shorten(found: Run, mutant: str | None) -> Run:
    """The shortest run with the same violation."""
    with ALL[mutant].applied() if mutant else nullcontext():
        return shrunk(_here(), found)


def killer_of(mutant: str, start: int) -> Run | None:
    """The run of the first seed from `start` on that detects the mutant."""
    seeds = range(start, start + MUTANT_SEEDS_MAX)
    return next((found for seed in seeds if (found := run_one(seed, mutant)).broken), None)
