"""How long finished jobs are kept: rules, which of them holds for a job, and how far each day of history has been gone through.

Revision 0004. Safe before the new code: it adds tables, a view and functions, and changes none.
"""

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

# '*' and not NULL for "all": the key needs no expressions, and a pattern is what it is. `app` is empty but for rules of the code:
# several applications may share a database, and what one of them no longer says must not take away what another says.
RETENTION = """
CREATE TABLE jobrunner.retention (
    task       text        NOT NULL DEFAULT '*',
    state      text        NOT NULL DEFAULT '*',
    origin     text        NOT NULL DEFAULT 'operator',
    app        text        NOT NULL DEFAULT '',
    keep       interval,
    changed_at timestamptz NOT NULL DEFAULT now(),
    changed_by text        NOT NULL DEFAULT CURRENT_USER,
    CONSTRAINT retention_pkey PRIMARY KEY (task, state, origin, app),
    CONSTRAINT retention_task CHECK (task <> ''),
    CONSTRAINT retention_state CHECK (state IN ('*', 'succeeded', 'failed', 'cancelled', 'quarantined')),
    CONSTRAINT retention_origin CHECK (origin = 'code' OR (origin = 'operator' AND app = '')),
    CONSTRAINT retention_keep CHECK (keep >= interval '1 day' AND keep <= interval '36500 days')
)
"""

# One row for each day that was looked into: nobody reads it through again before the rules say something else about it.
RETENTION_DAYS = """
CREATE TABLE jobrunner.retention_days (
    part        text        NOT NULL,
    rules       text        NOT NULL,
    phase       text        NOT NULL,
    file        oid,
    next_block  bigint      NOT NULL DEFAULT 0,
    due_count   bigint      NOT NULL DEFAULT 0,
    kept_count  bigint      NOT NULL DEFAULT 0,
    problem     text,
    problem_at  timestamptz,
    changed_at  timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT retention_days_pkey PRIMARY KEY (part),
    CONSTRAINT retention_days_phase CHECK (phase IN ('counting', 'deleting', 'copying', 'settled'))
)
"""

# What came to a day, or left it, while it was being read. No key: the same row may do both.
RETENTION_CHANGES = """
CREATE TABLE jobrunner.retention_changes (
    part        text        NOT NULL,
    id          bigint      NOT NULL,
    lease       bigint      NOT NULL,
    finished_at timestamptz NOT NULL
)
"""

INDEXES = ("CREATE INDEX retention_changes_part ON jobrunner.retention_changes (part)",)

VIEWS = {
    "v_retention": """
SELECT task, state, keep, origin, app, changed_at, changed_by,
       CASE WHEN task <> '*' AND state <> '*' THEN 4 WHEN task <> '*' THEN 3 WHEN state <> '*' THEN 2 ELSE 1 END AS rank
FROM jobrunner.retention
UNION ALL
SELECT '*', state, keep, 'default', '', NULL, NULL, 0
FROM (VALUES ('succeeded', interval '30 days'), ('cancelled', interval '30 days'),
             ('failed', interval '180 days'), ('quarantined', interval '180 days')) AS d (state, keep)""",
}

FUNCTIONS = {
    # How long a finished job of a task and state is kept; NULL is forever. Most specific first: task and state, task, state, all,
    # what Jobrunner does by itself; of two patterns a plain name, then the longer one; then the operator's before the code's; of
    # two applications that say different things of the same, the longer one.
    "keep_of": r"""(task text, state text) RETURNS interval
LANGUAGE sql STABLE PARALLEL SAFE SET search_path = jobrunner, pg_temp AS $$
    SELECT r.keep FROM jobrunner.v_retention r
    WHERE r.state IN ('*', $2)
      AND $1 LIKE replace(replace(replace(replace(r.task, '\', '\\'), '%', '\%'), '_', '\_'), '*', '%')
    ORDER BY r.rank DESC, strpos(r.task, '*') > 0, length(r.task) DESC, r.task COLLATE "C", r.origin = 'operator' DESC, r.keep DESC NULLS FIRST
    LIMIT 1
$$""",
    # An attempt knows its task, not how its job ended: it is kept as long as any job of the task is.
    "keep_attempts_of": """(task text) RETURNS interval
LANGUAGE sql STABLE PARALLEL SAFE SET search_path = jobrunner, pg_temp AS $$
    SELECT CASE WHEN count(k.keep) = 4 THEN max(k.keep) END
    FROM (SELECT jobrunner.keep_of($1, s.state) AS keep
          FROM (VALUES ('succeeded'), ('failed'), ('cancelled'), ('quarantined')) AS s (state)) AS k
$$""",
    # Trigger of a day that is being read. Of whoever writes there: he need not be allowed to write into our books, hence SECURITY
    # DEFINER, with every name qualified.
    "note_change": """() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    seen jsonb;
BEGIN
    FOR seen IN SELECT r FROM unnest(ARRAY[CASE WHEN TG_OP <> 'INSERT' THEN to_jsonb(OLD) END, CASE WHEN TG_OP <> 'DELETE' THEN to_jsonb(NEW) END]) AS r
                WHERE r IS NOT NULL LOOP
        INSERT INTO jobrunner.retention_changes (part, id, lease, finished_at)
        VALUES (TG_TABLE_NAME, coalesce(seen->>'job_id', seen->>'id')::bigint, (seen->>'lease')::bigint, (seen->>'finished_at')::timestamptz);
    END LOOP;
    RETURN NULL;
END $$""",
}


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '2s'")
    for statement in (RETENTION, RETENTION_DAYS, RETENTION_CHANGES, *INDEXES):
        op.execute(statement)
    for name, query in VIEWS.items():
        op.execute(f"CREATE VIEW jobrunner.{name} AS{query}")
    for name, definition in FUNCTIONS.items():
        op.execute(f"CREATE FUNCTION jobrunner.{name}{definition}")


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '2s'")
    # A day that is being read has a trigger, and a table beside it, which nobody would go on with.
    op.execute("""
DO $$
DECLARE
    part text;
BEGIN
    FOR part IN SELECT d.part FROM jobrunner.retention_days d LOOP
        IF to_regclass('jobrunner.' || part) IS NOT NULL THEN
            EXECUTE format('DROP TRIGGER IF EXISTS retention ON jobrunner.%I', part);
        END IF;
        EXECUTE format('DROP TABLE IF EXISTS jobrunner.%I', part || '_kept');
    END LOOP;
END $$""")
    for function in ("note_change()", "keep_attempts_of(text)", "keep_of(text, text)"):
        op.execute(f"DROP FUNCTION jobrunner.{function}")
    op.execute("DROP VIEW jobrunner.v_retention")
    for table in ("retention_changes", "retention_days", "retention"):
        op.execute(f"DROP TABLE jobrunner.{table}")
