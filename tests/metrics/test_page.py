"""docs/metrics.md lists exactly what the processes export."""

from __future__ import annotations

import re
from pathlib import Path

from prometheus_client import Metric

from tests.metrics.conftest import Installation

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"


def told() -> dict[str, tuple[str, set[str]]]:
    """Each row's name, type and labels."""
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in PAGE.read_text().splitlines()
        if line.startswith("| `maramoja_")
    ]
    return {row[0].strip("`"): (row[1], set(re.findall(r"`(\w+)`", row[2]))) for row in rows}


def labels_of(family: Metric) -> set[str]:
    return {label for sample in family.samples for label in sample.labels} - {"le"}


def test_each_metric_has_a_row_and_each_row_is_a_metric(installation: Installation) -> None:
    installation.pay()
    installation.await_rest()
    families = installation.worker.families | installation.api.families

    rows = told()

    assert {name: family.type for name, family in families.items()} == {
        name: kind for name, (kind, _) in rows.items()
    }
    for name, (_, labels) in rows.items():
        for answer in (installation.api, installation.worker, installation.beat):
            found = answer.families.get(name)
            if found is not None and found.samples:
                assert labels_of(found) == labels, name


def test_each_row_says_what_to_do(installation: Installation) -> None:
    assert installation
    for line in PAGE.read_text().splitlines():
        if line.startswith("| `maramoja_"):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            assert len(cells) == 6, line
            assert all(cells[n] for n in (0, 1, 3, 4, 5)), line
