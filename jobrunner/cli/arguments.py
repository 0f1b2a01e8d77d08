"""Owns reading a task's arguments from the command line: a JSON object, and where it is broken when it is."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from jobrunner.cli.failures import Code, CommandError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

SHOWN = 56  # characters of broken JSON around the place
EXAMPLE = """'{"user_id": 42}'"""


def parse_arguments(text: str, where: str = "the arguments") -> dict[str, Any]:
    """The object in `text`.

    Raises:
        CommandError: it is no JSON (the message shows the place), or no object. Exit code 2.
    """
    try:
        data = json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise CommandError(Code.USAGE, f"{where}: {_lower(error.msg)}, {_place(text, error)}", hint=_pointer(text, error.pos)) from None
    except RecursionError:
        raise CommandError(Code.USAGE, f"{where}: nested too deep to be read") from None
    except ValueError as error:
        raise CommandError(Code.USAGE, f"{where}: {error}", hint=f"such as {EXAMPLE}") from None
    if not isinstance(data, dict):
        found = {list: "a list", str: "text", type(None): "null", bool: "true or false"}.get(type(data), "a number")
        raise CommandError(Code.USAGE, f"{where}: {found}, but a JSON object is needed, keyed by parameter name", hint=f"such as {EXAMPLE}")
    return data


def parse_lines(lines: Iterable[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects with the numbers of their lines; blank lines are skipped. Raises CommandError that names the line."""
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield number, parse_arguments(line.rstrip("\n"), f"line {number} of stdin")


def _place(text: str, error: json.JSONDecodeError) -> str:
    return f"column {error.colno}" if "\n" not in text.strip() else f"line {error.lineno}, column {error.colno}"


def _pointer(text: str, position: int) -> str:
    """The broken line, cut around the place, and an arrow below it."""
    start = text.rfind("\n", 0, position) + 1
    end = text.find("\n", position)
    line = text[start : end if end >= 0 else len(text)]
    column = position - start
    first = max(0, column - SHOWN // 2)
    shown = line[first : first + SHOWN]
    before = "…" if first else ""
    clean = "".join(character if character.isprintable() else " " for character in shown)
    after = "…" if first + SHOWN < len(line) else ""
    arrow = " " * (len(before) + column - first) + "^"
    return f"here:  {before}{clean}{after}\n       {arrow}\nsuch as {EXAMPLE}     (in quotes, for the shell)"


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
