"""`migrate-check` finds command lines of Celery, settings and requirements in files that are no Python."""

from __future__ import annotations

import pytest

from tests.support.scans import found, scan_tree


def commands(tmp_path, name, text):
    """What is found in one file."""
    return found(scan_tree(tmp_path, {name: text}), name)


WORKER = ["command celery worker", "worker flag --app", "worker flag --loglevel", "worker flag --concurrency"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("Procfile", "web: gunicorn shop\nworker: celery -A shop worker -l info -c 4\n"),
        ("Procfile.dev", "worker: celery worker -A shop --loglevel=info --concurrency=4\n"),
        ("Makefile", "worker:\n\tpoetry run celery --app=shop worker -l info -c4\n"),
        ("run.sh", "#!/bin/sh\nexec python -m celery -A shop worker -linfo -c 4 &\n"),
        ("start", "#!/usr/bin/env bash\ncelery -A shop worker -l info -c 4\n"),
        ("run.sh", "celery -A shop worker \\\n  --loglevel info \\\n  --concurrency 4\n"),
        ("run.sh", "celery -A shop worker -l info -c 4 && celeryless -B\n"),
        ("run.sh", "bash -c 'celery -A shop worker -l info -c 4' -B\n"),
        ("worker.service", "[Service]\nExecStart=/srv/shop/.venv/bin/celery -A shop worker -l info -c 4\n"),
        ("worker.service.j2", "[Service]\nExecStart={{ venv }}/bin/celery -A shop worker -l info -c 4\n"),
        ("supervisord.conf", "[program:worker]\ncommand=celery -A shop worker -l info -c 4\n"),
        ("Dockerfile", 'CMD ["celery", "-A", "shop", "worker", "-l", "info", "-c", "4"]\n'),
        ("docker-compose.yml", "services:\n  worker:\n    command: celery -A shop worker -l info -c 4\n"),
        ("compose.yaml", "services:\n  worker:\n    command: >\n      celery -A shop worker\n      -l info\n      -c 4\n    restart: always\n"),
        ("k8s.yml", "args:\n  - celery\n  - -A\n  - shop\n  - worker\n  - -l\n  - info\n  - -c\n  - '4'\n"),
        ("k8s.yml", 'command: ["celery"]\nother: celery -A shop worker -l info -c 4\n'),
    ],
)  # fmt: skip
def test_a_worker_is_found_in_every_kind_of_file(tmp_path, name, text):
    """The command and each of its flags, whatever the form: one line, several, a list, quoted, with another program behind it."""
    assert sorted(use.partition(" ")[2] for use in commands(tmp_path, name, text)) == sorted(WORKER)


def test_a_flag_is_found_at_its_place(tmp_path):
    """Line and column are those of the flag, also in a continued line."""
    report = scan_tree(tmp_path, {"run.sh": "cd /srv\ncelery -A shop worker \\\n  --time-limit 30 -B\n"})
    places = {use.what: (use.line, use.column, use.rule.rating.value) for use in report.uses}
    assert places == {
        "command celery worker": (2, 1, "ok"),
        "worker flag --app": (2, 8, "ok"),
        "worker flag --time-limit": (3, 3, "ok"),
        "worker flag --beat": (3, 19, "unsupported"),
    }


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("-P gevent", ["--pool gevent"]),
        ("--pool=eventlet", ["--pool eventlet"]),
        ("-P threads", ["--pool threads"]),
        ("-EB", ["--task-events", "--beat"]),
        ("-Ofair --without-gossip", ["--optimization", "--without-gossip"]),
        ("--autoscale=10,3 --purge", ["--autoscale", "--purge"]),
        ("--of-nobody", ["--of-nobody"]),
    ],
)
def test_flags_are_known_in_all_their_spellings(tmp_path, flags, expected):
    """Short, long, joined to their value or to each other; one that is unknown is said too."""
    lines = commands(tmp_path, "run.sh", f"celery -A a worker {flags}\n")
    assert [use.partition("worker flag ")[2] for use in lines if "flag" in use and "--app" not in use] == expected


@pytest.mark.parametrize("command", ["beat", "flower", "inspect active", "control shutdown", "purge -f", "multi start w1", "call proj.add", "status"])
def test_other_commands_are_found(tmp_path, command):
    """Each subcommand by its name; flags of these are not a worker's."""
    assert commands(tmp_path, "run.sh", f"celery -A proj {command} -l info\n") == [f"1 command celery {command.split()[0]}"]


@pytest.mark.parametrize(
    "text",
    [
        "pip install celery flower\n",
        "systemctl restart celery\n",
        "# celery -A proj worker\n",
        "image: celery:3\n",
        "docker compose up celery worker\n",
        "depends_on:\n  - celery\n  - worker\n",
        "celery:\n  build: .\n",
        "user=celery\n",
        "celeryd -B\n",
    ],
)
def test_the_word_alone_is_no_command(tmp_path, text):
    """Names of packages, services, images and users, and comments."""
    assert commands(tmp_path, "run.sh", text) == []


def test_settings_in_the_environment_are_found(tmp_path):
    """Names of settings in env files, units and compose files; what they are set to is not shown."""
    text = "CELERY_BROKER_URL=redis://:hunter2@x\nexport CELERY_TASK_ALWAYS_EAGER=1\nEXECUTOR_TYPE=thread\nBROKER_URL=x\n"
    assert commands(tmp_path / "a", ".env", text) == ["1 config CELERY_BROKER_URL", "2 config CELERY_TASK_ALWAYS_EAGER", "3 config EXECUTOR_TYPE"]
    with_celery = scan_tree(tmp_path / "b", {".env": text, "w.py": "from celery import Celery\n"})
    assert "4 config BROKER_URL" in found(with_celery, ".env")


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("requirements.txt", "flask\ncelery[redis]>=5.3\nflower==2.0\n", ["celery", "flower"]),
        ("requirements/prod.txt", "celery==5.4  # tasks\n", []),
        ("requirements-dev.in", "celery\nflask-executor\n", ["celery", "flask-executor"]),
        ("pyproject.toml", 'dependencies = [\n  "celery[redis]>=5",\n  "pika",\n  "celeryish",\n]\n', ["celery", "pika"]),
        ("Pipfile", '[packages]\ncelery = "*"\n', ["celery"]),
        ("setup.py", "from setuptools import setup\nsetup(install_requires=['celery>=4', 'kombu'])\n", ["celery", "kombu"]),
    ],
)
def test_requirements_are_found(tmp_path, name, text, expected):
    """Packages in the files that name them, with and without extras and versions."""
    assert [use.partition("requirement ")[2] for use in commands(tmp_path, name, text) if "requirement" in use] == expected


def test_command_lines_in_python_are_found(tmp_path):
    """As lists of words, where subprocess or worker_main gets them."""
    text = """
    import subprocess
    from celery import Celery
    subprocess.Popen(["python", "-m", "celery", "-A", "shop", "worker", "-B"])
    subprocess.run(("celery", "beat"))
    ["celery", "carrots"]
    """
    lines = found(scan_tree(tmp_path, {"code.py": text}))
    assert lines[-4:] == ["3 command celery worker", "3 worker flag --app", "3 worker flag --beat", "4 command celery beat"]
