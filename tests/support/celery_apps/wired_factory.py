"""Wiring B: an app factory, a base class that pushes the app context, settings out of one key of the config."""

from __future__ import annotations

from flask import Flask, request

from jobrunner.compat.celery import Celery, Task
from jobrunner.compat.celery.result import AsyncResult


def create_app() -> Flask:
    app = Flask(__name__)
    app.config.from_mapping(
        GREETING="hello",
        CELERY={"broker_url": "redis://localhost", "result_backend": "redis://localhost", "task_ignore_result": True},
    )
    app.config.from_prefixed_env()
    celery_init_app(app)

    import wired_tasks

    @app.post("/add")
    def start_add() -> dict[str, object]:
        result = wired_tasks.add.delay(request.form.get("a", type=int), request.form.get("b", type=int))
        return {"result_id": result.id}

    @app.post("/process")
    def start_process() -> dict[str, object]:
        return {"result_id": wired_tasks.process.delay(total=request.form.get("total", type=int)).id}

    @app.get("/result/<result_id>")
    def result(result_id: str) -> dict[str, object]:
        found = AsyncResult(result_id)
        ready = found.ready()
        return {"ready": ready, "successful": found.successful() if ready else None, "value": found.get() if ready else found.result}

    return app


def celery_init_app(app: Flask) -> Celery:
    class FlaskTask(Task):
        def __call__(self, *args: object, **kwargs: object) -> object:
            with app.app_context():
                return self.run(*args, **kwargs)

    celery_app = Celery(app.name, task_cls=FlaskTask)
    celery_app.config_from_object(app.config["CELERY"])
    celery_app.set_default()
    app.extensions["celery"] = celery_app
    return celery_app
