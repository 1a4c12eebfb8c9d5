-- Creates the gateway's roles and its database; for psql 15 or newer, as a superuser. It may run again:
-- then it changes only the passwords.
--
-- Before it, in the same psql:
--   \set owner_password '…'
--   \set app_password '…'
--   \set backup_password '…'    if there is to be a role for backups
--
-- maramoja_owner owns the tables, and only migrations connect as it. The gateway connects as maramoja_app: a
-- superuser or an owner would read past row-level security. maramoja_backup reads everything and changes nothing.
\set ON_ERROR_STOP on
\if :{?backup_password}
\else
\set backup_password ''
\endif
SELECT format('CREATE ROLE %I LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOBYPASSRLS', name)
  FROM unnest(ARRAY['maramoja_owner', 'maramoja_app']) AS name
 WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name) \gexec
ALTER ROLE maramoja_owner PASSWORD :'owner_password';
ALTER ROLE maramoja_app PASSWORD :'app_password';
SELECT 'CREATE ROLE maramoja_backup LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE BYPASSRLS'
 WHERE :'backup_password' <> ''
   AND NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'maramoja_backup') \gexec
SELECT format('ALTER ROLE maramoja_backup PASSWORD %L', :'backup_password')
 WHERE :'backup_password' <> '' \gexec
SELECT 'GRANT pg_read_all_data TO maramoja_backup'
 WHERE :'backup_password' <> '' \gexec
SELECT 'CREATE DATABASE maramoja OWNER maramoja_owner'
 WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = 'maramoja') \gexec
REVOKE TEMPORARY ON DATABASE maramoja FROM PUBLIC;
\connect maramoja
ALTER DEFAULT PRIVILEGES FOR ROLE maramoja_owner GRANT SELECT, INSERT ON TABLES TO maramoja_app;
ALTER DEFAULT PRIVILEGES FOR ROLE maramoja_owner GRANT USAGE ON SEQUENCES TO maramoja_app;
