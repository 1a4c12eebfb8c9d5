#!/bin/sh
# A backup into a new, empty database: restore.sh FILE
#
# RESTORE_DATABASE_URL: that database, as a superuser. Its roles (owner and application) must be
# there, as docs/deploy.md or docker-compose.yml makes them. Nothing may run on it yet.
set -eu

[ $# -eq 1 ] || { echo "usage: restore.sh FILE" >&2; exit 2; }
: "${RESTORE_DATABASE_URL:?set it to the address of the new database, as a superuser}"
file=$1

tables=$(psql --no-psqlrc --quiet --tuples-only --no-align --dbname="$RESTORE_DATABASE_URL" \
    --command="SELECT count(*) FROM pg_tables WHERE schemaname = 'public'")
if [ "$tables" != 0 ]; then
    echo "restore: the database has $tables tables already; give it a new, empty one" >&2
    exit 1
fi
# All or nothing.
pg_restore --exit-on-error --single-transaction --dbname="$RESTORE_DATABASE_URL" "$file"
psql --no-psqlrc --quiet --dbname="$RESTORE_DATABASE_URL" --command="ANALYZE"
echo "restore: done. Now, before any worker starts: flask recovery begin"
