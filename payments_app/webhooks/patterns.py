"""The event types that an endpoint subscribes to: `payment.successful`, `payment.*`, `*`. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

PATTERNS_MAX: Final = 20
EVERYTHING: Final = ("*",)
# Sent on request, whatever the endpoint subscribes to.
TEST_EVENT: Final = "webhook.test"
# All event types but `feed.restored` (feed.py), as docs/webhooks.md explains them.
TYPES: Final = (
    "payment.accepted",
    "payment.pending",
    "payment.unknown",
    "payment.successful",
    "payment.failed",
    "payment.contradicted",
    TEST_EVENT,
)
# What an endpoint may subscribe to; a star matches the rest of a name.
PATTERNS: Final = ("*", "payment.*", "webhook.*", *TYPES)


def matches(patterns: Iterable[str], event_type: str) -> bool:
    """Whether one of the patterns matches the type."""
    return any(
        pattern == event_type
        or (pattern.endswith("*") and event_type.startswith(pattern.removesuffix("*")))
        for pattern in patterns
    )
