"""Examples have no deadline: on a machine under load, a slow example proves nothing."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("house", deadline=None, max_examples=60)
settings.load_profile("house")
