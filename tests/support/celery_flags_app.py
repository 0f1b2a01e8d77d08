"""Owns an application for the tests of `jobrunner celery-worker`: an app of the shape that `celery -A` looks for, over a JobRunner.

It must not import Celery, nor the facade for it: the command goes by the class's name and by what `conf` says.
"""

from __future__ import annotations

APP = '''
import pathlib
import time
from types import SimpleNamespace

from jobrunner import JobRunner, current_job


class Celery(JobRunner):
    """Named as the class that `-A` looks for."""

    def __init__(self, **settings):
        super().__init__()
        self.conf = SimpleNamespace(task_default_queue="celery", task_queues=None, **settings)


print("the app is imported")
app = Celery()


@app.task(queue="celery")
def note(path: str):
    pathlib.Path(path).write_text(str(current_job().attempt))


@app.task(queue="celery", max_attempts=1)
def hold(started: str, release: str):
    pathlib.Path(started).touch()
    while not pathlib.Path(release).exists():
        time.sleep(0.01)
'''
