#!/bin/sh
# One backup of the database into FILE: backup.sh FILE
#
# The password may be in the address or in the file that PGPASSFILE names.
# BACKUP_DATABASE_URL: a role that bypasses row-level security and may only read:
#   CREATE ROLE maramoja_backup LOGIN BYPASSRLS PASSWORD '…';
#   GRANT pg_read_all_data TO maramoja_backup;
# The gateway keeps running during a backup. Keep SECRET_KEYS elsewhere: without them no secret in the
# backup can be decrypted, and with them all can.
set -eu

[ $# -eq 1 ] || { echo "usage: backup.sh FILE" >&2; exit 2; }
: "${BACKUP_DATABASE_URL:?set it to the address of a role that may read everything}"
file=$1
umask 077
. "$(dirname "$0")/address.sh"
out_of_sight "$BACKUP_DATABASE_URL"

# The file has another name until it is complete.
trap 'rm -f "$file.part"' EXIT
pg_dump --format=custom --dbname="$address" --file="$file.part"
pg_restore --list "$file.part" >/dev/null
sync "$file.part"
mv "$file.part" "$file"
echo "backup: $(wc -c <"$file") bytes in $file"
