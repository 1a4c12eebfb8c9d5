"""Standard Webhooks 1.0.0, symmetric: signs a delivery, so that a receiver can verify it. Pure.

https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

from standardwebhooks import Webhook

_PREFIX: Final = "whsec_"
SECRET_BYTES: Final = 32
# The limits of the specification.
SECRET_BYTES_MIN: Final = 24
SECRET_BYTES_MAX: Final = 64


def new_secret() -> str:
    """`whsec_` and 32 random bytes in base64."""
    return _PREFIX + base64.b64encode(os.urandom(SECRET_BYTES)).decode()


def is_secret(text: str) -> bool:
    """Whether it is 24 to 64 bytes in base64, with the prefix or without."""
    try:
        length = len(base64.b64decode(text.removeprefix(_PREFIX), validate=True))
    except ValueError:
        return False
    return SECRET_BYTES_MIN <= length <= SECRET_BYTES_MAX


def signed_headers(
    secrets: Sequence[str], *, message_id: str, timestamp: int, body: bytes
) -> dict[str, str]:
    """The three headers. `timestamp`: seconds since 1970, of this attempt.

    One signature for each of `secrets`: during a rotation a receiver may still use the old one.
    """
    sent_at = datetime.fromtimestamp(timestamp, tz=UTC)
    signatures = [Webhook(secret).sign(message_id, sent_at, body.decode()) for secret in secrets]
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(signatures),
    }
