"""A backup has no grants on the database itself: the restore revokes what the migration revoked."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import psycopg

from devstack.postgres_binaries import program_directory
from devstack.postgres_server import OWNER, PostgresServer
from tests.shape.source_tree import ROOT

RIGHTS = """
    SELECT count(*) FILTER (WHERE has_function_privilege('maramoja_app', p.oid, 'EXECUTE')),
           count(*) FILTER (WHERE p.proconfig @> ARRAY['search_path=pg_catalog, public, pg_temp']),
           has_database_privilege('maramoja_app', current_database(), 'TEMPORARY')
    FROM pg_proc p WHERE p.pronamespace = 'public'::regnamespace
"""


def run(script: str, file: Path, server: PostgresServer, **environment: str) -> None:
    path = f"{program_directory(server.user)}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(
        [str(ROOT / "deploy" / "backup" / script), str(file)],
        env={"PATH": path, **environment},
        check=True,
        capture_output=True,
    )


def rights(url: str) -> object:
    with psycopg.connect(url) as connection:
        return connection.execute(RIGHTS).fetchone()


def test_a_restored_database_gives_our_role_no_more_than_the_one_before(
    postgres_server: PostgresServer, administrator_url: str, tmp_path: Path
) -> None:
    bare = "restored_rights"
    with psycopg.connect(postgres_server.administrator_url(), autocommit=True) as administrator:
        administrator.execute(f"CREATE DATABASE {bare} OWNER {OWNER}".encode())
    restored = postgres_server.administrator_url(bare)
    try:
        run("backup.sh", tmp_path / "dump", postgres_server, BACKUP_DATABASE_URL=administrator_url)
        run("restore.sh", tmp_path / "dump", postgres_server, RESTORE_DATABASE_URL=restored)
        assert rights(restored) == rights(administrator_url)
        assert rights(restored)[2] is False  # type: ignore[index]
    finally:
        postgres_server.drop_database(bare)
