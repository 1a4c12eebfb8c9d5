"""The schema versions that this code needs and that the database has; the server's version."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from alembic.script import ScriptDirectory
from sqlalchemy import text
from sqlalchemy.exc import ProgrammingError

from payments_app.kernel.database import snapshot

# Not read through Alembic, which writes two log lines each time.
VERSIONS: Final = text("SELECT version_num FROM alembic_version")
# We need views that run with their reader's rights (`security_invoker`), and a `public` schema in
# which not every role may create tables.
LEAST_POSTGRESQL: Final = 15
SERVER_VERSION: Final = text("SELECT current_setting('server_version_num')::int")


@lru_cache(maxsize=1)
def _known_versions(directory: str) -> tuple[frozenset[str], frozenset[str]]:
    """The heads of the migrations in `directory`, and all revisions; read from the files once."""
    scripts = ScriptDirectory(directory)
    every = frozenset(script.revision for script in scripts.walk_revisions())
    return frozenset(scripts.get_heads()), every


def is_behind(directory: str, present: frozenset[str]) -> bool:
    """Whether the database lacks a migration that this code needs.

    A migration that this code doesn't know belongs to a newer release. Migrations only expand the
    schema, so that both releases work side by side during a deploy (docs/deploy.md).
    """
    heads, known = _known_versions(directory)
    return not present or bool(present & known and present != heads)


def needed_versions(directory: str) -> frozenset[str]:
    """The schema version that this code was written for."""
    return _known_versions(directory)[0]


def present_versions() -> frozenset[str]:
    """The database's schema version; empty if it was never migrated. Raises SQLAlchemyError."""
    try:
        with snapshot() as connection:
            return frozenset(connection.execute(VERSIONS).scalars())
    except ProgrammingError:
        # The table does not exist.
        return frozenset()


def version_name(number: int) -> str:
    """`server_version_num` in the usual form: 150018 is 15.18."""
    major, minor = divmod(number, 10_000)
    return f"{major}.{minor}"


def why_too_old(number: int) -> str | None:
    """The message for a server that is too old, by `server_version_num`; None if new enough."""
    if number >= LEAST_POSTGRESQL * 10_000:
        return None
    return f"PostgreSQL {version_name(number)} is too old: {LEAST_POSTGRESQL} is the least"
