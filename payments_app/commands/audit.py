"""`flask audit`: list what was changed and by whom, and verify that the record is unaltered."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Final, TextIO
from uuid import UUID

import click

from payments_app.audit.chain import Fault
from payments_app.audit.heads import HeadsUnreadable, KeptHead, read_heads
from payments_app.audit.model import SEALED, AuditEntry
from payments_app.audit.queries import latest_entries
from payments_app.commands.group import GatewayGroup
from payments_app.commands.instants import INSTANT, in_utc
from payments_app.commands.report import Lines, Report, table
from payments_app.integrity.verification import (
    Part,
    Verdict,
    export_record,
    rows_to_walk,
    verify_record,
)
from payments_app.tenants.registry import find_tenant, list_tenants

# Many screens of entries, but never the whole table.
LIMIT_MAX: Final = 1000
_HASH: Final = re.compile(r"[0-9a-f]{64}")

audit = GatewayGroup("audit", help="Read, verify and export the record of what was changed.")


@audit.command("list", example="flask audit list acme --limit 100")
@click.argument("slug")
@click.option("--limit", type=click.IntRange(1, LIMIT_MAX), default=50, show_default=True)
@click.option(
    "--seals",
    is_flag=True,
    help="The checkpoints of payments' events too, which no person has made.",
)
def list_latest(slug: str, limit: int, *, seals: bool) -> Report:
    """List what was changed for the tenant SLUG, newest first."""
    without = () if seals else (SEALED,)
    found = latest_entries(find_tenant(slug).id, limit=limit, without=without)
    documents = [_document(entry) for entry in found]
    rows = [
        (d["created_at"], d["actor"], d["source"], d["action"], _one_line(d["detail"]))
        for d in documents
    ]
    headings = ("WHEN", "WHO", "FROM", "WHAT", "DETAIL")
    return Report({"data": documents}, table(headings, rows, empty="Nothing was changed yet."))


@audit.command("verify", example="flask audit verify acme")
@click.argument("slug", required=False)
@click.option("--head", "heads", metavar="HASH", multiple=True, help="Must still be in the chain.")
@click.option(
    "--heads",
    "file",
    type=click.File(),
    help="What AUDIT_HEADS_FILE names, or a copy: all of it must still be in the chains.",
)
def verify(slug: str | None, heads: tuple[str, ...], file: TextIO | None) -> Report:
    """Walk every chain, of the tenant SLUG or of all, and name the first bad row.

    The heads that it prints are worth keeping elsewhere: given with --head, each proves that
    nothing up to it has changed since. --heads takes a file of them, as a worker writes it, and
    names what was removed: the newest entries, or a tenant with all its rows.
    """
    sought = [_hash(head) for head in heads]
    tenant_id = find_tenant(slug).id if slug else None
    kept = _KeptHeads(file, tenant_id)
    with _progress(tenant_id) as on_row:
        verdict = verify_record(tenant_id, sought=sought, kept=kept, on_row=on_row)
    slugs = {str(tenant.id): tenant.slug for tenant in list_tenants()}
    if verdict.fault is not None:
        return _bad(verdict.fault, slugs)
    if file is not None and kept.count == 0:
        whose = f" of {slug}" if slug else ""
        raise click.BadParameter(f"the file holds no head{whose}", param_hint="--heads")
    return _good(verdict, slugs, len(sought) + kept.count)


@audit.command("export", example="flask audit export acme --since 2026-11-01 --events")
@click.argument("slug", required=False)
@click.option("--since", type=INSTANT, help="From this instant on, in UTC.")
@click.option("--until", type=INSTANT, help="Before this instant, in UTC.")
@click.option("--events", is_flag=True, help="The payments' events too.")
def export(slug: str | None, since: datetime | None, until: datetime | None, events: bool) -> Lines:  # noqa: FBT001  click gives it
    """Write the entries of the tenant SLUG, or of all, one JSON document a line, with hashes."""
    part = Part(find_tenant(slug).id if slug else None, in_utc(since), in_utc(until))
    return Lines(export_record(part, events=events))


class _KeptHeads:
    """The heads in a file, of one tenant or of all, counted while they are read."""

    def __init__(self, file: TextIO | None, tenant_id: UUID | None) -> None:
        self._file, self._tenant_id = file, tenant_id
        self.count = 0

    def __iter__(self) -> Iterator[KeptHead]:
        try:
            for head in read_heads(self._file or ()):
                if self._tenant_id in (None, head.tenant_id):
                    self.count += 1
                    yield head
        except (HeadsUnreadable, UnicodeDecodeError) as error:
            raise click.BadParameter(str(error), param_hint="--heads") from None


def _good(verdict: Verdict, slugs: dict[str, str], kept: int) -> Report:
    tenants = [
        {
            "tenant": slugs.get(found.tenant_id, found.tenant_id),
            "entries": found.entries,
            "events": found.events,
            "head": found.head,
        }
        for found in verdict.tenants
    ]
    document = {"whole": True, "tenants": tenants, "seals": verdict.seals, "fault": None}
    rows = [list(tenant.values()) for tenant in tenants]
    if not rows:
        return Report(document, "There is no record yet: nothing was changed.")
    lines = [table(("TENANT", "ENTRIES", "EVENTS", "HEAD"), rows, empty="")]
    if kept:
        lines.append(f"Still in the chain: {kept} heads that were kept.")
    lines.append(f"The record is whole. Checkpoints: {verdict.seals}. Keep the heads elsewhere.")
    return Report(document, "\n".join(lines))


def _bad(fault: Fault, slugs: dict[str, str]) -> Report:
    tenant = slugs.get(fault.tenant_id, fault.tenant_id) or None
    told = {
        "tenant": tenant,
        "table": fault.table,
        "row": fault.row,
        "problem": fault.problem.value,
        "detail": fault.detail,
    }
    document = {"whole": False, "tenants": [], "seals": None, "fault": told}
    whose = f", tenant {tenant}" if tenant else ""
    text = f"NOT WHOLE: {fault.table}, {fault.row}{whose}: {fault.problem.value}: {fault.detail}"
    return Report(document, text, well=False)


@contextmanager
def _progress(tenant_id: UUID | None) -> Iterator[Callable[[], None]]:
    """Show a progress bar on a terminal, and nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda: None
        return
    total = rows_to_walk(tenant_id)
    with click.progressbar(
        length=total, label="Verifying", file=sys.stderr, update_min_steps=1000
    ) as bar:
        yield lambda: bar.update(1)


def _hash(text: str) -> str:
    if _HASH.fullmatch(text.lower()) is None:
        raise click.BadParameter("a head has 64 hexadecimal digits", param_hint="--head")
    return text.lower()


def _one_line(detail: object) -> str:
    return json.dumps(detail, ensure_ascii=False)


def _document(entry: AuditEntry) -> dict[str, object]:
    return {
        "id": entry.id,
        "created_at": entry.created_at,
        "actor": entry.actor,
        "source": entry.source,
        "action": entry.action,
        "subject_type": entry.subject_type,
        "subject_id": entry.subject_id,
        "request_id": entry.request_id,
        "detail": entry.detail,
        "position": entry.position,
        "hash": entry.hash.hex(),
    }
