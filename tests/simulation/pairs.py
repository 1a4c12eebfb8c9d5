"""Pairs of effects on two consecutive requests of one payment: planned, and counted.

A payment's script has the effect on its first submission, and on its second submission or its
first status check. Consecutive seeds use one pair after the other, so that a run of some hundred
seeds covers each of them. The effects that really happened are counted, planned or not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

SUBMISSION: Final = "submission"
QUESTION: Final = "question"
HONEST: Final = "honest"
LEASE_OVER: Final = "lease over"
NOT_CONNECTED: Final = "not connected"

# Submissions that the provider accepts, refuses with an answer that says so, or neither.
TAKEN: Final = (
    *(HONEST, "taken, reset", "taken later", "taken, 500", "taken, 503", "taken, wrong page"),
    *("taken, 401", "taken, 404", "taken, 429", "taken, 409"),
)
REFUSED: Final = ("refused, 400", "refused, 403", "refused by code")
LOST: Final = ("no answer", NOT_CONNECTED, "503", "401", "404", "429", LEASE_OVER)
SUBMISSIONS: Final = (*TAKEN, *REFUSED, *LOST)
QUESTIONS: Final = (
    *(HONEST, "no answer", NOT_CONNECTED, "not found yet", "still pending", "another order"),
    *("503", "unknown word", "cut short", "404", "429", "401"),
)


@dataclass(frozen=True, order=True, slots=True)
class Pair:
    """The effect on the first submission, and the effect on the second request of kind `of`."""

    first: str
    of: str
    second: str

    def __str__(self) -> str:
        return f"{self.first} → {self.of} {self.second}"


# A refusal of the only request that was sent ends the payment: no second request follows.
ALL: Final = tuple(
    Pair(first, of, second)
    for first in SUBMISSIONS
    if first not in REFUSED
    for of, seconds in ((QUESTION, QUESTIONS), (SUBMISSION, SUBMISSIONS))
    for second in seconds
)


@dataclass
class Requests:
    """The effects on each payment's requests so far. `scripts`: by the payer's number."""

    scripts: dict[str, Pair] = field(default_factory=dict)
    payers: dict[str, str] = field(default_factory=dict)
    submissions: dict[str, list[str]] = field(default_factory=dict)
    questions: dict[str, list[str]] = field(default_factory=dict)

    def planned(self, reference: str, *, is_submission: bool) -> str | None:
        """The effect that the script has for the next request; None if it has none (any more)."""
        script = self._script(reference)
        if script is None:
            return None
        sent, asked = self.submissions.get(reference, []), self.questions.get(reference, [])
        if is_submission:
            after_first = script.second if script.of == SUBMISSION else None
            return (script.first, after_first, None)[min(len(sent), 2)]
        return script.second if script.of == QUESTION and sent and not asked else None

    def hides(self, reference: str) -> bool:
        """Whether a second submission is to come: until then the order must stay invisible."""
        script, sent = self._script(reference), self.submissions.get(reference, [])
        return script is not None and script.of == SUBMISSION and len(sent) < 2

    def happened(self, reference: str, effect: str, *, is_submission: bool) -> None:
        """Record the effect on a request."""
        kind = self.submissions if is_submission else self.questions
        if is_submission or reference in self.submissions:
            kind.setdefault(reference, []).append(effect)

    def pairs(self) -> Counter[Pair]:
        """How often each pair happened."""
        found: Counter[Pair] = Counter()
        for reference, (first, *later) in self.submissions.items():
            for of, following in ((SUBMISSION, later), (QUESTION, self.questions.get(reference))):
                if following:
                    found[Pair(first, of, following[0])] += 1
        return found

    def _script(self, reference: str) -> Pair | None:
        return self.scripts.get(self.payers.get(reference, ""))


def missing(counts: Mapping[Pair, int]) -> list[Pair]:
    """The pairs that never happened."""
    return [pair for pair in ALL if not counts.get(pair)]


def shortly(pairs: Sequence[Pair]) -> Iterable[str]:
    """The pairs, a line for each first effect and kind of request."""
    rows: dict[tuple[str, str], list[str]] = {}
    for pair in pairs:
        rows.setdefault((pair.first, pair.of), []).append(pair.second)
    return (f"{first} → {of}: {', '.join(row)}" for (first, of), row in rows.items())


def table(counts: Mapping[Pair, int]) -> Iterable[str]:
    """How often each pair happened, a line for each first effect and kind of request."""
    return shortly([replace(pair, second=f"{pair.second} {counts.get(pair, 0)}") for pair in ALL])
