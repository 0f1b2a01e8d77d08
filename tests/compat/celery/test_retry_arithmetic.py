"""When a task is tried again, to the second: what Celery's documentation says, without a database."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobrunner.compat.celery import Celery
from jobrunner.compat.celery.app.retrying import get_exponential_backoff_interval
from jobrunner.compat.celery.exceptions import Ignore, MaxRetriesExceededError, Retry

CELERYS_DEFAULT = 180  # seconds


@pytest.fixture
def quiet():
    """An app that has no database."""
    return Celery("shop", broker="redis://nowhere")


def asked(task, *args, retries=0, **request):
    """What a task asks for in an attempt after so many retries."""
    task.push_request(id="1", called_directly=False, is_eager=True, retries=retries, args=args, kwargs={}, **request)
    try:
        with pytest.raises(Retry) as caught:
            task.run(*args)
    finally:
        task.pop_request()
    return caught.value


@pytest.mark.parametrize(("retries", "seconds"), [(0, 1), (1, 2), (2, 4), (5, 32), (9, 512), (10, 600), (30, 600)])
def test_backoff_doubles_from_one_second_up_to_the_maximum(quiet, retries, seconds):
    """`retry_backoff=True` without jitter: min(600, 1 * 2 ** retries)."""

    @quiet.task(autoretry_for=(OSError,), retry_backoff=True, retry_jitter=False, max_retries=None)
    def fetch():
        raise OSError("away")

    assert asked(fetch, retries=retries).when == seconds


@pytest.mark.parametrize(("options", "retries", "seconds"), [
    ({"retry_backoff": 5}, 3, 40),
    ({"retry_backoff": 5, "retry_backoff_max": 30}, 3, 30),
    ({"retry_backoff": 0.4}, 3, 8),
    ({"retry_backoff": 2.9}, 1, 4),
    ({"retry_kwargs": {"countdown": 7}}, 3, 7),
    ({"retry_kwargs": {"countdown": 7}, "retry_backoff": 3}, 0, 3),
    ({"default_retry_delay": 11}, 3, 11),
    ({}, 3, CELERYS_DEFAULT),
])  # fmt: skip
def test_each_option_of_the_pause(quiet, options, retries, seconds):
    """A factor is cut to a whole number of at least 1, and goes before a countdown of retry_kwargs; that goes before the default delay."""

    @quiet.task(autoretry_for=(OSError,), retry_jitter=False, max_retries=None, **options)
    def fetch():
        raise OSError("away")

    assert asked(fetch, retries=retries).when == seconds


@given(factor=st.integers(0, 100), retries=st.integers(0, 40), maximum=st.integers(0, 10_000))
def test_jitter_is_a_whole_number_up_to_the_pause(factor, retries, maximum):
    """Full jitter: from 0 to what it would be without."""
    whole = get_exponential_backoff_interval(factor, retries, maximum)
    assert whole == min(maximum, factor * 2**retries)
    assert get_exponential_backoff_interval(factor, retries, maximum, full_jitter=True) in range(whole + 1)


def test_jitter_is_the_default(quiet, monkeypatch):
    """Without `retry_jitter=False` the pause is what the generator gives for the whole one."""
    seen = []

    def draw(most):
        seen.append(most)
        return 3

    monkeypatch.setattr("random.randrange", draw)

    @quiet.task(autoretry_for=(OSError,), retry_backoff=4, max_retries=None)
    def fetch():
        raise OSError("away")

    assert asked(fetch, retries=1).when == 3
    assert seen == [9]


def test_what_is_not_to_be_retried_is_not(quiet):
    """Other exceptions, those of `dont_autoretry_for`, Ignore and Retry pass through."""

    @quiet.task(autoretry_for=(Exception,), dont_autoretry_for=(LookupError,))
    def fetch(error):
        raise error

    for error in (KeyError("x"), Ignore(), Retry("by itself"), KeyboardInterrupt()):
        fetch.push_request(id="1", called_directly=False, is_eager=True, args=(error,), kwargs={})
        with pytest.raises(type(error)) as caught:
            fetch.run(error)
        fetch.pop_request()
        assert caught.value is error


@pytest.mark.parametrize(("own", "given", "retries", "goes_on"), [
    (3, None, 2, True), (3, None, 3, False), (3, 5, 4, True), (3, 5, 5, False), (None, None, 1000, True), (None, 1, 1, False), (0, None, 0, False),
])  # fmt: skip
def test_max_retries_counts_what_follows_the_first_attempt(quiet, own, given, retries, goes_on):
    """With max_retries=3 there are four attempts; None is for ever; the argument of `retry` goes before the task's."""

    @quiet.task(bind=True, max_retries=own)
    def fetch(self):
        raise self.retry(max_retries=given)

    fetch.push_request(id="1", called_directly=False, is_eager=True, retries=retries, args=(), kwargs={})
    with pytest.raises(Retry if goes_on else MaxRetriesExceededError):
        fetch.run()
    fetch.pop_request()


def test_the_last_failure_raises_what_it_was_about(quiet):
    """With exc= that is raised when no retry is left; else MaxRetriesExceededError, with the arguments."""

    @quiet.task(bind=True, max_retries=0)
    def fetch(self, exc=None):
        self.retry(exc=exc)

    fetch.push_request(id="abc", called_directly=False, is_eager=True, args=(1,), kwargs={"b": 2})
    with pytest.raises(OSError, match="away"):
        fetch.run(exc=OSError("away"))
    with pytest.raises(MaxRetriesExceededError, match=r"Can't retry .*\[abc\] args:\(1,\) kwargs:\{'b': 2\}") as caught:
        fetch.run()
    fetch.pop_request()
    assert (caught.value.task_args, caught.value.task_kwargs) == ((1,), {"b": 2})


def test_a_task_that_is_called_directly_raises_instead_of_retrying(quiet):
    """There is no worker that would try again: the reason is raised, or Retry."""

    @quiet.task(bind=True)
    def fetch(self, exc=None):
        self.retry(exc=exc)

    with pytest.raises(OSError, match="away"):
        fetch(OSError("away"))
    with pytest.raises(Retry):
        fetch()


def test_a_retry_with_other_arguments_takes_over_the_rest(quiet):
    """Other positional arguments replace those of the same parameters by name, and the other way round."""
    given: dict[str, dict[str, object]] = {}

    @quiet.task(bind=True)
    def fetch(self, a, b=0, c=0):
        raise self.retry(**given["again"])

    fetch.push_request(id="1", called_directly=False, is_eager=True, args=(1,), kwargs={"b": 2, "c": 3})
    calls: tuple[tuple[dict[str, object], tuple[int, ...], dict[str, int]], ...] = (
        ({"args": (9, 8)}, (9, 8), {"c": 3}),
        ({"kwargs": {"a": 7}}, (7,), {}),
        ({"kwargs": {"b": 5}}, (1,), {"b": 5}),
        ({}, (1,), {"b": 2, "c": 3}),
        ({"args": (), "kwargs": {"a": 4}}, (), {"a": 4}),
    )
    for again, args, kwargs in calls:
        given.update(again=again)
        with pytest.raises(Retry) as caught:
            fetch.run(1)
        assert (tuple(caught.value.sig.args), caught.value.sig.kwargs) == (args, kwargs)
    fetch.pop_request()


def test_a_retry_says_when_and_why():
    """Its text is that of Celery's log line, and survives pickling by others."""
    assert str(Retry(exc=OSError("away"), when=30)) == "Retry in 30s: OSError('away')"
    assert str(Retry("in my own words")) == "in my own words"
    assert Retry(when=datetime(2026, 1, 2, tzinfo=UTC)).humanize() == "at 2026-01-02 00:00:00+00:00"
