"""gunicorn's settings for `accept_cost --of metrics`: the usual, but workers record no metrics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

exec((Path(__file__).parents[1] / "gunicorn.conf.py").read_text())  # noqa: S102  it is ours

from prometheus_client import Counter, Gauge, Histogram  # noqa: E402  which looks at what that has set


def post_fork(_server: object, _worker: object) -> None:
    """Replace the instruments' methods before the worker loads the app."""
    for kind in (Counter, Gauge, Histogram):
        for name in ("inc", "dec", "set", "observe"):
            setattr(kind, name, _nothing)
        kind.labels = _itself  # type: ignore[assignment, method-assign]


def _nothing(*_words: Any, **_options: Any) -> None: ...


def _itself(instrument: Any, *_words: Any, **_options: Any) -> Any:
    return instrument
