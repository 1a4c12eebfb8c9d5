"""The newest entry's hash of each chain, published where a superuser of the database can't take it back.

In the log, and in a file if one is set. `flask audit verify --heads` finds each of the file in the chains,
or they are not the ones that they were.
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

# A look at the end of each chain, by its index.
_HEADS: Final = text(
    """
    SELECT t.id, e.position, encode(e.hash, 'hex') AS hash FROM tenants t CROSS JOIN LATERAL (
        SELECT position, hash FROM audit_entries
        WHERE tenant_id = t.id ORDER BY position DESC LIMIT 1
    ) e ORDER BY t.id
    """
)
# The first of these heads, in their order, that is not in its chain.
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
    """A head that was published: the hash of the entry that had this position then."""

    tenant_id: UUID
    position: int
    hash: str


class HeadPublisher:
    """Publishes each head that this process has not published yet."""

    def __init__(self) -> None:
        self._said: dict[UUID, str] = {}
        self._lock = threading.Lock()

    def publish(self, file: Path | None = None) -> int:
        """A line for each chain that has grown since; how many. All of them at first.

        To the log, and at the end of the file. What could not be written there is published again.
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
    """Whether they are on the disk. Sealing goes on without: a full disk there must not end it."""
    at = utc_now().isoformat()
    lines = b"".join(
        orjson.dumps({"at": at, **head._asdict()}, option=orjson.OPT_APPEND_NEWLINE)
        for head in heads
    )
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            # A process that died in the middle of a line leaves it for itself.
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
    """In one piece wherever the system takes it so: other processes append to the same file."""
    while written:
        written = written[os.write(descriptor, written) :]


class HeadsUnreadable(ValueError):
    """A line of the file is no head."""


def read_heads(lines: Iterable[str]) -> Iterator[KeptHead]:
    """The heads of such a file, a line each. Raises HeadsUnreadable, which names the line.

    A last line without its end is one that is being written, or was when the file was copied.
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
    """That each is still the hash of the entry at its place. Raises TamperDetected at the first that isn't.

    In the order of the file, and so at the oldest.
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
