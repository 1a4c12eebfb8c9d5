"""A row is locked as an UPDATE locks it, not as a DELETE does, unless it is deleted."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from tests.shape.source_tree import Source, sources

# What deletes the rows that it locks.
DELETES = {"payments_app/webhooks/deliveries.py": 1}
STRONGEST = re.compile(r"\bFOR\s+UPDATE\b")


def strongest_locks(source: Source) -> Iterator[int]:
    """The lines that lock with FOR UPDATE. PostgreSQL then makes rows that refer to this one wait."""
    for node in ast.walk(source.tree):
        match node:
            case ast.Call(func=ast.Attribute(attr="with_for_update"), keywords=given):
                given_by_name = {one.arg: ast.unparse(one.value) for one in given}
                if "True" not in {given_by_name.get("key_share"), given_by_name.get("read")}:
                    yield node.lineno
            case ast.keyword(arg="with_for_update"):
                yield node.value.lineno
            case ast.Constant(str(words)) if STRONGEST.search(words):
                yield node.lineno
            case _:
                pass


def test_only_what_deletes_rows_locks_their_keys() -> None:
    found = {
        source.name: lines
        for source in sources("payments_app")
        if (lines := list(strongest_locks(source)))
    }
    assert {name: len(lines) for name, lines in found.items()} == DELETES, found
