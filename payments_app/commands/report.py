"""The output of a command: one document for programs, and the same as short text for people."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import click

Cell = object


@dataclass(frozen=True, slots=True)
class Report:
    """`document` is printed with --json, else `text`. If not `well`, the exit code is 1."""

    document: Mapping[str, object]
    text: str
    well: bool = True

    def as_json(self) -> str:
        """The document as one JSON object."""
        return as_json(self.document)


@dataclass(frozen=True, slots=True)
class Lines:
    """A stream of documents: one per line; with --json, a list in one document."""

    documents: Iterable[Mapping[str, object]]

    def write(self, *, wants_json: bool) -> None:
        """Print each document as soon as it is there."""
        before = ""
        click.echo('{"data": [', nl=False) if wants_json else None
        for document in self.documents:
            click.echo(before + as_line(document), nl=not wants_json)
            before = ",\n" if wants_json else ""
        click.echo("]}") if wants_json else None


def as_line(document: Mapping[str, object]) -> str:
    """The document as one line of JSON."""
    return json.dumps(document, default=_plain, ensure_ascii=False)


def as_json(document: Mapping[str, object]) -> str:
    """The document as indented JSON, with ids and instants as the API writes them."""
    return json.dumps(document, default=_plain, ensure_ascii=False, indent=2)


def table(headings: Sequence[str], rows: Sequence[Sequence[Cell]], *, empty: str) -> str:
    """Aligned columns under their headings, or the sentence `empty` if there is no row."""
    if not rows:
        return empty
    lines = [list(headings), *([shown(cell) for cell in row] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headings))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def fields(document: Mapping[str, Cell]) -> str:
    """One line for each member, with aligned values."""
    width = max(len(name) for name in document)
    return "\n".join(f"{name.ljust(width)}  {shown(cell)}" for name, cell in document.items())


def shown(cell: Cell) -> str:
    """A value in a form for people."""
    match cell:
        case None | "":
            return "-"
        case bool():
            return "yes" if cell else "no"
        case datetime():
            return f"{cell:%Y-%m-%d %H:%M:%S}Z"
        case _:
            return str(cell)


def _plain(value: object) -> str:
    match value:
        case UUID():
            return str(value)
        case datetime():
            return value.isoformat().replace("+00:00", "Z")
        case _:
            raise TypeError(f"{type(value).__name__} has no form in JSON")
