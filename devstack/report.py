"""What `make run` prints once everything works: the proof, and lines to paste."""

from __future__ import annotations

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


def print_invitation(
    *, api_url: str, key: str, shown: Shown | None, simulator_url: str | None
) -> None:
    """Print what to paste and where to look."""
    payments = f"{api_url}/api/v1/payments"
    header = '-H "X-API-Key: $KEY"'
    order = '{"amount": 1000, "currency": "EUR", "payer": "256772123456"}'
    created = shown.payment_id if shown else "$ID"
    lines = [
        ("", f"KEY={key}"),
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
    click.echo(f"\n  API docs    {api_url}/docs")
    if simulator_url is not None:
        click.echo(f"  simulator   {simulator_url}/_admin/summary")
    click.echo("  logs        var/log/        Ctrl-C ends it all\n")
