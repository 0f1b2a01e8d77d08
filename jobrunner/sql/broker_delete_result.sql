-- broker_delete_result: forgets the results under these keys.
-- Parameters: keys text[]. Locks: the rows. Index: broker_results_pkey.
DELETE FROM jobrunner.broker_results r WHERE r.key = ANY (:'keys'::text[])
RETURNING r.key
