"""Processes that outlived the run that started them, found and ended by the next one."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

import psutil

# A server may still write its shutdown checkpoint; a process that stays longer is killed.
END_MAX_S = 15.0


class PidDirectory:
    """A file for each running process, so that the next run can end what this one leaves."""

    def __init__(self, path: Path) -> None:
        """End all that the files name and that still runs."""
        path.mkdir(parents=True, exist_ok=True)
        self._path = path
        for file in path.iterdir():
            _end_recorded(file)
            file.unlink(missing_ok=True)

    def add(self, name: str, pid: int) -> None:
        """Record the process with its time of birth: its number alone may be another's later."""
        with suppress(psutil.NoSuchProcess):
            born = psutil.Process(pid).create_time()
            (self._path / name).write_text(f"{pid} {born}", encoding="ascii")

    def remove(self, name: str) -> None:
        """The process is gone."""
        (self._path / name).unlink(missing_ok=True)


def _end_recorded(file: Path) -> None:
    pid, _, born = file.read_text(encoding="ascii").partition(" ")
    with suppress(psutil.NoSuchProcess, ValueError):
        orphan = psutil.Process(int(pid))
        if orphan.create_time() == float(born):
            end_orphan(orphan, signal.SIGTERM, limit_s=END_MAX_S)


def end_orphan(orphan: psutil.Process, farewell: signal.Signals, *, limit_s: float) -> None:
    """End a process that is not our child; one that stays is killed with its group."""
    deadline = time.monotonic() + limit_s
    with suppress(psutil.NoSuchProcess, ProcessLookupError):
        orphan.send_signal(farewell)
        orphan.send_signal(signal.SIGCONT)
        while orphan.is_running() and orphan.status() != psutil.STATUS_ZOMBIE:
            if time.monotonic() > deadline:
                os.killpg(orphan.pid, signal.SIGKILL)
            time.sleep(0.05)
