"""A transactional task's writes, the jobs it enqueues and the end of its job are one transaction, whatever its body does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from jobrunner import Cancel, Fail, Retry, Snooze
from jobrunner.current import JobContext, running
from jobrunner.errors import ConfigurationError, LeaseLost
from jobrunner.worker import transactions
from tests.support.settling import EFFECT, effects, failure, register, states

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def test_writes_children_and_end_are_there_together(jobs, attempts, connection):
    """Before the commit nothing is visible; after it the effect, the child with its parent, and the job's end with its result."""
    seen = []

    def body(session, child):
        session.execute(EFFECT, {"number": 1})
        child.enqueue(1)
        child.enqueue_many([(number,) for number in range(600)])
        session.flush()
        seen.append((effects(connection), states(connection)))
        return {"settled": 1}

    job = register(jobs, body).enqueue()
    assert attempts.run()[2] == "done"
    assert seen == [([], {"running": 1})]
    assert effects(connection) == [1]
    assert states(connection) == {"succeeded": 1, "queued": 601}
    assert connection.execute("SELECT DISTINCT parent_id FROM jobrunner.jobs").fetchall() == [(job.id,)]
    assert job.result(timeout=1) == {"settled": 1}


@pytest.mark.parametrize("many", [1, 3, 600])
def test_a_superseded_attempt_leaves_nothing(jobs, attempts, connection, many):
    """An attempt that is superseded amid its body commits nothing, its children neither; the row is the other attempt's."""

    def body(session, child):
        session.execute(EFFECT, {"number": 1})
        child.enqueue_many([(number,) for number in range(many)])
        attempts.supersede(claimed)

    register(jobs, body).enqueue()
    claimed = attempts.claim()
    assert failure(attempts.run(claimed))[1] == "jobrunner.errors.LeaseLost"
    assert effects(connection) == []
    assert connection.execute("SELECT state, lease FROM jobrunner.v_jobs").fetchall() == [("running", 2)]


def test_a_superseded_attempt_enqueues_nothing(jobs, attempts, connection):
    """Enqueueing from a superseded attempt raises LeaseLost: one, a unique one, few and many, in the job's transaction or their own."""
    raised: list[tuple[int, int]] = []

    def body(session, child):
        attempts.supersede(claimed)
        for own in ({}, {"session": None}):
            for call in (
                lambda own=own: child.options(**own).enqueue(1),
                lambda own=own: child.options(unique=True, **own).enqueue(1),
                lambda own=own: child.options(unique=True, **own).enqueue_many([(1,), (2,)]),
                lambda own=own: child.options(**own).enqueue_many([(1,), (2,)]),
                lambda own=own: child.options(**own).enqueue_many([(number,) for number in range(600)]),
            ):
                with pytest.raises(LeaseLost) as refusal:
                    call()
                raised.append((refusal.value.job_id, refusal.value.lease))

    register(jobs, body).enqueue()
    claimed = attempts.claim()
    attempts.run(claimed)
    assert raised == [(claimed.id, claimed.lease)] * 10
    assert states(connection) == {"running": 1}


class Superseding(Mapping[str, int]):
    """The arguments of a call; another attempt takes the job over in the moment in which they are read."""

    def __init__(self, take_over: Callable[[], None]) -> None:
        self._take_over = take_over

    def __getitem__(self, name: str) -> int:
        self._take_over()
        return len(name)

    def __iter__(self) -> Iterator[str]:
        return iter(["number"])

    def __len__(self) -> int:
        return 1


def test_superseded_amid_a_long_copy(jobs, attempts, connection):
    """An attempt that is superseded while it copies children in a transaction of their own has written none of them."""
    copying = []
    under_way = "FROM pg_stat_activity WHERE datname = current_database() AND state = 'active' AND query LIKE 'COPY jobrunner.jobs%'"

    def take_over():
        copying.append(connection.execute(f"SELECT count(*) {under_way}").fetchone())
        attempts.supersede(claimed)

    def body(session, child):
        calls = [*[(number,) for number in range(1200)], Superseding(take_over)]
        with pytest.raises(LeaseLost):
            child.options(session=None).enqueue_many(calls)

    register(jobs, body).enqueue()
    claimed = attempts.claim()
    attempts.run(claimed)
    assert copying == [(1,)]
    assert states(connection) == {"running": 1}


@pytest.mark.parametrize(
    ("control", "ending"),
    [(Retry(delay=5), "retry"), (Snooze(5), "snooze"), (Cancel("gone"), "abort"), (Fail("no"), "fail"), (ValueError("x"), "retry")],
    ids=["Retry", "Snooze", "Cancel", "Fail", "ValueError"],
)
def test_what_the_body_raises_rolls_back(jobs, attempts, connection, control, ending):
    """Whatever ends the body without its return takes its writes and its children with it."""

    def body(session, child):
        session.execute(EFFECT, {"number": 1})
        child.enqueue(1)
        raise control

    register(jobs, body).enqueue()
    assert attempts.run()[2] == ending
    assert effects(connection) == []
    assert states(connection) == {"running": 1}


def test_a_result_that_cannot_be_stored_rolls_back(jobs, attempts, connection):
    """A result that is too large, or no JSON, fails the attempt and leaves no effect."""
    results: list[Any] = ["x" * 2_000_000, object()]

    def body(session, child):
        session.execute(EFFECT, {"number": 1})
        return results.pop(0)

    settle = register(jobs, body)
    for words in ("2,000,002 bytes", "cannot be stored"):
        settle.enqueue()
        ending, error, message = failure(attempts.run())
        assert (ending, error) == ("fail", "jobrunner.errors.UnstorableResult")
        assert words in message or "return value" in message
    assert effects(connection) == []


@pytest.mark.parametrize("swallow", [False, True])
@pytest.mark.parametrize("how", ["session.commit", "with session.begin", "connection"])
def test_a_body_cannot_commit(jobs, attempts, connection, how, swallow):
    """A commit by the body is refused before it happens and fails the attempt, also when the body swallows the refusal."""

    def commit(session):
        if how == "session.commit":
            session.execute(EFFECT, {"number": 1})
            session.commit()
        elif how == "connection":
            session.execute(EFFECT, {"number": 1})
            session.connection().get_transaction().commit()
        else:
            with session.begin():
                session.execute(EFFECT, {"number": 1})

    def body(session, child):
        try:
            commit(session)
        except Exception:
            if not swallow:
                raise

    register(jobs, body).enqueue()
    ending, error, message = failure(attempts.run())
    assert (ending, error) == ("retry", "jobrunner.errors.ConfigurationError")
    assert "tried to commit; nothing was committed" in message
    assert effects(connection) == []
    assert states(connection) == {"running": 1}


def test_a_transaction_ended_by_sql_fails_the_job(jobs, attempts, connection):
    """COMMIT as an SQL text cannot be prevented; it is found, and the job fails at once, so that no second attempt repeats the writes."""

    def body(session, child):
        session.execute(EFFECT, {"number": 1})
        session.execute(sa.text("COMMIT"))
        session.execute(EFFECT, {"number": 2})

    register(jobs, body).enqueue()
    ending, error, message = failure(attempts.run())
    assert (ending, error) == ("fail", "jobrunner.Fail")
    assert "ended its transaction by an SQL statement" in message
    assert effects(connection) == [1]


def test_rollback_and_savepoints_are_the_bodys_own(jobs, attempts, connection):
    """What the body rolls back is gone, what it does afterwards commits with the job; savepoints work, one left open is released."""

    def body(session, child):
        session.execute(EFFECT, {"number": 1})
        child.enqueue(1)
        session.rollback()
        session.execute(EFFECT, {"number": 2})
        with session.begin_nested():
            session.execute(EFFECT, {"number": 3})
        with session.begin_nested() as savepoint:
            session.execute(EFFECT, {"number": 4})
            savepoint.rollback()
        with pytest.raises(sa.exc.DataError), session.begin_nested():
            session.execute(sa.text("SELECT 1 / 0"))
        session.begin_nested()
        session.execute(EFFECT, {"number": 5})

    register(jobs, body).enqueue()
    assert attempts.run()[2] == "done"
    assert effects(connection) == [2, 3, 5]
    assert states(connection) == {"succeeded": 1}


def test_an_error_that_the_body_swallowed_cannot_be_committed_over(jobs, attempts, connection):
    """After a failed statement outside of a savepoint the transaction is void: the attempt fails, whatever the body returns."""

    def body(session, child):
        session.execute(EFFECT, {"number": 1})
        with pytest.raises(sa.exc.DataError):
            session.execute(sa.text("SELECT 1 / 0"))

    register(jobs, body).enqueue()
    assert "InFailedSqlTransaction" in failure(attempts.run())[2]
    assert effects(connection) == []


def test_a_rehearsal_commits_without_a_job(jobs, connection):
    """`jobrunner run` gives the body a session, commits what it wrote, and refuses its commits as a worker does."""

    def body(session, child):
        session.execute(EFFECT, {"number": 1})
        return "written"

    settle = register(jobs, body)
    context = JobContext(id=0, task="settle", queue="default", attempt=1, max_attempts=1, lease=0)
    with running(context):
        assert transactions.rehearse(jobs, context, lambda session: settle(session=session)) == "written"
        with pytest.raises(ConfigurationError, match="tried to commit"):
            transactions.rehearse(jobs, context, lambda session: session.commit())
    assert effects(connection) == [1]
    assert states(connection) == {}
    jobs.close()
