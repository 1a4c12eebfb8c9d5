#!/bin/sh
# One backup of the database into FILE: backup.sh FILE
#
# A password may stand in the address or in the file that PGPASSFILE names.
# BACKUP_DATABASE_URL: a role that row-level security doesn't hold and that may only read:
#   CREATE ROLE maramoja_backup LOGIN BYPASSRLS PASSWORD '…';
#   GRANT pg_read_all_data TO maramoja_backup;
# The gateway goes on meanwhile. Keep SECRET_KEYS elsewhere: without them the backup holds no secret
# that can be read, and with them all of them.
set -eu

[ $# -eq 1 ] || { echo "usage: backup.sh FILE" >&2; exit 2; }
: "${BACKUP_DATABASE_URL:?set it to the address of a role that may read everything}"
file=$1
umask 077
. "$(dirname "$0")/address.sh"
out_of_sight "$BACKUP_DATABASE_URL"

# Under another name until it is whole.
trap 'rm -f "$file.part"' EXIT
pg_dump --format=custom --dbname="$address" --file="$file.part"
pg_restore --list "$file.part" >/dev/null
sync "$file.part"
mv "$file.part" "$file"
echo "backup: $(wc -c <"$file") bytes in $file"
