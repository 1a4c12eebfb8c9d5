"""Every free decision of a run is one number: drawn from the seed, or prescribed by a list."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Choices:
    """Makes the decisions and records them.

    Option 0 is always the mildest: go on, no fault, no more steps. A list that is too short
    continues with zeros, so a list with numbers removed or set to zero gives a run that is shorter
    and milder, and always valid.
    """

    def __init__(self, seed: int, prescribed: Sequence[int] | None = None) -> None:
        self._random = random.Random(seed)  # noqa: S311  a seed that repeats is the point
        self._prescribed = prescribed
        self.made: list[int] = []
        self.marks: list[int] = []

    def mark(self) -> None:
        """Begin a new act: the choices from here to the next mark belong together."""
        self.marks.append(len(self.made))

    def pick(self, weights: Sequence[int]) -> int:
        """The index of an option; an option with weight 0 can't be chosen now."""
        choice = self._drawn(weights) if self._prescribed is None else self._told(weights)
        self.made.append(choice)
        return choice

    def in_turn(self, count: int, turn: int) -> int:
        """An option that is not drawn: consecutive seeds take one option after the other."""
        weights = [0] * count
        weights[turn % count] = 1
        return self.pick(weights if self._prescribed is None else (1,) * count)

    def one_of(self, options: Sequence[T]) -> T:
        """One of the options, all equally likely."""
        return options[self.pick((1,) * len(options))]

    def _drawn(self, weights: Sequence[int]) -> int:
        left = self._random.random() * sum(weights)
        for index, weight in enumerate(weights):
            left -= weight
            if left < 0:
                return index
        return 0

    def _told(self, weights: Sequence[int]) -> int:
        assert self._prescribed is not None
        place = len(self.made)
        told = self._prescribed[place] if place < len(self._prescribed) else 0
        if told < len(weights) and weights[told]:
            return told
        return next(index for index, weight in enumerate(weights) if weight)
