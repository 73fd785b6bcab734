-- What a data key has sealed could never be opened again: fails if there is any such key.
CREATE TEMP TABLE sealed_under_data_keys (keys INTEGER CHECK (keys = 0));
INSERT INTO sealed_under_data_keys SELECT count(*) FROM keys WHERE data_key_id IS NOT NULL;
DROP TABLE sealed_under_data_keys;
ALTER TABLE keys DROP COLUMN signature_count;
ALTER TABLE keys DROP COLUMN data_key_id;
DROP TABLE data_keys;
