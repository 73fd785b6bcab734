-- Where the private keys of a ring are used: in this program's memory, or in a token by PKCS#11.
ALTER TABLE rings ADD COLUMN provider TEXT NOT NULL DEFAULT 'software'
    CHECK (provider IN ('software', 'pkcs11'));

-- A ring's keys are its provider's, so the ring stays with it.
CREATE TRIGGER rings_provider_guard BEFORE UPDATE OF provider ON rings
WHEN NEW.provider <> OLD.provider
BEGIN
    SELECT RAISE(ABORT, 'a ring''s provider never changes');
END;
