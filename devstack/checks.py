"""`make test`: runs every check in turn, with its time, and then gives one verdict.

A check that could not be done (EX_TEMPFAIL) is reported as neither passed nor failed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from devstack.audit import NOT_DONE
from devstack.programs import ROOT

# Each test worker runs its own servers; more workers than this only compete for memory.
TEST_WORKERS_MAX = 4

_PROGRAMS = Path(sys.executable).parent


@dataclass(frozen=True)
class Stage:
    """One check: its name in `make test`'s summary, and its command."""

    name: str
    command: Sequence[str]


def stages() -> dict[str, Stage]:
    """All checks by name; those that find most in the least time are first."""
    workers = str(min(os.cpu_count() or 1, TEST_WORKERS_MAX))
    # A module runs on one worker, so that its stack is started once. Modules keep the order that
    # tests/conftest.py gives them.
    spread = ("-n", workers, "--dist", "loadscope", "--no-loadscope-reorder")
    pytest = (sys.executable, "-m", "pytest", *spread)
    stacks = ("tests/journeys", "tests/devstack", "tests/bench", "tests/isolation/test_hostile.py")
    without_stacks = tuple(f"--ignore={path}" for path in stacks)
    listed = (
        Stage("format", (_program("ruff"), "format", "--check", ".")),
        Stage("lint", (_program("ruff"), "check", ".")),
        Stage("types", (_program("mypy"),)),
        Stage("imports", (_program("lint-imports"),)),
        Stage("secrets", (sys.executable, "-m", "devstack.secret_scan")),
        Stage("deploy", (sys.executable, "-m", "devstack.deploy_files")),
        Stage("audit", (sys.executable, "-m", "devstack.audit")),
        Stage("tests", pytest),
        Stage("tests-fast", (*pytest, *without_stacks)),
    )
    return {stage.name: stage for stage in listed}


def run(chosen: Sequence[Stage]) -> tuple[list[str], list[str]]:
    """Run all checks, also after a failure; returns the names of those that failed or weren't done."""
    failed: list[str] = []
    not_done: list[str] = []
    verdicts: list[str] = []
    for stage in chosen:
        click.secho(f"── {stage.name}: {_shown(stage.command)}", bold=True)
        started = time.monotonic()
        done = subprocess.run(stage.command, cwd=ROOT, check=False)
        if done.returncode == NOT_DONE:
            not_done.append(stage.name)
        elif done.returncode != 0:
            failed.append(stage.name)
        seconds = time.monotonic() - started
        verdicts.append(f"{_mark(done.returncode)} {stage.name:<12}{seconds:7.1f} s")
    click.secho("── summary", bold=True)
    click.echo("\n".join(verdicts))
    return failed, not_done


def _mark(code: int) -> str:
    return {0: "✓", NOT_DONE: "?"}.get(code, "✗")


def _program(name: str) -> str:
    return str(_PROGRAMS / name)


def _shown(command: Sequence[str]) -> str:
    return " ".join([Path(command[0]).name, *command[1:]])


@click.command()
@click.argument("names", nargs=-1, required=True, type=click.Choice(list(stages())))
def main(names: tuple[str, ...]) -> None:
    """Run the checks NAMES and fail, at the end, if one of them did."""
    known = stages()
    failed, not_done = run([known[name] for name in names])
    if not_done:
        click.secho(f"NOT DONE, see above: {', '.join(not_done)}", fg="yellow", bold=True)
    if failed:
        click.secho(f"failed: {', '.join(failed)}", fg="red", bold=True)
        sys.exit(1)
    click.secho("the others passed" if not_done else "all passed", fg="green", bold=True)


if __name__ == "__main__":
    main()
