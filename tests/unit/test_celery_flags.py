"""The flags of `celery worker` become those of `jobrunner work`."""

from __future__ import annotations

import socket

import pytest

from jobrunner.cli.celery_flags import IGNORED, REFUSED, AppFacts, file_name, node_name, refuse, translate
from jobrunner.cli.failures import Code, CommandError
from jobrunner.worker import default_slots

HOST = socket.gethostname()
FACTS = AppFacts("shop.work:app", ("celery",))
TAIL = ["--name", f"celery@{HOST}", "--grace", "1w"]


def native(given=None, **facts):
    """The native command line of some flags."""
    return translate(given or {}, FACTS._replace(**facts)).arguments


def test_nothing_given():
    """The app's queues, its default name, and a warm shutdown that waits."""
    assert native() == ["--app", "shop.work:app", "work", "celery", *TAIL]
    assert native(queues=()) == ["--app", "shop.work:app", "work", *TAIL]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"concurrency": "4"}, ["-c", "4"]),
        ({"concurrency": "auto"}, []),
        ({"concurrency": "0"}, []),
        ({"pool": "prefork", "concurrency": "2"}, ["-c", "2"]),
        ({"pool": "processes", "concurrency": "2"}, ["-c", "2"]),
        ({"pool": "threads", "concurrency": "8"}, ["--threads", "8"]),
        ({"pool": "threads"}, ["--threads", str(default_slots())]),
        ({"pool": "solo", "concurrency": "8"}, ["-c", "1"]),
        ({"autoscale": (10, 3)}, ["-c", "10"]),
        ({"autoscale": (3, 10)}, ["-c", "10"]),
        ({"autoscale": (10,), "concurrency": "2"}, ["-c", "10"]),
        ({"max_tasks_per_child": 100}, ["--max-jobs-per-child", "100"]),
        ({"max_memory_per_child": 200_000}, ["--max-memory-per-child", "200000KiB"]),
    ],
)
def test_slots_and_children(given, expected):
    """Processes, threads, one at a time, the upper bound of autoscaling, and what replaces a child."""
    assert native(given) == ["--app", "shop.work:app", "work", "celery", *expected, *TAIL]


@pytest.mark.parametrize(
    ("settings", "given", "expected"),
    [
        ({"worker_concurrency": 6}, {}, ["-c", "6"]),
        ({"worker_concurrency": 6}, {"concurrency": "2"}, ["-c", "2"]),
        ({"worker_pool": "threads", "worker_concurrency": 6}, {}, ["--threads", "6"]),
        ({"worker_pool": "threads"}, {"pool": "solo"}, ["-c", "1"]),
        ({"worker_max_tasks_per_child": 9, "worker_max_memory_per_child": 20_000}, {}, ["--max-jobs-per-child", "9", "--max-memory-per-child", "20000KiB"]),
        ({"worker_max_tasks_per_child": 9}, {"max_tasks_per_child": 3}, ["--max-jobs-per-child", "3"]),
        ({"worker_concurrency": None, "worker_pool": None}, {}, []),
    ],
)
def test_what_is_not_given_comes_from_the_configuration(settings, given, expected):
    """As in Celery, a flag goes before the setting."""
    assert native(given, settings=settings) == ["--app", "shop.work:app", "work", "celery", *expected, *TAIL]


@pytest.mark.parametrize(
    ("given", "queues", "expected"),
    [
        ({"queues": ("a", "b")}, ("celery",), "a,b"),
        ({"queues": ("a", "a")}, (), "a"),
        ({}, ("x", "y"), "x,y"),
        ({"exclude_queues": ("x",)}, ("x", "y", "z"), "y,z"),
        ({"queues": ("a", "b"), "exclude_queues": ("b",)}, (), "a"),
    ],
)
def test_queues(given, queues, expected):
    """Those that are given, else the app's, without the ones that are left out."""
    assert native(given, queues=queues)[3] == expected


@pytest.mark.parametrize(
    ("level", "switch"), [("DEBUG", ["-v"]), ("INFO", []), ("WARNING", []), ("ERROR", ["-q"]), ("CRITICAL", ["-q"]), (None, [])]
)
def test_levels(level, switch):
    """Of the worker's own log by a switch, of what tasks log by the variable that the facade reads."""
    found = translate({"level": level}, FACTS)
    assert found.arguments == [*switch, "--app", "shop.work:app", "work", "celery", *TAIL]
    assert found.environ == ({"JOBRUNNER_CELERY_LOGLEVEL": level} if level else {})


@pytest.mark.parametrize(
    ("given", "settings", "environ", "grace", "soft"),
    [
        ({}, {}, None, "1w", 0),
        ({"grace": "20s"}, {}, None, "20s", 0),
        ({}, {"worker_soft_shutdown_timeout": 12.5}, None, "1w", 12.5),
        ({}, {"worker_soft_shutdown_timeout": 12.5}, "SIGQUIT", "12.5s", 12.5),
        ({}, {}, "SIGQUIT", "0s", 0),
        ({"grace": "5s"}, {"worker_soft_shutdown_timeout": 12.5}, "SIGQUIT", "5s", 12.5),
    ],
)
def test_shutdown(monkeypatch, given, settings, environ, grace, soft):
    """Warm waits; the soft time-out is what SIGQUIT leaves, and SIGTERM where Celery's REMAP_SIGTERM makes it a SIGQUIT."""
    monkeypatch.delenv("REMAP_SIGTERM", raising=False)
    if environ:
        monkeypatch.setenv("REMAP_SIGTERM", environ)
    found = translate(given, FACTS._replace(settings=settings))
    assert found.arguments[-2:] == ["--grace", grace]
    assert found.soft == soft


@pytest.mark.parametrize(
    ("given", "facts", "words"),
    [
        ({"max_memory_per_child": 200}, {}, "200 KiB, less than a child holds"),
        ({"exclude_queues": ("a",)}, {"queues": ()}, "the app declares none"),
        ({"exclude_queues": ("celery",)}, {}, "leaves out every queue"),
        ({"queues": ("a:4",)}, {}, "'a:4' cannot be served"),
        ({}, {"settings": {"worker_pool": "gevent"}}, "worker_pool of the app's configuration is 'gevent'"),
    ],
)
def test_what_makes_no_sense_is_refused(given, facts, words):
    """With the value and what to write instead."""
    with pytest.raises(CommandError) as refusal:
        native(given, **facts)
    assert words in str(refusal.value)
    assert refusal.value.code is Code.USAGE


@pytest.mark.parametrize("name", IGNORED)
def test_what_makes_no_difference_is_noticed(name):
    """One line for each ignored flag, and the same command line as without it."""
    found = translate({name: True}, FACTS)
    assert found.ignored == [IGNORED[name]]
    assert found.arguments == native()


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_there_is_refused(name):
    """The message names the flag and says what to do instead."""
    with pytest.raises(CommandError) as refusal:
        refuse({name: "x"})
    assert str(refusal.value).startswith(f"not possible: {REFUSED[name][0]}: ")
    refuse({name: None})


def test_everything_that_is_refused_is_said_at_once():
    """Nobody has to start a worker five times to learn of five flags."""
    with pytest.raises(CommandError) as refusal:
        refuse({"beat": True, "detach": True, "pool": "eventlet", "pool_start_method": "spawn"})
    assert str(refusal.value).startswith("not possible: -B: schedules")
    assert [line.split()[1].rstrip(":") for line in refusal.value.hint.splitlines()] == ["-D", "--pool-start-method", "-P"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, f"celery@{HOST}"),
        ("w1@%h", f"w1@{HOST}"),
        ("w1@box.example.com", "w1@box.example.com"),
        ("box", "celery@box"),
        ("w1@", f"w1@{HOST}"),
        ("%n@%d", f"{HOST.partition('.')[0]}@{HOST.partition('.')[2]}"),
    ],
)
def test_names_of_workers(given, expected):
    """As Celery makes them of -n."""
    assert node_name(given) == expected


def test_names_of_files():
    """%h, %n, %d and %p are replaced; there is one log for all children."""
    node = "w1@box.example.com"
    assert file_name("/var/log/%n%I.log", node) == "/var/log/w1.log"
    assert file_name("/run/%p-%i.pid", node) == f"/run/{node}-0.pid"
    assert file_name("/x/%h.%d", node) == "/x/box.example.com.example.com"
