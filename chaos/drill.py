"""The restore drill: `python -m chaos.drill`. A backup under load, a lost database, a restore.

Tenants pay while the backup is made and afterwards; then every process is killed and the
database is dropped. The backup is restored, `flask recovery` brings the gateway back to work, and
each tenant sends every request again with its key. The verdicts are those of any chaos run.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Final
from uuid import UUID

import click
import psycopg

from chaos.cases import Case, Finding, sort_by_key
from chaos.clients import HttpGateway
from chaos.evidence import Evidence, Sources, gather
from chaos.history import Asked, History
from chaos.invariants import judge_all
from chaos.provider import ProviderAdmin
from chaos.scripts import Order
from chaos.verdicts import judge_case
from devstack.errors import StackError
from devstack.postgres_binaries import program_directory
from devstack.servers import Servers
from devstack.stack import Stack

Say = Callable[[str], None]

SCRIPTS: Final = Path(__file__).parent.parent / "deploy" / "backup"
DIRECTORY: Final = Path("var") / "drill"
TENANTS: Final = ("acme", "bravo")
CLIENTS: Final = 4
PATIENCE_S: Final = 6.0
PAUSE_S: Final = 0.05
# From the restore to the last answer; a payment that takes longer is stuck.
BACK_MAX_S: Final = 180.0
_POLL_S: Final = 1.0
_HELD: Final = 503
_BACKUP_ROLE: Final = "maramoja_backup"


@dataclass(frozen=True, slots=True)
class Bought:
    """A tenant's request and its key."""

    tenant: str
    key: str
    order: Order


@dataclass(frozen=True, slots=True)
class Result:
    """The drill's result. `lost`: payments that the backup has not; `charged`: of those, the ones
    that the provider had accepted before the restore.
    """

    cases: Sequence[Case]
    findings: Sequence[Finding]
    in_backup: int
    lost: int
    charged: int
    sent_unknown: int
    back_s: float

    def summary(self) -> str:
        """A text for people."""
        worst = [f"{one.verdict} {one.rule}: {one.text}" for one in self.findings[:20]]
        return "\n".join(
            [
                f"{len(self.cases)} keys: {self.in_backup} in the backup, {self.lost} not",
                f"{self.charged} of those that it has not were charged already",
                f"{self.sent_unknown} payments had been sent that the backup called unsent",
                f"back at work after {self.back_s:.0f} s",
                f"{len(self.findings)} findings",
                *worst,
            ]
        )


class Shoppers:
    """Clients that pay until they are stopped. They do not retry an unknown outcome yet."""

    def __init__(self, stack: Stack, keys: Mapping[str, str], history: History) -> None:
        self.bought: list[Bought] = []
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(
                target=self._buy,
                args=(number, HttpGateway(stack.api_url, keys[tenant], history)),
                daemon=True,
            )
            for number, tenant in enumerate(TENANTS * (CLIENTS // len(TENANTS)))
        ]

    def start(self) -> None:
        """Start all threads."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Stop all threads."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _buy(self, number: int, gateway: HttpGateway) -> None:
        draw = Random(number)
        tenant = TENANTS[number % len(TENANTS)]
        while not self._stop.wait(PAUSE_S * draw.uniform(0.5, 1.5)):
            key = str(UUID(int=draw.getrandbits(128), version=4))
            wanted = Bought(tenant, key, Order(draw.randint(1, 900), "46733123999", None))
            # Recorded before it is sent: whatever its outcome, it is sent again after the restore.
            self.bought.append(wanted)
            _pay(gateway, wanted, f"shopper-{number}")
        gateway.close()


def _pay(gateway: HttpGateway, bought: Bought, client: str) -> bool:
    reply = gateway.send(
        Asked(client, bought.tenant, "pay", key=bought.key),
        method="POST",
        path="/api/v1/payments",
        body=bought.order.body(bought.key),
        patience_s=PATIENCE_S,
    )
    return reply.outcome != "unknown"


def run_drill(directory: Path, say: Say, *, seconds: float) -> Result:
    """Run the drill; `directory` is emptied first. `seconds` of load before the backup, and after.

    Raises StackError when a step of the restore fails.
    """
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    settings = {"RATE_LIMIT_DEFAULT": "1000000 per minute"}
    with (
        Servers(durable=True) as servers,
        Stack(workers=2, celery_workers=2, settings=settings, servers=servers) as stack,
        History(directory / "before.jsonl") as before,
        History(directory / "after.jsonl") as after,
    ):
        keys = {tenant: stack.issue_key(tenant) for tenant in TENANTS}
        bought = _first_life(stack, keys, before, directory, say, seconds=seconds)
        began_at, started = time.time(), time.monotonic()
        in_backup = _restore(stack, directory / "backup", say)
        unsent = _unsent(stack)
        _come_back(stack, keys[TENANTS[0]], say)
        _buy_again(stack, keys, bought, after, say)
        _await_ends(stack, say)
        back_s = time.monotonic() - started
        # Both commands exit with 1 at the first violation.
        stack.flask("audit", "verify")
        stack.flask("invariants", "check")
        sources = Sources(
            stack.administrator_url, stack.api_url, keys, ProviderAdmin(stack.simulator_url)
        )
        found = gather(sources, after.lines, database_away=[], redis=True, told=[])
    return _judge(found, began_at, in_backup=in_backup, unsent=unsent, back_s=back_s)


def _first_life(
    stack: Stack,
    keys: Mapping[str, str],
    history: History,
    directory: Path,
    say: Say,
    *,
    seconds: float,
) -> list[Bought]:
    """Load, a backup during it, more load; then every process is killed."""
    shoppers = Shoppers(stack, keys, history)
    shoppers.start()
    time.sleep(seconds)
    say(f"{len(shoppers.bought)} keys used: backing up")
    with psycopg.connect(stack.postgres.administrator_url(), autocommit=True) as administrator:
        administrator.execute(f"CREATE ROLE {_BACKUP_ROLE} LOGIN BYPASSRLS")
        administrator.execute(f"GRANT pg_read_all_data TO {_BACKUP_ROLE}")
    url = stack.postgres.url(_BACKUP_ROLE, stack.database)
    _run("backup.sh", directory / "backup", stack, BACKUP_DATABASE_URL=url)
    time.sleep(seconds)
    say(f"{len(shoppers.bought)} keys used: everything is killed")
    for name, process in stack.processes.items():
        if name != "simulator":
            process.kill()
    shoppers.stop()
    return shoppers.bought


def _restore(stack: Stack, backup: Path, say: Say) -> int:
    """Drop the database, restore the backup into a new one, return its number of payments."""
    stack.postgres.drop_database(stack.database)
    stack.postgres.create_database(stack.database)
    say("restoring")
    _run("restore.sh", backup, stack, RESTORE_DATABASE_URL=stack.administrator_url)
    return _count(stack, "SELECT count(*) FROM payments")


def _come_back(stack: Stack, key: str, say: Say) -> None:
    """Run `flask recovery` as docs/backup.md describes it."""
    stack.flask("recovery", "begin")
    for name in sorted(stack.processes):
        if name != "simulator":
            stack.processes[name].start()
    stack.await_ready()
    _expect_held(stack, key)
    deadline = time.monotonic() + BACK_MAX_S
    while not _is_asked(stack):
        if time.monotonic() > deadline:
            raise StackError("recovery doesn't come to its end", remedy="see the workers' logs")
        time.sleep(_POLL_S)
    stack.flask("recovery", "finish")
    say("recovery finished")


def _is_asked(stack: Stack) -> bool:
    try:
        stack.flask("recovery", "status")
    except StackError:
        return False
    return True


def _expect_held(stack: Stack, key: str) -> None:
    with History(Path(os.devnull)) as nowhere:
        gateway = HttpGateway(stack.api_url, key, nowhere)
        reply = gateway.send(
            Asked("gate", TENANTS[0], "pay", key=str(UUID(int=1, version=4))),
            method="POST",
            path="/api/v1/payments",
            body=Order(1, "46733123999", None).body("gate"),
            patience_s=PATIENCE_S,
        )
        gateway.close()
    if (reply.status, reply.code) != (_HELD, "tenant_held"):
        raise StackError(f"the gate was open: {reply.status} {reply.code}", remedy="see the log")


def _buy_again(
    stack: Stack, keys: Mapping[str, str], bought: Sequence[Bought], history: History, say: Say
) -> None:
    """Send every key that was used once more, until it is answered."""
    say(f"{len(bought)} keys are sent again")

    def again(one: Bought) -> None:
        gateway = HttpGateway(stack.api_url, keys[one.tenant], history)
        deadline = time.monotonic() + BACK_MAX_S
        while not _pay(gateway, one, "again") and time.monotonic() < deadline:
            time.sleep(PAUSE_S)
        gateway.close()

    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(again, bought))


def _await_ends(stack: Stack, say: Say) -> None:
    deadline = time.monotonic() + BACK_MAX_S
    while left := _count(stack, "SELECT count(*) FROM payments WHERE status = 'PENDING'"):
        if time.monotonic() > deadline:
            say(f"{left} payments are open still")
            return
        time.sleep(_POLL_S)


def _unsent(stack: Stack) -> frozenset[str]:
    """References of the payments that the restored database says were never sent."""
    query = "SELECT reference::text FROM payments WHERE submissions = 0"
    with psycopg.connect(stack.administrator_url) as connection:
        return frozenset(reference for (reference,) in connection.execute(query))


def _judge(
    found: Evidence, began_at: float, *, in_backup: int, unsent: frozenset[str], back_s: float
) -> Result:
    sent_before = {row.reference for row in found.creations if row.at < began_at}
    new = {row.reference for row in found.payments if row.created_at > began_at}
    # The database that recorded the requests sent before the restore is gone.
    found = replace(found, wire=[row for row in found.wire if row.at >= began_at], told=None)
    cases = sort_by_key(found)
    findings = [*judge_all(found), *(one for case in cases for one in judge_case(case))]
    return Result(
        cases=cases,
        findings=findings,
        in_backup=in_backup,
        lost=len(new),
        charged=len(new & sent_before),
        sent_unknown=len(unsent & sent_before),
        back_s=back_s,
    )


def _count(stack: Stack, query: str) -> int:
    with psycopg.connect(stack.administrator_url) as connection:
        row = connection.execute(query.encode()).fetchone()
        return int(row[0]) if row else 0


def _run(script: str, file: Path, stack: Stack, **environment: str) -> None:
    """Run one of the operator's scripts, with the server's own programs on PATH."""
    path = f"{program_directory(stack.postgres.user)}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(  # noqa: S603  our own
        [str(SCRIPTS / script), str(file)],
        env={"PATH": path, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise StackError(f"{script} failed: {done.stderr.strip()}", remedy="see what it says")


@click.command()
@click.option("--seconds", type=float, default=15.0, show_default=True, help="Before, and after.")
def main(*, seconds: float) -> None:
    """Back up under load, lose everything, restore, and judge each idempotency key.

    Exit status: 0 clean, 1 for anything but OK.
    """
    try:
        result = run_drill(DIRECTORY.resolve(), click.echo, seconds=seconds)
    except StackError as error:
        click.secho(f"✗ {error}", fg="red", err=True)
        sys.exit(1)
    click.echo(result.summary())
    sys.exit(bool(result.findings))


if __name__ == "__main__":
    main()
