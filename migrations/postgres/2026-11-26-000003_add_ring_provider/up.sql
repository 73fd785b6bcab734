-- Where the private keys of a ring are used: in this program's memory, or in a token by PKCS#11.
ALTER TABLE rings ADD COLUMN provider TEXT NOT NULL DEFAULT 'software'
    CHECK (provider IN ('software', 'pkcs11'));

-- A ring's keys are its provider's, so the ring stays with it.
CREATE FUNCTION chancery_rings_provider_guard() RETURNS TRIGGER LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.provider <> OLD.provider THEN
        RAISE EXCEPTION 'ring %: its provider never changes', OLD.id
            USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER rings_provider_guard BEFORE UPDATE OF provider ON rings
    FOR EACH ROW EXECUTE FUNCTION chancery_rings_provider_guard();
