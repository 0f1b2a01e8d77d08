"""The archive: every row is in a file, whole, before it goes; what cannot be archived stays, is said and is on record."""

from __future__ import annotations

import gzip
import json
import re
import resource
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from jobrunner.database import Database
from jobrunner.errors import ArchiveError, ConfigurationError
from jobrunner.history import archive, steps
from jobrunner.history.archive import Files, directory_from
from jobrunner.history.days import problems
from jobrunner.maintenance import Batch, prune
from jobrunner.maintenance.history import HistoryPruner
from jobrunner.settings import Dsn
from jobrunner.store import Store
from tests.support.cli import Program
from tests.support.commands import clean_environment
from tests.support.history import Past
from tests.support.sessions import PATIENCE

ENOSPC = "No space left on device"
HOW_TO = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "retention.md"


@pytest.fixture
def past(fresh_dsn, monkeypatch):
    """A database of one's own, in which few rows are none: days are replaced."""
    monkeypatch.setattr(steps, "FEW", 0)
    with psycopg.connect(fresh_dsn, autocommit=True) as connection:
        yield Past(connection)


@pytest.fixture
def database(fresh_dsn):
    """The same for `prune`."""
    found = Database(Dsn(fresh_dsn, "test"))
    yield found
    found.close()


@pytest.fixture
def files(tmp_path):
    """A directory for an archive."""
    (tmp_path / "archive").mkdir()
    return Files(tmp_path / "archive")


def lines_in(files):
    """Every row in the files of an archive."""
    return [json.loads(line) for path in sorted(files.directory.iterdir()) for line in gzip.decompress(path.read_bytes()).splitlines()]


@pytest.mark.parametrize("few", [0, 1000], ids=["replaced", "deleted"])
def test_what_goes_is_in_the_files(past, database, files, monkeypatch, few):
    """Whole days, parts of days, rows without a day, attempts: what is gone from the tables is in files, and nothing else."""
    monkeypatch.setattr(steps, "FEW", few)
    past.day(182, ("add", "failed", 5))
    past.day(31, ("add", "succeeded", 20), ("add", "failed", 21))
    past.day(182, ("add", "failed", 3), parent="job_attempts")
    past.put("job_history", "stray", "succeeded", 2, f"{past.today().year - 2}-03-01 12:00+00")
    before = past.whole()
    past.execute("SET TIME ZONE 'Pacific/Auckland'; SET IntervalStyle = 'sql_standard'")
    removed = prune(database, sink=files)
    past.execute("RESET ALL")
    left = past.whole()
    names = {path.name.split(".")[0] for path in files.directory.iterdir()}
    assert {name[: len("job_attempts")] for name in names} == {"job_attempts", "job_history_"}
    assert "job_history_default" in names
    archived = [row for row in lines_in(files) if "state" in row]
    assert sorted(row["id"] for row in archived) == sorted(row["id"] for row in before if row not in left)
    assert all(row in before for row in archived)
    assert len(left) == 21
    assert (removed.archived_count, len(lines_in(files))) == (30, 30)


def test_a_day_that_is_gone_through_twice_has_two_sets_of_files(past, database, files):
    """What goes after a month and what goes after half a year are in different files: none is written over another."""
    past.day(40, ("add", "succeeded", 4), ("add", "failed", 3))
    prune(database, sink=files)
    first = set(files.directory.iterdir())
    past.keep("31 days")
    prune(database, sink=files)
    assert first < set(files.directory.iterdir())
    assert len(lines_in(files)) == 7
    assert past.held() == {}


@pytest.mark.needs("psql")
def test_the_documented_way_back(past, database, files, fresh_dsn, tmp_path):
    """What the how-to says loads every row back as it was, also from files that hold a row twice."""
    past.day(182, ("add", "failed", 5), ("grün\n\t\"'\\", "cancelled", 2))
    past.day(183, ("add", "failed", 5))
    before = past.whole()
    prune(database, sink=files)
    assert past.held() == {}
    some = next(iter(files.directory.iterdir()))
    some.with_name("job_history_19990101.1.jsonl.gz").write_bytes(some.read_bytes())
    script = tmp_path / "load.sql"
    found = re.search(r"^```sql\n(CREATE TABLE lines.*?)^```$", HOW_TO.read_text(), re.MULTILINE | re.DOTALL)
    assert found
    script.write_text(found[1].replace("/var/lib/jobrunner/archive", str(files.directory)))
    subprocess.run(["psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", fresh_dsn, "-f", str(script)], check=True)
    assert past.one("SELECT jsonb_agg(to_jsonb(a) ORDER BY a.finished_at, a.id) FROM archived AS a") == sorted(
        before, key=lambda row: (row["finished_at"], row["id"])
    )


def test_a_function_gets_every_row_before_it_goes(past, database, monkeypatch):
    """The function is called with portions of whole rows, by table and day, while the rows are still there."""
    monkeypatch.setattr(archive, "MOST_ROWS", 8)
    part = past.day(182, ("add", "failed", 20))
    seen: list[Batch] = []

    def keep(batch):
        assert past.one("SELECT count(*) FROM jobrunner.job_history WHERE id = ANY (%s)", ([row["id"] for row in batch.rows],)) == len(
            batch.rows
        )
        seen.append(batch)

    assert prune(database, archive=keep).archived_count == 20
    assert [len(batch.rows) for batch in seen] == [8, 8, 4]
    assert {(batch.table, f"{batch.table}_{batch.day:%Y%m%d}") for batch in seen} == {("job_history", part)}
    assert seen[0].rows[0]["args"]["word"] == 'grün "\\ 1e400'
    assert past.held() == {}


def test_a_function_that_raises_keeps_the_rows(past, database):
    """What a function of the user's raises ends the call; its rows stay, the reason is on record, and goes when it works again."""
    part = past.day(182, ("add", "failed", 3))

    def refuse(_batch):
        raise RuntimeError("the bucket is gone")

    with pytest.raises(ArchiveError, match="the bucket is gone") as caught:
        prune(database, archive=refuse)
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert past.held() == {("add", "failed"): 3}
    assert [(where, problem) for where, problem, _ in problems(past.connection)] == [
        (part, "archive failed: RuntimeError: the bucket is gone")
    ]
    assert prune(database, archive=lambda _batch: None).archived_count == 3
    assert problems(past.connection) == []


def test_a_chore_says_once_that_the_archive_fails(past, files, caplog):
    """A worker whose archive is gone says so once, keeps the rows, and goes on when it is back."""
    past.day(182, ("add", "failed", 3))
    chore, store = HistoryPruner(files, budget=PATIENCE), Store(past.connection)
    files.directory.rmdir()
    for _ in range(3):
        assert chore(store).archived_count == 0
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == ["archive failed: the rows stay"]
    assert past.held() == {("add", "failed"): 3}
    files.directory.mkdir()
    assert chore(store).archived_count == 3
    assert past.held() == {}


def test_a_step_that_comes_to_nothing_leaves_no_file(past, files, monkeypatch):
    """When the rows stay after all, the file that was written for them goes."""
    past.day(182, ("add", "failed", 3))
    pruning = steps.Pruning(past.connection, sink=files)

    def no(*_):
        raise RuntimeError("in the last moment")

    pruning.step()
    with monkeypatch.context() as patch:
        patch.setattr(pruning, "_advance", no)
        with pytest.raises(RuntimeError, match="in the last moment"):
            pruning.step()
    assert list(files.directory.iterdir()) == []
    step = pruning.step()
    assert step is not None
    assert (step.did, step.archived_count) == ("copied", 3)


@pytest.mark.parametrize("few", [0, 1000], ids=["replaced", "deleted"])
def test_what_comes_while_the_archive_takes_rows_does_not_go_unseen(past, database, fresh_dsn, monkeypatch, few):
    """A row that comes to the day in the very moment, and is too old as well, is removed only with the archive's knowledge."""
    monkeypatch.setattr(steps, "FEW", few)
    part = past.day(40, ("add", "succeeded", 3), ("add", "failed", 4))
    gone: list[int] = []

    def keep(batch):
        if not gone:
            with psycopg.connect(fresh_dsn, autocommit=True) as other:
                Past(other).put("job_history", "add", "succeeded", 1, f"{batch.day} 13:00+00")
        gone.extend(row["id"] for row in batch.rows)

    before = {row["id"] for row in past.whole()}
    prune(database, archive=keep)
    left = {row["id"] for row in past.whole()}
    assert before < set(gone) | left
    assert len(set(gone) | left) == 8
    assert past.held(part)["add", "failed"] == 4


@pytest.mark.needs("root")
def test_a_full_disk(past, database, tmp_path):
    """On a file system without room the rows stay, nothing half written is left, and the reason is on record."""
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(small)], check=True)
    try:
        past.execute("SET TIME ZONE 'UTC'")
        part = past.day(182, ("add", "failed", 3))
        past.execute(
            f"UPDATE jobrunner.{part} SET args = jsonb_build_object('noise', (SELECT string_agg(md5(random()::text), '') FROM generate_series(1, 3000)))"
        )
        with pytest.raises(ArchiveError, match=ENOSPC):
            prune(database, sink=Files(small))
        assert list(small.iterdir()) == []
        assert past.held() == {("add", "failed"): 3}
        assert ENOSPC in problems(past.connection)[0][1]
    finally:
        subprocess.run(["umount", str(small)], check=True)


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
sys.argv = ["jobrunner", *sys.argv[2:]]
from jobrunner.cli import main
main()
"""


def test_a_file_that_may_not_grow(past, fresh_dsn, files, tmp_path):
    """The command says in one line that rows could not be archived, leaves with 1, and `retention` and `doctor` say it from then on."""
    part = past.day(182, ("add", "failed", 400))
    command = [sys.executable, "-c", LIMITED, str(resource.getpagesize()), "prune", "--archive", str(files.directory)]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=clean_environment() | {"JOBRUNNER_DSN": fresh_dsn, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert f"error: could not archive rows of {part} (OSError: [Errno 27] File too large): they stay where they are" in done.stderr
    assert list(files.directory.iterdir()) == []
    assert past.held() == {("add", "failed"): 400}
    program = Program(tmp_path, fresh_dsn)
    assert [problem["partition"] for problem in program("retention", "--json").json["problems"]] == [part]
    assert f"not removed: {part}: archive failed" in program("retention").out
    found = [check for check in program("doctor", "--json", ok=None).json["checks"] if check["code"] == "retention"]
    assert [(check["state"], check["fix"]) for check in found] == [("bad", "mend that, then: jobrunner prune")]
    assert program("prune", "--archive", files.directory, "--json").json["archived_count"] == 400
    assert program("retention", "--json").json["problems"] == []


def test_a_directory_that_cannot_be_one(tmp_path):
    """A directory that is not there, or is a file, is refused by the name of the option."""
    (tmp_path / "file").touch()
    for path in (tmp_path / "nowhere", tmp_path / "file"):
        with pytest.raises(ConfigurationError, match=rf"--archive='{path}': there is no such directory"):
            directory_from(path, "--archive")
    assert directory_from(tmp_path, "--archive").directory == tmp_path


def test_no_file_is_ever_written_over(files):
    """A file of the same name is an error, and stays as it is."""
    files.keep("job_history", None, 7, ['{"id": 1}'])
    with pytest.raises(FileExistsError):
        files.keep("job_history", None, 7, ['{"id": 2}'])
    assert lines_in(files) == [{"id": 1}]
    assert len(list(files.directory.iterdir())) == 1
