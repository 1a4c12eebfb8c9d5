"""What the attacks begin with: a victim and its intruders, made once; the attacks only read it."""

from __future__ import annotations

import pytest
from flask import Flask

from tests.wall.scene import Scene, set_up


@pytest.fixture(scope="module")
def scene(app: Flask) -> Scene:
    """A victim with payments, and who is after them."""
    return set_up(app)
