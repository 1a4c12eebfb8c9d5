"""The hash of an event's content: what it says and what of its payment it covers. Pure.

It is separate from the event's own hash, which chains it to the one before. That hash is unchanged,
so rows of earlier releases still verify, and earlier releases can still verify rows.
"""

from __future__ import annotations

from typing import Final

from payments_app.audit.chain import chain_hash

# The prefix of the hashed fields.
CONTENTS: Final = "event_contents"
# The fields of an event `e`, hashed after its own hash; all as text.
CONTENT_FIELDS: Final = (
    "e.event_id::text, e.mode, e.position::text, encode(e.feed_data, 'hex'), e.covers"
)


def content_hash(own_hash: str | None, *fields: str | None) -> str:
    """In hex. `fields`: CONTENT_FIELDS."""
    return chain_hash(CONTENTS, own_hash, *fields)
