"""Runs migrations: as the owner, one at a time, and never waiting long for a lock."""

from __future__ import annotations

from alembic import context
from flask import current_app
from sqlalchemy import create_engine, pool, text
from sqlalchemy.exc import DBAPIError, OperationalError

from payments_app.kernel.database import Base
from payments_app.kernel.schema import SERVER_VERSION, why_too_old
from payments_app.kernel.session_settings import SESSION, asking_for

# Two deploys at once: the second waits here, then finds nothing to do. The number is "mara".
ADVISORY_LOCK = 0x6D617261
# A migration that waits for a lock holds up everybody behind it.
LOCK_TIMEOUT_MS = 4_000
STATEMENT_TIMEOUT_MS = 300_000


def include_object(_object, name, type_, _reflected, _compare_to):
    # Partitions are made and dropped as time goes by: migration 0009.
    passing = name == "alembic_version" or name.startswith("webhook_attempts_")
    return not (type_ == "table" and passing)


def run() -> None:
    settings = current_app.extensions["maramoja"].settings
    url = settings.migration_database_url or settings.database_url
    engine = create_engine(url, poolclass=pool.NullPool, connect_args=asking_for(SESSION, url))
    with engine.connect() as connection:
        if (why := why_too_old(connection.execute(SERVER_VERSION).scalar_one())) is not None:
            raise SystemExit(f"{why}. Nothing was changed.")
        connection.execute(text(f"SELECT pg_advisory_lock({ADVISORY_LOCK})"))
        connection.execute(text(f"SET lock_timeout = {LOCK_TIMEOUT_MS}"))
        connection.execute(text(f"SET statement_timeout = {STATEMENT_TIMEOUT_MS}"))
        connection.commit()
        context.configure(
            connection=connection,
            target_metadata=Base.metadata,
            compare_type=True,
            include_object=include_object,
            transaction_per_migration=True,
        )
        with context.begin_transaction():
            context.run_migrations()


def explained(error: DBAPIError) -> str | None:
    """What an operator can set right, in a line; None for what needs the whole traceback."""
    settings = current_app.extensions["maramoja"].settings
    named = "MIGRATION_DATABASE_URL" if settings.migration_database_url else "DATABASE_URL"
    match getattr(error.orig, "sqlstate", None):
        case "42501":
            return (
                f"The role in {named} may not change the schema: MIGRATION_DATABASE_URL has to be the"
                " tables' owner. The migration that failed has changed nothing."
            )
        case "55P03":
            return (
                f"A lock wasn't to be had within {LOCK_TIMEOUT_MS / 1000:.0f} s. The migration that"
                " failed has changed nothing: start it again."
            )
        case None if isinstance(error, OperationalError):
            # libpq says which server and why, and never the password.
            why = " ".join(str(error.orig).split("\n", 1)[0].split())
            return f"The database in {named} can't be reached: {why}"
        case _:
            return None


if context.is_offline_mode():
    raise SystemExit("Offline migrations are not supported: flask db upgrade needs a database.")
try:
    run()
except DBAPIError as error:
    said = explained(error)
    if said is None:
        raise
    raise SystemExit(said) from None
