-- Who may ask what of a service over HTTP. The token itself is shown once and never stored.
CREATE TABLE tokens (
    id           INTEGER PRIMARY KEY AUTOINCREMENT,
    name         TEXT    NOT NULL CHECK (name <> ''),
    roles        TEXT    NOT NULL CHECK (roles <> ''),    -- words with a blank between them
    token_hash   BLOB    NOT NULL UNIQUE CHECK (length(token_hash) = 32),    -- SHA-256
    created_at   TEXT    NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    expires_at   TEXT,
    revoked_at   TEXT,
    last_used_at TEXT
) STRICT;

-- What administrators did, as a chain: each row's hash covers the row and the hash before it.
CREATE TABLE admin_log (
    seq           INTEGER PRIMARY KEY CHECK (seq > 0),
    at            TEXT    NOT NULL,    -- RFC 3339 in UTC; text, since the hash covers it
    actor         TEXT    NOT NULL,
    action        TEXT    NOT NULL CHECK (action <> ''),
    target        TEXT    NOT NULL,
    detail        TEXT    NOT NULL,
    previous_hash TEXT    NOT NULL,
    hash          TEXT    NOT NULL UNIQUE
) STRICT;
CREATE TABLE admin_log_head (
    id   INTEGER PRIMARY KEY DEFAULT 1 CHECK (id = 1),
    seq  INTEGER NOT NULL,
    hash TEXT    NOT NULL
) STRICT;
INSERT INTO admin_log_head (seq, hash)
    VALUES (0, '0000000000000000000000000000000000000000000000000000000000000000');

CREATE TRIGGER admin_log_no_update BEFORE UPDATE ON admin_log
BEGIN SELECT RAISE(ABORT, 'UPDATE on admin_log is refused: its rows are never changed or removed'); END;
CREATE TRIGGER admin_log_no_delete BEFORE DELETE ON admin_log
BEGIN SELECT RAISE(ABORT, 'DELETE on admin_log is refused: its rows are never changed or removed'); END;
CREATE TRIGGER admin_log_no_replace BEFORE INSERT ON admin_log
WHEN EXISTS (SELECT 1 FROM admin_log WHERE seq = NEW.seq OR hash = NEW.hash)
BEGIN SELECT RAISE(ABORT, 'UNIQUE constraint failed: admin_log.seq, or admin_log.hash'); END;
CREATE TRIGGER tokens_no_delete BEFORE DELETE ON tokens
BEGIN SELECT RAISE(ABORT, 'DELETE on tokens is refused: its rows are never changed or removed'); END;
CREATE TRIGGER tokens_guard BEFORE UPDATE ON tokens
WHEN NEW.id <> OLD.id OR NEW.name <> OLD.name OR NEW.roles <> OLD.roles
    OR NEW.token_hash <> OLD.token_hash OR NEW.created_at <> OLD.created_at
    OR NEW.expires_at IS NOT OLD.expires_at
    OR OLD.revoked_at IS NOT NULL AND NEW.revoked_at IS NOT OLD.revoked_at
BEGIN SELECT RAISE(ABORT, 'tokens: only the last use and the revocation may change, and that once'); END;
CREATE TRIGGER admin_log_head_guard BEFORE UPDATE ON admin_log_head
WHEN NEW.id <> OLD.id OR NEW.seq <> OLD.seq + 1
BEGIN SELECT RAISE(ABORT, 'admin_log_head: it moves on by one'); END;
CREATE TRIGGER admin_log_head_no_delete BEFORE DELETE ON admin_log_head
BEGIN SELECT RAISE(ABORT, 'DELETE on admin_log_head is refused: its rows are never changed or removed'); END;

-- Set by an administrator for all nodes: a ring that is paused checks nothing out.
ALTER TABLE rings ADD COLUMN paused INTEGER NOT NULL DEFAULT 0 CHECK (paused IN (0, 1));
ALTER TABLE nodes ADD COLUMN drain_requested INTEGER NOT NULL DEFAULT 0 CHECK (drain_requested IN (0, 1));
