"""A process can limit itself and know its own peak, whatever its task does to its descriptors."""

from __future__ import annotations

import mmap
import os
import resource
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from jobrunner.worker import limits
from tests.support.trees import tree

pytestmark = pytest.mark.needs("linux")

MB = 1 << 20
SLACK = 3 * MB  # the kernel counts pages per CPU, and Python allocates for itself


def said(body):
    """What `body` says, in a forked process of its own."""
    with tree(body) as root:
        return root.hear()


def known(size: int | None) -> int:
    """A figure that /proc tells."""
    assert size is not None
    return size


def touch(size):
    """Have so much memory for a moment. A mapping of its own: what is freed to the allocator may stay resident."""
    with mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        for _ in range(size // MB):
            memory.write(bytes(MB))
    return size


def test_the_peak_is_since_the_reset():
    """The peak covers what was allocated and freed since the last reset, not before; what is resident now is the floor."""

    def body(inside):
        peak = limits.PeakMemory()
        found = [peak.reset(), peak.resident_bytes(), peak.peak_bytes()]
        touch(80 * MB)
        found += [peak.peak_bytes(), peak.resident_bytes(), peak.reset(), peak.peak_bytes()]
        inside.say(found)

    reset, resident, low, high, after, again, low_again = said(body)
    assert reset
    assert again
    assert abs(low - resident) < SLACK
    assert abs(high - low - 80 * MB) < SLACK
    assert abs(after - resident) < SLACK
    assert abs(low_again - after) < SLACK


def test_a_forked_process_reads_it_from_getrusage():
    """In a forked process getrusage follows the reset, which is the cheap way; both ways agree."""

    def body(inside):
        touch(80 * MB)
        peak = limits.PeakMemory()
        peak.reset()
        touch(40 * MB)
        inside.say([peak._by_rusage, peak.peak_bytes(), limits._high_water()])

    by_rusage, peak, high_water = said(body)
    assert by_rusage
    assert abs(peak - high_water) < SLACK


def test_a_program_started_by_a_large_one():
    """After exec getrusage tells of the larger process before it; the peak does not."""
    program = """
        from jobrunner.worker.limits import PeakMemory, _max_rss
        peak = PeakMemory()
        peak.reset()
        x = b"x" * (30 << 20)
        print(peak.peak_bytes(), _max_rss())
    """

    def body(inside):
        inside.kept = b"x" * (200 * MB)
        inside.say(subprocess.check_output([sys.executable, "-c", textwrap.dedent(program)], text=True))

    peak, by_rusage = map(int, said(body).split())
    assert by_rusage > 200 * MB
    assert 30 * MB < peak < 100 * MB


def test_descriptors_closed_by_the_task():
    """After a task has closed every descriptor the peak works as before."""

    def body(inside):
        peak = limits.PeakMemory()
        peak.reset()
        saved = os.dup2(inside._mouth, 1000)
        os.closerange(3, 1000)
        inside._mouth = saved
        resident = peak.resident_bytes()
        touch(50 * MB)
        high = peak.peak_bytes()
        inside.say([resident, high, peak.reset(), peak.peak_bytes()])

    resident, high, reset, low = said(body)
    assert high - resident > 49 * MB
    assert reset
    assert low < high - 40 * MB


def test_descriptors_reused_by_the_task(tmp_path):
    """A file that a task has opened under a descriptor it closed is neither written to, nor read, nor closed."""

    def body(inside):
        peak = limits.PeakMemory()
        peak.reset()
        numbers = [peak._clear._number, peak._statm._number]
        for number in numbers:
            os.close(number)
        files = [os.open(tmp_path / str(number), os.O_RDWR | os.O_CREAT) for number in sorted(numbers)]
        assert files == sorted(numbers)
        found = [peak.reset(), known(peak.resident_bytes()) > MB, peak.reset()]
        peak.close()
        inside.say([found, [os.fstat(number).st_size for number in numbers]])

    assert said(body) == [[True, True, True], [0, 0]]


def test_a_fork_opens_its_own():
    """What was opened before a fork tells of the parent: the child resets and reads itself, and leaves the parent's peak alone."""

    def body(inside):
        peak = limits.PeakMemory()
        peak.reset()
        touch(60 * MB)
        pid = os.fork()
        if pid == 0:
            peak.reset()
            touch(20 * MB)
            inside.say([peak.peak_bytes(), peak.resident_bytes()])
            os._exit(0)
        os.waitpid(pid, 0)
        inside.say([peak.peak_bytes(), peak.resident_bytes()])

    with tree(body) as root:
        (child_peak, child_resident), (peak, resident) = root.hear(), root.hear()
    assert abs(child_peak - child_resident - 20 * MB) < SLACK
    assert abs(peak - resident - 60 * MB) < SLACK


def test_no_peak_without_a_reset(monkeypatch):
    """Where the kernel cannot reset it there is no peak to tell, rather than that of another job."""
    peak = limits.PeakMemory()
    assert peak.peak_bytes() is None
    monkeypatch.setattr(peak._clear, "descriptor", lambda: None)
    assert not peak.reset()
    assert peak.peak_bytes() is None
    peak.close()
    peak.close()


def test_cpu_seconds():
    """SIGXCPU comes once the process has used so much more CPU time, not at once and not much later; None lifts it."""

    def body(inside):
        before = resource.getrlimit(resource.RLIMIT_CPU)
        burnt = resource.getrusage(resource.RUSAGE_SELF)
        took = limits.set_cpu_seconds(1)
        soft, hard = resource.getrlimit(resource.RLIMIT_CPU)
        lifted = limits.set_cpu_seconds(None) and resource.getrlimit(resource.RLIMIT_CPU) == before
        inside.say([took, soft - burnt.ru_utime - burnt.ru_stime, hard == before[1], lifted])
        limits.set_cpu_seconds(1)
        while True:
            pass

    with tree(body) as root:
        took, more, same_hard, lifted = root.hear()
        assert took
        assert 1 <= more <= 2.1
        assert same_hard
        assert lifted
        assert root.wait() == -signal.SIGXCPU


def test_address_space():
    """Above the limit an allocation is a MemoryError and the process goes on; None lifts it."""

    def body(inside):
        def allocate(size):
            return len(b"x" * size)

        before = resource.getrlimit(resource.RLIMIT_AS)
        found: list[object] = [limits.set_address_space(known(limits.address_space_bytes()) + 50 * MB)]
        try:
            allocate(100 * MB)
        except MemoryError:
            found.append("MemoryError")
        found += [allocate(10 * MB), limits.set_address_space(None), allocate(100 * MB)]
        inside.say([found, resource.getrlimit(resource.RLIMIT_AS) == before])

    assert said(body) == [[True, "MemoryError", 10 * MB, True, 100 * MB], True]


def test_a_hard_limit_is_kept():
    """Above a hard limit somebody else has set, the soft limit is the hard one; nothing raises."""

    def body(inside):
        hard = known(limits.address_space_bytes()) + 500 * MB
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
        found = [limits.set_address_space(hard * 2), limits.set_address_space(hard - MB), limits.set_address_space(None)]
        inside.say([found, resource.getrlimit(resource.RLIMIT_AS) == (hard, hard)])

    assert said(body) == [[True, True, True], True]


def test_own_figures():
    """The figures of this process are those of the kernel's status."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    assert abs(known(limits.resident_bytes()) - int(status["VmRSS"].split()[0]) * 1024) < SLACK
    assert abs(known(limits.address_space_bytes()) - int(status["VmSize"].split()[0]) * 1024) < SLACK
