"""Owns the ratings of Celery's command lines: its subcommands, the flags of its worker, and what becomes of each.

It must not parse a command line: `commandlines` finds them, `jobrunner celery-worker` runs one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobrunner.migrating.ratings import Rating, Row, Rule, rules

if TYPE_CHECKING:
    from collections.abc import Iterator

_OK, _CHANGED, _UNSUPPORTED = Rating.OK, Rating.CHANGED, Rating.UNSUPPORTED
_SAME = "Nothing to do: `jobrunner celery-worker` takes it."
_IGNORED = "Take it out when you are done: it is accepted and makes no difference here."
_OWN_PAGE = "Use `jobrunner workers`, `jobrunner status` or the dashboard; they read tables and ask no worker."
_SUPERVISED = "Let the supervisor do it (systemd: User=, Type=simple): the worker stays in the foreground, as who started it."

COMMANDS: tuple[Row, ...] = (
    ("worker", _OK, "Write `jobrunner celery-worker` for `celery worker`; the flags are the same."),
    ("beat", _UNSUPPORTED, "Let Celery's beat or crontab go on with it: schedules are not there yet."),
    ("flower events", _CHANGED, "Use the dashboard (`jobrunner web`) or `jobrunner top`: they read the same tables on every host."),
    ("inspect status report graph", _CHANGED, _OWN_PAGE),
    ("control", _CHANGED, "Use `jobrunner jobs cancel`, or start workers with other options: workers take no orders."),
    ("purge", _CHANGED, "Use `jobrunner jobs list` and `jobrunner jobs cancel`."),
    ("call", _CHANGED, "Use `jobrunner enqueue TASK JSON`."),
    ("result", _CHANGED, "Use `jobrunner jobs show ID`."),
    ("list", _CHANGED, "Use `jobrunner status`."),
    ("shell", _CHANGED, "Use `flask shell`."),
    ("multi", _UNSUPPORTED, "Write one unit for each worker: systemd, supervisor or a container starts and watches them."),
    ("amqp migrate upgrade logtool", _UNSUPPORTED, "Take it out: there is no broker."),
    ("*", _CHANGED, "Look it up in `jobrunner --help`."),
)

# The first spelling of a flag is that of the table; others of it follow.
SPELLINGS = {
    "--app": ("-A",), "--queues": ("-Q",), "--concurrency": ("-c",), "--loglevel": ("-l",), "--hostname": ("-n",), "--beat": ("-B",),
    "--pool": ("-P",), "--exclude-queues": ("-X",), "--purge": ("--discard",), "--logfile": ("-f",),
    "--task-events": ("-E", "--events"), "--optimization": ("-O",), "--statedb": ("-S",), "--schedule-filename": ("-s", "--schedule"),
    "--detach": ("-D",), "--include": ("-I",), "--broker": ("-b",), "--no-color": ("-C",), "--quiet": ("-q",),
    "--max-tasks-per-child": ("--maxtasksperchild",),
}  # fmt: skip

FLAGS: tuple[Row, ...] = (
    ("--app --queues --hostname --exclude-queues --workdir --no-color --quiet --skip-checks", _OK, _SAME),
    ("--concurrency --concurrency=auto", _OK, _SAME),
    ("--pool --pool=prefork --pool=processes --pool=threads --pool=solo", _OK, _SAME),
    ("--pool=eventlet --pool=gevent", _UNSUPPORTED, "Use -P threads, or `async def` tasks with `jobrunner work --async-slots`."),
    ("--max-tasks-per-child --max-memory-per-child --logfile --pidfile --umask", _OK, _SAME),
    ("--time-limit --soft-time-limit", _OK, "Nothing to do: they hold for tasks that have no limit of their own."),
    ("--autoscale", _CHANGED, "Check the larger number: the worker has so many slots from the start."),
    ("--purge", _CHANGED, "Nothing to do: waiting jobs are cancelled, and stay on record."),
    ("--beat", _UNSUPPORTED, "Take it out, and run Celery's beat or crontab beside it: schedules are not there yet."),
    ("--broker --result-backend", _CHANGED, "Set JOBRUNNER_DSN: an address that is not PostgreSQL's is ignored, with a notice."),
    ("--pool-start-method", _UNSUPPORTED, "Take it out: children are forked from a process that has imported the app and nothing else."),
    ("--detach --uid --gid --executable", _UNSUPPORTED, _SUPERVISED),
    ("--include", _UNSUPPORTED, "Write `include=` in `Celery(...)`: the configuration says which modules are imported."),
    ("--scheduler", _UNSUPPORTED, "Take it out: a scheduler class of your own is not loaded."),
    ("--loader --config", _UNSUPPORTED, "Call `app.config_from_object(...)` where the app is made."),
    (
        (
            "--task-events --optimization --without-gossip --without-mingle --without-heartbeat --heartbeat-interval"
            " --prefetch-multiplier --disable-prefetch --statedb --schedule-filename --pool-start-method=fork"
        ),
        _OK,
        _IGNORED,
    ),
    ("--loglevel", _OK, "Nothing to do: it is the level of what tasks log; the worker's own log has debug, info and error."),
    ("*", _CHANGED, "Check it: `jobrunner celery-worker` does not know this flag."),
)


def flag(spelling: str) -> str:
    """The name in the table of a flag as it was written; the same when it is none of them."""
    return next((name for name, others in SPELLINGS.items() if spelling == name or spelling in others), spelling)


def all_rules() -> Iterator[Rule]:
    """Every rule about command lines."""
    yield from rules("celery", "command", COMMANDS)
    yield from rules("celery", "worker flag", FLAGS)
