"""`migrate-check` survives every file: what cannot be read is reported, what is somebody else's is passed over, and no code is run."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import pytest

from jobrunner.migrating import files, scan
from tests.support.scans import found, scan_tree, write_tree

USE = "from celery import shared_task\n"
SECONDS = 10  # for what takes less than one: a machine that is busy with everything else


def shown(report):
    """Names of the files in which something was found."""
    return sorted({Path(use.path).name for use in report.uses})


def unread(report):
    """Names of the files that were not looked at, with the reasons."""
    return {Path(path).name: reason for path, reason in report.unread}


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("broken.py", b"from celery import (\n", "syntax error in line 1"),
        ("python2.py", b"from celery import task\nprint 'x'\n", "syntax error in line 2"),
        ("latin.py", b"# celery \xe9\n", "not readable as text"),
        ("unknown.py", b"# -*- coding: klingon -*-\n# celery\n", "not readable as text"),
        ("binary.py", b"celery\0\x01", "NUL"),
        ("deep.py", b"celery\n" + b"(" * 500 + b")" * 500, "syntax error"),
        ("note.ipynb", b'{"celery": ', "not a notebook"),
        ("list.ipynb", b'["celery"]', "not a notebook"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_read_is_reported_and_ends_nothing(tmp_path, name, data, reason):
    """The file and the reason are in the report, and so is what the next file has."""
    (tmp_path / name).write_bytes(data)
    report = scan_tree(tmp_path, {"zz_fine.py": USE})
    assert reason in unread(report)[name]
    assert shown(report) == ["zz_fine.py"]


def test_long_expressions_are_no_trouble(tmp_path):
    """A thousand terms in a row, and attributes and calls in a chain, are followed or reported, never an end."""
    text = USE + "x = " + " + ".join(["'a'"] * 3000) + "\ny = x" + ".f()" * 400 + "\n"
    report = scan_tree(tmp_path, {"long.py": text, "zz_fine.py": USE})
    assert "zz_fine.py" in shown(report)
    assert "long.py" in [*shown(report), *unread(report)]


@pytest.mark.parametrize(
    ("encoding", "head"),
    [("utf-8", ""), ("utf-8-sig", ""), ("latin-1", "# -*- coding: latin-1 -*-\n"), ("cp1252", "# coding=cp1252\n")],
)
def test_other_encodings_are_read_as_python_reads_them(tmp_path, encoding, head):
    """A byte order mark, a coding line; columns count characters."""
    (tmp_path / "code.py").write_bytes((head + "é = 'é'; from celery import shared_task\n").encode(encoding))
    report = scan([str(tmp_path)])
    assert [(use.line, use.column) for use in report.uses] == [(head.count("\n") + 1, 29)]
    assert not report.unread


def test_a_file_that_is_too_large_is_reported(tmp_path, monkeypatch):
    """Generated files of many megabytes are not parsed."""
    monkeypatch.setattr(files, "MAX_BYTES", 1000)
    report = scan_tree(tmp_path, {"large.py": USE + "#" * 1000, "small.py": USE})
    assert "larger than" in unread(report)["large.py"]
    assert shown(report) == ["small.py"]


def test_libraries_and_hidden_directories_are_passed_over(tmp_path):
    """Virtual environments under any name, node_modules, caches and dot directories; continuous integration is looked at."""
    others = ("venv", ".venv", "env/lib/python3/site-packages", "node_modules/x", "__pycache__", ".tox/py", "build/lib", ".git", "x.egg-info")
    write_tree(tmp_path, {f"{directory}/no.py": USE for directory in others})
    write_tree(tmp_path, {"named/pyvenv.cfg": "home = /usr\n", "named/no.py": USE, ".github/workflows/ci.yml": "run: celery -A a worker\n"})
    assert shown(scan_tree(tmp_path, {"shop/yes.py": USE})) == ["ci.yml", "yes.py"]


def test_include_and_exclude(tmp_path):
    """What was passed over is looked at when a pattern says so, and the other way round; excluding wins."""
    write_tree(tmp_path, {"build/ours/a.py": USE, "build/other/b.py": USE, "tests/c.py": USE, "tests/unit/d.py": USE, "e.py": USE, "f.txt": "celery -A a worker\n"})
    assert shown(scan([str(tmp_path)])) == ["c.py", "d.py", "e.py"]
    assert shown(scan([str(tmp_path)], include=["build/ours/*"])) == ["a.py", "c.py", "d.py", "e.py"]
    assert shown(scan([str(tmp_path)], exclude=["tests"])) == ["e.py"]
    assert shown(scan([str(tmp_path)], exclude=["tests/*", "e.py"])) == []
    assert shown(scan([str(tmp_path)], include=["*.txt"])) == ["c.py", "d.py", "e.py", "f.txt"]
    assert shown(scan([str(tmp_path)], include=["build/*"], exclude=["b.py", "tests"])) == ["a.py", "e.py"]


def test_links_in_circles_are_walked_once(tmp_path):
    """A link to a directory above it, to itself and to nothing; and a file with two names is looked at once."""
    write_tree(tmp_path, {"shop/a.py": USE})
    (tmp_path / "shop" / "up").symlink_to(tmp_path)
    (tmp_path / "shop" / "self").symlink_to(tmp_path / "shop" / "self")
    (tmp_path / "shop" / "gone.py").symlink_to(tmp_path / "nothing")
    (tmp_path / "shop" / "b.py").symlink_to(tmp_path / "shop" / "a.py")
    report = scan([str(tmp_path)])
    assert len(report.uses) == 1
    assert "gone.py" in unread(report)


def test_pipes_and_sockets_are_left_alone(tmp_path):
    """Reading a named pipe would never end."""
    os.mkfifo(tmp_path / "pipe.py")
    os.mkfifo(tmp_path / "script")
    assert shown(scan_tree(tmp_path, {"a.py": USE})) == ["a.py"]


def test_a_file_without_rights_is_reported(tmp_path, monkeypatch):
    """What the system refuses is said with its reason."""
    write_tree(tmp_path, {"a.py": USE, "b.py": USE})
    real = Path.open

    def refusing(path, *arguments, **keywords):
        if path.name == "a.py":
            raise PermissionError(13, "Permission denied")
        return real(path, *arguments, **keywords)

    monkeypatch.setattr(Path, "open", refusing)
    report = scan([str(tmp_path)])
    assert unread(report) == {"a.py": "Permission denied"}
    assert shown(report) == ["b.py"]


def test_notebooks_are_told_by_cell(tmp_path):
    """Names are shared by the cells, IPython's own commands are no Python, and a broken cell costs only itself."""
    cells = [
        {"cell_type": "markdown", "source": ["from celery import chain"]},
        {"cell_type": "code", "source": ["%matplotlib inline\n", "!pip install celery\n", "from celery import Celery\n", "app = Celery()"]},
        {"cell_type": "code", "source": "print 'x'"},
        {"cell_type": "code", "source": "%%bash\ncelery -A a worker"},
        {"cell_type": "code", "source": "\napp.control.purge()"},
    ]
    (tmp_path / "note.ipynb").write_text(json.dumps({"cells": cells}))
    report = scan([str(tmp_path)])
    assert [(use.cell, use.line, use.what) for use in report.uses] == [
        (2, 3, "import celery.Celery"), (2, 4, "app Celery"), (5, 2, "control purge"),
    ]  # fmt: skip
    assert report.uses[-1].place.endswith("note.ipynb[5]:2:13")
    assert list(unread(report)) == ["note.ipynb[3]"]


def test_the_code_is_never_imported(tmp_path):
    """What would happen at its import does not happen, and no module of it is known to Python."""
    proof = tmp_path / "imported"
    text = f"import pathlib\npathlib.Path({str(proof)!r}).touch()\nfrom celery import Celery\nfrom never_imported_b import x\nx.delay()\n"
    before = set(sys.modules)
    report = scan_tree(tmp_path, {"never_imported_a.py": text, "never_imported_b.py": text})
    assert report.uses
    assert not proof.exists()
    assert not {name for name in set(sys.modules) - before if name.startswith(("never_imported", "celery"))}


def test_a_file_that_is_named_is_looked_at_whatever_its_name(tmp_path):
    """A path that was asked for is neither skipped nor guessed away."""
    write_tree(tmp_path, {"venv/a.py": USE, "commands.of-ours": "celery -A a worker\n"})
    report = scan([str(tmp_path / "venv" / "a.py"), str(tmp_path / "commands.of-ours")])
    assert shown(report) == ["a.py", "commands.of-ours"]
    assert shown(scan([str(tmp_path / "venv")])) == ["a.py"]


def test_paths_are_shown_as_they_were_given(tmp_path, monkeypatch):
    """Relative stays relative, so that an editor finds it; and a file of two paths is looked at once."""
    write_tree(tmp_path, {"shop/a.py": USE})
    monkeypatch.chdir(tmp_path)
    assert [use.path for use in scan(["."]).uses] == ["shop/a.py"]
    assert [use.path for use in scan(["shop", "./shop/a.py"]).uses] == ["shop/a.py"]


def test_tens_of_thousands_of_lines_take_a_second(tmp_path):
    """50,000 lines of which half the files use Celery, in processor time, with a margin for a slow machine."""
    body = "def f(a, b):\n    total = a + b\n    return [x.name for x in total if x.value > 3]\n" * 80
    for number in range(200):
        head = f"from celery import shared_task\n@shared_task\ndef t{number}(): ...\nt{number}.delay()\n" if number % 2 else ""
        write_tree(tmp_path, {f"shop/m{number}.py": head + body})
    began = time.process_time()
    report = scan([str(tmp_path)])
    took = time.process_time() - began
    assert report.lines > 48_000
    assert len(report.uses) == 300
    assert took < SECONDS


def test_what_was_found_is_counted(tmp_path):
    """Files, lines, and for each way the ratings."""
    report = scan_tree(tmp_path, {"a.py": "from celery import chain, shared_task\n", "b.py": "import threading\nthreading.Timer(1, f)\n"})
    assert (report.files, report.lines, report.unsupported) == (2, 3, 1)
    assert report.counts()["celery"] == {"unsupported": 1, "changed": 0, "ok": 1}
    assert report.counts()["threads"] == {"unsupported": 0, "changed": 1, "ok": 0}
    assert found(report, "b.py") == ["2 thread Timer"]
