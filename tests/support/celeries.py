"""Owns real Celery processes for tests: workers of `tests.support.celery_shop`, and the same application inside of the test."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
from celery import Celery

from tests.support.waiting import wait_until
from tests.support.workers import Ledger

if TYPE_CHECKING:
    from collections.abc import Iterator

PATIENCE = 90  # seconds for what takes a few on a machine that does nothing else
MODULE = "tests.support.celery_shop"
ADD, TOTAL = f"{MODULE}.add", f"{MODULE}.total"
ROOT = Path(__file__).resolve().parents[2]


def url_of(dsn: str) -> str:
    """The broker's address for a database."""
    return "jobrunner" + dsn.removeprefix("postgresql")


class Shop:
    """The application on one database: where its messages and ledger are, its workers, and itself.

    Args:
        dsn: the database.
        directory: for logs and the ledger.
        settings: of Celery.
    """

    def __init__(self, dsn: str, directory: Path, **settings: Any) -> None:
        self.dsn = dsn
        self.settings = settings
        self.ledger = Ledger(directory / "ledger")
        self.app = Celery("shop", broker=url_of(dsn), backend="jobrunner" + dsn.removeprefix("postgresql"), set_as_current=False)
        self.app.conf.update(**settings)

    def close(self) -> None:
        """Close the connections of this process."""
        self.app.close()
        self.app.backend.close()

    @property
    def environment(self) -> dict[str, str]:
        """What a process of the application needs."""
        own = {"SHOP_BROKER": url_of(self.dsn), "SHOP_RESULTS": url_of(self.dsn), "SHOP_LEDGER": str(self.ledger.path)}
        return {**os.environ, **own, "SHOP_SETTINGS": json.dumps(self.settings)}

    def send(self, task: str, *arguments: Any, **options: Any) -> Any:
        """Send a task by its name; gives Celery's AsyncResult."""
        return self.app.send_task(f"{MODULE}.{task}", arguments, **options)

    def command(self, *words: str) -> str:
        """Run a `celery` command and give what it says."""
        command = [sys.executable, "-m", "celery", "-A", MODULE, *words]
        done = subprocess.run(command, env=self.environment, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """Rows of a query in the database."""
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            return connection.execute(query).fetchall()

    def wait_until_empty(self) -> None:
        """Wait until no task is left with the broker."""
        wait_until(lambda: self.rows("SELECT 1 FROM jobrunner.broker_messages WHERE task IS NOT NULL") == [], timeout=PATIENCE, what="no task left")


class CeleryWorker:
    """One `celery worker`, with children of its own; the leader of a process group."""

    def __init__(self, shop: Shop, name: str, *options: str) -> None:
        self.name = f"{name}@here"
        self.log = shop.ledger.path.with_name(f"{name}.log")
        command = [sys.executable, "-m", "celery", "-A", MODULE, "worker", "-n", self.name, "-l", "INFO", *options]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, env=shop.environment, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def wait_until_ready(self) -> None:
        """Wait until it consumes."""
        wait_until(self._is_ready, timeout=PATIENCE, what=f"{self.name} to be ready")

    def _is_ready(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        return f"{self.name} ready." in self.log.read_text()

    def kill(self) -> None:
        """SIGKILL to it and its children, as a machine that is gone."""
        self.signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> int:
        """A warm shutdown: it ends what it runs. Gives the exit code."""
        self.process.terminate()
        return self.process.wait(PATIENCE)

    def signal(self, number: int) -> None:
        """A signal to it and its children."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)


@contextlib.contextmanager
def celery_worker(shop: Shop, name: str, *options: str) -> Iterator[CeleryWorker]:
    """A worker that is ready, and gone at the end."""
    worker = CeleryWorker(shop, name, *options)
    try:
        worker.wait_until_ready()
        yield worker
    finally:
        worker.kill()
