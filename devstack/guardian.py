"""Ends the processes of a stack after the stack itself has ended in any way.

It is a separate program in its own session, and holds the reading end of a pipe. The stack writes
which processes it starts. When the stack dies, by Ctrl-C or by SIGKILL, the pipe closes, and the
guardian ends all processes that are still listed. This works for any child on any POSIX system, unlike
Linux's parent death signal: that follows the thread that forked, and is lost if a child changes its user.

Lines: `watch PID SIGNAL`, `forget PID`, `discard PATH`. Standard library only: it must start in
milliseconds and must not share a fault with the processes that it guards.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from contextlib import suppress

# Long enough for PostgreSQL to write its shutdown checkpoint after a test's worth of data.
FAREWELL_MAX_S = 10.0


def main() -> None:
    """Read until the pipe closes, then end what is left, the youngest first."""
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    watched, discarded = _listen()
    youngest_first = list(reversed(watched.items()))
    for pid, farewell in youngest_first:
        _signal_group(pid, farewell)
        _signal_group(pid, signal.SIGCONT)  # a frozen process handles no signal until it continues
    _await_all([pid for pid, _ in youngest_first])
    for pid, _ in youngest_first:
        _signal_group(pid, signal.SIGKILL)
    for path in discarded:
        shutil.rmtree(path, ignore_errors=True)


def _listen() -> tuple[dict[int, int], list[str]]:
    watched: dict[int, int] = {}
    discarded: list[str] = []
    for line in sys.stdin:
        verb, _, rest = line.rstrip("\n").partition(" ")
        if verb == "watch":
            pid, farewell = rest.split()
            watched[int(pid)] = int(farewell)
        elif verb == "forget":
            watched.pop(int(rest), None)
        elif verb == "discard":
            discarded.append(rest)
    return watched, discarded


def _await_all(pids: list[int]) -> None:
    deadline = time.monotonic() + FAREWELL_MAX_S
    while any(_group_lives(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)


def _signal_group(pid: int, number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def _group_lives(pid: int) -> bool:
    return not _is_unreaped(pid) and _is_signallable(pid)


def _is_signallable(pid: int) -> bool:
    try:
        os.killpg(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _is_unreaped(pid: int) -> bool:
    """Whether it is a zombie: a container's first process may never reap its orphans."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as stat:  # noqa: PTH123
            return stat.read().rpartition(")")[2].split()[0] == "Z"
    except (OSError, IndexError):
        return False


if __name__ == "__main__":
    main()
