"""`jobrunner celery-worker`: Celery's command line finds its app, becomes a native one, and runs with Celery's signals and files."""

from __future__ import annotations

import re
import signal
import socket
import textwrap

import pytest

from tests.support.celery_flags_app import APP
from tests.support.cli import Program
from tests.support.scans import write_tree
from tests.support.waiting import wait_until

NOWHERE = "postgresql://nobody:hunter2@127.0.0.1:1/none"  # a port on which nobody listens: what would run ends at once with 3
HOST = socket.gethostname()


@pytest.fixture
def shop(tmp_path):
    """The program in a directory with an app, and a database that does not answer."""
    write_tree(tmp_path, {"shop/__init__.py": "", "shop/celery.py": APP})
    return Program(tmp_path, NOWHERE)


@pytest.fixture
def live(tmp_path, dsn):
    """The program in a directory with an app, on a database."""
    write_tree(tmp_path, {"shop/__init__.py": "", "shop/celery.py": APP})
    return Program(tmp_path, dsn)


def native(program, *arguments, **options):
    """The native command line that was printed; the database is away, so nothing is started."""
    said = program("celery-worker", *arguments, ok=None, **options)
    assert said.code == 3, said.err
    [line] = re.findall(r"^native: (.*)$", said.err, re.MULTILINE)
    return line


def jobs(program):
    """The jobs by task: state and attempt."""
    return {job["task"]: (job["state"], job["attempt"]) for job in program("jobs", "list", "--json").json["items"]}


@pytest.mark.parametrize(
    "arguments",
    [
        ["-A", "shop", "-l", "info", "-Q", "mail,celery", "-c", "2"],
        ["worker", "-A", "shop", "-linfo", "-Q", "mail,celery", "-c2"],
        ["-A", "shop", "worker", "--loglevel=INFO", "--queues=mail,celery", "--concurrency=2"],
        ["celery", "-A", "shop", "worker", "--loglevel", "info", "--queues", "mail,celery", "--concurrency", "2"],
        ["--app", "shop", "worker", "-l", "INFO", "-Q", "mail,celery", "-c", "2"],
    ],
)
def test_every_order_of_words_is_understood(shop, arguments):
    """As `celery -A app worker …`, as `celery worker -A app …`, and without these words; long and short flags."""
    assert native(shop, *arguments) == f"JOBRUNNER_CELERY_LOGLEVEL=INFO jobrunner --app shop.celery:app work mail,celery -c 2 --name celery@{HOST} --grace 1w"


@pytest.mark.parametrize(
    ("spec", "address"),
    [
        ("shop", "shop.celery:app"),
        ("shop.celery", "shop.celery:app"),
        ("shop.celery:app", "shop.celery:app"),
        ("shop.celery.app", "shop.celery:app"),
        ("named", "named:celery"),
        ("named.celery", "named:celery"),
        ("suspect", "suspect:of_another_name"),
        ("beside", "beside:celery"),
        ("held", "held:web"),
        ("held:queue", "held:web"),
        ("pack.work", "pack.work:queue"),
        ("pack.work:holder.inner", "pack.work:holder.inner"),
    ],
)
def test_the_app_is_found_as_celery_finds_it(shop, spec, address):
    """A module, a package with a module celery, an attribute; in a module `app`, then `celery`, then any instance, never a Flask app.

    A Flask app that holds the one that was found is what the worker is given: its config may name the database.
    """
    made = "from shop.celery import Celery\n"
    write_tree(
        shop.home,
        {
            "named.py": f"{made}celery = Celery()\n",
            "suspect.py": f"{made}of_another_name = Celery()\n",
            "beside.py": f"from flask import Flask\n{made}app = Flask('x')\ncelery = Celery()\n",
            "held.py": f"from flask import Flask, request\n{made}web = Flask('x')\nqueue = web.extensions['celery'] = Celery()\n",
            "pack/__init__.py": "",
            "pack/work.py": f"{made}queue = Celery()\nclass holder:\n    inner = Celery()\n",
        },
    )
    assert f"--app {address} work" in native(shop, "-A", spec)


@pytest.mark.parametrize(
    ("arguments", "environ", "words"),
    [
        ([], {}, ["-A is missing"]),
        (["-A", "nowhere"], {}, ["there is no module 'nowhere'"]),
        (["-A", "shop.nowhere"], {}, ["there is no module 'shop.nowhere'"]),
        (["-A", "shop.celery:nothing"], {}, ["has no 'nothing'", "it has: app"]),
        (["-A", "broken"], {}, ["ZeroDivisionError: division by zero"]),
        (["-A", "needs"], {}, ["No module named 'not_there'"]),
        (["-A", "empty"], {}, ["empty has no app"]),
        (["-A", "theirs"], {}, ["is an app of Celery's own", "jobrunner.compat.celery", "jobrunner migrate-check"]),
        (["-A", "shop", "--app", "other"], {}, ["-A shop and --app other name two apps"]),
        (["beat", "-A", "shop"], {}, ["'beat' is no part of a worker's command line", "schedules"]),
        (["multi", "start", "w1"], {}, ["'multi'", "one command for each worker"]),
        (["-A", "shop", "-B"], {}, ["-B: schedules are not there yet", "cron"]),
        (["-A", "shop", "--time-limit", "30", "--soft-time-limit", "30.5"], {}, ["--soft-time-limit 30.5 is above --time-limit 30"]),
        (["-A", "shop", "--time-limit", "-1"], {}, ["-1"]),
        (["-A", "shop", "-P", "gevent"], {}, ["-P gevent", "--async-slots"]),
        (["-A", "shop", "-D", "--uid", "www"], {}, ["-D: the worker stays in the foreground", "--uid"]),
        (["-A", "shop", "-c", "many"], {}, ["'many' is neither a number nor auto"]),
        (["-A", "shop", "--autoscale", "a,b"], {}, ["'a,b' is not MAX,MIN"]),
        (["-A", "shop", "-l", "loud"], {}, ["'loud' is none of DEBUG"]),
        (["-A", "shop", "--umask", "x"], {}, ["--umask 'x' is not an octal number"]),
        (["-A", "shop", "--of-nobody"], {}, ["--of-nobody"]),
    ],
)
def test_what_is_wrong_is_said(shop, arguments, environ, words):
    """The flag or name, what is wrong with it, what to do; exit 2, and nothing is started."""
    write_tree(
        shop.home,
        {
            "broken.py": "1 / 0\n",
            "needs.py": "import not_there\n",
            "empty.py": "",
            "theirs.py": "class Celery:\n    __module__ = 'celery.app.base'\napp = Celery()\n",
        },
    )
    said = shop("celery-worker", *arguments, env=environ, ok=None)
    assert said.code == 2, said.err
    assert all(word in said.err for word in words), said.err
    assert "native:" not in said.err


def test_what_is_taken_without_effect_is_noticed(shop):
    """A line for each, and none of it in the native command; autoscaling says what it became."""
    said = shop("celery-worker", "-A", "shop", "-E", "-Ofair", "--without-gossip", "--autoscale", "8,2", "-b", "redis://:hunter2@x", ok=None)
    labels = re.findall(r"^(ignored|notice|native): ", said.err, re.MULTILINE)
    assert labels[:6] == ["ignored"] * 4 + ["notice", "native"], said.err
    ignored = re.findall(r"^ignored: (\S+?):? ", said.err, re.MULTILINE)
    assert sorted(ignored) == ["--without-gossip", "-E", "-O", "-b"]
    assert re.search(r"^notice: --autoscale: the worker has 8 slots", said.err, re.MULTILINE)
    assert "-c 8" in said.err
    assert "hunter2" not in said.err


def test_settings_of_the_app_are_gone_by(shop):
    """Queues, concurrency, recycling and the soft shutdown of its configuration."""
    text = "from shop.celery import Celery\napp = Celery(worker_concurrency=3, worker_max_tasks_per_child=9)\napp.conf.task_queues = ['a', 'b', 'c']\n"
    write_tree(shop.home, {"own.py": text})
    assert "work a,c -c 3 --max-jobs-per-child 9" in native(shop, "-A", "own", "-X", "b")


def test_limits_are_passed_on(shop):
    """Seconds, with fractions; 0 is none."""
    line = native(shop, "-A", "shop", "--time-limit=3600", "--soft-time-limit", "12.25")
    assert "work celery --time-limit 3600s --soft-time-limit 12.25s --name" in line
    assert "--time-limit" not in native(shop, "-A", "shop", "--time-limit", "0")
    assert "work celery --soft-time-limit 0.001s --name" in native(shop, "-A", "shop", "--soft-time-limit", "0.001")


@pytest.mark.parametrize("flag", ["--time-limit", "--soft-time-limit"])
def test_a_limit_that_would_be_none_is_refused_by_its_own_name(shop, flag):
    """Less than a millisecond would be `0s` of `work`, which is another command's error."""
    said = shop("celery-worker", "-A", "shop", flag, "0.0004", ok=None)
    assert said.code == 2
    assert flag in said.err
    assert "neither 0, for none, nor 0.001 at least" in said.err
    assert "native:" not in said.err


def test_memory_of_a_child_is_in_kib(shop):
    """As in Celery; a number that can only be meant as MB is refused."""
    assert "--max-memory-per-child 200000KiB" in native(shop, "-A", "shop", "--max-memory-per-child", "200000")
    said = shop("celery-worker", "-A", "shop", "--max-memory-per-child", "200", ok=None)
    assert said.code == 2
    assert "is 200 KiB, less than a child holds" in said.err


def test_the_app_is_found_in_the_environment_and_in_another_directory(shop):
    """CELERY_APP, as for celery itself; --workdir comes first."""
    assert "--app shop.celery:app" in native(shop, env={"CELERY_APP": "shop"})
    (shop.home / "elsewhere").mkdir()
    (shop.home / "shop").rename(shop.home / "elsewhere" / "shop")
    assert "--app shop.celery:app" in native(shop, "-A", "shop", "--workdir", "elsewhere")


def test_flask_has_the_same_command(shop):
    """`flask jobs celery-worker -A …`, beside whatever app Flask itself was given."""
    program = Program(shop.home, NOWHERE, argv=("-m", "flask", "--app", "of_flask", "jobs"))
    assert "--app shop.celery:app work celery" in native(program, "-A", "shop")


def test_a_postgresql_broker_is_the_database(shop):
    """-b names it where nothing else does; the password is not shown."""
    program = Program(shop.home, None)
    said = program("celery-worker", "-A", "shop", "-b", NOWHERE.replace("/none", "/other"), ok=None)
    assert said.code == 3
    assert "127.0.0.1:1/other" in said.err
    assert "hunter2" not in said.err


def test_a_worker_runs_with_its_files(live):
    """The log goes to its file, the pid file is there while it runs and names the process; SIGTERM ends it with 0."""
    (live.home / "w1.pid").write_text("999999999\n")  # of a worker that was killed: no such process
    arguments = ("-A", "shop", "worker", "-c", "1", "-n", "w1@%h", "-f", "%n%I.log", "--pidfile", "%n.pid")
    with live.started("celery-worker", *arguments) as worker:
        worker.wait_for("native: jobrunner --app shop.celery:app work celery -c 1")
        log = live.home / "w1.log"
        wait_until(lambda: log.exists() and "worker started" in log.read_text(), timeout=60, what="the log says so")
        assert (live.home / "w1.pid").read_text() == f"{worker.process.pid}\n"
        [shown] = live("workers", "list", "--json").json["items"]
        assert (shown["name"], shown["pid"], shown["queues"]) == (f"w1@{HOST}", worker.process.pid, ["celery"])
        second = live("celery-worker", *arguments, ok=None)
        assert second.code == 5
        assert f"process {worker.process.pid} runs, and has the pid file w1.pid" in second.err
        assert worker.stop() == 0
    assert not (live.home / "w1.pid").exists()
    assert "worker started" not in worker.err


def test_purge_cancels_what_waits_and_leaves_what_runs(live):
    """Only waiting jobs of the queues that are served; they stay on record. A job that runs elsewhere goes on."""
    started, release = live.home / "started", live.home / "release"
    arguments = textwrap.dedent(f'{{"started": "{started}", "release": "{release}"}}')
    with live.started("--app", "shop.celery:app", "work", "celery", "-c", "1") as first:
        live("--app", "shop.celery:app", "enqueue", "hold", arguments)
        wait_until(started.exists, timeout=60, what="the job runs")
        for queue in ("celery", "celery", "other"):
            live("--app", "shop.celery:app", "enqueue", "note", f'{{"path": "{live.home / "note"}"}}', "--queue", queue, "--in", "1h")
        with live.started("celery-worker", "-A", "shop", "--purge", "-c", "1") as worker:
            worker.wait_for("purged: 2 waiting jobs were cancelled")
            worker.wait_for("worker started")
            assert worker.stop() == 0
        states = [(job["task"], job["queue"], job["state"]) for job in live("jobs", "list", "--json").json["items"]]
        assert sorted(states) == [
            ("hold", "celery", "running"), ("note", "celery", "cancelled"), ("note", "celery", "cancelled"), ("note", "other", "scheduled"),
        ]  # fmt: skip
        release.touch()
        wait_until(lambda: jobs(live)["hold"] == ("succeeded", 1), timeout=60, what="the running job ends as it would have")
        assert first.stop() == 0


def hold(live):
    """Enqueue a job that runs until it is told to end; the paths of its start and its end."""
    started, release = live.home / "started", live.home / "release"
    live("--app", "shop.celery:app", "enqueue", "hold", f'{{"started": "{started}", "release": "{release}"}}')
    return started, release


def test_sigterm_is_a_warm_shutdown(live):
    """A running job is waited for, and ends as if nothing had been; exit 0."""
    started, release = hold(live)
    with live.started("celery-worker", "-A", "shop", "-c", "1") as worker:
        wait_until(started.exists, timeout=60, what="the job runs")
        worker.process.send_signal(signal.SIGTERM)
        worker.wait_for("stopping")
        release.touch()
        assert worker.process.wait(60) == 0
    assert jobs(live) == {"hold": ("succeeded", 1)}


def test_sigquit_is_a_cold_shutdown(live):
    """A running job is given back at once without using up its only attempt."""
    started, _ = hold(live)
    with live.started("celery-worker", "-A", "shop", "-c", "1") as worker:
        wait_until(started.exists, timeout=60, what="the job runs")
        assert worker.stop(signal.SIGQUIT) == 128 + signal.SIGTERM
    assert jobs(live) == {"hold": ("queued", 0)}


def test_a_soft_shutdown_leaves_jobs_their_time(live):
    """With worker_soft_shutdown_timeout a job that ends in time has ended; a second SIGQUIT does not wait for it."""
    source = live.home / "shop" / "celery.py"
    source.write_text(source.read_text().replace("app = Celery()", "app = Celery(worker_soft_shutdown_timeout=600.0)"))
    started, release = hold(live)
    with live.started("celery-worker", "-A", "shop", "-c", "1") as worker:
        wait_until(started.exists, timeout=60, what="the job runs")
        worker.process.send_signal(signal.SIGQUIT)
        worker.wait_for("stopping")
        release.touch()
        assert worker.process.wait(60) == 0
    assert jobs(live) == {"hold": ("succeeded", 1)}
    started.unlink()
    release.unlink()
    hold(live)
    with live.started("celery-worker", "-A", "shop", "-c", "1") as worker:
        wait_until(started.exists, timeout=60, what="the job runs")
        worker.process.send_signal(signal.SIGQUIT)
        worker.wait_for("stopping")
        assert worker.stop(signal.SIGQUIT) == 128 + signal.SIGTERM
