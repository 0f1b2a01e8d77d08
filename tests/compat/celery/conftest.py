"""Fixtures for the Celery facade: apps of their own, and modules that are loaded as a worker loads them."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from jobrunner import testing
from jobrunner.compat.celery import Celery, _state, signals
from jobrunner.compat.celery.utils.dispatch import Signal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

APPS = Path(__file__).parents[2] / "support" / "celery_apps"


def rows(connection: Any, columns: str) -> list[Any]:
    """Columns of all jobs, in the order in which they were sent."""
    return list(connection.execute(f"SELECT {columns} FROM jobrunner.v_jobs ORDER BY id").fetchall())


@pytest.fixture(autouse=True)
def _apart(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test has a process-wide state of its own: no app, no shared task, no receiver of another one."""
    for name in ("_default_app", "_on_finalize"):
        monkeypatch.setattr(_state, name, None if name == "_default_app" else {})
    before = set(_state.active_apps())
    token = _state._current.set(None)
    receivers = {signal: dict(signal._receivers) for signal in vars(signals).values() if isinstance(signal, Signal)}
    yield
    _state._current.reset(token)
    for signal, known in receivers.items():
        signal._receivers = known
    for app in set(_state.active_apps()) - before:
        app.close()


@pytest.fixture
def app(dsn: str) -> Celery:
    """An app on the test's database, named `shop`."""
    return Celery("shop", broker=dsn)


@pytest.fixture
def run(app: Celery) -> Callable[..., Any]:
    """Runs what is due, retries and scheduled tasks included, in this process, until nothing is."""

    def drain(*, later: bool = True) -> Any:
        app.finalize()
        with testing.Jobs(app.jobs, session=None) as helper:
            return helper.drain(with_scheduled=later, raise_errors=False)

    return drain


@pytest.fixture
def load(dsn: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Any]]:
    """Import a module of `tests/support/celery_apps` by the name that it has in a worker, on the test's database."""
    monkeypatch.setenv("JOBRUNNER_DSN", dsn)
    monkeypatch.syspath_prepend(str(APPS))
    loaded = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - loaded:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(APPS)):
            del sys.modules[name]
