"""The hash chain: each row's hash covers its fields and the hash of the row before it. Pure.

The database's trigger (migration 0004) makes the same hashes. This code does not use its functions.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

# The previous hash of a tenant's first entry.
BEGINNING: Final = "00" * 32
# The hashed form of an instant: whole microseconds since 1970.
MICROSECONDS: Final = "trunc(extract(epoch FROM {}) * 1000000)::text"


class Problem(StrEnum):
    """The kinds of tampering with a row."""

    ALTERED = "altered"
    MISSING = "missing"
    INSERTED = "inserted"
    BROKEN_LINK = "broken_link"


@dataclass(frozen=True, slots=True)
class Fault:
    """The first row that is not as it was written. `row` names it within its table."""

    tenant_id: str
    table: str
    row: str
    problem: Problem
    detail: str


class TamperDetected(Exception):
    """A row of the audit trail or of a compared table is not as it was written."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.detail)
        self.fault = fault


def chain_hash(*fields: str | None) -> str:
    """The SHA-256, in hex, of the concatenated fields, each with its length before it.

    The length is in characters; None is a hyphen. So no two lists of fields give the same text.
    """
    text = "".join(["-" if field is None else f"{len(field)}:{field}" for field in fields])
    return hashlib.sha256(text.encode()).hexdigest()
