-- broker_get_results: the results under these keys, without those whose time is up. Writes nothing.
-- Parameters: keys text[]. Index: broker_results_pkey.
SELECT r.key, r.value FROM jobrunner.broker_results r
WHERE r.key = ANY (:'keys'::text[]) AND (r.expires_at IS NULL OR r.expires_at > now())
