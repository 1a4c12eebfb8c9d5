"""Adaptive concurrency limits for each peer, and fair turns between peers. Pure.

The limit of a peer that answers quickly rises step by step. The limit of one that is slow or fails
falls by half the recent share of bad results: one bad result in a hundred costs little, and a peer
that never answers has its limit halved each time.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from itertools import count
from typing import Final

# The most peers whose limit or last turn is remembered. Forgotten ones start again.
REMEMBERED_MAX: Final = 10_000
# The weight of the newest result in the moving share of bad results.
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
    """`bad`: the moving share of failed or slow results; the newest has the weight WEIGHT."""

    limit: float
    bad: float


class ConcurrencyLimits:
    """A limit for each peer, from its results so far."""

    def __init__(self, rules: LimitRules) -> None:
        self._rules = rules
        self._known: OrderedDict[Hashable, _Known] = OrderedDict()

    def limit(self, key: Hashable) -> int:
        """How many exchanges may be under way at once."""
        known = self._known.get(key)
        return int(known.limit) if known else self._rules.first

    def record(self, key: Hashable, *, answered: bool, elapsed_s: float) -> None:
        """Raise the limit by one for each full round of quick answers; lower it after a bad one.

        As in RFC 8257, the limit falls by half the recent share of failures and delays.
        """
        rules = self._rules
        # A new peer starts with a share of 1: its first bad result halves the limit.
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
    """Fair turns: the peer that was served last comes last."""

    def __init__(self) -> None:
        self._clock = count(1)
        self._served_at: OrderedDict[Hashable, int] = OrderedDict()

    def last_served(self, key: Hashable) -> int:
        """A number to sort by; 0 for a peer that is not remembered."""
        return self._served_at.get(key, 0)

    def note(self, *keys: Hashable) -> None:
        """Note that these are served now."""
        now = next(self._clock)
        for key in keys:
            self._served_at.pop(key, None)
            self._served_at[key] = now
        while len(self._served_at) > REMEMBERED_MAX:
            self._served_at.popitem(last=False)
