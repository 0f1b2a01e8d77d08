"""The published benchmarks: the page is what the generator makes of the committed results, and the command refuses what makes no sense."""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bench import suite
from bench.catalogue import SCENARIOS
from bench.figures import MIN_ROUNDS
from bench.targets import TARGETS
from tools import benchmarks

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 300  # for a trial on a busy machine


def bench(*arguments, **env):
    """`python -m bench`, with more in its environment."""
    command = [sys.executable, "-m", "bench", *arguments]
    return subprocess.run(command, cwd=ROOT, env=os.environ | env, capture_output=True, text=True, timeout=SECONDS, check=False)


def test_the_page_is_made_from_the_committed_results():
    """Nobody has edited docs/benchmarks.md, and nobody forgot to write it."""
    assert benchmarks.PAGE.read_text() == benchmarks.page(suite.read(benchmarks.RESULTS)), "run: python tools/benchmarks.py"


def test_committed_results_are_fit_for_publication():
    """Measured on a quiet machine, in full, with enough rounds of every figure."""
    for name, document in suite.read(benchmarks.RESULTS).items():
        assert name in SCENARIOS
        assert document["publishable"], document["doubts"]
        assert document["rounds"] >= MIN_ROUNDS
        for entry in document["entries"].values():
            assert entry.get("failed") or all(len(rounds) == document["rounds"] for rounds in entry["figures"].values())


def test_a_page_without_results_says_so_and_claims_nothing():
    """Not measured yet, every target open, and no verdict anywhere."""
    page = benchmarks.page({})
    assert "**Not measured yet.**" in page
    assert "Where we lose" not in page
    assert page.count("**not measured**") == len(TARGETS)
    assert not re.search(r"\*\*(?:met|not met)\*\*", page)


def document():
    """A scenario in which a peer is ahead, one is absent and one broke."""
    one = {"contender": "", "kind": "peer", "rank": "default", "durability": "", "described": "as it comes", "figures": {}}
    entries = {
        "jobrunner": one | {"kind": "ours", "figures": {"jobs_per_second": [900, 1000, 1200]}},
        "bare": one | {"kind": "bare", "figures": {"jobs_per_second": [2000, 2000, 2000]}},
        "ahead": one | {"figures": {"jobs_per_second": [3000, 2500, 2400]}},
        "absent": one | {"absent": "redis-server is not on PATH"},
        "broken": one | {"failed": "a worker ended with 1\nTraceback", "figures": {"jobs_per_second": [9999]}},
    }
    return {
        "format": suite.FORMAT, "scenario": "enqueue-single", "suite": "short", "measured_at": "2026-11-26T00:00:00+00:00",
        "publishable": True, "doubts": [], "rounds": 3, "sizes": {"seconds": 1}, "others_share": 0.01, "took_seconds": 1,
        "machine": {"cpu": "CPU", "cores": 2, "memory_bytes": 1 << 34, "kernel": "Linux", "python": "3.11", "revision": "abc", "versions": {}},
        "servers": {"postgresql": {"version": "18", "settings": {"fsync": "on"}}, "redis": None},
        "versions": {"celery": {"celery": "5"}},
        "entries": entries,
    }  # fmt: skip


def test_where_we_lose_comes_first_and_names_who_is_ahead():
    """The peer, both figures, how many times; then the target that is not met; then what broke."""
    page = benchmarks.page({"enqueue-single": document()})
    losing = page.split("## ")[1]
    assert losing.startswith("Where we lose")
    assert "jobrunner has 1,000 jobs/s. Ahead: ahead 2,500 (2.50 times)" in losing
    assert "Target 4 is not met" in losing
    assert "0.50 × bare, demanded ≥ 0.85" in losing
    assert "broken failed: a worker ended with 1" in losing
    assert "Not measured, so nothing can be said" in losing


def test_a_table_has_medians_spread_ratios_and_who_is_missing():
    """Ours in bold, the ratio below 1 where a peer is ahead, nothing of the one that broke."""
    page = benchmarks.page({"enqueue-single": document()})
    assert "| **jobrunner** | 1,000 (900–1,200) |  | as it comes |" in page
    assert "| ahead | 2,500 (2,400–3,000) | 0.40 × | as it comes |" in page
    assert "Not in the table: absent: redis-server is not on PATH." in page
    assert "9,999" not in page


def test_figures_with_doubts_are_marked():
    """A page made of a trial or a busy machine says so at its top."""
    doubtful = copy.deepcopy(document()) | {"publishable": False, "doubts": ["a trial: one round, tiny sizes"]}
    assert "**Not for publication:** a trial" in benchmarks.page({"enqueue-single": doubtful}).split("## ")[0]


def test_the_generator_refuses_what_is_no_result(tmp_path):
    """A torn file, another format, a renamed file: each is named, with what to do."""
    for text in ("{", json.dumps({"format": 0, "scenario": "drain"}), json.dumps(document())):
        file = tmp_path / "drain.json"
        file.write_text(text)
        with pytest.raises(ValueError, match=r"drain\.json: .*measure it again"):
            suite.read(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none-such"], "unknown scenario none-such; there are drain, enqueue-single"),
        (["drain", "isolation"], "isolation: probes of the worker's inside run by themselves"),
        (["--rounds", "2"], "--rounds 2: a median needs at least 3 rounds"),
        (["--rounds", "0"], "--rounds 0: a median needs at least 3 rounds"),
        (["--size", "nothing=1"], "--size nothing=1: expected NAME=NUMBER with one of"),
        (["workers", "--size", "many=64"], "--size many=64: expected NAME=NUMBER with one of jobs, one, some; --full may have more"),
        (["--size", "history=many"], "--size history=many: expected NAME=NUMBER"),
        (["--peers", "sidekiq"], "--peers sidekiq: there is no such peer; there are celery"),
        (["--full", "--trial"], "--full and --trial exclude each other"),
        (["--trial", "--publish"], "--publish: not for publication: a trial"),
        (["--publish", "--size", "history=1"], "--publish: not for publication: history set to 1 by hand"),
    ],
)
def test_bad_input_is_refused_before_anything_starts(arguments, message):
    """One line on stderr, exit code 2, nothing on stdout."""
    done = bench(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"error: {message}" in done.stderr


def test_a_trial_without_redis_measures_the_rest_and_says_what_to_install(tmp_path):
    """Real servers and workers, tiny sizes: ours and the bare loop are measured, the peer on Redis is absent with its reason."""
    done = bench(
        "drain", "pickup-idle", "--trial", "--peers", "celery", "--size", "seconds=0.05", "--size", "jobs=5", "--results", str(tmp_path),
        BENCH_REDIS_SERVER="/nowhere/redis-server",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "apt-get install redis-server" in done.stderr
    documents = suite.read(tmp_path)
    entries = documents["drain"]["entries"]
    assert "/nowhere/redis-server is not here" in entries["celery, default"]["absent"]
    assert entries["celery, default"]["figures"] == {}
    for name in ("jobrunner, default", "jobrunner, best", "bare, 1 client", "bare, 2 clients"):
        figures = entries[name]["figures"]
        assert all(figures[figure][0] > 0 for figure in ("jobs_per_second", "wal_bytes_per_job", "connections")), (name, figures)
    assert documents["pickup-idle"]["entries"]["jobrunner"]["figures"]["p50_ms"][0] > 0
    assert not documents["drain"]["publishable"]
    assert "Not for publication" in (tmp_path / "benchmarks.md").read_text()
