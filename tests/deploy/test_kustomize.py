"""What kustomize makes of the example; skipped with a reason where kubectl is missing."""

from __future__ import annotations

import shutil
import subprocess

import pytest
import yaml

from tests.deploy.manifests import EXAMPLE, Manifest

pytestmark = pytest.mark.skipif(
    shutil.which("kubectl") is None, reason="THE OVERLAY IS NOT RENDERED: no kubectl here"
)


def rendered(overlay: str = "") -> dict[tuple[str, str], Manifest]:
    command = ["kubectl", "kustomize", str(EXAMPLE / overlay)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {(one["kind"], one["metadata"]["name"]): one for one in yaml.safe_load_all(said)}


def image_of(manifest: Manifest) -> str:
    return str(manifest["spec"]["template"]["spec"]["containers"][0]["image"])


def test_what_runs_and_its_migration_have_the_same_image() -> None:
    found = {**rendered(), **rendered("migrate")}
    images = {image_of(one) for (kind, _), one in found.items() if kind in ("Deployment", "Job")}
    assert images == {"ghcr.io/example/maramoja:0.1.0"}
    assert all(
        one["metadata"].get("namespace") == "maramoja"
        for (kind, _), one in found.items()
        if kind != "Namespace"
    )


def test_the_overlay_changes_what_it_says() -> None:
    found = rendered()
    # KEDA sets the number of workers.
    assert "replicas" not in found["Deployment", "maramoja-worker"]["spec"]
    (to,) = found["NetworkPolicy", "data"]["spec"]["egress"][0]["to"]
    assert to == {"ipBlock": {"cidr": "10.20.0.0/24"}}
    source = found["NetworkPolicy", "api-from-ingress"]["spec"]["ingress"][0]["from"][0]
    assert source["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "traefik"}


def test_a_changed_setting_is_a_new_name_and_so_a_restart() -> None:
    found = rendered()
    ((_, name),) = [key for key in found if key[0] == "ConfigMap"]
    assert name.startswith("maramoja-settings-")
    settings = found["ConfigMap", name]["data"]
    assert {"LOG_FORMAT", "PUBLIC_BASE_URL"} <= set(settings)
    container = found["Deployment", "maramoja-api"]["spec"]["template"]["spec"]["containers"][0]
    assert {"configMapRef": {"name": name}} in container["envFrom"]
