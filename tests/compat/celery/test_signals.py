"""Signals reach their receivers as Celery's do."""

# ruff: noqa: ARG002, ARG005  receivers take whatever comes
from __future__ import annotations

import gc
from pathlib import Path

import pytest

from jobrunner.compat.celery import Celery, signals
from jobrunner.compat.celery.utils.dispatch import Signal


def test_a_receiver_gets_signal_sender_and_arguments_by_keyword():
    """Connected by a call or a decorator, of all senders or of one; a sender may be named by text."""
    signal = Signal({"a"}, name="s")
    seen: list[object] = []

    @signal.connect
    def everybody(**named):
        seen.append(("everybody", named["sender"], named["a"], named["signal"] is signal))

    @signal.connect(sender="tasks.add")
    def one(sender=None, a=None, **kwargs):
        seen.append(("one", sender, a))

    signal.send("tasks.add", a=1)
    signal.send(sender=None, a=2)
    assert seen == [("everybody", "tasks.add", 1, True), ("one", "tasks.add", 1), ("everybody", None, 2, True)]


def test_a_task_that_is_named_as_sender_is_not_made_for_it():
    """It is made when it is needed, with the settings of then; only its own signals are heard."""
    app = Celery("shop", broker="redis://nowhere")
    seen = []

    @app.task(name="add")
    def add(a, b):
        return a + b

    @app.task(name="other")
    def other():
        return None

    @signals.task_success.connect(sender=add)
    def receive(sender, result, **kwargs):
        seen.append((sender.name, result))

    assert not add.__evaluated__()
    app.conf.update(task_always_eager=True, task_time_limit=5)
    add.delay(1, 2)
    other.delay()
    assert seen == [("add", 3)]
    assert add.time_limit == 5


def test_a_receiver_that_nobody_holds_is_forgotten():
    """Weak by default, bound methods too; `weak=False` keeps it."""
    signal, seen = Signal(name="s"), []

    class Receiver:
        def receive(self, **kwargs):
            seen.append("method")

    receiver = Receiver()
    signal.connect(receiver.receive)
    signal.connect(lambda **kwargs: seen.append("weak"))
    signal.connect(lambda **kwargs: seen.append("strong"), weak=False)
    gc.collect()
    signal.send(None)
    assert seen == ["method", "strong"]
    del receiver
    gc.collect()
    signal.send(None)
    assert seen == ["method", "strong", "strong"]


def test_an_error_of_a_receiver_is_logged_and_given_back(caplog):
    """The others are called all the same, and the sender goes on."""
    signal = Signal(name="s")
    error = LookupError("gone")

    def bad(**kwargs):
        raise error

    def good(**kwargs):
        return 1

    signal.connect(bad)
    signal.connect(good)
    assert signal.send(None) == [(bad, error), (good, 1)]
    assert "raised: LookupError('gone')" in caplog.text


def test_receivers_are_connected_once_and_can_be_disconnected():
    """The same function twice, or the same dispatch_uid, is one receiver."""
    signal = Signal(name="s")

    def first(**kwargs):
        return 1

    def second(**kwargs):
        return 2

    for receiver in (first, first, second):
        signal.connect(receiver, dispatch_uid="one" if receiver is not first else None)
    signal.connect(first, dispatch_uid="one")
    assert [value for _, value in signal.send(None)] == [1, 2]
    assert signal.disconnect(first)
    assert not signal.disconnect(first)
    assert [value for _, value in signal.send(None)] == [2]


def test_a_receiver_has_to_take_keywords():
    """Else a new argument of a signal would break it."""
    with pytest.raises(ValueError, match="must accept keyword arguments"):
        Signal(name="s").connect(lambda sender: None)


def test_a_signal_is_sent_or_the_worker_says_that_it_is_not():
    """Else a receiver would wait for it in silence."""
    package = Path(signals.__file__).parent
    sources = "".join(path.read_text() for path in package.rglob("*.py"))
    found = {name: signal for name, signal in vars(signals).items() if isinstance(signal, Signal)}
    never = {name for name, signal in found.items() if signal in signals.NEVER_SENT}
    assert never == {name for name in found if f"signals.{name}.send(" not in sources}


def test_the_names_that_integrations_connect_to_are_there():
    """Those that Sentry, OpenTelemetry and others hang on, with the arguments they read."""
    for name in ("before_task_publish", "after_task_publish", "task_prerun", "task_postrun", "task_failure", "task_retry", "task_success",
                 "task_revoked", "worker_init", "worker_ready", "worker_shutdown", "worker_process_init", "worker_process_shutdown",
                 "setup_logging", "after_setup_logger", "after_setup_task_logger", "beat_init", "celeryd_init", "celeryd_after_setup",
                 "import_modules"):  # fmt: skip
        assert getattr(signals, name).name == name
    assert {"headers", "body", "routing_key"} <= signals.before_task_publish.providing_args
    assert {"task_id", "exception", "args", "kwargs", "traceback", "einfo"} == signals.task_failure.providing_args
