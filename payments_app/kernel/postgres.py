"""PostgreSQL's error codes, and the check that row-level security applies to our role."""

from __future__ import annotations

import re
from typing import Any, Final

from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import ConnectionPoolEntry

from payments_app.kernel.errors import GatewayError

# SQLSTATEs that do not depend on the rows, so a retry may succeed: connections (08), too many of
# them, a server that stops or starts, a timeout of a lock, a statement or a transaction (25P03: our
# process was suspended for half a minute), a deadlock, a serialization failure.
_TRANSIENT: Final = re.compile("08...|53300|57P0[1235]|25P0[34]|55P03|57014|40P01|40001")
BEGIN: Final = "BEGIN"
# It also ends read-only work: after a rollback psycopg forgets all its prepared statements.
COMMIT: Final = "COMMIT"
# A statement that was prepared on a small table keeps its plan when the table has 200,000 rows,
# until it is analyzed. Where that matters, these settings force index plans.
BEGIN_BY_INDEX: Final = "; SET LOCAL ".join(
    (
        *(BEGIN, "enable_seqscan = off", "enable_bitmapscan = off"),
        *("enable_hashjoin = off", "enable_mergejoin = off", "enable_sort = off"),
    )
)


class DatabaseRoleUnsafe(GatewayError):
    """PostgreSQL does not apply row-level security to the role in DATABASE_URL."""

    code = "database_role_unsafe"


def refuse_unsafe_role(raw: Any, _entry: ConnectionPoolEntry | None = None) -> None:
    """Raise DatabaseRoleUnsafe if row-level security does not apply to this connection's role."""
    row = raw.execute(
        "SELECT rolsuper OR rolbypassrls FROM pg_roles WHERE rolname = current_user"
    ).fetchone()
    if row[0]:
        raise DatabaseRoleUnsafe(
            "The role in DATABASE_URL is a superuser or has BYPASSRLS, which no row-level security"
            " holds. Use a plain role (docs/settings.md), or set DATABASE_ALLOW_SUPERUSER=true"
            " where nothing is at stake."
        )


def constraint_of(error: IntegrityError) -> str | None:
    """The name of the violated constraint."""
    diagnostics = getattr(error.orig, "diag", None)
    name: str | None = getattr(diagnostics, "constraint_name", None)
    return name


def is_lock_timeout(error: OperationalError) -> bool:
    """Whether the wait for a locked row timed out (SQLSTATE 55P03, lock_not_available)."""
    return getattr(error.orig, "sqlstate", None) == "55P03"


def is_transient(error: Exception) -> bool:
    """Whether this error does not depend on the transaction's rows: a retry may succeed."""
    if isinstance(error, PoolTimeout):
        return True
    if not isinstance(error, DBAPIError):
        return False
    sqlstate = getattr(error.orig, "sqlstate", None)
    is_lost = error.connection_invalidated or isinstance(error, OperationalError)
    return is_lost if sqlstate is None else _TRANSIENT.fullmatch(sqlstate) is not None
