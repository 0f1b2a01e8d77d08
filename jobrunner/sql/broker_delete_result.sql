-- broker_delete_result: forgets the result under a key.
-- Parameters: key. Locks: the row. Index: broker_results_pkey.
DELETE FROM jobrunner.broker_results r WHERE r.key = :'key'::text
RETURNING r.key
