"""The alert rules and the dashboard as deployed, and the series that their queries use."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import promql_parser
import yaml

from tests.docs.pages import ROOT, read

RULES = ROOT / "deploy/prometheus/rules/maramoja.yml"
BOARD = ROOT / "deploy/grafana/dashboards/maramoja.json"
# What Prometheus itself records of its targets.
OF_PROMETHEUS = {"up": {"job", "instance"}}
_SUFFIX = re.compile(r"_(?:bucket|sum|count)$")
# Grafana's own variables, and PromQL in their place.
_INTERVAL = {"$__rate_interval": "5m", "$__range": "1h"}


@dataclass(frozen=True)
class Query:
    """One expression, and the rule or panel that it is in."""

    where: str
    text: str


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def alerts() -> list[dict[str, Any]]:
    return [rule for rule in rules() if "alert" in rule]


def recorded() -> set[str]:
    return {rule["record"] for rule in rules() if "record" in rule}


def board() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(BOARD.read_text())
    return found


def panels() -> list[dict[str, Any]]:
    return [panel for panel in board()["panels"] if panel["type"] != "row"]


def queries() -> list[Query]:
    """All queries: of rules, alerts and the dashboard."""
    of_rules = [Query(rule.get("alert", rule.get("record")), rule["expr"]) for rule in rules()]
    of_board = [
        Query(panel["title"], target["expr"]) for panel in panels() for target in panel["targets"]
    ]
    return of_rules + of_board


def parsed(query: Query) -> promql_parser.Expr:
    text = query.text
    for name, meaning in _INTERVAL.items():
        text = text.replace(name, meaning)
    return promql_parser.parse(text)


def asked_for(query: Query) -> Iterator[tuple[str, set[str]]]:
    """Each series' name, a histogram's by its own, with the labels that select the series."""
    found: list[promql_parser.VectorSelector] = []

    def keep(part: promql_parser.Expr) -> None:
        # The visitor gets a range as a whole: its selector is inside.
        if isinstance(part, promql_parser.MatrixSelector):
            found.append(part.vector_selector)
        elif isinstance(part, promql_parser.VectorSelector):
            found.append(part)

    promql_parser.walk(parsed(query), keep)
    for selector in found:
        labels = {matcher.name for matcher in selector.matchers.matchers}
        yield selector.name, labels


def grouped_by(query: Query) -> set[str]:
    """The labels that its aggregations and matchings name."""
    return {
        label.strip()
        for names in re.findall(r"\b(?:by|on|without)\s*\(([^)]*)\)", query.text)
        for label in names.split(",")
        if label.strip()
    }


def documented() -> dict[str, set[str]]:
    """Each metric in docs/metrics.md, and its labels."""
    rows = re.findall(
        r"^\| `(maramoja_\w+)` \| \w+ \|([^|]*)\|", read("docs/metrics.md"), re.MULTILINE
    )
    return {name: set(re.findall(r"`(\w+)`", labels)) for name, labels in rows}


def of_metric(name: str) -> str:
    """The histogram's name of one of its series."""
    return _SUFFIX.sub("", name)
