"""`jobrunner retention` and `jobrunner prune`: rules are listed, set and unset; what is too old goes now, or is counted."""

from __future__ import annotations

import json

import psycopg
import pytest

from tests.support.cli import Program
from tests.support.history import Past
from tests.support.waiting import wait_until

RETENTION_KEYS = {"items", "tables", "due", "problems"}
RULE_KEYS = {
    "task", "state", "keep", "keep_seconds", "origin", "app", "changed_at", "changed_by", "overridden", "through", "next_at",
}  # fmt: skip
TABLE_KEYS = {"table", "days", "oldest", "row_estimate", "size"}
DUE_KEYS = {"partition", "day", "whole", "phase", "due_count", "kept_count"}
PLANNED_KEYS = {"partition", "day", "removes", "keeps", "whole"}
PRUNED_KEYS = {"dropped", "replaced", "removed_count", "archived_count", "in_use", "refused", "more"}
DEFAULTS = [("*", "cancelled", "30d"), ("*", "failed", "180d"), ("*", "quarantined", "180d"), ("*", "succeeded", "30d")]

KEEPING_APP = """
from flask import Flask
from jobrunner import JobRunner

app = Flask("shop")
jobs = JobRunner(app, keep={"failed": "90d"})


@jobs.task(keep={"succeeded": "7d", "failed": "forever"})
def mail(to: str):
    pass


@jobs.task(keep="2d")
def ping():
    pass
"""


@pytest.fixture
def past(fresh_dsn):
    """A database of one's own: partitions are made, replaced and dropped."""
    with psycopg.connect(fresh_dsn, autocommit=True) as connection:
        yield Past(connection)


@pytest.fixture
def own(tmp_path, fresh_dsn):
    """`jobrunner` on that database, in a directory whose application cannot be imported."""
    (tmp_path / "app.py").write_text("raise RuntimeError('the application was imported')\n")
    return Program(tmp_path, fresh_dsn)


def rules(program):
    """(task, state, keep, origin) of all rules but the defaults."""
    items = program("retention", "--json").json["items"]
    return [(item["task"], item["state"], item["keep"], item["origin"]) for item in items if item["origin"] != "default"]


def test_the_list(own, past):
    """Every rule with where it comes from and up to which day it removes; how much there is; what waits to be looked into."""
    past.day(31, ("add", "succeeded", 3))
    document = own("retention", "--json").json
    assert set(document) == RETENTION_KEYS
    assert all(set(item) == RULE_KEYS for item in document["items"])
    assert all(set(item) == TABLE_KEYS for item in document["tables"])
    assert [set(item) for item in document["due"]] == [DUE_KEYS]
    assert [(item["task"], item["state"], item["keep"]) for item in document["items"]] == DEFAULTS
    assert {item["through"] for item in document["items"] if item["keep"] == "30d"} == {
        str(past.one("SELECT (now() AT TIME ZONE 'UTC')::date - 31"))
    }
    said = own("retention").out
    assert said.splitlines()[0].split()[:4] == ["TASK", "STATE", "KEEP", "FROM"]
    assert "to be looked into: 1 days" in said


def test_set_and_unset(own):
    """A rule goes before the defaults, is written over by another for the same, and is gone when it is unset; nothing imports the app."""
    assert own("retention", "set", "--state", "failed", "--task", "mail.*", "90d").err.endswith("failed jobs of mail.*: kept for 90d\n")
    own("retention", "set", "--state", "failed", "--task", "mail.*", "forever")
    own("retention", "set", "2w")
    assert rules(own) == [("*", "*", "14d", "operator"), ("mail.*", "failed", "forever", "operator")]
    assert {item["overridden"] for item in own("retention", "--json").json["items"] if item["origin"] == "default"} == {True}
    assert "as before" in own("retention", "set", "14d").err
    own("retention", "unset")
    own("retention", "unset", "--task", "mail.*", "--state", "failed")
    assert rules(own) == []
    refused = own("retention", "unset", "--task", "mail.*", ok=None)
    assert (refused.code, refused.out) == (6, "")
    assert "error: no rule was set for jobs of mail.*" in refused.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["retention", "set", "12h"], "expected a duration from 1 to 36,500 days"),
        (["retention", "set", "soon"], "expected a duration from 1 to 36,500 days, such as '30d', or 'forever'"),
        (["retention", "set", "99999999999d"], "expected a duration"),
        (["retention", "set", "--state", "queued", "30d"], "'queued' is not one of"),
        (["retention", "set", "--task", "", "30d"], "a task's name is text, not empty"),
        (["prune", "--older-than", "forever"], "would remove nothing"),
        (["prune", "--older-than", "1h"], "expected a duration from 1"),
        (["prune", "--archive", "nowhere"], "--archive='nowhere': there is no such directory"),
    ],
)
def test_what_makes_no_sense_is_refused(reader, arguments, words):
    """A duration below a day, a state in which no job ends, an archive that is not there: exit 2, and nothing is written."""
    said = reader(*arguments, ok=None)
    assert said.code == 2
    assert words in said.err
    assert rules(reader) == []


def test_prune(own, past, tmp_path):
    """A dry run counts and changes nothing; a run removes, archives, and says what it came to; another finds nothing to do."""
    part, stray = past.day(31, ("add", "succeeded", 3)), f"{past.today().year - 2}-03-01 12:00+00"
    past.put("job_history", "add", "failed", 2, stray)
    planned = own("prune", "--dry-run", "--json").json["items"]
    assert [set(item) for item in planned] == [PLANNED_KEYS] * 2
    assert [(item["partition"], item["removes"], item["keeps"]) for item in planned] == [(part, 3, 0), ("job_history_default", 2, None)]
    assert "rows that would be removed: 5" in own("prune", "--dry-run").err
    assert sum(past.held().values()) == 5
    (tmp_path / "old").mkdir()
    removed = own("prune", "--json", env={"JOBRUNNER_ARCHIVE": str(tmp_path / "old")}).json
    assert set(removed) == PRUNED_KEYS
    assert (removed["dropped"], removed["removed_count"], removed["archived_count"]) == ([part], 5, 5)
    assert past.held() == {}
    assert len(list((tmp_path / "old").iterdir())) == 2
    assert own("prune").out == "about 0 rows removed; 0 days dropped, 0 replaced\n"
    silent = own("--quiet", "prune")
    assert (silent.out, silent.err) == ("", "")


def test_prune_older_than(own, past):
    """A duration on the line takes the place of the rules."""
    past.day(10, ("add", "failed", 2))
    assert own("prune", "--older-than", "11d", "--json").json["removed_count"] == 0
    assert own("prune", "--older-than", "5d", "--json").json["removed_count"] == 2
    assert past.held() == {}


def test_a_job_that_is_gone(own, past):
    """Of a job that was there once it is said that retention may have removed it; of an id that was never given it is not."""
    past.day(182, ("add", "failed", 1))
    job_id = past.one("SELECT id FROM jobrunner.job_history")
    own("prune")
    said = own("jobs", "show", job_id, ok=None)
    assert said.code == 6
    assert f"no job {job_id}: it may have been removed by retention" in said.err
    assert "jobrunner retention" in said.err
    assert "removed by retention" not in own("jobs", "show", job_id + 1000, ok=None).err


def test_the_code_says_how_long(tmp_path, fresh_dsn):
    """What JobRunner and the tasks say, and the environment, is in the table once a worker starts; an operator's word stays above it."""
    (tmp_path / "app.py").write_text(KEEPING_APP)
    program = Program(tmp_path, fresh_dsn)
    program("cron")
    expected = [
        ("*", "failed", "90d", "code"), ("mail", "failed", "forever", "code"), ("mail", "succeeded", "7d", "code"), ("ping", "*", "2d", "code"),
    ]  # fmt: skip
    assert sorted(rules(program)) == expected
    assert {item["app"] for item in program("retention", "--json").json["items"] if item["origin"] == "code"} == {"shop"}
    before = program("retention", "--json").json["items"]
    program("retention", "set", "--task", "ping", "9d")
    program("cron", env={"JOBRUNNER_KEEP_SUCCEEDED": "10d", "JOBRUNNER_KEEP_FAILED": "11d"})
    after = rules(program)
    # The environment speaks for the states of which the code says nothing.
    assert set(after) - set(expected) == {
        ("*", "succeeded", "10d", "code"), ("*", "cancelled", "10d", "code"), ("*", "quarantined", "11d", "code"), ("ping", "*", "9d", "operator"),
    }  # fmt: skip
    with psycopg.connect(fresh_dsn) as connection:
        assert connection.execute("SELECT jobrunner.keep_of('ping', 'failed')::text").fetchone() == ("9 days",)
    program("retention", "unset", "--task", "ping")
    program("cron")
    assert program("retention", "--json").json["items"] == before  # also changed_at: a start that says nothing new writes nothing


def test_another_applications_rules_stay(tmp_path, fresh_dsn):
    """Of two applications on one database none takes away what the other says; of what both say the longer time holds."""
    for name, keep in (("one", "3d"), ("two", "5d")):
        (tmp_path / name).mkdir()
        app = f'from jobrunner import JobRunner\njobs = JobRunner(name="{name}", keep="{keep}")\n\n@jobs.task\ndef ping():\n    pass\n'
        (tmp_path / name / "app.py").write_text(app)
        Program(tmp_path / name, fresh_dsn)("cron")
    assert [rule[2] for rule in rules(Program(tmp_path / "one", fresh_dsn))] == ["3d", "5d"]
    with psycopg.connect(fresh_dsn) as connection:
        assert connection.execute("SELECT jobrunner.keep_of('ping', 'failed')::text").fetchone() == ("5 days",)


def test_workers_leave_history_to_others(tmp_path, fresh_dsn, past):
    """With JOBRUNNER_PRUNE=off no worker removes what a function of one's own has yet to see; `jobrunner prune` does."""
    (tmp_path / "app.py").write_text(KEEPING_APP)
    past.day(182, ("add", "failed", 3))
    program = Program(tmp_path, fresh_dsn)
    for _ in range(3):
        program("cron", env={"JOBRUNNER_PRUNE": "off"})
    assert past.held() == {("add", "failed"): 3}
    refused = program("cron", env={"JOBRUNNER_PRUNE": "often"}, ok=None)
    assert (refused.code, refused.out) == (2, "")
    assert "JOBRUNNER_PRUNE='often': is neither on nor off" in refused.err
    program("prune", env={"JOBRUNNER_PRUNE": "off"})
    assert past.held() == {}


def test_cron_prunes_and_archives(tmp_path, fresh_dsn, past):
    """Cron runs are all that is needed: old days go, into the archive before, and it says nothing of it; a bad setting is one line."""
    (tmp_path / "app.py").write_text(KEEPING_APP)
    (tmp_path / "old").mkdir()
    past.day(182, ("add", "failed", 3))
    past.day(4, ("ping", "succeeded", 5), ("mail", "succeeded", 2))
    program = Program(tmp_path, fresh_dsn)

    def pruned() -> bool:
        said = program("cron", "--summary", env={"JOBRUNNER_ARCHIVE": str(tmp_path / "old")})
        assert (said.err, json.loads(said.out)["exit"]) == ("", 0)
        left: dict[tuple[str, str], int] = past.held()
        return left == {("mail", "succeeded"): 2}

    wait_until(pruned, timeout=60, what="runs, each of which takes half a second for it, to have removed what is too old")
    assert len(list((tmp_path / "old").glob("job_history_*.jsonl.gz"))) == 2
    for name, value in (("JOBRUNNER_ARCHIVE", "/nowhere/at/all"), ("JOBRUNNER_KEEP_FAILED", "1h")):
        refused = program("cron", env={name: value}, ok=None)
        assert (refused.code, refused.out) == (2, "")
        assert f"{name}='{value}'" in refused.err.replace('\\"', '"')
        assert len(refused.err.splitlines()) == 1


def test_flask_jobs(tmp_path, fresh_dsn):
    """`flask jobs retention` is the same command."""
    (tmp_path / "app.py").write_text(KEEPING_APP)
    flask = Program(tmp_path, fresh_dsn, ("-m", "flask"))
    flask("jobs", "retention", "set", "--state", "failed", "200d")
    assert ("*", "failed", "200d", "operator") in rules(Program(tmp_path, fresh_dsn))
    assert "operator" in flask("jobs", "retention").out
