#!/bin/sh
# Restores a backup into a new, empty database: restore.sh FILE
#
# RESTORE_DATABASE_URL: that database, as a superuser. Its roles (owner and application) must exist,
# as docs/deploy.md or docker-compose.yml creates them. No process may use it yet.
set -eu

[ $# -eq 1 ] || { echo "usage: restore.sh FILE" >&2; exit 2; }
: "${RESTORE_DATABASE_URL:?set it to the address of the new database, as a superuser}"
file=$1
. "$(dirname "$0")/address.sh"
out_of_sight "$RESTORE_DATABASE_URL"

tables=$(psql --no-psqlrc --quiet --tuples-only --no-align --dbname="$address" \
    --command="SELECT count(*) FROM pg_tables WHERE schemaname = 'public'")
if [ "$tables" != 0 ]; then
    echo "restore: the database has $tables tables already; give it a new, empty one" >&2
    exit 1
fi
# One transaction: it restores everything or nothing.
pg_restore --exit-on-error --single-transaction --dbname="$address" "$file"
# A backup does not contain the rights to the database itself.
psql --no-psqlrc --quiet --set=ON_ERROR_STOP=1 --dbname="$address" <<'SQL'
SELECT format('REVOKE TEMPORARY ON DATABASE %I FROM PUBLIC', current_database()) \gexec
ANALYZE;
SQL
echo "restore: done. Now, before any worker starts: flask recovery begin"
