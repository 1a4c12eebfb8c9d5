"""`python -m bench`: `make bench` runs it. Measures one part after the other."""

from __future__ import annotations

from dataclasses import dataclass
from shlex import quote

import click

from bench import accept, accept_table, counts, drain, growth, results
from bench.endtoend import counted
from bench.endtoend import report as endtoend
from bench.endtoend.rows import Size
from devstack.servers import Servers


@dataclass(frozen=True)
class Wanted:
    """The options of the command, without the list of parts."""

    rounds: int
    seconds: float
    connections: tuple[int, ...]
    rows: str
    payments: int
    memory_payments: int
    under_way: int
    backlog: int
    fill: int
    pace_payments: int
    pace_seconds: float
    sizes: tuple[int, ...]
    texts: bool


def _accept(wanted: Wanted) -> str:
    effort = accept.Effort(wanted.rounds, wanted.seconds, wanted.connections)
    return accept_table.tables(accept.run(effort, only=wanted.rows))


def _counts(wanted: Wanted) -> str:
    with Servers() as servers:
        steps = counts.count_ours(servers) | counts.count_rivals(servers)
        whole = counted.count_end_to_end(servers)
    return (
        f"{counted.table(whole, texts=wanted.texts)}\n\n{counts.table(steps, texts=wanted.texts)}"
    )


def _drain(wanted: Wanted) -> str:
    return drain.table(drain.run(payments=wanted.payments, rounds=wanted.rounds))


def _endtoend(wanted: Wanted) -> str:
    size = Size(
        rows=wanted.rows,
        rounds=wanted.rounds,
        payments=wanted.payments,
        under_way=wanted.under_way,
        backlog=wanted.backlog,
        fill=wanted.fill,
        pace_payments=wanted.pace_payments,
        pace_s=wanted.pace_seconds,
    )
    return endtoend.tables(endtoend.run(size))


def _growth(wanted: Wanted) -> str:
    effort = accept.Effort(wanted.rounds, wanted.seconds, (16,))
    return growth.tables(growth.run(effort, wanted.sizes))


def _memory(wanted: Wanted) -> str:
    return drain.memory_table(drain.memory(payments=wanted.memory_payments))


PARTS = {
    "accept": _accept,
    "counts": _counts,
    "drain": _drain,
    "endtoend": _endtoend,
    "growth": _growth,
    "memory": _memory,
}
# Takes half an hour: runs only when it is named.
LONG = ("memory",)


def _numbers(_context: click.Context, _option: click.Parameter, given: str) -> tuple[int, ...]:
    return tuple(int(number) for number in given.split(","))


@click.command()
@click.argument("parts", nargs=-1, type=click.Choice(list(PARTS)))
@click.option("--rounds", default=4, show_default=True, help="How often each is measured.")
@click.option("--seconds", default=4.0, show_default=True, help="How long each time.")
@click.option("--connections", default="1,16,64", show_default=True, callback=_numbers)
@click.option("--rows", default="", help="Of accept and endtoend only these, with | between them.")
@click.option(
    "--payments", default=3000, show_default=True, help="In a round of drain, in a row of endtoend."
)
@click.option("--under-way", default=64, show_default=True, help="At once, of endtoend.")
@click.option("--backlog", default=200_000, show_default=True, help="Deliveries, of endtoend.")
@click.option("--fill", default=1_000_000, show_default=True, help="Payments before, of endtoend.")
@click.option("--pace-payments", default=2000, show_default=True, help="Open ones, of endtoend.")
@click.option("--pace-seconds", default=60.0, show_default=True, help="How long, of endtoend.")
@click.option("--memory-payments", default=100_000, show_default=True, help="Over these, RSS.")
@click.option("--sizes", default="10000,100000,1000000", show_default=True, callback=_numbers)
@click.option("--texts", is_flag=True, help="With the counts, what was sent.")
@click.option("--keep", is_flag=True, help="Put each part into bench/RESULTS.md.")
@click.pass_context
def main(
    context: click.Context, /, parts: tuple[str, ...], *, keep: bool, **wanted: object
) -> None:
    """Measure PARTS, or all but `memory`, on real servers: PostgreSQL with fsync, Redis with AOF."""
    asked = Wanted(**wanted)  # type: ignore[arg-type]  # click has made them what they are
    for part in parts or [part for part in PARTS if part not in LONG]:
        tables = PARTS[part](asked)
        click.echo(f"\n{part}\n\n{tables}")
        if keep:
            results.keep(part, tables, _command(context, part))


def _command(context: click.Context, part: str) -> str:
    """Return the command that repeats this run, with every option that was given."""
    given = [
        f" --{name.replace('_', '-')} {quote(value if isinstance(value, str) else _listed(value))}"
        for name, value in context.params.items()
        if name not in ("parts", "keep", "texts")
        and context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
    ]
    return f"python -m bench {part}{''.join(given)}"


def _listed(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


if __name__ == "__main__":
    main()
