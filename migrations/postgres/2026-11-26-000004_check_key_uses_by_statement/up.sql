-- What is said of a use when it begins, for all uses of a statement at once: three foreign keys and a
-- trigger for each row were most of what a checkout of small batches cost (docs/BENCHMARKS.md). It says
-- more than they did: key and batch are of the use's ring. And they stay: the rows of batches are never
-- removed, and those of keys and rings are held by their events.
ALTER TABLE key_uses
    DROP CONSTRAINT key_uses_ring_id_fkey,
    DROP CONSTRAINT key_uses_batch_id_fkey,
    DROP CONSTRAINT key_uses_key_id_fkey;
DROP TRIGGER key_uses_opened ON key_uses;

CREATE OR REPLACE FUNCTION chancery_key_uses_opened() RETURNS TRIGGER LANGUAGE plpgsql AS $$
DECLARE
    wrong RECORD;
BEGIN
    SELECT o.fence, o.ring_id, o.batch_id, o.key_id, o.end_tick, l.last_end,
           k.id IS NULL AS no_key, b.id IS NULL AS no_batch INTO wrong
    FROM opened o
    LEFT JOIN keys k ON k.id = o.key_id AND k.ring_id = o.ring_id
    LEFT JOIN batches b ON b.id = o.batch_id AND b.ring_id = o.ring_id
    CROSS JOIN LATERAL (SELECT max(u.end_tick) AS last_end FROM key_uses u
                        WHERE u.key_id = o.key_id) l
    WHERE o.end_tick IS NOT NULL OR k.id IS NULL OR b.id IS NULL OR o.fence <= l.last_end
    LIMIT 1;
    IF NOT FOUND THEN
        RETURN NULL;
    ELSIF wrong.end_tick IS NOT NULL THEN
        RAISE EXCEPTION 'key use %: a use begins open', wrong.fence
            USING ERRCODE = 'integrity_constraint_violation';
    ELSIF wrong.no_key THEN
        RAISE EXCEPTION 'key use %: ring % has no key %', wrong.fence, wrong.ring_id, wrong.key_id
            USING ERRCODE = 'foreign_key_violation';
    ELSIF wrong.no_batch THEN
        RAISE EXCEPTION 'key use %: ring % has no batch %', wrong.fence, wrong.ring_id, wrong.batch_id
            USING ERRCODE = 'foreign_key_violation';
    ELSE
        RAISE EXCEPTION 'key use %: key % was in use until tick %', wrong.fence, wrong.key_id, wrong.last_end
            USING ERRCODE = 'integrity_constraint_violation';
    END IF;
END $$;
CREATE TRIGGER key_uses_opened AFTER INSERT ON key_uses
    REFERENCING NEW TABLE AS opened
    FOR EACH STATEMENT EXECUTE FUNCTION chancery_key_uses_opened();
