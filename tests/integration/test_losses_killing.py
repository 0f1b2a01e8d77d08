"""The kill of `bench/losses.py` takes everybody that a contender's worker has started, and nobody else."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys

import pytest

from bench.losing import killing
from tests.support.waiting import wait_until

pytestmark = pytest.mark.needs("linux")

PATIENCE = 20  # seconds
VARIABLE = "LOSSES_LEDGER"
# A worker with a child, and with a daemon that another child has left behind in a session of its own; it goes on until it is killed. (-3 is DEVNULL.)
WORKER = """
import subprocess, sys, time
again = "import subprocess; print(subprocess.Popen(['sleep', '600'], start_new_session=True, stdout=-3, stderr=-3).pid)"
child = subprocess.Popen(["sleep", "600"], stdout=subprocess.DEVNULL)
daemon = subprocess.run([sys.executable, "-c", again], capture_output=True, text=True, check=True)
print(child.pid, daemon.stdout.strip(), flush=True)
if "ends" not in sys.argv:
    time.sleep(600)
"""


@pytest.fixture
def processes(tmp_path):
    """Starts programs with the variable in their environment; gives it, and what starts them. All are gone at the end."""
    started, variable = [], f"{VARIABLE}={tmp_path / 'ledger'}"

    def start(*command):
        environment = {**os.environ, VARIABLE: str(tmp_path / "ledger")}
        process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True)
        started.append(process)
        return process

    yield variable, start
    for pid in killing.marked(variable):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for process in started:
        process.communicate(timeout=PATIENCE)


@pytest.mark.parametrize("how", ["goes on", "ends"])
def test_nobody_is_overlooked(processes, how):
    """Root, child and a daemon that no living parent leads to are dead, also when the root has ended before; the adapter is spared."""
    variable, start = processes
    adapter = start("sleep", "600")
    worker = start(sys.executable, "-c", WORKER, how)
    below = {int(word) for word in worker.stdout.readline().split()}
    if how == "ends":
        worker.wait(PATIENCE)
    assert len(below) == 2
    assert wait_until(lambda: below <= set(killing.marked(variable)), timeout=PATIENCE, what="both to be seen")
    assert killing.kill_all(worker, variable, {adapter.pid}, PATIENCE)
    assert killing.marked(variable) == [adapter.pid]
    assert adapter.poll() is None
    assert worker.returncode == (0 if how == "ends" else -signal.SIGKILL)


def test_another_ledger_is_nobody_of_ours(processes):
    """A worker of another contender, or of another round, has another value in the same variable."""
    variable, start = processes
    other = start("sleep", "600")
    worker = subprocess.Popen(["sleep", "600"])
    assert wait_until(lambda: killing.marked(variable) == [other.pid], timeout=PATIENCE, what="it to be seen")
    assert killing.kill_all(worker, f"{variable}-2", (), PATIENCE)
    assert other.poll() is None
