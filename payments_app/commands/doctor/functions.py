"""Checks of our functions in PostgreSQL: their search path, and who may call them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from sqlalchemy import text

from payments_app.commands.doctor.finding import Finding, ok, problem
from payments_app.kernel.database import snapshot

# PostgreSQL's own schema comes first, and a session's temporary one last.
PATH: Final = "pg_catalog, public, pg_temp"
# A body that was parsed at creation looks up no names at a call. Functions of extensions are not
# ours. Without an ACL, a function has PostgreSQL's default: EXECUTE for PUBLIC.
_FUNCTIONS: Final = text(
    """
    SELECT p.oid::regprocedure::text,
           p.prosqlbody IS NULL
           AND NOT coalesce(p.proconfig, '{}') @> ARRAY['search_path=' || CAST(:path AS text)],
           EXISTS (
               SELECT FROM aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) g
               WHERE g.grantee = 0)
    FROM pg_proc p
    WHERE p.pronamespace = 'public'::regnamespace
      AND NOT EXISTS (
          SELECT FROM pg_depend d
          WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e')
    ORDER BY 1
    """
)
# The owners of our tables; one of them creates the functions of the next migration.
_OPEN_BY_DEFAULT: Final = text(
    """
    SELECT DISTINCT pg_get_userbyid(c.relowner) FROM pg_class c
    WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') AND EXISTS (
        SELECT FROM aclexplode(coalesce(
            (SELECT a.defaclacl FROM pg_default_acl a
             WHERE a.defaclrole = c.relowner AND a.defaclnamespace = 0 AND a.defaclobjtype = 'f'),
            acldefault('f', c.relowner))) g
        WHERE g.grantee = 0)
    ORDER BY 1
    """
)


def check_functions() -> Iterator[Finding]:
    """Each function looks in our own schemas, temporary ones last; PUBLIC may call none."""
    with snapshot() as connection:
        functions = connection.execute(_FUNCTIONS, {"path": PATH}).all()
        open_by_default = list(connection.execute(_OPEN_BY_DEFAULT).scalars())
    straying = [name for name, strays, _ in functions if strays]
    anybodys = [name for name, _, by_anybody in functions if by_anybody]
    if straying:
        yield problem(
            f"a session's temporary tables may stand in for ours in: {', '.join(straying)}",
            f"as their owner: ALTER FUNCTION … SET search_path = {PATH}",
        )
    if anybodys:
        yield problem(
            f"everybody may call: {', '.join(anybodys)}",
            "as their owner: REVOKE EXECUTE ON FUNCTION … FROM PUBLIC",
        )
    if open_by_default:
        yield problem(
            f"everybody may call what this role makes next: {', '.join(open_by_default)}",
            "as that role: ALTER DEFAULT PRIVILEGES REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC",
        )
    if not (straying or anybodys or open_by_default):
        yield ok(f"all {len(functions)} functions look where they should, and are ours to call")
