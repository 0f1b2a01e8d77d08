"""`jobrunner migrate-check`: what it prints, its one document, its exit codes."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.support.cli import Program
from tests.support.scans import write_tree

CHECK_KEYS = {"ok", "files", "lines", "counts", "uses", "unread"}
USE_KEYS = {"path", "cell", "line", "column", "way", "kind", "what", "rating", "advice", "certain"}

TREE = {
    "shop/__init__.py": "",
    "shop/work.py": "from celery import Celery\napp = Celery('shop', broker='redis://:hunter2@x')\n",
    "shop/tasks.py": """
        from .work import app

        @app.task(bind=True, pydantic=True, acks_late=True)
        def send(self, user_id):
            raise self.retry(countdown=5)

        send.delay(1)
        send.delay(2)
        """,
    "Procfile": "worker: celery -A shop.work worker -l info\n",
}


@pytest.fixture
def checker(tmp_path):
    """The program in a directory with such an application, without a database or an app of Jobrunner's."""
    write_tree(tmp_path, TREE)
    return Program(tmp_path, None)


def test_the_list_is_grouped_and_summed(checker):
    """What has nothing in its place comes first; each thing once, with what to do and every place; the sums at the end; exit 1."""
    said = checker("migrate-check", "shop", "Procfile", ok=None)
    assert said.code == 1
    lines = said.lines()
    assert lines[0] == "unsupported"
    first = lines.index("  task option pydantic  (celery, once)")
    assert lines[first + 1].startswith("    Make it a native task")
    assert "    shop/tasks.py:3:22" in lines[first + 1 : first + 4]
    twice = lines.index("  call delay  (celery, 2 times)")
    assert lines[twice + 2 : twice + 4] == ["    shop/tasks.py:7:6", "    shop/tasks.py:8:6"]
    assert lines.index("unsupported") < lines.index("changed") < lines.index("ok")
    table = lines.index("WAY     UNSUPPORTED  CHANGED  OK")
    assert lines[table + 1].split() == ["celery", "1", "2", "11"]
    assert lines[-1] == "14 uses in 3 of 4 files, 11 lines; what the ratings mean: docs/how-to/migrate-check.md"
    assert "hunter2" not in said.out + said.err


def test_the_document_has_every_use(checker):
    """--json: every key, the places, and the counts of everything, whatever is shown."""
    document = checker("migrate-check", "--json", ok=None).json
    assert set(document) == CHECK_KEYS
    assert all(set(use) == USE_KEYS for use in document["uses"])
    assert document["counts"]["celery"] == {"unsupported": 1, "changed": 2, "ok": 11}
    [use] = checker("migrate-check", "--json", "--only", "unsupported", ok=None).json["uses"]
    assert use == {
        "path": "shop/tasks.py", "cell": None, "line": 3, "column": 22, "way": "celery", "kind": "task option", "what": "task option pydantic",
        "rating": "unsupported", "advice": use["advice"], "certain": True,
    }  # fmt: skip


def test_only_and_way_choose_what_is_shown(checker):
    """Ratings and ways by name, several with commas; the sums are of the ways that were looked for."""
    write_tree(checker.home, {"shop/thread.py": "import threading\nthreading.Timer(1, f).start()\n"})
    changed = checker("migrate-check", "shop", "--only", "changed,ok", "--exit-zero")
    assert "pydantic" not in changed.out
    assert "acks_late" in changed.out
    threads = checker("migrate-check", "shop", "--way", "threads")
    assert "thread Timer" in threads.out
    assert "celery" not in threads.out
    assert threads.code == 0


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["shop"], 1),
        (["shop", "--exit-zero"], 0),
        (["shop", "--only", "ok"], 1),
        (["Procfile"], 0),
        (["shop", "--way", "queue"], 0),
        (["nowhere"], 2),
        (["shop", "--only", "bad"], 2),
        (["shop", "--way", "smoke"], 2),
    ],
)
def test_the_exit_code_says_whether_something_is_unsupported(checker, arguments, code):
    """1 when there is, shown or not; 0 with --exit-zero or when there is not; 2 for a path or word that does not exist."""
    assert checker("migrate-check", *arguments, ok=None).code == code


def test_include_and_exclude(checker):
    """Patterns of paths, each as often as needed."""
    write_tree(checker.home, {"venv/lib/own.py": "from celery import chain\n"})
    assert "own.py" not in checker("migrate-check", ok=None).out
    assert "venv/lib/own.py" in checker("migrate-check", "--include", "venv/lib/*", ok=None).out
    assert checker("migrate-check", "--exclude", "shop/tasks.py", "--exclude", "Procfile").code == 0


def test_files_that_cannot_be_read_are_said(checker):
    """On stderr and in the document, with the reason; the others are looked at, and the exit code is theirs."""
    write_tree(checker.home, {"shop/broken.py": "from celery import (\n"})
    said = checker("migrate-check", "shop", ok=None)
    assert said.code == 1
    assert "warning: not looked at: shop/broken.py (syntax error in line 1" in said.err
    [unread] = checker("migrate-check", "shop", "--json", ok=None).json["unread"]
    assert unread["path"] == "shop/broken.py"
    assert unread["reason"].startswith("syntax error in line 1")


def test_nothing_is_found_where_nothing_is(tmp_path):
    """An empty directory is no error."""
    program = Program(tmp_path, None)
    assert program("migrate-check").lines() == ["nothing found in 0 files"]
    assert program("migrate-check", "--json").json["ok"] is True


def test_what_only_its_name_tells_is_marked(checker):
    """A guess is said to be one."""
    write_tree(checker.home, {"shop/view.py": "def post(task):\n    task.delay(1)\n"})
    assert "    shop/view.py:2:10   (by its name)" in checker("migrate-check", "shop/view.py", "shop", ok=None).lines()


def test_flask_has_the_same_command(tmp_path):
    """`flask jobs migrate-check` needs no application that can be imported."""
    write_tree(tmp_path, {**TREE, "app.py": "raise RuntimeError('the application was imported')\n"})
    program = Program(tmp_path, None, argv=("-m", "flask", "--app", "app", "jobs"))
    said = program("migrate-check", "shop", "--json", ok=None)
    assert said.code == 1
    assert json.loads(said.out)["counts"]["celery"]["unsupported"] == 1


def test_control_characters_of_names_stay_where_they_are(checker):
    """A file's name cannot move the cursor of who reads the list."""
    (checker.home / "shop" / "a\x1b[2Jb.py").write_text("from celery import chain\n")
    said = checker("migrate-check", "shop", ok=None)
    assert "\x1b" not in said.out
    assert "a\\x1b[2Jb.py:1:20" in said.out


def test_it_starts_without_flask_or_a_database(checker):
    """The command imports neither: it is fast, and works where the application is not installed."""
    code = "import sys; from jobrunner.cli import run; run(['migrate-check', 'shop']); print(sorted({'flask', 'psycopg', 'sqlalchemy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=checker.home, env=checker.environment(), capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
