"""The hash of what an event says and covers. Pure.

Beside the event's own hash, which chains it to the one before: that stays as it was, so that rows of
earlier releases, and those releases themselves, verify as ever.
"""

from __future__ import annotations

from typing import Final

from payments_app.audit.chain import chain_hash

# What stands before the fields in the hash.
CONTENTS: Final = "event_contents"
# Of an event `e`, behind its own hash; all as text.
CONTENT_FIELDS: Final = (
    "e.event_id::text, e.mode, e.position::text, encode(e.feed_data, 'hex'), e.covers"
)


def content_hash(own_hash: str | None, *fields: str | None) -> str:
    """In hex. `fields`: CONTENT_FIELDS."""
    return chain_hash(CONTENTS, own_hash, *fields)
