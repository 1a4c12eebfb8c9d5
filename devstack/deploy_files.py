"""`make check`: checks each file that deploys the gateway, by its linter or its schema.

No check needs a network. A check by a program without a wheel (kubectl, actionlint) runs if the
program is installed, and is reported as left out if it is not.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click

from devstack.programs import ROOT

# The oldest version that has what the manifests use (preStop.sleep), and the wheel's newest.
KUBERNETES: Final = ("1.30", "1.37")
MANIFESTS: Final = ROOT / "deploy/kubernetes"
OVERLAYS: Final = (
    "base",
    "migrate",
    "overlays/example",
    "overlays/example/migrate",
    "overlays/example/restore",
)
# Custom resources of KEDA and of Prometheus' operator: Kubernetes has no schema for them.
FOREIGN: Final = (
    "components/keda/worker-scaling.yaml",
    "components/prometheus-operator/pod-monitor.yaml",
    "components/prometheus-operator/rules.yaml",
)
_PROGRAMS: Final = Path(sys.executable).parent


@dataclass(frozen=True)
class Check:
    """A linter's command on some of the files."""

    name: str
    command: Sequence[str]


def checks() -> Iterator[Check]:
    """The checks whose programs are wheels, so that every environment has them."""
    yield Check("Dockerfile (hadolint)", [_wheel("hadolint"), "Dockerfile"])
    yield _schema("docker-compose.yml", "compose-spec", "docker-compose.yml")
    yield _schema("workflows", "github-workflows", *_workflows())
    yield _schema("dependabot.yml", "dependabot", ".github/dependabot.yml")
    yield Check(
        "workflows (zizmor)",
        [
            _wheel("zizmor"),
            "--offline",
            "--no-progress",
            "--quiet",
            "--persona=pedantic",
            ".github",
        ],
    )
    for version in KUBERNETES:
        yield _manifests(f"manifests (Kubernetes {version})", version, own_manifests())


def optional_checks(scratch: Path) -> Iterator[Check]:
    """The checks whose programs this machine has. Reports those that are left out."""
    if _there("actionlint", "the workflows' expressions and scripts"):
        yield Check("workflows (actionlint)", ["actionlint", *_workflows()])
    if not _there("kubectl", "what kustomize makes of the manifests"):
        return
    for overlay in OVERLAYS:
        made = scratch / f"{overlay.replace('/', '-')}.yaml"
        yield Check(
            f"{overlay} (kubectl kustomize)",
            ["kubectl", "kustomize", str(MANIFESTS / overlay), "--output", str(made)],
        )


def own_manifests() -> list[str]:
    """The manifests without custom resources."""
    left_out = {MANIFESTS / name for name in FOREIGN}
    found = sorted(MANIFESTS.rglob("*.yaml"))
    return [str(p) for p in found if p not in left_out and p.name != "kustomization.yaml"]


def run(check: Check) -> bool:
    """Run the check; its output is shown if it fails."""
    done = subprocess.run(check.command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        click.secho(f"✗ {check.name}", fg="red")
        click.echo(f"{done.stdout}{done.stderr}")
        return False
    click.echo(f"✓ {check.name}")
    return True


def _schema(name: str, schema: str, *files: str) -> Check:
    program = _wheel("check-jsonschema")
    return Check(f"{name} (schema)", [program, "--builtin-schema", f"vendor.{schema}", *files])


def _manifests(name: str, version: str, files: Sequence[str]) -> Check:
    program = _wheel("kubernetes-validate")
    return Check(name, [program, "--strict", "--quiet", "--kubernetes-version", version, *files])


def _workflows() -> list[str]:
    found = sorted((ROOT / ".github/workflows").glob("*.yml"))
    return [str(path.relative_to(ROOT)) for path in found]


def _wheel(program: str) -> str:
    return str(_PROGRAMS / program)


def _there(program: str, what: str) -> bool:
    found = shutil.which(program) is not None
    if not found:
        click.secho(f"NOT LOOKED AT: {what}; no {program} on the PATH", fg="yellow", bold=True)
    return found


@click.command()
def main() -> None:
    """Run all checks, also after a failure."""
    with tempfile.TemporaryDirectory() as scratch:
        passed = [run(check) for check in (*checks(), *optional_checks(Path(scratch)))]
    if not all(passed):
        sys.exit(1)


if __name__ == "__main__":
    main()
