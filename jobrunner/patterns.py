"""Owns what topics, names of events and patterns may look like, and what a pattern fits, as in AMQP's topic exchanges.

It must not decide who gets an event: the database does, with the regular expression that its function `topic_matcher` makes.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from jobrunner.checks import check_name
from jobrunner.errors import ConfigurationError
from jobrunner.jsonvalues import text_problem

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_TOPIC = 100  # characters of a topic, and of a group: with an event's key they are one ordering key of 500
MAX_EVENT_NAME = 255  # characters of an event's name and of a pattern, as of a routing key in AMQP
MAX_EVENT_KEY = 255
MAX_PATTERNS = 32  # of one group; each publish tries them all
ANY_WORD, ANY_WORDS = "*", "#"

_NAME = re.compile(r"[^\s.*#]+(\.[^\s.*#]+)*")
_PATTERN = re.compile(r"(\*|#|[^\s.*#]+)(\.(\*|#|[^\s.*#]+))*")


def check_topic(value: object, what: str = "a topic") -> str:
    """A topic's or group's name. Raises ConfigurationError."""
    try:
        name = check_name(value, what)
    except ValueError as error:
        raise ConfigurationError(f"{value!r}: {error}") from None
    if len(name) > MAX_TOPIC:
        raise ConfigurationError(f"{value!r}: {what} is at most {MAX_TOPIC} characters long")
    return name


def check_event_name(value: object) -> str:
    """The name of an event: words with dots between them. Raises ConfigurationError."""
    if not isinstance(value, str) or not _NAME.fullmatch(value) or len(value) > MAX_EVENT_NAME or text_problem(value):
        raise ConfigurationError(
            f"{value!r} is no name of an event",
            hint=f"words with dots between them, without blanks, * and #, such as order.paid; at most {MAX_EVENT_NAME} characters",
        )
    return value


def check_patterns(value: object) -> tuple[str, ...]:
    """One pattern, or several of which one has to fit. Raises ConfigurationError."""
    given = [value] if isinstance(value, str) else value
    if not isinstance(given, (list, tuple)) or not 1 <= len(given) <= MAX_PATTERNS:
        raise ConfigurationError(f"subscribe({value!r}): expected a pattern, or a list of 1 to {MAX_PATTERNS} of them")
    for pattern in given:
        if not isinstance(pattern, str) or not _PATTERN.fullmatch(pattern) or len(pattern) > MAX_EVENT_NAME or text_problem(pattern):
            raise ConfigurationError(
                f"subscribe({pattern!r}): this is no pattern of event names",
                hint=f"words with dots between them; {ANY_WORD} stands for one word and {ANY_WORDS} for any number of words, also none: "
                f"order.*, order.#, *.paid; at most {MAX_EVENT_NAME} characters",
            )
    return tuple(dict.fromkeys(given))


def matches(patterns: Iterable[str], name: str) -> bool:
    """Whether one of the patterns fits the name of an event."""
    words = name.split(".")
    return any(_fits(pattern.split("."), words) for pattern in patterns)


def _fits(pattern: list[str], words: list[str]) -> bool:
    """Which beginnings of the name the pattern so far can stand for, word by word: no backtracking."""
    ends = {0}
    for part in pattern:
        if part == ANY_WORDS:
            ends = set(range(min(ends), len(words) + 1)) if ends else ends
        else:
            ends = {end + 1 for end in ends if end < len(words) and part in {ANY_WORD, words[end]}}
    return len(words) in ends
