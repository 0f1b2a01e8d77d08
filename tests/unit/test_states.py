"""The table of transitions is sound in itself, and what is written about it elsewhere says the same."""

from __future__ import annotations

import re

import pytest

from jobrunner import schema
from jobrunner.jobs import Ending
from jobrunner.states import FINISHED, LIVE, TRANSITIONS, State, sources_of
from jobrunner.store import _SEQUENCES
from tools import states_doc

CLAIMS = {"claim", "claim_ordered"}
BY_NAME = {transition.name: transition for transition in TRANSITIONS}


def constraint(table, name):
    """The states that a CHECK constraint of the table lists."""
    (check,) = (str(each.sqltext) for each in table.constraints if each.name == name)
    return set(re.findall(r"'(\w+)'", check))


def test_a_state_is_either_live_or_finished():
    """Each state belongs to one of the two tables, whose CHECK constraints list exactly those."""
    assert set(State) == LIVE | FINISHED
    assert not LIVE & FINISHED
    assert constraint(schema.jobs, "jobs_state") == LIVE
    assert constraint(schema.job_history, "job_history_state") == FINISHED


def test_names_are_unique():
    """A name is one transition, one file, one row of the table."""
    assert len(BY_NAME) == len(TRANSITIONS)


def test_every_state_can_be_reached_and_left():
    """From queued every state can be reached; only a job that succeeded stays where it is."""
    reached: set[State] = {State.QUEUED}
    before: set[State] = set()
    while reached != before:
        before = set(reached)
        reached |= {transition.target for transition in TRANSITIONS if transition.sources & before}
    assert reached == set(State)
    assert set(State) - {source for transition in TRANSITIONS for source in transition.sources} == {State.SUCCEEDED}


def test_a_worker_writes_about_its_own_attempt_only_with_its_lease():
    """All a worker does after the claim is fenced, and nobody else's transitions are: they have no lease to show."""
    assert {transition.name for transition in TRANSITIONS if transition.by == "worker" and not transition.fenced} == CLAIMS
    assert all(transition.by == "worker" for transition in TRANSITIONS if transition.fenced)
    assert {transition.by for transition in TRANSITIONS} <= {"worker", "pool", "operator", "application"}


def test_only_an_operator_takes_a_job_out_of_the_history():
    """What is finished stays finished unless somebody asks for it."""
    assert {transition.by for transition in TRANSITIONS if transition.sources & FINISHED} == {"operator"}


def test_sources_of():
    """The sources are those of the table; an unknown name is a KeyError."""
    assert sources_of("cancel") == {State.QUEUED}
    with pytest.raises(KeyError):
        sources_of("vanish")


@pytest.mark.parametrize("ending", Ending)
def test_an_ending_runs_through_fenced_transitions_from_running(ending):
    """A batch begins with the transition of the ending's name, ends with abort, and each step is a fenced way out of running."""
    steps = _SEQUENCES[ending]
    assert (steps[0], steps[-1]) == (ending.value, "abort")
    assert all(BY_NAME[step].fenced and BY_NAME[step].sources == {State.RUNNING} for step in steps)


def test_the_reference_page_shows_this_table():
    """The diagram and the table of the docs are printed from here: `python tools/states_doc.py` brings them up to date."""
    page = states_doc.PAGE.read_text()
    assert states_doc.updated(page) == page


def test_a_page_without_marks_is_refused():
    """The generator does not guess where its part belongs."""
    with pytest.raises(ValueError, match="begin"):
        states_doc.updated("# States")
