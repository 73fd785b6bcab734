DROP VIEW signed_records;
DROP TABLE signatures, key_events, key_uses, batches, records, keys, rings, keks, database_identity;
DROP FUNCTION chancery_refuse, chancery_records_guard, chancery_rings_guard, chancery_batches_guard,
    chancery_key_uses_opened, chancery_key_uses_guard, chancery_xid_offset, chancery_analyze;
