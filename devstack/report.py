"""The output of `make run` once everything works: the demo payment's result, and lines to paste."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import click

from devstack.demo import Shown


def print_proof(shown: Shown) -> None:
    """Show that the payment that was sent twice was charged once."""
    replay = f"{shown.replay_status}, Idempotent-Replayed: {shown.replayed}"
    sameness = "the same bytes" if shown.same_bytes else "OTHER BYTES"
    rows = [
        ("payment", f"{shown.payment_id} is {shown.status}"),
        ("sent again", f"{replay}, {sameness}"),
    ]
    if shown.movements is not None:
        times = "once" if shown.movements == 1 else f"{shown.movements} TIMES"
        rows.append(("charged", f"{times}, says the simulator's own ledger"))
    click.echo()
    for title, text in rows:
        click.echo(f"  {title:<12}{text}")


@dataclass(frozen=True)
class Market:
    """What is printed of a market: its name, the variable for its key, and an order it accepts."""

    name: str
    variable: str
    order: str


SANDBOX = Market(
    "MTN sandbox, EUR",
    "MARAMOJA_KEY",
    '{"amount": 1000, "currency": "EUR", "payer": "256772123456"}',
)
# Markets by target environment.
MARKETS = {
    "mtnuganda": Market(
        "Uganda, UGX",
        "MARAMOJA_KEY_UGANDA",
        '{"amount": 5000, "currency": "UGX", "payer": "256772123456"}',
    ),
    "mtnzambia": Market(
        "Zambia, ZMW",
        "MARAMOJA_KEY_ZAMBIA",
        '{"amount": "12.50", "currency": "ZMW", "payer": "260966123456"}',
    ),
}
_URL = "$MARAMOJA_URL/api/v1/payments"


@dataclass(frozen=True)
class LiveKey:
    """A market's key and its tenant."""

    key: str
    tenant: str


@dataclass(frozen=True)
class Invitation:
    """The stack's addresses and keys: `key` is a test key of `tenant`."""

    api_url: str
    tenant: str
    key: str
    live_keys: Mapping[str, LiveKey]
    payment_id: str | None
    simulator_url: str | None
    logs: Path


def print_invitation(told: Invitation) -> None:
    """Print commands to paste and the addresses of the stack."""
    created = told.payment_id or "$ID"
    key = f'-H "X-API-Key: ${SANDBOX.variable}"'
    click.echo()
    _print_keys(told)
    _print_titled(
        "take a payment (paste it twice: the second is a replay, and charges nothing)",
        _taking(SANDBOX),
    )
    _print_titled(
        "look at one, at its story, at all",
        f'curl -s "{_URL}/{created}" {key}',
        f'curl -s "{_URL}/{created}/events" {key}',
        f'curl -s "{_URL}?limit=5" {key}',
    )
    for environment in told.live_keys:
        market = MARKETS[environment]
        _print_titled(f"take one in {market.name.partition(',')[0]}", _taking(market))
    if told.live_keys:
        click.secho("  # numbers that say no, and more: docs/test-numbers.md", dim=True)
    click.echo(f"\n  API docs    {told.api_url}/docs")
    if told.simulator_url is not None:
        click.echo(f"  simulator   {told.simulator_url}/_admin/summary")
    click.echo(f"  logs        {told.logs}")
    click.echo('  commands    make flask ARGS="payments list"')
    click.echo("\nCtrl-C ends it all")


def _print_keys(told: Invitation) -> None:
    """Print each key with its variable and its use."""
    sandbox = SANDBOX.name if told.simulator_url is not None else "the account of MTN_…"
    _print_titled("where the API is", f"export MARAMOJA_URL={told.api_url}")
    _print_titled(
        f"{sandbox}: a test key of the tenant {told.tenant}",
        f"export {SANDBOX.variable}={told.key}",
    )
    for environment, live in told.live_keys.items():
        market = MARKETS[environment]
        _print_titled(
            f"MTN {market.name}: a live key of the tenant {live.tenant}, whose account is at the"
            " simulator too",
            f"export {market.variable}={live.key}",
        )


def _print_titled(title: str, *lines: str) -> None:
    click.secho(f"  # {title}", dim=True)
    for line in lines:
        click.echo(f"  {line}")


def _taking(market: Market) -> str:
    return (
        f'curl -i "{_URL}" -H "X-API-Key: ${market.variable}" -H "Content-Type: application/json" \\\n'
        f"    -H 'Idempotency-Key: {uuid4()}' -d '{market.order}'"
    )
