#!/bin/bash
#
# Runs once, in the postgres container, when its volume is new: makes the database and its two roles.
#
#   chancery_owner   owns the database and migrates it
#   chancery         runs: `chancery migrate` grants it what a node needs, and no more

set -euo pipefail

psql -X -v ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname postgres <<'SQL'
\set owner_password `cat /run/secrets/owner_password`
\set runtime_password `cat /run/secrets/runtime_password`
CREATE ROLE chancery_owner LOGIN PASSWORD :'owner_password';
CREATE ROLE chancery LOGIN PASSWORD :'runtime_password';
CREATE DATABASE chancery OWNER chancery_owner ENCODING 'UTF8' TEMPLATE template0;
REVOKE CONNECT ON DATABASE chancery FROM PUBLIC;
GRANT CONNECT ON DATABASE chancery TO chancery;
-- So that `status` and the log can name a transaction of another role that holds signing back.
GRANT pg_read_all_stats TO chancery;
SQL
