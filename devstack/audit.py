"""`make audit`: whether any pinned requirement has a known vulnerability.

Queries PyPI's advisory service through pip-audit. A finding fails. If the service can't be reached,
the audit reports that and does not pass, but fails only with AUDIT=required.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click

from devstack.programs import ROOT

# What is installed in production; development tools process no untrusted input.
REQUIREMENTS: Final = ROOT / "requirements.txt"
# Limit for each response of the service; a proxy that drops packets must not block a build.
ANSWER_MAX_S: Final = 10
WHOLE_MAX_S: Final = 180
# EX_TEMPFAIL: there is no result. devstack/checks.py shows it as neither passed nor failed.
NOT_DONE: Final = 75
# Errors of pip-audit and requests when the service does not answer, or a proxy answers instead.
_AWAY: Final = (
    "ConnectionError",
    "connection error",
    "Connection refused",
    "Could not connect",
    "Failed to resolve",
    "Max retries exceeded",
    "ProxyError",
    "timed out",
    "Name or service not known",
)


@dataclass(frozen=True)
class Verdict:
    """The result: an exit code, and the lines to print."""

    code: int
    lines: tuple[str, ...]


def audit(requirements: Path, *, required: bool, service: str | None = None) -> Verdict:
    """Audit every pin in the file. `service`: another address than PyPI's (OSV's form)."""
    chosen = () if service is None else ("--vulnerability-service", "osv", "--osv-url", service)
    command = [
        *(sys.executable, "-m", "pip_audit", "--requirement", str(requirements)),
        # The file pins all packages, so nothing is resolved or installed.
        *("--no-deps", "--disable-pip", "--progress-spinner", "off"),
        *("--format", "json", "--timeout", str(ANSWER_MAX_S), *chosen),
    ]
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=WHOLE_MAX_S, check=False
        )
    except subprocess.TimeoutExpired:
        return _not_done(f"it took more than {WHOLE_MAX_S} s", required=required)
    if done.stdout.lstrip().startswith("{"):
        found = json.loads(done.stdout)["dependencies"]
        if found and all("skip_reason" in one for one in found):
            why = "it knows none of the packages, as a mirror without advisories does"
            return _not_done(why, required=required)
        return judged(found)
    if any(sign in done.stderr for sign in _AWAY):
        last = done.stderr.strip().splitlines()[-1][:200]
        return _not_done(last, required=required)
    return Verdict(1, ("pip-audit failed:", *done.stderr.strip().splitlines()[-10:]))


def judged(dependencies: list[dict[str, Any]]) -> Verdict:
    """List the vulnerabilities of each package, and the packages that were not audited."""
    findings = [
        f"{found['name']} {found['version']}: {flaw['id']}"
        f" {' '.join(flaw.get('aliases', ()))}; mended in {_mended(flaw)}"
        for found in dependencies
        for flaw in found.get("vulns", ())
    ]
    unseen = [
        f"{found['name']} was not looked at: {found['skip_reason']}"
        for found in dependencies
        if "skip_reason" in found
    ]
    if not dependencies:
        unseen = ["no requirement was looked at"]
    if findings or unseen:
        return Verdict(1, (*findings, *unseen))
    return Verdict(0, (f"{len(dependencies)} pinned packages, none with a known vulnerability",))


def _mended(flaw: dict[str, Any]) -> str:
    return ", ".join(flaw.get("fix_versions", ())) or "no version yet"


def _not_done(why: str, *, required: bool) -> Verdict:
    lines = (
        "NOT DONE: the advisory service could not be reached, so nothing is known.",
        f"  {why}",
        "  Run `make audit` where there is a network; AUDIT=required makes this a failure.",
    )
    return Verdict(1 if required else NOT_DONE, lines)


@click.command()
def main() -> None:
    """Audit requirements.txt."""
    verdict = audit(REQUIREMENTS, required=os.environ.get("AUDIT") == "required")
    click.echo("\n".join(verdict.lines))
    sys.exit(verdict.code)


if __name__ == "__main__":
    main()
