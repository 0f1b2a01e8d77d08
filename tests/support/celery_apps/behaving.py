"""An app whose tasks crash, run too long, are stopped, and note what happened to them and around them."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import time
from pathlib import Path

from jobrunner.compat.celery import Celery, signals
from jobrunner.compat.celery.exceptions import SoftTimeLimitExceeded
from jobrunner.compat.celery.utils.log import get_task_logger
from tests.support.waiting import wait_until

celery = Celery("behaving", broker="redis://:hunter2@nowhere")
celery.conf.update(task_default_rate_limit=None, worker_prefetch_multiplier=1, beat_schedule={}, SECRET_KEY="swordfish")
logger = get_task_logger(__name__)
if os.environ.get("BEHAVING_UNLIMITED"):
    celery.conf.worker_disable_rate_limits = True
if os.environ.get("BEHAVING_PRINTS"):
    celery.conf.worker_redirect_stdouts = False
match os.environ.get("BEHAVING_FORMAT"):
    case "own":
        celery.conf.update(worker_task_log_format="%(task_name)s says %(message)s", worker_log_format="rest %(message)s")
    case "none":
        celery.conf.worker_hijack_root_logger = False
if os.environ.get("BEHAVING_BEAT"):
    celery.conf.beat_schedule = {"every": {"task": "behaving.add", "schedule": 30.0}}


def note(*words):
    with (Path(os.environ["BEHAVING_DIR"]) / "notes").open("a") as file:
        file.write(" ".join(map(str, words)) + "\n")


@celery.task
def add(a, b):
    logger.info("adding")
    return a + b


@celery.task
def speak():
    print("said", "in parts")
    print("half a line", end="", file=sys.stderr)
    logging.getLogger("of_somebody").warning("logged")


@celery.task(rate_limit="1/h")
def hourly():
    return None


@celery.task(rate_limit="10/m")
def limited():
    return None


@celery.task
def crash():
    note("crash began")
    os.kill(os.getpid(), signal.SIGKILL)


@celery.task(acks_late=True)
def crash_once():
    note("crash_once began")
    marker = Path(os.environ["BEHAVING_DIR"]) / "crashed"
    if not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "survived"


@celery.task(time_limit=1)
def endless():
    wait_until(lambda: False, timeout=60, what="the limit")


def _until_softened():
    try:
        wait_until(lambda: False, timeout=60, what="the limit")
    except SoftTimeLimitExceeded:
        return "cleaned up"


@celery.task(soft_time_limit=3)
def soft():
    return _until_softened()


@celery.task
def unlimited():
    return _until_softened()


@celery.task(time_limit=60)
def own_limits():
    began = time.monotonic()
    wait_until(lambda: time.monotonic() - began > 2, timeout=60, what="more than the worker's limit")
    return "took its time"


def _until_stopped(name):
    note(f"{name} began")
    wait_until(lambda: False, timeout=60, what="the worker to be stopped")


@celery.task
def once():
    _until_stopped("once")


@celery.task(acks_late=True)
def again():
    if not (Path(os.environ["BEHAVING_DIR"]) / "second").exists():
        _until_stopped("again")
    return "ran again"


@celery.task
def stubborn():
    note("stubborn began")
    while True:
        with contextlib.suppress(BaseException):  # a task that does not let itself be stopped
            wait_until(lambda: False, timeout=60, what="the end")


@celery.task(bind=True, acks_late=True, max_retries=1)
def dies_after_retry(self):
    note("dies_after_retry", self.request.retries)
    if not self.request.retries:
        raise self.retry(countdown=3600)
    return "done"


@signals.task_retry.connect
def die_after_retry(sender, **kwargs):
    if sender.name == "behaving.dies_after_retry":
        os.kill(os.getpid(), signal.SIGKILL)  # the retry stands in the row, and the worker has not heard of the end


@celery.task
def stopped_early():
    return "ran"


@signals.task_prerun.connect
def before_the_body(sender, **kwargs):
    if sender.name == "behaving.stopped_early" and not (Path(os.environ["BEHAVING_DIR"]) / "second").exists():
        _until_stopped("stopped_early")


if os.environ.get("BEHAVING_SENDS"):

    @signals.worker_ready.connect
    def send_one(**kwargs):
        add.apply_async((1, 1), queue="elsewhere")


@celery.task(bind=True)
def hostname(self):
    return self.request.hostname


def _remember(name):
    def receive(sender=None, **named):
        worker = named.get("instance", sender)  # as Celery's documentation has it: sender.app, instance.app
        if name.startswith(("worker_init", "worker_ready", "worker_shutdown", "celeryd_")):
            note("worker of", name, worker.app.main, worker.hostname.partition("@")[0])
        note("signal", name, *sorted(set(named) - {"signal"}))

    return receive


for _name in ("worker_init", "worker_ready", "worker_shutdown", "worker_process_init", "worker_process_shutdown", "celeryd_init",
              "celeryd_after_setup", "after_setup_logger", "after_setup_task_logger", "import_modules", "task_prerun", "task_success",
              "task_postrun"):  # fmt: skip
    getattr(signals, _name).connect(_remember(_name), weak=False)
signals.beat_init.connect(_remember("beat_init"), weak=False)

if os.environ.get("BEHAVING_LOGGING"):

    @signals.setup_logging.connect
    def on_setup_logging(loglevel, logfile, format, colorize, **kwargs):  # noqa: A002
        logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="own %(message)s")
