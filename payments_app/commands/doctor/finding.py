"""The result of a check."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import StrEnum
from typing import NamedTuple


class Level(StrEnum):
    """OK; WARNING: it works, but should be fixed; PROBLEM: money or service is at risk."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


class Finding(NamedTuple):
    """One result of a check. `remedy`: what to do, empty if all is well."""

    level: Level
    said: str
    remedy: str = ""


Check = Callable[[], Iterator[Finding]]


def ok(said: str) -> Finding:
    """All is well."""
    return Finding(Level.OK, said)


def warning(said: str, remedy: str) -> Finding:
    """It works, but should be fixed."""
    return Finding(Level.WARNING, said, remedy)


def problem(said: str, remedy: str) -> Finding:
    """Money or service is at risk."""
    return Finding(Level.PROBLEM, said, remedy)
