"""All settings of the gateway's environment: each name that a deploy file sets must be one."""

from __future__ import annotations

import re
from pathlib import Path

from devstack.programs import ROOT

# Without these no program starts.
REQUIRED = {"DATABASE_URL", "REDIS_URL", "SECRET_KEYS"}
# gunicorn's own, documented below the table, and those that Python itself reads.
OTHERS = {"PORT", "WEB_CONCURRENCY", "DRAIN_SECONDS", "PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED"}
# The ports of the probes of worker and beat.
PORTS = {"WORKER_PORT", "BEAT_PORT"}
# Read by OpenTelemetry itself, documented in a section of their own.
TRACES = {
    "OTEL_SERVICE_NAME",
    "OTEL_TRACES_SAMPLER",
    "OTEL_TRACES_SAMPLER_ARG",
    "OTEL_EXPORTER_OTLP_HEADERS",
}


def known_settings() -> set[str]:
    """The rows of docs/settings.md (another test compares them with the code), and those above."""
    page = (ROOT / "docs/settings.md").read_text()
    return set(re.findall(r"^\| `([A-Z_]+)` \|", page, re.MULTILINE)) | OTHERS | PORTS | TRACES


def env_file(path: Path) -> dict[str, str]:
    """The pairs of a file of NAME=value lines."""
    lines = path.read_text().splitlines()
    pairs = (line.partition("=") for line in lines if line and not line.startswith("#"))
    return {name: value for name, _, value in pairs}
