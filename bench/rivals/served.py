"""How gunicorn serves a rival: as it serves ours, without the hooks that are about our app."""

from __future__ import annotations

from pathlib import Path

exec((Path(__file__).parents[2] / "gunicorn.conf.py").read_text())  # noqa: S102  it is ours


def on_starting(_server: object) -> None:
    """Ours would try our app's settings."""


def child_exit(_server: object, _worker: object) -> None:
    """Ours would gather our app's counts."""


def on_exit(_server: object) -> None:
    """Ours would remove them."""
