"""The actors of a run: each has a thread of its own, and one runs at a time.

An actor stops at points: before each statement, before and after each commit, around each
network exchange. There the choices decide: it goes on, pauses and returns control to the
scheduler, dies, or loses its connection. Whether one waits for a row's lock inside PostgreSQL is
found by asking PostgreSQL; it counts as stopped until the holder has released the lock. So the
choices alone decide the order of all statements of all actors.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

import psycopg
from flask import Flask
from sqlalchemy.exc import OperationalError

from payments_app.kernel.database import db
from tests.simulation.choices import Choices

# After this time without a stop, ask PostgreSQL whether the statement waits for a lock.
LOOK_AFTER_S: Final = 0.003
# No step takes this long: after it, the simulation itself hangs.
STUCK_AFTER_S: Final = 30.0
LIVE_MAX: Final = 5

_WAITS: Final = "SELECT cardinality(pg_blocking_pids(%s)) > 0"


class Died(BaseException):
    """The process was killed at this point. No `except Exception` of ours may catch it."""


class Hung(Exception):
    """An actor neither reached a point nor waits for a lock: a bug of the simulation."""


class Where(Enum):
    """The kind of a point."""

    STATEMENT = "before a statement"
    COMMIT = "before the commit"
    COMMITTED = "after the commit"
    NETWORK = "on the network"


class _State(Enum):
    PARKED = "parked"
    MOVING = "moving"
    WAITING = "waiting for a lock"
    GONE = "gone"


@dataclass(frozen=True, slots=True)
class Odds:
    """Weights at a point: go on, pause, die, lose the connection."""

    go_on: int = 88
    release_key: int = 12
    die: int = 0
    cut: int = 0


@dataclass(eq=False)
class Actor:
    """One process's thread of work, from its start to its end or death."""

    name: str
    act: Callable[[], None]
    go: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    back: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    state: _State = _State.PARKED
    dead: bool = False
    lock_times_out: bool = False
    backend_pid: int = 0
    error: BaseException | None = None


class Cast:
    """Starts, resumes and ends actors. Its methods are for the scheduler's thread; `point`,
    `landed`, `ended` and `me` are for the actor that runs.
    """

    def __init__(self, app: Flask, administrator: psycopg.Connection) -> None:
        self._app = app
        self._administrator = administrator
        self._mine = threading.local()
        self._actors: list[Actor] = []
        self.gone: list[Actor] = []
        self._choices = Choices(0)
        self._note: Callable[[str], None] = lambda _line: None
        self.odds = Odds()
        self.calm = self.was_cut = False

    def begin(self, choices: Choices, note: Callable[[str], None]) -> None:
        """Begin a new run, without actors."""
        assert not self._actors
        self._choices, self._note = choices, note
        self.gone.clear()
        self.calm = self.was_cut = False

    # --- for the scheduler ---

    def spawn(self, name: str, act: Callable[[], None]) -> Actor:
        """Start a new actor and let it run until its first stop."""
        actor = Actor(name, act)
        self._actors.append(actor)
        threading.Thread(target=self._live, args=(actor,), name=name, daemon=True).start()
        self.resume(actor)
        return actor

    def resume(self, actor: Actor) -> None:
        """Let it run until it stops again, is gone, or waits for a lock."""
        actor.state = _State.MOVING
        actor.go.release()
        self._until_stopped(actor)
        self.ended()

    def parked(self) -> list[Actor]:
        """The actors that can be resumed."""
        return [actor for actor in self._actors if actor.state is _State.PARKED]

    def waiting(self) -> list[Actor]:
        """The actors that wait for a lock."""
        return [actor for actor in self._actors if actor.state is _State.WAITING]

    @property
    def is_full(self) -> bool:
        """Whether the maximum number of actors is live."""
        return len(self._actors) >= LIVE_MAX

    def end_waiting(self, actor: Actor) -> None:
        """End its wait with PostgreSQL's error: by the virtual clock its lock_timeout is over."""
        actor.lock_times_out = self.was_cut = True
        self._administrator.execute("SELECT pg_cancel_backend(%s)", [actor.backend_pid])
        while actor.state is _State.WAITING:
            if not actor.back.acquire(timeout=STUCK_AFTER_S):
                raise Hung(actor.name)

    def drain(self) -> None:
        """Let all actors run to their end; no point stops them any more."""
        self.calm = True
        while self._actors:
            for actor in self.parked():
                self.resume(actor)
            self.ended()

    # --- for the actors ---

    def me(self) -> Actor | None:
        """The actor on this thread; None on the scheduler's and any other thread."""
        return getattr(self._mine, "actor", None)

    def point(self, where: Where, what: str) -> None:
        """A point: the choices decide what happens. Raises Died, or a lost connection."""
        actor = self.me()
        if actor is None:
            return
        if actor.dead:
            raise Died
        if self.calm:
            return
        odds = self.odds
        cut = odds.cut if where is not Where.NETWORK else 0
        chosen = self._choices.pick((odds.go_on, odds.release_key, odds.die, cut))
        if chosen == 1:
            self._note(f"{actor.name} pauses {where.value} ({what})")
            self._park(actor)
        elif chosen == 2:
            self._note(f"{actor.name} DIES {where.value} ({what})")
            actor.dead = True
            raise Died
        elif chosen == 3:
            self._note(f"{actor.name} LOSES ITS CONNECTION {where.value} ({what})")
            self.was_cut = True
            raise OperationalError(what, None, psycopg.OperationalError("connection lost"))

    def landed(self) -> None:
        """A statement or commit has returned; an actor that had to wait for a lock stops here."""
        actor = self.me()
        if actor is not None and actor.state is _State.WAITING:
            self._park(actor)

    def ended(self) -> None:
        """A transaction has ended and released its locks. An actor that waited for one gets it
        before any other runs: else PostgreSQL and the load would decide which is first.
        """
        freed = True
        while freed:
            # An actor that got a lock may have blocked another for a moment only: check again.
            freed = any([self._is_free(waiting) for waiting in self.waiting()])  # noqa: C419  all are asked

    def _park(self, actor: Actor) -> None:
        actor.state = _State.PARKED
        actor.back.release()
        actor.go.acquire()

    def _live(self, actor: Actor) -> None:
        self._mine.actor = actor
        actor.go.acquire()
        try:
            with self._app.app_context():
                try:
                    actor.act()
                finally:
                    db.session.remove()
        except BaseException as error:  # noqa: BLE001  the director judges it
            actor.error = error
        if actor.state is _State.WAITING:
            self._park(actor)
        actor.state = _State.GONE
        self._actors.remove(actor)
        self.gone.append(actor)
        actor.back.release()

    # --- waiting for each other ---

    def _until_stopped(self, actor: Actor) -> None:
        # `state` decides; `back` only wakes this thread.
        waited_s = LOOK_AFTER_S
        while actor.state is _State.MOVING:
            if actor.back.acquire(timeout=waited_s):
                continue
            waited_s *= 2
            if self._waits_for_lock(actor):
                actor.state = _State.WAITING
                self._note(f"{actor.name} waits for a row that another has locked")
                if len(self.waiting()) > 1:
                    # Which of two waiting actors PostgreSQL serves first would be chance.
                    self._note(f"{actor.name} doesn't wait behind another")
                    self.end_waiting(actor)
            elif waited_s > STUCK_AFTER_S:
                raise Hung(actor.name)

    def _is_free(self, actor: Actor) -> bool:
        """Another actor has run, so the lock may be free; then wait until the statement returns."""
        while actor.state is _State.WAITING:
            if not actor.back.acquire(timeout=LOOK_AFTER_S) and self._waits_for_lock(actor):
                return False
        return True

    def _waits_for_lock(self, actor: Actor) -> bool:
        row = self._administrator.execute(_WAITS, [actor.backend_pid]).fetchone()
        return bool(row and row[0])
