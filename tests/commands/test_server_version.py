"""A server that is too old is reported before anything is created on it, and by the doctor."""

from __future__ import annotations

import psycopg
import pytest
from flask import Flask
from sqlalchemy import text

from devstack.environment import hermetic_environment
from devstack.errors import StackError
from devstack.programs import Programs
from devstack.servers import Servers
from payments_app.kernel.database import snapshot
from payments_app.kernel.schema import LEAST_POSTGRESQL, why_too_old
from tests.deploy.settings_known import ROOT

# There is no such server here: in this database the server reports an old version.
PRETEND = """
    ALTER FUNCTION pg_catalog.current_setting(text) RENAME TO own_setting;
    CREATE FUNCTION pg_catalog.current_setting(text) RETURNS text LANGUAGE sql STABLE STRICT AS
    $$ SELECT CASE $1 WHEN 'server_version_num' THEN '140019' ELSE current_setting($1, false) END $$;
"""


@pytest.fixture
def programs(servers: Servers) -> Programs:
    database = servers.postgres.create_database("maramoja_too_old")
    with psycopg.connect(servers.postgres.administrator_url(database)) as superuser:
        superuser.execute(PRETEND.encode())
    return Programs(hermetic_environment(servers.addresses(database, servers.redis), {}))


def test_nothing_is_made_on_a_server_that_is_too_old_and_the_doctor_names_it(
    programs: Programs,
) -> None:
    with pytest.raises(
        StackError, match=r"PostgreSQL 14\.19 is too old: 15 is the least"
    ) as raised:
        programs.migrate()
    assert "Traceback" not in str(raised.value)
    with psycopg.connect(programs.environment["DATABASE_URL"]) as connection:
        row = connection.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'")
        assert row.fetchone() == (0,)
    with pytest.raises(StackError) as examined:
        programs.flask("doctor", "--offline")
    (line,) = [line for line in str(examined.value).splitlines() if "  PostgreSQL  " in line]
    assert "problem" in line
    assert "PostgreSQL 14.19 is too old" in line


def test_no_statement_is_compiled_first(app: Flask) -> None:
    """Servers before 18 JIT-compiled statements that use only indexes: many times as slow."""
    with app.app_context(), snapshot() as connection:
        assert connection.execute(text("SELECT current_setting('jit')")).scalar_one() == "off"


def test_the_least_version_is_the_one_that_the_pages_name() -> None:
    assert why_too_old(LEAST_POSTGRESQL * 10_000) is None
    assert why_too_old(LEAST_POSTGRESQL * 10_000 - 1) is not None
    for page in ("docs/deploy.md", "docs/systemd.md"):
        assert f"PostgreSQL {LEAST_POSTGRESQL} or newer" in (ROOT / page).read_text(), page
