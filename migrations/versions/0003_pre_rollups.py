"""Roll-ups: how many attempts ended how, and how long they waited and ran, by ten seconds, minute and hour; counted by triggers.

Revision 0003. Safe before the new code: workers of the previous release are counted like others.
"""

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

BUCKETS = 20  # of a histogram
# The most that is added up for each job of a duration: about 116 days. A row with a wild value, put in by hand, must not make a sum too
# large for its column, for then nobody could finish a job of that task any more.
LONGEST_MS = 10**10
KEY = ("queue", "task", "outcome")
SUMS = ("run_ms", "wait_ms", "cpu_ms")
# From the last bucket to the first, run and wait side by side: of a row that changes, WAL gets what lies between the first and the last
# byte that are different, and most jobs are short.
HISTOGRAMS = tuple(f"{name}_{bucket}" for bucket in reversed(range(BUCKETS)) for name in ("run", "wait"))
NUMBERS = (*HISTOGRAMS, "ended_count", *SUMS)

_KEY, _NUMBERS = ", ".join(KEY), ", ".join(NUMBERS)
_COLUMNS = ",\n    ".join(
    (
        *(f"{name} text NOT NULL" for name in KEY),
        *(f"{name} {'bigint' if name in SUMS else 'integer'} NOT NULL" for name in NUMBERS),
    )
)


def added(table: str) -> str:
    """What ON CONFLICT does: each number is added to the one that is there."""
    return ", ".join(f"{name} = {table}.{name} + excluded.{name}" for name in NUMBERS)


# One row for each server process that finishes jobs, so that none ever waits for another: a transaction keeps the rows that it counted
# in locked until it ends, and one that stands still would hold up everybody. Ten seconds, because a row is changed with every batch:
# while somebody's snapshot keeps the old versions, the way to the newest one grows, and starts anew with the next row. Half of each
# page is kept free, so that the new version lies beside the old one and no index is touched.
PENDING = f"""
CREATE TABLE jobrunner.rollup_pending (
    slice timestamptz NOT NULL,
    backend integer NOT NULL,
    {_COLUMNS},
    CONSTRAINT rollup_pending_pkey PRIMARY KEY (slice, backend, {_KEY})
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000)
"""
MINUTE = f"""
CREATE TABLE jobrunner.rollup_minute (
    minute timestamptz NOT NULL,
    {_COLUMNS},
    CONSTRAINT rollup_minute_pkey PRIMARY KEY (minute, {_KEY})
) PARTITION BY RANGE (minute)
"""
HOUR = f"""
CREATE TABLE jobrunner.rollup_hour (
    hour timestamptz NOT NULL,
    {_COLUMNS},
    CONSTRAINT rollup_hour_pkey PRIMARY KEY (hour, {_KEY})
)
"""


def counter(wait: str, outcome: str, condition: str) -> str:
    """The function of a trigger that counts the rows which one statement has inserted, whatever statement that was.

    First by cell of the two histograms, of which a batch has few; then these are spread over the columns. It runs with the rights of
    the schema's owner: who may finish jobs need not be able to write to the roll-ups.
    """
    sums = ", ".join(f"sum({value}) AS {name}" for name, value in zip(SUMS, ("run_ms", wait, "cpu_ms"), strict=True))
    totals = ", ".join(f"coalesce(sum(least(greatest({name}, 0), n * {LONGEST_MS})), 0)" for name in SUMS)
    spread = ", ".join(
        f"coalesce(sum(n) FILTER (WHERE {name}_bucket = {bucket}), 0)" for bucket in reversed(range(BUCKETS)) for name in ("run", "wait")
    )
    return f"""() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM ended WHERE {condition}) THEN
        RETURN NULL;  -- most statements that a batch goes through find no row: this costs them a tenth of what the other does
    END IF;
    INSERT INTO jobrunner.rollup_pending AS p (slice, backend, {_KEY}, {_NUMBERS})
    SELECT date_bin('10 seconds', finished_at, 'epoch'), pg_backend_pid(), {_KEY}, {spread}, sum(n), {totals}
    FROM (
        SELECT finished_at, queue, task, {outcome} AS outcome,
               jobrunner.histogram_bucket(run_ms) AS run_bucket, jobrunner.histogram_bucket({wait}) AS wait_bucket,
               count(*)::integer AS n, {sums}
        FROM ended WHERE {condition}
        GROUP BY 1, 2, 3, 4, 5, 6
    ) AS cells
    GROUP BY 1, {_KEY}
    ORDER BY 1, {_KEY}
    ON CONFLICT (slice, backend, {_KEY}) DO UPDATE SET {added("p")};
    RETURN NULL;
END $$"""  # noqa: S608  names of this file only


def settled(table: str, period: str, width: str, condition: str = "true") -> str:
    """The statement that adds what was taken out of `rollup_pending` to one of the other tables."""
    sums = ", ".join(f"sum({name})" for name in NUMBERS)
    return f"""INSERT INTO jobrunner.{table} AS t ({period}, {_KEY}, {_NUMBERS})
        SELECT date_bin('{width}', slice, 'epoch'), {_KEY}, {sums} FROM taken WHERE {condition}
        GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4
        ON CONFLICT ({period}, {_KEY}) DO UPDATE SET {added("t")}"""  # noqa: S608  names of this file only


# FUNCTIONS, VIEWS and TRIGGERS of a revision are those it makes or changes: what follows the name. `jobrunner.drift` reads them.
FUNCTIONS = {
    # Milliseconds; the same as in jobrunner/histograms.py. Never to be changed: counts on two scales cannot be added.
    "histogram_bounds": """() RETURNS bigint[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT '{1,3,10,30,100,300,1000,3000,10000,30000,100000,300000,1000000,3000000,10000000,30000000,100000000,300000000,1000000000}'::bigint[]
$$""",
    "histogram_bucket": """(ms bigint) RETURNS integer
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT width_bucket(ms, jobrunner.histogram_bounds())
$$""",
    # The duration that `fraction` of those counted did not exceed, as far as the buckets tell: it lies in the same bucket as the exact
    # one (percentile_disc), at the place in it that its rank has, on a logarithmic scale. Below the first bound by halves; what is
    # beyond the last bound is said to be there. `histograms` is one, or an array_agg() of several, which are added up.
    "histogram_percentile": """(histograms bigint[], fraction double precision) RETURNS double precision
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    WITH bounds AS (SELECT jobrunner.histogram_bounds() AS b),
    buckets AS (
        SELECT ((place - 1) % 20)::integer AS bucket, sum(n)::double precision AS n
        FROM unnest(histograms) WITH ORDINALITY AS h (n, place) GROUP BY 1
    ),
    ranked AS (SELECT bucket, n, sum(n) OVER (ORDER BY bucket) - n AS before, sum(n) OVER () AS total FROM buckets),
    wanted AS (SELECT *, greatest(ceil(least(greatest(fraction, 0), 1) * total), 1) AS rank FROM ranked)
    SELECT CASE bucket WHEN 0 THEN b[1] * (rank - before - 0.5) / n
                       WHEN 19 THEN b[19]
                       ELSE b[bucket] * power(b[bucket + 1]::double precision / b[bucket], (rank - before - 0.5) / n) END
    FROM wanted, bounds WHERE n > 0 AND before < rank AND rank <= before + n
$$""",
    "count_history": counter("wait_ms", "state", "true"),
    # An attempt that was its job's last one is counted with the job. How long an attempt waited is not on record.
    "count_attempts": counter("NULL::bigint", "outcome", "outcome IN ('retried', 'crashed', 'snoozed', 'released')"),
    # Takes the oldest rows of rollup_pending that are older than `before`, at most `most`, and adds them to their minutes, unless
    # these are older than they are kept, and to their hours. What was added is gone, so nothing is added twice, whoever does it and
    # however often; a row that its transaction still has locked is left for the next time, however late that is.
    # By ctid: a row that has changed since this statement began is not found by its old place, and stays.
    "settle_rollups": f"""(before timestamptz, minutes_since timestamptz, most integer) RETURNS integer
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    moved integer;
BEGIN
    WITH taken AS (
        DELETE FROM jobrunner.rollup_pending WHERE ctid = ANY (ARRAY(
            SELECT ctid FROM jobrunner.rollup_pending WHERE slice < before ORDER BY slice LIMIT most FOR UPDATE SKIP LOCKED))
        RETURNING *
    ), minutes AS (
        {settled("rollup_minute", "minute", "1 minute", "slice >= minutes_since")}
    ), hours AS (
        {settled("rollup_hour", "hour", "1 hour")}
    )
    SELECT count(*) INTO moved FROM taken;
    RETURN moved;
END $$""",  # noqa: S608  names of this file only
    # As in 0002, for the minutes as well.
    "ensure_partitions": """(ahead integer) RETURNS integer
LANGUAGE plpgsql SET search_path = jobrunner, pg_temp AS $$
DECLARE
    parent text; instant text; day date; part text; low timestamptz; high timestamptz; made integer := 0;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('jobrunner.ensure_partitions', 0));
    FOR parent, instant IN
        VALUES ('job_history', 'finished_at'), ('job_attempts', 'finished_at'), ('job_logs', 'logged_at'), ('rollup_minute', 'minute')
    LOOP
        FOR day IN SELECT ((now() AT TIME ZONE 'UTC')::date + step) FROM generate_series(-1, ahead) AS step LOOP
            part := parent || '_' || to_char(day, 'YYYYMMDD');
            CONTINUE WHEN to_regclass('jobrunner.' || part) IS NOT NULL;
            low := day::timestamp AT TIME ZONE 'UTC';
            high := (day + 1)::timestamp AT TIME ZONE 'UTC';
            EXECUTE format('CREATE TABLE jobrunner.%I (LIKE jobrunner.%I INCLUDING ALL)', part, parent);
            EXECUTE format('LOCK TABLE jobrunner.%I IN ACCESS EXCLUSIVE MODE', parent || '_default');
            EXECUTE format('WITH moved AS (DELETE FROM jobrunner.%I WHERE %I >= %L AND %I < %L RETURNING *) '
                           'INSERT INTO jobrunner.%I SELECT * FROM moved', parent || '_default', instant, low, instant, high, part);
            EXECUTE format('ALTER TABLE jobrunner.%I ATTACH PARTITION jobrunner.%I FOR VALUES FROM (%L) TO (%L)',
                           parent, part, low, high);
            made := made + 1;
        END LOOP;
    END LOOP;
    RETURN made;
END $$""",
}

# Of statements, on the tables that are partitioned: each statement is counted at once, whichever partitions its rows are in; and a row
# that ensure_partitions moves into a partition, which it names, is not counted a second time.
TRIGGERS = {
    "job_history_count": " AFTER INSERT ON jobrunner.job_history REFERENCING NEW TABLE AS ended"
    " FOR EACH STATEMENT EXECUTE FUNCTION jobrunner.count_history()",
    "job_attempts_count": " AFTER INSERT ON jobrunner.job_attempts REFERENCING NEW TABLE AS ended"
    " FOR EACH STATEMENT EXECUTE FUNCTION jobrunner.count_attempts()",
}


def view(table: str, period: str, width: str) -> str:
    """Everything that was counted, the part that is not settled included, so that it makes no difference when somebody settles."""
    sums = ", ".join(f"sum({name}) AS {name}" for name in ("ended_count", *SUMS))
    run, wait = (", ".join(f"sum({name}_{bucket})" for bucket in range(BUCKETS)) for name in ("run", "wait"))
    return f"""
SELECT {period}, {_KEY}, {sums}, ARRAY[{run}] AS run_histogram, ARRAY[{wait}] AS wait_histogram
FROM (
    SELECT {period}, {_KEY}, {_NUMBERS} FROM jobrunner.{table}
    UNION ALL
    SELECT date_bin('{width}', slice, 'epoch'), {_KEY}, {_NUMBERS} FROM jobrunner.rollup_pending
) AS parts
GROUP BY {period}, {_KEY}"""  # noqa: S608  names of this file only


VIEWS = {
    "v_throughput": view("rollup_minute", "minute", "1 minute"),
    "v_throughput_hourly": view("rollup_hour", "hour", "1 hour"),
}


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '2s'")
    for statement in (PENDING, MINUTE, "CREATE TABLE jobrunner.rollup_minute_default PARTITION OF jobrunner.rollup_minute DEFAULT", HOUR):
        op.execute(statement)
    for name, definition in FUNCTIONS.items():
        op.execute(f"CREATE OR REPLACE FUNCTION jobrunner.{name}{definition}")
    op.execute("SELECT jobrunner.ensure_partitions(7)")
    for name, query in VIEWS.items():
        op.execute(f"CREATE VIEW jobrunner.{name} AS{query}")
    for name, definition in TRIGGERS.items():
        op.execute(f"CREATE TRIGGER {name}{definition}")


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '2s'")
    op.execute("DROP TRIGGER job_history_count ON jobrunner.job_history")
    op.execute("DROP TRIGGER job_attempts_count ON jobrunner.job_attempts")
    for name in VIEWS:
        op.execute(f"DROP VIEW jobrunner.{name}")
    op.execute(f"CREATE OR REPLACE FUNCTION jobrunner.ensure_partitions{before('ensure_partitions')}")
    for name in reversed(FUNCTIONS):
        if name != "ensure_partitions":
            op.execute(f"DROP FUNCTION jobrunner.{name}")
    for table in ("rollup_hour", "rollup_minute", "rollup_pending"):
        op.execute(f"DROP TABLE jobrunner.{table}")


def before(function: str) -> str:
    """What an earlier revision said of a function."""
    revisions = op.get_context().script.iterate_revisions(down_revision, "base")
    return next(step.module.FUNCTIONS[function] for step in revisions if function in getattr(step.module, "FUNCTIONS", {}))
