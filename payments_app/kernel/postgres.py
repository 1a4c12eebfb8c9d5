"""What PostgreSQL says of itself: why it refused, and whether its walls hold our role."""

from __future__ import annotations

from typing import Any

from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.pool import ConnectionPoolEntry

from payments_app.kernel.errors import GatewayError


class DatabaseRoleUnsafe(GatewayError):
    """PostgreSQL does not apply row-level security to the role in DATABASE_URL."""

    code = "database_role_unsafe"


def refuse_unsafe_role(raw: Any, _entry: ConnectionPoolEntry | None = None) -> None:
    """Raise DatabaseRoleUnsafe if this new connection's role is one that RLS doesn't hold."""
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
    """The name of the constraint that refused."""
    diagnostics = getattr(error.orig, "diag", None)
    name: str | None = getattr(diagnostics, "constraint_name", None)
    return name


def is_lock_timeout(error: OperationalError) -> bool:
    """Whether a statement gave up waiting for a row (SQLSTATE 55P03, lock_not_available)."""
    return getattr(error.orig, "sqlstate", None) == "55P03"
