"""The manifests agree with the gateway and with each other. `make check` validates their schema."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml
from flask import Flask

from tests.deploy.manifests import (
    EXAMPLE,
    KUBERNETES,
    Workload,
    environment_of,
    of_kind,
    read,
    workloads,
)
from tests.deploy.settings_known import REQUIRED, known_settings

WORKLOADS = workloads()
SERVING = ("api", "worker", "beat")
PORTS = {"api": 8000, "worker": 9101, "beat": 9102}
# Settings that differ from one process to another.
PORT_SETTINGS = {"WEB_CONCURRENCY", "WORKER_PORT", "BEAT_PORT"}
PROBES = ("startupProbe", "livenessProbe", "readinessProbe")
# These run the gateway's code; the others PostgreSQL's programs.
OURS = {name: WORKLOADS[name] for name in (*SERVING, "migrate")}
each = pytest.mark.parametrize("workload", WORKLOADS.values(), ids=WORKLOADS)
ours = pytest.mark.parametrize("workload", OURS.values(), ids=OURS)
serving = pytest.mark.parametrize("name", SERVING)


def settings_of(workload: Workload) -> set[str]:
    return set(environment_of(workload, {}))


def policies(name: str) -> list[dict[str, Any]]:
    """The policies that allow this workload's traffic, in both directions."""
    labels = WORKLOADS[name].labels
    return [
        policy["spec"]
        for policy in of_kind("NetworkPolicy")
        if policy["spec"]["podSelector"].get("matchLabels", {}).items() <= labels.items()
    ]


def test_there_are_all_six() -> None:
    assert set(WORKLOADS) == {*SERVING, "migrate", "backup", "restore"}


@ours
def test_each_variable_is_a_setting_and_none_that_is_needed_is_missing(workload: Workload) -> None:
    assert settings_of(workload) <= known_settings()
    assert settings_of(workload) >= REQUIRED


def test_only_the_migration_has_the_owners_rights() -> None:
    having = {n for n, w in WORKLOADS.items() if "MIGRATION_DATABASE_URL" in settings_of(w)}
    assert having == {"migrate"}


def test_the_template_holds_no_secret() -> None:
    for secret in read(EXAMPLE / "secret.template.yaml"):
        assert set(secret["stringData"].values()) == {""}
    assert "secret.template.yaml" not in (EXAMPLE / "kustomization.yaml").read_text()


@each
def test_each_pod_passes_the_restricted_standard_and_writes_nowhere(workload: Workload) -> None:
    pod, container = workload.pod["securityContext"], workload.container["securityContext"]
    assert pod["runAsNonRoot"] is True
    assert pod["runAsUser"] == 10001
    assert pod["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["allowPrivilegeEscalation"] is False
    assert container["readOnlyRootFilesystem"] is True
    assert container["capabilities"] == {"drop": ["ALL"]}
    assert workload.pod["automountServiceAccountToken"] is False
    volumes = [one["emptyDir"] for one in workload.pod["volumes"] if "emptyDir" in one]
    assert [volume["medium"] for volume in volumes] == ["Memory"]


@each
def test_each_says_what_it_needs_and_what_it_may_take(workload: Workload) -> None:
    for bound in ("requests", "limits"):
        assert {"cpu", "memory"} <= set(workload.container["resources"][bound])


@ours
def test_all_run_the_one_image(workload: Workload) -> None:
    assert workload.container["image"] == "maramoja"


def test_what_runs_and_its_migration_are_of_one_version_and_have_the_same_settings() -> None:
    for kustomization in (EXAMPLE, EXAMPLE / "migrate"):
        (found,) = read(kustomization / "kustomization.yaml")
        assert {"image", "settings"} <= {one.removeprefix("../") for one in found["components"]}
    running = [settings_of(WORKLOADS[name]) - PORT_SETTINGS for name in SERVING]
    assert running == [settings_of(WORKLOADS["migrate"]) - {"MIGRATION_DATABASE_URL"}] * 3
    (image,) = read(EXAMPLE / "image/kustomization.yaml")
    assert [one["name"] for one in image["images"]] == ["maramoja", "maramoja-backup"]
    (tag,) = {one["newTag"] for one in image["images"]}
    assert tag != "latest"


@ours
def test_each_starts_a_program_of_the_image(workload: Workload) -> None:
    wanted = {
        "api": ["gunicorn", "wsgi:app"],
        "worker": ["celery", "-A", "celery_worker", "worker"],
        "beat": ["celery", "-A", "celery_worker", "beat"],
        "migrate": ["flask", "db", "upgrade"],
    }[workload.name]
    assert workload.container["args"][: len(wanted)] == wanted


@serving
def test_probes_ask_a_port_that_is_open_for_a_path_that_is_there(name: str, app: Flask) -> None:
    container = WORKLOADS[name].container
    ((port),) = container["ports"]
    assert port["containerPort"] == PORTS[name]
    environment = {one["name"]: one["value"] for one in container["env"]}
    assert environment.get(f"{name.upper()}_PORT", "8000") == str(PORTS[name])
    routes = {rule.rule for rule in app.url_map.iter_rules()}
    probes = {probe: container[probe]["httpGet"] for probe in PROBES if probe in container}
    assert {"startupProbe", "livenessProbe"} <= set(probes)
    for probe, asked in probes.items():
        assert asked["port"] == port["name"]
        assert asked["path"] in routes
        assert asked["path"] == ("/health/ready" if probe == "readinessProbe" else "/health/live")


def test_the_api_is_never_fewer_and_goes_after_the_cluster_has_heard() -> None:
    api = WORKLOADS["api"]
    assert api.manifest["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    waits = api.container["lifecycle"]["preStop"]["sleep"]["seconds"]
    # gunicorn's graceful_timeout is added to it.
    assert api.pod["terminationGracePeriodSeconds"] > waits + 30
    assert "replicas" not in api.manifest["spec"], "the autoscaler says how many"


def test_one_beat_is_enough_and_two_are_not_wanted() -> None:
    spec = WORKLOADS["beat"].manifest["spec"]
    assert spec["replicas"] == 1
    assert spec["strategy"] == {"type": "Recreate"}


def test_selectors_select_what_is_there() -> None:
    kinds = ("Service", "PodDisruptionBudget", "PodMonitor")
    for found in (one for kind in kinds for one in of_kind(kind)):
        selector = found["spec"]["selector"]
        wanted = selector.get("matchLabels", selector)
        assert any(wanted.items() <= one.labels.items() for one in WORKLOADS.values()), found
    for workload in WORKLOADS.values():
        if "selector" in workload.manifest["spec"]:
            assert workload.manifest["spec"]["selector"]["matchLabels"] == workload.labels


def test_scalers_scale_what_is_there_and_never_to_nothing() -> None:
    names = {workload.manifest["metadata"]["name"] for workload in WORKLOADS.values()}
    (api,), (worker,) = of_kind("HorizontalPodAutoscaler"), of_kind("ScaledObject")
    for scaler in (api, worker):
        assert scaler["spec"]["scaleTargetRef"]["name"] in names
    assert api["spec"]["minReplicas"] >= 2
    assert worker["spec"]["minReplicaCount"] >= 2


def test_workers_are_as_many_as_the_lag_asks_for() -> None:
    (trigger,) = of_kind("ScaledObject")[0]["spec"]["triggers"]
    assert trigger["metadata"]["query"] == "max(maramoja_due_lag_seconds)"
    # A lag is not divided by the number of workers, as the length of a queue is.
    assert trigger["metricType"] == "Value"


def test_nobody_talks_to_anybody_unless_it_is_said() -> None:
    default = [one for one in of_kind("NetworkPolicy") if one["spec"]["podSelector"] == {}]
    assert [one["spec"] for one in default] == [
        {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    ]


@serving
def test_only_workers_reach_the_internet_and_nobody_what_is_within(name: str) -> None:
    ways = [way for spec in policies(name) for way in spec.get("egress", [])]
    blocks = [
        (to["ipBlock"], {port["port"] for port in way["ports"]})
        for way in ways
        for to in way["to"]
        if "ipBlock" in to
    ]
    out = [(block, ports) for block, ports in blocks if block["cidr"] in ("0.0.0.0/0", "2000::/3")]
    assert bool(out) == (name == "worker")
    for block, ports in out:
        assert ports == {443}
        if block["cidr"] == "0.0.0.0/0":
            within = {"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16"}
            assert within <= set(block["except"])


def test_only_the_api_is_called_from_outside_and_only_on_what_callers_need(app: Flask) -> None:
    callers = [p for p in of_kind("NetworkPolicy") if p["metadata"]["name"] == "api-from-ingress"]
    assert callers[0]["spec"]["podSelector"]["matchLabels"] == WORKLOADS["api"].labels
    (ingress,) = of_kind("Ingress")
    paths = [path["path"] for path in ingress["spec"]["rules"][0]["http"]["paths"]]
    routes = [rule.rule for rule in app.url_map.iter_rules()]
    assert all(any(route.startswith(path) for route in routes) for path in paths)
    assert not any("/metrics".startswith(path) or "/health".startswith(path) for path in paths)


def test_each_kustomization_names_files_that_are_there() -> None:
    for path in KUBERNETES.rglob("kustomization.yaml"):
        (found,) = read(path)
        generated = [file for one in found.get("configMapGenerator", []) for file in one["envs"]]
        for name in (*found.get("resources", []), *found.get("components", []), *generated):
            assert (path.parent / name).exists(), f"{path} names {name}"


def test_each_file_of_the_base_is_used() -> None:
    for folder in ("base", "migrate", "restore", "components/backup"):
        path = KUBERNETES / folder
        used = set(yaml.safe_load((path / "kustomization.yaml").read_text())["resources"])
        assert used == {one.name for one in path.glob("*.yaml")} - {"kustomization.yaml"}


def test_no_name_of_a_setting_is_in_prose_only() -> None:
    """A commented line would look like a setting that is not set."""
    for path in KUBERNETES.rglob("*.env"):
        assert not re.search(r"^#\s*[A-Z_]+=", path.read_text(), re.MULTILINE)
