"""Statement files: what their headers say, how they become statements for psycopg, and that the store passes what they ask for."""

from __future__ import annotations

import re
from contextlib import nullcontext
from datetime import timedelta
from string import Formatter
from unittest.mock import MagicMock

import pytest

from jobrunner import statements
from jobrunner.compat.kombu.broker import Broker, Results
from jobrunner.compat.kombu.envelopes import Envelope
from jobrunner.envelopes import Receipt
from jobrunner.jobs import Ending, Leaving, LogLine, Note, Succeeded, Unsuccessful, Walk, WorkerCounts, WorkerSight
from jobrunner.messagestore import MessageStore
from jobrunner.states import TRANSITIONS, State
from tools.states_doc import headline

NAMES = sorted(statements.names())
READING = {
    "any_lost", "find_due", "has_succeeded", "held_jobs", "job_state", "left_due", "broker_bindings", "broker_get_results", "broker_size",
}  # fmt: skip
WRITES = re.compile(r"\b(INSERT INTO|UPDATE|DELETE FROM)\s+(?!OF\b|SKIP\b)jobrunner\.")
SESSION_BOUND = re.compile(r"pg_advisory_lock|pg_try_advisory_lock\b|\bLISTEN\b|\bNOTIFY\b|pg_notify|\bSET (?:LOCAL|SESSION)\b")
FACTS = ("name", "host", "pid", "kind", "version", "queues", "tasks", "slots")


def header(name):
    """The comment lines that a file begins with."""
    lines = statements.source(name).splitlines()
    length = next(number for number, line in enumerate(lines) if not line.startswith("--"))
    return "\n".join(lines[:length])


@pytest.mark.parametrize("name", NAMES)
def test_the_header_says_what_one_must_know(name):
    """What it does, its parameters, and what it locks or that it writes nothing; what changes a state has a guard and an index."""
    text = header(name)
    assert text.startswith(f"-- {name}: ")
    assert "Parameters: " in text or "Parameters, " in text
    assert ("Writes nothing" in text) == (name in READING)
    assert "Locks: " in text or name in READING
    if name in {transition.name for transition in TRANSITIONS}:
        assert "Guard: " in text
        assert "Index: " in text


@pytest.mark.parametrize("name", NAMES)
def test_the_header_names_every_parameter(name):
    """A parameter that the header does not mention would have to be guessed."""
    words = set(re.findall(r"\w+", header(name)))
    assert statements.parameters(name) <= words


@pytest.mark.parametrize("transition", TRANSITIONS, ids=lambda transition: transition.name)
def test_the_headline_says_what_the_table_says(transition):
    """The first line of a transition's file has the sources and the target of the table."""
    found = headline(transition.name)
    assert {State(word) for word in re.findall(r"[a-z]+", found["sources"]) if word != "or"} == transition.sources
    assert found["target"] == transition.target


@pytest.mark.parametrize("name", NAMES)
def test_a_file_is_one_statement_and_schema_qualified(name):
    """No semicolon, no session command; each table is written with its schema, whatever the search path."""
    body = statements.load(name)
    assert ";" not in body
    assert not re.search(r"\b(?:FROM|JOIN|INTO|UPDATE)\s+(?:ONLY\s+)?(?:jobs|job_history|job_attempts|workers)\b", body)
    assert bool(WRITES.search(body)) == (name not in READING | {"hold", "ensure_partitions", "drop_partitions", "settle_rollups"})


@pytest.mark.parametrize("name", NAMES)
def test_a_file_needs_nothing_that_a_pooler_takes_away(name):
    """No session-level lock, no LISTEN, no SET: each statement stands alone."""
    assert not SESSION_BOUND.search(statements.load(name))


@pytest.mark.parametrize("name", NAMES)
def test_load_turns_psql_variables_into_placeholders(name):
    """The statement is named in front, has none of the comments and a placeholder for each variable; nothing else is a placeholder."""
    body = statements.load(name)
    assert body.startswith(f"/* jobrunner:{name} */ ")
    assert "--" not in body
    assert ":'" not in body
    assert set(re.findall(r"%\((\w+)\)s", body)) == statements.parameters(name)
    assert "%" not in re.sub(r"%\(\w+\)s|%%", "", body)
    assert not [field for _, field, _, _ in Formatter().parse(body.replace("{", "").replace("}", "")) if field]


def test_every_parameter_has_its_type():
    """`:'name'` is text to psql and to the server: without a cast the server would have to guess."""
    bare = {name: re.findall(r":'\w+'(?!::)", re.sub(r"--[^\n]*", "", statements.source(name))) for name in NAMES}
    assert not {name: found for name, found in bare.items() if found}


def test_an_unknown_name_is_an_error():
    """A misspelt name is found at once."""
    with pytest.raises(FileNotFoundError):
        statements.load("vanish")


class Recorder(MessageStore):
    """A store that runs nothing and remembers which parameters each statement was given."""

    def __init__(self):
        self.given: dict[str, set[str]] = {}
        self.connection = MagicMock()  # what the store asks its connection itself

    def transaction(self):
        return nullcontext()

    def _run(self, name, parameters):
        self.given[name] = set(parameters)
        return Rows()


class Rows:
    """An answer of one row to everything."""

    rowcount = 1

    def fetchone(self):
        return (1, "queued")

    def fetchall(self):
        return []


def test_the_store_passes_what_the_files_ask_for(monkeypatch):
    """Each statement is run by some verb of the store, with exactly the parameters that its file has."""
    store, counts, second = Recorder(), WorkerCounts(), timedelta(seconds=1)
    store.find_due([])
    store.claim(1, [], "default", 0, 1)
    with monkeypatch.context() as patch:
        patch.setattr(Rows, "fetchall", lambda _: [(None, 0, None, *[None] * 13)])
        store.claim_ordered(1, [], "default", 0, 1, Walk())
    store.expire(1)
    store.renew(Receipt(1, 1), 1.0)
    store.drop_consumer(1)
    store.redrive("mail", [1])
    store.purge_dead("mail", [1])
    store.finish([Succeeded(1, 1, None, 1, 1, 1.0), *(Unsuccessful(ending, 1, 1) for ending in Ending)])
    store.start([])
    store.register_worker(dict.fromkeys(FACTS), second)
    store.take_slot(dict.fromkeys(FACTS), second, "pool", 1)
    store.heartbeat(1, second, WorkerSight(), counts)
    store.stop_worker(1, Leaving("done"), counts)
    store.set_tasks(1, [])
    store.note([Note(1, 1)])
    store.log([LogLine(1, 1, 1, 20, "shop", "sold", 1.0)])
    store.held_jobs(1)
    store.ensure_partitions(1)
    store.take_turn(1, second)
    store.prune("workers", second, 1)
    store.prune("worker_runs", second, 1)
    store.drop_partitions("job_logs", second, 1, second)
    store.settle_rollups(second, second, 1)
    store.prune("rollup_hours", second, 1)
    with monkeypatch.context() as patch:
        patch.setattr(Rows, "fetchone", lambda _: (1, None))
        store.remains([], 1)
    store.cancel(1)
    store.requeue(1)
    store._illegal(1, "cancel")
    monkeypatch.setattr(Rows, "fetchall", lambda _: [(1, "w", True)])
    store.rescue()
    monkeypatch.setattr(Rows, "fetchone", lambda _: None)
    for verb in (store.cancel, store.requeue):
        with pytest.raises(Exception, match="no job 1"):
            verb(1)
    assert set(store.given) == {name for name in statements.names() if not name.startswith("broker_")}
    assert {name: names for name, names in store.given.items() if names != statements.parameters(name)} == {}


class Counted:
    """A link that runs nothing, answers one row of numbers to everything and remembers the parameters."""

    def __init__(self):
        self.given: dict[str, set[str]] = {}

    def run(self, name, parameters):
        self.given[name] = set(parameters)
        rows: dict[str, list[tuple[int, ...]]] = {"broker_claim": [], "broker_take": [], "broker_bindings": [], "broker_get_results": []}
        return rows.get(name, [(1, 1)] if name in {"broker_rescue", "broker_size"} else [(1,)])


def test_the_broker_passes_what_the_files_ask_for():
    """Each statement of the broker is run by some verb of it, with exactly the parameters that its file has."""
    link, envelope, second = Counted(), Envelope(0, None, None, None, None, "{}"), timedelta(seconds=1)
    broker, results = Broker(link), Results(link)
    broker.publish("e", "k", envelope)
    broker.put("q", envelope)
    broker.claim(1, "q", 1)
    broker.take("q", 1)
    broker.ack([(1, 1)])
    broker.release([(1, 1)])
    broker.reconcile(1, [1])
    broker.join("h", 1, ["q"], second)
    broker.renew([1])
    broker.leave(1)
    broker.declare("q")
    broker.touch(["q"], second)
    broker.bind("e", "k", "q", "direct", None)
    broker.unbind("e")
    broker.bindings()
    broker.size("q")
    broker.purge("q")
    broker.delete("q")
    broker.rescue()
    broker.sweep()
    results.get(["k"])
    results.set("k", b"v", None)
    results.delete(["k"])
    results.count("k", None)
    results.count_part("k", "p", None)
    results.expire("k", None)
    assert set(link.given) == {name for name in statements.names() if name.startswith("broker_")}
    assert {name: names for name, names in link.given.items() if names != statements.parameters(name)} == {}
