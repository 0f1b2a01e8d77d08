"""Every state × every transition × right and wrong lease or worker: the database does what the table says, and nothing else."""

from __future__ import annotations

import pytest

from jobrunner import statements
from jobrunner.jobs import ClaimedJob, Walk
from jobrunner.states import LIVE, TRANSITIONS, State, Transition
from tests.support.brokercalls import BROKER_CALLS
from tests.support.rows import ALIVE, EXPIRED, LEASE, STOPPED, TASK, Scene, fenced_parameters

NOT_TRANSITIONS = {
    "any_lost", "hold", "look_again", "find_due", "has_succeeded", "held_jobs", "job_state", "lost_workers", "heartbeat", "register_worker", "stop_worker",
    "ensure_partitions", "log", "give_up_slot", "set_tasks", "left_due", "prune_workers", "prune_worker_runs", "drop_partitions", "settle_rollups",
    "prune_rollup_hours", "take_turn", "renew", "drop_consumer", "purge_dead", *BROKER_CALLS,
}  # fmt: skip
"""Statements that change no job's state."""

# What a job must have besides its state, so that the transition may be taken.
SUITED: dict[str, dict[str, object]] = {
    "quarantine": {"max_crashes": 1},
    "rescue_quarantine": {"max_crashes": 1, "started_at": "=now()"},
    "rescue_abort": {"cancel_requested_at": "=now()"},
}

WAITING_SUITED: dict[str, dict[str, object]] = {"claim_ordered": {"ordering_key": "a key"}, "expire": {"expires_at": "=now()"}}
"""The same of a job that waits."""

# What is put on record about the attempt; transitions that are not here record nothing.
RECORDED = {
    "retry": "retried", "fail": "failed", "snooze": "snoozed", "release": "released", "abort": "cancelled", "crash": "crashed",
    "quarantine": "quarantined", "rescue": "crashed", "rescue_quarantine": "quarantined", "rescue_abort": "cancelled",
}  # fmt: skip

MORE: dict[str, dict[str, object]] = {"redrive": {"queue": "default", "task": TASK}}
"""Parameters of a transition beside the ids."""

CLAIMS = {"claim", "claim_ordered"}
BY_LEASE = {"right lease": 0, "older lease": -1, "newer lease": 1}
BY_CLAIMER = {"alive": ALIVE, "expired": EXPIRED, "stopped": STOPPED}
OWN, OTHER = "own", "another's"


def suited(transition: Transition, state: State) -> dict[str, object]:
    """What a job in this state needs for this transition."""
    return (SUITED if state is State.RUNNING else WAITING_SUITED).get(transition.name, {})


def claimed_by(scene: Scene, name: str, worker: int, queue: str = "default") -> list[ClaimedJob]:
    """What one of the two claims takes."""
    if name == "claim":
        return scene.store.claim(worker, [TASK], queue, 0, 10)
    return scene.store.claim_ordered(worker, [TASK], queue, 0, 10, Walk(keys=10)).jobs


def variants(transition: Transition) -> list[str]:
    """Ways to ask for a transition; only the first is right."""
    if transition.fenced:
        return list(BY_LEASE)
    return list(BY_CLAIMER) if transition.name in CLAIMS else [OWN, OTHER]


def cases() -> list[tuple[Transition, State, str]]:
    """Everything that can be asked for."""
    return [(transition, state, variant) for transition in TRANSITIONS for state in State for variant in variants(transition)]


def ask(scene: Scene, transition: Transition, job_id: int, variant: str) -> list[int]:
    """Run the transition's statement for a job; returns the ids it says it moved."""
    row = scene.row(job_id)
    if transition.fenced:
        return scene.run(transition.name, fenced_parameters(transition.name, [(job_id, row["lease"] + BY_LEASE[variant])], delay_ms=10))
    if transition.name in CLAIMS:
        claimed = claimed_by(scene, transition.name, scene.worker(BY_CLAIMER[variant]))
        assert [(job.id, job.lease, job.attempt) for job in claimed] in ([], [(job_id, row["lease"] + 1, row["attempt"] + 1)])
        return [job.id for job in claimed]
    if transition.name == "expire":
        return scene.run("expire", {"most": 10 if variant == OWN else 0})
    if transition.by == "pool":
        worker = row["worker_id"] if variant == OWN and row["worker_id"] else scene.worker(EXPIRED)
        return scene.run(transition.name, {"worker_ids": [worker]})
    return scene.run(transition.name, {"ids": [job_id if variant == OWN else job_id + 1_000_000], **MORE.get(transition.name, {})})


def surround(scene: Scene) -> None:
    """Other jobs in every state, which no transition of one job may touch."""
    for state in State:
        scene.job(state, queue="elsewhere", unique_key=state.value)


def test_the_table_and_the_files_name_the_same_transitions():
    """Each transition has its statement; each other statement is known not to be one."""
    assert statements.names() - NOT_TRANSITIONS == {transition.name for transition in TRANSITIONS}
    assert statements.names() >= NOT_TRANSITIONS


@pytest.mark.parametrize(
    ("transition", "state", "variant"), cases(), ids=lambda value: getattr(value, "name", str(value)).lower().replace(" ", "_")
)
def test_a_transition_does_what_the_table_says(connection, transition, state, variant):
    """From its sources, with the right lease or worker, a job reaches the target; otherwise no row changes in any way."""
    scene = Scene(connection)
    surround(scene)
    job_id = scene.job(state, attempt=1, **suited(transition, state))
    before = scene.snapshot()
    lease = scene.row(job_id)["lease"]

    moved = ask(scene, transition, job_id, variant)

    after = scene.snapshot()
    if state not in transition.sources or variant != variants(transition)[0]:
        assert moved == []
        assert after == before
        return
    assert moved == [job_id]
    assert after.without(job_id) == before.without(job_id)
    row = scene.row(job_id)  # exactly one row, in exactly one table
    assert row["state"] == transition.target
    assert ("finished_at" in row) == (transition.target not in LIVE)
    assert row["lease"] == lease + (transition.name in CLAIMS)
    assert [(attempt["outcome"], attempt["lease"]) for attempt in scene.attempts(job_id)] == (
        [(RECORDED[transition.name], lease)] if transition.name in RECORDED else []
    )


@pytest.mark.parametrize("transition", TRANSITIONS, ids=lambda transition: transition.name)
def test_nothing_comes_from_an_id_that_never_was(connection, transition):
    """A transition of a job that does not exist writes nothing: no live row, no finished row, no attempt."""
    scene = Scene(connection)
    surround(scene)
    before = scene.snapshot()
    if transition.fenced:
        assert scene.run(transition.name, fenced_parameters(transition.name, [(2**40, LEASE), (-1, LEASE), (2**63 - 1, 1)])) == []
    elif transition.name == "expire":
        assert scene.run("expire", {"most": 10}) == []
    elif transition.by == "pool":
        assert scene.run(transition.name, {"worker_ids": [2**40, -1]}) == []
    elif transition.name in CLAIMS:
        assert claimed_by(scene, transition.name, 2**40, "elsewhere") == []
    else:
        assert scene.run(transition.name, {"ids": [2**40, -1], **MORE.get(transition.name, {})}) == []
    assert scene.snapshot() == before


@pytest.mark.parametrize("transition", [each for each in TRANSITIONS if each.name not in CLAIMS | {"expire"}], ids=lambda transition: transition.name)
def test_empty_and_repeated_ids(connection, transition):
    """An empty list changes nothing; an id given twice is moved once."""
    scene = Scene(connection)
    state = next(iter(sorted(transition.sources)))
    job_id = scene.job(state, attempt=1, **suited(transition, state))
    before = scene.snapshot()
    if transition.fenced:
        assert scene.run(transition.name, fenced_parameters(transition.name, [])) == []
        assert scene.snapshot() == before
        return  # a worker never finishes the same attempt twice in a batch
    key, value = ("worker_ids", scene.row(job_id)["worker_id"]) if transition.by == "pool" else ("ids", job_id)
    more = MORE.get(transition.name, {})
    assert scene.run(transition.name, {key: [], **more}) == []
    assert scene.snapshot() == before
    assert scene.run(transition.name, {key: [value, value], **more}) == [job_id]
    assert len(scene.rows(job_id)) == 1


def test_a_lease_only_ever_grows(connection):
    """Each claim raises the lease by one; nothing lowers it, not even a requeue of a finished job."""
    scene = Scene(connection)
    worker, job_id = scene.worker(), scene.job(lease=0, max_attempts=1)
    for expected, ending in enumerate(("release", "snooze", "crash", "fail"), 1):
        (job,) = scene.store.claim(worker, [TASK], "default", 0, 1)
        assert job.lease == expected
        assert scene.run(ending, fenced_parameters(ending, [(job_id, job.lease)], delay_ms=0)) == [job_id]
        assert scene.row(job_id)["lease"] == expected
    assert scene.run("requeue", {"ids": [job_id]}) == [job_id]
    assert scene.row(job_id)["lease"] == expected
    (job,) = scene.store.claim(worker, [TASK], "default", 0, 1)
    assert job.lease == expected + 1


@pytest.mark.parametrize("transition", [each for each in TRANSITIONS if each.fenced], ids=lambda transition: transition.name)
def test_an_older_attempt_changes_nothing_after_a_new_claim(connection, transition):
    """The whole story of a fence: a claim, a rescue, a second claim; the first attempt's write is refused and leaves no trace."""
    scene = Scene(connection)
    job_id = scene.job(lease=0)
    lost, heir = scene.worker(), scene.worker()
    (first,) = scene.store.claim(lost, [TASK], "default", 0, 1)
    scene.age_worker(lost)
    assert scene.store.rescue()[1] == 1
    (second,) = scene.store.claim(heir, [TASK], "default", 0, 1)
    assert (first.id, second.id, second.lease) == (job_id, job_id, first.lease + 1)
    before = scene.snapshot()
    assert scene.run(transition.name, fenced_parameters(transition.name, [(job_id, first.lease)], delay_ms=10)) == []
    assert scene.snapshot() == before
