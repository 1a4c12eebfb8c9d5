"""Rules and dashboard use existing metrics; each alert fires when it should, and only then."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from devstack.errors import StackError
from devstack.operator_rules import COPY, written
from devstack.promtool import promtool
from payments_app.providers.contract import FailureCode
from payments_app.providers.failures import FAILURES, Actor
from tests.deploy.planted import CAUSES, NEAR_MISSES, Scenario
from tests.deploy.rules import (
    OF_PROMETHEUS,
    RULES,
    Query,
    alerts,
    asked_for,
    board,
    documented,
    grouped_by,
    of_metric,
    panels,
    parsed,
    queries,
    recorded,
    rules,
)
from tests.docs.pages import ROOT, read

PROMTOOL_MAX_S = 60
# A scenario that is longer, in minutes, has its rules evaluated less often.
LONG_MIN = 300
# A link that works wherever an alert is read.
REPOSITORY = "https://github.com/example/maramoja/blob/main"
RUNBOOKS = ROOT / "docs/runbooks"
# Pages without an alert: no metric shows what they are about.
WITHOUT_ALERT = {"README.md", "charged-twice.md"}
PARTS = ["Means", "Doesn't mean", "Look at", "Do", "Never"]
# Labels of Prometheus itself, and `le` of histograms.
LABELS_OF_ALL = {"job", "instance", "le"}
BY_NAME = pytest.mark.parametrize("query", queries(), ids=lambda query: query.where)


@pytest.fixture(scope="session")
def program() -> Path:
    try:
        return promtool()
    except StackError as error:
        if os.environ.get("PROMTOOL") == "required":
            raise
        pytest.skip(f"NO ALERT WAS TRIED: {error}")


@BY_NAME
def test_a_query_is_promql(query: Query) -> None:
    parsed(query)


@BY_NAME
def test_a_query_asks_for_metrics_and_labels_that_there_are(query: Query) -> None:
    metrics = documented()
    labels: set[str] = set()
    for name, chosen_by in asked_for(query):
        if name in recorded():
            labels |= _labels_of_recorded(name)
            continue
        has = OF_PROMETHEUS.get(name) or metrics[of_metric(name)] | LABELS_OF_ALL
        has |= {f"exported_{label}" for label in has & {"job"}}
        assert chosen_by <= has, name
        labels |= has
    assert grouped_by(query) <= labels


def test_the_board_is_whole() -> None:
    ids = [panel["id"] for panel in board()["panels"]]
    assert len(ids) == len(set(ids))
    for panel in panels():
        assert panel["title"]
        assert panel["description"]
        assert panel["datasource"]["uid"] == "${datasource}"
        assert panel["targets"]


@pytest.mark.parametrize(
    "where",
    ["deploy/prometheus/prometheus.yml", "deploy/prometheus/systemd.yml", "docs/metrics.md"],
)
def test_the_jobs_have_the_names_that_the_alerts_ask_for(where: str) -> None:
    """With another name an `absent` would be true for ever."""
    asked = {job for alert in alerts() for job in re.findall(r'job="(\w+)"', alert["expr"])}
    named = set(re.findall(r"^ +- job_name: (\w+)$", read(where), re.MULTILINE))
    assert asked
    assert named == asked


def test_what_is_recorded_is_used() -> None:
    used = {name for query in queries() for name, _ in asked_for(query)}
    assert recorded() <= used


def test_each_alert_says_how_urgent_it_is_and_what_to_do() -> None:
    for alert in alerts():
        assert alert["labels"]["severity"] in {"page", "ticket"}, alert
        assert {"summary", "description", "runbook_url"} == set(alert["annotations"]), alert
        page = f"docs/runbooks/{_page_of(alert['alert'])}"
        assert alert["annotations"]["runbook_url"] == f"{REPOSITORY}/{page}"
        assert (ROOT / page).exists()


def test_the_runbooks_are_where_the_units_say_that_the_pages_are() -> None:
    units = (ROOT / "deploy/systemd").glob("*.service")
    assert all(f"Documentation={REPOSITORY}/docs/" in unit.read_text() for unit in units)


def test_the_operator_gets_the_same_rules() -> None:
    assert COPY.read_text() == written(), "run python -m devstack.operator_rules"
    spec = yaml.safe_load(COPY.read_text())["spec"]
    assert spec == yaml.safe_load(RULES.read_text())


def test_what_prometheus_asks_of_a_machine_are_the_ports_of_its_units() -> None:
    config = yaml.safe_load((ROOT / "deploy/prometheus/systemd.yml").read_text())
    asked = {
        target
        for job in config["scrape_configs"]
        for static in job["static_configs"]
        for target in static["targets"]
    }
    units = "".join(
        path.read_text() for path in (ROOT / "deploy/systemd").glob("*.*") if path.is_file()
    )
    beat = re.findall(r"BEAT_PORT=(\d+)", units)
    workers = [
        prefix + instance
        for prefix in re.findall(r"WORKER_PORT=(\d+)%i", units)
        for instance in re.findall(r"maramoja-worker@(\d)\.service", units)
    ]
    assert asked == {f"127.0.0.1:{port}" for port in ("8000", *beat, *workers)}


def test_each_alert_has_its_page_and_each_page_its_alert() -> None:
    written = {path.name for path in RUNBOOKS.glob("*.md")}
    assert written - WITHOUT_ALERT == {_page_of(alert["alert"]) for alert in alerts()}
    assert written >= WITHOUT_ALERT


@pytest.mark.parametrize("alert", sorted({alert["alert"] for alert in alerts()}))
def test_a_page_says_all_that_one_needs_at_night(alert: str) -> None:
    page = read(f"docs/runbooks/{_page_of(alert)}")
    assert page.startswith(f"# {alert}\n")
    assert re.findall(r"^## (.+)$", page, re.MULTILINE) == PARTS
    assert len(page.splitlines()) <= 60


def test_the_list_of_pages_has_all_of_them_with_their_urgency() -> None:
    told = dict(
        re.findall(
            r"^\| \[\w+\]\(([\w-]+\.md)\) \| ([\w, ]+) \|",
            read("docs/runbooks/README.md"),
            re.MULTILINE,
        )
    )
    urgency: dict[str, set[str]] = {}
    for alert in alerts():
        urgency.setdefault(_page_of(alert["alert"]), set()).add(alert["labels"]["severity"])
    assert {page: set(said.split(", ")) for page, said in told.items()} == urgency


def test_the_success_rate_leaves_out_what_only_payers_decide() -> None:
    """A new failure code that only payers cause must be left out too, or payers cause pages."""
    judged = next(
        r for r in rules() if r.get("record") == "provider:maramoja_payments_judged:increase30m"
    )
    left_out = re.search(r'failure_code!~"([^"]+)"', judged["expr"])
    assert left_out
    payers = {code for code, meaning in FAILURES.items() if meaning.actor is Actor.PAYER}
    assert set(left_out[1].split("|")) == payers | {FailureCode.PAYER_NOT_FOUND}


def test_each_alert_has_its_cause_planted() -> None:
    planted = {fired for scenario in CAUSES for fired in scenario.fires}
    assert planted == {(alert["alert"], alert["labels"]["severity"]) for alert in alerts()}


def test_prometheus_itself_takes_the_rules(program: Path) -> None:
    done = _run(program, "check", "rules", str(RULES))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("scenario", [*CAUSES, *NEAR_MISSES], ids=lambda scenario: scenario.name)
def test_what_fires(program: Path, scenario: Scenario, tmp_path: Path) -> None:
    file = tmp_path / "test.yml"
    file.write_text(yaml.safe_dump(_as_promtools(scenario)), encoding="utf-8")
    done = _run(program, "test", "rules", str(file))
    assert done.returncode == 0, done.stdout + done.stderr


def _as_promtools(scenario: Scenario) -> dict[str, Any]:
    """A promtool test: exactly these alerts fire at the end, no more and no fewer."""
    fires = [
        {"labels": f'{{alertname="{alert}",severity="{severity}"}}', "value": 1}
        for alert, severity in scenario.fires
    ]
    asked = {
        "expr": 'group by (alertname, severity) (ALERTS{alertstate="firing"})',
        "eval_time": f"{scenario.minutes}m",
        "exp_samples": fires,
    }
    series = [{"series": name, "values": values} for name, values in scenario.series().items()]
    test = {"interval": "1m", "input_series": series, "promql_expr_test": [asked]}
    # A day of every rule, minute by minute, takes promtool long.
    every = "1m" if scenario.minutes <= LONG_MIN else "5m"
    return {"rule_files": [str(RULES)], "evaluation_interval": every, "tests": [test]}


def _page_of(alert: str) -> str:
    words = re.findall(r"[A-Z][a-z0-9]*", alert.removeprefix("Maramoja"))
    return f"{'-'.join(words).lower()}.md"


def _labels_of_recorded(name: str) -> set[str]:
    """The labels by the recorded name: `provider:…` has that label, `maramoja:…` none."""
    level = name.partition(":")[0]
    return set() if level == "maramoja" else {level}


def _run(program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [program, *arguments],
        capture_output=True,
        text=True,
        timeout=PROMTOOL_MAX_S,
        check=False,
    )
