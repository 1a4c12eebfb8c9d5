"""A wall clock that can be moved while the process runs, for Celery's workers and beats.

Python imports a module of this name at its start when PYTHONPATH has it. The module watches for
a file named after the process id: the seconds in it are added to the wall clock, as if someone
had set the machine's. CLOCK_MONOTONIC and CLOCK_BOOTTIME do not change, as when a clock is set.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path

_LOOK_EVERY_S = 0.1


def _watch(directory: Path) -> None:
    offset_file = directory / str(os.getpid())
    while not offset_file.exists():
        time.sleep(_LOOK_EVERY_S)
    # time_machine registers with pytest if pytest is installed; a worker must not import pytest.
    sys.modules["pytest"] = None  # type: ignore[assignment]
    import time_machine  # noqa: PLC0415  # house: allow local-import because few processes need it

    del sys.modules["pytest"]
    clock = time_machine.travel(time.time()).start()
    applied = 0.0
    while True:
        wanted = _read(offset_file, otherwise=applied)
        if wanted != applied:
            clock.shift(wanted - applied)
            applied = wanted
            offset_file.with_suffix(".applied").write_text(str(applied), encoding="ascii")
        time.sleep(_LOOK_EVERY_S)


def _read(offset_file: Path, *, otherwise: float) -> float:
    try:
        return float(offset_file.read_text(encoding="ascii"))
    except (OSError, ValueError):
        # The file is just being written.
        return otherwise


if "CHAOS_CLOCKS" in os.environ and "celery" in sys.orig_argv:
    directory = Path(os.environ["CHAOS_CLOCKS"])
    threading.Thread(target=_watch, args=(directory,), name="clock", daemon=True).start()
