"""`flask keys`: the API keys of a tenant."""

from __future__ import annotations

from datetime import timedelta
from ipaddress import IPv4Network, IPv6Network
from typing import Final

import click

from payments_app.commands.durations import Duration
from payments_app.commands.group import GatewayGroup, actor
from payments_app.commands.networks import Network
from payments_app.commands.report import Report, fields, table
from payments_app.providers.contract import Mode
from payments_app.tenants.keys import (
    IssuedKey,
    NewKey,
    issue_key,
    list_keys,
    revoke_key,
    rotate_key,
)
from payments_app.tenants.model import ApiKey
from payments_app.tenants.registry import find_tenant
from payments_app.tenants.scopes import Scope, read_scopes

# The shortest that can be said: a successor that is over at once is a slip.
_LIFE_MIN: Final = timedelta(minutes=1)

keys = GatewayGroup("keys", help="Issue, list, rotate and revoke API keys.")


@keys.command(
    "issue", example="flask keys issue acme --name till --scope payments:write --expires-in 90d"
)
@click.argument("slug")
@click.option(
    "--mode",
    type=click.Choice([mode.value for mode in Mode]),
    default=Mode.LIVE.value,
    show_default=True,
    help="A test key can't reach an account that moves real money.",
)
@click.option("--name", default="", help="What the key is for.")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    help=f"What it may do, given once for each; all if left out. One of {', '.join(Scope)}.",
)
@click.option(
    "--network",
    "networks",
    type=Network(),
    multiple=True,
    help="From where it may be used, given once for each; from anywhere if left out.",
)
@click.option("--expires-in", type=Duration(), help="For how long: 90d, 24h, 15m.")
def issue(
    slug: str,
    mode: str,
    name: str,
    scopes: tuple[str, ...],
    networks: tuple[IPv4Network | IPv6Network, ...],
    expires_in: timedelta | None,
) -> Report:
    """Issue an API key for the tenant SLUG. It is shown now and never again."""
    wanted = NewKey(
        mode=Mode(mode),
        name=name,
        scopes=read_scopes(scopes),
        networks=networks,
        lifetime=expires_in,
    )
    issued = issue_key(find_tenant(slug), wanted, actor=actor())
    return Report(_issued_document(issued), _shown_once(issued))


@keys.command("list", example="flask keys list acme")
@click.argument("slug")
def list_all(slug: str) -> Report:
    """List the API keys of the tenant SLUG, newest first, revoked ones too."""
    documents = [_document(key) for key in list_keys(find_tenant(slug))]
    headings = ("PREFIX", "MODE", "NAME", "CREATED", "EXPIRES", "LAST USED", "REVOKED", "ID")
    names = ("prefix", "mode", "name", "created_at", "expires_at", "last_used_at", "revoked_at")
    rows = [(*(document[name] for name in names), document["id"]) for document in documents]
    text = table(headings, rows, empty=f"{slug} has no API keys yet.")
    return Report({"data": documents}, text)


@keys.command("rotate", example="flask keys rotate mara_live_aP1cCV6BrT --overlap 24h")
@click.argument("key_id")
@click.option(
    "--overlap",
    type=Duration(),
    default="24h",
    show_default=True,
    help="How long the old key goes on beside the new one.",
)
@click.option(
    "--expires-in", type=Duration(least=_LIFE_MIN), help="For how long the new key lasts: 90d, 24h."
)
def rotate(key_id: str, overlap: timedelta, expires_in: timedelta | None) -> Report:
    """Issue a key in the place of another, which goes on for the overlap.

    KEY_ID: the old key's id or prefix. The new one has its mode, name, scopes and networks, and
    no end unless you say so: when the old one ends is not taken over.
    """
    if expires_in is not None and expires_in < overlap:
        raise click.BadParameter(
            "the new key would end before the old one does; let it last for the --overlap or longer",
            param_hint="--expires-in",
        )
    rotated = rotate_key(key_id, overlap=overlap, lifetime=expires_in, actor=actor())
    ends = {"replaces": rotated.replaces, "old_expires_at": rotated.old_expires_at}
    text = f"{_shown_once(rotated.issued)}\n\n{fields(dict(ends))}"
    return Report({**_issued_document(rotated.issued), **ends}, text)


@keys.command("revoke", example="flask keys revoke mara_live_aP1cCV6BrT")
@click.argument("key_id")
def revoke(key_id: str) -> Report:
    """Revoke an API key, at once. KEY_ID: its id or its prefix."""
    document = _document(revoke_key(key_id, actor=actor()))
    return Report(document, fields(document))


def _issued_document(issued: IssuedKey) -> dict[str, object]:
    return {
        "id": issued.id,
        "prefix": issued.prefix,
        "key": issued.key,
        "mode": issued.mode.value,
        "name": issued.name,
        "scopes": sorted(issued.scopes),
        "networks": [str(network) for network in issued.networks],
        "created_at": issued.created_at,
        "expires_at": issued.expires_at,
    }


def _shown_once(issued: IssuedKey) -> str:
    rows = {"id": issued.id, "prefix": issued.prefix, "mode": issued.mode, "key": issued.key}
    return f"{fields(rows)}\n\nKeep the key now: it is stored nowhere and can't be shown again."


def _document(key: ApiKey) -> dict[str, object]:
    return {
        "id": key.id,
        "prefix": key.prefix,
        "mode": key.mode,
        "name": key.name,
        "scopes": sorted(key.scopes),
        "networks": [str(network) for network in key.networks],
        "created_at": key.created_at,
        "expires_at": key.expires_at,
        "last_used_at": key.last_used_at,
        "revoked_at": key.revoked_at,
    }
