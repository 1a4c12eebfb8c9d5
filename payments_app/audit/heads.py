"""Publishes the newest hash (head) of each chain where a database superuser can't change it.

The heads go to the log, and to a file if one is set. `flask audit verify --heads` checks that each
head of the file is still in its chain: if not, the chain was rewritten.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Final, NamedTuple
from uuid import UUID

import orjson
import structlog
from sqlalchemy import text
from sqlalchemy.orm import Session

from payments_app.audit.chain import Fault, Problem, TamperDetected
from payments_app.kernel.clock import utc_now
from payments_app.kernel.database import EVERY_TENANT, transaction

log = structlog.get_logger(__name__)

# Reads the last entry of each chain, by its index.
_HEADS: Final = text(
    """
    SELECT t.id, e.position, encode(e.hash, 'hex') AS hash FROM tenants t CROSS JOIN LATERAL (
        SELECT position, hash FROM audit_entries
        WHERE tenant_id = t.id ORDER BY position DESC LIMIT 1
    ) e ORDER BY t.id
    """
)
# The first of the given heads, in their order, that is not in its chain.
_LOST: Final = text(
    """
    SELECT k.tenant::text, k.position, k.hash, encode(e.hash, 'hex') AS found,
           EXISTS (SELECT FROM tenants t WHERE t.id = k.tenant) AS has_tenant
    FROM unnest(CAST(:tenants AS uuid[]), CAST(:positions AS bigint[]), CAST(:hashes AS text[]))
        WITH ORDINALITY AS k (tenant, position, hash, number)
    LEFT JOIN audit_entries e ON e.tenant_id = k.tenant AND e.position = k.position
    WHERE encode(e.hash, 'hex') IS DISTINCT FROM k.hash
    ORDER BY k.number LIMIT 1
    """
)
_TABLE: Final = "audit_entries"
_AT_ONCE: Final = 1_000
_HASH: Final = re.compile("[0-9a-f]{64}")
# A position is a bigint.
_POSITION_MAX: Final = 2**63 - 1


class KeptHead(NamedTuple):
    """A published head: the hash that the entry at this position had then."""

    tenant_id: UUID
    position: int
    hash: str


class HeadPublisher:
    """Publishes each head that this process has not published yet."""

    def __init__(self) -> None:
        self._said: dict[UUID, str] = {}
        self._lock = threading.Lock()

    def publish(self, file: Path | None = None) -> int:
        """Write a line for each chain that has grown since the last call; returns how many.

        The first call writes all heads. A line goes to the log and to the end of the file. If the
        file can't be written, the heads are published again next time.
        """
        with self._lock:
            with transaction(EVERY_TENANT) as session:
                heads = [KeptHead(*row) for row in session.execute(_HEADS)]
            new = [head for head in heads if self._said.get(head.tenant_id) != head.hash]
            for head in new:
                log.info(
                    "audit.head",
                    audited_tenant_id=str(head.tenant_id),
                    position=head.position,
                    hash=head.hash,
                )
            if file is None or not new or _is_appended(file, new):
                self._said = {head.tenant_id: head.hash for head in heads}
        return len(new)


def _is_appended(file: Path, heads: Sequence[KeptHead]) -> bool:
    """Append the heads; whether they are on the disk. A full disk must not stop the checkpoints."""
    at = utc_now().isoformat()
    lines = b"".join(
        orjson.dumps({"at": at, **head._asdict()}, option=orjson.OPT_APPEND_NEWLINE)
        for head in heads
    )
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            # If a process died in the middle of a line, start a new line.
            size = os.fstat(descriptor).st_size
            begun = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
            _write(descriptor, b"\n" + lines if begun else lines)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        log.error("audit.heads_not_written", error=error.strerror)
        return False
    return True


def _write(descriptor: int, written: bytes) -> None:
    """Write in one piece if the system accepts it: other processes append to the same file."""
    while written:
        written = written[os.write(descriptor, written) :]


class HeadsUnreadable(ValueError):
    """A line of the file is not a head."""


def read_heads(lines: Iterable[str]) -> Iterator[KeptHead]:
    """The heads of such a file, one in each line. Raises HeadsUnreadable, which names the line.

    A last line without a line break is skipped: it was not written completely when it was read.
    """
    for number, line in enumerate(lines, start=1):
        if line.endswith("\n") and line.strip():
            yield _head_of(line, number)


def _head_of(line: str, number: int) -> KeptHead:
    try:
        said: Any = orjson.loads(line)
        tenant_id, position, own = UUID(said["tenant_id"]), said["position"], said["hash"]
        is_whole = bool(_HASH.fullmatch(own)) and type(position) is int
    except (KeyError, TypeError, AttributeError, ValueError):
        is_whole = False
    if not is_whole or not 0 < position <= _POSITION_MAX:
        raise HeadsUnreadable(f"line {number} is no head")
    return KeptHead(tenant_id, position, own)


def verify_kept_heads(session: Session, kept: Iterable[KeptHead]) -> None:
    """Check that each head is still the hash of the entry at its position.

    Raises TamperDetected at the first that is not; in the order of the file, so at the oldest.
    """
    left = iter(kept)
    while heads := list(islice(left, _AT_ONCE)):
        tenants, positions, hashes = map(list, zip(*heads, strict=True))
        values = {"tenants": tenants, "positions": positions, "hashes": hashes}
        lost = session.execute(_LOST, values).first()
        if lost is not None:
            raise TamperDetected(_fault(lost))


def _fault(lost: Any) -> Fault:
    row = f"position {lost.position}"
    if not lost.has_tenant:
        told = "a head of it was kept, and it was removed with all its entries"
        return Fault(lost.tenant, "tenants", f"id {lost.tenant}", Problem.MISSING, told)
    if lost.found is None:
        told = f"a head of it was kept, {lost.hash}, and it was removed with all after it"
        return Fault(lost.tenant, _TABLE, row, Problem.MISSING, told)
    told = f"a head of it was kept, {lost.hash}: it was written anew, with hashes that fit"
    return Fault(lost.tenant, _TABLE, row, Problem.ALTERED, told)
