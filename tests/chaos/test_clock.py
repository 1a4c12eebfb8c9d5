"""The clock that is injected into workers: the wall clock moves, the others do not."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from chaos.stage import INJECTED
from devstack.programs import READY_MAX_S
from devstack.supervisor import wait_until

HOUR_S = 3600.0
# Prints how far its clocks have moved since its start, ten times a second.
PROGRAM = """
import time, datetime, sys
wall, steady, boot = time.time(), time.monotonic(), time.clock_gettime(time.CLOCK_MONOTONIC)
while True:
    aware = datetime.datetime.now(datetime.UTC).timestamp()
    print(time.time() - wall, aware - wall, time.monotonic() - steady, flush=True)
    time.sleep(0.1)
"""


def test_only_the_wall_clock_moves_and_it_comes_back(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(INJECTED), "CHAOS_CLOCKS": str(tmp_path)}
    command = [sys.executable, "-c", PROGRAM, "celery"]
    began = time.monotonic()
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            for offset_s in (HOUR_S, -HOUR_S, 0.0):
                (tmp_path / str(process.pid)).write_text(str(offset_s))
                for text in process.stdout:
                    wall, aware, steady = map(float, text.split())
                    assert steady < time.monotonic() - began + 1
                    if abs(wall - steady - offset_s) < 60:
                        break
                # The clock may have moved between the two that this line has.
                wall, aware, _ = map(float, process.stdout.readline().split())
                assert abs(aware - wall) < 1
                await_text(tmp_path / f"{process.pid}.applied", str(offset_s))
        finally:
            process.kill()


def await_text(path: Path, text: str) -> None:
    """Wait until the file has the text: it is written after the clock has moved."""
    wait_until(
        lambda: path.exists() and path.read_text() == text,
        what=f"{path.name} does not say {text}",
        limit_s=READY_MAX_S,
    )


def test_who_is_not_celery_keeps_its_clock(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(INJECTED), "CHAOS_CLOCKS": str(tmp_path)}
    code = "import threading; print([one.name for one in threading.enumerate()])"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "['MainThread']"
