"""`jobs.background`: functions that are no tasks run as jobs; what no other process can have is refused at the call, with what to pass."""

from __future__ import annotations

import io
import random
import re
import threading
from datetime import date
from decimal import Decimal
from email.message import EmailMessage
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask, current_app, g, request
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from werkzeug.datastructures import FileStorage

from jobrunner import InvalidPayload, JobRunner
from jobrunner.calls import FunctionRefused
from jobrunner.settings import parse_dsn
from jobrunner.travelling import advice
from tests.support.cli import Program
from tests.support.waiting import wait_until
from tests.support.workers import rows

EXTENSIONS = """
from jobrunner import JobRunner

jobs = JobRunner()
"""
MAILING = """
from extensions import jobs


@jobs.task
def remind():
    pass


def send(name):
    return f"to {name}"
"""
REPORTS = """
def build(number):
    return [number]
"""
APP = """
from flask import Flask, current_app

import mailing
from extensions import jobs

app = Flask(__name__)
jobs.init_app(app)


def where(*parts, **named):
    return current_app.name, parts, named


async def later(word):
    return word


def spoil():
    raise LookupError("nobody")


if __name__ == "__main__":
    from datetime import date
    from decimal import Decimal

    import reports

    for job in (
        jobs.background(where, 1, (2, 3), {4}, b"5", day=date(2026, 11, 26), price=Decimal("1.50")),
        jobs.background(mailing.send, "ann"),
        jobs.background(reports.build, 7),
        jobs.background(later, "now"),
        jobs.background(spoil),
    ):
        print(job.id)
"""


class Base(DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)


def helper(*_args: object, **_named: object) -> None:
    """At the top of a module, with no decorator."""


CALLED: list[int] = []


def note(number: int) -> None:
    """Called here, or by nobody."""
    CALLED.append(number)


app = Flask(__name__)
jobs = JobRunner(app, dsn="postgresql:///nowhere")


class Mailer:
    def send(self) -> None: ...


def nested():
    def inside() -> None: ...

    return inside


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (app, r"is the application.*flask\.current_app in the function"),
        (current_app, "is a stand-in.*pass the id"),
        (request, "is a stand-in.*pass the id"),
        (g, "is a stand-in.*pass the id"),
        (EmailMessage(), "is a message object.*recipient, subject, ids"),
        (User(id=1), "is a database object.*pass the id, and load the object"),
        (Session(), "is a connection to a database.*db.session in the function"),
        (io.StringIO(), "is an open file.*pass its path"),
        (FileStorage(), "is an uploaded file.*save it, and pass the path"),
        (threading.Lock(), "threads of this process only.*a row's lock"),
        ((number for number in (1, 2)), "only once.*pass a list"),
        (object(), "cannot travel to another process.*pass an id"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else "",
)
@pytest.mark.parametrize("within", [lambda value: value, lambda value: {"deep": [value]}], ids=["itself", "within"])
def test_what_stays_here_is_refused(value, said, within):
    """The message names the argument and the place in it, what it is, and what to pass instead; nothing is asked of a stand-in."""
    with pytest.raises(InvalidPayload) as caught:
        jobs.background(helper, 1, user=within(value))
    assert "user" in str(caught.value)
    assert re.search(said, f"{caught.value} {caught.value.hint}", re.DOTALL), f"{caught.value} {caught.value.hint}"


def test_a_request_in_a_request_is_refused(connection):
    """Inside a request the stand-ins stand for something, and the things themselves are refused as well."""
    with app.test_request_context("/"):
        stand_ins: list[Any] = [request, current_app, g]
        for value in [*stand_ins, *(each._get_current_object() for each in stand_ins)]:
            with pytest.raises(InvalidPayload, match="value"):
                jobs.background(helper, value=value)
    assert connection.execute("SELECT count(*) FROM jobrunner.jobs").fetchone() == (0,)


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda: None, "is a lambda"),
        (nested(), "inside another function"),
        (Mailer().send, "is a method of an object"),
        (Mailer, "is a class"),
        (Path.cwd, "method|may not run"),
        (sa.create_engine, "may not run as jobs"),
        (print, "may not run|allows|module"),
        (partial(nested(), 1), "inside another function"),
        ("helper", "is not callable"),
    ],
)
def test_what_no_worker_could_find_is_refused(function, said):
    """The message says what is wrong with the function, and the hint what to do."""
    with pytest.raises(FunctionRefused, match=said) as caught:
        jobs.background(function)
    assert caught.value.hint


def test_plain_data_is_nobodys_advice():
    """What travels is not on the list, and a class is known by its ancestors."""
    for value in (1, "text", b"bytes", [1], {"a": 1}, (1,), {1}, Decimal(1), None, Path("/"), User(id=1)):
        assert advice(value) is None
    assert advice(type("Shop", (Flask,), {})("shop")) is advice(app)


def test_functions_run_in_a_real_worker(tmp_path, dsn):
    """Of the app's own module, of a module with a task, of an allowed one; in an app context; what goes in and comes out keeps its type."""
    for name, text in {"app": APP, "extensions": EXTENSIONS, "mailing": MAILING, "reports": REPORTS}.items():
        (tmp_path / f"{name}.py").write_text(text)
    allowed = {"JOBRUNNER_ALLOWED_MODULES": "reports"}
    ids = [int(line) for line in Program(tmp_path, dsn, ("app.py",))(env=allowed).lines()]
    Program(tmp_path, dsn)("work", "--drain", env=allowed)
    owner = JobRunner(dsn=dsn)
    results = [owner.job(number).result() for number in ids[:4]]
    assert results[0] == ("app", (1, (2, 3), {4}, b"5"), {"day": date(2026, 11, 26), "price": Decimal("1.50")})
    assert results[1:] == ["to ann", [7], "now"]
    owner.close()
    [(state, attempts, error)] = rows(dsn, f"SELECT state, max_attempts, error_type FROM jobrunner.v_jobs WHERE id = {ids[4]}")
    assert state in {"retrying", "queued"}
    assert (attempts, error) == (5, "LookupError")


@pytest.mark.parametrize("share", [0, 1])
def test_a_share_of_the_calls(dsn, connection, share):
    """The function of `docs/migrate/threads.md` that lets a setting decide: the same call goes to a thread, or becomes a job."""
    guide = (Path(__file__).parents[2] / "docs" / "migrate" / "threads.md").read_text()
    [code] = [part.split("```")[0] for part in guide.split("```python\n") if "SHARE_OF_JOBS" in part]
    own = Flask(__name__)
    own.config["SHARE_OF_JOBS"] = share
    runner = JobRunner(own, dsn=dsn)
    inside: dict[str, Any] = {"random": random, "Thread": threading.Thread, "app": own, "jobs": runner}
    exec(code, inside)
    called = len(CALLED)
    inside["in_background"](note, 1)
    wait_until(lambda: len(CALLED) == called + 1 - share, timeout=30, what="the thread")
    written = [] if not share else [({"function": f"{__name__}:note", "args": [1]},)]
    assert connection.execute("SELECT args FROM jobrunner.jobs").fetchall() == written
    runner.close()


def test_it_joins_the_transaction(dsn, connection):
    """With a default session the call is part of the caller's transaction."""
    engine = sa.create_engine(parse_dsn(dsn, "test").sqlalchemy_url)
    own = Flask(__name__)
    with Session(engine) as session:
        runner = JobRunner(own, dsn=dsn, session=session)
        runner.background(helper, 1)
        assert connection.execute("SELECT count(*) FROM jobrunner.jobs").fetchone() == (0,)
        session.commit()
        assert connection.execute("SELECT task FROM jobrunner.jobs").fetchone() == ("jobrunner.call",)
    engine.dispose()
    runner.close()
