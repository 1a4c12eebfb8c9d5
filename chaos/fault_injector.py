"""Injects the process faults of a plan, each at its time, and repairs what each has broken.

A fault counts only when its effect was observed: the process was gone or stopped, or it reported
that its clock moved.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final

import psutil
import redis

from chaos.cache_poison import poison_cache
from chaos.process_faults import ProcessFault
from chaos.provider import Storm
from chaos.stage import Stage
from devstack.postgres_server import PostgresServer
from devstack.redis_server import RedisServer
from devstack.supervisor import Process

# A process reads its clock file ten times a second.
CLOCK_MAX_S: Final = 4.0
# Until a started process listens, on a slow machine.
START_MAX_S: Final = 30.0
_POLL_S: Final = 0.02


@dataclass(frozen=True, slots=True)
class Met:
    """A fault that was injected. `error`: why it could not be injected."""

    name: str
    target: str
    began_at: float
    ended_at: float
    acted: bool
    error: str = ""


class FaultInjector:
    """One thread for each fault, which waits for the fault's time."""

    def __init__(
        self, stage: Stage, storm: Storm, disasters: Sequence[ProcessFault], keys: Sequence[str]
    ) -> None:
        """`keys`: idempotency keys that clients will use, for which locks are planted in Redis."""
        self._stage = stage
        self._storm = storm
        self._disasters = disasters
        self._keys = keys
        self._lanes = {disaster.target: threading.Lock() for disaster in disasters}
        # One thread at a time forks processes or changes the supervisor's list.
        self._supervisor = threading.Lock()
        self.met: list[Met] = []
        self.now: dict[ProcessFault, str] = {}
        self._threads: list[threading.Thread] = []
        self._acts: dict[str, Callable[[ProcessFault], bool]] = {
            "kill": self._kill,
            "kill_child": self._kill_child,
            "freeze": self._freeze,
            "restart_immediate": self._restart_immediate,
            "flush": self._flush,
            "lie": self._lie,
            "clock": self._move_clock,
        }

    def begin(self) -> None:
        """Start the clock of the faults."""
        started = time.monotonic()
        for disaster in self._disasters:
            thread = threading.Thread(
                target=self._carry_out, args=(disaster, started), name=disaster.name, daemon=True
            )
            self._threads.append(thread)
            thread.start()

    def end(self) -> None:
        """Wait until the last fault is over; each one repairs what it broke."""
        for thread in self._threads:
            thread.join()

    def _carry_out(self, disaster: ProcessFault, started: float) -> None:
        time.sleep(max(0.0, disaster.at_s - (time.monotonic() - started)))
        with self._lanes[disaster.target]:
            began_at, acted, error = time.time(), False, ""
            self.now[disaster] = f"{disaster.name} ({disaster.target})"
            try:
                acted = self._acts[disaster.kind.act](disaster)
            except Exception as failure:  # noqa: BLE001  # said in the report, and not counted
                error = f"{type(failure).__name__}: {failure}"
            del self.now[disaster]
            self.met.append(
                Met(disaster.name, disaster.target, began_at, time.time(), acted, error)
            )

    def _kill(self, disaster: ProcessFault) -> bool:
        with self._provider_away(disaster.target):
            process = self._process(disaster.target)
            pid = process.pid
            with self._supervisor:
                process.kill()
            gone = not psutil.pid_exists(pid)
            time.sleep(disaster.lasts_s)
            self._start(disaster.target)
            return gone

    def _kill_child(self, disaster: ProcessFault) -> bool:
        # Before it listens, its children are no workers; without them it would not start at all.
        if not _soon(lambda: self._listens(disaster.target), limit_s=START_MAX_S):
            return False
        children = self._process(disaster.target).children()
        if not children:
            return False
        os.kill(children[0], signal.SIGKILL)
        return _soon(lambda: not _runs(children[0]))

    def _freeze(self, disaster: ProcessFault) -> bool:
        process = self._process(disaster.target)
        # PostgreSQL's children are in process groups of their own.
        tree = [process.pid, *process.children()]
        _signal_all(tree, signal.SIGSTOP)
        frozen = _soon(lambda: all(_is_stopped(pid) for pid in tree))
        time.sleep(disaster.lasts_s)
        _signal_all(reversed(tree), signal.SIGCONT)
        return frozen

    def _restart_immediate(self, disaster: ProcessFault) -> bool:
        postgres = self._postgres()
        pid = postgres.process.pid
        with self._supervisor:
            postgres.stop("immediate")
        gone = not psutil.pid_exists(pid)
        time.sleep(disaster.lasts_s)
        self._start(disaster.target)
        return gone

    def _flush(self, disaster: ProcessFault) -> bool:
        with self._redis(disaster.target).client() as client:
            client.flushall()
            return bool(client.ping())

    def _lie(self, disaster: ProcessFault) -> bool:
        with self._redis(disaster.target).client() as client:
            return poison_cache(client, self._keys)

    def _move_clock(self, disaster: ProcessFault) -> bool:
        pid = self._process(disaster.target).pid
        file = self._stage.clocks / str(pid)
        file.write_text(str(disaster.kind.clock_s), encoding="ascii")
        applied = file.with_suffix(".applied")
        moved = _soon(
            lambda: applied.exists() and applied.read_text() == str(disaster.kind.clock_s),
            limit_s=CLOCK_MAX_S,
        )
        time.sleep(disaster.lasts_s)
        file.write_text("0.0", encoding="ascii")
        return moved

    @contextmanager
    def _provider_away(self, target: str) -> Iterator[None]:
        """Save the provider's faults and settings around a kill; it keeps them in memory only."""
        if target != "simulator":
            yield
            return
        with self._storm.provider_is_there:
            self._storm.before_restart()
            yield
            self._await_provider()
            self._storm.after_restart()

    def _await_provider(self) -> None:
        if not _soon(lambda: self._listens("simulator"), limit_s=START_MAX_S):
            message = "the provider's stand-in does not come back"
            raise TimeoutError(message)

    def _listens(self, target: str) -> bool:
        connections = psutil.Process(self._process(target).pid).net_connections("tcp")
        return any(found.status == psutil.CONN_LISTEN for found in connections)

    def _start(self, target: str) -> None:
        with self._supervisor:
            if target == "postgres":
                self._postgres().start()
            elif target in ("redis", "broker"):
                self._redis(target).start()
            else:
                self._process(target).start()

    def _process(self, target: str) -> Process:
        if target == "postgres":
            return self._postgres().process
        if target in ("redis", "broker"):
            return self._redis(target).process
        return self._stage.stack.processes[target]

    def _postgres(self) -> PostgresServer:
        return self._stage.stack.postgres

    def _redis(self, target: str) -> RedisServer:
        found = self._stage.stack.redis if target == "redis" else self._stage.broker
        if found is None:
            raise redis.ConnectionError("this run has no Redis")
        return found


def _signal_all(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def _is_stopped(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_STOPPED
    except psutil.NoSuchProcess:
        # A PostgreSQL backend that has just ended by itself.
        return True


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _soon(seen: Callable[[], bool], *, limit_s: float = 2.0) -> bool:
    deadline = time.monotonic() + limit_s
    while not seen():
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return True
