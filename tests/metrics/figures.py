"""The metrics of a /metrics response, read by the library's own parser."""

from __future__ import annotations

from dataclasses import dataclass

import requests
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from payments_app.kernel import metrics


@dataclass(frozen=True)
class Figures:
    """One response."""

    text: str

    @property
    def families(self) -> dict[str, Metric]:
        """The metrics by the name that a query uses."""
        return {
            f"{one.name}_total" if one.type == "counter" else one.name: one
            for one in text_string_to_metric_families(self.text)
        }

    def total(self, name: str, **labels: str) -> float:
        """The sum of the series of this name that have these labels."""
        return sum(
            sample.value
            for family in text_string_to_metric_families(self.text)
            for sample in family.samples
            if sample.name == f"maramoja_{name}" and labels.items() <= sample.labels.items()
        )

    def labels(self, name: str, label: str) -> set[str]:
        """The values of this label."""
        samples = self.families[f"maramoja_{name}"].samples
        return {sample.labels[label] for sample in samples if label in sample.labels}


def figures_here() -> Figures:
    """The metrics of this process."""
    return Figures(metrics.exposition().decode())


def figures_at(url: str) -> Figures:
    """The metrics of a running process."""
    answer = requests.get(f"{url}/metrics", timeout=30)
    assert answer.status_code == 200, answer.text
    return Figures(answer.text)
