"""Which rule holds, against a model of a few lines: for any set of rules, and for what is removed by it."""

from __future__ import annotations

import fnmatch
import re
from datetime import timedelta
from typing import NamedTuple

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobrunner.history import steps
from jobrunner.history.rules import list_rules
from jobrunner.history.steps import Pruning
from jobrunner.keeping import STATES
from tests.support.history import Past

TASKS = ["mail.send", "mail.sent", "mail", "a_d", "add", "100%", "back\\slash", "Mail.send"]
PATTERNS = ["*", "mail.*", "mail.send", "mail*", "m*d", "a_d", "add", "100%", "1*%", "back\\slash", "*.send"]
DEFAULTS = {"succeeded": 30, "cancelled": 30, "failed": 180, "quarantined": 180}
FOREVER = 10**6


class Said(NamedTuple):
    """One rule; `days` may be FOREVER."""

    task: str
    state: str
    days: int
    origin: str
    app: str


rules = st.lists(
    st.builds(
        lambda task, state, days, app: Said(task, state, days, "operator" if app is None else "code", app or ""),
        st.sampled_from(PATTERNS),
        st.sampled_from(["*", *STATES]),
        st.sampled_from([1, 5, 9, 10, 11, 30, FOREVER]),
        st.sampled_from([None, "shop", "back office"]),
    ),
    max_size=6,
    unique_by=lambda rule: (rule.task, rule.state, rule.origin, rule.app),
)


def fits(pattern, task):
    """Whether `*` and nothing else stands for anything."""
    return re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), task, re.DOTALL) is not None


def model(said, task, state):
    """How many days a job is kept."""
    found = [rule for rule in said if fits(rule.task, task) and rule.state in {"*", state}]
    if not found:
        return DEFAULTS[state]
    ranks = {(True, True): 4, (True, False): 3, (False, True): 2, (False, False): 1}

    def order(rule):
        return (
            -ranks[rule.task != "*", rule.state != "*"],
            "*" in rule.task,
            -len(rule.task),
            rule.task,
            rule.origin != "operator",
            -rule.days,
        )

    return min(found, key=order).days


def write(past, said):
    """Make these the only rules."""
    past.execute("DELETE FROM jobrunner.retention")
    for rule in said:
        past.keep(None if rule.days == FOREVER else timedelta(days=rule.days), rule.task, rule.state, rule.origin, rule.app)


@pytest.fixture
def past(fresh_dsn):
    """A database of one's own."""
    with psycopg.connect(fresh_dsn, autocommit=True) as connection:
        yield Past(connection)


def test_the_model_knows_patterns():
    """The model's own idea of a pattern is the usual one, for patterns that mean the same to both."""
    for pattern in PATTERNS:
        for task in TASKS:
            assert fits(pattern, task) == fnmatch.fnmatchcase(task, pattern)


@settings(max_examples=150)
@given(said=rules)
def test_the_most_specific_rule_holds(past, said):
    """Task and state, task, state, all, default; a name before patterns, the longer one first; then the operator's before the code's."""
    write(past, said)
    query = "SELECT t, s, jobrunner.keep_of(t, s) FROM unnest(%s::text[]) AS t, unnest(%s::text[]) AS s"
    found = {
        (task, state): FOREVER if keep is None else keep.days for task, state, keep in past.execute(query, (TASKS, list(STATES))).fetchall()
    }
    assert found == {(task, state): model(said, task, state) for task in TASKS for state in STATES}
    longest = past.execute("SELECT t, jobrunner.keep_attempts_of(t) FROM unnest(%s::text[]) AS t", (TASKS,)).fetchall()
    assert {task: FOREVER if keep is None else keep.days for task, keep in longest} == {
        task: max(model(said, task, state) for state in STATES) for task in TASKS
    }


@settings(max_examples=60)
@given(said=rules)
def test_a_rule_that_is_called_overridden_says_nothing(past, said):
    """Taking an overridden rule away changes nothing for any job."""
    write(past, said)
    for row in list_rules(past.connection):
        if row.overridden and row.origin != "default":
            without = [
                rule for rule in said if (rule.task, rule.state, rule.origin, rule.app) != (row.task, row.state, row.origin, row.app)
            ]
            assert all(model(said, task, state) == model(without, task, state) for task in TASKS for state in STATES)
        elif row.overridden:
            assert all(any(fits(rule.task, task) and rule.state in {"*", row.state} for rule in said) for task in TASKS)


@settings(max_examples=25)
@given(
    said=rules,
    groups=st.lists(
        st.tuples(st.sampled_from(TASKS[:5]), st.sampled_from(STATES), st.integers(1, 4)), max_size=5, unique_by=lambda group: group[:2]
    ),
    few=st.sampled_from([0, 3]),
)
def test_what_is_left_is_what_the_rules_keep(past, monkeypatch, said, groups, few):
    """Whatever the rules and whatever a day holds: it is gone through until exactly the rows are left that are kept longer than it is old."""
    age = 9  # whole days since the end of a day ten days ago, and some hours
    monkeypatch.setattr(steps, "FEW", few)
    past.execute("DELETE FROM jobrunner.retention_days")
    write(past, said)
    past.day(age + 1, *groups)
    pruning = Pruning(past.connection)
    pruning.pages = 1
    while pruning.step() is not None:
        pass
    assert past.held() == {(task, state): count for task, state, count in groups if model(said, task, state) > age}
    assert past.leftovers() == []
    past.execute("DELETE FROM jobrunner.job_history")
