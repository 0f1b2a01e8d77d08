"""`bench/losses.py` with our own rows at tiny sizes, on real servers and workers: nothing lost, doubled, or run after a rollback."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.chaos, pytest.mark.needs("linux")]

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 900  # for all four scenarios on a busy machine
OURS = ("jobrunner", "celery_jobrunner", "jobrunner_embedded")
NO_LEASE_TO_WAIT_FOR = {"jobrunner": "long,later,rollback", "celery_jobrunner": "long,later,rollback", "jobrunner_embedded": "rollback"}


def losses(tmp_path, *arguments):
    """`python -m bench losses`: the finished process and its document."""
    file = tmp_path / "losses.json"
    command = [sys.executable, "-m", "bench", "losses", "--trial", "--json", str(file), *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert file.exists(), done.stderr
    return done, json.loads(file.read_text())


def judged(tmp_path, name, scenarios):
    """The figures of one of our rows by scenario, once nothing is wrong with them."""
    done, document = losses(tmp_path, "--peers", name, "--scenarios", scenarios)
    assert done.returncode == 0, done.stderr
    assert list(document["contenders"]) == [name]
    [figures] = document["contenders"][name]["rounds"]
    assert set(figures) == set(scenarios.split(","))
    for scenario, found in figures.items():
        assert found["lost"] == found["stuck"] == found["doubled_healthy"] == 0, (scenario, found, done.stderr)
        if scenario != "kill":
            assert found["doubled"] == 0
            assert found["runs"] == found["jobs"] > 0, "each ran once"
    if "rollback" in figures:
        assert figures["rollback"]["rolled_back"] == 2
        # Celery's producers have connections of their own, whatever the broker is: the documents say so
        assert figures["rollback"]["ran_all_the_same"] == (2 if name == "celery_jobrunner" else 0)
    assert f"| **{document['contenders'][name]['title']}** |" in done.stdout
    return figures


@pytest.mark.parametrize("name", OURS)
def test_healthy_workers_lose_and_double_nothing(tmp_path, name):
    """Jobs longer than the lease, jobs due later than it, and jobs of a transaction that is rolled back."""
    figures = judged(tmp_path, name, NO_LEASE_TO_WAIT_FOR[name])
    for figure in ("long", "later"):
        if figure in figures:
            assert figures[figure]["timeout"] == 4
    if "later" in figures:
        earliest, latest = figures["later"]["late_s"]
        assert 0 <= earliest <= latest < 10


@pytest.mark.slow
@pytest.mark.parametrize("name", OURS)
def test_a_kill_in_the_middle_loses_nothing(tmp_path, name):
    """kill -9 of the worker and all below it amid 40 jobs: each of them ends, and none that had long ended runs again."""
    figures = judged(tmp_path, name, "kill")["kill"]
    assert figures["jobs"] == 40
    assert 16 <= figures["begun_before_the_kill"] < 40, "killed too late to show anything"


@pytest.mark.slow
def test_an_embedded_worker_at_its_own_lease(tmp_path):
    """Its lease of 30 s cannot be set: a job of 33 s, and one that is due in 33 s, run once."""
    figures = judged(tmp_path, "jobrunner_embedded", "long,later")
    assert figures["long"]["job_seconds"] == figures["later"]["delay_seconds"] == 33


@pytest.mark.slow
def test_a_loss_is_seen(tmp_path):
    """Celery acknowledges early unless told otherwise, so the tasks that ran are gone: the probe says so, of a row that is not judged."""
    done, document = losses(
        tmp_path, "--peers", "celery_jobrunner_early", "--scenarios", "kill", "--jobs", "10", "--seconds", "1", "--watch", "40"
    )
    [figures] = document["contenders"]["celery_jobrunner_early"]["rounds"]
    assert figures["kill"]["lost"] >= 1, done.stderr
    assert done.returncode == 0, "it is no row of ours"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--peers", "sidekiq"], "unknown contender sidekiq; there are celery_redis, celery_redis_late"),
        (["--scenarios", "flood"], "unknown scenario flood; there are kill, long, later, rollback"),
        (["--watch", "0"], "--watch 0: must be above 0"),
        (["--rounds", "-1"], "--rounds -1: must be above 0"),
    ],
)
def test_bad_input_is_refused_before_anything_starts(arguments, said):
    """One line, exit code 2."""
    command = [sys.executable, "-m", "bench", "losses", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"error: {said}" in done.stderr
