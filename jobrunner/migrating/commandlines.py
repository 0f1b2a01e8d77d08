"""Owns finding Celery's command lines and requirements in files that are no Python: by their text, whatever their format is.

It must not run anything, nor show values: an address in a command line may hold a password.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from jobrunner.migrating.celery_flags import COMMANDS, FLAGS, SPELLINGS, flag
from jobrunner.migrating.celery_settings import setting_of
from jobrunner.migrating.ratings import Rule, find

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

_SUBCOMMANDS = frozenset(name for names, _, _ in COMMANDS for name in names.split() if name != "*")
_FLAGS = frozenset(name for names, _, _ in FLAGS for name in names.split() if name.startswith("--") and "=" not in name)
_LETTERS = {other[1]: name for name, others in SPELLINGS.items() for other in others if len(other) == 2}  # noqa: PLR2004  `-l`
_SWITCHES = frozenset({"-E", "-B", "-D", "-C", "-q"})  # short flags without a value
_VALUED = frozenset({
    "--app", "--broker", "--result-backend", "--loader", "--config", "--workdir", "--queues", "--concurrency", "--loglevel", "--hostname",
    "--pool",
})  # fmt: skip
_PROGRAM = re.compile(r"(?<![\w.@/${-])(?:[\w.~${}/-]*/)?celery(?=[\s\"',\]]|$)")
# Before the word: then it is the name of a package, a service or a unit.
_NAMED = re.compile(r"\b(?:install|add|start|restart|stop|enable|disable|status|up|logs|kill|rm|build|reload)\s+(?:[^\s&|;]+\s+)*$")
_TOKEN = re.compile(r"\"([^\"]*)\"|'([^']*)'|([^\s\"',\[\]]+)")
_END = re.compile(r"&&|\|\||[;|&)]|>{1,2}|<")
_LIST_ITEM = re.compile(r"^(\s*)-\s+(?:\"([^\"]*)\"|'([^']*)'|(\S+))\s*$")
_NAME = re.compile(r"\b((?:CELERY|CELERYD|CELERYBEAT|BROKER|EXECUTOR)_[A-Z0-9_]+)\b(?=\s*[=:])")
_REQUIREMENT = re.compile(
    r"(?:^|[\"'\s])(celery|flower|librabbitmq|redbeat|celery-redbeat|celery-once|celery-singleton|celery-batches|flask-celeryext"
    r"|flask-celery-helper|sqlalchemy-celery-beat|celerybeatmongo|flask-executor|pika|kombu|amqp|aio-pika|kafka-python"
    r"|confluent-kafka|aiokafka|amqpstorm)(?=\s*(?:\[|[<>=!~]=?|;|@|\"|'|,|$|#))",
    re.IGNORECASE,
)
_WAYS = {"flask-executor": "executor"} | dict.fromkeys(
    ("pika", "kombu", "amqp", "aio-pika", "kafka-python", "confluent-kafka", "aiokafka", "amqpstorm"), "queue"
)


class Token(NamedTuple):
    """A word of a command line, and where it stands."""

    text: str
    line: int
    column: int


class Hit(NamedTuple):
    """Something that a rule is about."""

    line: int
    column: int
    what: str
    rule: Rule


def uses_in_text(text: str, *, requirements: bool, settings: bool) -> Iterator[Hit]:
    """What a file says of Celery.

    Args:
        text: of the file.
        requirements: it names packages.
        settings: names such as BROKER_URL count, which tell less than CELERY_BROKER_URL: the project uses Celery.
    """
    lines = text.split("\n")
    for tokens in _command_lines(lines):
        yield from uses_in_tokens(tokens)
    for number, line in enumerate(lines, 1):
        if line.lstrip().startswith(("#", "//")):
            continue
        for match in _NAME.finditer(line):
            if settings or not match[1].startswith("BROKER_"):
                yield from _setting(match[1], number, match.start(1) + 1)
        if requirements:
            for match in _REQUIREMENT.finditer(line):
                name = match[1].lower()
                if (rule := find("requirement", name)) is not None:
                    yield Hit(number, match.start(1) + 1, f"requirement {name}", rule)


def _setting(name: str, line: int, column: int) -> Iterator[Hit]:
    if name.startswith("EXECUTOR_"):
        rule = find("executor", name)
        if rule is not None and rule.name == name:
            yield Hit(line, column, f"config {name}", rule)
    elif (setting := setting_of(name)) is not None and (known := find("config", setting)) is not None:
        yield Hit(line, column, f"config {name}", known)


def uses_in_tokens(tokens: Sequence[Token]) -> Iterator[Hit]:
    """What one command line of `celery` asks for. None when it is no command of Celery's: another program, or a name.

    Args:
        tokens: from `celery` on.
    """
    command = next((token for token in _words(tokens[1:]) if token.text in _SUBCOMMANDS), None)
    if command is None:
        return
    known = find("command", command.text)
    if known is not None:
        yield Hit(tokens[0].line, tokens[0].column, f"command celery {command.text}", known)
    if command.text not in {"worker", "beat"}:
        return
    for index, token in enumerate(tokens[1:], 1):
        for name, value in _flags(token, tokens[index + 1] if index + 1 < len(tokens) else None):
            rule = find("worker flag", name, value)
            if rule is not None and (command.text == "worker" or name == "--scheduler"):
                shown = f"{name} {value}" if "=" in rule.name else name
                yield Hit(token.line, token.column, f"worker flag {shown}", rule)


def _words(tokens: Iterable[Token]) -> Iterator[Token]:
    """The words that are neither a flag nor the value of one."""
    skip = False
    for token in tokens:
        if token.text.startswith("-"):
            name = flag(token.text)
            skip = name in _VALUED or (len(token.text) == 2 and token.text not in _SWITCHES)  # noqa: PLR2004  `-A`
        elif skip:
            skip = False
        else:
            yield token


def _flags(token: Token, following: Token | None) -> Iterator[tuple[str, str | None]]:
    text = token.text
    after = following.text if following is not None and not following.text.startswith("-") else None
    if text.startswith("--") and len(text) > len("--"):
        name, equals, value = text.partition("=")
        yield flag(name), value if equals else after
    elif re.match(r"-[A-Za-z]", text):
        name, rest = text[:2], text[2:].removeprefix("=")
        if name not in _SWITCHES and text[1] in _LETTERS:
            yield _LETTERS[text[1]], rest or after
            return
        for letter in text[1:]:  # `-EB`
            if letter in _LETTERS:
                yield _LETTERS[letter], None


def _command_lines(lines: list[str]) -> Iterator[list[Token]]:
    """Every command line of `celery`: in one line, over several joined by a backslash or folded, or a list with an item a line."""
    number = 0
    while number < len(lines):
        line = lines[number]
        item = _LIST_ITEM.match(line)
        if item is not None and re.fullmatch(r"(?:\S*/)?celery", next(filter(None, item.groups()[1:]), "")):
            number, tokens = _listed(lines, number, item[1])
            if any(token.text.startswith("-") for token in tokens):  # else it is a list of services
                yield tokens
            continue
        if not line.lstrip().startswith(("#", "//")):
            for match in _PROGRAM.finditer(line):
                if not _NAMED.search(re.split(r"&&|[;|]", line[: match.start()])[-1]):
                    yield list(_tokens(lines, number, match.start(), match.end()))
        number += 1


def _listed(lines: list[str], number: int, indent: str) -> tuple[int, list[Token]]:
    tokens = []
    while number < len(lines) and (item := _LIST_ITEM.match(lines[number])) is not None and item[1] == indent:
        group = next(index for index in (2, 3, 4) if item[index] is not None)
        tokens.append(Token(item[group], number + 1, item.start(group) + 1))
        number += 1
    return number, tokens


def _tokens(lines: list[str], number: int, start: int, after: int) -> Iterator[Token]:
    """The words from `celery` to the end of the command; a folded text of YAML goes on while the next line begins with a flag."""
    quote = next((mark for mark in "\"'" if lines[number][:start].count(mark) % 2), None)
    bound = lines[number][after : after + 1] != quote  # else it is a list: ["celery", "-A", …]
    while True:
        line = lines[number]
        ends = [match.start() for match in [_END.search(line, start)] if match]
        if quote is not None and bound and (closing := line.find(quote, start)) >= 0:
            ends.append(closing)
        end = min(ends, default=len(line))
        for match in _TOKEN.finditer(line, start, end):
            group = match.lastindex or 3
            if match[group] != "\\":
                yield Token(match[group], number + 1, match.start(group) + 1)
        continued = end == len(line) and (line.rstrip().endswith("\\") or _goes_on(lines, number))
        if not continued or number + 1 >= len(lines):
            return
        number, start = number + 1, 0


def _goes_on(lines: list[str], number: int) -> bool:
    following = lines[number + 1].lstrip() if number + 1 < len(lines) else ""
    return re.match(r"--?[A-Za-z]", following) is not None and not _LIST_ITEM.match(lines[number + 1])
