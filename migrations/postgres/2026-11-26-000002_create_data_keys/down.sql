ALTER TABLE keys DROP COLUMN signature_count;
ALTER TABLE keys DROP COLUMN data_key_id;
DROP TABLE data_keys;
