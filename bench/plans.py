"""What PostgreSQL does for a request: the plans that ran, with the pages that they read.

auto_explain writes them into the server's log, for the app's own role, with row-level security.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg

from devstack.stack import Stack

_SETTINGS = {
    "session_preload_libraries": "auto_explain",
    "auto_explain.log_min_duration": "0",
    "auto_explain.log_analyze": "on",
    "auto_explain.log_buffers": "on",
    "auto_explain.log_format": "json",
    "auto_explain.log_parameter_max_length": "0",
}
_PLAN = re.compile(r"duration: [\d.]+ ms  plan:\n((?:\t.*\n)+)")


@dataclass(frozen=True)
class Plan:
    """One statement. `pages`: of 8 kB, read from memory or from disk."""

    text: str
    pages: int
    outline: str


@contextmanager
def explained(stack: Stack) -> Iterator[None]:
    """Explain all statements of connections that are opened during the block."""
    database = stack.database
    with psycopg.connect(stack.administrator_url, autocommit=True) as connection:
        for name, value in _SETTINGS.items():
            connection.execute(f"ALTER DATABASE {database} SET {name} = '{value}'".encode())
        try:
            yield
        finally:
            connection.execute(f"ALTER DATABASE {database} RESET ALL".encode())


def plans_of(stack: Stack, work: Callable[[], object]) -> list[Plan]:
    """The plans that ran during the work."""
    process = stack.postgres.process
    before = len(process.log_text())
    work()
    written = process.log_text()[before:]
    return [_plan(json.loads(found)) for found in _PLAN.findall(written)]


def _plan(told: dict[str, Any]) -> Plan:
    top = told["Plan"]
    pages = top.get("Shared Hit Blocks", 0) + top.get("Shared Read Blocks", 0)
    text = " ".join(str(told["Query Text"]).split())
    return Plan(text, int(pages), " < ".join(_nodes(top)))


def _nodes(node: dict[str, Any]) -> Iterator[str]:
    name = node.get("Index Name") or node.get("Relation Name")
    yield f"{node['Node Type']}{f' {name}' if name else ''}"
    for below in node.get("Plans", ()):
        yield from _nodes(below)
