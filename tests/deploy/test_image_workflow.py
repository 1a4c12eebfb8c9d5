"""The published image is the scanned one: one build, and its digest in every step."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from devstack.programs import ROOT

JOBS: dict[str, Any] = yaml.safe_load((ROOT / ".github/workflows/image.yml").read_text())["jobs"]
TARGETS = {"gateway": "", "backup": "-backup"}
BUILT = "ghcr.io/${{ github.repository }}${{ matrix.suffix }}@${{ matrix.digest }}"


def steps_with(job: str, action: str) -> list[dict[str, Any]]:
    """The settings of the job's steps that use this action."""
    steps = JOBS[job]["steps"]
    return [step for step in steps if step.get("uses", "").startswith(f"{action}@")]


def test_each_image_is_built_once_and_has_no_name_before_it_is_scanned() -> None:
    builds = {step["id"]: step["with"] for step in steps_with("build", "docker/build-push-action")}
    assert set(builds) == set(TARGETS)
    for target, given in builds.items():
        assert given["target"] == target
        pushed = dict(pair.split("=", 1) for pair in given["outputs"].split(","))
        assert pushed == {
            "type": "image",
            "name": "ghcr.io/${{ github.repository }}" + TARGETS[target],
            "push-by-digest": "true",
            "name-canonical": "true",
            "push": "true",
        }
        assert not {"tags", "push"} & set(given)
        assert JOBS["build"]["outputs"][target] == f"${{{{ steps.{target}.outputs.digest }}}}"
    assert not steps_with("publish", "docker/build-push-action")
    assert not steps_with("scan", "docker/build-push-action")


def test_what_is_scanned_signed_and_named_is_that_digest() -> None:
    assert JOBS["scan"]["needs"] == "build"
    assert JOBS["publish"]["needs"] == ["build", "scan"]
    assert [one["with"]["image"] for one in steps_with("scan", "anchore/scan-action")] == [BUILT]
    assert [one["with"]["image"] for one in steps_with("publish", "anchore/sbom-action")] == [BUILT]
    for job in ("scan", "publish"):
        images = [s["env"]["IMAGE"] for s in JOBS[job]["steps"] if "IMAGE" in s.get("env", {})]
        assert images
        assert set(images) == {BUILT}
        matrix = JOBS[job]["strategy"]["matrix"]["include"]
        assert {one["target"]: one["suffix"] for one in matrix} == TARGETS
        for one in matrix:
            assert one["digest"] == f"${{{{ needs.build.outputs.{one['target']} }}}}"


def test_a_name_that_leads_elsewhere_fails_the_job() -> None:
    naming = JOBS["publish"]["steps"][-1]
    assert naming["env"]["DIGEST"] == "${{ matrix.digest }}"
    assert re.search(r'imagetools create --tag "\$tag" "\$IMAGE"\n', naming["run"])
    assert '[ "$named" = "$DIGEST" ] ||' in naming["run"]


def test_a_proposal_is_scanned_and_never_pushed() -> None:
    assert JOBS["proposed"]["if"] == "github.event_name == 'pull_request'"
    assert JOBS["build"]["if"] == "github.event_name != 'pull_request'"
    assert JOBS["proposed"]["permissions"] == {"contents": "read"}
    (build,) = steps_with("proposed", "docker/build-push-action")
    (scan,) = steps_with("proposed", "anchore/scan-action")
    assert build["with"]["load"] is True
    assert build["with"]["tags"] == scan["with"]["image"]


@pytest.mark.parametrize("job", ["proposed", "scan"])
def test_each_image_that_is_scanned_has_started(job: str) -> None:
    (start,) = [one for one in JOBS[job]["steps"] if "WORKS" in one.get("env", {})]
    (scan,) = steps_with(job, "anchore/scan-action")
    assert start["env"]["IMAGE"] == scan["with"]["image"]
    works = {one["target"]: one["works"] for one in JOBS[job]["strategy"]["matrix"]["include"]}
    assert set(works) == set(TARGETS)
    assert scan["with"]["only-fixed"] is True
    assert scan["with"]["severity-cutoff"] == "high"
