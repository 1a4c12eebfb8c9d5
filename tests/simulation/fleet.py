"""What each process of `make simulate` does: one database, one installation, run after run."""

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
# Of the application's role, and of the superuser.
Urls = tuple[str, str]


@dataclass
class _Process:
    """What a worker process keeps between its tasks."""

    open: ExitStack
    installation: Installation | None = None


_process: Final = _Process(ExitStack())


def prepare(databases: Queue[Urls]) -> None:
    """Take one of the databases, for good."""
    _process.installation = _process.open.enter_context(installed(*databases.get()))
    # All that stays is made by now; what a run leaves is collected between runs.
    gc.freeze()
    gc.disable()


def _here() -> Installation:
    assert _process.installation is not None
    return _process.installation


def play(seeds: Sequence[int], mutant: str | None) -> list[Run]:
    """One run for each seed, up to the first that breaks a promise."""
    runs: list[Run] = []
    for seed in seeds:
        runs.append(run_one(seed, mutant))
        if runs[-1].broken:
            break
    return runs


def run_one(seed: int, mutant: str | None) -> Run:
    """One seed."""
    with ALL[mutant].applied() if mutant else nullcontext():
        return run(_here(), seed)


def shorten(found: Run, mutant: str | None) -> Run:
    """The shortest run that breaks the same promise."""
    with ALL[mutant].applied() if mutant else nullcontext():
        return shrunk(_here(), found)


def killer_of(mutant: str, start: int) -> Run | None:
    """The first seed from `start` on that shows the mutant."""
    seeds = range(start, start + MUTANT_SEEDS_MAX)
    return next((found for seed in seeds if (found := run_one(seed, mutant)).broken), None)
