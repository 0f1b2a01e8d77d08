"""Topics: events that are published, the groups that are subscribed to them, and how far each group that reads the log has come.

Revision 0009. Safe before the new code: it adds tables and functions, and changes one function so that it makes the days of events as well.
"""

from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

# The log. No default for `position`: `publish` takes it once the transaction has its number, without which the log could not tell what
# may still come (docs/adr/0024). `xid` is for people: after a restore it means nothing, so nothing is decided by it.
EVENTS = """
CREATE TABLE jobrunner.events (
    position     bigint      NOT NULL,
    topic        text        NOT NULL,
    name         text        NOT NULL,
    key          text,
    payload      jsonb       NOT NULL,
    headers      jsonb       NOT NULL DEFAULT '{}'::jsonb,
    xid          xid8        NOT NULL DEFAULT pg_current_xact_id(),
    published_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT events_pkey PRIMARY KEY (topic, position, published_at),
    CONSTRAINT events_names CHECK (topic <> '' AND name <> ''),
    CONSTRAINT events_headers CHECK (jsonb_typeof(headers) = 'object')
) PARTITION BY RANGE (published_at)
"""

# What of a subscription becomes a column of its jobs: the policy of the task.
POLICY = """
    queue                 text      NOT NULL DEFAULT 'default',
    priority              smallint  NOT NULL DEFAULT 0,
    tags                  text[]    NOT NULL DEFAULT '{}'::text[],
    max_attempts          smallint  NOT NULL DEFAULT 5,
    backoff               text      NOT NULL DEFAULT 'exponential',
    backoff_base          interval  NOT NULL DEFAULT '5 seconds'::interval,
    backoff_cap           interval  NOT NULL DEFAULT '1 hour'::interval,
    backoff_jitter        real      NOT NULL DEFAULT 1,
    max_crashes           smallint  NOT NULL DEFAULT 3,
    time_limit            interval,
    soft_time_limit       interval,
    cpu_limit             interval,
    memory_limit          bigint,
    memory_limit_on_retry real,
    output_limit          bigint,
    max_processes         integer,
"""
POLICY_COLUMNS = tuple(line.split()[0] for line in POLICY.splitlines() if line.strip())

# `matcher` is what the patterns come to as a regular expression; NULL is every event. `app` says whose code declared it last.
SUBSCRIPTIONS = f"""
CREATE TABLE jobrunner.subscriptions (
    topic         text        NOT NULL,
    group_name    text        NOT NULL,
    mode          text        NOT NULL,
    task          text        NOT NULL,
    patterns      text[]      NOT NULL,
    matcher       text,
    app           text        NOT NULL DEFAULT '',
    {POLICY.strip()}
    batch_size    integer     NOT NULL DEFAULT 100,
    on_failure    text        NOT NULL DEFAULT 'stop',
    declared_at   timestamptz NOT NULL DEFAULT now(),
    changed_at    timestamptz NOT NULL DEFAULT now(),
    undeclared_at timestamptz,
    CONSTRAINT subscriptions_pkey PRIMARY KEY (topic, group_name),
    CONSTRAINT subscriptions_mode CHECK (mode IN ('queue', 'log')),
    CONSTRAINT subscriptions_names CHECK (topic <> '' AND group_name <> '' AND task <> '' AND cardinality(patterns) > 0),
    CONSTRAINT subscriptions_log CHECK (batch_size > 0 AND on_failure IN ('stop', 'skip'))
)
"""

# `position` is the last one that was delivered. All positions up to `safe_position` are there or will never be; up to `fence_position`
# they are once every transaction up to `fence_xid` is over. `not_before` is about positions up to `not_before_until` only.
CURSORS = """
CREATE TABLE jobrunner.cursors (
    topic            text        NOT NULL,
    group_name       text        NOT NULL,
    position         bigint      NOT NULL,
    safe_position    bigint      NOT NULL DEFAULT 0,
    fence_position   bigint,
    fence_xid        xid8,
    not_before       timestamptz,
    not_before_until bigint,
    rewind_count     bigint      NOT NULL DEFAULT 0,
    delivered_count  bigint      NOT NULL DEFAULT 0,
    job_id           bigint,
    job_at           timestamptz,
    stopped_at       timestamptz,
    problem          text,
    moved_at         timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT cursors_pkey PRIMARY KEY (topic, group_name),
    CONSTRAINT cursors_positions CHECK (position >= 0 AND safe_position >= 0)
)
"""

# Events that a group went past without having them: the dead letters of the log. The job failed; retried, it delivers them.
EVENT_SKIPS = """
CREATE TABLE jobrunner.event_skips (
    job_id         bigint      NOT NULL,
    topic          text        NOT NULL,
    group_name     text        NOT NULL,
    after_position bigint      NOT NULL,
    to_position    bigint      NOT NULL,
    skipped_at     timestamptz NOT NULL DEFAULT now(),
    redelivered_at timestamptz,
    CONSTRAINT event_skips_pkey PRIMARY KEY (job_id)
)
"""

INDEXES = ("CREATE INDEX event_skips_group ON jobrunner.event_skips (topic, group_name) WHERE redelivered_at IS NULL",)
_POLICY = ", ".join(POLICY_COLUMNS)
_GIVEN_POLICY = ", ".join(f"d.{name}" for name in POLICY_COLUMNS)
_ROW = ("mode", "task", "patterns", "matcher", "app", *POLICY_COLUMNS, "batch_size", "on_failure")

FUNCTIONS = {
    # What the patterns of a group come to, for '.' || name; NULL when one of them is '#', which is everything. Each word brings the
    # dot before it, so that '#' can stand for no word at all.
    "topic_matcher": r"""(patterns text[]) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE WHEN '#' <> ALL (patterns) THEN '^(?:' || string_agg(one, '|' ORDER BY n) || ')$' END
    FROM (
        SELECT p.n, string_agg(CASE w.word WHEN '*' THEN '\.[^.]+' WHEN '#' THEN '(?:\.[^.]+)*'
                                           ELSE '\.' || regexp_replace(w.word, '([][\\^$|?+(){}])', '\\\1', 'g') END, '' ORDER BY w.n) AS one
        FROM unnest(patterns) WITH ORDINALITY AS p (pattern, n), string_to_table(p.pattern, '.') WITH ORDINALITY AS w (word, n)
        GROUP BY p.n
    ) AS parts
$$""",
    # Makes what the code of an application declares the subscriptions that there are; `declared` is a list of objects with the names of
    # the columns, and `start` for a group that reads the log: 'earliest', 'latest' or an instant. What an application declares no longer
    # is marked when `complete`, never removed: its events would be lost. Returns how many changed.
    "declare_subscriptions": f"""(declaring text, declared jsonb, complete boolean) RETURNS integer
LANGUAGE plpgsql SET search_path = jobrunner, pg_temp AS $$
DECLARE
    changed integer; marked integer; wrong text; head bigint;
BEGIN
    SELECT p.pattern INTO wrong
    FROM jsonb_array_elements(declared) AS d (one), jsonb_array_elements_text(d.one->'patterns') AS p (pattern)
    WHERE p.pattern !~ '^(\\*|#|[^\\s.*#]+)(\\.(\\*|#|[^\\s.*#]+))*$' OR length(p.pattern) > 255 LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'jobrunner: % is no pattern of event names', quote_literal(wrong) USING ERRCODE = 'invalid_parameter_value',
            HINT = 'words with dots between them; * stands for one word, # for any number of words; at most 255 characters';
    END IF;
    PERFORM pg_advisory_xact_lock(hashtextextended('jobrunner.subscriptions', 0));
    WITH d AS (
        SELECT r.*, declaring AS app, jobrunner.topic_matcher(r.patterns) AS matcher
        FROM jsonb_array_elements(declared) AS g (one),
             jsonb_populate_record(NULL::jobrunner.subscriptions, '{{"queue": "default", "priority": 0, "tags": [], "max_attempts": 5,
                "backoff": "exponential", "backoff_base": "5 s", "backoff_cap": "1 h", "backoff_jitter": 1, "max_crashes": 3,
                "batch_size": 100, "on_failure": "stop"}}'::jsonb || g.one) AS r (
                    topic, group_name, mode, task, patterns, unused_matcher, unused_app, {_POLICY}, batch_size, on_failure, t1, t2, t3)
    ), written AS (
        INSERT INTO jobrunner.subscriptions AS s (topic, group_name, {", ".join(_ROW)})
        SELECT d.topic, d.group_name, {", ".join(f"d.{name}" for name in _ROW)} FROM d ORDER BY d.topic, d.group_name
        ON CONFLICT (topic, group_name) DO UPDATE
        SET {", ".join(f"{name} = excluded.{name}" for name in _ROW)}, changed_at = now(), undeclared_at = NULL
        WHERE s.undeclared_at IS NOT NULL
           OR ({", ".join(f"s.{name}" for name in _ROW)}) IS DISTINCT FROM ({", ".join(f"excluded.{name}" for name in _ROW)})
        RETURNING 1
    )
    SELECT count(*) INTO changed FROM written;
    SELECT CASE WHEN q.is_called THEN q.last_value ELSE 0 END INTO head FROM jobrunner.events_position_seq AS q;
    INSERT INTO jobrunner.cursors (topic, group_name, position, not_before, not_before_until)
    SELECT s.topic, s.group_name,
           CASE coalesce(g.one->>'start', 'earliest') WHEN 'earliest' THEN 0 WHEN 'latest' THEN head
                ELSE jobrunner.position_before(s.topic, (g.one->>'start')::timestamptz) END,
           CASE WHEN g.one->>'start' NOT IN ('earliest', 'latest') THEN (g.one->>'start')::timestamptz END,
           CASE WHEN g.one->>'start' NOT IN ('earliest', 'latest') THEN head END
    FROM jsonb_array_elements(declared) AS g (one)
    JOIN jobrunner.subscriptions s ON s.topic = g.one->>'topic' AND s.group_name = g.one->>'group_name' AND s.mode = 'log'
    WHERE NOT EXISTS (SELECT FROM jobrunner.cursors c WHERE c.topic = s.topic AND c.group_name = s.group_name)
    ON CONFLICT (topic, group_name) DO NOTHING;
    IF complete THEN
        UPDATE jobrunner.subscriptions s SET undeclared_at = now()
        WHERE s.app = declaring AND s.undeclared_at IS NULL
          AND NOT EXISTS (SELECT FROM jsonb_array_elements(declared) AS g (one)
                          WHERE g.one->>'topic' = s.topic AND g.one->>'group_name' = s.group_name);
        GET DIAGNOSTICS marked = ROW_COUNT;
        changed := changed + marked;
    END IF;
    RETURN changed;
END $$""",  # noqa: S608  names of this file only
    # A position before everything that was published at that time or later, whether it is to be seen yet or not: an event is given its
    # time after its position, by a clock that may have been put back by less than an hour since.
    "position_before": """(of_topic text, at timestamptz) RETURNS bigint
LANGUAGE sql STABLE SET search_path = jobrunner, pg_temp AS $$
    SELECT coalesce(max(e.position), 0) FROM jobrunner.events e WHERE e.topic = of_topic AND e.published_at < at - interval '1 hour'
$$""",
    # Writes events (a list of objects: name, payload, key, headers), and a job for each group of competing consumers that one fits, in
    # the transaction of the caller and in the order of the list. Gives the positions, and the queues where workers have to look.
    # The transaction gets its number before the first position: only so a reader can tell when nothing can come before a position.
    # Events of a key are in order within each group: what fails in one holds up no other.
    "publish_events": f"""(into_topic text, given jsonb, later interval, lasting interval, urgency integer, parent bigint)
RETURNS TABLE (positions bigint[], queues text[])
LANGUAGE plpgsql SET search_path = jobrunner, pg_temp AS $$
#variable_conflict use_column
DECLARE
    wrong text;
BEGIN
    IF into_topic IS NULL OR into_topic !~ '^\\S(.*\\S)?$' OR length(into_topic) > 100 THEN
        RAISE EXCEPTION 'jobrunner: % is no topic', quote_nullable(into_topic) USING ERRCODE = 'invalid_parameter_value',
            HINT = 'text of 1 to 100 characters without blanks at its ends';
    END IF;
    IF EXISTS (SELECT FROM jsonb_array_elements(given) AS g (one) WHERE length(g.one->>'key') NOT BETWEEN 1 AND 255) THEN
        RAISE EXCEPTION 'jobrunner: the key of an event is text of 1 to 255 characters' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    SELECT coalesce(g.one->>'name', '') INTO wrong FROM jsonb_array_elements(given) AS g (one)
    WHERE coalesce(g.one->>'name', '') !~ '^[^\\s.*#]+(\\.[^\\s.*#]+)*$' OR length(g.one->>'name') > 255 LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'jobrunner: % is no name of an event', quote_literal(wrong) USING ERRCODE = 'invalid_parameter_value',
            HINT = 'words with dots between them, without blanks, * and #, such as order.paid; at most 255 characters';
    END IF;
    PERFORM pg_current_xact_id();
    RETURN QUERY
    WITH stored AS (
        INSERT INTO jobrunner.events (position, topic, name, key, payload, headers, published_at)
        SELECT nextval('jobrunner.events_position_seq'), into_topic, g.one->>'name', g.one->>'key', coalesce(g.one->'payload', 'null'),
               coalesce(nullif(g.one->'headers', 'null'), '{{}}'), clock_timestamp()
        FROM jsonb_array_elements(given) WITH ORDINALITY AS g (one, n)
        ORDER BY g.n
        RETURNING position, name, key, payload, headers, published_at
    ), fitting AS (
        SELECT s.*, e.position, e.name, e.key, e.payload, e.headers, e.published_at
        FROM stored e JOIN jobrunner.subscriptions s ON s.topic = into_topic AND (s.matcher IS NULL OR '.' || e.name ~ s.matcher)
    ), written AS (
        INSERT INTO jobrunner.jobs (task, args, parent_id, run_at, expires_at, ordering_key, {_POLICY})
        SELECT f.task,
               jsonb_build_object('event', jsonb_build_object(
                   'topic', into_topic, 'name', f.name, 'payload', f.payload, 'key', f.key, 'headers', f.headers, 'position', f.position,
                   'published_at', f.published_at)),
               parent, now() + coalesce(later, interval '0'), now() + lasting, into_topic || '/' || f.group_name || '/' || f.key,
               {_GIVEN_POLICY.replace("d.priority", "coalesce(urgency, f.priority)::smallint").replace("d.", "f.")}
        FROM fitting f WHERE f.mode = 'queue'
        ORDER BY f.position, f.group_name
        RETURNING queue
    )
    SELECT ARRAY(SELECT e.position FROM stored e ORDER BY e.position),
           ARRAY(SELECT w.queue FROM written w UNION SELECT f.queue FROM fitting f WHERE f.mode = 'log');
END $$""",  # noqa: S608  names of this file only
    # For plain SQL: one event. Returns its position.
    "publish": """(topic text, name text, payload jsonb DEFAULT NULL, key text DEFAULT NULL, headers jsonb DEFAULT NULL,
    delay interval DEFAULT NULL, ttl interval DEFAULT NULL, priority integer DEFAULT NULL) RETURNS bigint
LANGUAGE sql SET search_path = jobrunner, pg_temp AS $$
    SELECT p.positions[1]
    FROM jobrunner.publish_events(publish.topic, jsonb_build_array(jsonb_build_object(
        'name', publish.name, 'payload', publish.payload, 'key', publish.key, 'headers', publish.headers)), publish.delay, publish.ttl,
        publish.priority, NULL) AS p
$$""",
    # Sets a group that reads the log to another place: before a position, or to what was published from an instant on; the first or the
    # last place there is when that is beyond it. Waits for nobody who delivers: what is under way cannot move the cursor afterwards.
    # No row when there is no such group.
    "rewind_cursor": """(of_topic text, of_group text, to_position bigint, since timestamptz) RETURNS TABLE (was bigint, now_at bigint)
LANGUAGE plpgsql SET search_path = jobrunner, pg_temp AS $$
#variable_conflict use_column
DECLARE
    head bigint; before jobrunner.cursors;
BEGIN
    SELECT CASE WHEN q.is_called THEN q.last_value ELSE 0 END INTO head FROM jobrunner.events_position_seq AS q;
    SELECT c.* INTO before FROM jobrunner.cursors c WHERE c.topic = of_topic AND c.group_name = of_group FOR UPDATE;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    RETURN QUERY
    UPDATE jobrunner.cursors c
    SET position = CASE WHEN since IS NULL THEN greatest(0, least(to_position - 1, head)) ELSE jobrunner.position_before(of_topic, since) END,
        not_before = since, not_before_until = CASE WHEN since IS NOT NULL THEN head END,
        rewind_count = c.rewind_count + 1, stopped_at = NULL, problem = NULL, job_id = NULL, job_at = NULL, moved_at = now()
    WHERE c.topic = of_topic AND c.group_name = of_group
    RETURNING before.position, c.position;
    UPDATE jobrunner.jobs j SET run_at = now()
    FROM jobrunner.subscriptions s
    WHERE s.topic = of_topic AND s.group_name = of_group AND j.task = s.task AND j.unique_key = of_topic || '/' || of_group
      AND j.state = 'queued' AND j.run_at > now();
END $$""",
    # For workers: enqueue a job for each group of theirs that has something to deliver and has none. What the last job of a group came
    # to decides first: after a failure a group stops, or goes past the events that the job was at, as it was declared.
    # A group whose patterns leave most events out is looked at a thousand events far; then its job moves it on. A job that was gone past
    # gets a key of its own, so that it can be retried while the next job has the group's.
    "start_deliveries": f"""(served text[], known text[]) RETURNS TABLE (started integer, behind boolean)
LANGUAGE plpgsql SET search_path = jobrunner, pg_temp AS $$
#variable_conflict use_column
DECLARE
    c record; last record; head bigint; live boolean; seen bigint; fits boolean; ours text; made bigint; begun integer := 0; left_over boolean := false;
BEGIN
    SELECT q.last_value INTO head FROM jobrunner.events_position_seq AS q;  -- where nothing was published since nothing is looked for
    FOR c IN
        SELECT u.topic, u.group_name, u.position, u.rewind_count, u.job_id, u.job_at, s.task, s.matcher, s.on_failure,
               u.fence_xid >= pg_snapshot_xmin(pg_current_snapshot()) AND u.fence_xid < pg_snapshot_xmax(pg_current_snapshot())
               AND u.safe_position <= u.position AS waits
        FROM jobrunner.cursors u JOIN jobrunner.subscriptions s ON s.topic = u.topic AND s.group_name = u.group_name
        WHERE s.mode = 'log' AND s.queue = ANY (served) AND s.task = ANY (known) AND u.stopped_at IS NULL AND u.position < head
        ORDER BY u.topic, u.group_name
    LOOP
        CONTINUE WHEN c.waits;
        SELECT count(*), coalesce(bool_or(c.matcher IS NULL OR '.' || w.name ~ c.matcher), false) INTO seen, fits
        FROM (SELECT e.name FROM jobrunner.events e WHERE e.topic = c.topic AND e.position > c.position
              ORDER BY e.position LIMIT CASE WHEN c.matcher IS NULL THEN 1 ELSE 1000 END) AS w;
        CONTINUE WHEN NOT (fits OR seen = 1000);
        left_over := true;
        ours := c.topic || '/' || c.group_name;
        SELECT EXISTS (SELECT FROM jobrunner.jobs j WHERE j.task = c.task AND j.unique_key = ours) INTO live;
        CONTINUE WHEN live;
        IF c.job_id IS NOT NULL THEN
            SELECT h.state, h.checkpoint INTO last FROM jobrunner.job_history h
            WHERE h.id = c.job_id AND h.finished_at >= c.job_at - interval '1 hour';
            IF FOUND AND last.state <> 'succeeded' THEN
                IF c.on_failure = 'skip' AND last.state <> 'cancelled' AND last.checkpoint->>'after' = c.position::text
                   AND last.checkpoint->>'rewound' = c.rewind_count::text THEN
                    UPDATE jobrunner.cursors u SET position = (last.checkpoint->>'to')::bigint, job_id = NULL, job_at = NULL, moved_at = now()
                    WHERE u.topic = c.topic AND u.group_name = c.group_name AND u.job_id = c.job_id AND u.position = c.position
                      AND u.rewind_count = c.rewind_count;
                    IF FOUND THEN
                        INSERT INTO jobrunner.event_skips (job_id, topic, group_name, after_position, to_position)
                        VALUES (c.job_id, c.topic, c.group_name, c.position, (last.checkpoint->>'to')::bigint)
                        ON CONFLICT (job_id) DO NOTHING;
                        UPDATE jobrunner.job_history h SET unique_key = ours || '#' || c.job_id
                        WHERE h.id = c.job_id AND h.finished_at >= c.job_at - interval '1 hour';
                    END IF;
                ELSE
                    UPDATE jobrunner.cursors u SET stopped_at = now(), problem = 'job ' || c.job_id || ' ' || CASE last.state
                        WHEN 'quarantined' THEN 'was quarantined' WHEN 'cancelled' THEN 'was cancelled' ELSE last.state END
                    WHERE u.topic = c.topic AND u.group_name = c.group_name AND u.job_id = c.job_id AND u.stopped_at IS NULL;
                END IF;
                CONTINUE;
            END IF;
        END IF;
        INSERT INTO jobrunner.jobs (task, args, unique_key, {_POLICY})
        SELECT s.task, jsonb_build_object('topic', s.topic, 'group', s.group_name), ours, {_GIVEN_POLICY.replace("d.", "s.")}
        FROM jobrunner.subscriptions s WHERE s.topic = c.topic AND s.group_name = c.group_name
        ON CONFLICT (task, unique_key) WHERE unique_key IS NOT NULL DO NOTHING
        RETURNING id INTO made;
        IF FOUND THEN
            UPDATE jobrunner.cursors u SET job_id = made, job_at = now() WHERE u.topic = c.topic AND u.group_name = c.group_name;
            begun := begun + 1;
        END IF;
    END LOOP;
    RETURN QUERY SELECT begun, left_over;
END $$""",  # noqa: S608  names of this file only
    # As in 0003, for events as well.
    "ensure_partitions": """(ahead integer) RETURNS integer
LANGUAGE plpgsql SET search_path = jobrunner, pg_temp AS $$
DECLARE
    parent text; instant text; day date; part text; low timestamptz; high timestamptz; made integer := 0;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('jobrunner.ensure_partitions', 0));
    FOR parent, instant IN VALUES ('job_history', 'finished_at'), ('job_attempts', 'finished_at'), ('job_logs', 'logged_at'),
                                  ('rollup_minute', 'minute'), ('events', 'published_at') LOOP
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


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '2s'")
    op.execute("CREATE SEQUENCE jobrunner.events_position_seq AS bigint CACHE 1")
    rest = "CREATE TABLE jobrunner.events_default PARTITION OF jobrunner.events DEFAULT"
    for statement in (EVENTS, rest, SUBSCRIPTIONS, CURSORS, EVENT_SKIPS, *INDEXES):
        op.execute(statement)
    # A cursor moves with each batch: its new version stays on its page.
    op.execute("ALTER TABLE jobrunner.cursors SET (fillfactor = 50)")
    op.execute("SET LOCAL check_function_bodies = off")  # they speak of each other
    for name, definition in FUNCTIONS.items():
        op.execute(f"CREATE OR REPLACE FUNCTION jobrunner.{name}{definition}")
    op.execute("SELECT jobrunner.ensure_partitions(7)")


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '2s'")
    op.execute(f"CREATE OR REPLACE FUNCTION jobrunner.ensure_partitions{before('ensure_partitions')}")
    for function in (
        "publish(text, text, jsonb, text, jsonb, interval, interval, integer)", "publish_events(text, jsonb, interval, interval, integer, bigint)",
        "rewind_cursor(text, text, bigint, timestamptz)", "start_deliveries(text[], text[])", "declare_subscriptions(text, jsonb, boolean)",
        "position_before(text, timestamptz)", "topic_matcher(text[])",
    ):  # fmt: skip
        op.execute(f"DROP FUNCTION jobrunner.{function}")
    for table in ("event_skips", "cursors", "subscriptions", "events"):
        op.execute(f"DROP TABLE jobrunner.{table}")
    op.execute("DROP SEQUENCE jobrunner.events_position_seq")


def before(function: str) -> str:
    """What an earlier revision said of a function."""
    revisions = op.get_context().script.iterate_revisions(down_revision, "base")
    return next(step.module.FUNCTIONS[function] for step in revisions if function in getattr(step.module, "FUNCTIONS", {}))
