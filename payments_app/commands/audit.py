"""`flask audit`: who changed what."""

from __future__ import annotations

import json
from typing import Final

import click

from payments_app.audit.model import AuditEntry
from payments_app.audit.queries import latest_entries
from payments_app.commands.group import GatewayGroup
from payments_app.commands.report import Report, table
from payments_app.tenants.registry import find_tenant

# One screen's worth many times over, and never the whole table.
LIMIT_MAX: Final = 1000

audit = GatewayGroup("audit", help="Read the trail of administrative changes.")


@audit.command("list", example="flask audit list acme --limit 100")
@click.argument("slug")
@click.option("--limit", type=click.IntRange(1, LIMIT_MAX), default=50, show_default=True)
def list_latest(slug: str, limit: int) -> Report:
    """List what was changed for the tenant SLUG, newest first."""
    documents = [_document(entry) for entry in latest_entries(find_tenant(slug).id, limit=limit)]
    rows = [
        (d["created_at"], d["actor"], d["action"], json.dumps(d["detail"], ensure_ascii=False))
        for d in documents
    ]
    text = table(("WHEN", "WHO", "WHAT", "DETAIL"), rows, empty="Nothing was changed yet.")
    return Report({"data": documents}, text)


def _document(entry: AuditEntry) -> dict[str, object]:
    return {
        "id": entry.id,
        "created_at": entry.created_at,
        "actor": entry.actor,
        "action": entry.action,
        "subject_type": entry.subject_type,
        "subject_id": entry.subject_id,
        "request_id": entry.request_id,
        "detail": entry.detail,
    }
