-- The data model of docs/DATA_MODEL.md. migrations/postgres holds the same tables, one to one.
-- Times are TEXT: RFC 3339 in UTC with milliseconds, which sorts as it reads.

CREATE TABLE database_identity (
    id                INTEGER PRIMARY KEY DEFAULT 1 CHECK (id = 1),
    database_id       TEXT    NOT NULL,
    system_identifier TEXT    NOT NULL,
    created_at        TEXT    NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))
) STRICT;
INSERT INTO database_identity (database_id, system_identifier)
    VALUES (lower(hex(randomblob(16))), 'sqlite');

CREATE TABLE keks (
    kek_id      TEXT PRIMARY KEY NOT NULL,
    check_value BLOB NOT NULL,
    created_at  TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))
) STRICT;

CREATE TABLE rings (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    name       TEXT    NOT NULL UNIQUE CHECK (name <> ''),
    tick       INTEGER NOT NULL DEFAULT 0 CHECK (tick >= 0),
    cursor_xid INTEGER NOT NULL DEFAULT -1,
    cursor_id  INTEGER NOT NULL DEFAULT -1,
    created_at TEXT    NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))
) STRICT;
INSERT INTO rings (name) VALUES ('default');

CREATE TABLE keys (
    id                 INTEGER PRIMARY KEY AUTOINCREMENT,
    ring_id            INTEGER NOT NULL REFERENCES rings (id),
    kid                TEXT    NOT NULL UNIQUE,
    algorithm          TEXT    NOT NULL CHECK (algorithm IN ('Ed25519')),
    public_key         BLOB    NOT NULL CHECK (length(public_key) = 32),
    sealed_private_key BLOB,
    kek_id             TEXT    REFERENCES keks (kek_id),
    status             TEXT    NOT NULL CHECK (status IN ('active', 'disabled', 'retired', 'destroyed')),
    status_reason      TEXT,
    last_tick          INTEGER NOT NULL DEFAULT 0 CHECK (last_tick >= 0),
    created_at         TEXT    NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    CHECK (status <> 'destroyed' OR sealed_private_key IS NULL)
) STRICT;
CREATE INDEX keys_by_recency ON keys (ring_id, last_tick, id) WHERE status = 'active';

-- A BEFORE INSERT trigger sees -1 for an id that is not given, so a record of that id would make
-- records_no_replace refuse every other one.
CREATE TABLE records (
    id           INTEGER PRIMARY KEY AUTOINCREMENT CHECK (id > 0),
    ring_id      INTEGER NOT NULL,
    external_id  TEXT    CHECK (external_id <> ''),
    payload      BLOB    NOT NULL,
    inserted_xid INTEGER NOT NULL DEFAULT 0,
    created_at   TEXT    NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))
) STRICT;
CREATE UNIQUE INDEX records_external_id ON records (ring_id, external_id) WHERE external_id IS NOT NULL;
CREATE INDEX records_in_order ON records (ring_id, inserted_xid, id);

CREATE TABLE batches (
    id           INTEGER PRIMARY KEY AUTOINCREMENT,
    ring_id      INTEGER NOT NULL REFERENCES rings (id),
    low_xid      INTEGER NOT NULL,
    low_id       INTEGER NOT NULL,
    high_xid     INTEGER NOT NULL,
    high_id      INTEGER NOT NULL,
    record_count INTEGER NOT NULL CHECK (record_count > 0),
    state        TEXT    NOT NULL CHECK (state IN ('open', 'stored', 'retry', 'quarantined')),
    attempts     INTEGER NOT NULL DEFAULT 0 CHECK (attempts >= 0),
    failure      TEXT,
    created_at   TEXT    NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    stored_at    TEXT,
    CHECK ((low_xid, low_id) <= (high_xid, high_id)),
    CHECK ((state = 'stored') = (stored_at IS NOT NULL)),
    CHECK (state <> 'quarantined' OR failure IS NOT NULL)
) STRICT;
CREATE INDEX batches_unfinished ON batches (ring_id, state, id) WHERE state <> 'stored';

CREATE TABLE key_uses (
    ring_id        INTEGER NOT NULL REFERENCES rings (id),
    fence          INTEGER NOT NULL CHECK (fence > 0),
    batch_id       INTEGER NOT NULL REFERENCES batches (id),
    key_id         INTEGER NOT NULL REFERENCES keys (id),
    node           TEXT    NOT NULL,
    checked_out_at TEXT    NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    expires_at     TEXT    NOT NULL,
    end_tick       INTEGER,
    ended_at       TEXT,
    outcome        TEXT    CHECK (outcome IN ('stored', 'reclaimed', 'abandoned')),
    PRIMARY KEY (ring_id, fence),
    CHECK (end_tick > fence),
    CHECK ((end_tick IS NULL) = (ended_at IS NULL) AND (end_tick IS NULL) = (outcome IS NULL))
) STRICT;
CREATE UNIQUE INDEX key_uses_one_open_per_key ON key_uses (key_id) WHERE end_tick IS NULL;
CREATE UNIQUE INDEX key_uses_one_open_per_batch ON key_uses (batch_id) WHERE end_tick IS NULL;
CREATE UNIQUE INDEX key_uses_one_stored_per_batch ON key_uses (batch_id) WHERE outcome = 'stored';
CREATE UNIQUE INDEX key_uses_by_end ON key_uses (ring_id, end_tick) WHERE end_tick IS NOT NULL;
CREATE INDEX key_uses_by_key ON key_uses (key_id, end_tick);

CREATE TABLE key_events (
    ring_id INTEGER NOT NULL REFERENCES rings (id),
    tick    INTEGER NOT NULL CHECK (tick > 0),
    key_id  INTEGER NOT NULL REFERENCES keys (id),
    event   TEXT    NOT NULL CHECK (event IN ('added', 'enabled', 'disabled', 'retired', 'destroyed')),
    actor   TEXT    NOT NULL,
    reason  TEXT,
    at      TEXT    NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    PRIMARY KEY (ring_id, tick)
) STRICT;

CREATE TABLE signatures (
    record_id INTEGER PRIMARY KEY,
    batch_id  INTEGER NOT NULL,
    signature BLOB    NOT NULL CHECK (length(signature) = 64)
) STRICT;

CREATE VIEW signed_records AS
    SELECT s.record_id, r.external_id, g.name AS ring, r.payload, s.signature,
           k.kid, k.public_key, k.algorithm, s.batch_id, b.stored_at AS signed_at
    FROM signatures s
    JOIN records r ON r.id = s.record_id
    JOIN rings g ON g.id = r.ring_id
    JOIN batches b ON b.id = s.batch_id
    JOIN key_uses u ON u.batch_id = s.batch_id AND u.outcome = 'stored'
    JOIN keys k ON k.id = u.key_id;

-- What has been written stays: the triggers that refuse every other change.

CREATE TRIGGER signatures_no_update BEFORE UPDATE ON signatures
BEGIN SELECT RAISE(ABORT, 'UPDATE on signatures is refused: its rows are never changed or removed'); END;
CREATE TRIGGER signatures_no_delete BEFORE DELETE ON signatures
BEGIN SELECT RAISE(ABORT, 'DELETE on signatures is refused: its rows are never changed or removed'); END;
CREATE TRIGGER key_events_no_update BEFORE UPDATE ON key_events
BEGIN SELECT RAISE(ABORT, 'UPDATE on key_events is refused: its rows are never changed or removed'); END;
CREATE TRIGGER key_events_no_delete BEFORE DELETE ON key_events
BEGIN SELECT RAISE(ABORT, 'DELETE on key_events is refused: its rows are never changed or removed'); END;
CREATE TRIGGER records_no_delete BEFORE DELETE ON records
BEGIN SELECT RAISE(ABORT, 'DELETE on records is refused: its rows are never changed or removed'); END;
CREATE TRIGGER batches_no_delete BEFORE DELETE ON batches
BEGIN SELECT RAISE(ABORT, 'DELETE on batches is refused: its rows are never changed or removed'); END;
CREATE TRIGGER key_uses_no_delete BEFORE DELETE ON key_uses
BEGIN SELECT RAISE(ABORT, 'DELETE on key_uses is refused: its rows are never changed or removed'); END;

-- INSERT OR REPLACE removes the row that is there, and fires no DELETE trigger for it unless the
-- connection asks for that.
CREATE TRIGGER signatures_no_replace BEFORE INSERT ON signatures
WHEN EXISTS (SELECT 1 FROM signatures WHERE record_id = NEW.record_id)
BEGIN SELECT RAISE(ABORT, 'UNIQUE constraint failed: signatures.record_id'); END;
CREATE TRIGGER key_events_no_replace BEFORE INSERT ON key_events
WHEN EXISTS (SELECT 1 FROM key_events WHERE ring_id = NEW.ring_id AND tick = NEW.tick)
BEGIN SELECT RAISE(ABORT, 'UNIQUE constraint failed: key_events.ring_id, key_events.tick'); END;
CREATE TRIGGER records_no_replace BEFORE INSERT ON records
WHEN EXISTS (SELECT 1 FROM records WHERE id = NEW.id)
    OR NEW.external_id IS NOT NULL AND EXISTS (
        SELECT 1 FROM records WHERE ring_id = NEW.ring_id AND external_id = NEW.external_id)
BEGIN SELECT RAISE(ABORT, 'UNIQUE constraint failed: records.id, or records.ring_id, records.external_id'); END;

CREATE TRIGGER records_guard BEFORE UPDATE ON records
WHEN NEW.id <> OLD.id OR NEW.ring_id <> OLD.ring_id OR NEW.payload <> OLD.payload
    OR NEW.inserted_xid < OLD.inserted_xid
BEGIN SELECT RAISE(ABORT, 'records: id, ring_id and payload never change, inserted_xid only rises'); END;

CREATE TRIGGER rings_guard BEFORE UPDATE ON rings
WHEN NEW.id <> OLD.id OR NEW.tick < OLD.tick
    OR (NEW.cursor_xid, NEW.cursor_id) < (OLD.cursor_xid, OLD.cursor_id)
BEGIN SELECT RAISE(ABORT, 'rings: id never changes, tick and cursor only rise'); END;

CREATE TRIGGER batches_guard BEFORE UPDATE ON batches
WHEN OLD.state = 'stored' OR NEW.id <> OLD.id OR NEW.ring_id <> OLD.ring_id
    OR (NEW.low_xid, NEW.low_id, NEW.high_xid, NEW.high_id, NEW.record_count, NEW.created_at)
        <> (OLD.low_xid, OLD.low_id, OLD.high_xid, OLD.high_id, OLD.record_count, OLD.created_at)
BEGIN SELECT RAISE(ABORT, 'batches: a range never changes, and a stored batch not at all'); END;

-- R2 for the history: the index on open uses sees only the present.
CREATE TRIGGER key_uses_opened BEFORE INSERT ON key_uses
WHEN NEW.end_tick IS NOT NULL
    OR NEW.fence <= (SELECT max(end_tick) FROM key_uses WHERE key_id = NEW.key_id)
BEGIN SELECT RAISE(ABORT, 'key_uses: a use begins open, and above every end of its key'); END;

CREATE TRIGGER key_uses_guard BEFORE UPDATE ON key_uses
WHEN OLD.end_tick IS NOT NULL
    OR (NEW.ring_id, NEW.fence, NEW.batch_id, NEW.key_id, NEW.node, NEW.checked_out_at)
        <> (OLD.ring_id, OLD.fence, OLD.batch_id, OLD.key_id, OLD.node, OLD.checked_out_at)
BEGIN SELECT RAISE(ABORT, 'key_uses: a closed use never changes, of an open one only lease and end'); END;
