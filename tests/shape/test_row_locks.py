"""A row is locked as an UPDATE locks it, not as a DELETE does, unless it is deleted."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from tests.shape.source_tree import Source, sources

# What deletes the rows that it locks.
DELETES = {"payments_app/webhooks/deliveries.py:_forget_batch"}
STRONGEST = re.compile(r"\bFOR UPDATE\b")


def strongest_locks(source: Source) -> Iterator[str]:
    """Where FOR UPDATE is written. PostgreSQL then makes rows that refer to this one wait."""
    for function in source.functions():
        for node in ast.walk(function):
            match node:
                case ast.Call(func=ast.Attribute(attr="with_for_update"), keywords=given):
                    if "key_share" not in {one.arg for one in given}:
                        yield f"{source.name}:{function.name}"
                case _:
                    pass
    for node in ast.walk(source.tree):
        match node:
            case ast.Constant(str(words)) if STRONGEST.search(words) and "SELECT" in words:
                yield f"{source.name}:{node.lineno}"
            case _:
                pass


def test_only_what_deletes_rows_locks_their_keys() -> None:
    found = {lock for source in sources("payments_app") for lock in strongest_locks(source)}
    assert found == DELETES
