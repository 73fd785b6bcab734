DROP TRIGGER rings_provider_guard ON rings;
DROP FUNCTION chancery_rings_provider_guard();
ALTER TABLE rings DROP COLUMN provider;
