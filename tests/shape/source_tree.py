"""The repository's Python, parsed once, and the message for a broken rule.

`# house: allow <rule> because <reason>`, on a line or on the line above it, exempts the line.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_PASS = re.compile(r"# house: allow ([a-z-]+) because \S")


@dataclass(frozen=True)
class Source:
    """One file. `name` is its path from the root."""

    name: str
    text: str
    tree: ast.Module

    @property
    def lines(self) -> list[str]:
        return self.text.splitlines()

    def allows(self, rule: str, line: int) -> bool:
        """Whether the file exempts this line from this rule, with a reason."""
        near = self.lines[max(line - 2, 0) : line]
        return any(found[1] == rule for found in map(_PASS.search, near) if found)

    def functions(self) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
        for node in ast.walk(self.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield node

    def calls(self) -> Iterator[tuple[str, ast.Call]]:
        """Each call with the text of its callee."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Call):
                yield ast.unparse(node.func), node

    def imports(self) -> Iterator[tuple[str, int]]:
        """The modules that the file imports, with line numbers."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from ((alias.name, node.lineno) for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                yield node.module, node.lineno


@dataclass(frozen=True)
class Breach:
    """A rule, broken at a place."""

    source: Source
    line: int
    what: str


@cache
def sources(*folders: str) -> tuple[Source, ...]:
    """Every Python file in these folders, or the file itself."""
    paths: list[Path] = []
    for folder in folders:
        found = ROOT / folder
        paths += sorted(found.rglob("*.py")) if found.is_dir() else [found]
    return tuple(
        Source(str(path.relative_to(ROOT)), path.read_text(), ast.parse(path.read_text()))
        for path in paths
        if path.exists()
    )


def assert_none(rule: str, breaches: Iterable[Breach], *, instead: str) -> None:
    """Fail with every place where the rule is broken, what to write instead, and the exemption."""
    told = [
        f"{breach.source.name}:{breach.line}: {breach.what}"
        for breach in breaches
        if not breach.source.allows(rule, breach.line)
    ]
    way_out = f"or write on the line: # house: allow {rule} because …"
    assert not told, "\n".join([f"{instead} ({way_out})", *told])
