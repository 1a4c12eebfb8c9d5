"""gunicorn's settings for `accept_cost --of sealing`: as ever, but nothing is encrypted.

Values are as long as they would be, so that the database has as much to write.
"""

from __future__ import annotations

import hashlib
import importlib
from pathlib import Path
from typing import Any

exec((Path(__file__).parents[1] / "gunicorn.conf.py").read_text())  # noqa: S102  it is ours

SEAL_BYTES = 28


def post_fork(_server: object, _worker: object) -> None:
    """Before the worker loads the app."""
    box = importlib.import_module("payments_app.kernel.vault").Box
    for name, method in (
        ("__init__", _init),
        ("seal", _seal),
        ("open", _open),
        ("digest", _digest),
    ):
        setattr(box, name, method)


def _init(_box: Any, _key: bytes) -> None: ...


def _seal(_box: Any, plain: bytes, *, about: str) -> bytes:  # noqa: ARG001  as a box has it
    return bytes(SEAL_BYTES) + plain


def _open(_box: Any, sealed: bytes, *, about: str) -> bytes:  # noqa: ARG001  as a box has it
    return sealed[SEAL_BYTES:]


def _digest(_box: Any, plain: bytes, *, about: str) -> bytes:  # noqa: ARG001  as a box has it
    return hashlib.sha256(plain).digest()
