"""The command: runs every check in turn. A check that can't run is a finding too."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Final

import click
import psycopg
from flask.cli import with_appcontext
from sqlalchemy.exc import SQLAlchemyError

from payments_app.commands.doctor import (
    database,
    environment,
    functions,
    rights,
    row_security,
    sessions,
)
from payments_app.commands.doctor.finding import Check, Finding, Level, ok, problem
from payments_app.commands.group import GatewayCommand
from payments_app.commands.report import Report, table
from payments_app.kernel.errors import GatewayError
from payments_app.kernel.logs import masked

CHECKS: Final[dict[str, Check]] = {
    "settings": environment.check_settings,
    "PostgreSQL": database.check_version,
    "database role": row_security.check_role,
    "migrations": database.check_migrations,
    "tenant walls": row_security.check_walls,
    "triggers": row_security.check_triggers,
    "functions": functions.check_functions,
    "rights": row_security.check_rights,
    "columns": rights.check_columns,
    "sessions": sessions.check_sessions,
    "durability": database.check_word,
    "clock": database.check_clock,
    "secrets": database.check_secrets,
    "work": database.check_work,
    "payments": database.check_payments,
    "redis": environment.check_redis,
    "broker": environment.check_broker,
}
# These send requests to other hosts.
ONLINE: Final[dict[str, Check]] = {
    "providers": environment.check_providers,
    "callbacks": environment.check_callbacks,
}


@click.command("doctor", cls=GatewayCommand, example="flask doctor --offline")
@click.option("--offline", is_flag=True, help="Ask neither providers nor PUBLIC_BASE_URL.")
@with_appcontext
def doctor(*, offline: bool) -> Report:
    """Look at the whole installation, and say what to do about what isn't well.

    The exit code is 1 if there is a problem; warnings leave it at 0.
    """
    checks = CHECKS if offline else {**CHECKS, **ONLINE}
    found = [(name, finding) for name, check in checks.items() for finding in _looked_at(check)]
    documents = [
        {"check": name, "level": one.level, "found": one.said, "remedy": one.remedy or None}
        for name, one in found
    ]
    rows = [
        # If the database is down, every check finds it so: the full text is shown once.
        (one.level, name, "as above", "")
        if one == before
        else (one.level, name, one.said, one.remedy)
        for (_, before), (name, one) in pairwise([("", ok("")), *found])
    ]
    text = table(("LEVEL", "CHECK", "FOUND", "WHAT TO DO"), rows, empty="")
    well = not any(one.level is Level.PROBLEM for _, one in found)
    return Report({"data": documents, "well": well}, text, well=well)


def _looked_at(check: Check) -> Iterator[Finding]:
    try:
        yield from check()
    except SQLAlchemyError as error:
        yield _unanswered(getattr(error, "orig", None) or error)
    except GatewayError as error:
        yield problem(f"{error.code}: {error.detail}", "see docs/errors.md")


def _unanswered(error: BaseException) -> Finding:
    if isinstance(error, psycopg.OperationalError) and error.sqlstate is None:
        # No connection: libpq's message names the server and the reason, and never the password.
        why = masked(" ".join(str(error).split("\n", 1)[0].split()))
        return problem(
            f"the database can't be reached: {why}",
            "see DATABASE_URL, and whether PostgreSQL is up",
        )
    # SQLAlchemy's message holds the statement with its values.
    cause = type(error).__name__
    if isinstance(error, psycopg.errors.InsufficientPrivilege):
        return problem(f"our role may not ask this ({cause})", "see rights")
    return problem(
        f"the database didn't answer this ({cause})",
        "flask db upgrade, if migrations are pending; else see PostgreSQL's log",
    )
