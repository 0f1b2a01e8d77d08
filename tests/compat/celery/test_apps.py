"""How apps, their tasks and the worker find each other."""

from __future__ import annotations

import subprocess
import sys
import threading
import typing
from typing import Any, ClassVar

import pytest

from jobrunner import testing
from jobrunner.compat.celery import Celery, shared_task
from jobrunner.compat.celery.exceptions import DuplicateTaskNameWarning, Unsupported
from jobrunner.compat.celery.worker import lines_of
from tests.compat.celery.conftest import APPS


def test_shared_tasks_are_those_of_every_app(dsn):
    """A task that was shared before its apps existed, or after, is registered in each."""

    @shared_task(name="shared")
    def shared(a):
        return a

    first = Celery("first", broker=dsn)
    assert shared.delay(1).app is first
    second = Celery("second", broker=dsn, set_as_current=False)
    assert "shared" in second.tasks

    @shared_task(name="later")
    def later():
        return None

    assert "later" in first.tasks
    assert "later" in second.tasks


def test_a_task_that_is_shared_twice_is_refused(dsn):
    """It would look for the task that is to be made of it; one that is an app's own already may be shared."""
    with pytest.raises(TypeError, match="more than once"):

        @shared_task(name="twice")
        @shared_task
        def twice():
            return None

    app = Celery("shop", broker=dsn, task_always_eager=True)

    @shared_task
    @app.task
    def once(a):
        return a

    assert once.delay(1).get() == 1


def test_a_name_that_is_taken_is_warned_of_where_it_is_given(dsn):
    """Two functions, of which the first counts; a class that takes a task's place; once for each name, and at the line that did it."""
    app = Celery("shop", broker=dsn)

    def make(number):
        @app.task(name="count")
        def count():
            return number

        return count

    first, second = make(1), make(2)
    assert first() == 1
    with pytest.warns(DuplicateTaskNameWarning, match="make.<locals>.count, which counts; not registered is") as warned:
        assert second() == 1

    class Count(app.Task):  # type: ignore[misc, name-defined]
        name = "sum"

        def run(self):
            return 3

    class Other(Count):
        def run(self):
            return 4

    app.register_task(Count())
    with pytest.warns(DuplicateTaskNameWarning, match="Count, which is replaced by .*Other") as replaced:
        app.register_task(Other())
    assert app.tasks["sum"]() == 4
    assert {warning.filename for warning in (*warned, *replaced)} == {__file__}
    app.register_task(Count())


@pytest.mark.parametrize("by", ["class", "object"])
def test_a_task_that_is_put_into_the_registry_is_the_workers_too(dsn, by):
    """`app.tasks.register`, as code of Celery 3 and 4 has it: its retries and its job are those of `app.register_task`."""
    app = Celery("shop", broker=dsn)

    class Count(app.Task):  # type: ignore[misc, name-defined]
        name = "shop.count"
        autoretry_for = (ValueError,)
        retry_kwargs: ClassVar[dict[str, int]] = {"max_retries": 2, "countdown": 0}

        def run(self, number):
            if self.request.retries < 2:
                raise ValueError("not yet")
            return number

    with pytest.raises(app.tasks.NotRegistered):
        app.tasks["shop.count"]
    app.tasks.register(Count if by == "class" else Count())
    sent = app.send_task("shop.count", (5,))
    with testing.Jobs(app.jobs, session=None) as helper:
        helper.drain(with_scheduled=True, raise_errors=False)
    assert sent.get(timeout=60) == 5


def test_install_makes_import_celery_mean_the_facade(tmp_path, dsn):
    """Opt-in, in a process of its own: code that says `import celery` runs unchanged, submodules are the same objects."""
    import subprocess
    import sys

    code = (
        "from jobrunner.compat.celery import install; install()\n"
        "import celery, celery.result, jobrunner.compat.celery as ours\n"
        "from celery.utils.log import get_task_logger\n"
        "from celery.exceptions import Retry\n"
        "from celery.signals import task_prerun\n"
        "from celery.app.task import Task\n"
        "from celery.app.control import Control, Inspect\n"
        "assert celery is ours and task_prerun is ours.signals.task_prerun and Task is ours.Task\n"
        "assert celery.result.AsyncResult.__module__ == 'jobrunner.compat.celery.result'\n"
        "print('fine')\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False, cwd=APPS.parents[2])
    assert (done.stdout, done.stderr) == ("fine\n", "")


def test_a_worker_is_pointed_at_the_app_by_its_module(load, dsn):
    """The loader finds a Celery app as it finds a JobRunner: by its name, by its module, by the Flask app that holds it."""
    from jobrunner.loading import load as find

    load("wired_named")
    assert "create_task" in find("wired_named:celery").registry
    assert "create_task" in find("wired_named").registry
    factory = load("wired_make_celery")
    assert {"wired_tasks.add", "wired_tasks.block", "wired_tasks.process"} <= set(find("wired_make_celery").registry.names())
    assert factory.celery_app.jobs.app is factory.flask_app


def test_modules_are_discovered_and_one_that_cannot_be_imported_ends_the_start(dsn, tmp_path, monkeypatch):
    """A package without the module, and a module that is no package, are passed over; what the module itself lacks is an error, as in Celery."""
    files = {
        "found_shop/__init__.py": "", "bare_shop/__init__.py": "", "plain_shop.py": "", "broken_shop/__init__.py": "",
        "found_shop/tasks.py": (
            "from jobrunner.compat.celery import shared_task\n\n\n@shared_task(name='discovered')\ndef discovered():\n    return 1\n"
        ),
        "broken_shop/tasks.py": "import nothing_of_that_name\n",
    }  # fmt: skip
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    app = Celery("shop", broker=dsn)
    app.autodiscover_tasks(["found_shop", "bare_shop", "plain_shop"])
    app.import_modules()
    assert "discovered" in app.tasks
    broken = Celery("broken", broker=dsn)
    broken.autodiscover_tasks(["broken_shop"])
    with pytest.raises(ModuleNotFoundError, match="nothing_of_that_name"):
        broken.import_modules()


def test_modules_of_the_settings_are_imported(dsn, tmp_path, monkeypatch):
    """`imports` and `include`, as a list or one name; the settings may be named by an environment variable."""
    for name in ("one_shop", "other_shop", "third_shop"):
        text = f"from jobrunner.compat.celery import shared_task\n\n\n@shared_task(name='of_{name}')\ndef task():\n    return 1\n"
        (tmp_path / f"{name}.py").write_text(text)
    (tmp_path / "shop_settings.py").write_text("imports = ['one_shop', 'other_shop']\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("CELERY_CONFIG_MODULE", "shop_settings")
    app = Celery("shop", broker=dsn, include="third_shop")
    app.config_from_envvar()
    app.import_modules()
    assert {"of_one_shop", "of_other_shop", "of_third_shop"} <= set(app.tasks)


def test_periodic_tasks_that_are_refused_are_in_the_workers_table(dsn):
    """They are added by a signal's receiver, whose error is only logged."""
    app = Celery("shop", broker=dsn)

    @app.on_after_configure.connect
    def set_up(sender, **kwargs):
        sender.add_periodic_task(10.0, sender.signature("shop.count"))

    app.import_modules()
    found = {(line.rating.value, line.what): line.note for line in lines_of(app)}
    assert found["unsupported", "add_periodic_task"].startswith("1 calls: schedules are not there yet")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Worker", "jobrunner celery-worker"), ("WorkController", "jobrunner celery-worker"), ("Beat", "schedules are not there yet"),
        ("GroupResult", "workflows are not there yet"), ("ResultSet", "workflows are not there yet"), ("amqp", "there is no broker"),
        ("loader", "import_modules"), ("log", "signals"), ("steps", "bootsteps"), ("events", "event messages"), ("bugreport", "doctor"),
    ],
)  # fmt: skip
def test_what_an_app_has_not_says_so(name, words):
    """Whatever is asked of it says what to do instead; for `hasattr` it is not there, and a subclass may have one of its own."""
    app = Celery("shop")
    with pytest.raises(Unsupported, match=words) as caught:
        getattr(app, name)
    assert f"app.{name}" in str(caught.value)
    assert not hasattr(app, name)
    assert getattr(type("Own", (Celery,), {name: "own"})("shop"), name) == "own"


@pytest.mark.parametrize("name", ["connection", "connection_or_acquire", "producer_or_acquire"])
def test_an_app_has_no_connections(name):
    """Code that asks a broker whether it is there is told what is asked instead."""
    with pytest.raises(Unsupported, match="there is no broker"):
        getattr(Celery("shop"), name)()


def test_a_task_shows_the_types_and_the_words_of_its_function(dsn):
    """`typing.get_type_hints` and `__doc__`, as frameworks and pages ask for them; not what the class of tasks has."""
    app = Celery("shop", broker=dsn)

    def count(number: int) -> str:
        """Counts."""
        return str(number)

    for task in (app.task(count), shared_task(name="shared.count")(count)):
        assert task.__doc__ == "Counts."
        assert typing.get_type_hints(task) == {"number": int, "return": str}


def test_a_task_whose_limits_contradict_each_other_stops_nobody_else(app, run):
    """Each call of it is a ValueError, as in Celery; the worker starts, and runs the others."""

    @app.task(soft_time_limit=5, time_limit=3)
    def wrong():
        return None

    @app.task
    def right():
        return 1

    with pytest.raises(ValueError, match="soft_time_limit must be less than or equal to time_limit"):
        wrong.delay()
    sent = right.delay()
    run()
    assert sent.get(timeout=60) == 1


def test_two_threads_that_need_a_task_at_once_make_one(dsn):
    """As two first requests of a web server: one object, which is what the worker's registry has too."""
    app = Celery("shop", broker=dsn)
    base: Any = app.Task
    made: list[Any] = []
    seen: list[Any] = []
    asks = threading.Event()

    def ask():
        asks.set()
        seen.append(work._get_current_object())

    class Slow(base):  # type: ignore[misc]
        def __init_subclass__(cls, **kwargs):
            super().__init_subclass__(**kwargs)
            made.append(cls)
            if len(made) == 1:
                other.start()
                asks.wait(60)
                other.join(0.5)  # as long as it could take to make a second one

    @app.task(base=Slow)
    def work():
        return None

    other = threading.Thread(target=ask)
    seen.append(work._get_current_object())
    other.join(60)
    assert len(made) == 1
    assert seen[0] is seen[1] is app.tasks[work.name]


IMPORTED = """
import sys
from jobrunner.compat.celery import Celery, signals
from jobrunner.compat.celery.worker import lines_of
app = Celery("shop")
app.task(name="shop.count")(print)
lines_of(app)
print(sorted({"celery", "kombu", "billiard"} & set(sys.modules)))
"""


def test_neither_celery_nor_kombu_is_needed():
    """The facade imports neither, in a process in which nobody else does."""
    done = subprocess.run([sys.executable, "-c", IMPORTED], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
