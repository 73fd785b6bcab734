-- One row for each start of a process that signs. For people and monitoring: no rule depends on it.
CREATE TABLE nodes (
    id           TEXT    PRIMARY KEY NOT NULL CHECK (id <> ''),    -- as in key_uses.node
    name         TEXT    NOT NULL CHECK (name <> ''),
    host         TEXT    NOT NULL,
    process_id   INTEGER NOT NULL,
    version      TEXT    NOT NULL,
    state        TEXT    NOT NULL CHECK (state IN ('running', 'paused', 'draining', 'stopped')),
    in_flight    INTEGER NOT NULL DEFAULT 0 CHECK (in_flight >= 0),
    trouble      TEXT,
    lease_ms     INTEGER NOT NULL CHECK (lease_ms > 0),
    started_at   TEXT    NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    last_seen_at TEXT    NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))
) STRICT;
