"""The faults of two consecutive requests of one payment: every ordered pair of effects. Pure.

Effects are faults of the simulator. The first applies to a payment's first submission, the second
to its next submission or its first status checks. The same tables serve the chaos runs and the
table of docs/pairs.md; the simulation has effects of its own, in tests/simulation/pairs.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

Parameters = Mapping[str, str | float]

# Longer than any caller waits, in the tests that use it.
LATE_S: Final = 16.5


class Second(StrEnum):
    """The kind of request that the second effect applies to."""

    SUBMISSION = "submission"
    QUESTION = "question"


@dataclass(frozen=True, slots=True)
class Effect:
    """What happens to one request. `kind`: the simulator's fault; empty: nothing goes wrong.

    `lasts`: it also happens to all later requests of that operation. `is_late`: the caller gives
    up before the answer. `on_the_wire`: the request does not arrive at all, which the simulator
    can't cause; only tests with a transport of their own can.
    """

    name: str
    kind: str = ""
    parameters: Parameters = field(default_factory=dict, hash=False)
    lasts: bool = False
    is_late: bool = False
    on_the_wire: bool = False


@dataclass(frozen=True, slots=True)
class Pair:
    """Two effects on two consecutive requests of one payment."""

    first: Effect
    second: Effect
    of: Second

    def __str__(self) -> str:
        return f"{self.first.name} → {self.of} {self.second.name}"


def _taken(name: str, kind: str = "", **parameters: str | float) -> Effect:
    return Effect(f"taken, {name}", kind, parameters)


# Submissions that the provider accepts.
TAKEN: Final = (
    _taken("202"),
    _taken("401", "accept_then_401"),
    _taken("404", "accept_then_404"),
    _taken("409", "accept_then_409"),
    _taken("429", "accept_then_429", retry_after=1),
    _taken("500", "accept_then_500"),
    _taken("bare 500", "accept_then_500", form="bare"),
    _taken("503", "accept_then_503"),
    _taken("reset", "accept_then_reset"),
    _taken("unreadable 202", "garbage", form="body"),
    _taken("half a 200", "garbage", form="json"),
    _taken("empty 200", "empty_200"),
    _taken("no HTTP", "garbage", form="bytes"),
    Effect("taken, too late", "accept_then_hang", {"delay_s": LATE_S}, is_late=True),
    Effect("taken after we left", "hang", {"delay_s": LATE_S}, is_late=True),
)
# Submissions that the provider refuses, with an answer that says so.
REFUSED: Final = (
    Effect("refused, 400", "refuse_400", lasts=True),
    Effect("refused, 403", "html_403", lasts=True),
    Effect("refused, firewall", "waf_html_200", lasts=True),
    Effect("refused, NOT_ALLOWED", "refuse_500_code", {"code": "NOT_ALLOWED"}, lasts=True),
    Effect("refused, PAYER_NOT_FOUND", "refuse_500_code", {"code": "PAYER_NOT_FOUND"}, lasts=True),
)
# Submissions that create nothing, with an answer (or none) that does not prove it.
LOST: Final = (
    Effect("401", "unauthorized_401"),
    Effect("out of quota", "quota_403"),
    Effect("404", "no_route_404"),
    Effect("409", "conflict_409"),
    Effect("429", "too_many_429", {"retry_after": 1}),
    Effect("500", "internal_error"),
    Effect("503", "unavailable_503"),
    Effect("reset", "reset_before"),
    Effect("not connected", on_the_wire=True),
    Effect("lease over", on_the_wire=True),
)
SUBMISSIONS: Final = (*TAKEN, *REFUSED, *LOST)
# Answers to a status check.
QUESTIONS: Final = (
    Effect("the truth"),
    Effect("not found", "status_404"),
    Effect("no route", "no_route_404"),
    Effect("400", "refuse_400"),
    Effect("401", "unauthorized_401"),
    Effect("403", "html_403"),
    Effect("429", "too_many_429", {"retry_after": 1}),
    Effect("NOT_ALLOWED", "refuse_500_code", {"code": "NOT_ALLOWED"}),
    Effect("500", "internal_error"),
    Effect("503", "unavailable_503"),
    Effect("reset", "reset_before"),
    Effect("unreadable", "garbage", {"form": "body"}),
    Effect("half a document", "garbage", {"form": "json"}),
    Effect("empty", "empty_200"),
    Effect("an unknown word", "unknown_status_word"),
    Effect("another amount", "status_wrong_amount"),
    Effect("too late", "slow", {"delay_s": LATE_S}, is_late=True),
)

# What a chaos run can test: no effect that blocks a worker's thread until its caller gives up, and
# one of those that look alike to the gateway. A refusal of the only request ends the payment, so
# that no second request follows.
_ALIKE: Final = frozenset(
    {
        *("taken, 409", "taken, bare 500", "taken, half a 200", "taken, empty 200", "409"),
        *("refused, firewall", "refused, PAYER_NOT_FOUND", "no route", "400", "403", "empty"),
        *("NOT_ALLOWED", "503", "half a document"),
    }
)


def _playable(effects: tuple[Effect, ...]) -> tuple[Effect, ...]:
    return tuple(
        one for one in effects if not (one.is_late or one.on_the_wire or one.name in _ALIKE)
    )


def pairs_of_a_run() -> tuple[Pair, ...]:
    """Every pair that a chaos run must cover."""
    firsts = [one for one in _playable(SUBMISSIONS) if one not in REFUSED]
    return tuple(
        Pair(first, second, of)
        for first in firsts
        for of, seconds in ((Second.SUBMISSION, SUBMISSIONS), (Second.QUESTION, QUESTIONS))
        for second in _playable(seconds)
    )
