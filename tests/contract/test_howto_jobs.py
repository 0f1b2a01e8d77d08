"""The examples of the how-to pages about jobs run as they are printed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask_sqlalchemy import SQLAlchemy

from jobrunner.settings import parse_dsn
from tests.support.attempts import Attempts, Notes
from tests.support.documents import blocks

PAGES = Path(__file__).resolve().parents[2] / "docs" / "how-to"


def example(page: str, **names: Any) -> dict[str, Any]:
    """What the first Python block of a page defines, in which some names are known already."""
    [code, *_] = blocks((PAGES / page).read_text(), "python")
    namespace: dict[str, Any] = {"__name__": "example", **names}
    exec(compile(code, page, "exec", dont_inherit=True), namespace)
    return namespace


@pytest.fixture
def orders(connection):
    connection.execute("CREATE TABLE orders (id bigint, total integer, settled_at timestamptz)")
    connection.execute("CREATE TABLE ledger (order_id bigint, amount integer)")
    connection.execute("INSERT INTO orders VALUES (4711, 30)")
    yield
    connection.execute("DROP TABLE orders, ledger")


def test_transactional_jobs(dsn, connection, orders):
    """The transactional example settles its order once, with its receipt enqueued."""
    app = Flask("shop")
    app.config |= {"SQLALCHEMY_DATABASE_URI": parse_dsn(dsn, "test").sqlalchemy_url, "JOBRUNNER_WAKEUPS": "0"}
    db = SQLAlchemy(app)
    with app.app_context():
        names = example("transactional-jobs.md", app=app, db=db)
        db.session.commit()
    attempts = Attempts(names["jobs"], dsn)
    assert attempts.run()[2] == "done"
    assert connection.execute("SELECT order_id, amount FROM ledger").fetchall() == [(4711, 30)]
    assert connection.execute("SELECT task, args FROM jobrunner.jobs").fetchall() == [("send_receipt", {"order_id": 4711})]
    with app.app_context():
        db.engine.dispose()
    attempts.close()


def test_long_jobs(dsn):
    """The long example goes through its pages with progress and checkpoints, and begins behind the last one."""
    built: list[int] = []
    names = example("long-jobs.md", rebuild_page=built.append)
    names["jobs"].use_dsn(dsn)
    names["rebuild"].enqueue(3)
    attempts = Attempts(names["jobs"], dsn)
    voice = Notes()
    job = attempts.claim()
    assert attempts.run(job, voice)[2] == "ok"
    assert built == [0, 1, 2]
    assert voice.heard[-2:] == [(1.0, "page 3/3", None), (None, None, "3")]
    attempts.run(job._replace(checkpoint="2"), voice)
    assert built == [0, 1, 2, 2]
    attempts.close()
