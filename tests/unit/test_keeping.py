"""What may be said about how long finished jobs are kept, in code and in the environment, and what is refused by its name."""

from __future__ import annotations

from datetime import timedelta

import pytest

from jobrunner import JobRunner
from jobrunner.errors import ConfigurationError
from jobrunner.keeping import LEAST, MOST, Rule, from_environ, keep_for, keep_text

DAY = timedelta(days=1)
NONSENSE = [
    "soon", "", "23h59m", 0, -1, True, "nan", float("nan"), float("inf"), timedelta(hours=23), "36501d", 10**18, [], object(), "30d forever",
]  # fmt: skip


@pytest.mark.parametrize(
    ("value", "keep"),
    [
        ("30d", 30 * DAY), (" 2w ", 14 * DAY), ("1d12h", 1.5 * DAY), (86_400, DAY), (90 * DAY, 90 * DAY), ("forever", None), (" Forever", None),
        (LEAST, LEAST), (MOST, MOST),
    ],
)  # fmt: skip
def test_a_duration(value, keep):
    """A duration is seconds, a timedelta or text as everywhere, from a day to a century, or the word forever."""
    assert keep_for(value) == keep


@pytest.mark.parametrize("value", NONSENSE)
def test_what_is_none_is_refused_at_the_decorator(value):
    """What is no such duration is refused where it is written, with the parameter's name and what was expected."""
    with pytest.raises(
        ConfigurationError, match=r"@jobs\.task\(keep=.*expected a duration from 1 to 36,500 days, such as '30d', or 'forever'"
    ):
        JobRunner().task(keep=value)
    with pytest.raises(ConfigurationError, match=r"JobRunner\(keep=.*expected a duration"):
        JobRunner(keep=value)
    with pytest.raises(ConfigurationError, match=r"@jobs\.task\(keep=.*for 'failed': expected a duration"):
        JobRunner().task(keep={"failed": value})


def test_a_state_in_which_no_job_ends():
    """A mapping by state names states in which jobs end, at least one; a misspelt one gets a guess."""
    with pytest.raises(ConfigurationError, match=r"'suceeded' is no state in which a job ends .*did you mean 'succeeded'"):
        JobRunner().task(keep={"suceeded": "30d"})
    with pytest.raises(ConfigurationError, match="'running' is no state in which a job ends"):
        JobRunner(keep={"running": "30d"})
    with pytest.raises(ConfigurationError, match=r"@jobs\.task\(keep=\{\}\).*or one for each of some states"):
        JobRunner().task(keep={})


def test_it_belongs_to_the_task_and_not_to_one_enqueue():
    """`options(keep=…)` is refused with the place where it belongs."""
    task = JobRunner().task(lambda: None, name="f")  # type: ignore[call-overload]
    with pytest.raises(ConfigurationError, match=r"options\(keep=…\): this belongs to the task itself"):
        task.options(keep="2d")


@pytest.fixture
def environment(monkeypatch):
    """Sets the variables."""

    def give(**values):
        for name, value in values.items():
            monkeypatch.setenv(f"JOBRUNNER_KEEP_{name}", value)

    return give


def test_what_an_application_says(environment):
    """All states by one word, or some; the environment for states of which the code says nothing; then each task."""
    assert JobRunner().retention_rules() == []
    environment(SUCCEEDED="10d", FAILED="forever")
    jobs = JobRunner(keep={"failed": "90d"})

    @jobs.task(keep={"succeeded": "365d", "failed": "forever"})
    def pay() -> None:
        """Nothing."""

    @jobs.task(keep=2 * DAY, name="net.ping")
    def ping() -> None:
        """Nothing."""

    @jobs.task
    def silent() -> None:
        """Nothing."""

    assert sorted(jobs.retention_rules(), key=str) == sorted(
        [
            Rule("*", "failed", 90 * DAY), Rule("*", "quarantined", None), Rule("*", "succeeded", 10 * DAY), Rule("*", "cancelled", 10 * DAY),
            Rule("pay", "succeeded", 365 * DAY), Rule("pay", "failed", None), Rule("net.ping", "*", 2 * DAY),
        ],
        key=str,
    )  # fmt: skip
    assert JobRunner(keep="30d").retention_rules() == [Rule("*", "*", 30 * DAY)]
    assert JobRunner(keep="forever", name="shop").rules_name == "shop"


@pytest.mark.parametrize("name", ["SUCCEEDED", "FAILED"])
@pytest.mark.parametrize("value", ["x", "-1d", "23h", "99999999999d", "nan"])
def test_the_environment_is_refused_by_name(environment, name, value):
    """A malformed variable is refused with its name and what was expected."""
    environment(**{name: value})
    with pytest.raises(ConfigurationError, match=f"JOBRUNNER_KEEP_{name}='{value}': expected a duration"):
        from_environ()


@pytest.mark.parametrize("text", ["1d", "30d", "1d12h", "2d3h4m5s", "36500d", "forever"])
def test_it_is_shown_as_it_may_be_written(text):
    """What is printed can be given to `retention set`."""
    assert keep_text(keep_for(text)) == text
