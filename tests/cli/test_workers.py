"""`jobrunner workers …`: who works, and how those ended who did."""

from __future__ import annotations

import psycopg

WORKER_KEYS = {
    "id", "name", "host", "pid", "kind", "version", "state", "queues", "tasks", "slots", "running", "started_at", "heartbeat_at",
    "stopped_at", "last_exit", "rss_bytes", "succeeded_count", "failed_count", "crashed_count", "pool", "pool_slot",
    "claimed_count", "memory_bytes", "running_jobs",
}  # fmt: skip
RUN_KEYS = {
    "id", "worker_id", "name", "host", "pid", "kind", "pool", "pool_slot", "version", "started_at", "finished_at", "run_ms", "reason",
    "exit_code", "error", "claimed_count", "succeeded_count", "failed_count", "crashed_count", "left_count", "next_due_at",
}  # fmt: skip


def test_list(program):
    """Those at work first, then so many of those that stopped, the last first; none of it imports the app."""
    for name in ("one", "two"):
        program("cron", "--name", name)
    with program.started("work", "--name", "three", "--no-listen") as worker:
        worker.wait_for("worker started")
        (program.home / "app.py").write_text("raise RuntimeError('the application was imported')\n")
        document = program("workers", "list", "--limit", "1", "--json").json
        assert set(document) == {"items", "at"}
        assert all(set(row) == WORKER_KEYS for row in document["items"])
        assert [(row["name"], row["state"], row["pool"]) for row in document["items"]] == [
            ("three", "alive", None), ("two", "stopped", "default"),
        ]  # fmt: skip
        lines = program("workers", "list").lines()
        assert lines[0].split()[:5] == ["ID", "WORKER", "STATE", "KIND", "POOL"]
        assert [line.split()[1] for line in lines[1:]] == ["three", "two", "one"]
        assert worker.stop() == 0


def test_runs(program):
    """What has ended, the last first, with why, and what of it failed; of one pool when asked."""
    program("cron", "--pool", "shop")
    program("work", "--drain")
    (program.home / "app.py").write_text("import no_such_module\n")
    program("cron", ok=None)
    document = program("workers", "runs", "--json").json
    assert set(document) == {"items", "at"}
    assert all(set(row) == RUN_KEYS for row in document["items"])
    assert [(row["kind"], row["pool"], row["reason"], row["exit_code"]) for row in document["items"]] == [
        ("cron", "default", "error", 2), ("drain", None, "drained", 0), ("cron", "shop", "drained", 0),
    ]  # fmt: skip
    assert [row["pool"] for row in program("workers", "runs", "--pool", "shop", "--json").json["items"]] == ["shop"]
    assert len(program("workers", "runs", "--limit", "2", "--json").json["items"]) == 2
    title, error, *_ = program("workers", "runs").lines()
    assert title.split()[6:8] == ["REASON", "EXIT"]
    assert "no_such_module" in error


def test_runs_are_read_by_their_index(fresh_dsn):
    """A page of the last runs, of all or of one pool, reads no more than the page, however many there are."""
    from jobrunner.inspection import runs

    with psycopg.connect(fresh_dsn, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO jobrunner.worker_runs (worker_id, name, host, pid, kind, pool, pool_slot, version, started_at, finished_at, reason,"
            " succeeded_count, failed_count, crashed_count) SELECT g, 'w', 'h', 1, 'cron', 'pool ' || g % 3, 1, '0', at, at, 'drained', 0, 0, 0"
            " FROM generate_series(1, 20000) AS g, LATERAL (SELECT now() - g * interval '1 minute' AS at) AS t"
        )
        connection.execute("VACUUM ANALYZE jobrunner.worker_runs")
        for text, values in ((runs._RUNS, {"most": 50}), (runs._RUNS_OF_POOL, {"most": 50, "pool": "pool 1"})):
            query = str(text).replace(":most", "%(most)s").replace(":pool", "%(pool)s")
            (plan,) = connection.execute(f"EXPLAIN (ANALYZE, FORMAT TEXT, COSTS OFF, TIMING OFF, SUMMARY OFF) {query}", values).fetchmany(1)
            assert "Seq Scan" not in str(plan)
            lines = [line for (line,) in connection.execute(f"EXPLAIN {query}", values).fetchall()]
            assert any("worker_runs_recent" in line or "worker_runs_pool" in line for line in lines), lines
            assert not any("Seq Scan" in line for line in lines), lines
