-- What a data key has sealed could never be opened again.
DO $$ BEGIN
    IF EXISTS (SELECT 1 FROM keys WHERE data_key_id IS NOT NULL) THEN
        RAISE EXCEPTION 'keys are sealed under data keys, which would be lost';
    END IF;
END $$;
ALTER TABLE keys DROP COLUMN signature_count;
ALTER TABLE keys DROP COLUMN data_key_id;
DROP TABLE data_keys;
