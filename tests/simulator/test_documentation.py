"""docs/simulator.md names every fault with its parameters, every setting, and no other."""

from __future__ import annotations

import re

import pytest

from simulator.faults import KINDS
from simulator.settings import Settings
from tests.simulator.driving import ROOT

PAGE = (ROOT / "docs" / "simulator.md").read_text(encoding="utf-8")


def rows_below(heading: str) -> dict[str, str]:
    """The table under a heading: the first cell's word → the whole row."""
    section = PAGE.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    return {
        match[1]: match[0] for match in re.finditer(r"^\| `(\w+)` \|.*$", section, re.MULTILINE)
    }


def test_each_fault_is_described_and_no_other() -> None:
    assert set(rows_below("Kinds of fault")) == set(KINDS)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_each_parameter_of_a_fault_is_described(kind: str) -> None:
    row = rows_below("Kinds of fault")[kind]
    for parameter in KINDS[kind].parameters:
        assert f"`{parameter}" in row


def test_each_setting_is_described_with_its_default() -> None:
    rows = rows_below("Settings")
    defaults = Settings().shown()
    assert set(rows) == set(defaults)
    for name, default in defaults.items():
        shown = "null" if default is None else str(default)
        assert f"| `{shown.removesuffix('.0')}` |" in rows[name], name
