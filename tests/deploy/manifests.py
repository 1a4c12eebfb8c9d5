"""The Kubernetes manifests as they are written, without what kustomize adds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from devstack.programs import ROOT
from tests.deploy.settings_known import env_file

KUBERNETES = ROOT / "deploy/kubernetes"
EXAMPLE = KUBERNETES / "overlays/example"
Manifest = dict[str, Any]


@dataclass(frozen=True)
class Workload:
    """A manifest that runs pods, with its one container."""

    manifest: Manifest

    @property
    def name(self) -> str:
        return str(self.manifest["metadata"]["name"]).removeprefix("maramoja-")

    @property
    def pod(self) -> Manifest:
        found: Manifest = self._template["spec"]
        return found

    @property
    def _template(self) -> Manifest:
        spec = self.manifest["spec"]
        # A CronJob makes Jobs.
        found: Manifest = spec.get("jobTemplate", {"spec": spec})["spec"]["template"]
        return found

    @property
    def container(self) -> Manifest:
        (found,) = self.pod["containers"]
        return dict(found)

    @property
    def labels(self) -> Manifest:
        found: Manifest = self._template["metadata"]["labels"]
        return found


def read(path: Path) -> list[Manifest]:
    return [found for found in yaml.safe_load_all(path.read_text()) if found]


def manifests() -> list[Manifest]:
    """Every object of the base, the migration, the components and the example."""
    paths = [path for path in KUBERNETES.rglob("*.yaml") if path.name != "kustomization.yaml"]
    return [found for path in sorted(paths) for found in read(path)]


def of_kind(kind: str) -> list[Manifest]:
    return [found for found in manifests() if found["kind"] == kind]


def config_map(folder: Path) -> dict[str, str]:
    """The settings of this kustomization's ConfigMap: first its resources', then its own."""
    (kustomization,) = read(folder / "kustomization.yaml")
    found: dict[str, str] = {}
    for name in (*kustomization.get("resources", []), *kustomization.get("components", [])):
        if (folder / name).is_dir():
            found |= config_map((folder / name).resolve())
    for generator in kustomization.get("configMapGenerator", []):
        assert generator["name"] == "maramoja-settings"
        for name in generator["envs"]:
            found |= env_file(folder / name)
    return found


def secrets() -> dict[str, set[str]]:
    """The names in each Secret of the template."""
    found = read(EXAMPLE / "secret.template.yaml")
    return {secret["metadata"]["name"]: set(secret["stringData"]) for secret in found}


def environment_of(workload: Workload, secret_values: Mapping[str, str]) -> dict[str, str]:
    """All variables of the container, and no others; "" for a secret without a value."""
    found: dict[str, str] = {}
    for source in workload.container["envFrom"]:
        if "configMapRef" in source:
            assert source["configMapRef"]["name"] == "maramoja-settings"
            # The migration is applied by itself, when nothing of the other overlay exists yet.
            found |= config_map(EXAMPLE / "migrate" if workload.name == "migrate" else EXAMPLE)
        else:
            names = secrets()[source["secretRef"]["name"]]
            found |= {name: secret_values.get(name, "") for name in names}
    return found | {one["name"]: one["value"] for one in workload.container.get("env", [])}


def workloads() -> dict[str, Workload]:
    """The workloads by the name of their part: api, worker, beat, migrate, backup, restore."""
    found = [Workload(one) for kind in ("Deployment", "Job", "CronJob") for one in of_kind(kind)]
    return {workload.name: workload for workload in found}
