"""The application is found from a specification or the usual places, and what goes wrong is said in one line with its place."""

from __future__ import annotations

import sys
import textwrap

import pytest
from flask import Flask

from jobrunner import AppImportError, ConfigurationError, JobRunner
from jobrunner.app import find_jobrunner
from jobrunner.loading import load

PLAIN = "from jobrunner import JobRunner\njobs = JobRunner(dsn='postgresql://x@h/d', name='here')\n"
FLASK = "from flask import Flask\nfrom jobrunner import JobRunner\napp = Flask(__name__)\njobs = JobRunner(app, name='here')\n"
FACTORY = """
from flask import Flask
from jobrunner import JobRunner
jobs = JobRunner(name='here')
def create_app(config='default'):
    app = Flask(__name__)
    app.config['WHICH'] = config
    jobs.init_app(app)
    return app
"""


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """An empty working directory; modules imported from it are forgotten afterwards."""
    before = set(sys.modules)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    for name in ("JOBRUNNER_APP", "FLASK_APP"):
        monkeypatch.delenv(name, raising=False)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text))
    return path


@pytest.mark.parametrize("text", [PLAIN, FLASK, FACTORY], ids=["plain", "flask", "factory"])
@pytest.mark.parametrize("spec", ["shop_x", "shop_x.py", "./shop_x.py", "shop_x:jobs", "shop_x.py:jobs"])
def test_a_module_or_file_is_enough(place, text, spec):
    """A JobRunner is found by itself, through a Flask app, and through an app factory."""
    write(place / "shop_x.py", text)
    assert load(spec).name == "here"


def test_stand_ins_of_flask_are_no_hindrance(place):
    """A module that imports `request`, `g`, `session` or `current_app`, as most do, is searched like any other."""
    stand_ins = "from flask import current_app, g, request, session\n"
    write(place / "plain_x.py", stand_ins + PLAIN)
    write(place / "site_x.py", stand_ins + FLASK.replace("app", "site"))
    assert load("plain_x").name == load("site_x").name == "here"


@pytest.mark.parametrize(
    ("spec", "which"),
    [("shop_y:create_app", "default"), ("shop_y:create_app()", "default"), ("shop_y:create_app('other')", "other"), ("shop_y", "default")],
)
def test_factories_are_called(place, spec, which):
    """A factory runs, with literal arguments if given, and its app's config is the JobRunner's."""
    write(place / "shop_y.py", FACTORY)
    jobs = load(spec)
    assert jobs.app is not None
    assert jobs.app.config["WHICH"] == which


def test_a_file_in_a_package_is_imported_as_such(place):
    """Relative imports work: the directory above the outermost package is put on the path."""
    write(place / "src/pack_a/__init__.py", "")
    write(place / "src/pack_a/jobs.py", PLAIN)
    write(place / "src/pack_a/wsgi.py", "from .jobs import jobs\n")
    assert load("src/pack_a/wsgi.py").name == "here"
    assert "pack_a.wsgi" in sys.modules


def test_defaults_are_tried_in_order(place, monkeypatch):
    """JOBRUNNER_APP, FLASK_APP, pyproject.toml, app.py, wsgi.py: the first that is set counts."""
    names = ["wsgi", "app", "from_project", "from_flask", "from_environment"]
    for name in names:
        write(place / f"{name}.py", f"from jobrunner import JobRunner\nany = JobRunner(name={name!r})\n")
    (place / "app.py").rename(place / "later.py")
    assert load().name == "wsgi"
    (place / "later.py").rename(place / "app.py")
    assert load().name == "app"
    write(place / "pyproject.toml", "[tool.jobrunner]\napp = 'from_project:any'\n")
    assert load().name == "from_project"
    monkeypatch.setenv("FLASK_APP", "from_flask")
    assert load().name == "from_flask"
    monkeypatch.setenv("JOBRUNNER_APP", "from_environment")
    assert load().name == "from_environment"


@pytest.mark.parametrize(
    ("text", "words", "line"),
    [
        ("import os\n\nimport flask_mail_that_is_missing\n", "ModuleNotFoundError: No module named 'flask_mail_that_is_missing'", 3),
        ("x = 1\ndef broken(:\n", "SyntaxError: invalid syntax", 2),
        ("import sys\nsys.exit('no licence')\n", "SystemExit: no licence", 2),
        ("\n\n\nraise RuntimeError('boom')\n", "RuntimeError: boom", 4),
        ("import json\njson.loads('{')\n", "JSONDecodeError", 2),
        ("class E(BaseException):\n    def __str__(self): raise ValueError\nraise E\n", "E: (no message)", 3),
        ("def create_app():\n    return 1 / 0\n", "ZeroDivisionError", 2),
    ],
)
def test_a_failing_import_says_what_and_where(place, text, words, line):
    """One line with the error and the application's own file and line; the original error is the cause."""
    write(place / "broken_app.py", text)
    with pytest.raises(AppImportError) as caught:
        load("broken_app")
    assert str(caught.value).startswith('could not import app "broken_app": ')
    assert words in str(caught.value)
    assert str(caught.value).endswith(f"(broken_app.py:{line})")
    assert caught.value.__cause__ is not None


def test_the_source_of_a_default_is_said(place, monkeypatch):
    """When the name came from the environment, the message says from which variable."""
    monkeypatch.setenv("FLASK_APP", "nowhere_to_be_found")
    with pytest.raises(AppImportError, match="from FLASK_APP"):
        load()


@pytest.mark.parametrize(
    ("text", "spec", "words"),
    [
        ("x = 1\n", "app", "has no JobRunner"),
        ("from flask import Flask\napp = Flask(__name__)\n", "app", "has no JobRunner"),
        ("from flask import Flask\napp = Flask(__name__)\n", "app:app", "has no JobRunner"),
        ("x = 1\n", "app:nope", "has no 'nope'"),
        ("x = 1\n", "app:x", "has no JobRunner"),
        (FACTORY, "app:create_app(open('x'))", "plain literals"),
        (PLAIN + "more = JobRunner()\n", "app", "several JobRunners: jobs and more"),
    ],
)
def test_an_app_without_jobrunner_is_said(place, text, spec, words):
    """What was imported but does not lead to one JobRunner is refused with what is missing."""
    write(place / "app.py", text)
    with pytest.raises(AppImportError) as caught:
        load(spec)
    assert words in str(caught.value)


def test_nothing_to_load_is_said(place):
    """With no specification and no usual file the message lists the places that were tried."""
    with pytest.raises(AppImportError, match=r"no --app, JOBRUNNER_APP"):
        load()
    with pytest.raises(AppImportError, match="there is no file"):
        load("missing.py")


def test_the_jobrunner_of_an_app_is_found():
    """`find_jobrunner` takes a Flask app or a JobRunner, and refuses anything else."""
    app = Flask("shop")
    with pytest.raises(ConfigurationError, match="has no JobRunner"):
        find_jobrunner(app)
    jobs = JobRunner(app)
    assert find_jobrunner(app) is find_jobrunner(jobs) is jobs
    with pytest.raises(ConfigurationError):
        JobRunner(app)
