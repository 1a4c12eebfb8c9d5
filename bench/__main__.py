"""`python -m bench`: what `make bench` runs, part by part."""

from __future__ import annotations

import click

from bench import accept, accept_table


@click.group()
def main() -> None:
    """Measure on real servers: PostgreSQL that waits for its disk, Redis with AOF, gunicorn."""


@main.command("accept")
@click.option("--rounds", default=4, show_default=True)
@click.option("--seconds", default=4.0, show_default=True)
@click.option("--connections", default="1,16,64", show_default=True)
@click.option("--only", default="", help="Names of rows, with | between them.")
def accept_command(rounds: int, seconds: float, connections: str, only: str) -> None:
    """Taking payments, beside a floor and a plain service."""
    numbers = [int(number) for number in connections.split(",")]
    done = accept.run(rounds=rounds, seconds=seconds, connections=numbers, only=only)
    click.echo(accept_table.tables(done))


if __name__ == "__main__":
    main()
