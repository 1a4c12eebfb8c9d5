"""PostgreSQL's version: which is the least that the schema can be made and kept on."""

from __future__ import annotations

from typing import Final

from sqlalchemy import text

# Views with the rights of who reads them (`security_invoker`), and a `public` schema in which not
# everybody may make tables.
LEAST_POSTGRESQL: Final = 15
SERVER_VERSION: Final = text("SELECT current_setting('server_version_num')::int")


def version_name(number: int) -> str:
    """`server_version_num` as people write it: 150018 is 15.18."""
    major, minor = divmod(number, 10_000)
    return f"{major}.{minor}"


def why_too_old(number: int) -> str | None:
    """What to say of a server of this `server_version_num`; None if it is new enough."""
    if number >= LEAST_POSTGRESQL * 10_000:
        return None
    return f"PostgreSQL {version_name(number)} is too old: {LEAST_POSTGRESQL} is the least"
