"""How the record is chained: each row's hash is made from its fields and the hash before it. Pure.

The database's trigger (migration 0004) makes the same hashes; this needs none of its functions.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

# What stands before a tenant's first entry.
BEGINNING: Final = "00" * 32
# An instant as it is hashed: microseconds since 1970, without a fraction.
MICROSECONDS: Final = "trunc(extract(epoch FROM {}) * 1000000)::text"


class Problem(StrEnum):
    """What can be wrong with a row of the record."""

    ALTERED = "altered"
    MISSING = "missing"
    INSERTED = "inserted"
    BROKEN_LINK = "broken_link"


@dataclass(frozen=True, slots=True)
class Fault:
    """The first row that isn't as it was written. `row` names it within its table."""

    tenant_id: str
    table: str
    row: str
    problem: Problem
    detail: str


class TamperDetected(Exception):
    """The record isn't as it was written."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.detail)
        self.fault = fault


def chain_hash(*fields: str | None) -> str:
    """The SHA-256, in hex, of the fields one after the other, each behind its length.

    The length is in characters; None is a hyphen. So no two lists of fields give one text.
    """
    text = "".join(["-" if field is None else f"{len(field)}:{field}" for field in fields])
    return hashlib.sha256(text.encode()).hexdigest()
