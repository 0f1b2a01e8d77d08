"""Owns every read and write of job state: the statements of `sql/`, run on one psycopg connection.

It must not decide anything (the statements' guards do) nor keep state between calls.
"""

from __future__ import annotations

from contextlib import contextmanager
from datetime import UTC, datetime
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Literal, cast

from psycopg import errors as pg

from jobrunner import arrays, clock, statements
from jobrunner.errors import DuplicateJob, IllegalTransition, JobNotFound
from jobrunner.jobs import ClaimedJob, Due, Ending, Held, LostWorker, Outcome, Registered, Remains, Succeeded, Walked
from jobrunner.states import sources_of

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from datetime import timedelta

    from psycopg import Connection, Cursor

    from jobrunner.jobs import Floor, Leaving, LogLine, Note, Walk, WorkerCounts, WorkerSight

UNGATED = 9  # jobs that a claim may take however many others claim; `claim.sql` has the next number
_WALKED = 3  # columns that `claim_ordered.sql` gives before those of the job
FROM_THE_START = (datetime(1969, 12, 31, tzinfo=UTC), 0)  # a floor below every key that the CHECK on run_at allows

# After which statements a batch of each ending is through; each takes what the one before it left. `abort` comes last because a
# job that somebody asked to cancel while it ran goes nowhere else.
_SEQUENCES: dict[Ending, tuple[str, ...]] = {
    Ending.RETRY: ("retry", "fail", "abort"),
    Ending.FAIL: ("fail", "abort"),
    Ending.SNOOZE: ("snooze", "abort"),
    Ending.RELEASE: ("release", "abort"),
    Ending.CRASH: ("crash", "quarantine", "abort"),
    Ending.ABORT: ("abort",),
}


class Crowded(Exception):
    """As many others are claiming from this queue at this moment as is useful; nothing was taken. Ask again soon, or for fewer jobs."""


class Overtaken(Exception):
    """Another claim has just taken a job of the same ordering key; nothing was taken. Asked again, it sees what the other did."""


class Store:
    """The statements of Jobrunner on one connection, which must be in autocommit mode. Not thread-safe."""

    def __init__(self, connection: Connection[Any]) -> None:
        self.connection = connection

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Everything inside is one transaction, sent in as few round trips as possible (pipeline mode)."""
        with self.connection.pipeline(), self.connection.transaction():
            yield

    # -- worker: claim and finish

    def find_due(self, queues: Sequence[str]) -> list[Due]:
        """Which queues and priorities hold queued jobs, and how soon the first of each is due."""
        return [Due(*row) for row in self._run("find_due", {"queues": list(queues)}).fetchall()]

    def claim(
        self, worker_id: int, tasks: Sequence[str], queue: str, priority: int, take: int, floor: Floor | None = None,
        *, past_gate: bool = False,
    ) -> list[ClaimedJob]:  # fmt: skip
        """Take at most `take` due jobs of one queue and priority, oldest first. Empty when the worker's lease has expired.

        Args:
            past_gate: claim however many others do.

        Raises:
            Crowded: two others are claiming more than a few jobs of this queue, and `take` is more than `UNGATED`.
        """
        run_at, last_id = floor or FROM_THE_START
        cursor = self._run(
            "claim",
            {
                "worker_id": worker_id, "tasks": list(tasks), "queue": queue, "priority": priority,
                "floor_run_at": run_at, "floor_id": last_id, "take": take, "past_gate": past_gate,
            },
        )  # fmt: skip
        rows = cursor.fetchall()
        if rows and rows[0][0] is None:  # the id of what the closed gate returns
            raise Crowded
        return sorted((ClaimedJob(*row) for row in rows), key=_claim_order)

    def claim_ordered(self, worker_id: int, tasks: Sequence[str], queue: str, priority: int, take: int, walk: Walk) -> Walked:
        """Take at most `take` due jobs of one queue and priority that are the next of their ordering keys, at most one of each key.

        Raises:
            Overtaken: another claim was faster.
        """
        given = {
            "worker_id": worker_id, "tasks": list(tasks), "queue": queue, "priority": priority, "take": take,
            "given": list(walk.given), "floor_key": walk.behind, "keys": walk.keys,
        }  # fmt: skip
        try:
            rows = self._run("claim_ordered", given).fetchall()
        except (pg.UniqueViolation, pg.DeadlockDetected) as error:  # the latter: two of them over two keys each
            raise Overtaken from error
        jobs = sorted((ClaimedJob(*row[_WALKED:]) for row in rows if row[_WALKED] is not None), key=_claim_order)
        return Walked(jobs, *rows[0][:_WALKED])

    def finish(self, outcomes: Iterable[Outcome], tally: Counter[str] | None = None) -> list[Outcome]:
        """Write the outcomes of attempts, fenced, in one transaction.

        Args:
            tally: is told how many jobs went through which statement, such as `fail` or `quarantine`.

        Returns:
            Those that were refused because the attempt has been superseded; nothing was written for them.

        Raises:
            psycopg.Error: nothing was written; `is_transient` says whether the same call may be made again.
        """
        groups: dict[str, list[Any]] = {}
        for outcome in outcomes:
            groups.setdefault("succeed" if type(outcome) is Succeeded else outcome.ending, []).append(outcome)  # type: ignore[union-attr]
        now = clock.monotonic()
        for group in groups.values():
            group.sort(key=attrgetter("id"))
        if groups.keys() == {"succeed"}:  # one statement is a transaction by itself, without a word more between us and the server
            running = [self._send(name, group, now) for name, group in groups.items()]
        else:
            with self.transaction():
                self._hold([outcome for group in groups.values() for outcome in group])
                running = [self._send(name, group, now) for name, group in groups.items()]
        refused: list[Outcome] = []
        for group, cursors in running:
            moved = {step: [row[0] for row in cursor.fetchall()] for step, cursor in cursors.items()}
            accepted = {job_id for ids in moved.values() for job_id in ids}
            if tally is not None:
                tally.update({step: len(ids) for step, ids in moved.items()})
            if len(accepted) < len(group):
                # Two attempts of one job in one batch: leases only grow, so the later one is what was accepted.
                latest = {outcome.id: outcome.lease for outcome in sorted(group, key=attrgetter("lease"))}
                refused.extend(outcome for outcome in group if outcome.id not in accepted or outcome.lease != latest[outcome.id])
        return refused

    def _hold(self, outcomes: Sequence[Outcome]) -> None:
        """Lock all the rows of a batch before the first of its statements, so that their order is one."""
        if len(outcomes) > 1:
            given = {"ids": arrays.ints(outcome.id for outcome in outcomes), "leases": arrays.ints(outcome.lease for outcome in outcomes)}
            self._run("hold", given)

    def _send(self, name: str, group: list[Any], now: float) -> tuple[list[Any], dict[str, Cursor[Any]]]:
        """One group of outcomes, and the statements that it goes through."""
        if name == "succeed":
            return group, {"succeed": self._run("succeed", arrays.successes(group, now))}
        parameters = arrays.endings(group, now)
        return group, {step: self._run(step, parameters) for step in _SEQUENCES[Ending(name)]}

    def start(self, begun: Sequence[tuple[int, int, float]]) -> set[int]:
        """Record that attempts, given as (id, lease, seconds running), have begun. Returns the ids whose lease still holds."""
        begun = sorted(begun)
        parameters = {
            "ids": arrays.ints(job_id for job_id, _, _ in begun),
            "leases": arrays.ints(lease for _, lease, _ in begun),
            "age_ms": arrays.ints(int(age * 1000) for _, _, age in begun),
        }
        return {row[0] for row in self._run("start", parameters).fetchall()}

    def note(self, notes: Sequence[Note]) -> set[tuple[int, int]]:
        """Keep progress and checkpoints of running attempts.

        Returns:
            Those of the attempts, as (id, lease), that still hold their lease or have succeeded under it: a transactional task ends its
            job by itself, and what it said just before comes late without being superseded.
        """
        held = {(row[0], row[1]) for row in self._run("progress", arrays.notes(sorted(notes, key=_attempt))).fetchall()}
        rest = [note for note in notes if _attempt(note) not in held]
        if rest:
            # A statement of its own: one that waited for the end of such a job does not see what that wrote.
            given = {"ids": arrays.ints(note.id for note in rest), "leases": arrays.ints(note.lease for note in rest)}
            held |= {(row[0], row[1]) for row in self._run("has_succeeded", given).fetchall()}
        return held

    def log(self, lines: Sequence[LogLine]) -> int:
        """Keep lines of attempts that run, or have succeeded; those of superseded ones are dropped. Returns how many were kept."""
        return self._run("log", arrays.log_lines(lines, clock.monotonic())).rowcount

    # -- worker: its own row, other workers' jobs

    def register_worker(self, facts: Mapping[str, Any], lease: timedelta) -> int:
        """Insert a worker row and return its id; `facts` are the parameters of `register_worker.sql`."""
        row = self._run("register_worker", {**facts, "lease_ms": _ms(lease), "pool": None, "pool_slot": None}).fetchone()
        return cast("int", row[0])  # type: ignore[index]

    def take_slot(self, facts: Mapping[str, Any], lease: timedelta, pool: str, number: int) -> Registered | None:
        """Insert the row of a worker that must be the only one with that slot (from 1) of that pool.

        Waits for another that is taking or leaving the same slot at this moment, for as long as its transaction takes.

        Returns:
            Its id, and which lost worker had to give up the slot; None when another worker holds it.
        """
        slot = {"pool": pool, "pool_slot": number}
        with self.connection.transaction():
            lost = self._run("give_up_slot", slot).fetchone()
            row = self._run("register_worker", {**facts, "lease_ms": _ms(lease), **slot}).fetchone()
        return None if row is None else Registered(row[0], None if lost is None else lost[0])

    def set_tasks(self, worker_id: int, tasks: Sequence[str]) -> bool:
        """Say which tasks a worker can run; False when its lease was lost."""
        return self._run("set_tasks", {"worker_id": worker_id, "tasks": list(tasks)}).fetchone() is not None

    def heartbeat(self, worker_id: int, lease: timedelta, sight: WorkerSight, counts: WorkerCounts) -> bool:
        """Renew the lease; False when it was lost (expired, or another worker gave this one up)."""
        parameters = {"worker_id": worker_id, "lease_ms": _ms(lease), **sight._asdict(), **counts._asdict()}
        return self._run("heartbeat", parameters).fetchone() is not None

    def stop_worker(self, worker_id: int, leaving: Leaving, counts: WorkerCounts) -> bool:
        """Close the worker's row in order and keep what it did in `worker_runs`; False when it had been given up."""
        words = {"last_exit": leaving.reason, **leaving._asdict()}
        del words["reason"]
        return self._run("stop_worker", {"worker_id": worker_id, **words, **counts._asdict()}).fetchone() is not None

    def remains(self, queues: Sequence[str], most: int) -> Remains:
        """What waits in some queues; due jobs are counted up to `most`."""
        return Remains(*cast("Any", self._run("left_due", {"queues": list(queues), "most": most}).fetchone()))

    def held_jobs(self, worker_id: int) -> list[Held]:
        """What the database thinks this worker is running."""
        return [Held(*row) for row in self._run("held_jobs", {"worker_id": worker_id}).fetchall()]

    def overdue(self) -> tuple[bool, bool]:
        """Whether `rescue` has something to do, and whether `expire` has: one glance for both, which locks nothing."""
        lost, expired = self._run("any_lost", {}).fetchone() or (False, False)
        return lost, expired

    def rescue(self) -> tuple[list[LostWorker], int]:
        """Give back the jobs of workers whose lease expired. Returns those found lost just now, and how many jobs were moved.

        Waits for nobody: a job whose end somebody is writing at this moment is looked at again after 5 seconds.
        """
        if not self.overdue()[0]:
            return [], 0
        with self.connection.transaction():
            looked_at = self._run("lost_workers", {}).fetchall()
            if not looked_at:
                return [], 0
            ids = {"worker_ids": [row[0] for row in looked_at]}
            lost = [LostWorker(worker_id, name) for worker_id, name, newly_lost in looked_at if newly_lost]
            count = sum(self._run(name, ids).rowcount for name in ("rescue", "rescue_quarantine", "rescue_abort"))
            self._run("look_again", ids)
            return lost, count

    def expire(self, most: int) -> int:
        """End at most `most` jobs that were not begun before they expired. Returns how many."""
        return self._run("expire", {"most": most}).rowcount

    def take_turn(self, worker_id: int, turn: timedelta) -> bool:
        """Be the only worker at upkeep for so long; no time at all ends it. False while another one is. Waits for no lock."""
        return self._run("take_turn", {"worker_id": worker_id, "turn_ms": _ms(turn)}).fetchone() is not None

    def ensure_partitions(self, ahead: int) -> int:
        """Make the partitions of the next `ahead` days. Returns how many were made."""
        return cast("int", self._run("ensure_partitions", {"ahead": ahead}).fetchone()[0])  # type: ignore[index]

    def settle_rollups(self, age: timedelta, minutes: timedelta, most: int) -> int:
        """Add at most `most` slices that are older than `age` to their hours, and to their minutes unless older than `minutes`.

        Returns:
            How many there were; 0 also while somebody else is at it.
        """
        row = self._run("settle_rollups", {"age_ms": _ms(age), "minutes_ms": _ms(minutes), "most": most}).fetchone()
        return cast("int", row[0])  # type: ignore[index]

    # -- forgetting

    def prune(self, what: Literal["workers", "worker_runs", "rollup_hours"], keep: timedelta, most: int) -> int:
        """Delete at most `most` rows of workers that stopped, runs or hours that ended longer ago than `keep`. Returns how many."""
        return self._run(f"prune_{what}", {"keep_ms": _ms(keep), "most": most}).rowcount

    def drop_partitions(self, parent: str, keep: timedelta, most: int, patience: timedelta) -> int:
        """Drop at most `most` daily partitions of a table that ended longer ago than `keep`. Returns how many there were.

        Raises:
            psycopg.errors.LockNotAvailable: the table is in use for longer than `patience`; none was dropped.
        """
        with self.connection.transaction():
            self.connection.execute("SELECT set_config('lock_timeout', %s, true)", (f"{_ms(patience)}ms",))
            row = self._run("drop_partitions", {"parent": parent, "keep_ms": _ms(keep), "most": most}).fetchone()
        return cast("int", row[0])  # type: ignore[index]

    # -- operators

    def cancel(self, job_id: int) -> str:
        """Cancel a queued job (`"cancelled"`) or ask a running one to stop (`"requested"`).

        Raises:
            JobNotFound, IllegalTransition: no such job, or it is finished.
        """
        for name, answer in (("cancel", "cancelled"), ("request_cancel", "requested"), ("cancel", "cancelled")):
            if self._run(name, {"ids": [job_id]}).fetchone():
                return answer
        raise self._illegal(job_id, "cancel")

    def cancel_queued(self, ids: Sequence[int]) -> list[int]:
        """Cancel those that wait, and none that runs or is finished. Returns their ids."""
        return [row[0] for row in self._run("cancel", {"ids": list(ids)}).fetchall()]

    def requeue(self, job_id: int) -> str:
        """Bring a failed, cancelled or quarantined job back, or make a waiting one due now. Returns its queue.

        Raises:
            JobNotFound, IllegalTransition: no such job, or it is running or has succeeded.
            DuplicateJob: a live job holds the same unique key.
        """
        try:
            row = self._run("requeue", {"ids": [job_id]}).fetchone() or self._run("run_now", {"ids": [job_id]}).fetchone()
        except pg.UniqueViolation as error:
            raise self._duplicate(job_id) from error
        if row is None:
            raise self._illegal(job_id, "requeue")
        return str(row[1])

    def _illegal(self, job_id: int, transition: str) -> JobNotFound | IllegalTransition:
        row = self._run("job_state", {"id": job_id}).fetchone()
        if row is None:
            return JobNotFound(job_id, was_given=self._was_given(job_id))
        hints = {
            ("requeue", "succeeded"): "a job that succeeded is not run again; enqueue a new one",
            ("requeue", "running"): "wait for it, or cancel it first",
        }
        verb = "retry" if transition == "requeue" else transition
        fallback = f"{verb} is possible from: {', '.join(sorted(sources_of(transition)))}"
        return IllegalTransition(job_id, row[0], verb, hint=hints.get((transition, row[0]), fallback))

    def _was_given(self, job_id: int) -> bool:
        """Whether there has been a job with that id, or an enqueue that was rolled back."""
        query = "SELECT last_value >= %s FROM pg_sequences WHERE schemaname = 'jobrunner' AND sequencename = 'jobs_id_seq'"
        row = self.connection.execute(query, (job_id,)).fetchone()
        return row is not None and bool(row[0])  # NULL for who may not read the sequence

    def _duplicate(self, job_id: int) -> DuplicateJob:
        row = self.connection.execute(
            "SELECT j.id, j.unique_key FROM jobrunner.jobs j "
            "JOIN jobrunner.job_history h ON h.task = j.task AND h.unique_key = j.unique_key WHERE h.id = %s",
            (job_id,),
        ).fetchone()
        return DuplicateJob(*row) if row else DuplicateJob(job_id, "?")

    def _run(self, name: str, parameters: Mapping[str, Any]) -> Cursor[Any]:
        # Prepared where `allow_preparing` has found that it may be.
        return self.connection.execute(statements.load(name), parameters, prepare=True)


_attempt = attrgetter("id", "lease")


def _claim_order(job: ClaimedJob) -> tuple[datetime, int]:
    return job.run_at, job.id


def _ms(duration: timedelta) -> int:
    return int(duration.total_seconds() * 1000)
