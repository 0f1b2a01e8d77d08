"""Owns the shape of a worker's own log lines: logfmt or JSON, one line each. It must not log arguments or error messages."""

from __future__ import annotations

import json
import logging
import re
import sys
from datetime import UTC, datetime

from jobrunner.settings import SCHEMA

logger = logging.getLogger(f"{SCHEMA}.worker")

_PLAIN = re.compile(r"^[\w.:/@+,-]+$")
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}


def configure(log_format: str, level: str, *, only_trouble: bool = False, database: str | None = None) -> None:
    """Send Jobrunner's log to standard error. Called once, by the process that is the worker.

    Args:
        only_trouble: leave out that an attempt failed or was superseded: the job's own record has it. A process that died is told.
        database: stands in every line, for workers of several databases that write into one stream.
    """
    handler = logging.StreamHandler(sys.stderr)
    if database is not None:
        handler.addFilter(lambda record: vars(record).setdefault("database", database) is not None)
    if only_trouble:
        handler.addFilter(_is_trouble)
    handler.setFormatter(_Logfmt() if log_format == "logfmt" else _Json())
    root = logging.getLogger(SCHEMA)
    root.handlers[:] = [handler]
    root.setLevel(level)
    root.propagate = False


def _is_trouble(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR or not hasattr(record, "job")


def _facts(record: logging.LogRecord) -> dict[str, object]:
    at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    facts: dict[str, object] = {"at": at, "level": record.levelname.lower(), "msg": record.getMessage()}
    facts.update({key: value for key, value in vars(record).items() if key not in _STANDARD})
    if record.exc_info and record.exc_info[1] is not None:
        facts["exception"] = logging.Formatter().formatException(record.exc_info)
    return facts


class _Logfmt(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return " ".join(f"{key}={_quote(value)}" for key, value in _facts(record).items())


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return json.dumps(_facts(record), default=str)


def _quote(value: object) -> str:
    text = str(value)
    # json.dumps escapes line breaks and control characters: nobody can forge a second line or move the cursor
    return text if _PLAIN.match(text) else json.dumps(text, ensure_ascii=True)
