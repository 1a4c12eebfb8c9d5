"""The command line of the harness: `python -m chaos --seed 7 --minutes 1`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from chaos.plan import make_plan
from chaos.report import summary
from chaos.run import run_plan
from devstack.errors import StackError

RUNS = Path("var") / "chaos"


@click.command()
@click.option(
    "--seed", type=int, default=1, show_default=True, help="The same seed, the same plan."
)
@click.option("--minutes", type=float, default=1.0, show_default=True, help="How long faults last.")
@click.option(
    "--redis",
    type=click.Choice(["present", "absent"]),
    default="present",
    show_default=True,
    help="absent: a run in which no Redis ever answers.",
)
@click.option(
    "--directory",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where plan, history, logs and report go [default: var/chaos/seed-N].",
)
def main(seed: int, minutes: float, redis: str, directory: Path | None) -> None:
    """Run the whole stack under faults, and give a verdict for each idempotency key.

    Exit status: 0 clean, 1 for anything but OK, 2 when a kind of fault was never met.
    """
    plan = make_plan(seed, seconds=minutes * 60, redis=redis == "present")
    name = f"seed-{seed}" if plan.redis else f"seed-{seed}-without-redis"
    directory = directory or RUNS / name
    try:
        result = run_plan(plan, directory.resolve(), click.echo)
    except StackError as error:
        click.secho(f"✗ {error}", fg="red", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    click.echo(summary(result))
    click.echo(f"report: {directory / 'report.md'}")
    sys.exit(result.exit_status)


if __name__ == "__main__":
    main()
