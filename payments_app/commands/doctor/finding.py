"""What a check has to say."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import StrEnum
from typing import NamedTuple


class Level(StrEnum):
    """OK; WARNING: it works, and should be mended; PROBLEM: money or service is at stake."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


class Finding(NamedTuple):
    """One thing that was looked at. `remedy`: what to do, empty when all is well."""

    level: Level
    said: str
    remedy: str = ""


Check = Callable[[], Iterator[Finding]]


def ok(said: str) -> Finding:
    """All is well."""
    return Finding(Level.OK, said)


def warning(said: str, remedy: str) -> Finding:
    """It works, and should be mended."""
    return Finding(Level.WARNING, said, remedy)


def problem(said: str, remedy: str) -> Finding:
    """Money or service is at stake."""
    return Finding(Level.PROBLEM, said, remedy)
