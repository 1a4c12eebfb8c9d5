"""Names are those of the field, so that a payments engineer can grep for them. No old names."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

from tests.shape.source_tree import ROOT

# What each is called now: docs/decisions/0041-the-fields-words.md.
OLD_NAMES = frozenset(
    [
        "bear",
        "birth",
        "born",
        "Newborn",
        "BORN",
        "trail",
        "on_trail_of",
        "back_on_trail_of",
        "Asker",
        "asker",
        "rails",
        "Wire",
        "Silence",
        "Departure",
        "departure",
        "Came",
        "note_callback",
        "Vault",
        "VaultClosed",
        "Box",
        "box_of",
        "InvariantBreak",
        "BreaksOpen",
        "BreakNotFound",
        "list_breaks",
        "resolve_break",
        "survey",
        "Heard",
        "providers_heard",
        "execute_alone",
        "ALONE",
        "narrow",
        "await_first",
        "give_back",
        "Shelf",
        "SHELVES",
        "Minted",
        "mint",
        "take_turn",
        "Pulse",
        "PULSE",
        "is_felt",
        "HANDED_BACK",
        "choose_route",
        "forget_deliveries",
        "expire_answers",
        "Courier",
        "Clockwork",
        "Bell",
        "ring",
        "Hands",
        "Errand",
    ]
)


FOLDERS = ("payments_app", "simulator", "devstack", "chaos", "bench", "tests", "migrations")
# In comments and docstrings: words that the project had for things for which the field has others.
OLD_WORDS = re.compile(
    r"\b(asker|bear|bells?|born|brake|clockwork|courier|doorbells?|errands?|heard|nemesis|newborns?|news"
    r"|rang|rung|shel(?:f|ves)|stor(?:y|ies)|survey|vault|walls?)\b",
    re.IGNORECASE,
)


def test_no_old_name_is_used() -> None:
    found = set()
    for path in _files():
        with path.open("rb") as source:
            names = {
                t.string for t in tokenize.tokenize(source.readline) if t.type == tokenize.NAME
            }
        found |= {f"{path.name}: {name}" for name in (names | {path.stem}) & OLD_NAMES}
    assert not found


def test_no_comment_has_an_old_word() -> None:
    found = []
    for path in _files():
        for line, text in _prose(path):
            words = OLD_WORDS.findall(text.replace("wall clock", ""))
            found += [f"{path.relative_to(ROOT)}:{line}: {word}" for word in words]
    assert not found, "\n".join(found)


def _files() -> list[Path]:
    files = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    assert len(files) > 500
    return files


def _prose(path: Path) -> Iterator[tuple[int, str]]:
    """Comments and docstrings, with their lines."""
    source = path.read_text()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node, clean=False)
            if text is not None:
                yield node.body[0].lineno, text
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
