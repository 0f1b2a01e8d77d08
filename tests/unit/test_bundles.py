"""Bundles: each job either begins in the child or comes back to the worker, whoever is faster, and nothing is left open."""

from __future__ import annotations

import errno
import gc
import itertools
import os
import random
import select
import socket
import struct
from datetime import UTC, datetime
from pathlib import Path

import pytest

from jobrunner.jobs import ClaimedJob
from jobrunner.worker import bundles, channels, wire
from jobrunner.worker.bundles import FEWEST, Inbox
from jobrunner.worker.children import PROCESS, THREADS, Child, Run
from tests.support.trees import tree

DUE = datetime(2026, 1, 1, tzinfo=UTC)
NUMBER = struct.Struct("<q")
ROUNDS, RACE = 200, 30  # of the race, at least; jobs in each: together less than a pipe holds


def claimed(number, args="{}"):
    """A claimed job."""
    return ClaimedJob(number, 1, 1, 5, "short", "default", args, DUE, None, suspect=False)


class Ends:
    """A child as the worker knows it, and the inbox that its process would have."""

    def __init__(self, kind=PROCESS):
        fields, _, self._close = channels.connect()
        self.child = Child(number=1, kind=kind, capacity=1, pid=1, **fields)
        self.inbox = Inbox(self.child.inbox_there)

    def send(self, jobs):
        """Give jobs. Returns the numbers of those for which there was no room."""
        runs = [Run(job) for job in jobs]
        for run in runs:
            self.child.give(run, 1.0)
        return [run.job.id for run in self.child.send(runs)]

    def begin(self, count=1):
        """The child begins so many jobs. Returns their numbers."""
        return [wire.job_id(self.inbox.take()) for _ in range(count)]

    def end(self, numbers):
        """The worker hears of their ends."""
        for number in numbers:
            self.child.drop(number)

    def take_back(self):
        """The worker takes back what has not begun."""
        return [job.id for job in self.child.unread()]

    def close(self):
        """End both sides."""
        self.child.dismiss()
        while self.inbox.take():
            pass
        self.child.close()
        for end in self._close:
            end()


@pytest.fixture
def ends():
    made = Ends()
    yield made
    made.close()


def open_files():
    """Descriptors of this process."""
    return len(list(Path("/proc/self/fd").iterdir()))


def test_many_jobs_are_one_datagram(ends):
    """What is sent together is read at once, and begins in the order in which it was given."""
    assert ends.send([claimed(number) for number in range(10)]) == []
    assert ends.begin(10) == list(range(10))
    with pytest.raises(BlockingIOError):
        ends.child.inbox_there.recv(1, socket.MSG_DONTWAIT)


def test_few_jobs_travel_alone(ends):
    """Below the number that pays for a counter every job is a datagram."""
    ends.send([claimed(number) for number in range(FEWEST - 1)])
    assert not ends.child.bundles
    assert ends.begin(FEWEST - 1) == list(range(FEWEST - 1))


@pytest.mark.parametrize("begun", [0, 1, 4, 10])
def test_what_has_not_begun_comes_back(ends, begun):
    """The child has read the whole bundle; all but what it has begun is the worker's again, in its order, and begins no more."""
    ends.send([claimed(number) for number in range(10)])
    assert ends.begin(begun) == list(range(begun))
    assert ends.take_back() == list(range(begun, 10))
    assert list(ends.child.runs) == list(range(begun))
    ends.send([claimed(100)])
    assert ends.begin() == [100]


def test_a_new_bundle_is_not_taken_for_the_rest_of_an_old_one(ends):
    """After a take-back the child still has the old jobs' text; the turns of the next bundle are not theirs."""
    ends.send([claimed(number) for number in range(10)])
    ends.begin(3)
    ends.take_back()
    ends.send([claimed(number) for number in range(20, 30)])
    assert ends.begin(4) == [20, 21, 22, 23]
    assert ends.take_back() == list(range(24, 30))


def test_bundles_and_single_jobs_come_back_together(ends):
    """What was sent at different times, read or not, comes back in the order in which it was given."""
    ends.send([claimed(number) for number in range(6)])
    ends.send([claimed(6)])
    ends.send([claimed(number) for number in range(7, 15)])
    assert ends.begin(2) == [0, 1]
    assert ends.take_back() == list(range(2, 15))


def begin_all(inbox, told):
    """A process that begins every job it gets and tells its number; the negative one is the last."""
    number, code = 0, 1
    try:
        while number >= 0:
            number = wire.job_id(inbox.take())
            os.write(told, NUMBER.pack(number))
        code = 0
    finally:
        os._exit(code)


def test_whoever_is_faster_has_the_job(ends):
    """A process that begins jobs while the worker takes them back: each job is on exactly one side."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    hear, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        begin_all(ends.inbox, tell)
    os.close(tell)
    sent, back = [], []
    for number in itertools.count():
        if number >= ROUNDS and select.select([hear], [], [], 0)[0]:
            break  # it has begun some, or is gone; on a busy machine it may not have run at all in the time of so many rounds
        jobs = list(range(number * RACE, (number + 1) * RACE))
        sent += jobs
        ends.send([claimed(job) for job in jobs])
        for _ in range(dice.randrange(RACE)):  # as long as the child takes for some of them, more or less
            os.getppid()
        came = ends.take_back()
        ends.end(set(jobs) - set(came))
        back += came
    ends.send([claimed(-1)])
    assert os.waitpid(pid, 0)[1] == 0
    with os.fdopen(hear, "rb") as file:
        begun = [number for (number,) in NUMBER.iter_unpack(file.read())]
    assert begun.pop() == -1
    assert sorted(begun + back) == sent
    assert begun, "the worker was always faster"
    assert back, "the child was always faster"
    ends.end([-1])


def test_nothing_is_lost_on_either_side():
    """What began and what came back are together all that was sent."""
    ends = Ends()
    sent, seen = 0, 0
    for size in (4, 50, 400, 5):
        ends.send([claimed(sent + number) for number in range(size)])
        sent += size
        seen += len(ends.begin(size // 2))
        seen += len(ends.take_back())
    assert seen == sent
    ends.close()


def test_no_descriptor_stays_open():
    """Bundles that ended, were taken back read and unread, or died with their child leave no counter behind."""

    def look(inside):  # in a process without the threads and the garbage of other tests, which close what is theirs at any moment
        gc.disable()
        before = open_files()
        ends = Ends()
        for round_ in range(3):
            numbers = list(range(round_ * 100, round_ * 100 + 10))
            ends.send([claimed(number) for number in numbers])
            ends.begin(10)
            ends.end(numbers)
        assert not ends.child.bundles
        ends.send([claimed(number) for number in range(1000, 1010)])
        ends.begin(2)
        ends.take_back()
        ends.send([claimed(number) for number in range(2000, 2010)])
        ends.take_back()
        ends.send([claimed(number) for number in range(3000, 3010)])
        ends.close()
        inside.say(open_files() - before)

    with tree(look) as process:
        assert process.hear() == 0


def test_large_arguments_fill_several_datagrams_or_a_file(ends):
    """No datagram is larger than the sockets take, and every job arrives whole, in order."""
    sizes = [10, 20_000, 20_000, 20_000, 10, 10, 10, 10, 100_000, 10, 10, 10, 10, 10]
    jobs = [claimed(number, f'{{"text": "{"x" * size}"}}') for number, size in enumerate(sizes)]
    assert ends.send(jobs) == []
    arrived = [wire.decode_job(ends.inbox.take()) for _ in jobs]
    assert [(job.id, len(job.args["text"])) for job in arrived] == list(enumerate(sizes))


def test_what_does_not_fit_stays_with_the_worker(ends):
    """A full inbox takes the first of the jobs; the rest is told, in order."""
    jobs = [claimed(number, f'{{"text": "{"x" * 40_000}"}}') for number in range(20)]
    unsent = ends.send(jobs)
    assert unsent == list(range(20 - len(unsent), 20))
    assert 0 < len(unsent) < 20
    ends.end(unsent)
    assert ends.take_back() == list(range(20 - len(unsent)))


def test_text_with_line_breaks_does_not_split_a_job(ends):
    """Jobs are told apart by a byte that their encoding cannot contain."""
    jobs = [claimed(number, '{"text": "a\\nb"}')._replace(task="two\nlines", checkpoint='{"c": "\\n"}') for number in range(5)]
    ends.send(jobs)
    assert {(job.task, job.args["text"]) for job in (wire.decode_job(ends.inbox.take()) for _ in jobs)} == {("two\nlines", "a\nb")}


def test_children_with_several_slots_get_single_jobs():
    """Threads and coroutines take jobs side by side, each from the inbox itself."""
    ends = Ends(THREADS)
    ends.send([claimed(number) for number in range(10)])
    assert not ends.child.bundles
    assert ends.begin(10) == list(range(10))
    ends.close()


def test_a_counter_that_is_another_file_by_now_ends_the_child(ends, tmp_path):
    """A task that closes what is not its own, and opens a file under that number, must not be read as a turn."""
    ends.send([claimed(number) for number in range(10)])
    ends.begin(1)
    turns = ends.inbox._turns
    file = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    os.write(file, b"8 bytes!")
    os.lseek(file, 0, os.SEEK_SET)
    os.dup2(file, turns)
    os.close(file)
    with pytest.raises(OSError, match="Bad file descriptor"):
        ends.inbox.take()
    assert ends.take_back() == list(range(1, 10))
    os.close(turns)
    ends.inbox = Inbox(ends.child.inbox_there)


def test_too_many_descriptors_on_their_way_are_a_full_inbox(ends, monkeypatch):
    """The kernel bounds how many a user may have sent and nobody has read: the jobs stay with the worker, and no counter stays open."""

    def refuse(*_):
        raise OSError(errno.ETOOMANYREFS, os.strerror(errno.ETOOMANYREFS))

    with monkeypatch.context() as patched:
        patched.setattr(wire, "send_bundle", refuse)
        before = open_files()
        assert ends.send([claimed(number) for number in range(10)]) == list(range(10))
        assert open_files() == before
    ends.end(range(10))
    assert ends.send([claimed(number) for number in range(10)]) == []
    assert ends.begin(10) == list(range(10))


def test_where_there_is_no_such_counter_jobs_travel_alone(ends, monkeypatch):
    """On systems without eventfd every job is a datagram of its own."""
    monkeypatch.setattr(bundles, "POSSIBLE", False)
    ends.send([claimed(number) for number in range(10)])
    assert not ends.child.bundles
    assert ends.begin(4) == [0, 1, 2, 3]
    assert ends.take_back() == [4, 5, 6, 7, 8, 9]
