"""The dashboard in a real browser, under its own policy: nothing refused, nothing runs that a row says, readable at any width.

Screenshots go to the directory in JOBRUNNER_TEST_SHOTS, if it is set.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest
from psycopg.types.json import Jsonb

from tests.support.browser import Browser, browser
from tests.support.dashboards import served
from tests.support.seed import seed, seed_topics
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.browser

PATIENCE = 20  # seconds for what takes a tenth of one
SIZES = ((1280, 800), (390, 844))
PAYLOAD = "\"'><script>alert('row')</script><img src=x onerror=alert('row')><svg onload=alert('row')>" + "endless" * 40


class Site:
    """A served dashboard, the jobs to look at in it, and its database."""

    def __init__(self, url: str, ids: dict[str, int], dsn: str) -> None:
        self.url = url
        self.ids = ids
        self.dsn = dsn
        self.pages = {
            "jobs": "jobs", "failed": "jobs?filter=state:failed", "queues": "queues", "workers": "workers", "topics": "topics",
            "dead-letters": "dead-letters", "dead-letters-of-one": "dead-letters?queue=parcels",
            **{f"job-{kind}": f"jobs/{job_id}" for kind, job_id in ids.items()},
        }  # fmt: skip


@pytest.fixture(scope="module")
def _browser() -> Iterator[Browser]:
    """One browser for all tests of this file."""
    with browser() as opened:
        yield opened


@pytest.fixture
def chromium(_browser: Browser) -> Browser:
    """The browser, with nothing to complain about yet."""
    _browser.open("about:blank")
    _browser.console()
    return _browser


@pytest.fixture(scope="module")
def site(server) -> Iterator[Site]:
    """A dashboard over a working day."""
    with server.temporary() as dsn:
        with psycopg.connect(dsn, autocommit=True) as connection:
            ids = seed(connection, 800)
            seed_topics(connection)
        with served(dsn, JOBRUNNER_ENV_NAME="staging") as url:
            yield Site(url, ids, dsn)


def shot(chromium, name) -> None:
    """Keep what is seen, for people to look at."""
    directory = os.environ.get("JOBRUNNER_TEST_SHOTS")
    if directory:
        Path(directory).mkdir(parents=True, exist_ok=True)
        chromium.screenshot(Path(directory) / f"{name}.png")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), SIZES)
def test_no_page_breaks_its_own_policy(chromium, site, scheme, width, height) -> None:
    """Every page, light and dark, wide and narrow: no complaint in the console, no request elsewhere, no sideways scrolling."""
    chromium.size(width, height)
    chromium.scheme(scheme)
    for name, path in site.pages.items():
        chromium.open(site.url + path)
        shot(chromium, f"{name}-{scheme}-{width}")
        assert chromium.console() == [], name
        loaded = chromium.run("return performance.getEntriesByType('resource').map(entry => entry.name)")
        assert all(resource.startswith((site.url, "data:")) for resource in loaded), name
        assert chromium.run("return document.documentElement.scrollWidth <= document.documentElement.clientWidth"), name
        assert chromium.run("return getComputedStyle(document.body).fontFamily").startswith("system-ui"), name  # the style sheet holds


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read(chromium, site, scheme) -> None:
    """Every piece of text has the contrast that WCAG AA asks of its size, on every page."""
    chromium.size(1280, 800)
    chromium.scheme(scheme)
    for name, path in site.pages.items():
        chromium.open(site.url + path)
        assert chromium.run(CONTRAST) == [], name


CONTRAST = """
const parse = text => { const m = text.match(/[\\d.]+/g).map(Number); return m.length === 3 ? [...m, 1] : m; };
const over = (top, under) => top.slice(0, 3).map((c, i) => c * top[3] + under[i] * (1 - top[3]));
const light = rgb => { const [r, g, b] = rgb.map(c => { c /= 255; return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4; }); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
const ground = element => { if (!element) return [255, 255, 255]; const own = parse(getComputedStyle(element).backgroundColor); return own[3] === 1 ? own.slice(0, 3) : over(own, ground(element.parentElement)); };
const poor = [];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const element = walker.currentNode.parentElement;
  if (!walker.currentNode.data.trim() || element.closest('svg, :disabled, .off, .hidden, .skip') || !element.getClientRects().length) continue;
  const style = getComputedStyle(element), under = ground(element);
  const a = light(over(parse(style.color), under)), b = light(under);
  const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  if (ratio < 4.5) poor.push(`${ratio.toFixed(2)} ${element.className} ${walker.currentNode.data.trim().slice(0, 40)}`);
}
return [...new Set(poor)];
"""


def test_the_buttons_work_in_a_browser(chromium, site) -> None:
    """Retry, pressed on the page, passes the check against forged requests and changes the row."""
    chromium.size(1280, 800)
    chromium.open(f"{site.url}jobs/{site.ids['quarantined']}")
    chromium.click("form[action$='/retry'] button")
    wait_until(lambda: chromium.url.endswith("?done=retried"), timeout=PATIENCE, what="the form was answered")
    assert "The job is due" in chromium.text
    with psycopg.connect(site.dsn, autocommit=True) as connection:
        row = connection.execute("SELECT state FROM jobrunner.jobs WHERE id = %s", (site.ids["quarantined"],)).fetchone()
    assert row == ("queued",)
    assert chromium.console() == []


def test_dead_letters_and_groups_go_on_in_a_browser(chromium, site) -> None:
    """One dead letter is delivered again, then all of its queue; a stopped group is resumed; each page says so."""
    waiting = "SELECT count(*) FROM jobrunner.jobs WHERE task = 'jobrunner.message' AND queue = 'parcels'"
    with psycopg.connect(site.dsn, autocommit=True) as connection:
        dead = connection.execute("SELECT count(*) FROM jobrunner.job_history WHERE queue = 'parcels' AND task = 'jobrunner.message'").fetchone()
        chromium.size(390, 844)
        chromium.open(f"{site.url}dead-letters?queue=parcels")
        chromium.click("td.again button")
        wait_until(lambda: "done=1" in chromium.url, timeout=PATIENCE, what="the form was answered")
        assert "1 message will be delivered again" in chromium.text
        assert connection.execute(waiting).fetchone() == (1,)
        chromium.click(".actions button")
        wait_until(lambda: "No dead letter in this queue" in chromium.text, timeout=PATIENCE, what="the second form was answered")
        assert connection.execute(waiting).fetchone() == dead
        chromium.open(f"{site.url}topics")
        assert "stopped 2 h" in chromium.text
        chromium.click("form[action$='/resume'] button")
        wait_until(lambda: chromium.url.endswith("?done=resumed"), timeout=PATIENCE, what="the third form was answered")
        assert "The group goes on" in chromium.text
        assert connection.execute("SELECT count(*) FROM jobrunner.cursors WHERE stopped_at IS NOT NULL").fetchone() == (0,)
    assert chromium.console() == []


@pytest.mark.parametrize("password", ["", "pw"], ids=["local", "basic"])
def test_a_page_of_another_site_cannot_press_them(chromium, site, tmp_path, password) -> None:
    """A form on another origin, sent by a browser that is let in and would send its password along, changes nothing."""
    page = tmp_path / "evil.html"
    with served(site.dsn, **({"JOBRUNNER_WEB_PASSWORD": password} if password else {})) as url:
        path = f"jobs/{site.ids['scheduled']}"
        chromium.open(url.replace("://", f"://admin:{password}@") + path if password else url + path)
        assert "report.daily" in chromium.text
        page.write_text(f"<form method=post action='{url}{path}/cancel'><button>x</button></form>")
        chromium.open(page.as_uri())
        chromium.click("button")
        wait_until(lambda: chromium.url.startswith(url), timeout=PATIENCE, what="the form was sent")
        assert ("The request may be forged" if password else "This dashboard is closed") in chromium.text
    with psycopg.connect(site.dsn, autocommit=True) as connection:
        row = connection.execute("SELECT state FROM jobrunner.v_jobs WHERE id = %s", (site.ids["scheduled"],)).fetchone()
    assert row == ("scheduled",)


def test_plain_http_without_fetch_metadata_works_too(chromium, site) -> None:
    """Over http on a name that is no loopback browsers send no Sec-Fetch-Site; our own forms pass by their Origin."""
    with psycopg.connect(site.dsn, autocommit=True) as connection:
        row = connection.execute("SELECT id FROM jobrunner.job_history WHERE state = 'failed' ORDER BY id LIMIT 1").fetchone()
    assert row is not None
    with served(site.dsn, "0.0.0.0", JOBRUNNER_WEB_PASSWORD="pw") as url:
        port = url.rstrip("/").rpartition(":")[2]
        address = own_address()
        chromium.open(f"http://admin:pw@{address}:{port}/jobs/{row[0]}")
        chromium.click("form[action$='/retry'] button")
        wait_until(lambda: chromium.url.endswith("?done=retried"), timeout=PATIENCE, what="the form was answered")
        assert "The job is due" in chromium.text


def own_address() -> str:
    """An address of this machine that is not loopback; loopback where it has none."""
    import socket

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing
        except OSError:
            return "127.0.0.1"
        return str(probe.getsockname()[0])


def test_nothing_in_a_row_runs(chromium, site) -> None:
    """Scripts in every text that a row can hold stay text: no dialog opens, and the policy has nothing to refuse."""
    with psycopg.connect(site.dsn, autocommit=True) as connection:
        row = connection.execute(
            "INSERT INTO jobrunner.jobs (task, queue, args, tags, meta, unique_key, last_error_type, last_error, attempt) VALUES "
            "(%(x)s, %(x)s, %(json)s, ARRAY[%(x)s], %(json)s, %(x)s, %(x)s, %(x)s, 1) RETURNING id",
            {"x": PAYLOAD, "json": Jsonb({PAYLOAD: PAYLOAD})},
        ).fetchone()
        assert row is not None
        connection.execute(
            "INSERT INTO jobrunner.job_attempts (job_id, attempt, lease, task, queue, started_at, outcome, error_type, message, traceback, exit_cause) "
            "VALUES (%(id)s, 1, 1, %(x)s, %(x)s, now(), 'retried', %(x)s, %(x)s, %(x)s, %(x)s)",
            {"id": row[0], "x": PAYLOAD},
        )
        connection.execute(
            "INSERT INTO jobrunner.workers (name, host, pid, kind, version, queues, tasks, slots, lease_expires_at, stopped_at, last_exit) "
            "VALUES (%(x)s, 'h', 1, 'test', %(x)s, ARRAY[%(x)s], '{}', 1, now(), now(), %(x)s)",
            {"x": PAYLOAD},
        )
        connection.execute(
            "INSERT INTO jobrunner.subscriptions (topic, group_name, mode, task, patterns, queue) "
            "VALUES (%(x)s, %(x)s, 'log', %(x)s, ARRAY[%(x)s], %(x)s)",
            {"x": PAYLOAD},
        )
        connection.execute(
            "INSERT INTO jobrunner.cursors (topic, group_name, position, stopped_at, problem) VALUES (%(x)s, %(x)s, 0, now(), %(x)s)", {"x": PAYLOAD}
        )
        connection.execute(
            "INSERT INTO jobrunner.job_history (id, task, queue, args, priority, tags, created_at, run_at, state, lease, attempt, max_attempts, backoff, "
            "backoff_base, backoff_cap, backoff_jitter, crash_count, max_crashes, last_error, ordering_key) VALUES (600000, 'jobrunner.message', %(x)s, "
            "%(json)s, 0, '{}', now(), now(), 'failed', 1, 1, 1, 'constant', '0', '0', 0, 0, 1, %(x)s, %(x)s)",
            {"x": PAYLOAD, "json": Jsonb({PAYLOAD: PAYLOAD})},
        )
    for path in ("jobs", f"jobs/{row[0]}", "queues", "workers", "topics", "dead-letters", "jobs?filter=<script>alert('url')</script>"):
        chromium.open(site.url + path)
        assert chromium.alert() is None, path
        assert "alert('" in chromium.text or "filter" in path, path
        assert chromium.run("return document.querySelectorAll('script, img, [onload], [onerror]').length") == 0, path
        assert not [line for line in chromium.console() if "400 (BAD REQUEST)" not in line], path
        for width, height in SIZES:
            chromium.size(width, height)
            assert chromium.run("return document.documentElement.scrollWidth <= document.documentElement.clientWidth"), (path, width)


def test_the_keyboard_reaches_everything(chromium, site) -> None:
    """The first stop is the way past the navigation, and every link, field and button can take the focus."""
    chromium.open(site.url + "jobs")
    assert (
        chromium.run("const first = document.querySelector('a, button, input'); first.focus(); return document.activeElement.className")
        == "skip"
    )
    assert chromium.run("return [...document.querySelectorAll('a, button, input, summary')].every(element => element.tabIndex >= 0)")
    assert chromium.run("return [...document.querySelectorAll('input')].every(element => element.labels.length > 0)")
