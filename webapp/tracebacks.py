"""Owns reading a Python traceback for people: the application's own frames stand out, runs of library frames fold away.

It must not lose a line: whatever does not look like a frame is shown as it is.
"""

from __future__ import annotations

import re
from typing import NamedTuple

MAX_LINES = 2_000  # laid out; a longer text is shown plain

_FRAME = re.compile(r'^\s*(?:\|\s*)*File "(?P<file>.+)", line (?P<line>\d+)(?:, in (?P<function>.+))?$')
_LIBRARY = ("/site-packages/", "/dist-packages/", "/lib/python", "<frozen ", "/jobrunner/worker/", "/jobrunner/execut")


class Block(NamedTuple):
    """Lines that belong together: kind is `text`, `frame` (the application's) or `library` (one or more frames)."""

    kind: str
    frames: int
    text: str


def blocks(text: str) -> tuple[Block, ...]:
    """The traceback in blocks, in order; joined with newlines they are the text."""
    lines = text.split("\n")
    if len(lines) > MAX_LINES:
        return (Block("text", 0, text),)
    found: list[Block] = []
    index = 0
    while index < len(lines):
        match = _FRAME.match(lines[index])
        end = index + 1
        if match is None:
            kind = "text"
        else:
            kind = "library" if any(part in match["file"] for part in _LIBRARY) else "frame"
            indent = _indent(lines[index])
            # The source line and its markers are indented deeper than the frame; a multi-line statement has several.
            while end < len(lines) and _FRAME.match(lines[end]) is None and lines[end].strip() and _indent(lines[end]) > indent:
                end += 1
        block = Block(kind, int(match is not None), "\n".join(lines[index:end]))
        if found and kind != "frame" and found[-1].kind == kind:
            block = Block(kind, found[-1].frames + block.frames, f"{found[-1].text}\n{block.text}")
            found.pop()
        found.append(block)
        index = end
    return tuple(found)


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip(" |"))
