"""Owns running the shop of `examples/` in any of its versions: the commands of its guide, requests, and what is in the database then.

It must not know in which way a version works in the background, beyond the command that does.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shlex
import shutil
import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.support.waiting import wait_until
from tests.support.webservers import PATIENCE, embedded_workers, python_processes, serving
from tests.support.workers import rows

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tests.support.webservers import WebServer

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
LEASE = ("--lease", "4s")  # for who waits for what a killed worker has left; an embedded worker has 30 s
NO_WORKER = {"JOBRUNNER_NO_EMBEDDED_WORKER": "1"}
BRIDGE = "python -m examples.message_queue.bridge"
STEPS = "jobrunner --app examples.celery.steps:app work celery,default"


class Way(NamedTuple):
    """One of the four ways, by the commands of its guide: what works in the background beside the web server, before and after."""

    name: str
    before: str = ""
    after: str = ""
    drain: str = ""

    def version(self, when: str) -> Version:
        """The shop before or after the move."""
        return Version(self.name, when, self.before if when == "before" else self.after)


class Version(NamedTuple):
    """One file of `examples/`, and the command that works in the background for it."""

    way: str
    when: str
    worker: str

    @property
    def module(self) -> str:
        """What is imported."""
        return f"examples.{self.way}.{self.when}"

    @property
    def init(self) -> str:
        """Makes the tables."""
        return f"flask --app {self.module} init-db"

    @property
    def web(self) -> str:
        """Serves."""
        return f"flask --app {self.module} run"


WAYS = {
    way.name: way
    for way in (
        Way("threads", drain="jobrunner --app examples.threads.after work --drain"),
        Way(
            "flask_executor",
            after="jobrunner --app examples.flask_executor.after work",
            drain="jobrunner --app examples.flask_executor.after work --drain",
        ),
        Way(
            "celery",
            before="celery -A examples.celery.before:celery_app worker",
            after="jobrunner --app examples.celery.after:celery_app work celery",
            drain="jobrunner --app examples.celery.after:celery_app work celery --drain",
        ),
        Way(
            "message_queue",
            before="python -m examples.message_queue.before",
            after="python -m examples.message_queue.after",
            drain="python -m examples.message_queue.after",
        ),
    )
}


@dataclass
class Shop:
    """A shop on one database, whose versions may run one after the other or side by side.

    Attributes:
        dsn: the database, with our schema.
        home: where its processes run, in a copy of the examples, as a reader runs them in a checkout; each test has one of its own.
        environment: of all of them, beside the database.
        of_before: what the versions before the move find besides.
    """

    dsn: str
    home: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    of_before: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shutil.copytree(EXAMPLES, self.home / "examples", ignore=shutil.ignore_patterns("__pycache__"))

    @contextlib.contextmanager
    def running(self, command: str, *options: str, **environment: str) -> Iterator[WebServer]:
        """A command of a guide, with further options; it and all that it has started are killed at the end."""
        name, *words = shlex.split(command)
        arguments = words if name == "python" else ["-m", name, *words]
        database = self.dsn.replace("postgresql://", "postgresql+psycopg://", 1)
        shared = {"DATABASE_URL": database, "SHOP_SECONDS_PER_LINE": "0", **self.environment}
        wanted = {**shared, **(self.of_before if ".before" in command else {}), **environment}
        with serving(self.home, *arguments, *options, env=wanted, app=None) as started:
            yield started

    def make_tables(self, version: Version) -> None:
        """By the guide's command."""
        with self.running(version.init) as command:
            assert command.process.wait(PATIENCE) == 0, command.text

    @contextlib.contextmanager
    def open(self, version: Version, **environment: str) -> Iterator[WebServer]:
        """The web server, and the command that works in the background."""
        lease = LEASE if version.worker.startswith("jobrunner") else ()
        with contextlib.ExitStack() as stack:
            if version.worker:
                stack.enter_context(self.running(version.worker, *lease, **environment))
            yield stack.enter_context(self.running(version.web, "--port", "0", **environment))

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """What a query gives."""
        return rows(self.dsn, query)

    def kill(self) -> None:
        """Kill -9, at once, every process of the shop that runs."""
        for pid in {*python_processes(self.home), *(worker.pid for worker in embedded_workers(self.home))}:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not python_processes(self.home), timeout=PATIENCE, what="every process to be gone")


def ask(server: WebServer, method: str, path: str, data: object = None, headers: Mapping[str, str] | None = None) -> tuple[int, Any]:
    """The status and the JSON of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
    try:
        connection.request(method, path, body=json.dumps(data), headers={"Content-Type": "application/json", **(headers or {})})
        response = connection.getresponse()
        text = response.read()
    finally:
        connection.close()
    assert response.status < http.HTTPStatus.INTERNAL_SERVER_ERROR, f"{text!r}\n{server.text}"
    return response.status, json.loads(text)


def place(server: WebServer, reference: str, email: str, lines: list[list[Any]]) -> int:
    """Place an order. Returns its number."""
    status, order = ask(server, "POST", "/orders", {"reference": reference, "email": email, "lines": lines})
    assert (status, list(order)) == (http.HTTPStatus.ACCEPTED, ["id"])
    return int(order["id"])


def look(server: WebServer, order_id: int) -> dict[str, Any]:
    """What the shop says of an order."""
    status, order = ask(server, "GET", f"/orders/{order_id}")
    assert status == http.HTTPStatus.OK
    return dict(order)
