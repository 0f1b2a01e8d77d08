"""Owns how the command line reads values: durations, instants, ids, queues. Refusals are click's, so they exit with 2.

It must not invent formats: durations are those of every other setting.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import click

MAX_ID = 2**63 - 1  # of a bigint


class _Duration(click.ParamType):  # type: ignore[type-arg]  # generic only in newer releases of click
    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        from jobrunner.errors import ConfigurationError
        from jobrunner.settings import parse_duration

        try:
            return parse_duration(value, param.opts[0] if param else "duration")
        except (ConfigurationError, OverflowError, ValueError) as error:
            self.fail(str(error) if isinstance(error, ConfigurationError) else f"{value!r} is too long", param, ctx)


class _Size(click.ParamType):  # type: ignore[type-arg]  # generic only in newer releases of click
    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        from jobrunner.errors import ConfigurationError
        from jobrunner.settings import parse_size

        try:
            return parse_size(value, param.opts[0] if param else "size")
        except (ConfigurationError, OverflowError) as error:
            self.fail(str(error) if isinstance(error, ConfigurationError) else f"{value!r} is too large", param, ctx)


class _Instant(click.ParamType):  # type: ignore[type-arg]  # generic only in newer releases of click
    name = "instant"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """ISO 8601; without an offset it is this machine's local time."""
        if isinstance(value, datetime):
            return value
        try:
            return datetime.fromisoformat(value).astimezone(UTC)
        except (ValueError, OverflowError):
            self.fail(
                f"{value!r} is not a time: write 2026-11-24T18:00 (local time), 2026-11-24T18:00+01:00 or 2026-11-24T17:00Z", param, ctx
            )


class _JobId(click.ParamType):  # type: ignore[type-arg]  # generic only in newer releases of click
    name = "id"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        text = str(value).removeprefix("#")
        if not (text.isascii() and text.isdigit()) or not 0 < int(text) <= MAX_ID:
            self.fail(f"{value!r} is not the id of a job: a whole number from 1", param, ctx)
        return int(text)


class _Queues(click.ParamType):  # type: ignore[type-arg]  # generic only in newer releases of click
    """`mail:4,default`: names, each with the most jobs of it at once."""

    name = "queues"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[tuple[str, int | None], ...]:
        if isinstance(value, tuple):
            return value
        found: dict[str, int | None] = {}
        for part in str(value).split(","):
            name, colon, bound = part.strip().rpartition(":")
            if not colon:
                name, bound = bound, ""
            if not name or (colon and not (bound.isascii() and bound.isdigit() and int(bound) > 0)):
                self.fail(f"{part.strip()!r} is not a queue: write NAME or NAME:MOST_AT_ONCE, such as mail:4,default", param, ctx)
            if name in found:
                self.fail(f"queue {name!r} is named twice", param, ctx)
            found[name] = int(bound) if bound else None
        return tuple(found.items())


class _Keep(click.ParamType):  # type: ignore[type-arg]  # generic only in newer releases of click
    """How long something is kept, as a tuple of one: None in it is forever, and no tuple is nothing given."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[timedelta | None]:
        from jobrunner.keeping import keep_for

        if isinstance(value, tuple):
            return value
        try:
            return (keep_for(value),)
        except ValueError as error:
            self.fail(f"{value!r}: {error}", param, ctx)


DURATION = _Duration()
INSTANT = _Instant()
JOB_ID = _JobId()
KEEP = _Keep()
QUEUES = _Queues()
SIZE = _Size()
