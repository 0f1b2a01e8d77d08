"""Wiring B: tasks of a module that does not know its app."""

from __future__ import annotations

from flask import current_app

from jobrunner.compat.celery import Task, shared_task


@shared_task(ignore_result=False)
def add(a: int, b: int) -> int:
    return a + b


@shared_task()
def block() -> None:
    return None


@shared_task(bind=True, ignore_result=False)
def process(self: Task, total: int) -> object:
    """Reads the Flask config, which needs the context that the base class pushes."""
    return {"total": total, "greeting": current_app.config["GREETING"], "id": self.request.id}
