"""Shortens a list of choices that breaks a rule to one that breaks the same rule."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from tests.simulation.installation import Installation
from tests.simulation.run import Run, run

TRIES_MAX: Final = 400
ZEROS_AT_ONCE: Final = (16, 4, 1)


def shrunk(installation: Installation, found: Run, *, tries_max: int = TRIES_MAX) -> Run:
    """A run of the same seed that breaks the same rule, as short as possible.

    First whole acts are left out, many at once and then one by one; then single choices are set
    to 0, the mildest, and the choices that depended on them disappear. Repeated until nothing more
    can be removed.
    """
    search = _Search(installation, found, tries_max)
    before = None
    while search.best is not before and search.tries_left:
        before = search.best
        search.leave_out_acts()
        search.tame_choices()
    return search.best


@dataclass
class _Search:
    installation: Installation
    best: Run
    tries_left: int

    def leave_out_acts(self) -> None:
        """Try acts from the last to the first; half of them, a quarter, … one."""
        size = max(len(self.best.marks) // 2, 1)
        while size:
            start = len(self.best.marks) - size
            while start >= 0:
                self._try(_without_acts(self.best, start, size))
                start = min(start, len(self.best.marks)) - size
            size //= 2

    def tame_choices(self) -> None:
        """Try choices from the last to the first."""
        for size in ZEROS_AT_ONCE:
            for start in _downwards(len(self.best.choices), size):
                made = list(self.best.choices)
                if any(made[start : start + size]):
                    made[start : start + size] = [0] * len(made[start : start + size])
                    self._try(made)

    def _try(self, candidate: Sequence[int]) -> None:
        if not self.tries_left:
            return
        self.tries_left -= 1
        again = run(self.installation, self.best.seed, candidate)
        if again.broken is self.best.broken and _weight(again) < _weight(self.best):
            self.best = again


def _without_acts(found: Run, start: int, size: int) -> list[int]:
    marks = [*found.marks, len(found.choices)]
    return [*found.choices[: marks[start]], *found.choices[marks[start + size] :]]


def _downwards(length: int, step: int) -> Iterator[int]:
    return iter(range(max(length - step, 0), -1, -step))


def _weight(candidate: Run) -> tuple[int, int, int]:
    """What a reader has to follow: lines, then choices other than the mildest, then all choices."""
    wild = sum(1 for choice in candidate.choices if choice)
    return (len(candidate.trace), wild, len(candidate.choices))
