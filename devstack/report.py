"""What `make run` prints once everything works: the proof, and lines to paste."""

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


# What each market's account takes: a currency, and a number that pays.
ORDERS = {
    "mtnuganda": '{"amount": 5000, "currency": "UGX", "payer": "256772123456"}',
    "mtnzambia": '{"amount": "12.50", "currency": "ZMW", "payer": "260966123456"}',
}


def _print_markets(payments: str, keys: Mapping[str, str]) -> None:
    click.secho(
        "  # in another market: live keys, whose accounts are at the simulator too", dim=True
    )
    for environment, key in keys.items():
        click.echo(
            f"  curl -i {payments} -H 'X-API-Key: {key}' -H 'Content-Type: application/json' \\\n"
            f"    -H 'Idempotency-Key: {uuid4()}' -d '{ORDERS[environment]}'"
        )
    click.secho("  # numbers that say no, and more: docs/test-numbers.md", dim=True)


@dataclass(frozen=True)
class Invitation:
    """Where things are, and with which key."""

    api_url: str
    key: str
    live_keys: Mapping[str, str]
    payment_id: str | None
    simulator_url: str | None
    logs: Path


def print_invitation(told: Invitation) -> None:
    """Print what to paste and where to look."""
    payments = f"{told.api_url}/api/v1/payments"
    header = '-H "X-API-Key: $KEY"'
    order = '{"amount": 1000, "currency": "EUR", "payer": "256772123456"}'
    created = told.payment_id or "$ID"
    lines = [
        ("", f"KEY={told.key}"),
        (
            "take a payment (paste it twice: the second is a replay, and charges nothing)",
            (
                f"curl -i {payments} {header} -H 'Content-Type: application/json' \\\n"
                f"    -H 'Idempotency-Key: {uuid4()}' -d '{order}'"
            ),
        ),
        ("look at one, at its story, at all", f"curl -s {payments}/{created} {header}"),
        ("", f"curl -s {payments}/{created}/events {header}"),
        ("", f'curl -s "{payments}?limit=5" {header}'),
    ]
    click.echo()
    for title, line in lines:
        if title:
            click.secho(f"  # {title}", dim=True)
        click.echo(f"  {line}")
    if told.live_keys:
        _print_markets(payments, told.live_keys)
    click.echo(f"\n  API docs    {told.api_url}/docs")
    if told.simulator_url is not None:
        click.echo(f"  simulator   {told.simulator_url}/_admin/summary")
    click.echo(f"  logs        {told.logs}")
    click.echo('  commands    make flask ARGS="payments list"')
    click.echo("\nCtrl-C ends it all")
