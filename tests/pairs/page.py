"""docs/pairs.md: its tables, which a test keeps true."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from string import ascii_lowercase, ascii_uppercase
from typing import Final

from chaos.pairs import Pair, Second
from tests.pairs.playing import Outcome, all_pairs

PAGE: Final = Path(__file__).resolve().parents[2] / "docs" / "pairs.md"
_LETTERS: Final = ascii_lowercase + ascii_uppercase
_HEADINGS: Final = {
    Second.SUBMISSION: "## A submission after a submission",
    Second.QUESTION: "## Status checks after a submission",
}


def tables_in(page: str) -> dict[Second, str]:
    """The text below each of the two headings, up to the next heading."""
    return {
        of: page.split(f"{heading}\n", 1)[1].split("\n## ", 1)[0].strip()
        for of, heading in _HEADINGS.items()
    }


def tables_of(outcomes: Mapping[Pair, Outcome]) -> dict[Second, str]:
    """The same tables, made from the outcomes."""
    return {of: _table([row for row in all_pairs() if row[0].of is of], outcomes) for of in Second}


def with_tables(page: str, tables: Mapping[Second, str]) -> str:
    """The page with these tables in place of its own."""
    for of, old in tables_in(page).items():
        page = page.replace(f"{_HEADINGS[of]}\n\n{old}\n", f"{_HEADINGS[of]}\n\n{tables[of]}\n")
    return page


def _table(rows: Sequence[Sequence[Pair]], outcomes: Mapping[Pair, Outcome]) -> str:
    letters = _LETTERS[: len(rows[0])]
    legend = "; ".join(
        f"**{letter}** {pair.second.name}" for letter, pair in zip(letters, rows[0], strict=True)
    )
    lines = [
        ["first request", *letters],
        ["---"] * (len(letters) + 1),
        *([row[0].first.name, *(str(outcomes[pair]) for pair in row)] for row in rows),
    ]
    return f"{legend}.\n\n" + "\n".join(_line(line) for line in lines)


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
