"""Wiring B: the module that the worker is pointed at."""

from __future__ import annotations

from wired_factory import create_app

flask_app = create_app()
celery_app = flask_app.extensions["celery"]
