"""The guides to Jobrunner show the difference between the files that the tests run, by the commands that the tests run."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.support.documents import blocks
from tests.support.shops import BRIDGE, STEPS, WAYS

ROOT = Path(__file__).resolve().parents[2]
GUIDES = ROOT / "docs" / "migrate"
EXAMPLES = ROOT / "examples"
HEADINGS = ["What becomes of what", "A small app, before and after", "What you gain, what you lose", "Both at once", "Back again"]


def guide(way):
    """The text of a guide."""
    return (GUIDES / f"{way.replace('_', '-')}.md").read_text()


def applied(lines, diff):
    """What a unified diff makes of lines; it must fit them."""
    made, at = [], 0
    for line in diff:
        if hunk := re.match(r"@@ -(\d+)", line):
            made += lines[at : int(hunk[1]) - 1]
            at = int(hunk[1]) - 1
        elif line.startswith("+"):
            made.append(line[1:])
        else:
            assert lines[at] == line[1:]
            made += [] if line.startswith("-") else [lines[at]]
            at += 1
    return made + lines[at:]


@pytest.mark.parametrize("way", WAYS)
def test_the_diff_leads_from_one_file_to_the_other(way):
    """The diff in the guide, applied to the file of before, gives the file of after."""
    before, after = ((EXAMPLES / way / f"{when}.py").read_text().splitlines() for when in ("before", "after"))
    (diff,) = (text for text in blocks(guide(way), "diff") if text.startswith("@@ "))
    assert applied(before, diff.splitlines()) == after


@pytest.mark.parametrize("page", sorted(GUIDES.glob("*.md")), ids=lambda page: page.stem)
def test_what_a_guide_shows_is_in_a_file_that_is_run(page):
    """A block of Python stands as it is in one of the examples; of other diffs each line does, but for imports, which sed is tried on."""
    text = page.read_text()
    files = [file.read_text() for file in EXAMPLES.glob("*/*.py")]
    lines = {line.strip() for file in files for line in file.splitlines()}
    assert [block for block in blocks(text, "python") if not any(block in file for file in files)] == []
    diffs = [diff for diff in blocks(text, "diff") if not diff.startswith("@@ ")]
    shown = [line[1:].partition("     #")[0].strip() for diff in diffs for line in diff.splitlines()]
    assert [line for line in shown if line and line not in lines and not re.match(r"from .*celery|app = Flask|.*jobrunner://", line)] == []


@pytest.mark.needs("linux", "git")  # elsewhere sed has other options
def test_sed_does_what_the_diff_shows(tmp_path):
    """The first diff of the guide from Celery, by the command below it; what only begins with the same letters stays."""
    (diff, *_), text = blocks(guide("celery"), "diff"), guide("celery")
    old, new = ([line[1:] for line in diff.splitlines() if line[0] == sign] for sign in "-+")
    others = ["import celery_shop", "from celeryd import x", "from .celery import app", "# from celery", "x = 'from celery'"]
    (tmp_path / "shop.py").write_text("\n".join([*old, *(f"    {line}" for line in old), *others]))
    (command,) = re.findall(r"^\$ (sed .*?) {5}#", text, re.MULTILINE)
    # Without what a hook of git that runs this has in its environment: its files would be those of the checkout.
    script = f'set -e; unset "${{!GIT_@}}"; git init --quiet; git add shop.py; {command}'
    subprocess.run(["bash", "-c", script], cwd=tmp_path, check=True)
    assert (tmp_path / "shop.py").read_text().splitlines() == [*new, *(f"    {line}" for line in new), *others]


@pytest.mark.parametrize("way", WAYS)
def test_every_guide_has_the_same_parts(way):
    """Mapping, diff, gains and losses, both at once, and the way back, in this order, whatever stands between."""
    found = re.findall(r"^## (.+)$", guide(way), re.MULTILINE)
    assert [heading for heading in found if heading in HEADINGS] == HEADINGS


@pytest.mark.parametrize("way", WAYS)
def test_a_guide_has_the_commands(way):
    """What our tests run, the reader is told to run: tables, web servers, workers, and what works off the rest."""
    of_way = WAYS[way]
    versions = [of_way.version(when) for when in ("before", "after")]
    wanted = {command for version in versions for command in (version.init, version.web, version.worker)} | {of_way.drain}
    wanted |= {"message_queue": {f"{BRIDGE} forth", f"{BRIDGE} back"}, "celery": {STEPS}}.get(way, set())
    shown = {line.removeprefix("$ ").partition("     #")[0] for text in blocks(guide(way), "console") for line in text.splitlines()}
    assert wanted - {"", versions[1].init} <= shown


@pytest.mark.parametrize("way", WAYS)
def test_what_becomes_of_what_says_what_differs(way):
    """Every row of the mapping has theirs, ours, and the difference, which may be nothing but is said."""
    part = guide(way).partition("## What becomes of what\n")[2].partition("\n## ")[0]
    rows = [line.strip("|").split(" | ") for line in part.splitlines() if line.startswith("| ")]
    assert len(rows) > 10
    assert rows[0][-1].strip() == "what differs"
    assert [row for row in rows if len(row) != len(rows[0]) or not all(cell.strip() for cell in row)] == []


def test_each_practice_has_pages_and_tests():
    """Five practices; each claim about one has a page that shows it and a test that holds it, and each says what is left."""
    page = (ROOT / "docs" / "explanation" / "five-practices.md").read_text()
    practices = page.split("\n## ")[1:]
    assert [practice[0] for practice in practices] == ["1", "2", "3", "4", "5"]
    for practice in practices:
        claims = [line.split(" | ") for line in practice.splitlines() if line.startswith("| ")][1:]
        assert len(claims) > 3
        assert [claim for claim in claims if "](" not in claim[1] or "`tests/" not in claim[2]] == []
        assert "\nLeft to you: " in practice
