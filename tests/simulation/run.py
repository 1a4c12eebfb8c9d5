"""One run: first with faults, then without faults until all is final, then the verdict."""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from psycopg.errors import DeadlockDetected
from sqlalchemy.exc import OperationalError

from payments_app.kernel.database import db
from payments_app.payments import processor
from payments_app.payments.exchange_pool import SerialExchangePool
from tests.simulation.cast import Actor, Died
from tests.simulation.choices import Choices
from tests.simulation.clients import Intent
from tests.simulation.installation import Installation
from tests.simulation.pairs import Pair
from tests.simulation.referee import Check, Violation
from tests.simulation.verdict import judge
from tests.simulation.world import WORKER_STEPS_MAX, World

ACTS_MAX: Final = 60
# The time in which every payment must end after the last fault: the longest pause between two
# status checks is half an hour and a fifth, and two checks may be necessary.
HEALED_WITHIN_S: Final = 2 * 3600.0
ROUNDS_MAX: Final = 60


@dataclass(frozen=True)
class Run:
    """The result of a seed, or of a list of choices under it."""

    seed: int
    choices: tuple[int, ...]
    marks: tuple[int, ...]
    trace: tuple[str, ...]
    broken: Check | None
    why: str
    payments: int
    pairs: Mapping[Pair, int]


def run(installation: Installation, seed: int, prescribed: Sequence[int] | None = None) -> Run:
    """Run one seed from its beginning to its verdict; the same seed gives the same run."""
    installation.restart()
    world = World(installation, Choices(seed, prescribed))
    violation: Violation | None = None
    try:
        world.settle_in(seed)
        _disturb(world)
        _heal(world)
        judge(installation.referee, world.clients, world.bank, was_cut=world.cast.was_cut)
    except Violation as found:
        violation = found
        _abandon(world)
    why = f"VIOLATION {violation}" if violation else "all promises kept"
    world.note(why)
    return Run(
        seed=seed,
        choices=tuple(world.choices.made),
        marks=tuple(world.choices.marks),
        trace=tuple(world.trace),
        broken=violation.check if violation else None,
        why=why,
        payments=len({said.payment_id for said in world.clients.said if said.payment_id}),
        pairs=world.network.requests.pairs(),
    )


def _disturb(world: World) -> None:
    world.request()
    acts = 0
    _hear(world)
    while acts < ACTS_MAX and world.act():
        acts += 1
        _hear(world)


def _heal(world: World) -> None:
    """No more faults: all actors finish, clients send once more, time passes until all is final."""
    world.note("--- peace ---")
    world.cast.drain()
    _hear(world)
    _deliver_all(world)
    world.bank.come_clean(world.network.requests.hides)
    _ask(
        world, [(intent, 0) for intent in world.clients.intents if not _has_payment(world, intent)]
    )
    _until_final(world)
    # A submission that arrives after a payment's end must not make that end false.
    _deliver_all(world)
    keyed = [intent for intent in world.clients.intents if intent.key]
    _ask(world, [(intent, variant) for intent in keyed for variant in (0, 1)])


def _deliver_all(world: World) -> None:
    for straggler in list(world.network.stragglers):
        world.network.deliver(straggler)


def _ask(world: World, requests: list[tuple[Intent, int]]) -> None:
    for intent, variant in requests:
        try:
            world.clients.send(intent, variant, world.gateway)
        except Exception as error:
            raise _crash("client", error) from error


def _has_payment(world: World, intent: Intent) -> bool:
    return any(said.intent is intent and said.what == "ok" for said in world.clients.said)


def _until_final(world: World) -> None:
    start = world.clock.seconds()
    for _ in range(ROUNDS_MAX):
        due = world.installation.referee.next_due()
        if due is None:
            return
        world.clock.leap_to(due)
        if world.clock.seconds() - start > HEALED_WITHIN_S:
            break
        world.worker_steps = 0
        try:
            processor.process_due(world.gateway, SerialExchangePool())
        except Exception as error:
            raise _crash("worker", error) from error
        if world.worker_steps >= WORKER_STEPS_MAX:
            raise Violation(Check.LIVENESS, "a worker goes round in circles")
    raise Violation(
        Check.LIVENESS, f"not final {world.clock.seconds() - start:.0f} s after the trouble's end"
    )


def _hear(world: World) -> None:
    """Judge the errors of ended actors: a kill or a lost connection is planned, others are bugs."""
    for actor in world.cast.gone:
        _judge_end(actor, was_cut=world.cast.was_cut)
    world.cast.gone.clear()


def _judge_end(actor: Actor, *, was_cut: bool) -> None:
    match actor.error:
        case None | Died():
            return
        case OperationalError() as error if was_cut and not isinstance(
            error.orig, DeadlockDetected
        ):
            return
        case Violation() as violation:
            raise violation
        case error:
            raise _crash(actor.name, error) from error


def _crash(who: str, error: BaseException) -> Violation:
    place = traceback.extract_tb(error.__traceback__)[-1]
    told = str(error).splitlines()[0] if str(error) else ""
    return Violation(
        Check.NO_CRASH, f"{who}: {type(error).__name__} {told} ({place.name}:{place.lineno})"
    )


def _abandon(world: World) -> None:
    """After the verdict, end all actors, whatever they still raise."""
    for actor in (*world.cast.parked(), *world.cast.waiting()):
        actor.dead = True
    world.cast.drain()
    world.cast.gone.clear()
    if db.session().in_transaction():
        db.session().rollback()
    db.session.remove()
