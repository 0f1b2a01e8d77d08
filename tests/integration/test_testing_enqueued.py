"""`testing.Jobs` answers what was enqueued, and a failed assertion shows what came closest."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from unittest.mock import ANY
from uuid import UUID

import pytest

from jobrunner import ConfigurationError, InvalidPayload, UnknownTask
from tests.support.playground import place, shop

WHEN = datetime(2026, 5, 1, tzinfo=UTC)


@pytest.fixture
def made(dsn):
    made = shop(dsn)
    yield made
    made.jobs.close()


@pytest.fixture(params=["committed", "session", "psycopg2"])
def helper(request, made, dsn):
    with place(request.param, made.jobs, dsn) as helper:
        yield helper


def failure(call) -> str:
    """What a failed assertion says; ids and times made plain."""
    with pytest.raises(AssertionError) as caught:
        call()
    text = re.sub(r"job \d+", "job N", str(caught.value))
    return re.sub(r"\d{4}-\d\d-\d\dT[\d:.+]+", "WHEN", text)


def test_everything_of_a_waiting_job(made, helper):
    """The answer has the row's columns, as data, in the order of the enqueues."""
    first = made.send.options(priority=3, tags=["x"], meta={"source": "web"}, delay=60).enqueue(42, "hi")
    second = made.add.enqueue(1)
    one, other = helper.enqueued()
    assert (one.id, one.job, other.job) == (first.id, first, second)
    assert (one.task, one.args, one.queue, one.priority, one.tags, one.meta) == (
        "send",
        {"user_id": 42, "text": "hi"},
        "mail",
        3,
        ["x"],
        {"source": "web"},
    )
    assert (one.state, one.attempt, one.max_attempts, one.run_at - one.created_at) == ("scheduled", 0, 5, timedelta(minutes=1))
    assert (other.state, other.unique_key, other.parent_id) == ("queued", None, None)


def test_a_tuple_is_the_whole_call_and_a_dict_some_of_it(made, helper):
    """Positions are bound as the task binds them; names are compared one by one."""
    made.send.enqueue(42, loud=True)
    made.send.enqueue(7)
    assert len(helper.enqueued(made.send, args={"user_id": 42})) == 1
    assert len(helper.enqueued(made.send, args=(7,))) == 1
    assert not helper.enqueued(made.send, args=(42,))
    assert len(helper.enqueued(made.send, args={"loud": True, "user_id": 42})) == 1
    assert len(helper.enqueued(made.send, args={})) == len(helper.enqueued("send")) == len(helper.enqueued()) == 2
    assert not helper.enqueued(args={"loud": False})


def test_values_are_compared_as_the_row_holds_them(made, helper):
    """A test asks with the same objects with which the app enqueued: dates, UUIDs, durations."""
    made.typed.enqueue(WHEN, UUID(int=7), timedelta(hours=1))
    helper.assert_enqueued(made.typed, args=(WHEN, UUID(int=7), timedelta(hours=1)))
    helper.assert_enqueued(made.typed, args={"when": WHEN, "wait": timedelta(minutes=60)})
    helper.assert_enqueued(args={"key": UUID(int=7)})
    helper.assert_not_enqueued(made.typed, args={"when": WHEN + timedelta(seconds=1)})


def test_objects_made_for_comparing_stand_in(made, helper):
    """`mock.ANY` and `pytest.approx` match what they equal, also inside of containers."""

    @made.jobs.task
    def order(lines: list[dict[str, float]], note: str) -> None: ...

    order.enqueue([{"price": 0.1 + 0.2}, {"price": 5}], "n")
    helper.assert_enqueued(order, args={"note": ANY})
    helper.assert_enqueued(order, args=([{"price": pytest.approx(0.3)}, ANY], "n"))
    helper.assert_not_enqueued(order, args={"lines": [ANY]})


def test_other_criteria(made, helper):
    """Queue, priority, tags, meta, state and time choose too."""
    job = made.send.options(delay=3600, meta={"a": 1, "b": 2}).enqueue(1)
    run_at = helper.enqueued()[0].run_at
    for fitting in (
        {"queue": "mail"}, {"priority": 5}, {"tags": ["letters"]}, {"tags": "letters"}, {"meta": {"a": 1}}, {"state": "scheduled"},
        {"at": run_at}, {"delay": "1h"}, {"delay": timedelta(minutes=59), "within": 60}, {"at": run_at - timedelta(minutes=1), "within": "1m"},
    ):  # fmt: skip
        assert [found.id for found in helper.enqueued(made.send, **fitting)] == [job.id], fitting
    for other in (
        {"queue": "default"}, {"priority": 0}, {"tags": ["letters", "b"]}, {"meta": {"a": 2}}, {"meta": {"c": None}}, {"state": "queued"},
        {"at": run_at + timedelta(seconds=3)}, {"delay": 3590}, {"delay": 3601, "within": 0.5},
    ):  # fmt: skip
        helper.assert_not_enqueued(made.send, **other)


def test_an_assertion_gives_the_jobs(made, helper):
    """`assert_enqueued` returns what it found, and counts when asked to."""
    jobs = [made.send.enqueue(number) for number in (1, 2)]
    assert [found.job for found in helper.assert_enqueued(made.send)] == jobs
    assert len(helper.assert_enqueued(made.send, count=2)) == 2
    assert helper.assert_enqueued(made.add, count=0) == []
    assert helper.assert_enqueued(made.send.options(delay=1), (1,))[0].job == jobs[0]


def test_the_difference_is_shown_line_by_line(made, helper):
    """The closest job comes first; only what differs is marked."""
    made.add.enqueue(42)
    made.send.enqueue(7, "b")
    made.send.enqueue(42, "hi", loud=False)
    assert failure(lambda: helper.assert_enqueued(made.send, {"user_id": 42, "loud": True}, queue="mail")) == (
        'no such job waits: send, args {"user_id": 42, "loud": true}, queue "mail"\n'
        "3 jobs wait (- wanted, + there):\n"
        "\n"
        "  job N, due now\n"
        '      task: "send"\n'
        "      args.user_id: 42\n"
        "    - args.loud: true\n"
        "    + args.loud: false\n"
        '      args.text: "hi"\n'
        '      queue: "mail"\n'
        "\n"
        "  job N, due now\n"
        '      task: "send"\n'
        "    - args.user_id: 42\n"
        "    + args.user_id: 7\n"
        "    - args.loud: true\n"
        '      args.text: "b"\n'
        '      queue: "mail"\n'
        "\n"
        "  job N, due now\n"
        '    - task: "send"\n'
        '    + task: "add"\n'
        "    - args.user_id: 42\n"
        "    - args.loud: true\n"
        "      args.a: 42\n"
        '    - queue: "mail"\n'
        '    + queue: "default"'
    )


def test_a_whole_call_shows_what_is_there_besides(made, helper):
    """An argument that the tuple does not have is a difference."""
    made.send.enqueue(42, loud=True)
    text = failure(lambda: helper.assert_enqueued(made.send, (42,)))
    assert "args exactly" in text
    assert "    + args.loud: true" in text
    assert "      args.user_id: 42" in text


def test_nested_arguments_are_compared_member_by_member(made, helper):
    """Of an object with lists in it only the path that differs is marked."""

    @made.jobs.task
    def order(data: dict[str, list[dict[str, int]]]) -> None: ...

    order.enqueue({"lines": [{"id": 1, "count": 2}, {"id": 3, "count": 4}]})
    text = failure(lambda: helper.assert_enqueued(order, {"data": {"lines": [{"id": 1, "count": 2}, {"id": 3, "count": 5}, {"id": 6}]}}))
    marked = [line for line in text.splitlines() if line.startswith(("    -", "    +"))]
    assert marked == ["    - args.data.lines[1].count: 5", "    + args.data.lines[1].count: 4", '    - args.data.lines[2]: {"id": 6}']


def test_times_are_shown(made, helper):
    """A job that is due at another time shows both."""
    made.send.options(delay=60).enqueue(1)
    text = failure(lambda: helper.assert_enqueued(made.send, delay=120, within=5))
    assert "    - due: 0:02:00 after its enqueue, give or take 0:00:05\n    + due: WHEN (0:01:00 after its enqueue)" in text
    assert "job N, due in 0:0" in text
    text = failure(lambda: helper.assert_enqueued(made.send, at=WHEN, tags=["b"], meta={"a": 1}, state="queued", priority=1))
    assert "- due: at WHEN, give or take 0:00:02" in text
    for line in (
        '- tags: ["b"]',
        '+ tags: ["letters"]',
        "- meta.a: 1",
        '- state: "queued"',
        '+ state: "scheduled"',
        "- priority: 1",
        "+ priority: 5",
    ):
        assert f"    {line}" in text


def test_long_values_are_shown_around_their_difference(made, helper):
    """A text of kilobytes that differs in one letter shows that letter."""
    made.send.enqueue(1, "a" * 5000 + "b" + "a" * 5000)
    text = failure(lambda: helper.assert_enqueued(made.send, {"text": "a" * 5000 + "c" + "a" * 5000}))
    line = next(line for line in text.splitlines() if line.startswith("    - args.text"))
    assert "aaac" in line
    assert len(line) < 160


def test_a_job_that_has_run_already_is_mentioned(made, helper):
    """When the job was drained before the assertion, the failure says so."""
    job = made.send.enqueue(42)
    helper.drain()
    with pytest.raises(AssertionError) as caught:
        helper.assert_enqueued(made.send, (42,))
    assert str(caught.value).splitlines()[1:] == [
        f"with that task and arguments, but no longer waiting: job {job.id} succeeded", "no job waits at all",
    ]  # fmt: skip
    with pytest.raises(AssertionError) as caught:
        helper.assert_enqueued(made.send, (43,))
    assert "no longer waiting" not in str(caught.value)


def test_too_many_are_listed(made, helper):
    """`assert_not_enqueued` and a wrong count list the jobs that fit."""
    made.send.enqueue(42)
    made.send.options(delay="1h").enqueue(42)
    assert failure(helper.assert_not_enqueued).startswith(
        'expected no job to wait, but there are 2: any task\n    job N, send {"user_id": 42}, queue mail, due now\n'
    )
    assert failure(lambda: helper.assert_enqueued(made.send, count=1)).splitlines()[0] == "expected 1 job to wait, but there are 2: send"
    assert (
        failure(lambda: helper.assert_enqueued(made.send, (42,), count=3, state="scheduled")).splitlines()[0]
        == 'expected 3 jobs to wait, but there is 1: send, args exactly {"user_id": 42}, state "scheduled"'
    )


def test_only_the_closest_are_shown(made, helper):
    """Of many jobs three are shown, and how many there are."""
    made.send.enqueue_many([(number,) for number in range(20)])
    text = failure(lambda: helper.assert_enqueued(made.send, (99,)))
    assert "20 jobs wait, the 3 closest (- wanted, + there):" in text
    assert text.count("job N") == 3


def test_a_question_that_no_job_could_answer_is_refused(made, helper):
    """A typo in the question is an error, not a silent no."""
    for error, words, call in (
        (UnknownTask, "sned", lambda: helper.enqueued("sned")),
        (ConfigurationError, "is the decorator|expected a task", lambda: helper.enqueued(len)),
        (ConfigurationError, "did you mean|no such criterion", lambda: helper.enqueued(made.send, que="mail")),
        (ConfigurationError, "state='running'", lambda: helper.enqueued(state="running")),
        (ConfigurationError, "give one of the two", lambda: helper.enqueued(at=WHEN, delay=1)),
        (ConfigurationError, "with a time zone", lambda: helper.enqueued(at=datetime(2026, 1, 1))),  # noqa: DTZ001
        (ConfigurationError, "expected a tuple", lambda: helper.enqueued(made.send, args=42)),
        (ConfigurationError, "positions are those", lambda: helper.enqueued(args=(42,))),
        (InvalidPayload, "'user_id'", lambda: helper.enqueued(made.send, args={"user_id": "42"})),
        (InvalidPayload, "no argument 'user'", lambda: helper.enqueued(made.send, args={"user": 42})),
        (InvalidPayload, "do not fit send", lambda: helper.enqueued(made.send, args=(1, "a", 3, 4))),
        (InvalidPayload, "'user_id'", lambda: helper.enqueued(made.send, args=("42",))),
        (InvalidPayload, "'x'", lambda: helper.enqueued(args={"x": b"bytes"})),
        (ConfigurationError, "within", lambda: helper.enqueued(delay=1, within=-1)),
    ):
        with pytest.raises(error, match=words):
            call()


def test_open_keywords_are_arguments_too(made, helper):
    """What a task takes by `**kwargs` is asked for by its name."""

    @made.jobs.task
    def loose(first: int, **rest: int) -> None: ...

    loose.enqueue(1, other=2)
    helper.assert_enqueued(loose, {"other": 2})
    helper.assert_not_enqueued(loose, {"other": 3})
    with pytest.raises(InvalidPayload, match="other"):
        helper.enqueued(loose, {"other": "x"})
