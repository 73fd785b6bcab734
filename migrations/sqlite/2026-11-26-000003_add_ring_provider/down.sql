-- A ring on a token would be taken for one whose keys are damaged: fails if there is any.
CREATE TEMP TABLE rings_on_tokens (rings INTEGER CHECK (rings = 0));
INSERT INTO rings_on_tokens SELECT count(*) FROM rings WHERE provider <> 'software';
DROP TABLE rings_on_tokens;
DROP TRIGGER rings_provider_guard;
ALTER TABLE rings DROP COLUMN provider;
