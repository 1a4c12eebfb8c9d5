#!/bin/sh
# The daily backup into FOLDER, for a timer: scheduled.sh FOLDER
#
# Needs what backup.sh needs. Deletes backups older than BACKUP_KEEP_DAYS (14), but only after the new one is
# complete, so that a failure never deletes the last good one.
set -eu

[ $# -eq 1 ] || { echo "usage: scheduled.sh FOLDER" >&2; exit 2; }
folder=$1
days=${BACKUP_KEEP_DAYS:-14}
case $days in
'' | *[!0-9]* | 0*) echo "BACKUP_KEEP_DAYS: a whole number of days from 1, without a leading zero" >&2; exit 2 ;;
esac

# Incomplete files of killed backups would fill the disk.
find "$folder" -maxdepth 1 -type f -name 'maramoja-*.dump.part' -mtime +0 -exec rm -f {} +
"$(dirname "$0")/backup.sh" "$folder/maramoja-$(date -u +%Y-%m-%dT%H%M%SZ).dump"
find "$folder" -maxdepth 1 -type f -name 'maramoja-*.dump' -mtime "+$((days - 1))" -print -exec rm -f {} +
