"""Owns the translation of Celery's worker flags into the command line of `jobrunner work`, and what of them has no place there.

It must not start anything, nor know click's context.
"""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Any, NamedTuple

from jobrunner.cli.failures import Code, CommandError
from jobrunner.worker.options import LEAST_MEMORY, default_slots

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

WARM = "1w"  # of grace: Celery's warm shutdown waits without a limit; who supervises the worker has a shorter one
KIB = 1024  # bytes; Celery counts the memory of a child in them
LOGLEVEL = "JOBRUNNER_CELERY_LOGLEVEL"  # read by jobrunner.compat.celery: the level of what tasks log
REMAPPED = "REMAP_SIGTERM"  # Celery's own variable: SIGQUIT there makes SIGTERM a cold shutdown
_POOLS = {"prefork": "prefork", "processes": "prefork", "threads": "threads", "solo": "solo"}
_LEVELS = {"DEBUG": "-v", "INFO": None, "WARNING": None, "WARN": None, "ERROR": "-q", "CRITICAL": "-q", "FATAL": "-q"}

# Flags that are taken and make no difference, with what to say.
IGNORED = {
    "task_events": "-E: there are no event messages; the dashboard and the views read tables",
    "optimization": "-O: a worker takes a job when it has room for it, which is what fair means",
    "without_gossip": "--without-gossip: workers do not talk to each other",
    "without_mingle": "--without-mingle: workers do not talk to each other",
    "without_heartbeat": "--without-heartbeat: a worker has a lease in the database, and renews it (--lease of jobrunner work)",
    "heartbeat_interval": "--heartbeat-interval: a worker has a lease in the database, and renews it (--lease of jobrunner work)",
    "prefetch_multiplier": "--prefetch-multiplier: nothing is prefetched",
    "disable_prefetch": "--disable-prefetch: nothing is prefetched",
    "statedb": "-S: revoked tasks are cancelled in their rows",
    "schedule_filename": "-s: no schedule is kept in a file",
    "skip_checks": "--skip-checks: those were checks of Django",
    "result_backend": "--result-backend: results are in Jobrunner's tables",
}

# Flags that ask for what is not there, with what to do instead.
REFUSED = {
    "beat": ("-B", "schedules are not there yet, they come with Jobrunner's own; run `celery beat` or cron beside it, and leave -B out"),
    "scheduler": ("--scheduler", "schedules are not there yet, and a scheduler class is not loaded"),
    "detach": ("-D", "the worker stays in the foreground; let systemd, supervisor or a container start and watch it"),
    "uid": ("--uid", "start it as that user: User= of the systemd unit, user= of supervisor"),
    "gid": ("--gid", "start it as that group: Group= of the systemd unit"),
    "executable": ("--executable", "start it with that Python: PYTHON -m jobrunner celery-worker …"),
    "include": ("-I", "name the modules in include= of Celery(…), or in `imports` of its configuration"),
    "loader": ("--loader", "loaders are Celery's own; call app.config_from_object(…) where the app is made"),
    "config": ("--config", "call app.config_from_object(…) where the app is made"),
}


class AppFacts(NamedTuple):
    """What the app of `-A` says about itself.

    Attributes:
        address: `module:attribute`, as `jobrunner --app` takes it.
        queues: that it declares, or its default one; empty when it says nothing of queues.
        settings: of its configuration, those that a worker goes by.
    """

    address: str
    queues: tuple[str, ...] = ()
    settings: Mapping[str, Any] = {}


class Translation(NamedTuple):
    """A native command line.

    Attributes:
        arguments: behind `jobrunner`.
        environ: variables in front of it.
        ignored: what was taken and makes no difference.
        notices: what has another effect than in Celery.
        soft: seconds that running jobs have after SIGQUIT.
    """

    arguments: list[str]
    environ: dict[str, str]
    ignored: list[str]
    notices: list[str]
    soft: float


def refuse(given: Mapping[str, Any]) -> None:
    """Raise for flags that have no place, all of them at once.

    Raises:
        CommandError: there are some.
    """
    found = [f"{flag}: {what}" for name, (flag, what) in REFUSED.items() if given.get(name)]
    if given.get("pool_start_method") == "spawn":
        found.append("--pool-start-method spawn: children are forked from a process that has imported the app and runs nothing else")
    pool = given.get("pool")
    if pool and pool not in _POOLS:
        found.append(f"-P {pool}: use -P threads, or `async def` tasks and jobrunner work --async-slots")
    if found:
        raise CommandError(Code.USAGE, f"not possible: {found[0]}", hint="\n".join(f"also:  {line}" for line in found[1:]))


def translate(given: Mapping[str, Any], facts: AppFacts) -> Translation:
    """The command line of `jobrunner work` that does what these flags of `celery worker` do.

    What is not given comes from the app's configuration, as it does in Celery.

    Args:
        given: the flags, by the names of the command's parameters; None, False or empty for those that were not given.
        facts: of the app.

    Raises:
        CommandError: a value makes no sense, or there are no queues to be left out.
    """
    settings = facts.settings
    notices: list[str] = []
    before, after = ["--app", facts.address], _slots(given, settings, notices)
    level = given.get("level")
    if level and (switch := _LEVELS[level]):
        before.insert(0, switch)
    tasks = given.get("max_tasks_per_child") or settings.get("worker_max_tasks_per_child")
    if tasks:
        after += ["--max-jobs-per-child", str(int(tasks))]
    memory = given.get("max_memory_per_child") or settings.get("worker_max_memory_per_child")
    if memory:
        after += ["--max-memory-per-child", _memory(int(memory))]
    after += _limits(given)
    after += ["--name", node_name(given.get("hostname"))]
    soft = float(settings.get("worker_soft_shutdown_timeout") or 0)
    after += ["--grace", given.get("grace") or (f"{soft:g}s" if os.environ.get(REMAPPED) == "SIGQUIT" else WARM)]
    queues = _queues(given, facts)
    ignored = [text for name, text in IGNORED.items() if given.get(name)]
    arguments = [*before, "work", *([",".join(queues)] if queues else []), *after]
    return Translation(arguments, {LOGLEVEL: level} if level else {}, ignored, notices, soft)


def _slots(given: Mapping[str, Any], settings: Mapping[str, Any], notices: list[str]) -> list[str]:
    pool = given.get("pool") or settings.get("worker_pool") or "prefork"
    if pool not in _POOLS:
        raise CommandError(
            Code.USAGE,
            f"worker_pool of the app's configuration is {pool!r}, which is not there",
            hint="try:   -P prefork or -P threads; for coroutines `async def` tasks and jobrunner work --async-slots",
        )
    if _POOLS[pool] == "solo":
        return ["-c", "1"]
    wanted = given.get("concurrency") or settings.get("worker_concurrency")
    number = None if wanted in {None, "auto", "0", 0} else int(wanted)
    if autoscale := given.get("autoscale"):
        number = max(autoscale)
        notices.append(f"--autoscale: the worker has {number} slots from the start; a slot without a job costs next to nothing")
    if _POOLS[pool] == "threads":
        return ["--threads", str(number or default_slots())]
    return [] if number is None else ["-c", str(number)]


def _limits(given: Mapping[str, Any]) -> list[str]:
    """Those of tasks that have none of their own; 0 is none, as in Celery."""
    hard, soft = given.get("time_limit") or 0, given.get("soft_time_limit") or 0
    if hard and soft > hard:
        raise CommandError(Code.USAGE, f"--soft-time-limit {soft:g} is above --time-limit {hard:g}", hint="try:   a soft one below it")
    named = (("--time-limit", hard), ("--soft-time-limit", soft))
    return [word for flag, seconds in named if seconds for word in (flag, f"{seconds:.3f}".rstrip("0").rstrip(".") + "s")]


def _memory(kib: int) -> str:
    if kib * KIB < LEAST_MEMORY:
        raise CommandError(
            Code.USAGE,
            f"--max-memory-per-child {kib} is {kib} KiB, less than a child holds before its first job",
            hint=f"try:   --max-memory-per-child {512 * KIB}     (KiB, as in Celery: 512 MiB)",
        )
    return f"{kib}KiB"


def _queues(given: Mapping[str, Any], facts: AppFacts) -> tuple[str, ...]:
    chosen: Sequence[str] = given.get("queues") or facts.queues
    left_out = given.get("exclude_queues") or ()
    if left_out and not chosen:
        raise CommandError(
            Code.USAGE, "-X leaves out some of the app's queues, and the app declares none", hint="try:   -Q with the queues to be served"
        )
    kept = tuple(name for name in dict.fromkeys(chosen) if name not in left_out)
    if chosen and not kept:
        raise CommandError(Code.USAGE, f"-X leaves out every queue: {', '.join(chosen)}")
    bad = next((name for name in kept if "," in name or ":" in name), None)
    if bad is not None:
        raise CommandError(Code.USAGE, f"the queue {bad!r} cannot be served: a name has no comma and no colon")
    return kept


def node_name(given: str | None) -> str:
    """The name of a worker as Celery would make it: `celery@host`, with %h, %n and %d replaced."""
    name, at, host = (given or "").partition("@")
    if not at:
        name, host = "", name
    return _expand(f"{name or 'celery'}@{host or socket.gethostname()}", socket.gethostname(), None)


def file_name(given: str, node: str) -> str:
    """The name of a log or pid file, with %h, %n, %d and %p replaced; there is one log for all children, so %i is 0 and %I empty."""
    name, _, host = node.partition("@")
    return _expand(given.replace("%p", node).replace("%i", "0").replace("%I", ""), host, name)


def _expand(text: str, host: str, name: str | None) -> str:
    short, _, domain = host.partition(".")
    for letter, value in (("h", host), ("n", name or short), ("d", domain)):
        text = text.replace(f"%{letter}", value)
    return text.replace("%%", "%")
