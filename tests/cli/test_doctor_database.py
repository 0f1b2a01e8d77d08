"""`jobrunner doctor` about the database: nothing on a healthy system, else findings that a stranger can read and act on."""

from __future__ import annotations

import subprocess

import psycopg
import pytest

from jobrunner.doctor import GROUPS
from jobrunner.settings import describe_target
from tests.cli.test_doctor import found
from tests.support import doctoring
from tests.support.cli import APP, Program
from tests.support.revisions import at_version
from tests.support.workers import insert

SECRET = "hunter2-and-more"
COLUMNS = 80
LABEL = "        sql: "

pytestmark = pytest.mark.needs("psql")


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    """`jobrunner` beside an application, on a server with PostgreSQL's own settings."""
    home = tmp_path_factory.mktemp("healthy")
    (home / "app.py").write_text(APP)
    with doctoring.cluster(bare=True) as own:
        yield Program(home, own.dsn())


def test_nothing_is_wrong(healthy):
    """With workers and jobs on a server as it comes nothing is to be found: 0, every check is told with its figure, in groups."""
    healthy("-q", "enqueue", "add", '{"a": 1, "b": 2}')
    with healthy.started("work", "mail,default", "--no-listen") as worker:
        worker.wait_for("worker started")
        findings = found(healthy("doctor", "--json"))
        assert {code for code, finding in findings.items() if finding["state"] != "ok"} == set()
        assert {finding["group"] for finding in findings.values()} == GROUPS.keys() - {"cron"}
        said = healthy("doctor")
        assert f"ok {describe_target(healthy.dsn)} answers" in " ".join(said.out.split())
        assert [line for line in said.lines() if line in GROUPS.values()] == [GROUPS[name] for name in GROUPS if name != "cron"]
        assert said.lines()[-1] == f"all is well: {len(findings)} findings are ok"
        assert worker.stop() == 0


def test_only_the_set_up(healthy):
    """With --setup nothing is asked of the database but the schema's version: nobody alive is no finding then."""
    findings = found(healthy("doctor", "--setup", "--json"))
    assert findings.keys() == {"database", "schema", "app"}
    assert healthy("doctor", "--setup").lines()[0] == GROUPS["setup"]


def test_findings_can_be_read_on_a_narrow_terminal(program):
    """Sentences are broken at 80 columns, commands never; each bad finding is followed by what mends it; exit 1."""
    insert(program.dsn, "divide", 3, queue="nobody", args="jsonb_build_object('secret', 'hunter2-and-more')")
    with psycopg.connect(program.dsn) as pin:
        pin.execute(f"SELECT '{SECRET}', pg_current_xact_id()")
        code, shown = program.on_terminal("--no-color", "doctor", columns=COLUMNS)
    assert code == 1
    lines = shown.splitlines()
    for index, line in enumerate(lines):
        unbroken = line.strip().startswith(("sql:", "fix:")) or describe_target(program.dsn) in line  # an address is one word
        assert len(line) <= COLUMNS or unbroken, line
        if line.startswith("  bad "):
            block = lines[index + 1 : next(after for after in range(index + 1, len(lines)) if not lines[after].startswith("     "))]
            assert any(each.strip().startswith(("sql:", "fix:")) for each in block), line
    assert "fix: jobrunner work default,nobody" in shown
    assert SECRET not in shown
    number = sum(line.startswith("  bad ") for line in lines)
    assert lines[-1].startswith(f"{number} bad, ")


def test_a_command_that_is_printed_can_be_pasted(program):
    """What stands behind `sql:` and below it goes into psql as it is, whatever is in it."""
    with psycopg.connect(program.dsn, autocommit=True) as connection:
        ((definition,),) = connection.execute("SELECT pg_get_viewdef('jobrunner.v_queues'::regclass)").fetchall()
        connection.execute("DROP VIEW jobrunner.v_queues; DROP INDEX jobrunner.jobs_running")
    scripts = printed(program("doctor", ok=None).lines())
    assert [script.split()[0:2] for script in scripts][:2] == [["CREATE", "INDEX"], ["CREATE", "OR"]]
    for script in scripts[:2]:
        paste(program.dsn, script)
    with psycopg.connect(program.dsn) as connection:
        assert connection.execute("SELECT pg_get_viewdef('jobrunner.v_queues'::regclass)").fetchone() == (definition,)
    assert found(program("doctor", "--json", ok=None))["structure"]["state"] == "ok"


def printed(lines):
    """Each block of SQL: what stands behind `sql:`, and below it in the same column."""
    blocks = []
    for line in lines:
        if line.startswith(LABEL):
            blocks.append(line[len(LABEL) :])
        elif blocks and line.startswith(" " * len(LABEL)):
            blocks[-1] += "\n" + line[len(LABEL) :]
    return blocks


def paste(dsn, script):
    """Into psql; it must like every statement."""
    command = ["psql", "-X", "-v", "ON_ERROR_STOP=1", "-f", "-", dsn]
    subprocess.run(command, input=script, text=True, capture_output=True, check=True, timeout=60)


def test_a_schema_that_does_not_fit(program):
    """An older or newer schema is bad with what to do; what reads our tables is left out, the server is looked at all the same."""
    with psycopg.connect(program.dsn, autocommit=True) as connection, at_version(connection, "0001"):
        findings = found(program("doctor", "--json", ok=None))
        assert findings["schema"]["state"] == "bad"
        assert "jobrunner db upgrade" in findings["schema"]["fix"]
        assert "queues" not in findings
        assert findings["server_version"]["state"] == "ok"
    with psycopg.connect(program.dsn, autocommit=True) as connection, at_version(connection, "9999"):
        findings = found(program("doctor", "--json", ok=None))
        assert findings["schema"]["state"] == "bad"
        assert "newer" in findings["schema"]["text"]


def test_a_version_that_is_locked(program):
    """A migration that holds the version's table is a note, not a crash, and the rest is looked at."""
    with psycopg.connect(program.dsn) as holder:
        holder.execute("LOCK TABLE jobrunner.alembic_version IN ACCESS EXCLUSIVE MODE")
        said = program("doctor", "--json", ok=None)
    findings = found(said)
    assert findings["schema"]["state"] == "note"
    assert "lock timeout" in findings["schema"]["text"]
    assert findings["server_version"]["state"] == "ok"
    assert "Traceback" not in said.err


def test_a_role_that_may_not_even_see_the_schema(healthy):
    """It gets a note with the GRANT for itself, and the findings about the server; granted as printed, the schema is seen."""
    with psycopg.connect(healthy.dsn, autocommit=True) as connection:
        connection.execute("CREATE ROLE visitor LOGIN PASSWORD 'hunter2-and-more'")
    as_visitor = Program(healthy.home, healthy.dsn.replace("postgres@", f"visitor:{SECRET}@", 1))
    said = as_visitor("doctor", "--json", ok=None)
    findings = found(said)
    assert findings["schema"]["state"] == "note"
    assert findings["server_version"]["state"] == "ok"
    assert 'TO "visitor";' in findings["schema"]["fix"]
    assert SECRET not in said.out + said.err
    paste(healthy.dsn, findings["schema"]["fix"])
    assert found(as_visitor("doctor", "--json", ok=None))["schema"]["state"] == "ok"
