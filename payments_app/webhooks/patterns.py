"""Which events an endpoint is told of: `payment.successful`, `payment.*`, `*`. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

# What an endpoint may ask for; a star stands for the rest of the name.
PATTERN: Final = r"^(\*|[a-z_]{1,40}(\.[a-z_]{1,40}){0,3}(\.\*)?)$"
PATTERNS_MAX: Final = 20
EVERYTHING: Final = ("*",)
# Sent when asked for, whatever the endpoint is told of otherwise.
TEST_EVENT: Final = "webhook.test"


def is_pattern(text: str) -> bool:
    """Whether it has the form."""
    return re.fullmatch(PATTERN.removeprefix("^").removesuffix("$"), text) is not None


def matches(patterns: Iterable[str], event_type: str) -> bool:
    """Whether one of them covers the type."""
    return any(
        pattern == event_type
        or (pattern.endswith("*") and event_type.startswith(pattern.removesuffix("*")))
        for pattern in patterns
    )
