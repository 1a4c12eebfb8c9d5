"""The Kubernetes manifests as they are written, without what kustomize adds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from devstack.programs import ROOT

KUBERNETES = ROOT / "deploy/kubernetes"
EXAMPLE = KUBERNETES / "overlays/example"
Manifest = dict[str, Any]


@dataclass(frozen=True)
class Workload:
    """What runs pods: its manifest, and its one container."""

    manifest: Manifest

    @property
    def name(self) -> str:
        return str(self.manifest["metadata"]["name"]).removeprefix("maramoja-")

    @property
    def pod(self) -> Manifest:
        found: Manifest = self.manifest["spec"]["template"]["spec"]
        return found

    @property
    def container(self) -> Manifest:
        (found,) = self.pod["containers"]
        return dict(found)

    @property
    def labels(self) -> Manifest:
        found: Manifest = self.manifest["spec"]["template"]["metadata"]["labels"]
        return found


def read(path: Path) -> list[Manifest]:
    return [found for found in yaml.safe_load_all(path.read_text()) if found]


def manifests() -> list[Manifest]:
    """Every object, of the base, the migration, the components and the example."""
    paths = [path for path in KUBERNETES.rglob("*.yaml") if path.name != "kustomization.yaml"]
    return [found for path in sorted(paths) for found in read(path)]


def of_kind(kind: str) -> list[Manifest]:
    return [found for found in manifests() if found["kind"] == kind]


def workloads() -> dict[str, Workload]:
    """The workloads by the name of their part: api, worker, beat, migrate."""
    found = [Workload(one) for kind in ("Deployment", "Job") for one in of_kind(kind)]
    return {workload.name: workload for workload in found}
