"""`app.conf` takes settings by every name that Celery has had for them, and refuses what could only be honoured by running code."""

from __future__ import annotations

import importlib
import sys
import threading
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from jobrunner.compat.celery import Celery
from jobrunner.compat.celery.conf import DEFAULTS, OLD_NAMES, SETTINGS, Rating, setting
from jobrunner.compat.celery.exceptions import ImproperlyConfigured
from jobrunner.compat.celery.settings import symbol_by_name


def test_new_and_old_names_are_one_setting():
    """Set by one name, read by the other; the upper-case one works as an item and as an attribute."""
    app = Celery(broker="redis://one")
    app.conf.update(CELERY_TASK_SERIALIZER="json", CELERYD_CONCURRENCY=4, CELERY_DEFAULT_QUEUE="a", CELERY_ENABLE_UTC=False, CELERYBEAT_SCHEDULE={})
    assert (app.conf.task_serializer, app.conf["worker_concurrency"], app.conf.task_default_queue, app.conf.enable_utc) == ("json", 4, "a", False)
    app.conf.task_track_started = True
    assert (app.conf.CELERY_TRACK_STARTED, app.conf["CELERY_TRACK_STARTED"], app.conf.get("BROKER_URL")) == (True, True, "redis://one")


def test_unknown_keys_of_a_flask_config_are_kept_and_mean_nothing():
    """A whole Flask config may be poured in."""
    app = Celery()
    app.conf.update({"SECRET_KEY": "s", "CELERY_BROKER_URL": "redis://x", "TESTING": True})
    assert app.conf["SECRET_KEY"] == "s"
    assert app.conf.broker_url is None
    assert set(app.conf.ones_set()) == set()


@pytest.mark.parametrize("source", ["dict", "object", "module", "attribute"])
def test_settings_come_from_whatever_holds_them(source, monkeypatch):
    """A mapping, an object, a module by name, or what stands in a module."""
    module: Any = ModuleType("wired_config")
    module.task_default_queue = "from-module"
    module.Config = SimpleNamespace(task_default_queue="from-attribute")
    monkeypatch.setitem(sys.modules, "wired_config", module)
    given, wanted = {
        "dict": ({"task_default_queue": "from-dict"}, "from-dict"), "object": (module.Config, "from-attribute"),
        "module": ("wired_config", "from-module"), "attribute": ("wired_config:Config", "from-attribute"),
    }[source]  # fmt: skip
    app = Celery()
    app.config_from_object(given)
    assert app.conf.task_default_queue == wanted


def test_a_namespace_takes_its_prefix_off():
    """`namespace="CELERY"`: CELERY_TASK_ALWAYS_EAGER is task_always_eager, and a key without the prefix is somebody else's."""
    app = Celery()
    app.config_from_object({"CELERY_TASK_ALWAYS_EAGER": True, "CELERY_BROKER_URL": "redis://x"}, namespace="CELERY")
    assert (app.conf.task_always_eager, app.conf.broker_url) == (True, "redis://x")


def test_what_is_set_goes_before_what_is_loaded_and_that_before_defaults():
    """The constructor and assignments, then the source, then `add_defaults`, then Celery's own."""
    app = Celery(task_default_queue="set")
    app.add_defaults({"task_default_queue": "added", "timezone": "Europe/Paris", "task_time_limit": 5})
    app.config_from_object({"task_default_queue": "loaded", "timezone": "Europe/Rome"})
    assert (app.conf.task_default_queue, app.conf.timezone, app.conf.task_time_limit, app.conf.task_serializer) == ("set", "Europe/Rome", 5, "json")


def test_the_environment_goes_before_the_settings_for_addresses(monkeypatch):
    """CELERY_BROKER_URL of the environment is what Celery takes as well."""
    monkeypatch.setenv("CELERY_BROKER_URL", "amqp://env")
    assert Celery(broker="redis://x").conf.broker_url == "amqp://env"


@pytest.mark.parametrize("settings", [{"task_serializer": "pickle"}, {"result_serializer": "yaml"}, {"accept_content": ["pickle"]}])
def test_only_json_is_accepted(settings):
    """The message says why, and what travels; until it is set right."""
    app = Celery(**settings)
    for _ in range(2):  # not only the first time that a setting is read
        with pytest.raises(ImproperlyConfigured, match="typed JSON only"):
            app.conf.task_default_queue  # noqa: B018
    app.conf.update(task_serializer="json", result_serializer="json", accept_content=["json"])
    assert app.conf.task_default_queue == "celery"


def test_a_thread_that_comes_while_the_source_is_read_has_what_it_says():
    """It reads the source itself; else its first task would go to the default queue."""
    app = Celery()
    seen: list[str] = []
    other = threading.Thread(target=lambda: seen.append(app.conf.task_default_queue))

    def load():
        if other.ident is None:
            other.start()
            other.join(60)
        return {"task_default_queue": "loaded"}

    app.conf.source(load, None)
    assert app.conf.task_default_queue == "loaded"
    assert seen == ["loaded"]


def test_a_thread_that_comes_while_receivers_are_told_waits_for_them():
    """They may set something."""
    app = Celery()
    seen: list[str] = []
    asks = threading.Event()

    def ask():
        asks.set()
        seen.append(app.conf.task_default_queue)

    other = threading.Thread(target=ask)

    @app.on_after_configure.connect
    def set_up(sender, **kwargs):
        other.start()
        asks.wait(60)
        other.join(0.5)  # as long as it could take to read one
        sender.conf.task_default_queue = "set"

    assert app.conf.task_default_queue == "set"
    other.join(60)
    assert seen == ["set"]


GATED = """
import the_gate
task_default_queue = "loaded"
the_gate.is_importing.set()
the_gate.is_awaited.wait(60)
the_gate.seen.append(the_gate.app.conf.task_default_queue)
"""


@pytest.mark.parametrize("wanted", ["setting", "task"])
def test_a_module_of_settings_that_asks_the_app_while_others_wait_for_it(tmp_path, monkeypatch, wanted):
    """One thread imports it, and its body asks for a setting; another one needs it meanwhile. Neither holds what the other waits for."""
    (tmp_path / f"gated_{wanted}.py").write_text(GATED)
    monkeypatch.syspath_prepend(str(tmp_path))
    gate: Any = ModuleType("the_gate")
    gate.app, gate.seen, gate.is_importing, gate.is_awaited = Celery("shop"), [], threading.Event(), threading.Event()
    monkeypatch.setitem(sys.modules, "the_gate", gate)
    gate.app.config_from_object(f"gated_{wanted}")
    gate.app.task(name="shop.work")(print)

    def at_the_door(name):
        gate.is_awaited.set()  # whatever this thread holds, it holds now
        return symbol_by_name(name)

    monkeypatch.setattr("jobrunner.compat.celery.settings.symbol_by_name", at_the_door)
    ask = {"setting": lambda: gate.app.conf.task_default_queue, "task": lambda: gate.app.tasks["shop.work"].name}[wanted]
    answers: list[str] = []
    first = threading.Thread(target=importlib.import_module, args=(f"gated_{wanted}",), daemon=True)
    second = threading.Thread(target=lambda: answers.append(ask()), daemon=True)
    first.start()
    assert gate.is_importing.wait(60)
    second.start()
    for one in (first, second):
        one.join(60)
        assert not one.is_alive()
    assert (gate.seen, answers) == (["loaded"], ["loaded" if wanted == "setting" else "shop.work"])


def test_what_a_source_asks_for_while_it_is_read_has_no_answer_there():
    """It gets the default, and does not read the source for ever."""
    app = Celery()
    seen: list[str] = []

    def load():
        seen.append(app.conf.task_default_queue)
        return {"task_default_queue": "loaded"}

    app.conf.source(load, None)
    assert app.conf.task_default_queue == "loaded"
    assert seen == ["celery"]


@pytest.mark.parametrize("signal", ["on_configure", "on_after_configure"])
def test_a_receiver_may_name_another_source(signal):
    """It is read in place of the first, checked like it, and nobody is told once more: the receiver would name it for ever."""
    app = Celery()
    source = {"task_default_queue": "second"}
    told: list[str] = []

    @getattr(app, signal).connect
    def set_up(sender, **kwargs):
        told.append(signal)
        sender.config_from_object(source)

    app.config_from_object({"task_default_queue": "first", "timezone": "Europe/Rome"})
    assert (app.conf.task_default_queue, app.conf.timezone, told) == ("second", DEFAULTS["timezone"], [signal])
    source["task_serializer"] = "pickle"
    app.config_from_object({"task_default_queue": "first"})
    with pytest.raises(ImproperlyConfigured, match="typed JSON only"):
        app.conf.task_default_queue  # noqa: B018


def test_a_call_cannot_be_pickled(app):
    """`serializer="pickle"` of one call is refused before anything is written."""

    @app.task
    def add(a, b):
        return a + b

    with pytest.raises(ImproperlyConfigured, match="whoever could write a row could run code"):
        add.apply_async((1, 2), serializer="pickle")


def test_the_table_of_settings_is_whole():
    """Every setting has a rating and a note, each old name stands for one setting, and the well-known ones are there."""
    assert all(feature.rating in set(Rating) and feature.note for feature in SETTINGS.values())
    assert len(OLD_NAMES) == sum(len(feature.old) for feature in SETTINGS.values())
    for old, new in {
        "BROKER_URL": "broker_url", "CELERY_RESULT_BACKEND": "result_backend", "CELERY_QUEUES": "task_queues", "CELERY_ROUTES": "task_routes",
        "CELERY_TIMEZONE": "timezone", "CELERY_ALWAYS_EAGER": "task_always_eager", "CELERY_ACKS_LATE": "task_acks_late",
        "CELERYD_MAX_TASKS_PER_CHILD": "worker_max_tasks_per_child", "CELERY_TASK_RESULT_EXPIRES": "result_expires",
        "CELERY_EAGER_PROPAGATES_EXCEPTIONS": "task_eager_propagates", "CELERYD_PREFETCH_MULTIPLIER": "worker_prefetch_multiplier",
    }.items():  # fmt: skip
        assert (known := setting(old)) is not None
        assert known.name == new
    assert setting("SECRET_KEY") is None
    assert DEFAULTS["task_default_queue"] == "celery"


def test_a_value_is_never_shown():
    """Addresses hold passwords."""
    assert "hunter2" not in repr(Celery(broker="redis://:hunter2@x").conf)
