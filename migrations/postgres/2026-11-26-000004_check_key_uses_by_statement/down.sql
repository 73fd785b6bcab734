DROP TRIGGER key_uses_opened ON key_uses;
CREATE OR REPLACE FUNCTION chancery_key_uses_opened() RETURNS TRIGGER LANGUAGE plpgsql AS $$
DECLARE
    last_end BIGINT;
BEGIN
    IF NEW.end_tick IS NOT NULL THEN
        RAISE EXCEPTION 'key use %: a use begins open', NEW.fence
            USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    SELECT max(end_tick) INTO last_end FROM key_uses WHERE key_id = NEW.key_id;
    IF NEW.fence <= last_end THEN
        RAISE EXCEPTION 'key use %: key % was in use until tick %', NEW.fence, NEW.key_id, last_end
            USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER key_uses_opened BEFORE INSERT ON key_uses
    FOR EACH ROW EXECUTE FUNCTION chancery_key_uses_opened();
ALTER TABLE key_uses
    ADD FOREIGN KEY (ring_id) REFERENCES rings (id),
    ADD FOREIGN KEY (batch_id) REFERENCES batches (id),
    ADD FOREIGN KEY (key_id) REFERENCES keys (id);
