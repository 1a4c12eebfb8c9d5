"""Checks of tenant isolation: our role, row-level security, the audit triggers, our privileges."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from sqlalchemy import text

from payments_app.commands.doctor.finding import Finding, ok, problem, warning
from payments_app.kernel.database import snapshot

_ROLE: Final = text(
    "SELECT current_user, rolsuper OR rolbypassrls,"
    " EXISTS (SELECT FROM pg_class WHERE relnamespace = 'public'::regnamespace"
    " AND relkind IN ('r', 'p') AND pg_has_role(relowner, 'MEMBER'))"
    " FROM pg_roles WHERE rolname = current_user"
)
# A table is isolated by one policy, for all roles and commands, that compares with the
# transaction's tenant. All have the same expression on their column; a second one would permit more
# rows.
_UNWALLED: Final = text(
    r"""
    WITH walls AS (
        SELECT relname, relrowsecurity AND relforcerowsecurity AS stands,
               (SELECT count(*) FROM pg_policy WHERE polrelid = c.oid) AS policies,
               (SELECT regexp_replace(pg_get_expr(polqual, polrelid), '\((tenant_id|id)\)', '')
                FROM pg_policy
                WHERE polrelid = c.oid AND polname = 'tenant_wall' AND polcmd = '*'
                  AND polpermissive AND polroles = '{0}' AND polwithcheck IS NULL) AS says
        FROM pg_class c
        WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p')
          AND relname <> 'alembic_version')
    SELECT relname FROM walls
    WHERE NOT stands OR policies <> 1 OR says IS NULL OR says NOT LIKE '%maramoja.tenant%'
       OR says <> (SELECT mode() WITHIN GROUP (ORDER BY says) FROM walls)
    ORDER BY relname
    """
)
# Triggers of foreign keys too. A restore by hand, or session_replication_role = replica, disables
# them.
_ASLEEP: Final = text(
    """
    SELECT DISTINCT relname FROM pg_trigger t JOIN pg_class c ON c.oid = tgrelid
    WHERE relnamespace = 'public'::regnamespace AND tgenabled NOT IN ('O', 'A')
       OR relnamespace = 'public'::regnamespace
          AND current_setting('session_replication_role') = 'replica'
    ORDER BY relname
    """
)
# Partitions are reached through their table. Rows of purged tables may be deleted.
_RIGHTS: Final = text(
    """
    SELECT relname,
           has_table_privilege(c.oid, 'SELECT')
           AND (relname = 'alembic_version' OR has_table_privilege(c.oid, 'INSERT')),
           has_table_privilege(c.oid, 'TRUNCATE') OR has_table_privilege(c.oid, 'DELETE')
           AND relname NOT IN ('webhook_deliveries', 'webhook_attempts')
    FROM pg_class c
    WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p') AND NOT relispartition
      AND pg_get_userbyid(relowner) <> current_user
    ORDER BY relname
    """
)
# A role that may create objects can create one that is used instead of ours of the same name. A
# role that owns the tables may do more, and is reported above.
_MAKES: Final = text(
    """
    SELECT what FROM (VALUES
        ('temporary tables', has_database_privilege(current_database(), 'TEMPORARY')),
        ('schemas', has_database_privilege(current_database(), 'CREATE')),
        ('tables and functions', has_schema_privilege('public', 'CREATE'))
    ) AS rights (what, may)
    WHERE may AND NOT EXISTS (
        SELECT FROM pg_class WHERE relnamespace = 'public'::regnamespace
        AND relkind IN ('r', 'p') AND pg_has_role(relowner, 'MEMBER'))
    """
)


def check_role() -> Iterator[Finding]:
    """Our role is subject to row-level security, and owns nothing."""
    with snapshot() as connection:
        name, unsafe, owner = connection.execute(_ROLE).one()
    if unsafe:
        yield problem(
            f"the role {name} is not restricted by row-level security",
            "give DATABASE_URL a plain role",
        )
    elif owner:
        yield warning(
            f"the role {name} owns tables, or may act as who does: it could switch row-level security off",
            "migrate as another role, by MIGRATION_DATABASE_URL",
        )
    else:
        yield ok(f"the role {name} is a plain one")


def check_walls() -> Iterator[Finding]:
    """Each table has row-level security, forced, with its own policy and no other."""
    with snapshot() as connection:
        bare = list(connection.execute(_UNWALLED).scalars())
    if bare:
        yield problem(
            f"no row-level security policy, or not the migrations' own, on: {', '.join(bare)}",
            "flask db upgrade; see migration 0002, and find out who changed it",
        )
    else:
        yield ok("every table has its row-level security policy")


def check_triggers() -> Iterator[Finding]:
    """The triggers that protect the record, and those of foreign keys, are enabled."""
    with snapshot() as connection:
        asleep = list(connection.execute(_ASLEEP).scalars())
    if asleep:
        yield problem(
            f"triggers are switched off on: {', '.join(asleep)}",
            "ALTER TABLE … ENABLE TRIGGER ALL as the owner; then flask audit verify",
        )
    else:
        yield ok("every trigger is awake")


def check_rights() -> Iterator[Finding]:
    """Our role has the privileges that it needs, and can't remove anything."""
    with snapshot() as connection:
        rows = connection.execute(_RIGHTS).all()
        makes = list(connection.execute(_MAKES).scalars())
    lacking = [name for name, enough, _ in rows if not enough]
    beyond = [name for name, _, too_much in rows if too_much]
    if lacking:
        yield problem(
            f"our role may not read or write: {', '.join(lacking)}",
            "grant what the migrations grant: they do it for the role in DATABASE_URL as they run,"
            " so make the role before flask db upgrade",
        )
    if beyond:
        yield warning(
            f"our role may remove rows of: {', '.join(beyond)}",
            "REVOKE DELETE, TRUNCATE on them from it",
        )
    if makes:
        yield problem(
            f"our role may make {', '.join(makes)}",
            "as the database's owner: REVOKE CREATE, TEMPORARY ON DATABASE … FROM PUBLIC;"
            " REVOKE CREATE ON SCHEMA public FROM PUBLIC; and the same from our role",
        )
    if not (lacking or beyond or makes):
        yield ok("our role may do what it must, and no more")
