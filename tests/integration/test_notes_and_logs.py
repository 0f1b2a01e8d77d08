"""What running attempts say: progress, checkpoints and lines of a log; fenced like every write, and kept as long as they are needed."""

from __future__ import annotations

from datetime import timedelta

import pytest
from psycopg.errors import CheckViolation

from jobrunner import clock
from jobrunner.jobs import Ending, LogLine, Note, Succeeded, Unsuccessful
from jobrunner.states import State
from tests.support.rows import EXPIRED, LEASE, TASK, Scene

SAID = {"progress": 0.5, "progress_text": "page 4/8", "checkpoint": {"page": 4}}
CHECKPOINT = '{"page": 4}'


@pytest.fixture
def scene(connection):
    return Scene(connection)


def said(scene, job_id):
    """What the attempts of a job have said of themselves."""
    row = scene.row(job_id)
    return {name: row[name] for name in SAID}


def line(job_id, lease=LEASE, number=1, **more):
    """A line that an attempt logged just now."""
    values = {"level": 20, "logger": "shop.mail", "message": "sent", "logged_at": clock.monotonic(), **more}
    return LogLine(job_id, lease, number, **values)


def logged(scene):
    """Every line there is."""
    query = "SELECT job_id, lease, line, attempt, level, logger, message FROM jobrunner.job_logs ORDER BY job_id, lease, line"
    return scene.execute(query).fetchall()


def test_a_note_changes_what_it_names_and_nothing_else(scene):
    """Each part of a note is kept by itself; what a note does not name stays as it was, other columns too."""
    job_id = scene.job(State.RUNNING)
    before = scene.row(job_id)
    assert scene.store.note([Note(job_id, LEASE, fraction=0.25)]) == {(job_id, LEASE)}
    assert said(scene, job_id) == {"progress": 0.25, "progress_text": None, "checkpoint": None}
    assert scene.store.note([Note(job_id, LEASE, text="page 4/8", checkpoint=CHECKPOINT)]) == {(job_id, LEASE)}
    assert said(scene, job_id) == {**SAID, "progress": 0.25}
    assert scene.store.note([Note(job_id, LEASE, fraction=0.5)]) == {(job_id, LEASE)}
    assert scene.row(job_id) == {**before, **SAID}
    assert scene.store.note([Note(job_id, LEASE)]) == {(job_id, LEASE)}
    assert scene.row(job_id) == {**before, **SAID}


def test_a_checkpoint_may_be_any_json(scene):
    """JSON null is a checkpoint like any other, and is told from none."""
    job_id = scene.job(State.RUNNING)
    for text in ("null", "[1, 2]", '"x"', "12345678901234567890"):
        assert scene.store.note([Note(job_id, LEASE, checkpoint=text)]) == {(job_id, LEASE)}
        assert scene.one("SELECT checkpoint::text FROM jobrunner.jobs WHERE id = %s", (job_id,)) == text


@pytest.mark.parametrize("lease", [LEASE - 1, LEASE + 1, 0, 2**63 - 1])
def test_a_note_of_a_superseded_attempt_is_refused(scene, lease):
    """Of a batch only the attempts that hold their lease are written; the others are told by their absence."""
    current, superseded = scene.job(State.RUNNING), scene.job(State.RUNNING)
    before = scene.row(superseded)
    notes = [Note(superseded, lease, 0.5, "page 4/8", CHECKPOINT), Note(current, LEASE, 0.5, "page 4/8", CHECKPOINT)]
    assert scene.store.note(notes) == {(current, LEASE)}
    assert said(scene, current) == SAID
    assert scene.row(superseded) == before


def test_a_fraction_that_is_none_is_refused(scene):
    """The column itself keeps out what is no part of a whole, not a number included."""
    job_id = scene.job(State.RUNNING)
    for fraction in (-0.01, 1.01, float("nan"), float("inf")):
        with pytest.raises(CheckViolation, match="jobs_progress"):
            scene.store.note([Note(job_id, LEASE, fraction)])


def test_what_was_said_survives_until_the_next_attempt(scene):
    """A retry, a snooze, a release, a crash and a lost worker leave progress and checkpoint; the next claim hands the checkpoint over."""
    for ending in (Ending.RETRY, Ending.SNOOZE, Ending.RELEASE, Ending.CRASH, None):
        worker = scene.worker(EXPIRED)
        job_id = scene.job(State.RUNNING, worker_id=worker, queue=str(ending))
        assert scene.store.note([Note(job_id, LEASE, 0.5, "page 4/8", CHECKPOINT)]) == {(job_id, LEASE)}
        if ending is None:
            assert scene.store.rescue()[1] == 1
        else:
            assert scene.store.finish([Unsuccessful(ending, job_id, LEASE, run_ms=5, delay_ms=0)]) == []
        assert scene.state(job_id) is State.QUEUED, ending
        assert said(scene, job_id) == SAID, ending
        (job,) = scene.store.claim(scene.worker(), [TASK], str(ending), 0, 1)
        assert (job.id, job.checkpoint) == (job_id, CHECKPOINT)


@pytest.mark.parametrize("ending", [Ending.FAIL, Ending.ABORT, "quarantine", "rescue_quarantine", "rescue_abort", "cancel"])
def test_a_job_that_is_brought_back_goes_on_from_its_checkpoint(scene, ending):
    """However a job ended without success, its checkpoint is in history, and in the job again once it is requeued."""
    worker = scene.worker(EXPIRED)
    job_id = scene.job(State.RUNNING, worker_id=worker, max_crashes=1)
    scene.store.note([Note(job_id, LEASE, 0.5, "page 4/8", CHECKPOINT)])
    if ending == "cancel":
        scene.store.finish([Unsuccessful(Ending.RELEASE, job_id, LEASE, run_ms=5)])
        assert scene.store.cancel(job_id) == "cancelled"
    elif str(ending).startswith("rescue"):
        scene.set(job_id, "cancel_requested_at = now()" if ending == "rescue_abort" else "started_at = now()")
        assert scene.store.rescue()[1] == 1
    else:
        scene.store.finish([Unsuccessful(Ending.CRASH if ending == "quarantine" else ending, job_id, LEASE, run_ms=5)])
    assert scene.state(job_id) not in {State.QUEUED, State.RUNNING}
    assert said(scene, job_id) == SAID
    scene.store.requeue(job_id)
    assert said(scene, job_id) == SAID
    (job,) = scene.store.claim(scene.worker(), [TASK], "default", 0, 1)
    assert (job.id, job.checkpoint) == (job_id, CHECKPOINT)


def test_a_success_keeps_its_progress_and_drops_its_checkpoint(scene):
    """Nobody goes on from what has succeeded."""
    job_id = scene.job(State.RUNNING)
    scene.store.note([Note(job_id, LEASE, 0.5, "page 4/8", CHECKPOINT)])
    assert scene.store.finish([Succeeded(job_id, LEASE, None, 5, 1, 1.0, peak_memory=81_000_000)]) == []
    assert said(scene, job_id) == {**SAID, "checkpoint": None}
    assert scene.row(job_id)["peak_memory"] == 81_000_000


def test_lines_are_kept_with_attempt_and_instant(scene):
    """A line is dated back by its age, and shows which attempt logged it."""
    job_id = scene.job(State.RUNNING, attempt=3)
    lines = [line(job_id, number=1, logged_at=clock.monotonic() - 60), line(job_id, number=2, level=40, logger="", message="no\nanswer")]
    assert scene.store.log(lines) == 2
    assert logged(scene) == [(job_id, LEASE, 1, 3, 20, "shop.mail", "sent"), (job_id, LEASE, 2, 3, 40, "", "no\nanswer")]
    older, newer = (age for (age,) in scene.execute("SELECT now() - logged_at FROM jobrunner.job_logs ORDER BY line").fetchall())
    assert timedelta(seconds=60) <= older < timedelta(seconds=90)
    assert timedelta(0) <= newer < timedelta(seconds=30)


@pytest.mark.parametrize("lease", [LEASE - 1, LEASE + 1, 0, 2**63 - 1])
def test_lines_of_a_superseded_attempt_are_dropped(scene, lease):
    """Of a batch of two jobs the one that is superseded leaves no line, and the other's are kept."""
    current, superseded = scene.job(State.RUNNING), scene.job(State.RUNNING)
    before = scene.snapshot()
    assert scene.store.log([line(superseded, lease), line(current, number=1), line(superseded, lease, 2), line(current, number=2)]) == 2
    assert [(job_id, number) for job_id, _, number, *_ in logged(scene)] == [(current, 1), (current, 2)]
    assert scene.snapshot() == before


@pytest.mark.parametrize("state", sorted(set(State) - {State.RUNNING, State.SUCCEEDED}))
def test_only_a_running_attempt_logs(scene, state):
    """A line that comes after the end, or before the beginning, is dropped, whatever its lease; so is that of no job."""
    job_id = scene.job(state)
    assert scene.store.log([line(job_id), line(2**40)]) == 0
    assert logged(scene) == []


@pytest.mark.parametrize(("lease", "kept"), [(LEASE, 1), (LEASE - 1, 0), (LEASE + 1, 0)])
def test_the_last_words_of_an_attempt_that_ended_its_job_itself(scene, lease, kept):
    """A transactional task ends its job before the worker has written its last lines and notes: they count, by their lease."""
    job_id = scene.job(State.SUCCEEDED)
    assert scene.store.log([line(job_id, lease)]) == kept
    assert scene.store.note([Note(job_id, lease, 0.5)]) == ({(job_id, lease)} if kept else set())


def test_nothing_to_say_is_no_error(scene):
    """Empty batches write nothing."""
    assert scene.store.note([]) == set()
    assert scene.store.log([]) == 0
