"""The judge of `bench/losses.py`: what is lost, stuck and doubled follows from the ledger alone, whole or torn."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.losing.judge import IN_FLIGHT, NEWS, Kill, are_over, judge, lateness
from bench.losses_peers.shared import notes
from bench.losses_peers.shared.notes import BEGIN, END, Note

KILL = Kill(10.0, 10.5)


def ran(number, began, ended=None, run=None):
    """The lines of one run."""
    name = run or f"{number}@{began}"
    lines = [Note(number, BEGIN, 1, name, 0, began)]
    return lines if ended is None else [*lines, Note(number, END, 1, name, 0, ended)]


def ledger(*runs):
    """All lines by time, as they would stand in the file."""
    return sorted((line for run in runs for line in run), key=lambda line: line.at)


def test_a_job_that_ran_once_is_neither_lost_nor_stuck_nor_doubled():
    """The plain case, with and without a kill elsewhere."""
    for kill in (None, KILL):
        verdict = judge(ledger(ran(1, 1, 2), ran(2, 11, 12)), [1, 2], [], kill)
        assert (verdict.lost, verdict.stuck, verdict.doubled, verdict.runs) == ((), (), (), 2)


def test_what_never_ended_is_lost_unless_the_storage_holds_it():
    """Begun and cut, or never begun: gone from the storage is lost, still in it is stuck."""
    lines = ledger(ran(1, 9.9), ran(2, 9.9))
    verdict = judge(lines, [1, 2, 3, 4], [2, 4], KILL)
    assert (verdict.lost, verdict.stuck) == ((1, 3), (2, 4))


def test_what_still_runs_is_stuck_and_not_lost():
    """A job that was taken out of the storage and goes on at the end of the watch has not ended, and may."""
    assert judge(ledger(ran(1, 11)), [1], [], KILL).stuck == (1,)
    assert judge(ledger(ran(1, 11)), [1], [], None).stuck == (1,)
    assert judge(ledger(ran(1, 10.2)), [1], [], KILL).lost == (1,), "begun by one that died a moment later"


def test_a_run_that_the_kill_cut_may_be_repeated():
    """That is what at least once means: begun, cut, begun again, ended."""
    verdict = judge(ledger(ran(1, 9.9), ran(1, 40, 41)), [1], [], KILL)
    assert (verdict.doubled, verdict.lost, verdict.runs) == ((), (), 2)


def test_a_finished_job_that_ran_again_is_doubled():
    """Whether before the kill, across it, after it or without one."""
    for lines, kill in (
        (ledger(ran(1, 1, 2), ran(1, 3, 4)), None),
        (ledger(ran(1, 1, 2), ran(1, 3, 4)), KILL),
        (ledger(ran(1, 1, 2), ran(1, 11, 12)), KILL),
        (ledger(ran(1, 11, 12), ran(1, 13)), KILL),
    ):
        assert judge(lines, [1], [], kill).doubled == (1,)


def test_two_runs_side_by_side_are_doubled_although_the_first_has_not_ended():
    """A healthy worker that runs a job a second time while the first run goes on."""
    verdict = judge(ledger(ran(1, 1, 13), ran(1, 6, 18)), [1], [])
    assert (verdict.doubled, verdict.doubled_healthy) == ((1,), (1,))
    cut = ledger(ran(1, 9.7), ran(1, 9.9), ran(1, 40, 41))
    assert judge(cut, [1], [], KILL).doubled == (), "both were cut: nobody knows more of the first"


def test_only_the_last_ends_before_the_kill_excuse_a_second_run():
    """News of an end may die with the worker; news of one that is long past may not."""
    early = ran(1, 1, 9.1), ran(1, 40, 41)
    others = [ran(number, 3, 9.1 + number / 100) for number in range(2, 2 + IN_FLIGHT)]
    late = ran(99, 9, 9.95), ran(99, 40, 41)
    verdict = judge(ledger(*early, *others, *late), range(1, 100), range(100), KILL)
    assert (verdict.doubled, verdict.in_flight, verdict.doubled_healthy) == ((1, 99), (99,), (1,))


def test_an_end_that_was_long_heard_of_excuses_nothing():
    """The last one to end is not in flight when it ended long before the kill: whoever has not written it by then has lost it."""
    for ended, excused in ((KILL.at - NEWS - 0.01, ()), (KILL.at - NEWS + 0.01, (1,)), (KILL.gone, (1,))):
        assert judge(ledger(ran(1, 1, ended), ran(1, 40, 41)), [1], [], KILL).in_flight == excused


def test_more_slots_have_more_in_flight():
    """Each slot may have had a last one."""
    lines = ledger(*(run for number in range(1, 2 * IN_FLIGHT + 1) for run in (ran(number, 9, 9.5 + number / 100), ran(number, 40, 41))))
    assert len(judge(lines, range(1, 100), [], KILL, slots=1).in_flight) == IN_FLIGHT
    assert len(judge(lines, range(1, 100), [], KILL, slots=2).in_flight) == 2 * IN_FLIGHT


def test_the_kill_does_not_excuse_what_was_doubled_before_or_after_it():
    """Ended just before the kill, and yet twice before it, or twice after it."""
    before = ledger(ran(1, 8, 9.8), ran(1, 9, 9.9))
    after = ledger(ran(1, 9, 9.9), ran(1, 40, 41), ran(1, 42, 43))
    for lines in (before, after):
        assert judge(lines, [1], [], KILL).doubled_healthy == (1,)


def test_jobs_that_nobody_asked_about_do_not_count():
    """The first job, which shows that the worker is up, and jobs of a rolled-back transaction."""
    verdict = judge(ledger(ran(0, 1, 2), ran(0, 3, 4), ran(1, 5, 6)), [1], [0])
    assert (verdict.jobs, verdict.runs, verdict.doubled, verdict.stuck) == (1, 1, (), ())


def test_lateness_is_that_of_the_first_run():
    """Early is negative; what never began has none."""
    lines = ledger(ran(1, 12.5, 13), ran(1, 20, 21), ran(2, 11, 12))
    assert sorted(lateness(lines, {1: 12.0, 2: 12.0, 3: 12.0})) == [-1.0, 0.5]


def test_it_is_over_when_all_have_ended_and_none_runs():
    """A second run that goes on is waited for; one that the kill cut is not."""
    once = ran(1, 1, 2)
    assert are_over(ledger(once), [1], None)
    assert not are_over(ledger(once), [1, 2], None)
    assert not are_over(ledger(once, ran(1, 3)), [1], None)
    assert are_over(ledger(once, ran(1, 9)), [1], KILL)


@pytest.fixture
def file(tmp_path, monkeypatch):
    """A ledger that `notes.write` writes to."""
    monkeypatch.setenv("LOSSES_LEDGER", str(tmp_path / "ledger"))
    return tmp_path / "ledger"


def test_a_job_writes_two_lines_that_are_read_again(file):
    """Begin and end of one run, in this order, by this process."""
    notes.work(7, 0.0, 3)
    (begin, end), torn = notes.read(file)
    assert torn == 0
    assert (begin.event, end.event, begin.run) == (BEGIN, END, end.run)
    assert {(line.number, line.attempt) for line in (begin, end)} == {(7, 3)}
    assert begin.at <= end.at


def test_no_ledger_is_an_empty_one(tmp_path):
    """No job has begun yet."""
    assert notes.read(tmp_path / "ledger") == ([], 0)


def test_a_torn_line_counts_for_nothing_and_spoils_no_other(file):
    """A killed writer leaves the first half of `112 end …`, which is no end of job 1 or 11, and the next writer goes on behind it."""
    first, second = Note(112, END, 41, "aa", 0, 5.0), Note(3, BEGIN, 42, "bb", 0, 6.0)
    notes.write(first)
    whole = file.read_bytes()
    for cut in range(1, len(whole) - 1):  # the last byte is a line break: without it the line is whole
        file.write_bytes(whole[:cut])
        alone, torn = notes.read(file)
        assert alone == []
        notes.write(second)
        assert notes.read(file) == ([second], torn)
    file.write_bytes(whole[:-1])
    assert notes.read(file) == ([first], 0)


LINES = st.builds(
    Note, st.integers(1, 10**6), st.sampled_from([BEGIN, END]), st.integers(1, 2**22), st.text("0123456789abcdef", min_size=8, max_size=8),
    st.integers(0, 9), st.floats(0, 1e6).map(lambda at: round(at, 6)),
)  # fmt: skip


@given(st.lists(LINES, max_size=8), st.data())
def test_a_ledger_cut_anywhere_gives_its_first_lines(tmp_path_factory, lines, data):
    """Whatever the last write got done: what is read is what was whole, and at most one line is torn."""
    path = tmp_path_factory.mktemp("cut") / "ledger"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOSSES_LEDGER", str(path))
        for line in lines:
            notes.write(line)
    whole = path.read_bytes() if lines else b""
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole)))])
    found, torn = notes.read(path)
    assert found == lines[: len(found)]
    assert torn <= 1
    assert len(found) + torn <= len(lines)


@given(st.lists(st.tuples(st.integers(1, 5), st.floats(0, 20), st.none() | st.floats(0, 20)), max_size=20), st.sets(st.integers(1, 5)))
def test_every_job_has_one_fate(drawn, held):
    """Ended, lost or stuck, and nothing else; who is excused has been doubled; whatever the lines say."""
    lines = ledger(*(ran(number, at, None if span is None else at + span, str(index)) for index, (number, at, span) in enumerate(drawn)))
    for kill in (None, KILL):
        verdict = judge(lines, range(1, 6), held, kill)
        ended = {number for number, _, span in drawn if span is not None}
        assert sorted([*ended, *verdict.lost, *verdict.stuck]) == [1, 2, 3, 4, 5]
        assert set(verdict.in_flight) <= set(verdict.doubled)
        assert kill is not None or not verdict.in_flight
