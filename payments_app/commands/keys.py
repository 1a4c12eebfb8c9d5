"""`flask keys`: the API keys of a tenant."""

from __future__ import annotations

import click

from payments_app.commands.group import GatewayGroup, actor
from payments_app.commands.report import Report, fields, table
from payments_app.providers.contract import Mode
from payments_app.tenants.keys import IssuedKey, issue_key, list_keys, revoke_key
from payments_app.tenants.model import ApiKey
from payments_app.tenants.registry import find_tenant

keys = GatewayGroup("keys", help="Issue, list and revoke API keys.")


@keys.command("issue", example="flask keys issue acme --mode test --name 'CI'")
@click.argument("slug")
@click.option(
    "--mode",
    type=click.Choice([mode.value for mode in Mode]),
    default=Mode.LIVE.value,
    show_default=True,
    help="A test key can't reach an account that moves real money.",
)
@click.option("--name", default="", help="What the key is for.")
def issue(slug: str, mode: str, name: str) -> Report:
    """Issue an API key for the tenant SLUG. It is shown now and never again."""
    issued = issue_key(find_tenant(slug), mode=Mode(mode), name=name, actor=actor())
    document = {
        "id": issued.id,
        "prefix": issued.prefix,
        "key": issued.key,
        "mode": issued.mode.value,
        "name": issued.name,
        "created_at": issued.created_at,
    }
    return Report(document, _shown_once(issued))


@keys.command("list", example="flask keys list acme")
@click.argument("slug")
def list_all(slug: str) -> Report:
    """List the API keys of the tenant SLUG, newest first, revoked ones too."""
    documents = [_document(key) for key in list_keys(find_tenant(slug))]
    headings = ("PREFIX", "MODE", "NAME", "CREATED", "REVOKED", "ID")
    rows = [
        (d["prefix"], d["mode"], d["name"], d["created_at"], d["revoked_at"], d["id"])
        for d in documents
    ]
    text = table(headings, rows, empty=f"{slug} has no API keys yet.")
    return Report({"data": documents}, text)


@keys.command("revoke", example="flask keys revoke mara_live_aP1cCV6BrT")
@click.argument("key_id")
def revoke(key_id: str) -> Report:
    """Revoke an API key, at once. KEY_ID: its id or its prefix."""
    document = _document(revoke_key(key_id, actor=actor()))
    return Report(document, fields(document))


def _shown_once(issued: IssuedKey) -> str:
    rows = {"id": issued.id, "prefix": issued.prefix, "mode": issued.mode, "key": issued.key}
    return f"{fields(rows)}\n\nKeep the key now: it is stored nowhere and can't be shown again."


def _document(key: ApiKey) -> dict[str, object]:
    return {
        "id": key.id,
        "prefix": key.prefix,
        "mode": key.mode,
        "name": key.name,
        "created_at": key.created_at,
        "revoked_at": key.revoked_at,
    }
