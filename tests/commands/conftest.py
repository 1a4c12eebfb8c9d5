"""The `flask` command, run in this process on this module's database."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest
from flask import Flask


@dataclass(frozen=True)
class Outcome:
    """A command's exit code and output."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """Standard output, which must be one JSON document and nothing else."""
        return json.loads(self.out)

    @property
    def error(self) -> Any:
        """Standard error of a failed --json command."""
        return json.loads(self.err)["error"]


class Commands:
    """Runs a command: `flask("tenants list")`, or with each word as an argument."""

    def __init__(self, app: Flask) -> None:
        self._app = app

    def __call__(self, *words: str, stdin: str = "", env: dict[str, str] | None = None) -> Outcome:
        args = words[0].split() if len(words) == 1 else list(words)
        result = self._app.test_cli_runner().invoke(args=args, input=stdin, env=env)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Outcome(result.exit_code, result.stdout, result.stderr)


@pytest.fixture
def flask(app: Flask) -> Commands:
    return Commands(app)
