"""Which events an endpoint is told of: `payment.successful`, `payment.*`, `*`. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

PATTERNS_MAX: Final = 20
EVERYTHING: Final = ("*",)
# Sent when asked for, whatever the endpoint is told of otherwise.
TEST_EVENT: Final = "webhook.test"
# All that there are, as docs/webhooks.md explains them.
TYPES: Final = (
    "payment.accepted",
    "payment.pending",
    "payment.unknown",
    "payment.successful",
    "payment.failed",
    "payment.contradicted",
    TEST_EVENT,
)
# What an endpoint may ask for; a star stands for the rest of a name.
PATTERNS: Final = ("*", "payment.*", "webhook.*", *TYPES)


def matches(patterns: Iterable[str], event_type: str) -> bool:
    """Whether one of them covers the type."""
    return any(
        pattern == event_type
        or (pattern.endswith("*") and event_type.startswith(pattern.removesuffix("*")))
        for pattern in patterns
    )
