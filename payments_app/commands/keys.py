"""`flask keys`: the API keys of a tenant."""

from __future__ import annotations

import sys
from datetime import timedelta
from ipaddress import IPv4Network, IPv6Network
from typing import Final

import click

from payments_app.commands.durations import Duration
from payments_app.commands.group import GatewayGroup, actor
from payments_app.commands.networks import Network
from payments_app.commands.parts import cipher, gateway
from payments_app.commands.report import Report, fields, table
from payments_app.providers.contract import Mode
from payments_app.tenants.keys import (
    AS_LONG_AGAIN,
    IssuedKey,
    NewKey,
    issue_key,
    list_keys,
    revoke_key,
    rotate_key,
)
from payments_app.tenants.model import ApiKey, Tenant
from payments_app.tenants.modes import has_live_only, refuse_unusable_mode
from payments_app.tenants.registry import find_tenant
from payments_app.tenants.scopes import Scope, read_scopes

# The shortest life of a rotated key: one that ends at once is a typing mistake.
_LIFE_MIN: Final = timedelta(minutes=1)

_MODES: Final = click.Choice([mode.value for mode in Mode])

keys = GatewayGroup("keys", help="Issue, list, rotate and revoke API keys.")


@keys.command(
    "issue", example="flask keys issue acme --name till --scope payments:write --expires-in 90d"
)
@click.argument("slug")
@click.option(
    "--mode",
    type=_MODES,
    help="A test key reaches sandboxes only, a live key real money only. Asked for on a terminal;"
    " where nobody can be asked, test, or live if there is no sandbox.",
)
@click.option("--name", default="", help="What the key is for.")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    help=f"What it may do, given once for each. One of {', '.join(Scope)}; if left out, all but"
    " those that pay money out.",
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
    mode: str | None,
    name: str,
    scopes: tuple[str, ...],
    networks: tuple[IPv4Network | IPv6Network, ...],
    expires_in: timedelta | None,
) -> Report:
    """Issue an API key for the tenant SLUG. It is shown now and never again."""
    tenant = find_tenant(slug)
    wanted = NewKey(
        mode=Mode(mode or _asked_mode(tenant)),
        name=name,
        scopes=read_scopes(scopes),
        networks=networks,
        lifetime=expires_in,
    )
    refuse_unusable_mode(tenant, wanted.mode, gateway().accounts, cipher())
    issued = issue_key(tenant, wanted, actor=actor())
    return Report(_issued_document(issued), _shown_once(issued))


@keys.command("list", example="flask keys list acme")
@click.argument("slug")
def list_all(slug: str) -> Report:
    """List the API keys of the tenant SLUG, newest first, revoked ones too."""
    documents = [_document(key) for key in list_keys(find_tenant(slug))]
    headings = (
        *("PREFIX", "MODE", "NAME", "SCOPES", "CREATED", "EXPIRES", "LAST USED", "REVOKED"),
        "ID",
    )
    names = ("prefix", "mode", "name", "scopes", "created_at", "expires_at", "last_used_at")
    rows = [
        (*(_in_words(document[name]) for name in names), document["revoked_at"], document["id"])
        for document in documents
    ]
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
    "--expires-in",
    type=Duration(least=_LIFE_MIN),
    help="For how long the new key lasts: 90d, 24h; as long as the old one if left out.",
)
@click.option("--no-end", is_flag=True, help="The new key lasts until it is revoked.")
def rotate(
    key_id: str, overlap: timedelta, expires_in: timedelta | None, *, no_end: bool
) -> Report:
    """Issue a key in the place of another, which goes on for the overlap.

    KEY_ID: the old key's id or prefix. The new one has its mode, name, scopes and networks. If
    the old one was issued for a time, the new one lasts as long from now on.
    """
    if no_end and expires_in is not None:
        raise click.UsageError("--no-end and --expires-in exclude each other")
    if expires_in is not None and expires_in < overlap:
        raise click.BadParameter(
            "the new key would end before the old one does; let it last for the --overlap or longer",
            param_hint="--expires-in",
        )
    lifetime = None if no_end else expires_in or AS_LONG_AGAIN
    rotated = rotate_key(key_id, overlap=overlap, lifetime=lifetime, actor=actor())
    ends = {"replaces": rotated.replaces, "old_expires_at": rotated.old_expires_at}
    text = f"{_shown_once(rotated.issued)}\n\n{fields(dict(ends))}"
    return Report({**_issued_document(rotated.issued), **ends}, text)


@keys.command("revoke", example="flask keys revoke mara_live_aP1cCV6BrT")
@click.argument("key_id")
def revoke(key_id: str) -> Report:
    """Revoke an API key, at once. KEY_ID: its id or its prefix."""
    document = _document(revoke_key(key_id, actor=actor()))
    return Report(document, fields(document))


def _asked_mode(tenant: Tenant) -> str:
    """The chosen mode. The default is test, where no money moves; live if there is no sandbox."""
    usual = Mode.LIVE if has_live_only(tenant, gateway().accounts, cipher()) else Mode.TEST
    if not sys.stdin.isatty():
        return usual
    asked: str = click.prompt("Mode", type=_MODES, default=usual.value, err=True)
    return asked


def _in_words(cell: object) -> object:
    return " ".join(cell) if isinstance(cell, list) else cell


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
    rows = {
        "id": issued.id,
        "prefix": issued.prefix,
        "mode": issued.mode,
        "scopes": " ".join(sorted(issued.scopes)),
        "expires_at": issued.expires_at,
        "key": issued.key,
    }
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
