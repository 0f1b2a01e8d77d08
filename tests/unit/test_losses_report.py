"""What `bench/losses.py` says of a measurement: the table shows what was measured and what was not, and a fault of ours is a fault."""

from __future__ import annotations

import contextlib
import json
from types import SimpleNamespace

import pytest

from bench import losses, machine, servers
from bench.losing import report
from bench.losing.scenarios import Sizes

CLEAN = {"jobs": 4, "runs": 4, "lost": 0, "stuck": 0, "doubled": 0, "doubled_in_flight": 0, "doubled_healthy": 0}


def round_of(**changes):
    """One round in which all is well, but for what is given by scenario."""
    clean = {
        "kill": CLEAN | {"jobs": 200},
        "long": CLEAN,
        "later": CLEAN | {"late_s": [0.01, 0.42]},
        "rollback": CLEAN | {"rolled_back": 4, "ran_all_the_same": 0},
    }
    return {name: figures | changes.get(name, {}) for name, figures in clean.items()}


def document(*rounds, ours=True, watch=120, **entry):
    """A document with one contender."""
    named = {"title": "One", "ours": ours, "transactional": True, "promise": "at least once", "fixed_timeout": None}
    return {
        "format": report.FORMAT,
        "measured_at": "2026-11-26T00:00:00+00:00",
        "sizes": {"jobs": 200, "seconds": 0.05, "watch": watch, "timeout": 5.0, "beyond": 7.0, "few": 4},
        "machine": {"cpu": "CPU", "cores": 2, "memory_bytes": 8 << 30, "kernel": "Linux", "python": "3.11", "revision": "abc"},
        "servers": {"postgresql": {"version": "18"}, "redis": {"version": "7"}},
        "contenders": {"one": named | {"versions": {"one": "1.0", "python": "3"}, "rounds": list(rounds)} | entry},
    }


def row(*rounds, **entry):
    """The cells of the only row."""
    return [cell.strip() for cell in report.table(document(*rounds, **entry)).splitlines()[2].strip("|").split("|")]


def test_a_row_without_a_blemish():
    """Zeros, the least and the most that a later job was late, and our name in bold."""
    assert row(round_of()) == ["**One**", "0", "0", "0", "0 of 4", "0 of 4", "0.0–0.4 s", "0 of 4"]
    assert row(round_of(), ours=False)[0] == "One"


def test_a_row_with_rounds_has_the_least_and_the_most():
    """Of every figure, with how often doubled jobs ran."""
    worse = round_of(kill={"lost": 2, "stuck": 8}, long={"doubled": 4, "runs": 11}, rollback={"ran_all_the_same": 4})
    assert row(round_of(), worse)[1:] == ["0–2", "0–8", "0", "0–4 of 4 (4–11 runs)", "0 of 4", "0.0–0.4 s", "0–4 of 4"]


def test_what_was_not_measured_says_why():
    """A contender that is absent, a scenario that it does not have, one that broke, and one that was not asked for."""
    assert row(absent="pip install ended with 1")[1] == "absent: pip install ended with 1"
    assert row({"start": {"failed": "One: ended\nTraceback"}})[1] == "failed: One: ended"
    partly = round_of() | {"later": {"absent": "has no jobs for later"}, "long": {"failed": "One: its worker ended with 1\nTraceback"}}
    del partly["rollback"]
    assert row(partly)[4:] == ["failed: One: its worker ended with 1", "has no jobs for later", report.UNKNOWN, report.UNKNOWN]


def test_a_healthy_job_that_did_not_end_is_in_the_row():
    """Neither doubled nor ended is not nothing."""
    assert row(round_of(long={"stuck": 1}))[4] == "0 of 4, 1 not ended"
    assert row(round_of(later={"lost": 4, "late_s": None}))[5:7] == ["0 of 4, 4 not ended", "never begun"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kill": {"lost": 1}}, "One, kill, round 1: 1 lost"),
        ({"kill": {"doubled": 2, "doubled_healthy": 1}}, "One, kill, round 1: 1 doubled with no crash to blame"),
        ({"kill": {"stuck": 3}}, "One, kill, round 1: 3 stuck"),
        ({"long": {"doubled": 1, "doubled_healthy": 1}}, "One, long, round 1: 1 doubled with no crash to blame"),
        ({"later": {"stuck": 1}}, "One, later, round 1: 1 stuck"),
        ({"rollback": {"ran_all_the_same": 1}}, "One, rollback, round 1: 1 of a rolled-back transaction ran"),
    ],
)
def test_a_fault_of_ours_is_a_fault(changes, said):
    """Each by its name; what a peer loses is a finding."""
    assert report.faults(document(round_of(**changes))) == [said]
    assert report.faults(document(round_of(**changes), ours=False)) == []


def test_a_rollback_is_joined_where_that_is_promised():
    """Celery's producers have connections of their own, with our transport too."""
    assert report.faults(document(round_of(rollback={"ran_all_the_same": 4}), transactional=False)) == []


def test_whoever_breaks_is_a_fault():
    """Ours or a peer's: what could not be measured must not look like a row without a blemish."""
    for ours in (True, False):
        assert report.faults(document({"start": {"failed": "One: ended"}}, ours=ours)) == ["One, start, round 1: One: ended"]


def test_what_a_crash_or_a_short_watch_explains_is_no_fault():
    """Jobs whose end was on its way, and jobs that a lease of 30 s still holds when nobody watched for longer."""
    assert report.faults(document(round_of(kill={"doubled": 2, "doubled_in_flight": 2}))) == []
    assert report.faults(document(round_of(kill={"stuck": 2}), watch=20)) == []
    assert report.faults(document(round_of() | {"later": {"absent": "has none"}})) == []


def test_the_notes_have_sizes_versions_and_an_unset_timeout():
    """Whoever repeats it has to know them."""
    text = report.notes(document(round_of(), fixed_timeout=30.0))
    sizes, servers = "200 jobs of 50 ms, watched for 120 s", "PostgreSQL 18 with `fsync` on, Redis 7"
    for part in (sizes, servers, "revision abc", "one 1.0", "its timeout is 30 s"):
        assert part in text


def test_a_file_that_is_no_document_is_refused(tmp_path):
    """Torn, or of another version: named, with what to do."""
    file = tmp_path / "losses.json"
    for text in ("{", json.dumps({"format": 0}), "[]"):
        file.write_text(text)
        with pytest.raises(ValueError, match=r"losses\.json: .*measure it again"):
            report.read(file)
    file.write_text(json.dumps(document(round_of())))
    assert report.read(file)["contenders"]["one"]["title"] == "One"


def test_whoever_did_not_start_is_not_measured_in_a_later_round(monkeypatch):
    """Neither who is absent: of all others every round has every scenario."""
    entries = {"here": {"rounds": []}, "broken": {"rounds": [{"start": {"failed": "ended"}}]}, "away": {"rounds": [], "absent": "no Redis"}}
    monkeypatch.setattr(losses, "peers", lambda _: {name: name for name in entries})
    monkeypatch.setattr(losses, "facts_of", lambda peer, _: entries[peer])
    monkeypatch.setattr(losses, "one", lambda *_: CLEAN)
    monkeypatch.setattr(servers, "running", lambda: contextlib.nullcontext(SimpleNamespace(facts=dict)))
    monkeypatch.setattr(machine, "facts", dict)
    measured = losses.measure(list(entries), ["kill", "long"], Sizes(), 3)["contenders"]
    assert measured["here"]["rounds"] == [{"kill": CLEAN, "long": CLEAN}] * 3
    assert measured["broken"]["rounds"] == [{"start": {"failed": "ended"}}]
    assert measured["away"]["rounds"] == []
