"""Finds and ends processes that an earlier run has left."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

import psutil

# A server may still write its shutdown checkpoint; a process that stays longer is killed.
END_MAX_S = 15.0
# A process's start time is computed from the machine's clock, which may be set during the run.
CLOCK_STEP_MAX_S = 5.0


class PidDirectory:
    """A file for each running process, so that the next run can end what this one leaves."""

    def __init__(self, path: Path) -> None:
        """End the processes that the files name and that still run."""
        path.mkdir(parents=True, exist_ok=True)
        self._path = path
        # Signal all of them first: PostgreSQL waits for its clients, which are among them.
        orphans = [orphan for file in path.iterdir() if (orphan := _recorded(file)) is not None]
        for orphan in orphans:
            _tell(orphan, signal.SIGTERM)
        for orphan in orphans:
            end_orphan(orphan, signal.SIGTERM, limit_s=END_MAX_S)
        for file in path.iterdir():
            file.unlink()

    def add(self, name: str, pid: int) -> None:
        """Record the process with its start time, because another process may get its id later."""
        with suppress(psutil.NoSuchProcess):
            started_at = psutil.Process(pid).create_time()
            (self._path / name).write_text(f"{pid} {started_at}", encoding="ascii")

    def remove(self, name: str) -> None:
        """Remove the file of a process that has ended."""
        (self._path / name).unlink(missing_ok=True)


def end_orphan(orphan: psutil.Process, farewell: signal.Signals, *, limit_s: float) -> None:
    """End a process that is not our child; kill it with its group if it takes too long."""
    deadline = time.monotonic() + limit_s
    _tell(orphan, farewell)
    with suppress(psutil.NoSuchProcess, ProcessLookupError):
        while orphan.is_running() and orphan.status() != psutil.STATUS_ZOMBIE:
            if time.monotonic() > deadline:
                os.killpg(orphan.pid, signal.SIGKILL)
            time.sleep(0.05)


def _recorded(file: Path) -> psutil.Process | None:
    """The process that the file names; None if it has ended, also if another has its id now."""
    pid, _, started_at = file.read_text(encoding="ascii").partition(" ")
    with suppress(psutil.NoSuchProcess, ValueError):
        process = psutil.Process(int(pid))
        if abs(process.create_time() - float(started_at)) < CLOCK_STEP_MAX_S:
            return process
    return None


def _tell(orphan: psutil.Process, farewell: signal.Signals) -> None:
    with suppress(psutil.NoSuchProcess):
        orphan.send_signal(farewell)
        orphan.send_signal(signal.SIGCONT)  # a frozen process handles no signal until it continues
