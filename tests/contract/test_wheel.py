"""The published files: sdist, the wheel made from it, and that wheel beside a user's own `webapp` and `migrations`."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

from tests.support.commands import run, write_app

ROOT = Path(__file__).resolve().parents[2]
HOSTILE = "raise RuntimeError('this package belongs to the user; Jobrunner must not import it')\n"
INSTALL_SECONDS = 600  # a slow mirror

ROUTES = """
import json, sys
from jobrunner.web import create_app
app = create_app()
rules = [rule.rule for rule in app.url_map.iter_rules()]
print(json.dumps({"rules": rules, "loaded": sorted(name for name in sys.modules if name.split(".")[0] in ("webapp", "migrations"))}))
"""


@dataclass(frozen=True)
class Built:
    """What `python -m build` made."""

    sdist: Path
    wheel: Path

    @property
    def names(self) -> set[str]:
        """The files in the wheel."""
        with zipfile.ZipFile(self.wheel) as archive:
            return set(archive.namelist())


@dataclass(frozen=True)
class Installed:
    """The wheel in an environment of its own, and a user's project that has packages of the same names as our directories."""

    bin: Path
    home: Path


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Built:
    """The sdist of the checkout, and the wheel built from that sdist alone."""
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, ROOT, cwd=out, timeout=INSTALL_SECONDS)
    return Built(next(out.glob("*.tar.gz")), next(out.glob("*.whl")))


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory) -> Installed:
    """The wheel, installed with its own dependencies into an empty environment."""
    top = tmp_path_factory.mktemp("installed")
    run(sys.executable, "-m", "venv", top / "venv", cwd=top)
    pip = [top / "venv/bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    run(*pip, f"{built.wheel}[embedded]", cwd=top, timeout=INSTALL_SECONDS)
    home = write_app(top / "shop")
    for package in ("webapp", "migrations"):
        (home / package).mkdir()
        (home / package / "__init__.py").write_text(HOSTILE)
        (home / package / "env.py").write_text(HOSTILE)
    return Installed(top / "venv/bin", home)


def tracked(folder: str) -> set[str]:
    """The files under a folder that belong to the project: git's list, or in an unpacked sdist simply all."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", folder], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode == 0 and listed.stdout:
        return {name for name in listed.stdout.splitlines() if (ROOT / name).exists()}
    return {str(path.relative_to(ROOT)) for path in (ROOT / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts}


def test_the_wheel_holds_one_package(built):
    """Nothing but `jobrunner` and its metadata reaches site-packages."""
    assert {name.split("/")[0] for name in built.names} == {"jobrunner", "jobrunner_pg-0.1.0.dist-info"}


@pytest.mark.parametrize(
    ("folder", "inside"), [("jobrunner", "jobrunner"), ("migrations", "jobrunner/migrations"), ("webapp", "jobrunner/webapp")]
)
def test_the_wheel_holds_every_file(built, folder, inside):
    """SQL, templates, static files, migrations, the typing marker: what is in the checkout is in the wheel, and nothing compiled."""
    expected = {inside + name.removeprefix(folder) for name in tracked(folder)}
    assert expected
    assert expected <= built.names
    assert not [name for name in built.names if name.endswith((".pyc", ".pyo"))]


def test_the_sdist_can_be_worked_on(built):
    """Tests, docs, tools and the Makefile are in the sdist; environments and caches are not."""
    with tarfile.open(built.sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {"Makefile", "pyproject.toml", "README.md", "LICENSE", "alembic.ini", "tests/conftest.py", "tools/wheel_hook.py", ".ci/run"}
    assert wanted <= names
    assert (tracked("tests") | tracked("docs") | tracked("tools")) <= names
    assert not [name for name in names if name.startswith((".venv", ".matrix", ".jobrunner", ".git/")) or "__pycache__" in name]


def test_metadata(built):
    """The command, Flask's command group and the typing marker are declared; no dependency has an upper bound but PostgreSQL itself and Kombu."""
    with zipfile.ZipFile(built.wheel) as archive:
        metadata = archive.read("jobrunner_pg-0.1.0.dist-info/METADATA").decode()
        entries = archive.read("jobrunner_pg-0.1.0.dist-info/entry_points.txt").decode()
    assert "jobrunner = jobrunner.cli:main" in entries
    assert "jobs = jobrunner.flask:jobs_group" in entries
    required = [line.removeprefix("Requires-Dist: ") for line in metadata.splitlines() if line.startswith("Requires-Dist: ")]
    bounded = [line.partition("<")[0] for line in required if "<" in line and "-postgres" not in line]
    assert bounded == ["kombu"], "which a transport knows from inside"


def test_upgrade_twice_and_a_job_end_to_end(installed, empty_dsn):
    """Installed beside hostile packages: the schema is made once, a job is enqueued over HTTP, run by a worker, and leaves its result."""
    command = installed.bin / "jobrunner"
    for _ in range(2):
        run(command, "db", "upgrade", cwd=installed.home, dsn=empty_dsn)
    run(command, "db", "check", cwd=installed.home, dsn=empty_dsn)
    request = "from app import app; print(app.test_client().post('/add/40/2').json['id'])"
    job_id = int(run(installed.bin / "python", "-c", request, cwd=installed.home, dsn=empty_dsn).stdout)

    run(command, "work", "--drain", "--app", "app", cwd=installed.home, dsn=empty_dsn)

    with psycopg.connect(empty_dsn) as connection:
        assert connection.execute("SELECT id, state, result FROM jobrunner.v_jobs").fetchall() == [(job_id, "succeeded", 42)]


def test_the_web_application_is_the_packaged_one(installed, empty_dsn):
    """`jobrunner.web:create_app()` has routes, from the package's own webapp; the user's is never loaded."""
    run(installed.bin / "jobrunner", "db", "upgrade", cwd=installed.home, dsn=empty_dsn)
    found = json.loads(run(installed.bin / "python", "-c", ROUTES, cwd=installed.home, dsn=empty_dsn).stdout.splitlines()[-1])
    assert len(found["rules"]) > 1
    assert found["loaded"] == []


def test_flask_finds_the_command_group(installed, empty_dsn):
    """`flask jobs` exists in an installed environment."""
    help_text = run(installed.bin / "flask", "--app", "app", "jobs", "--help", cwd=installed.home, dsn=empty_dsn).stdout
    assert "work" in help_text
