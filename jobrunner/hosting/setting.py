"""Owns the setting `embedded_worker`: its sources, what may stand in it, and its refusals. It must not start anything."""

from __future__ import annotations

import os
import re
from datetime import timedelta
from typing import TYPE_CHECKING, Literal, NamedTuple, cast

from jobrunner.errors import ConfigurationError
from jobrunner.settings import OFF_WORDS, parse_duration

if TYPE_CHECKING:
    from collections.abc import Mapping

VARIABLE = "JOBRUNNER_EMBEDDED_WORKER"
GRACE_VARIABLE = "JOBRUNNER_EMBEDDED_GRACE"
NEVER = "JOBRUNNER_NO_EMBEDDED_WORKER"  # set where there must be none, whatever the code says: in a worker, and below `jobrunner dev`
MOST = 1000  # jobs at once: above, somebody has left out a unit
GRACE = timedelta(seconds=20)  # gunicorn kills what is left of itself 30 s after it was told to stop: by then this is over
DEVELOPMENT_GRACE = timedelta(seconds=5)  # who has saved a file does not want to wait
EXAMPLES = "write 'threads:2', 'processes:2', 'threads:2 mail:4,default' with the queues, or 'off'"

_FORM = re.compile(r"(?:(?P<kind>threads|processes):)?(?P<number>\d{1,9})(?:\s+(?P<queues>\S+))?")
_QUEUE = re.compile(r"[^:,\s]+(?::0*[1-9]\d{0,8})?")
_FALSE = {"", *OFF_WORDS}
_OFF = {*_FALSE, "none"}


class Setting(NamedTuple):
    """What kind of worker goes with the web server.

    Attributes:
        kind: jobs run in threads of one process, or each in a process.
        number: jobs at once.
        queues: as for `jobrunner work`; empty for those of the application's tasks.
    """

    kind: Literal["threads", "processes"]
    number: int
    queues: str = ""

    def __str__(self) -> str:
        return f"{self.kind}:{self.number}" + (f" {self.queues}" if self.queues else "")


def find_setting(given: object = None, config: Mapping[str, object] | None = None) -> Setting | None:
    """The argument, else `JOBRUNNER_EMBEDDED_WORKER` of the environment, else of the Flask config, else None.

    Args:
        given: the argument of `JobRunner`; None when there was none, False for none at all.
        config: of the Flask app.

    Raises:
        ConfigurationError: the first source that is set holds nothing of the kind; the message names it.
    """
    if given is not None:
        return parse(given, "JobRunner: embedded_worker")
    if os.environ.get(VARIABLE):
        return parse(os.environ[VARIABLE], VARIABLE)
    if config is not None and config.get(VARIABLE) is not None:
        return parse(config[VARIABLE], f"Flask config {VARIABLE}")
    return None


def parse(value: object, what: str) -> Setting | None:
    """Read `threads:2`, `processes:2`, or a number, which means threads; each with queues behind a space. None for `off`, 0 and False.

    Raises:
        ConfigurationError: it is none of them; the message names `what`.
    """
    if value is False or (isinstance(value, str) and value.strip().lower() in _OFF):
        return None
    if value is True or not isinstance(value, (str, int)):
        raise _refused(value, what)
    form = _FORM.fullmatch(str(value).strip())
    if form is None or not 0 <= int(form["number"]) <= MOST:
        raise _refused(value, what)
    queues = form["queues"] or ""
    names = [part.partition(":")[0] for part in queues.split(",")] if queues else []
    if queues and (not all(_QUEUE.fullmatch(part) for part in queues.split(",")) or len(set(names)) < len(names)):
        raise ConfigurationError(
            f"{what}={value!r}: {queues!r} are no queues", hint="write NAME or NAME:MOST_AT_ONCE, each once, such as mail:4,default"
        )
    number = int(form["number"])
    return Setting(cast('Literal["threads", "processes"]', form["kind"] or "threads"), number, queues) if number else None


def find_grace(config: Mapping[str, object], *, development: bool) -> timedelta:
    """How long running jobs may go on when the web server leaves: `JOBRUNNER_EMBEDDED_GRACE` of the environment, else of the Flask config.

    Raises:
        ConfigurationError: it is no duration; the message names its source.
    """
    if os.environ.get(GRACE_VARIABLE):
        return parse_duration(os.environ[GRACE_VARIABLE], GRACE_VARIABLE)
    if (given := config.get(GRACE_VARIABLE)) is not None:
        return parse_duration(cast("str", given), f"Flask config {GRACE_VARIABLE}")
    return DEVELOPMENT_GRACE if development else GRACE


def is_forbidden() -> bool:
    """Whether the environment says that this process has no embedded worker, whatever the code says."""
    return os.environ.get(NEVER, "").strip().lower() not in _FALSE


def _refused(value: object, what: str) -> ConfigurationError:
    return ConfigurationError(f"{what}={value!r} is no embedded worker: at most {MOST} threads or processes", hint=EXAMPLES)
