"""The page about lost and doubled jobs: its table is what the generator makes of the committed measurement, in which ours has no fault."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bench.environments import peers
from bench.losing import report
from bench.losses import ORDER, OURS, PLACE, TRANSACTIONAL
from tools import losses

ROOT = Path(__file__).resolve().parents[2]
IN_THE_README = {
    "**Jobrunner** 0.1": ["jobrunner"], "Celery 5.7": ["celery_redis", "celery_redis_late"], "RQ 3.0": ["rq"], "Huey 3.5": ["huey_postgres"],
    "Procrastinate 3.10": ["procrastinate"], "PgQueuer 1.6": ["pgqueuer"], "Oban for Python 0.7": ["oban"],
}  # fmt: skip
KINDS = 5  # of peers at least that have an environment of their own


def test_the_table_is_made_from_the_committed_measurement():
    """Nobody has edited it, and nobody forgot to write it."""
    assert losses.PAGE.read_text() == losses.updated(losses.PAGE.read_text(), losses.MEASURED), "run: python tools/losses.py"


def test_the_committed_measurement_is_whole_and_ours_has_no_fault_in_it():
    """At full sizes, every contender measured or absent with a reason, every scenario of each."""
    document = report.read(losses.MEASURED)
    assert (document["sizes"]["jobs"], document["sizes"]["watch"]) == (200, 120)
    assert list(document["contenders"]) == list(ORDER)
    assert report.faults(document) == []
    for entry in document["contenders"].values():
        assert entry.get("absent") or all(set(round_) == {"kill", "long", "later", "rollback"} for round_ in entry["rounds"]), entry["title"]


def test_the_readme_has_the_figures_that_were_measured():
    """Its table beside others says of each what the committed measurement of the kill says, of that version."""
    measured = report.read(losses.MEASURED)["contenders"]
    rows = [line.strip("| ").split(" | ") for line in (ROOT / "README.md").read_text().partition("## Beside others")[2].splitlines() if "|" in line]
    cells = {row[0]: row[-1] for row in rows[2:]}
    assert list(cells) == list(IN_THE_README)
    for row, names in IN_THE_README.items():
        kills = [measured[name]["rounds"][0]["kill"] for name in names]
        assert re.findall(r"\d+ / \d+ / \d+", cells[row]) == [f"{kill['lost']} / {kill['stuck']} / {kill['doubled']}" for kill in kills], row
        name, _, version = row.replace("*", "").replace(" for Python", "").rpartition(" ")
        versions = {key.lower(): value for key, value in measured[names[0]]["versions"].items()}
        assert versions[{"jobrunner": "jobrunner-pg"}.get(name.lower(), name.lower())].startswith(version), row


def test_a_page_without_a_measurement_claims_nothing(tmp_path):
    """Not measured yet, and no table."""
    begin, end = losses.MARKS
    page = losses.updated(f"{begin}\n| a | table |\n{end}\nmore\n", tmp_path / "none.json")
    assert page == f"{begin}\n{losses.EMPTY}\n{end}\nmore\n"
    with pytest.raises(ValueError, match="the page has no"):
        losses.updated("no marks", tmp_path / "none.json")


def test_every_contender_has_an_adapter_and_every_adapter_a_place():
    """None is left out of the table, and all that are no checkout of ours are pinned, each in an environment of its own."""
    found = peers(PLACE)
    assert set(found) == set(ORDER)
    assert set(TRANSACTIONAL) < set(OURS) < set(ORDER)
    assert {name for name in ORDER if not found[name].requirements} == {*OURS, "celery_jobrunner_early"}
    pinned = [peer for peer in found.values() if peer.requirements]
    assert len(pinned) >= KINDS
    assert len({peer.environment for peer in (*pinned, *peers().values())}) == len(pinned) + len(peers())


def test_every_contender_has_its_settings_on_the_page():
    """How its worker is started and what was set is said of each: a figure without that cannot be judged."""
    settings = losses.PAGE.read_text().partition("## Settings, and why")[2].partition("\n## ")[0]
    named = [line.split("|")[1].strip(" *") for line in settings.splitlines() if line.startswith("|")]
    assert not [peer.title for peer in peers(PLACE).values() if not any(peer.title.startswith(name) for name in named if name)]


def test_the_ledger_needs_nothing_but_the_standard_library():
    """It is imported by every contender's worker, in whatever environment."""
    tree = ast.parse((PLACE / "shared" / "notes.py").read_text())
    imported = {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    imported |= {node.module.partition(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
    assert imported <= set(sys.stdlib_module_names)


def test_probes_are_listed_and_strange_options_refused():
    """`--list` has each probe with what it is about; an option that only probes know is an error beside scenarios."""
    command = [sys.executable, "-m", "bench"]
    listed = subprocess.run([*command, "--list"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert re.search(r"^losses +probe: Jobs lost, doubled and stuck", listed, re.MULTILINE)
    assert re.search(r"^history-reads +probe: \S", listed, re.MULTILINE)
    done = subprocess.run([*command, "drain", "--watch", "3"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "unrecognized arguments: --watch 3" in done.stderr
