"""The schema's version: which this code was written for, and which the database has; and the server's."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from alembic.script import ScriptDirectory
from sqlalchemy import text
from sqlalchemy.exc import ProgrammingError

from payments_app.kernel.database import snapshot

# Alembic's own way to ask writes two lines into the log, each time.
VERSIONS: Final = text("SELECT version_num FROM alembic_version")
# Views with the rights of who reads them (`security_invoker`), and a `public` schema in which not
# everybody may make tables.
LEAST_POSTGRESQL: Final = 15
SERVER_VERSION: Final = text("SELECT current_setting('server_version_num')::int")


@lru_cache(maxsize=1)
def _known_versions(directory: str) -> tuple[frozenset[str], frozenset[str]]:
    """The heads of the migrations in `directory`, and all of them; read once from the files."""
    scripts = ScriptDirectory(directory)
    every = frozenset(script.revision for script in scripts.walk_revisions())
    return frozenset(scripts.get_heads()), every


def is_behind(directory: str, present: frozenset[str]) -> bool:
    """Whether the database lacks a migration that this code needs.

    One that this code doesn't know is a newer version's: those only expand, so that both work
    side by side while a deploy is under way (docs/deploy.md).
    """
    heads, known = _known_versions(directory)
    return not present or bool(present & known and present != heads)


def needed_versions(directory: str) -> frozenset[str]:
    """What this code was written for."""
    return _known_versions(directory)[0]


def present_versions() -> frozenset[str]:
    """What the database was migrated to; nothing if it never was. Raises SQLAlchemyError."""
    try:
        with snapshot() as connection:
            return frozenset(connection.execute(VERSIONS).scalars())
    except ProgrammingError:
        # There is no such table.
        return frozenset()


def version_name(number: int) -> str:
    """`server_version_num` as people write it: 150018 is 15.18."""
    major, minor = divmod(number, 10_000)
    return f"{major}.{minor}"


def why_too_old(number: int) -> str | None:
    """What to say of a server of this `server_version_num`; None if it is new enough."""
    if number >= LEAST_POSTGRESQL * 10_000:
        return None
    return f"PostgreSQL {version_name(number)} is too old: {LEAST_POSTGRESQL} is the least"
