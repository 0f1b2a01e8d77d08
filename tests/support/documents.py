"""Owns running a Markdown page as its reader would: its files written, its commands typed into one shell, their output compared.

It must not know any page. In a page, a `python` block whose first line is `# name.py` is that file; a line `$ …` of a `console` block is a
command, and the lines below it are what stdout shows. `…` stands for anything, as a line of its own for any lines.
"""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

SECONDS = 240  # for a whole page on a busy machine
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_MARK = "== step"
# What differs from run to run, in the order in which it is looked for.
_VARYING = (
    (re.compile(r"\d{4}-\d\d-\d\d[T ][\d:.]+(?:Z|[+-]\d\d(?::?\d\d)?)?"), "WHEN"),
    (re.compile(r"\b[\d.]+ ?m?s ago\b"), "WHEN"),
    (re.compile(r"\b[\d.]+ ?m?s\b"), "LONG"),
    (re.compile(r"[\s-]+"), " "),
)


@dataclass
class Step:
    """A command and what shall be seen, or a file and what is in it."""

    command: str = ""
    expected: list[str] = field(default_factory=list)
    file: str = ""
    text: str = ""


def blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of one language, in order."""
    return [text for found, text in _BLOCK.findall(page) if found == language]


def steps(page: str) -> Iterator[Step]:
    """What a reader does, in order."""
    for language, text in _BLOCK.findall(page):
        if language == "python" and (name := re.match(r"# (\w+\.py)\n", text)):
            yield Step(file=name[1], text=text)
        elif language == "console":
            for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
                command, *expected = part.splitlines()
                yield Step(command.partition("     # ")[0], expected)


def play(page: str, home: Path, environment: Mapping[str, str]) -> None:
    """Do all steps of a page in one shell; `pip install` is taken as done.

    Raises:
        AssertionError: a command without expected output failed, or one showed something else than the page says.
    """
    wanted = [step for step in steps(page) if not step.command.startswith("pip install")]
    lines = []
    for number, step in enumerate(wanted):
        if step.file:
            lines.append(f"cat > {step.file} <<'END OF FILE'\n{step.text}END OF FILE")
        else:
            lines.append(f"echo '{_MARK} {number}'; echo '{_MARK} {number}' >&2\n{step.command}\necho '{_MARK} code' $?")
    done = subprocess.run(
        ["bash"], input="\n".join(lines), cwd=home, env=dict(environment), capture_output=True, text=True, timeout=SECONDS, check=False
    )
    for number, step in enumerate(wanted):
        if step.command:
            out, _, code = _said(done.stdout, number).rpartition(f"{_MARK} code ")
            told = f"$ {step.command}\n{out}\n--- stderr\n{_said(done.stderr, number)}"
            assert step.expected or code.strip() == "0", f"exit code {code.strip()} of\n{told}"
            assert _fits(step.expected, out.rstrip().splitlines()), f"the page says\n{chr(10).join(step.expected)}\nbut it is\n{told}"


def _said(stream: str, number: int) -> str:
    return re.split(rf"^{_MARK} \d+\n", stream.partition(f"{_MARK} {number}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]


def _fits(expected: list[str], shown: list[str]) -> bool:
    if not expected:
        return True
    pattern = "".join(r"(?:.*\n)*?" if line.strip() == "…" else _pattern(line) + r"\n" for line in expected)
    return re.fullmatch(pattern, "".join(f"{_plain(line)}\n" for line in shown)) is not None


def _pattern(line: str) -> str:
    return ".*".join(re.escape(part) for part in _plain(line).split("…"))


def _plain(line: str) -> str:
    for varying, word in _VARYING:
        line = varying.sub(word, line)
    return line.strip()
