"""`flask invariants`: check what must always hold, and list and resolve violations."""

from __future__ import annotations

from uuid import UUID

import click

from payments_app.commands.group import GatewayGroup, actor
from payments_app.commands.parts import cipher
from payments_app.commands.report import Report, fields, table
from payments_app.integrity import violations
from payments_app.integrity.invariants import check_everything
from payments_app.payments.model import InvariantViolation
from payments_app.tenants.registry import find_tenant, list_tenants

invariants = GatewayGroup("invariants", help="Check what must hold, and resolve what broke it.")


@invariants.command("check", example="flask invariants check")
def check() -> Report:
    """Look at every payment and the whole record now, as is done each night.

    A break holds its tenant, unless it is open_payment_readable. The exit code is 1 while any is open, found now or before.
    """
    check_everything(cipher())
    return _report(None, resolved=False, judge=True)


@invariants.command("list", example="flask invariants list acme")
@click.argument("slug", required=False)
@click.option("--resolved", is_flag=True, help="Those too that were resolved.")
def list_all(slug: str | None, *, resolved: bool) -> Report:
    """List the breaks of the tenant SLUG, or of all, newest first."""
    return _report(slug, resolved=resolved)


@invariants.command("resolve", example="flask invariants resolve 7 --why 'refunded by hand'")
@click.argument("number", type=click.IntRange(1, 2**63 - 1))
@click.option("--why", required=True, help="What was found and done; kept in the audit trail.")
def resolve(number: int, why: str) -> Report:
    """Resolve the violation NUMBER. It is not reported again; the tenant stays held."""
    resolved = violations.resolve_violation(number, why=why, actor=actor())
    document = _document(resolved, {tenant.id: tenant.slug for tenant in list_tenants()})
    return Report(document, fields(document))


def _report(slug: str | None, *, resolved: bool, judge: bool = False) -> Report:
    tenant_id = find_tenant(slug).id if slug else None
    slugs = {tenant.id: tenant.slug for tenant in list_tenants()}
    found = violations.list_violations(tenant_id, resolved=resolved)
    documents = [_document(one, slugs) for one in found]
    rows = [
        (d["number"], d["tenant"], d["invariant"], d["subject"], d["detail"], d["resolution"] or "")
        for d in documents
    ]
    headings = ("NUMBER", "TENANT", "INVARIANT", "SUBJECT", "WHAT IS WRONG", "RESOLUTION")
    text = table(headings, rows, empty="Nothing is broken.")
    return Report({"data": documents}, text, well=not (judge and documents))


def _document(found: InvariantViolation, slugs: dict[UUID, str]) -> dict[str, object]:
    return {
        "number": found.id,
        "tenant": slugs.get(found.tenant_id, str(found.tenant_id)),
        "invariant": found.invariant,
        "subject": found.subject,
        "detail": found.detail,
        "found_at": found.found_at,
        "resolved_at": found.resolved_at,
        "resolution": found.resolution,
    }
