"""How much may be under way at once with one that answers, and whose turn it is next. Pure.

Who answers quickly is given more at once, step by step. Who is slow or fails is given less: by half
the share of late that was, so that one in a hundred costs little and silence halves it each time.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from itertools import count
from typing import Final

# Of those that were served, or have a limit of their own. The others begin anew.
REMEMBERED_MAX: Final = 10_000
# Of a share that is kept up to date with each answer.
WEIGHT: Final = 1 / 16


@dataclass(frozen=True, slots=True)
class LimitRules:
    """A limit begins at `first` and stays between `least` and `most`.

    An answer within `quick_s` is quick, and one that takes `slow_s` is slow.
    """

    first: int
    least: int
    most: int
    quick_s: float
    slow_s: float


@dataclass(frozen=True, slots=True)
class _Known:
    """`bad`: the share of what failed or was slow, the newest counting for WEIGHT of it."""

    limit: float
    bad: float


class ConcurrencyLimits:
    """A limit for each of many, by how they have answered."""

    def __init__(self, rules: LimitRules) -> None:
        self._rules = rules
        self._known: OrderedDict[Hashable, _Known] = OrderedDict()

    def limit(self, key: Hashable) -> int:
        """How many may be under way at once."""
        known = self._known.get(key)
        return int(known.limit) if known else self._rules.first

    def record(self, key: Hashable, *, answered: bool, elapsed_s: float) -> None:
        """One more for each full round of quick answers; fewer after a failure or delay.

        As RFC 8257 has it: the limit falls by half the share of late that was a failure or delay.
        """
        rules = self._rules
        # Of one that is not known yet, nothing good is known.
        known = self._known.pop(key, None) or _Known(float(rules.first), 1.0)
        is_bad = not answered or elapsed_s >= rules.slow_s
        limit, bad = known.limit, known.bad + WEIGHT * (is_bad - known.bad)
        if is_bad:
            limit = max(float(rules.least), limit * (1 - bad / 2))
        elif elapsed_s <= rules.quick_s:
            limit = min(float(rules.most), limit + 1 / limit)
        self._known[key] = _Known(limit, bad)
        if len(self._known) > REMEMBERED_MAX:
            self._known.popitem(last=False)


class Turns:
    """Who was served last comes last."""

    def __init__(self) -> None:
        self._clock = count(1)
        self._served_at: OrderedDict[Hashable, int] = OrderedDict()

    def last_served(self, key: Hashable) -> int:
        """To sort by; nought for one that is not remembered."""
        return self._served_at.get(key, 0)

    def note(self, *keys: Hashable) -> None:
        """These are served now."""
        now = next(self._clock)
        for key in keys:
            self._served_at.pop(key, None)
            self._served_at[key] = now
        while len(self._served_at) > REMEMBERED_MAX:
            self._served_at.popitem(last=False)
