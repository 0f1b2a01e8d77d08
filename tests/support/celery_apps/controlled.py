"""An app whose tasks wait for files, so that a test can look at them while they run."""

from __future__ import annotations

import os
from pathlib import Path

from jobrunner.compat.celery import Celery, signals
from tests.support.waiting import wait_until

celery = Celery("controlled")


def _path(name):
    return Path(os.environ["CONTROLLED_DIR"]) / name


@celery.task
def touch(name):
    _path(name).touch()
    return name


@celery.task
def hold(name):
    _path(f"{name}.began").touch()
    wait_until(_path(f"{name}.go").exists, timeout=60, what="the gate to be open")
    return name


@signals.task_revoked.connect
def on_revoked(sender, request, terminated, signum, expired, **kwargs):
    with _path("revoked").open("a") as file:
        file.write(f"{request.id} {terminated} {int(signum or 0)} {expired}\n")
