"""Owns how much of somebody's query is shown. It must not show a value: a query may hold passwords and people's data."""

from __future__ import annotations

import re

SHOWN = 60  # characters: a line on a terminal of 80, enough to see whose query it is

_COMMENT = re.compile(r"/\*|\*/")
_STOP = re.compile(r"'|\"|\$(?!\d)|--|/\*|\\")
_NUMBER = re.compile(r"(?<![\w$])[+-]?\d[\w.]*")
_NAME = re.compile(r'"[A-Za-z0-9_ .-]{1,63}"')


def shortened(query: str | None) -> str:
    """The begin of a query on one line, without comments and numbers, cut at the first string: at most SHOWN characters.

    What follows the first string is not shown at all: where strings end depends on the session's settings, and a query is cut in
    `pg_stat_activity`, perhaps in the middle of one.
    """
    text, shown = query or "", ""
    while match := _STOP.search(text):
        shown += text[: match.start()]
        text = text[match.start() :]
        if text.startswith("--"):
            text = " " + text.partition("\n")[2]
        elif text.startswith("/*"):
            text = " " + _after_comment(text)
        elif name := _NAME.match(text):
            shown += name[0]
            text = text[name.end() :]
        else:
            text = "…"
            break
    line = " ".join(_NUMBER.sub("?", shown + text).split())
    return line if len(line) <= SHOWN else line[: SHOWN - 1].rstrip() + "…"


def _after_comment(text: str) -> str:
    """What follows a comment; comments nest. Nothing when it does not end."""
    depth = 0
    for match in _COMMENT.finditer(text):
        depth += 1 if match[0] == "/*" else -1
        if depth == 0:
            return text[match.end() :]
    return ""
