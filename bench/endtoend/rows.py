"""The rows of the end-to-end measurement. They take turns, round by round."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass

import click

from bench.accept import known_payments
from bench.endtoend.load import Lane
from bench.endtoend.measured import Measured, ends_in_database, measure
from bench.endtoend.site import Installation, Tenant, plain_service
from bench.fill import fill
from bench.meters import ask
from bench.sites import site_of
from devstack.servers import Servers

CONNECTIONS = 16
TENANTS = 10
# Payments that fetch tokens, open connections and prepare statements before the measurement.
WARM = 50
# The rate at which a tenant whose endpoint hangs posts.
HANGING_PER_S = 2.0
# By then the last request to the hanging endpoint has timed out.
HANGING_GONE_S = 16.0
ENDED_MAX_S = 300.0
# A background lane has no end of its own.
ENDLESS = 10**9
OPEN = "SELECT count(*) FROM payments WHERE status = 'PENDING'"


@dataclass(frozen=True)
class Size:
    """How much is measured. `rows`: names separated by |, or all.

    `under_way`: open payments of all tenants together in a closed loop. `slow_answer_s`: the delay of
    each response to the slow account. `hanging_first`: payments whose webhooks wait for the endpoint
    that hangs.
    """

    rows: str = ""
    rounds: int = 2
    payments: int = 3000
    under_way: int = 64
    backlog: int = 200_000
    fill: int = 1_000_000
    pace_payments: int = 2000
    pace_s: float = 60.0
    slow_answer_s: float = 10.0
    slow_open: int = 100
    hanging_first: int = 100
    # Whether each part has its own installation.
    apart: bool = True
    # At least so many at half of the top rate: fewer would give no meaningful quantile.
    open_loop_min: int = 100

    @property
    def open_loop(self) -> int:
        """Payments at half of the top rate: they take as long as `payments` at the top rate."""
        return max(self.open_loop_min, self.payments // 2)


@dataclass(frozen=True)
class Loops:
    """One measurement of a row: at its top rate, and at half of that."""

    closed: Measured
    open: Measured


@dataclass(frozen=True)
class Fairness:
    """A tenant alone, and beside a tenant whose endpoint or provider account is slow; once a round."""

    alone: Measured
    beside: Measured

    @property
    def ratio(self) -> float:
        """Ratio of the p99 lags."""
        return self.beside.lag_s(0.99) / self.alone.lag_s(0.99)


@dataclass(frozen=True)
class Row:
    """`measure` posts so many payments, with at most so many open or so many a second."""

    name: str
    measure: Callable[[int, float | None, float | None], Measured]
    # A context for the measurement.
    around: Callable[[], AbstractContextManager[object]] = nullcontext


def in_turn(rows: Sequence[Row], size: Size) -> dict[str, list[Loops]]:
    """Measure all rows, once a round."""
    done: dict[str, list[Loops]] = {row.name: [] for row in rows}
    for number in range(size.rounds):
        for row in rows if number % 2 == 0 else rows[::-1]:
            with row.around():
                if number == 0:
                    row.measure(WARM, size.under_way, None)
                closed = row.measure(size.payments, size.under_way, None)
                show(row.name, closed)
                opened = row.measure(size.open_loop, None, closed.per_s / 2)
                show(f"{row.name}, at half of that", opened)
            done[row.name].append(Loops(closed, opened))
    return done


def show(name: str, found: Measured) -> None:
    """Print the summary to the terminal."""
    click.echo(f"{name}: {found.summary()}", err=True)


@contextmanager
def shared_rows(servers: Servers, site: Installation, names: Sequence[str]) -> Iterator[list[Row]]:
    """The rows with these names, which share one installation."""
    with ExitStack() as cleanup:
        rows = []
        if {"one", "one, no callbacks"} & set(names):
            one = to_tenants(site, [site.tenant("one")])
            rows.append(Row("one", one))
            rows.append(Row("one, no callbacks", one, lambda: without_callbacks(site)))
        if "ten" in names:
            many = [site.tenant(f"ten-{number}") for number in range(TENANTS)]
            rows.append(Row("ten", to_tenants(site, many)))
        if "none" in names:
            ends = cleanup.enter_context(ends_in_database(site))
            rows.append(Row("none", to_tenants(site, [site.tenant("none", path=None)], ends)))
        if "plain" in names:
            plain = cleanup.enter_context(plain_service(servers, site))

            def of_plain(payments: int, open_max: float | None, per_s: float | None) -> Measured:
                limits = {"connections": CONNECTIONS, "open_max": open_max, "per_s": per_s}
                return measure(plain, [plain.lane(payments, **limits)])

            rows.append(Row("plain", of_plain, site.frozen))
        yield [row for row in rows if row.name in names]


def filled_row(site: Installation, payments: int) -> Row:
    """One tenant with one endpoint, and so many earlier payments in the tables, all ended."""
    tenant = site.tenant("filled")
    fill(site.stack, tenant.key, payments)
    return Row(f"one, {payments:,} payments before", to_tenants(site, [tenant]))


def to_tenants(
    site: Installation, tenants: Sequence[Tenant], ends: str | None = None
) -> Callable[[int, float | None, float | None], Measured]:
    """Post payments, spread evenly over the tenants."""
    many = len(tenants)

    def run(payments: int, open_max: float | None, per_s: float | None) -> Measured:
        limits = {
            "connections": max(2, CONNECTIONS // many),
            "open_max": open_max and max(1, open_max // many),
            "per_s": per_s and per_s / many,
        }
        lanes = [site.lane(tenant, payments // many, **limits) for tenant in tenants]
        return measure(site, lanes, ends=ends)

    return run


@contextmanager
def without_callbacks(site: Installation) -> Iterator[None]:
    """Let the simulator send no callbacks, so that the engine polls the status."""
    site.simulator("POST", "settings", {"callback_mode": "none"})
    yield
    site.simulator("POST", "settings", {"callback_mode": "normal"})


def fairness(site: Installation, names: Sequence[str], size: Size) -> dict[str, list[Fairness]]:
    """Measure one tenant at half of its top rate, alone and beside each of these, in turn."""
    one = site.tenant("alone")
    run = to_tenants(site, [one])
    beside = {name: BESIDE[name](site, size) for name in names}
    run(WARM, size.under_way, None)
    per_s = run(size.open_loop, size.under_way, None).per_s / 2
    count = size.open_loop
    limits = {"connections": CONNECTIONS, "per_s": per_s}
    found: dict[str, list[Fairness]] = {name: [] for name in names}
    for _ in range(size.rounds):
        for name, disturbed in beside.items():
            alone = run(count, None, per_s)
            show(f"{name}: alone", alone)
            with disturbed() as lanes:
                both = measure(site, [site.lane(one, count, **limits), *lanes])
            show(f"{name}: beside", both)
            found[name].append(Fairness(alone, both))
    return found


def beside_hanging(
    site: Installation, size: Size
) -> Callable[[], AbstractContextManager[list[Lane]]]:
    """A tenant whose endpoint reads requests and never answers."""
    tenant = site.tenant("hanging", path="/hang")
    site.switch(tenant, "disabled")

    @contextmanager
    def disturbed() -> Iterator[list[Lane]]:
        site.switch(tenant, "enabled")
        known_payments(site.stack.api_url, tenant.key, size.hanging_first)
        await_none_open(site)
        yield [site.lane(tenant, ENDLESS, connections=2, per_s=HANGING_PER_S, background=True)]
        site.switch(tenant, "disabled")
        await_none_open(site)
        time.sleep(HANGING_GONE_S)

    return disturbed


def beside_slow(site: Installation, size: Size) -> Callable[[], AbstractContextManager[list[Lane]]]:
    """A tenant with many open payments, whose requests the provider answers late."""
    tenant = site.tenant("slow")
    user = site.give_account(tenant, "sandbox")
    fault = {"kind": "slow", "operation": "any", "times": None, "match": {"api_user": user}}
    # As many as end: each payment needs a submission and a status check.
    per_s = size.slow_open / (2 * size.slow_answer_s)

    @contextmanager
    def disturbed() -> Iterator[list[Lane]]:
        site.simulator("POST", "faults", fault | {"parameters": {"delay_s": size.slow_answer_s}})
        known_payments(site.stack.api_url, tenant.key, size.slow_open)
        yield [site.lane(tenant, ENDLESS, connections=2, per_s=per_s, background=True)]
        site.simulator("DELETE", "faults")
        await_none_open(site)

    return disturbed


BESIDE = {"beside hanging": beside_hanging, "beside slow": beside_slow}


def await_none_open(site: Installation) -> None:
    """Wait until every payment has ended. Raises TimeoutError."""
    deadline = time.monotonic() + ENDED_MAX_S
    while ask(site_of(site.stack), OPEN):
        if time.monotonic() > deadline:
            raise TimeoutError("payments are still open: are the workers well?")
        time.sleep(0.2)
