-- A ring's data key seals its private keys, and is itself wrapped by a KEK.
CREATE TABLE data_keys (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    ring_id     INTEGER NOT NULL REFERENCES rings (id),
    kek_id      TEXT    NOT NULL REFERENCES keks (kek_id),
    wrapped_key BLOB    NOT NULL,
    created_at  TEXT    NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    UNIQUE (ring_id, kek_id)
) STRICT;

-- NULL for a key that its KEK has sealed without a data key, as versions before this one did.
ALTER TABLE keys ADD COLUMN data_key_id INTEGER REFERENCES data_keys (id)
    CHECK (data_key_id IS NULL OR kek_id IS NOT NULL);
ALTER TABLE keys ADD COLUMN signature_count INTEGER NOT NULL DEFAULT 0 CHECK (signature_count >= 0);

UPDATE keys SET kek_id = NULL WHERE status = 'destroyed';
UPDATE keys SET signature_count = coalesce(
    (SELECT sum(b.record_count) FROM key_uses u JOIN batches b ON b.id = u.batch_id
     WHERE u.key_id = keys.id AND u.outcome = 'stored'), 0);
