DROP TRIGGER rings_provider_guard;
ALTER TABLE rings DROP COLUMN provider;
