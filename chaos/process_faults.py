"""Faults of processes, and their times. Pure: drawn from a random stream.

Every kind occurs at least once; two never overlap at one process, so that each can be observed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

# The processes that a fault can be injected into.
API: Final = ("api",)
WORKERS: Final = ("worker-1", "worker-2")
BEATS: Final = ("beat-1", "beat-2")
PROVIDER: Final = ("simulator",)
POSTGRES: Final = ("postgres",)
REDIS: Final = ("redis",)
BROKER: Final = ("broker",)

# A claim's lease is 30 s: a worker frozen for longer has lost it, and must notice.
PAST_LEASE_S: Final = (33.0, 35.0)
# After a fault a process needs time to recover: imports, reconnects, recovery.
RECOVERY_S: Final = 3.0
# No fault in the first seconds (clients start) and in the last (open work finishes).
QUIET_START_S: Final = 2.0
QUIET_END_S: Final = 1.0
# All kinds once in each minute; a longer run repeats them at the same rate.
ROUND_S: Final = 60.0
# A shorter run has time for only some of the kinds.
ALL_KINDS_FROM_S: Final = 45.0
_TRIES_MAX: Final = 400


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of fault: the act, the processes it can apply to, and its duration in seconds."""

    act: str
    targets: tuple[str, ...]
    lasts_s: tuple[float, float] = (0.0, 0.0)
    clock_s: float = 0.0


KINDS: Final[Mapping[str, Kind]] = {
    "kill api": Kind("kill", API, (0.2, 1.5)),
    "kill api process": Kind("kill_child", API),
    "kill worker": Kind("kill", WORKERS, (0.5, 3.0)),
    "kill beat": Kind("kill", BEATS, (0.5, 3.0)),
    "kill provider": Kind("kill", PROVIDER, (0.5, 3.0)),
    "freeze api": Kind("freeze", API, (1.0, 4.0)),
    "freeze worker": Kind("freeze", WORKERS, (2.0, 5.0)),
    "freeze worker past its lease": Kind("freeze", WORKERS, PAST_LEASE_S),
    "freeze beat": Kind("freeze", BEATS, (2.0, 6.0)),
    "freeze provider": Kind("freeze", PROVIDER, (1.0, 4.0)),
    "freeze postgres": Kind("freeze", POSTGRES, (1.0, 3.0)),
    "freeze redis": Kind("freeze", REDIS, (1.0, 4.0)),
    "freeze broker": Kind("freeze", BROKER, (1.0, 4.0)),
    "postgres immediate restart": Kind("restart_immediate", POSTGRES, (0.0, 1.5)),
    "redis flushall": Kind("flush", REDIS),
    "redis down": Kind("kill", REDIS, (1.0, 5.0)),
    "redis lies": Kind("lie", REDIS),
    "broker flushall": Kind("flush", BROKER),
    "broker down": Kind("kill", BROKER, (3.0, 8.0)),
    "clock of worker 1 h ahead": Kind("clock", WORKERS, (3.0, 7.0), clock_s=3600.0),
    "clock of worker 1 h behind": Kind("clock", WORKERS, (3.0, 7.0), clock_s=-3600.0),
    "clock of beat 1 h ahead": Kind("clock", BEATS, (3.0, 7.0), clock_s=3600.0),
    "clock of beat 1 h behind": Kind("clock", BEATS, (3.0, 7.0), clock_s=-3600.0),
}


@dataclass(frozen=True, slots=True)
class ProcessFault:
    """One fault of one process."""

    at_s: float
    name: str
    target: str
    lasts_s: float

    @property
    def kind(self) -> Kind:
        """The kind of the fault."""
        return KINDS[self.name]


def choose_process_faults(draw: Random, *, seconds: float, redis: bool) -> tuple[ProcessFault, ...]:
    """Every kind once in each minute, at random times; in a short run only some of them."""
    kinds = kinds_for(seconds=seconds, redis=redis)
    if seconds < ALL_KINDS_FROM_S:
        kinds = tuple(draw.sample(kinds, round(len(kinds) * seconds / ALL_KINDS_FROM_S)))
    rounds = max(1, round(seconds / ROUND_S))
    wanted = [name for name in kinds for _ in range(rounds)]
    lasting = {name: KINDS[name].lasts_s for name in wanted}
    # Place the long ones first; the short ones fit between them.
    drawn = [(round(draw.uniform(*lasting[name]), 2), draw.random(), name) for name in wanted]
    placed: list[ProcessFault] = []
    for lasts_s, _, name in sorted(drawn, reverse=True):
        placed.append(_place(draw, name, lasts_s, placed, seconds))
    return tuple(sorted(placed, key=lambda disaster: (disaster.at_s, disaster.name)))


def kinds_for(*, seconds: float, redis: bool) -> tuple[str, ...]:
    """The kinds that fit into a run of this length, with or without Redis."""
    room_s = seconds - QUIET_START_S - QUIET_END_S
    return tuple(
        name
        for name, kind in KINDS.items()
        if kind.lasts_s[1] <= room_s and (redis or kind.targets not in (REDIS, BROKER))
    )


def _place(
    draw: Random, name: str, lasts_s: float, placed: Sequence[ProcessFault], seconds: float
) -> ProcessFault:
    latest = max(QUIET_START_S, seconds - QUIET_END_S - lasts_s)
    for _ in range(_TRIES_MAX):
        target = draw.choice(KINDS[name].targets)
        one = ProcessFault(round(draw.uniform(QUIET_START_S, latest), 2), name, target, lasts_s)
        if not any(_meet(one, other) for other in placed):
            return one
    # No room left: the two overlap, and the second waits until the first is over.
    return one


def _meet(one: ProcessFault, other: ProcessFault) -> bool:
    return one.target == other.target and (
        one.at_s < other.at_s + other.lasts_s + RECOVERY_S
        and other.at_s < one.at_s + one.lasts_s + RECOVERY_S
    )
