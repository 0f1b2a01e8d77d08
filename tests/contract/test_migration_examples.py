"""The same shop in the four ways, before and after: what it does, what a kill and a rollback leave, and that both run side by side."""

from __future__ import annotations

import json
import re
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from tests.support import amqp
from tests.support.celeries import url_of
from tests.support.documents import blocks
from tests.support.shops import BRIDGE, NO_WORKER, STEPS, WAYS, Shop, Version, ask, look, place
from tests.support.waiting import wait_until
from tests.support.webservers import PATIENCE
from tests.support.workers import states, wait_for_states

pytestmark = pytest.mark.needs("linux")

GUIDES = Path(__file__).resolve().parents[2] / "docs" / "migrate"
PLACEHOLDER = "jobrunner://shop@localhost/shop"  # in the guide of day 0
ORDERS = {
    "A1": ("ana@example.org", [["tea", 2, "4.50"], ["cup", 6, "3.25"], ["pot", 1, "24.90"]]),
    "A2": ("bo@busy.example", [["tea", 1, "4.50"]]),
    "A3": ("cy@down.example", [["pot", 1, "24.90"]]),
}
ANSWERS = {
    "A1": {"receipt": "sent", "invoice": {"net": "53.40", "vat": "10.68", "total": "64.08"}},
    "A2": {"receipt": "sent", "invoice": {"net": "4.50", "vat": "0.90", "total": "5.40"}},
    "A3": {"receipt": "not sent", "invoice": {"net": "24.90", "vat": "4.98", "total": "29.88"}},
}
LETTERS = [
    ("A1", "ana@example.org", True), ("A2", "bo@busy.example", False), ("A2", "bo@busy.example", True),
    ("A3", "cy@down.example", False), ("A3", "cy@down.example", False),
]  # fmt: skip
INVOICES = [("A1", "64.08"), ("A2", "5.40"), ("A3", "29.88")]
SENT = "SELECT reference, recipient, accepted FROM outbox JOIN orders ON orders.id = order_id ORDER BY 1, outbox.id"
WRITTEN = "SELECT reference, (net + vat)::text FROM invoices JOIN orders ON orders.id = order_id ORDER BY 1"
# What one sees while an invoice is made; Flask-Executor's futures know of no progress.
PROGRESS = {"threads": "2 of 3 lines", "flask_executor": "in work", "celery": "2 of 3 lines", "message_queue": "2 of 3 lines"}
IN_WORK = re.compile(r"in work|\d+ of \d+ lines")
REFUSED = (409, {"error": "placed before"})
LONG, LONG_TOTAL = [["tea", 1, "1.00"]] * 20, "24.00"
SLOW = {"SHOP_SECONDS_PER_LINE": "0.3"}
LAST_ID = "SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM jobrunner.jobs_id_seq"
SAID = "%451 down.example takes no mail now%"
MAKING = "SELECT count(*) FROM jobrunner.v_jobs WHERE state = 'running' AND task || args::text LIKE '%invoice%'"


@pytest.fixture
def shop(fresh_dsn, tmp_path):
    """A shop without tables. The Celery of before talks over files, which need no server; pika talks to a broker of the test."""
    for name in ("messages", "control"):
        (tmp_path / name).mkdir()
    folders = {"data_folder_in": f"{tmp_path}/messages", "data_folder_out": f"{tmp_path}/messages", "control_folder": f"{tmp_path}/control"}
    of_before = {
        "FLASK_CELERY__broker_url": "filesystem://",
        "FLASK_CELERY__broker_transport_options": json.dumps(folders),
        "FLASK_CELERY__result_backend": fresh_dsn.replace("postgresql://", "db+postgresql+psycopg://", 1),
    }
    with amqp.broker() as url:
        yield Shop(fresh_dsn, tmp_path, {"AMQP_URL": url}, of_before)


def invoiced(shop):
    """The orders that have an invoice."""
    return [reference for reference, _ in shop.rows(WRITTEN)]


def changed(server, number, invoice):
    """What is shown of an invoice once it is something else."""
    return wait_until(
        lambda: (shown := look(server, number)["invoice"]) != invoice and shown, timeout=PATIENCE, what=f"an invoice after {invoice!r}"
    )


def wait_for_invoices(shop, *references):
    """Wait until these orders have an invoice, and no others."""
    wait_until(lambda: invoiced(shop) == sorted(references), timeout=PATIENCE, what=f"invoices of {references} alone")


def change_addresses(shop):
    """Do to the Celery of before what the guide of day 0 says, with the address of the database that there is."""
    (diff,) = blocks((GUIDES / "celery-broker.md").read_text(), "diff")
    old, new = (line[1:] for line in diff.splitlines())
    file = shop.home / "examples" / "celery" / "before.py"
    assert file.read_text().count(old) == 1
    file.write_text(file.read_text().replace(old, new.replace(PLACEHOLDER, url_of(shop.dsn))))
    shop.of_before = {}


def change_imports(shop):
    """Do to a checkout of before what the guide from Celery says: one command."""
    guide = blocks((GUIDES / "celery.md").read_text(), "console")
    (command,) = (line.removeprefix("$ ").partition("     #")[0] for text in guide for line in text.splitlines() if line.startswith("$ sed"))
    # Without what a hook of git that runs this has in its environment: its files would be those of the checkout.
    script = f'set -e; unset "${{!GIT_@}}"; git init --quiet; git add examples/celery/before.py; {command}'
    subprocess.run(["bash", "-c", script], cwd=shop.home, check=True, timeout=PATIENCE)
    shop.of_before = {}


@pytest.mark.parametrize(
    ("way", "when"),
    [
        *((way, when) for way in WAYS for when in ("before", "after")),
        ("celery", "day 0"),
        pytest.param("celery", "sed", marks=pytest.mark.needs("git")),
    ],
)
def test_one_story(shop, way, when):
    """Receipts go out, one of them at the second try; one can watch an invoice being made; an order that the COMMIT refused never was.

    All of that in the same words, before and after. Day 0 is the Celery of before with the one line changed that its guide shows; sed is
    that with nothing done to it but the guide's one command, and our worker.
    """
    version = WAYS[way].version("after" if when == "after" else "before")
    if when == "day 0":
        change_addresses(shop)
    if when == "sed":
        change_imports(shop)
        version = version._replace(worker=WAYS[way].after.replace(".after", ".before"))
    shop.make_tables(version)
    with shop.open(version, SHOP_SECONDS_PER_LINE="0.5") as server:
        ids = {reference: place(server, reference, *order) for reference, order in ORDERS.items()}
        seen = [look(server, ids["A1"])["invoice"]]
        while not isinstance(seen[-1], dict):
            seen.append(changed(server, ids["A1"], seen[-1]))
        again = ask(server, "POST", "/orders", {"reference": "A1", "email": "eve@example.org", "lines": []})
        wanted = {reference: {"id": ids[reference], **answer} for reference, answer in ANSWERS.items()}
        wait_until(lambda: {reference: look(server, ids[reference]) for reference in ORDERS} == wanted, timeout=PATIENCE, what="the end")
        wait_until(lambda: len(shop.rows(SENT)) == len(LETTERS), timeout=PATIENCE, what="every try to send a receipt")
        if when in {"after", "sed"}:
            wait_for_states(shop.dsn, PATIENCE, succeeded=5, failed=1)
        if version.worker.endswith("message_queue.before"):
            wait_until(lambda: amqp.waiting(shop.environment["AMQP_URL"], "orders.dead") == 1, timeout=PATIENCE, what="a dead letter")
    assert again == REFUSED
    assert shop.rows(SENT) == LETTERS
    assert shop.rows(WRITTEN) == INVOICES
    assert shop.rows("SELECT count(*) FROM orders") == [(3,)]
    progress = seen[:-1]
    assert all(IN_WORK.fullmatch(text) for text in progress)
    assert PROGRESS[way] in progress


@pytest.mark.parametrize("way", WAYS)
def test_a_failure_is_on_record(shop, way):
    """After the move, who never got a receipt is found, with both tries and what the mail server said."""
    version = WAYS[way].version("after")
    shop.make_tables(version)
    with shop.open(version) as server:
        place(server, "A3", *ORDERS["A3"])
        wait_for_states(shop.dsn, PATIENCE, succeeded=1, failed=1)
    assert shop.rows(f"SELECT count(*) FROM jobrunner.v_jobs WHERE state = 'failed' AND error LIKE '{SAID}'") == [(1,)]
    assert shop.rows(f"SELECT count(*) FROM jobrunner.v_attempts WHERE message LIKE '{SAID}'") == [(2,)]


@pytest.mark.parametrize("way", WAYS)
def test_a_kill_loses_nothing(shop, way):
    """Kill -9 of everything, amid the work of one order and before that of another: started again, both come to their end."""
    version = WAYS[way].version("after")
    shop.make_tables(version)
    with shop.open(version, **SLOW) as server:
        ids = [place(server, f"L{number}", f"ana{number}@example.org", LONG) for number in range(2)]
        wait_until(lambda: look(server, ids[0])["receipt"] == "sent", timeout=PATIENCE, what="the first receipt")
        wait_until(lambda: shop.rows(MAKING) > [(0,)], timeout=PATIENCE, what="an invoice in work")
        shop.kill()
    assert invoiced(shop) == []
    assert states(shop.dsn)["running"] > 0
    with shop.open(version) as server:
        wait_for_invoices(shop, "L0", "L1")
        wait_until(lambda: [look(server, number)["receipt"] for number in ids] == ["sent", "sent"], timeout=PATIENCE, what="both receipts")
        assert [look(server, number)["invoice"]["total"] for number in ids] == [LONG_TOTAL] * 2
        wait_for_states(shop.dsn, PATIENCE, succeeded=4)


@pytest.mark.parametrize("way", ["threads", "flask_executor"])
def test_before_a_kill_lost_it(shop, way):
    """What the guides say of the time before: work that a web process had in hand is gone with it, and nobody knows of it."""
    version = WAYS[way].version("before")
    shop.make_tables(version)
    with shop.open(version, **SLOW) as server:
        lost = place(server, "L0", "ana@example.org", LONG)
        wait_until(lambda: look(server, lost)["receipt"] == "sent", timeout=PATIENCE, what="the receipt")
        shop.kill()
    with shop.open(version) as server:
        other = place(server, "L1", "bo@example.org", LONG)
        wait_until(lambda: isinstance(look(server, other)["invoice"], dict), timeout=PATIENCE, what="the invoice of another order")
        assert look(server, lost)["invoice"] in {"in work", "0 of 20 lines"}
    assert invoiced(shop) == ["L1"]


@pytest.mark.parametrize("way", WAYS)
def test_a_rollback_leaves_nothing(shop, way):
    """What an order had enqueued before its COMMIT was refused is not there. With Flask-Executor's interface nothing is enqueued before."""
    version = WAYS[way].version("after")
    shop.make_tables(version)
    with shop.open(version._replace(worker=""), **NO_WORKER) as server:
        place(server, "A1", *ORDERS["A1"])
        ((first,),) = shop.rows(LAST_ID)
        again = ask(server, "POST", "/orders", {"reference": "A1", "email": "eve@example.org", "lines": []})
    ((last,),) = shop.rows(LAST_ID)
    assert again == REFUSED
    assert last - first == (0 if way == "flask_executor" else 2)  # numbers that were given to two jobs, and to no others
    assert states(shop.dsn) == Counter(queued=2)
    assert shop.rows("SELECT reference FROM orders") == [("A1",)]


@pytest.mark.parametrize("way", WAYS)
def test_both_at_once_and_back(shop, way):
    """Both versions serve one database, each does what it was given; then the web server goes back, and a command does the rest."""
    before, after = WAYS[way].version("before"), WAYS[way].version("after")
    shop.make_tables(before)
    with shop.open(before) as old:
        with shop.open(after) as new:
            place(old, "S1", "ana@example.org", LONG)
            place(new, "S2", "bo@example.org", LONG)
            wait_for_invoices(shop, "S1", "S2")
            wait_for_states(shop.dsn, PATIENCE, succeeded=2)
        with shop.open(after._replace(worker=""), **NO_WORKER) as new:
            place(new, "S3", "cy@example.org", LONG)
        place(old, "S4", "di@example.org", LONG)
        wait_for_invoices(shop, "S1", "S2", "S4")
        assert states(shop.dsn) == Counter(succeeded=2, queued=2)
        with shop.running(WAYS[way].drain) as command:
            wait_for_states(shop.dsn, PATIENCE, succeeded=4)
            if "--drain" in WAYS[way].drain:
                assert command.process.wait(PATIENCE) == 0, command.text
        wait_until(lambda: len(shop.rows(SENT)) == 4, timeout=PATIENCE, what="every receipt")
    assert invoiced(shop) == ["S1", "S2", "S3", "S4"]
    assert [accepted for _, _, accepted in shop.rows(SENT)] == [True] * 4


def test_the_bridge(shop):
    """A publisher that still talks to the broker is served by the new consumer, and what waits here is given to the old one."""
    way = WAYS["message_queue"]
    before, after = way.version("before"), way.version("after")
    shop.make_tables(before)
    with shop.open(before._replace(worker="")) as old, shop.running(f"{BRIDGE} forth"), shop.running(after.worker):
        place(old, "B1", "ana@example.org", LONG)
        wait_for_states(shop.dsn, PATIENCE, succeeded=2)
        assert invoiced(shop) == ["B1"]
    with shop.open(after._replace(worker="")) as new:
        place(new, "B2", "bo@example.org", LONG)
    with shop.running(f"{BRIDGE} back"):
        wait_for_states(shop.dsn, PATIENCE, succeeded=4)
    assert amqp.waiting(shop.environment["AMQP_URL"], "orders") == 2
    assert invoiced(shop) == ["B1"]
    with shop.running(before.worker):
        wait_for_invoices(shop, "B1", "B2")


def test_a_share_of_the_calls(shop):
    """On the way from threads: none or all of the calls are jobs, as a setting says, and the receipt is a task with a queue of its own."""
    steps = Version("threads", "steps", "")
    shop.make_tables(steps)
    for share, number in (("0", 0), ("1", 1)):
        with shop.open(steps, SHARE_OF_JOBS=share) as server:
            order = place(server, f"S{share}", "ana@example.org", [["tea", 1, "1.00"]])
            wait_until(lambda: isinstance(look(server, order)["invoice"], dict), timeout=PATIENCE, what="the invoice")  # noqa: B023
            wait_until(lambda: look(server, order)["receipt"] == "sent", timeout=PATIENCE, what="the receipt")  # noqa: B023
            wait_for_states(shop.dsn, PATIENCE, succeeded=2 * number + 1)
    assert shop.rows("SELECT task, queue, max_attempts FROM jobrunner.v_jobs WHERE queue = 'mail'") == [("send_receipt", "mail", 8)] * 2


def test_task_by_task(shop):
    """On the way from Celery: one worker runs native tasks and Celery's, enqueued in one transaction."""
    steps = Version("celery", "steps", STEPS)
    shop.make_tables(steps)
    with shop.open(steps) as server:
        order = place(server, "T1", "bo@busy.example", [["tea", 1, "1.00"]])
        wanted = {"id": order, "receipt": "sent", "invoice": {"net": "1.00", "vat": "0.20", "total": "1.20"}}
        wait_until(lambda: look(server, order) == wanted, timeout=PATIENCE, what="both to be done")
        refused = ask(server, "POST", "/orders", {"reference": "T1", "email": "eve@example.org", "lines": []})
        wait_for_states(shop.dsn, PATIENCE, succeeded=2)
    assert refused == REFUSED
    assert shop.rows("SELECT queue, attempt FROM jobrunner.v_jobs ORDER BY 1") == [("celery", 1), ("default", 2)]


def test_what_a_call_needs_of_the_request_goes_along(shop):
    """From Flask-Executor: what is named of `g` and the request is there in the worker, and what was not there is left out."""
    capture = Version("flask_executor", "capture", "jobrunner --app examples.flask_executor.capture work")
    shop.make_tables(capture)
    headers = {"Host": "acme.example", "X-Request-ID": "r-7"}
    with shop.open(capture) as server:
        status, _ = ask(server, "POST", "/orders", {"reference": "C1", "email": "ana@example.org", "lines": []}, headers)
        wait_until(lambda: shop.rows(SENT), timeout=PATIENCE, what="the letter")
    assert status == 202
    assert shop.rows("SELECT text FROM outbox") == [("acme thanks you for r-7 at /orders",)]


def test_kombu_alone(shop):
    """A program that uses Kombu without Celery names the transport by one import."""
    address = {"BROKER_URL": url_of(shop.dsn)}
    with shop.running("python -m examples.celery.kombu_alone put hello", **address) as put:
        assert put.process.wait(PATIENCE) == 0, put.text
    with shop.running("python -m examples.celery.kombu_alone get", **address) as get:
        assert get.process.wait(PATIENCE) == 0, get.text
        assert get.text == "hello\n"
