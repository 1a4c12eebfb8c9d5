"""Checks of PostgreSQL: its schema, its durability, its clock, and the work that waits in it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final
from uuid import UUID

from flask import current_app
from sqlalchemy import text

from payments_app.commands.doctor.finding import Finding, ok, problem, warning
from payments_app.commands.parts import cipher
from payments_app.integrity.unreadable import unreadable_payments
from payments_app.integrity.violations import list_violations
from payments_app.kernel.clock import utc_now
from payments_app.kernel.database import snapshot
from payments_app.kernel.schema import (
    SERVER_VERSION,
    is_behind,
    present_versions,
    version_name,
    why_too_old,
)
from payments_app.monitoring.backlog import lingering_payments, overdue_work, refused_by_setup
from payments_app.tenants.holds import RESTORED, held_tenants
from payments_app.tenants.rotation import ENCRYPTED_COLUMNS, look_at_secrets
from payments_app.webhooks.encrypted_columns import WEBHOOK_ENCRYPTED_COLUMNS

# Timestamps and leases use the database's clock. Below this skew, those of this machine are only
# slightly wrong.
SKEW_WARNING_S: Final = 2.0
SKEW_PROBLEM_S: Final = 30.0

# The settings of the server and our role, without those that our own connection requests.
_SETTINGS: Final = text(
    "SELECT name, reset_val FROM pg_settings"
    " WHERE name IN ('fsync', 'full_page_writes', 'synchronous_commit')"
)


def check_version() -> Iterator[Finding]:
    """PostgreSQL is new enough for the schema."""
    with snapshot() as connection:
        yield judge_version(connection.execute(SERVER_VERSION).scalar_one())


def judge_version(number: int) -> Finding:
    """The finding for a server with this `server_version_num`."""
    if (why := why_too_old(number)) is not None:
        return problem(why, "move the database to a newer server: docs/systemd.md#postgresql")
    return ok(f"PostgreSQL {version_name(number)}")


def check_migrations() -> Iterator[Finding]:
    """The schema is at the version that this code needs."""
    present = present_versions()
    named = ", ".join(sorted(present)) or "nothing"
    if is_behind(current_app.extensions["migrate"].directory, present):
        yield problem(f"the schema is at {named}: this version needs more", "flask db upgrade")
    else:
        yield ok(f"the schema is at {named}")


def check_word() -> Iterator[Finding]:
    """PostgreSQL writes a commit to disk before it confirms it."""
    with snapshot() as connection:
        loose = [
            f"{name} is {value}"
            for name, value in connection.execute(_SETTINGS)
            if value in ("off", "local")
        ]
    if loose:
        yield problem(
            f"PostgreSQL may lose what it has confirmed: {', '.join(sorted(loose))}",
            "set them to on: a payment that was accepted and forgotten is lost",
        )
    else:
        yield ok("PostgreSQL keeps what it has confirmed")


def check_clock() -> Iterator[Finding]:
    """Compares this machine's clock with the database's."""
    with snapshot() as connection:
        before = utc_now()
        there = connection.execute(text("SELECT clock_timestamp()")).scalar_one()
        after = utc_now()
    middle = before + (after - before) / 2
    skew_s = abs((there - middle).total_seconds())
    said = f"this machine's clock and the database's are {skew_s:.1f} s apart"
    remedy = "run NTP (chrony, systemd-timesyncd) on both"
    if skew_s > SKEW_PROBLEM_S:
        yield problem(said, remedy)
    elif skew_s > SKEW_WARNING_S:
        yield warning(said, remedy)
    else:
        yield ok(said)


def check_secrets() -> Iterator[Finding]:
    """SECRET_KEYS decrypts all stored secrets, and each is bound to its own row."""
    stored = look_at_secrets(cipher(), (*ENCRYPTED_COLUMNS, *WEBHOOK_ENCRYPTED_COLUMNS))
    if stored.unreadable:
        yield problem(
            f"SECRET_KEYS opens {_counted(stored.unreadable)} not",
            "put the old key back at the end of SECRET_KEYS; flask secrets rotate names each. Under"
            " a key that is there, somebody has moved it: flask audit verify, and set it again",
        )
    if stored.unbound:
        yield warning(
            f"{_counted(stored.unbound)} would open in another's row too",
            "flask secrets rotate binds them, once every process runs this release",
        )
    if not (stored.unreadable or stored.unbound):
        yield ok("SECRET_KEYS opens every stored secret, each in its place")


def _counted(secrets: list[tuple[str, UUID]]) -> str:
    kinds = sorted({kind for kind, _ in secrets})
    return f"{len(secrets)} stored secrets ({', '.join(kinds)})"


def check_payments() -> Iterator[Finding]:
    """All open payments are readable, none is open too long, and all accounts are set up right."""
    lingering, refused = lingering_payments(), refused_by_setup()
    unreadable = unreadable_payments(cipher())
    for some in unreadable:
        yield problem(
            f"{some.slug}: {some.payments} open payments can't be read (data_key_unreadable), the"
            f" oldest is {some.oldest}",
            "put the key of that time at the end of SECRET_KEYS; if the tenant's data key itself is"
            " gone, take it from a backup: docs/backup.md",
        )
    for one in lingering:
        count = f"{one.slug}: {one.payments} payments at {one.provider}"
        if one.is_unsent:
            said = f"{count} were not sent, the oldest for {one.oldest_s / 60:.0f} minutes"
            yield problem(said, f"flask providers check {one.slug} {one.provider}")
        else:
            said = f"{count} are open, the oldest for {one.oldest_s / 3600:.0f} hours"
            yield warning(said, "flask payments explain ID, then docs/runbooks/open-long.md")
    for each in refused:
        said = f"{each.slug}: {each.provider} refused {each.payments} payments of the last day"
        code = each.provider_code or "no code"
        remedy = f"{each.failure_code} ({code}) is the account's setup: docs/errors.md"
        yield warning(said, remedy)
    if not (unreadable or lingering or refused):
        yield ok(
            "each open payment can be read, none is open for too long or was refused for its account"
        )


def check_work() -> Iterator[Finding]:
    """No work is overdue, no invariant is violated, and no tenant is held."""
    waiting, held = overdue_work(), held_tenants()
    if waiting.payments:
        yield problem(f"{waiting.payments} payments are overdue", "see that a worker runs")
    if waiting.events:
        yield problem(f"{waiting.events} events wait to be published", "see that a worker runs")
    if waiting.seals:
        yield warning(
            f"{waiting.seals} events are in no checkpoint", "see that beat and a worker run"
        )
    if breaks := list_violations(None, resolved=False):
        yield problem(f"{len(breaks)} invariants are broken", "flask invariants list")
    for tenant in held:
        remedy = f"flask tenants release {tenant.slug}, when it may go on"
        if tenant.held_why == RESTORED:
            remedy = "flask recovery status, then flask recovery finish"
        yield warning(f"{tenant.slug} is held: {tenant.held_why}", remedy)
    if not (any(waiting) or breaks or held):
        yield ok("no work is overdue, nothing is broken, nobody is held")
