"""`jobrunner top` with keys: Textual's own pilot presses them, on a real database, whose rows change."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from typing import TYPE_CHECKING

import psycopg
import pytest
from textual.widgets import DataTable, Input, Static

from jobrunner import migrate
from jobrunner.cli.top.app import Top
from jobrunner.cli.top.dialogs import Confirm, Details, Help
from jobrunner.cli.top.watching import Wanted
from jobrunner.database import Database
from jobrunner.settings import parse_dsn
from jobrunner.states import State
from tests.support.rows import Scene
from tests.support.terminals import ALTERNATE, MAIN, terminal

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from textual.pilot import Pilot

SECONDS = 30
INTERVAL = 0.2


class Screen:
    """The application under a pilot."""

    def __init__(self, top: Top, pilot: Pilot[None]) -> None:
        self.top, self.pilot = top, pilot

    async def until(self, predicate: Callable[[], object], what: str) -> None:
        """Let it run until something is true."""
        deadline = time.monotonic() + SECONDS
        while not predicate():
            assert time.monotonic() < deadline, f"still not: {what}\n{self.text()}"
            await self.pilot.pause(0.02)

    async def press(self, *keys: str) -> None:
        """Press keys, one after the other."""
        await self.pilot.press(*keys)

    async def shows(self, *job_ids: int) -> None:
        """Until the list has these jobs, in this order, and no other."""
        await self.until(lambda: [row.job_id for row in self.top.rows] == list(job_ids), f"the list shows {job_ids}")

    async def says(self, text: str) -> None:
        """Until the line below the list has this."""
        await self.until(lambda: text in self.part("notice"), f"it says {text!r}")

    async def over(self, kind: type) -> None:
        """Until such a screen lies over the list."""
        await self.until(lambda: isinstance(self.top.screen, kind), f"{kind.__name__} is there")

    def part(self, name: str) -> str:
        """The text of a part."""
        return str(self.top.screen_stack[0].query_one(f"#{name}", Static).render())

    def text(self) -> str:
        """What there is to see."""
        return "\n".join([*(self.part(name) for name in ("header", "tabs", "notice")), *(str(row) for row in self.top.rows)])

    @property
    def at(self) -> int | None:
        """The job under the cursor."""
        row = self.top.selected()
        return row.job_id if row else None


@pytest.fixture
def scene(connection) -> Scene:
    """Verbs to put rows there."""
    return Scene(connection)


@contextlib.asynccontextmanager
async def running(dsn: str, wanted: Wanted) -> AsyncIterator[Screen]:
    """The application on a database, all of it gone at the end."""
    address = parse_dsn(dsn, "test")
    top = Top(Database(address, pool_size=1), wanted, address, INTERVAL)
    try:
        async with top.run_test(size=(120, 30)) as pilot:
            yield Screen(top, pilot)
    finally:
        top.watcher.stop()
        top.watcher.join(SECONDS)
        top.watcher.database.close()
        top.verbs.close()


@pytest.fixture
def play(dsn):
    """Run a story with the application beside it."""

    def play_it(story, **wanted):
        async def whole() -> None:
            async with running(dsn, Wanted(**wanted)) as screen:
                await story(screen)

        asyncio.run(whole())

    return play_it


def test_numbers_choose_the_list(scene, play):
    """1 to 5 are the lists; each shows its own rows, and its name is marked."""
    running, ready, failed = scene.job(State.RUNNING), scene.job(), scene.job(State.FAILED)

    async def story(screen):
        for key, expected in (("2", ready), ("3", failed), ("1", running)):
            await screen.press(key)
            await screen.shows(expected)
        await screen.press("4")
        table = screen.top.table
        await screen.until(
            lambda: table.row_count and "no attempt went wrong" in str(table.get_row_at(0)[0]), "the list says that it is empty"
        )
        await screen.press("5")
        await screen.until(lambda: [row.cells[0].plain for row in screen.top.rows] == ["w"], "the worker is there")

    play(story)


def test_the_cursor_stays_on_its_job(scene, play):
    """j, k and arrows move; when rows come and go above, the cursor is still on the same job."""
    ids = [scene.job(run_at=f"=now() - interval '{9 - n} s'") for n in range(4)]

    async def story(screen):
        await screen.shows(*ids)
        await screen.press("j", "down", "k", "down")
        await screen.until(lambda: screen.at == ids[2], "the cursor is on the third")
        first = scene.job(run_at="=now() - interval '1 h'")
        await screen.shows(first, *ids)
        assert screen.at == ids[2]
        scene.execute("DELETE FROM jobrunner.jobs WHERE id = ANY (%s)", ([first, ids[0]],))
        await screen.shows(*ids[1:])
        assert screen.at == ids[2]

    play(story, view="ready")


def test_retry_puts_the_failed_job_back(scene, play):
    """r on a failed job: it is queued again, the line below says so, and the list no longer has it."""
    other, failed = scene.job(State.FAILED), scene.job(State.FAILED)

    async def story(screen):
        await screen.shows(failed, other)
        await screen.press("r")
        await screen.says(f"job {failed} is queued: due now")
        await screen.shows(other)

    play(story, view="failed")
    assert (scene.state(failed), scene.state(other)) == (State.QUEUED, State.FAILED)


def test_what_is_refused_says_why(scene, play):
    """r on a running job: refused by the statement's guard, and nothing has changed."""
    running = scene.job(State.RUNNING)

    async def story(screen):
        await screen.shows(running)
        await screen.press("r")
        await screen.says("running")

    play(story)
    assert scene.state(running) is State.RUNNING


def test_cancel_takes_a_waiting_job_at_once(scene, play):
    """c on a job that waits: cancelled, without a question."""
    job_id = scene.job()

    async def story(screen):
        await screen.shows(job_id)
        await screen.press("c")
        await screen.says(f"job {job_id} is cancelled")
        await screen.shows()

    play(story, view="ready")
    assert scene.state(job_id) is State.CANCELLED


@pytest.mark.parametrize(("key", "asked"), [("y", True), ("n", False), ("escape", False)])
def test_a_running_job_is_cancelled_only_after_a_question(scene, play, key, asked):
    """c on a running job asks: y asks the job to stop, everything else leaves it alone."""
    job_id = scene.job(State.RUNNING)

    async def story(screen):
        await screen.shows(job_id)
        await screen.press("c")
        await screen.over(Confirm)
        assert scene.row(job_id)["cancel_requested_at"] is None
        await screen.press(key)
        await screen.until(lambda: len(screen.top.screen_stack) == 1, "the question is gone")
        if asked:
            await screen.says(f"job {job_id} was asked to stop")

    play(story)
    assert (scene.row(job_id)["cancel_requested_at"] is not None) is asked


def test_enter_shows_what_jobs_show_prints(scene, play, reader):
    """The whole story of the job, scrolled with the keys; escape goes back; r and c work there as well."""
    job_id = scene.job(State.FAILED, args='={"user_id": 4711}'.replace("=", ""), last_error="out of ink")
    expected = [line.strip() for line in reader("jobs", "show", job_id).lines() if "user_id" in line or line == "timeline"]

    async def story(screen):
        await screen.shows(job_id)
        await screen.press("enter")
        await screen.over(Details)
        shown = str(screen.top.screen.query_one(Static).render())
        assert all(line in shown for line in expected)
        await screen.press("j", "k", "escape")
        await screen.until(lambda: len(screen.top.screen_stack) == 1, "it is gone")
        await screen.press("enter")
        await screen.over(Details)
        await screen.press("r")
        await screen.says(f"job {job_id} is queued: due now")

    play(story, view="failed")
    assert scene.state(job_id) is State.QUEUED


def test_a_group_of_errors_leads_to_its_newest_job(scene, play):
    """On a group enter shows its newest job; retry and cancel there would be a guess, and say so."""
    job_id = scene.job(State.FAILED)
    scene.execute(
        "INSERT INTO jobrunner.job_attempts (job_id, attempt, lease, task, queue, outcome, error_type, message, fingerprint)"
        " VALUES (%s, 1, 1, 't', 'default', 'failed', 'KeyError', 'sku', 'f')",
        (job_id,),
    )

    async def story(screen):
        await screen.shows(job_id)
        await screen.press("r")
        await screen.says("enter shows its newest job")
        await screen.press("enter")
        await screen.over(Details)

    play(story, view="errors")
    assert scene.state(job_id) is State.FAILED


def test_the_filter_is_asked_for_and_checked(scene, play):
    """/ asks; a misspelt filter is explained and can be mended; escape leaves the old one; nothing shows all again."""
    mail, other = scene.job(queue="mail"), scene.job(run_at="=now() - interval '1 h'")

    async def story(screen):
        await screen.shows(other, mail)
        asked = screen.top.query_one(Input)
        await screen.press("slash")
        await screen.until(lambda: asked.has_focus, "it asks")
        await screen.press(*"queu:mail", "enter")
        await screen.says("queue")
        assert asked.has_focus
        asked.value = "queue:mail"
        await screen.press("enter")
        await screen.shows(mail)
        assert "queue:mail" in screen.part("tabs")
        await screen.press("slash")
        await screen.until(lambda: asked.has_focus, "it asks")
        await screen.press(*"2345", "escape")
        await screen.until(lambda: isinstance(screen.top.focused, DataTable), "it is left")
        assert str(screen.top.wanted.filter) == "queue:mail"
        await screen.press("slash")
        await screen.until(lambda: asked.has_focus, "it asks")
        asked.value = ""
        await screen.press("enter")
        await screen.shows(other, mail)

    play(story, view="ready")


def test_paused_it_looks_no_more(scene, play):
    """p stops the looking, says so, and goes on at the next p."""

    async def story(screen):
        await screen.until(lambda: screen.top.watcher.sight.glance, "a first look")
        await screen.press("p")
        await screen.until(lambda: "paused" in screen.part("header"), "it says so")
        await screen.until(lambda: screen.top.watcher._began is None, "a look that was under way has ended")
        await screen.pilot.pause(INTERVAL * 5)
        before = screen.top.watcher.sight
        job_id = scene.job()
        await screen.pilot.pause(INTERVAL * 5)
        assert screen.top.watcher.sight is before
        assert screen.top.rows == []
        await screen.press("p")
        await screen.shows(job_id)
        assert "live" in screen.part("header")

    play(story, view="ready")


def test_help_lists_the_keys(play):
    """? shows every key, escape leaves it."""

    async def story(screen):
        await screen.press("question_mark")
        await screen.over(Help)
        assert "retry the job" in str(screen.top.screen.query_one(Static).render())
        await screen.press("escape")
        await screen.until(lambda: len(screen.top.screen_stack) == 1, "it is gone")

    play(story)


@pytest.mark.parametrize("key", ["q", "ctrl+c"])
def test_q_and_ctrl_c_end_it(play, key):
    """Both keys end it, without an error."""

    async def story(screen):
        await screen.press(key)
        await screen.until(lambda: not screen.top.is_running, "it has ended")
        assert screen.top.return_code == 0

    play(story)


def test_the_terminal_is_left_as_it_was(program):
    """On a real terminal it starts, draws, takes a key, and q gives the terminal back with exit code 0."""
    with terminal(program, "top", "--interval", "0.2", columns=120, lines=30) as screen:
        screen.wait_for_text("1 Running")
        screen.type("2")
        screen.wait_for_text("no job is due")
        screen.type("q")
        assert screen.end() == 0
        assert screen.as_before()
        assert screen.raw.rindex(MAIN) > screen.raw.rindex(ALTERNATE)
        assert "Traceback" not in screen.raw


def test_sigterm_gives_the_terminal_back(program):
    """SIGTERM ends it, and the terminal is not left in a state of its own."""
    with terminal(program, "top", "--interval", "0.2", columns=120, lines=30) as screen:
        screen.wait_for_text("1 Running")
        assert screen.end(signal.SIGTERM) == 143
        assert screen.as_before()
        assert screen.raw.rindex(MAIN) > screen.raw.rindex(ALTERNATE)


def test_a_database_that_goes_away_is_waited_for(durable_server):
    """What was seen stays, with why nothing new comes; verbs say why they cannot; when it is back, all goes on."""
    dsn = durable_server.dsn("postgres")
    migrate.upgrade(dsn)
    with psycopg.connect(dsn, autocommit=True) as connection:
        job_id = Scene(connection).job()

    async def story() -> None:
        async with running(dsn, Wanted("ready")) as screen:
            await screen.shows(job_id)
            durable_server.stop(mode="immediate")
            await screen.until(lambda: "reconnecting" in screen.part("header"), "it says so")
            await screen.press("c")
            await screen.says("cannot reach PostgreSQL")
            assert screen.at == job_id
            durable_server.start()
            await screen.until(lambda: "live" in screen.part("header"), "it looks again")
            await screen.press("c")
            await screen.says(f"job {job_id} is cancelled")

    asyncio.run(story())
