"""What jobs say and cost, over HTTP and on the pages: logs, limits, progress, memory, and what workers run."""

from __future__ import annotations

from typing import Any

import pytest
from psycopg.types.json import Jsonb

from jobrunner.states import State
from tests.support.htmlcheck import Page
from tests.support.rows import Scene
from tests.support.seed import seed
from tests.web.test_pages import HOSTILE, clean, readable

URL = "/api/v1/jobs"
LINE_KEYS = {"lease", "attempt", "line", "logged_at", "level", "logger", "message"}
LIMITS = {
    "time_limit": "1m", "soft_time_limit": 50, "cpu_limit": "40s", "memory_limit": "256MB", "memory_limit_on_retry": "2x",
    "output_limit": 1_000_000, "max_processes": 4,
}  # fmt: skip


@pytest.fixture
def scene(connection) -> Scene:
    """The database behind the pages."""
    return Scene(connection)


def write(scene, job_id, count, *, lease=7, level=20, message="line ") -> None:
    """Numbered lines of one attempt."""
    scene.execute(
        "INSERT INTO jobrunner.job_logs (job_id, lease, line, attempt, level, logger, message) "
        "SELECT %s, %s, g, 1, %s, 'shop', %s || g FROM generate_series(1, %s) AS g",
        (job_id, lease, level, message, count),
    )


def problem(answer, status, name) -> dict[str, Any]:
    """The problem document of an answer."""
    assert (answer.status_code, answer.mimetype) == (status, "application/problem+json"), answer.text
    assert answer.json["type"] == f"urn:jobrunner:problem:{name}"
    return dict(answer.json)


def test_a_log_is_read_on_from_where_an_answer_ended(client, scene) -> None:
    """`next` leads on, `more` says whether there is something now, `finished` whether there will be."""
    job_id = scene.job(State.RUNNING)
    write(scene, job_id, 5)
    first = client.get(f"{URL}/{job_id}/logs?limit=3").json
    assert set(first) == {"items", "next", "more", "left_out", "state", "finished"}
    assert all(set(line) == LINE_KEYS for line in first["items"])
    assert ([line["line"] for line in first["items"]], first["next"], first["more"], first["state"], first["finished"]) == (
        [1, 2, 3], "7-3", True, "running", False,
    )  # fmt: skip
    rest = client.get(f"{URL}/{job_id}/logs?after={first['next']}").json
    assert ([line["line"] for line in rest["items"]], rest["more"]) == ([4, 5], False)
    scene.put_into_history(job_id, State.FAILED)
    end = client.get(f"{URL}/{job_id}/logs?after={rest['next']}").json
    assert (end["items"], end["next"], end["more"], end["state"], end["finished"]) == ([], "7-5", False, "failed", True)


def test_attempt_level_and_tail_choose(client, scene) -> None:
    """The same choices as on the command line."""
    job_id = scene.job(State.RUNNING)
    write(scene, job_id, 3)
    write(scene, job_id, 2, lease=8, level=40)
    found = client.get(f"{URL}/{job_id}/logs?level=error").json["items"]
    assert [(line["lease"], line["level"]) for line in found] == [(8, "ERROR"), (8, "ERROR")]
    newest = client.get(f"{URL}/{job_id}/logs?tail=3").json
    assert ([(line["lease"], line["line"]) for line in newest["items"]], newest["left_out"]) == ([(7, 3), (8, 1), (8, 2)], True)
    assert client.get(f"{URL}/{job_id}/logs?attempt=2").json["items"] == []


@pytest.mark.parametrize(
    ("query", "status", "name"),
    [
        ("after=x", 400, "invalid-cursor"), ("after=", 400, "invalid-cursor"), ("after=1-1&tail=3", 422, "invalid-field"),
        ("level=LOUD", 422, "invalid-field"), ("limit=0", 422, "invalid-field"), ("limit=1001", 422, "invalid-field"),
        ("tail=-1", 422, "invalid-field"), ("tail=x", 422, "invalid-field"), ("attempt=0", 422, "invalid-field"),
        ("attempt=40000", 422, "invalid-field"), ("line=3", 422, "invalid-field"), ("limit=١", 422, "invalid-field"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_a_problem(client, scene, query, status, name) -> None:
    """A parameter that is unknown, out of range or contradicts another is named."""
    problem(client.get(f"{URL}/{scene.job()}/logs?{query}"), status, name)


@pytest.mark.parametrize("job_id", ["999999", "abc", "0", str(2**63)])
def test_the_log_of_no_job_is_404(client, job_id) -> None:
    """A job that does not exist has no log, not an empty one."""
    problem(client.get(f"{URL}/{job_id}/logs"), 404, "job-not-found")


def test_limits_are_enqueued_and_shown(client, connection) -> None:
    """POST takes limits as `options()` does; GET shows them in milliseconds and bytes."""
    answer = client.post(URL, json={"task": "send_welcome", "args": {"user_id": 1}, "options": LIMITS})
    assert answer.status_code == 201, answer.text
    found = client.get(answer.headers["Location"]).json
    shown = {
        "time_limit_ms": 60_000, "soft_time_limit_ms": 50_000, "cpu_limit_ms": 40_000, "memory_limit": 256_000_000,
        "memory_limit_on_retry": 2.0, "output_limit": 1_000_000, "max_processes": 4,
    }  # fmt: skip
    assert {name: found[name] for name in shown} == shown
    assert (found["progress"], found["progress_text"], found["checkpoint"], found["peak_memory"]) == (None, None, None, None)


@pytest.mark.parametrize(
    "options",
    [
        {"memory_limit": -1}, {"memory_limit": "1kB"}, {"memory_limit": 2.5}, {"memory_limit_on_retry": 2}, {"max_processes": True},
        {"soft_time_limit": 61, "time_limit": 60}, {"cpu_limit": 0}, {"output_limit": "much"}, {"transactional": True}, {"log_level": "INFO"},
    ],
    ids=str,
)  # fmt: skip
def test_limits_that_make_no_sense_are_refused(client, connection, options) -> None:
    """A limit that `options()` refuses is 422 with its name, and what belongs to the code is no field; nothing is written."""
    answer = client.post(URL, json={"task": "send_welcome", "args": {"user_id": 1}, "options": options})
    assert next(iter(options)) in problem(answer, 422, "invalid-field")["detail"]
    assert connection.execute("SELECT count(*) FROM jobrunner.jobs").fetchone() == (0,)


def test_what_a_job_says_and_costs(client, connection) -> None:
    """Progress and checkpoint of a live job, peak memory and exit causes of attempts and of a success, in lists and alone."""
    ids = seed(connection, 600)
    found = client.get(f"{URL}/{ids['retrying']}").json
    assert (found["progress"], found["progress_text"], found["checkpoint"]) == (0.4, "page 4 of 10", {"page": 4, "after": "globex-0817"})
    assert [(attempt["exit_cause"], attempt["peak_memory"]) for attempt in found["attempts"]] == [("exception", None), ("memory", 131_000_000)]
    assert client.get(f"{URL}/{ids['succeeded']}").json["peak_memory"] >= 48_000_000
    (listed,) = client.get(f"{URL}?filter=id:{ids['retrying']}").json["items"]
    assert (listed["progress"], listed["progress_text"], listed["peak_memory"]) == (0.4, "page 4 of 10", None)


def test_the_page_of_a_job_shows_them(client, connection) -> None:
    """Limits and sizes as people write them, progress as an element that needs no style, causes and peaks of attempts."""
    ids = seed(connection, 600)
    answer = client.get(f"/jobs/{ids['retrying']}")
    text = readable(clean(answer))
    for part in (
        "40 % page 4 of 10", "Time limit1 m", "Soft time limit50 s", "CPU limit40 s", "Memory limit256 MB ×2 when exceeded",
        "Output limit1.0 MB", "Processesat most 4", "Checkpoint where the next attempt goes on", '"after": "globex-0817"', "Causememory",
        "Peak memory131 MB",
    ):  # fmt: skip
        assert part in text, part
    assert '<progress max="1" value="0.4000" aria-label="Progress">' in answer.text
    assert "Peak memory" in readable(clean(client.get(f"/jobs/{ids['succeeded']}")))
    bare = readable(clean(client.get(f"/jobs/{ids['queued']}")))
    assert not [word for word in ("limit", "Checkpoint", "Peak memory", "Log") if word in bare]


def test_the_page_of_a_job_shows_its_log(client, connection) -> None:
    """Each line with its level as a class, attempts told apart, and the way to the whole of it."""
    ids = seed(connection, 600)
    page = clean(client.get(f"/jobs/{ids['failed']}"))
    text = readable(page)
    assert "WARNING shop.mail: slow answer: 2.3 s" in text
    assert "INFO printed by the task: 3 of 10" in text
    assert "attempt 2" in text
    assert "Log complete · as JSON" in text
    assert f"/api/v1/jobs/{ids['failed']}/logs" in page.links
    html = client.get(f"/jobs/{ids['failed']}").text
    assert all(f'<li class="l-{level}">' in html for level in ("debug", "info", "warning", "error", "critical"))
    running = readable(clean(client.get(f"/jobs/{ids['running']}")))
    assert f"jobrunner jobs logs {ids['running']} --follow" in running


def test_a_long_log_is_cut_and_says_so(client, scene) -> None:
    """The page has the newest 200 lines; a running job that has logged nothing yet says that."""
    job_id = scene.job(State.RUNNING)
    assert "Nothing was logged yet." in readable(clean(client.get(f"/jobs/{job_id}")))
    write(scene, job_id, 200, message="number-")
    assert "newest" not in readable(clean(client.get(f"/jobs/{job_id}")))
    write(scene, job_id, 1, lease=6, message="first-")
    text = readable(clean(client.get(f"/jobs/{job_id}")))
    assert "the newest 200 lines" in text
    assert "number-1 " in text
    assert "first-" not in text


@pytest.mark.parametrize("payload", HOSTILE, ids=range(len(HOSTILE)))
def test_nothing_that_is_said_becomes_markup(client, scene, payload) -> None:
    """Whatever a task logs, says of its progress or keeps as a checkpoint, and whatever a worker says it runs, is text."""
    worker = scene.worker()
    job_id = scene.job(State.RUNNING, worker_id=worker, progress=0.5, progress_text=payload, checkpoint=Jsonb({payload: payload}))
    write(scene, job_id, 1, message=payload)
    scene.execute(
        "INSERT INTO jobrunner.job_logs (job_id, lease, line, attempt, level, logger, message) VALUES (%s, 8, 1, 1, 20, %s, 'x')", (job_id, payload)
    )
    said = [{"slot": 1, "job": job_id, "task": payload, "attempt": 1, "seconds": 1, "memory": 2}, {"slot": payload, "task": "t"}, payload]
    scene.execute("UPDATE jobrunner.workers SET pool = %s, pool_slot = 1, running = %s WHERE id = %s", (payload[:300], Jsonb(said), worker))
    for url in (f"/jobs/{job_id}", "/workers"):
        assert " ".join(payload.split())[:30] in readable(clean(client.get(url))), url
    assert client.get(f"{URL}/{job_id}/logs").json["items"][0]["message"] == f"{payload}1"
    assert client.get(f"{URL}/{job_id}").json["progress_text"] == payload


def test_the_page_of_workers_shows_what_they_run(client, connection) -> None:
    """Pool, claims, memory with all jobs, and each slot with a link to its job; a worker that says nothing shows dashes."""
    ids = seed(connection, 600)
    page = clean(client.get("/workers"))
    text = readable(page)
    assert "nightly/1" in text
    assert "41,202 / 41,584" in text
    assert "358 MB" in text
    assert f"slot 3 #{ids['running']} billing.invoice attempt 1 ·" in text
    assert "· 102 MB" in text
    assert f"/jobs/{ids['running']}" in page.links
    connection.execute("UPDATE jobrunner.workers SET running = NULL, memory_bytes = NULL, claimed_count = NULL, rss_bytes = NULL")
    bare = client.get("/workers").text
    assert Page(bare).problems == []
    assert 'class="runs"' not in bare
