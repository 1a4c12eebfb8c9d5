"""Checks of session settings: nothing overrides them for our role, and connections keep them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from sqlalchemy import bindparam, text

from payments_app.commands.doctor.finding import Finding, ok, problem
from payments_app.kernel.database import snapshot
from payments_app.kernel.session_settings import SESSION

# Stored settings of our role, of the tables' owners, of this database, and of all roles.
_KEPT: Final = text(
    """
    SELECT quote_ident(r.rolname), quote_ident(d.datname), split_part(one, '=', 1) AS name,
           substr(one, strpos(one, '=') + 1) AS value
    FROM pg_db_role_setting s
    LEFT JOIN pg_roles r ON r.oid = s.setrole
    LEFT JOIN pg_database d ON d.oid = s.setdatabase
    CROSS JOIN unnest(s.setconfig) AS one
    WHERE (s.setdatabase = 0 OR d.datname = current_database())
      AND (s.setrole = 0 OR r.rolname IN (current_user, session_user) OR s.setrole IN (
            SELECT relowner FROM pg_class
            WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p')))
    ORDER BY 1 NULLS LAST, 2 NULLS FIRST, 3
    """
)
# A pooler may drop the options that a connection requests.
_NOT_OURS: Final = text(
    "SELECT name FROM pg_settings WHERE lower(name) IN :names AND source <> 'client' ORDER BY 1"
).bindparams(bindparam("names", expanding=True))
# These settings control only what the server logs.
_LOGGING: Final = ("log_", "auto_explain.", "pg_stat_statements.", "pgaudit.")
# Neither value loses a commit that the server has confirmed.
_SAFE_COMMITS: Final = ("on", "remote_apply")


def check_sessions() -> Iterator[Finding]:
    """No role or database has its own settings, and our connection has those that it requested."""
    with snapshot() as connection:
        kept = connection.execute(_KEPT).all()
        dropped = list(connection.execute(_NOT_OURS, {"names": list(SESSION)}).scalars())
    bent = [row for row in kept if not _is_sound(row.name, row.value)]
    for role, database, name, value in bent:
        whose = _whose(role, database)
        yield problem(
            f"{whose} has its own {name}: {value or 'nothing'}",
            f"as a superuser: ALTER {whose} RESET {name}; and find out who set it",
        )
    if dropped:
        yield problem(
            f"our connections don't get what they ask for: {', '.join(dropped)}",
            "let DATABASE_URL lead to PostgreSQL itself: a pooler on the way drops their options",
        )
    if not (bent or dropped):
        yield ok("sessions begin as they should, and nobody has set anything else for them")


def _is_sound(name: str, value: str) -> bool:
    if name == "synchronous_commit":
        return value in _SAFE_COMMITS
    return name.startswith(_LOGGING) or _plain(SESSION.get(name.lower())) == _plain(value)


def _plain(value: str | None) -> str | None:
    return None if value is None else value.replace(" ", "").lower()


def _whose(role: str | None, database: str | None) -> str:
    """In the syntax of `ALTER`."""
    if role is None:
        return "ROLE ALL" if database is None else f"DATABASE {database}"
    return f"ROLE {role}" if database is None else f"ROLE {role} IN DATABASE {database}"
