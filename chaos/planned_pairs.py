"""The pairs of a run: which payment of which client meets which two effects, and which were met.

`python -m chaos.planned_pairs var/chaos/*/pairs.json` sums up several runs. Pure except for that.
"""

from __future__ import annotations

import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Final

from chaos.evidence import Evidence, WireRequest
from chaos.pairs import Effect, Pair, Second, pairs_of_a_run
from chaos.provider_faults import SCRIPTED_PAYERS, ProviderFault
from chaos.scripts import Script, Step, masked

# A client's first payments have no pair, so that even a short run has some ordinary payments.
_STEPS_BEFORE: Final = 3
# One in this many of a client's payments has a pair.
_EVERY: Final = 2
# Long enough that the gateway answers "not found" with a second submission.
HIDDEN_S: Final = 8.0
_PAYER: Final = SCRIPTED_PAYERS + "{:06}"


@dataclass(frozen=True, slots=True)
class PlannedPair:
    """A payment for one pair: its key and payer, and the faults that are set for it."""

    name: str
    key: str
    payer: str
    faults: tuple[ProviderFault, ...]


def plan_pairs(
    draw: Random, scripts: Sequence[Script]
) -> tuple[tuple[PlannedPair, ...], tuple[Script, ...]]:
    """Give each pair to a payment, in random order; return the pairs and the changed scripts.

    The clients take turns. How many pairs a run reaches depends on the machine.
    """
    pairs = list(pairs_of_a_run())
    draw.shuffle(pairs)
    planned: list[PlannedPair] = []
    steps = [list(script.steps) for script in scripts]
    slots = [iter(_slots(one)) for one in steps]
    for number, pair in enumerate(pairs):
        client = number % len(scripts)
        slot = next(slots[client], None)
        if slot is None:
            break
        step = steps[client][slot]
        payer = _PAYER.format(number)
        steps[client][slot] = replace(step, order=replace(step.order, payer=payer))
        planned.append(PlannedPair(str(pair), step.key, payer, tuple(_faults(pair, payer))))
    changed = [
        replace(script, steps=tuple(mine)) for script, mine in zip(scripts, steps, strict=True)
    ]
    return tuple(planned), tuple(changed)


def met_pairs(planned: Sequence[PlannedPair], evidence: Evidence) -> Mapping[str, int]:
    """How often each pair happened as planned, by the provider's own log; pairs with 0 included."""
    calls: dict[str | None, list[WireRequest]] = defaultdict(list)
    for row in sorted(evidence.wire, key=lambda one: one.at):
        calls[row.reference].append(row)
    payments = {(row.chaos_key, row.payer_masked): row.reference for row in evidence.payments}
    effects = {str(pair): pair for pair in pairs_of_a_run()}
    found = Counter(dict.fromkeys(effects, 0))
    for one in planned:
        reference = payments.get((one.key, masked(one.payer)))
        if reference and _happened(effects[one.name], calls[reference]):
            found[one.name] += 1
    return found


def never_met(counts: Mapping[str, int]) -> Sequence[str]:
    """The pairs that never happened."""
    return [name for name, count in counts.items() if not count]


def _slots(steps: Sequence[Step]) -> Iterable[int]:
    pays = [number for number, step in enumerate(steps) if step.kind == "pay"]
    return pays[_STEPS_BEFORE::_EVERY]


def _faults(pair: Pair, payer: str) -> Iterable[ProviderFault]:
    if pair.of is Second.SUBMISSION:
        yield _fault("create", Effect("", "invisible", {"delay_s": HIDDEN_S}), payer)
    if pair.first.kind:
        yield _fault("create", pair.first, payer)
    if pair.second.kind:
        is_submission = pair.of is Second.SUBMISSION
        operation, nth = ("create", 2) if is_submission else ("status", 1)
        yield replace(_fault(operation, pair.second, payer), nth=nth)


def _fault(operation: str, effect: Effect, payer: str) -> ProviderFault:
    return ProviderFault(
        operation, effect.kind, effect.parameters, at_s=0.0, match={"msisdn": payer}
    )


def _happened(pair: Pair, calls: Sequence[WireRequest]) -> bool:
    submissions = [one for one in calls if one.operation == "create"]
    questions = [one for one in calls if one.operation == "status"]
    later = submissions[1:2] if pair.of is Second.SUBMISSION else questions
    if not submissions or (submissions[0].fault or "") != pair.first.kind:
        return False
    return pair.second.kind in [one.fault or "" for one in later]


def main(files: Sequence[str]) -> int:
    """Sum up pairs.json of several runs; return 1 if a pair was met in none of them."""
    found = Counter(dict.fromkeys(map(str, pairs_of_a_run()), 0))
    for file in files:
        found.update(json.loads(Path(file).read_text(encoding="utf-8")))
    print(json.dumps(dict(found), ensure_ascii=False))  # noqa: T201
    missing = never_met(found)
    print(f"{len(found) - len(missing)} of {len(found)} pairs met in {len(files)} runs")  # noqa: T201
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
