"""`jobrunner doctor`: each finding with what mends it, and a crontab line that works as it is printed."""

from __future__ import annotations

import os
import pwd
import re
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest

from jobrunner.cli.crontab import Crontab, schedule
from jobrunner.cli.failures import CommandError
from jobrunner.doctor import GROUPS
from tests.support.cli import APP, SECONDS, Program
from tests.support.workers import rows, states

SECRET = "hunter2-and-more"
DOCTOR_KEYS = {"ok", "target", "crontab", "checks"}
FINDING_KEYS = {"code", "group", "state", "text", "fix", "data"}
MADE = (
    "INSERT INTO jobrunner.worker_runs (worker_id, name, host, pid, kind, pool, pool_slot, version, started_at, finished_at, reason, error,"
    " succeeded_count, failed_count, crashed_count) SELECT n, 'w', 'h', 1, 'cron', %(pool)s, 1, '0', at, at + interval '3 seconds', %(reason)s,"
    " %(error)s, 0, 0, 0 FROM unnest(%(minutes)s::int[]) AS n, LATERAL (SELECT now() - n * interval '1 minute' AS at) AS t"
)


def ran(dsn, minutes_ago, pool="default,mail", reason="drained", error=None):
    """Put runs on record that began so many minutes ago."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(MADE, {"minutes": list(minutes_ago), "pool": pool, "reason": reason, "error": error})


def found(said):
    """The findings of a document, by code; every one that is bad says how to mend it."""
    document = said.json
    assert set(document) == DOCTOR_KEYS
    assert all(set(finding) == FINDING_KEYS for finding in document["checks"])
    assert all(finding["fix"] for finding in document["checks"] if finding["state"] == "bad")
    assert all(finding["group"] in GROUPS for finding in document["checks"])
    assert said.code == (0 if document["ok"] else 1)
    assert document["ok"] == all(finding["state"] != "bad" for finding in document["checks"])
    return {finding["code"]: finding for finding in document["checks"]}


def as_cron(line):
    """Run a crontab line as cron does: what follows the fields, a percent sign unescaped, by /bin/sh, with next to no environment."""
    fields = re.match(r"(?:\S+ ){4}\S+  (.*)$", line)
    assert fields
    user = pwd.getpwuid(os.geteuid())
    bare = {"HOME": user.pw_dir, "LOGNAME": user.pw_name, "SHELL": "/bin/sh", "PATH": "/usr/bin:/bin"}
    command = ["/bin/sh", "-c", fields[1].replace(r"\%", "%").replace(" --for 55s", "")]
    done = subprocess.run(command, cwd=user.pw_dir, env=bare, capture_output=True, text=True, timeout=SECONDS, check=False)
    return done.returncode, done.stdout, done.stderr


def test_every_finding_says_what_mends_it(program):
    """No worker, no schema, no database, an app that cannot be imported: each is bad, with the next command, and the others are still looked at."""
    assert "jobrunner work" in found(program("doctor", "--json", ok=None))["no_worker"]["fix"]
    dsn = f"postgresql://shop:{SECRET}@127.0.0.1:1/orders"
    said = program("doctor", "--json", "--dsn", dsn, ok=None)
    findings = found(said)
    assert "pg_isready" in findings["database"]["fix"]
    assert findings["app"]["state"] == "ok"
    assert SECRET not in said.out + said.err
    (program.home / "app.py").write_text("import no_such_module\n")
    findings = found(program("doctor", "--json", ok=None))
    assert "no_such_module" in findings["app"]["text"]
    assert findings["schema"]["state"] == "ok"


def test_an_app_without_tasks(program):
    """One that only calls `jobs.background` is fine, and one that has forgotten an import is told; where nothing but tasks may run it is bad."""
    (program.home / "app.py").write_text("from flask import Flask\nfrom jobrunner import JobRunner\n\napp = Flask(__name__)\njobs = JobRunner(app)\n")
    app = found(program("doctor", "--json", ok=None))["app"]
    assert (app["state"], "jobs.background" in app["text"], "import" in app["fix"]) == ("note", True, True)
    app = found(program("doctor", "--json", ok=None, env={"JOBRUNNER_ALLOWED_MODULES": "none"}))["app"]
    assert (app["state"], "nothing can run" in app["text"]) == ("bad", True)


def test_a_missing_worker_of_an_app_that_has_an_embedded_one(program):
    """Where the web server would bring the worker, that is said; where the environment forbids it, there is none to be missed."""
    finding = found(program("doctor", "--json", ok=None, env={"JOBRUNNER_EMBEDDED_WORKER": "threads:2"}))["no_worker"]
    assert "embedded worker (threads:2)" in finding["text"]
    assert finding["fix"].startswith("start the web server, or: jobrunner work")
    off = {"JOBRUNNER_EMBEDDED_WORKER": "threads:2", "JOBRUNNER_NO_EMBEDDED_WORKER": "1"}
    assert "embedded" not in found(program("doctor", "--json", ok=None, env=off))["no_worker"]["text"]


def test_an_embedded_worker_that_is_none(program):
    """What the config says of one after `init_app` is a finding; commands that ask the app for its database have nothing to do with it."""
    with (program.home / "app.py").open("a") as file:
        file.write(f"\napp.config |= {{'JOBRUNNER_EMBEDDED_WORKER': 'lots', 'JOBRUNNER_DSN': {program.dsn!r}}}\n")
    findings = found(program("doctor", "--json", ok=None))
    assert (findings["app"]["state"], findings["embedded_worker"]["state"]) == ("ok", "bad")
    assert "Flask config JOBRUNNER_EMBEDDED_WORKER='lots'" in findings["embedded_worker"]["text"]
    assert "threads:2" in findings["embedded_worker"]["fix"]
    assert Program(program.home, None)("status", "--json", ok=None).json["queues"] == []


def test_a_schema_that_is_missing(tmp_path, empty_dsn):
    """A database without our tables is a finding with the command that makes them."""
    (tmp_path / "app.py").write_text(APP)
    findings = found(Program(tmp_path, empty_dsn)("doctor", "--json", ok=None))
    assert (findings["schema"]["state"], findings["database"]["state"]) == ("bad", "ok")
    assert "jobrunner db upgrade" in findings["schema"]["fix"]


def test_the_line_works_as_it_is_printed(program):
    """Absolute paths, the database without a password, all queues of the app: by /bin/sh with next to no environment it runs the jobs."""
    for task, args in (("add", '{"a": 1, "b": 2}'), ("divide", '{"a": 4, "b": 2}')):
        program("-q", "enqueue", task, args)
    said = program("doctor", "--cron", "--json", ok=None)
    line = said.json["crontab"]
    assert line.startswith("* * * * *  cd ")
    assert str(program.home) in line
    assert str(Path(sys.executable).parent) in line
    assert " cron default,mail --for 55s" in line
    findings = found(said)
    assert findings["as_cron"]["state"] == "ok"
    assert findings["clocks"]["state"] == "ok"
    assert line.replace("'", "'\"'\"'") in findings["never_ran"]["fix"]
    assert program("doctor", "--cron", ok=None).lines()[0] == line
    assert as_cron(line) == (0, "", "")
    assert states(program.dsn) == {"succeeded": 2}


def test_a_password_stays_out_of_the_line(program):
    """With a password in the address the line reads a file instead; where there is none yet the finding says how to make it, and nowhere is
    the password printed."""
    password = program.dsn.replace("postgres@", f"postgres:{SECRET}@", 1)
    assert SECRET in password
    own = Program(program.home, password)
    said = own("doctor", "--cron", "--json", ok=None)
    findings = found(said)
    assert "chmod 600" in findings["password"]["fix"]
    assert findings["as_cron_target"]["state"] == "bad"
    assert SECRET not in said.out + said.err
    file = program.home / ".env"
    file.write_text(f"JOBRUNNER_DSN='{password}'\n")
    file.chmod(0o644)
    assert f"chmod 600 {file}" in found(own("doctor", "--cron", "--json", ok=None))["env_file"]["fix"]
    file.chmod(0o600)
    program("-q", "enqueue", "add", '{"a": 1, "b": 2}')
    said = own("doctor", "--cron", "--json", ok=None)
    assert {"password", "env_file", "as_cron_target"}.isdisjoint(found(said))
    assert SECRET not in said.out + said.err
    assert f". {file} " in said.json["crontab"]
    assert as_cron(said.json["crontab"]) == (0, "", "")
    assert states(program.dsn) == {"succeeded": 1}


def test_what_only_the_shell_knows(program):
    """An app named by JOBRUNNER_APP comes into the line; one that needs a variable of the shell is found out, and an env file helps."""
    (program.home / "app.py").rename(program.home / "shop.py")
    said = program("doctor", "--cron", "--json", env={"JOBRUNNER_APP": "shop:jobs"}, ok=None)
    assert said.json["crontab"].endswith(" --app shop:jobs")
    assert found(said)["as_cron"]["state"] == "ok"
    source = program.home / "shop.py"
    source.write_text("import os\nos.environ['SHOP_KEY']\n" + source.read_text())
    shell = {"JOBRUNNER_APP": "shop:jobs", "SHOP_KEY": "x"}
    finding = found(program("doctor", "--cron", "--json", env=shell, ok=None))["as_cron_app"]
    assert "in cron's environment" in finding["text"]
    assert "SHOP_KEY" in finding["text"]
    file = program.home / "shop.env"
    file.write_text(f"export SHOP_KEY=x\nJOBRUNNER_DSN='{program.dsn}'\n")
    file.chmod(0o600)
    said = program("doctor", "--cron", "--env-file", "shop.env", "--json", env=shell, ok=None)
    assert found(said)["as_cron"]["state"] == "ok"
    assert as_cron(said.json["crontab"]) == (0, "", "")


def test_a_line_that_does_not_even_start(program):
    """An env file that is no shell is found by trying the line."""
    file = program.home / ".env"
    file.write_text("JOBRUNNER_DSN=(\n")
    file.chmod(0o600)
    finding = found(program("doctor", "--cron", "--json", ok=None))["as_cron"]
    assert (finding["state"], "does not start" in finding["text"]) == ("bad", True)


def test_past_runs(program):
    """Runs in time are well; starts that did not come, and runs that ended badly, are told with their number."""
    ran(program.dsn, range(1, 55))
    findings = found(program("doctor", "--cron", "--json"))
    assert (findings["runs"]["state"], "none missed" in findings["runs"]["text"]) == ("ok", True)
    ran(program.dsn, [0], reason="error", error="AppImportError: could not import app")
    finding = found(program("doctor", "--cron", "--json", ok=None))["bad_runs"]
    assert finding["text"].startswith("1 run of pool 'default,mail' ended badly; the last: error: AppImportError")
    assert finding["fix"] == "jobrunner workers runs --pool default,mail"
    with psycopg.connect(program.dsn, autocommit=True) as connection:
        connection.execute("DELETE FROM jobrunner.worker_runs WHERE started_at BETWEEN now() - interval '30.5 min' AND now() - interval '20.5 min'")
    finding = found(program("doctor", "--cron", "--json", ok=None))["missed"]
    assert "starts did not come (10)" in finding["text"]


def test_past_runs_of_another_interval(program):
    """The interval is learned from the runs or told; with too few to learn from, that is said and is not wrong."""
    ran(program.dsn, [2], pool="shop")
    findings = found(program("doctor", "--cron", "--pool", "shop", "--json"))
    assert (findings["runs"]["state"], findings["runs"]["fix"]) == ("note", "jobrunner doctor --cron --every 60s")
    ran(program.dsn, [7, 12, 17, 22, 27, 32, 37, 42, 47, 52, 57], pool="shop")
    said = program("doctor", "--cron", "--pool", "shop", "--every", "5m", "--json")
    assert found(said)["runs"]["state"] == "ok"
    assert said.json["crontab"].startswith("*/5 * * * *  ")
    assert "--pool shop" in said.json["crontab"]
    assert "--for" not in said.json["crontab"]
    assert "missed" in found(program("doctor", "--cron", "--pool", "shop", "--every", "60s", "--json", ok=None))


@pytest.mark.needs("linux")
def test_processes_of_any_name(program):
    """The look for a cron daemon goes past one whose name is no text."""
    odd = "import pathlib, sys; pathlib.Path('/proc/self/comm').write_bytes(b'\\n) \\xff'); print(flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", odd], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline()
        assert "never_ran" in found(program("doctor", "--cron", "--json", ok=None))
        process.stdin.close()


def test_real_runs_satisfy_it(program):
    """What `cron` itself leaves on record is what the doctor reads."""
    program("cron", "mail,default")
    findings = found(program("doctor", "--cron", "--json"))
    assert findings["runs"]["text"].startswith("too few runs of pool 'default,mail' in the last hour (1)")
    assert rows(program.dsn, "SELECT count(*) FROM jobrunner.v_worker_runs") == [(1,)]


@pytest.mark.parametrize(
    ("every", "fields"),
    [
        ({"seconds": 60}, "* * * * *"), ({"minutes": 2}, "*/2 * * * *"), ({"minutes": 30}, "*/30 * * * *"), ({"hours": 1}, "0 * * * *"),
        ({"hours": 6}, "0 */6 * * *"), ({"days": 1}, "0 0 * * *"),
    ],
)  # fmt: skip
def test_intervals_that_cron_can_keep(every, fields):
    """Minutes that divide the hour, hours that divide the day."""
    assert schedule(timedelta(**every)) == fields


@pytest.mark.parametrize("seconds", [0, 1, 30, 90, 7 * 60, 45 * 60, 90 * 60, 5 * 3600, 48 * 3600])
def test_intervals_that_cron_cannot_keep(seconds):
    """Anything else is refused, with what would do."""
    with pytest.raises(CommandError, match="cron cannot keep that interval"):
        schedule(timedelta(seconds=seconds))


def test_what_means_something_to_a_shell_or_to_cron():
    """Blanks, quotes and dollars are quoted for the shell, a percent sign is escaped for cron."""
    line = Crontab(
        Path("/srv/it's 100%"), ("/opt/a b/jobrunner",), "$app", "mail", None, timedelta(minutes=5), "postgresql:///x?host=%2Ftmp", None
    ).line
    assert line == (
        "*/5 * * * *  cd '/srv/it'\"'\"'s 100\\%' && JOBRUNNER_DSN='postgresql:///x?host=\\%2Ftmp' '/opt/a b/jobrunner' cron mail --app '$app'"
    )


def test_options_that_are_for_cron(program):
    """They are refused without --cron, rather than left out of account."""
    for option in (["--every", "60s"], ["--pool", "x"], ["--env-file", ".env"], ["mail"]):
        assert program("doctor", *option, ok=None).code == 2
