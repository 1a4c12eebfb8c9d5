"""Child processes that are named, logged, signalled as a group, and never left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from devstack.errors import StackError
from devstack.orphans import PidDirectory
from devstack.users import ServerUser, popen_options

# The child waits for this line before it becomes the program: a stack that is killed between
# fork and `watch` would otherwise leave a child that is on no list.
_GATE = 'read -r go || exit 1; exec "$@" </dev/null'

# A process that has not ended this long after its signal is killed.
GRACE_MAX_S = 15.0

# How many last lines of a dead process's log a message shows.
TAIL_LINES = 25


@dataclass(frozen=True)
class Command:
    """What to run, as which account, and which signal makes it shut down in order."""

    name: str
    arguments: Sequence[str]
    environment: Mapping[str, str]
    directory: Path
    user: ServerUser | None = None
    farewell: signal.Signals = signal.SIGTERM
    # The guardian's signal once the stack has ended: a server may still have to close its files.
    last_word: signal.Signals = signal.SIGKILL


class Process:
    """One supervised child, which tests freeze, kill and start again."""

    def __init__(self, supervisor: Supervisor, command: Command) -> None:
        """Keep the command; `start` runs it."""
        self._supervisor = supervisor
        self._child: subprocess.Popen[bytes] | None = None
        self.command = command
        self.log_path = supervisor.log_directory / f"{command.name}.log"
        # True from start() until we end it on purpose: an end while wanted is a crash.
        self.wanted = False
        # True once its whole group has ended: another process may get its id, so send no signal.
        self._ended = True

    @property
    def name(self) -> str:
        """The name in messages and of the log file."""
        return self.command.name

    @property
    def pid(self) -> int:
        """The process id, which is also the id of its process group."""
        if self._child is None:
            message = f"{self.name} has not been started"
            raise RuntimeError(message)
        return self._child.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs or was never started; negative for a signal, as in subprocess."""
        return None if self._child is None else self._child.poll()

    @property
    def alive(self) -> bool:
        """Whether it runs (a frozen one does)."""
        return self._child is not None and self._child.poll() is None

    def start(self) -> None:
        """Run the command in its own process group, with its output in the log file."""
        if self.alive:
            return
        command = self.command
        gate, opener = os.pipe()
        with self.log_path.open("ab") as log, os.fdopen(gate), os.fdopen(opener, "wb") as go:
            self._child = subprocess.Popen(
                ["/bin/sh", "-c", _GATE, command.name, *command.arguments],
                cwd=command.directory,
                env=dict(command.environment),
                stdin=gate,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                **popen_options(command.user),
            )
            self._supervisor.watch(self)
            self.wanted, self._ended = True, False
            go.write(b"go\n")

    def kill(self) -> None:
        """SIGKILL the whole group at once, as a machine that loses power would."""
        if not self._ended:
            self._signal_group(signal.SIGKILL)
        self._end(signal.SIGKILL, grace_s=GRACE_MAX_S)

    def terminate(self, farewell: signal.Signals | None = None) -> None:
        """Ask it to end in order; kill the group if it has not after the grace time."""
        self._end(farewell or self.command.farewell, grace_s=GRACE_MAX_S)

    def stop(self) -> None:
        """SIGSTOP the group: it keeps its locks and sockets, and does nothing."""
        self._signal_group(signal.SIGSTOP)
        wait_until(
            lambda: psutil.Process(self.pid).status() == psutil.STATUS_STOPPED,
            what=f"{self.name} is not frozen",
            processes=[self],
            limit_s=GRACE_MAX_S,
        )

    def cont(self) -> None:
        """SIGCONT the group: it continues."""
        self._signal_group(signal.SIGCONT)

    def restart(self) -> None:
        """End it in order if it runs, and run it again with the same log file."""
        self.terminate()
        self.start()

    def children(self) -> list[int]:
        """Process ids below it: gunicorn's or Celery's workers, to kill just one of them."""
        with suppress(psutil.NoSuchProcess):
            return [child.pid for child in psutil.Process(self.pid).children(recursive=True)]
        return []

    def log_text(self) -> str:
        """All that it has written, over all its starts."""
        if not self.log_path.exists():
            return ""
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    def log_tail(self, lines: int = TAIL_LINES) -> str:
        """The last lines of its log, indented for a message."""
        return "\n".join(f"  | {line}" for line in self.log_text().splitlines()[-lines:])

    def death_notice(self) -> StackError:
        """The message for a process that ended while it was wanted."""
        how = _how_it_ended(self.exit_code)
        return StackError(
            f"{self.name} {how}. The end of its log:\n{self.log_tail()}",
            remedy=f"read {self.log_path}",
        )

    def _end(self, number: signal.Signals, *, grace_s: float) -> None:
        self.wanted = False
        if self._child is None or self._ended:
            return
        if self.alive:
            # Signal only the parent: Celery and gunicorn end their children themselves.
            os.kill(self.pid, number)
            self.cont()
            with suppress(subprocess.TimeoutExpired):
                self._child.wait(timeout=grace_s)
        self._signal_group(signal.SIGKILL)
        self._child.wait()
        self._ended = True
        self._supervisor.forget(self)

    def _signal_group(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)


class Supervisor:
    """Starts processes; when it ends in any way, they end too."""

    def __init__(self, log_directory: Path, *, pid_directory: Path | None = None) -> None:
        """Start the guardian first, so that no process runs without one.

        With a directory for process ids, it first ends processes that an earlier run left (if its
        guardian was killed as well).
        """
        log_directory.mkdir(parents=True, exist_ok=True)
        self.log_directory = log_directory
        self._pids = None if pid_directory is None else PidDirectory(pid_directory)
        self.processes: list[Process] = []
        listens, speaks = os.pipe()
        with os.fdopen(listens):
            self._guardian = subprocess.Popen(
                [sys.executable, "-I", "-S", str(Path(__file__).with_name("guardian.py"))],
                stdin=listens,
                start_new_session=True,
            )
        self._to_guardian = os.fdopen(speaks, "w", encoding="utf-8", buffering=1)

    def __enter__(self) -> Self:
        """Return the supervisor; leaving the block ends all processes."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End all processes, also when the block failed."""
        self.close()

    def start(self, command: Command) -> Process:
        """Start a process and put it on the list of those to end."""
        process = Process(self, command)
        process.start()
        return process

    def watch(self, process: Process) -> None:
        """Register a new process with the guardian before it may run."""
        if process not in self.processes:
            self.processes.append(process)
        self._tell(f"watch {process.pid} {int(process.command.last_word)}")
        if self._pids is not None:
            self._pids.add(process.name, process.pid)

    def forget(self, process: Process) -> None:
        """Unregister an ended process from the guardian: another process may soon get its id."""
        self._tell(f"forget {process.pid}")
        if self._pids is not None:
            self._pids.remove(process.name)

    def discard_at_end(self, path: Path) -> None:
        """Let the guardian remove a directory at the end, even after a SIGKILL."""
        self._tell(f"discard {path}")

    def check(self) -> None:
        """Raise for the first process that ended although we did not end it."""
        for process in self.processes:
            if process.wanted and not process.alive:
                raise process.death_notice()

    def close(self) -> None:
        """End all processes in the reverse order of their start, then the guardian."""
        for process in reversed(self.processes):
            process.terminate()
        self._release_guardian()

    def abandon(self) -> None:
        """Kill all processes at once: for stacks of which nothing is kept."""
        for process in reversed(self.processes):
            process.kill()
        self._release_guardian()

    def _release_guardian(self) -> None:
        with suppress(BrokenPipeError):
            self._to_guardian.close()
        self._guardian.wait()

    def _tell(self, line: str) -> None:
        # A killed guardian is no reason to fail: the next start ends what it left.
        with suppress(BrokenPipeError, ValueError):
            self._to_guardian.write(f"{line}\n")


def wait_until(
    ready: Callable[[], bool],
    *,
    what: str,
    processes: Sequence[Process] = (),
    limit_s: float,
) -> None:
    """Poll until ready; a process that dies, or the time limit, raises an error with its log."""
    deadline = time.monotonic() + limit_s
    while not ready():
        for process in processes:
            if not process.alive:
                raise process.death_notice()
        if time.monotonic() > deadline:
            tails = "\n".join(process.log_tail() for process in processes)
            raise StackError(
                f"{what} after {limit_s:.0f} s\n{tails}".rstrip(),
                remedy="look at the logs; a machine this slow may need another try",
            )
        time.sleep(0.02)


def _how_it_ended(exit_code: int | None) -> str:
    if exit_code is None:
        return "does not answer"
    if exit_code < 0:
        return f"was ended by {signal.Signals(-exit_code).name}"
    return f"ended with exit code {exit_code}"
