"""`python -m bench`: what `make bench` runs, part by part."""

from __future__ import annotations

import click

from bench import accept, accept_table, counts, deliveries, drain, growth


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
    effort = accept.Effort(rounds=rounds, seconds=seconds, connections=numbers)
    click.echo(accept_table.tables(accept.run(effort, only=only)))


@main.command("counts")
@click.option("--texts", is_flag=True, help="Also what was sent.")
def counts_command(*, texts: bool) -> None:
    """Round trips and statements for each payment."""
    found = counts.count_all()
    click.echo(counts.table(found))
    for name, count in found.items() if texts else ():
        click.echo(f"\n{name}, {counts.COUNTED} times:")
        click.echo("\n".join(" ".join(text.split()) for text in count.texts))


@main.command("drain")
@click.option("--payments", default=3000, show_default=True)
@click.option("--rounds", default=3, show_default=True)
def drain_command(payments: int, rounds: int) -> None:
    """From accepted to SUCCESSFUL, through workers and the simulator."""
    click.echo(drain.table(drain.run(payments=payments, rounds=rounds)))


@main.command("memory")
@click.option("--payments", default=100_000, show_default=True)
def memory_command(payments: int) -> None:
    """The memory of each process, as many payments go through. Takes long."""
    click.echo(drain.memory_table(drain.memory(payments=payments)))


@main.command("deliveries")
def deliveries_command() -> None:
    """Webhooks delivered a second."""
    click.echo(deliveries.table(deliveries.rates()))


@main.command("growth")
@click.option("--sizes", default="10000,100000,1000000", show_default=True)
@click.option("--rounds", default=4, show_default=True)
@click.option("--seconds", default=4.0, show_default=True)
def growth_command(sizes: str, rounds: int, seconds: float) -> None:
    """The same with few and with a million payments in the tables. Takes long, and 15 GB of disk."""
    effort = accept.Effort(rounds=rounds, seconds=seconds, connections=(16,))
    done = growth.run(effort, [int(size) for size in sizes.split(",")])
    click.echo(growth.tables(done))


if __name__ == "__main__":
    main()
