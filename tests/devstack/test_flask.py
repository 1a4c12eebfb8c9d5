"""`python -m devstack flask …`: flask's own output, and commands that work as they are printed."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from devstack.environment import surroundings
from devstack.programs import COMMAND_MAX_S, ROOT


def typed(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "devstack", *arguments],
        cwd=ROOT,
        env=surroundings(),
        capture_output=True,
        text=True,
        timeout=COMMAND_MAX_S,
        check=False,
    )


def test_help_is_the_commands_own() -> None:
    shown = typed("flask", "keys", "issue", "--help").stdout

    assert "--scope" in shown
    assert "Issue an API key" in shown


# It starts whole programs, each with its own limit.
@pytest.mark.timeout(360)
def test_the_example_in_help_is_one_to_paste(tmp_path: Path) -> None:
    for var in ((), ("--var", str(tmp_path))):
        shown = typed(*var, "flask", "tenants", "create", "--help").stdout

        example = shown.split("Example:")[1].strip()
        assert " tenants create " in example
        done = subprocess.run(
            shlex.split(f"{example.partition(' tenants ')[0]} secrets generate-key --json"),
            cwd=ROOT,
            env=surroundings(),
            capture_output=True,
            text=True,
            timeout=COMMAND_MAX_S,
            check=True,
        )
        assert '"key"' in done.stdout


@pytest.mark.parametrize(
    ("slip", "meant"),
    [("tenant", "tenants"), ("doctr", "doctor"), ("rout", "routes"), ("keys isue", "issue")],
)
def test_a_slip_is_told_what_was_meant(slip: str, meant: str) -> None:
    done = typed("flask", *slip.split())

    assert done.returncode == 2
    assert f"Did you mean '{meant}'?" in done.stderr


def test_without_a_stack_it_says_how_to_start_one(tmp_path: Path) -> None:
    told = typed("--var", str(tmp_path), "flask", "payments", "list")

    assert told.returncode == 1
    assert "database_unavailable" in told.stderr
    assert "nothing runs in this checkout: `make run` starts a stack" in told.stderr


def test_what_is_like_nothing_is_told_so() -> None:
    told = typed("flask", "zebra").stderr

    assert "No such command 'zebra'." in told
    assert "Did you mean" not in told
