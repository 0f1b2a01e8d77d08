"""How long finished jobs are kept, and how the days of `job_history` and `job_attempts` are made smaller, one bounded step at a time."""
