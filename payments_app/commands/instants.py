"""An instant, as an operator types it: 2026-01-31, or 2026-01-31T12:00:00Z."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

import click

INSTANT: Final = click.DateTime(("%Y-%m-%d", "%Y-%m-%dT%H:%M:%SZ"))


def in_utc(instant: datetime | None) -> datetime | None:
    """A typed instant is UTC, whatever the machine's time zone is."""
    return instant and instant.replace(tzinfo=UTC)
