-- A ring on a token would be taken for one whose keys are damaged.
DO $$ BEGIN
    IF EXISTS (SELECT 1 FROM rings WHERE provider <> 'software') THEN
        RAISE EXCEPTION 'there are rings with another provider';
    END IF;
END $$;
DROP TRIGGER rings_provider_guard ON rings;
DROP FUNCTION chancery_rings_provider_guard();
ALTER TABLE rings DROP COLUMN provider;
