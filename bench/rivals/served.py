"""gunicorn's settings for a rival: as for ours, without the hooks that need our app."""

from __future__ import annotations

from pathlib import Path

exec((Path(__file__).parents[2] / "gunicorn.conf.py").read_text())  # noqa: S102  it is ours


def on_starting(_server: object) -> None:
    """Replaces our hook, which checks our app's settings."""


def child_exit(_server: object, _worker: object) -> None:
    """Replaces our hook, which merges our app's metrics."""


def on_exit(_server: object) -> None:
    """Replaces our hook, which deletes our app's metrics."""
