-- take_turn: a worker is about to take the rare steps that keep the tables in shape; nobody else does before the time is over. Changes no job.
-- Parameters: worker_id; turn_ms (how long; 0: it is through with them). A row back means: it is this worker's turn.
-- Guard: nobody's turn lasts, or it is this worker's own. Locks: the one row, SKIP LOCKED: whoever finds it locked has no turn, and does
-- not wait. Trap: the row may be missing (somebody emptied the table): then it is inserted, and of two at once one gets it.
WITH free AS MATERIALIZED (
    SELECT t.id FROM jobrunner.upkeep_turn t
    WHERE t.until <= now() OR t.worker_id = :'worker_id'::bigint
    FOR UPDATE SKIP LOCKED
), taken AS (
    UPDATE jobrunner.upkeep_turn t
    SET worker_id = :'worker_id'::bigint, until = now() + :'turn_ms'::bigint * interval '1 millisecond'
    FROM free WHERE t.id = free.id
    RETURNING t.worker_id
), first AS (
    INSERT INTO jobrunner.upkeep_turn (worker_id, until)
    SELECT :'worker_id'::bigint, now() + :'turn_ms'::bigint * interval '1 millisecond'
    WHERE NOT EXISTS (SELECT FROM jobrunner.upkeep_turn)
    ON CONFLICT (id) DO NOTHING
    RETURNING worker_id
)
SELECT worker_id FROM taken UNION ALL SELECT worker_id FROM first
