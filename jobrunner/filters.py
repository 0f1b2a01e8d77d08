"""Owns the filter language of job lists: text to `JobFilter` and back. The CLI, the HTTP API and the pages all use it.

It must not touch the database, nor know which index answers what: `inspection` does.

The language of today: terms separated by spaces, all of which must hold; `qualifier:value,value` (any of the values);
`-qualifier:…` (none of them). Qualifiers: `state`, `task` (a last `*` stands for anything), `queue`, `id`. A value in double
quotes may hold spaces, commas and a literal `*`; a quote inside is written twice, and a `*` behind the quotes is a beginning.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, TypeVar, cast, get_args

from jobrunner.errors import InvalidFilter

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

LiveWord = Literal["queued", "scheduled", "retrying", "running"]
FinishedWord = Literal["succeeded", "failed", "cancelled", "quarantined"]
StateWord = Literal["queued", "scheduled", "retrying", "running", "succeeded", "failed", "cancelled", "quarantined"]

LIVE_WORDS: tuple[LiveWord, ...] = get_args(LiveWord)
FINISHED_WORDS: tuple[FinishedWord, ...] = get_args(FinishedWord)
STATE_WORDS: tuple[StateWord, ...] = get_args(StateWord)
QUALIFIERS = ("state", "task", "queue", "id")

MAX_FILTER_LENGTH = 2_000  # characters: a bookmarkable URL; longer lists belong into SQL
MAX_VALUES = 200  # of one term: each may cost an index descent
MAX_ID = 2**63 - 1  # of a bigint

_TERM = re.compile(r'(?P<minus>-?)(?P<name>[^\s:",-][^\s:",]*):(?P<rest>(?:"(?:[^"]|"")*"|[^\s"])*)')
_VALUE = re.compile(r'(?:"((?:[^"]|"")*)"(\*?)|([^",*]*)(\*?))(,|\Z)')
_PLAIN = re.compile(r'[^\s",*]+\Z')

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Pattern:
    """A task name, or with `prefix` every name that begins with `text`."""

    text: str
    prefix: bool = False

    def __str__(self) -> str:
        return (_quoted(self.text) if self.text else "") + "*" * self.prefix

    def matches(self, name: str) -> bool:
        """Whether a task of that name is meant."""
        return name.startswith(self.text) if self.prefix else name == self.text


@dataclass(frozen=True, slots=True)
class JobFilter:
    """Which jobs are meant; an empty field means any. All fields must hold.

    Attributes:
        states: words of the views (`STATE_WORDS`), as a set.
        tasks, queues, ids: any of these.
        not_states, not_tasks, not_queues, not_ids: none of these.
    """

    states: frozenset[StateWord] = frozenset()
    tasks: tuple[Pattern, ...] = ()
    queues: tuple[str, ...] = ()
    ids: tuple[int, ...] = ()
    not_states: frozenset[StateWord] = field(default=frozenset())
    not_tasks: tuple[Pattern, ...] = ()
    not_queues: tuple[str, ...] = ()
    not_ids: tuple[int, ...] = ()

    @property
    def live_words(self) -> frozenset[LiveWord]:
        """The states of live jobs that can match."""
        return frozenset(word for word in LIVE_WORDS if (not self.states or word in self.states) and word not in self.not_states)

    @property
    def finished_words(self) -> frozenset[FinishedWord]:
        """The states of finished jobs that can match."""
        return frozenset(word for word in FINISHED_WORDS if (not self.states or word in self.states) and word not in self.not_states)

    def without_states(self) -> JobFilter:
        """The same filter for jobs in any state."""
        return replace(self, states=frozenset(), not_states=frozenset())

    def with_state(self, word: StateWord) -> JobFilter:
        """The same filter for jobs in this state only."""
        return replace(self, states=frozenset({word}), not_states=frozenset())

    def __bool__(self) -> bool:
        return self != JobFilter()

    def __str__(self) -> str:
        """The filter as text that `parse` reads back to an equal filter."""
        return " ".join(self._terms())

    def _terms(self) -> Iterator[str]:
        for minus, states, tasks, queues, ids in (
            ("", self.states, self.tasks, self.queues, self.ids),
            ("-", self.not_states, self.not_tasks, self.not_queues, self.not_ids),
        ):
            if states:
                yield f"{minus}state:{','.join(word for word in STATE_WORDS if word in states)}"
            if tasks:
                yield f"{minus}task:{','.join(map(str, tasks))}"
            if queues:
                yield f"{minus}queue:{','.join(map(_quoted, queues))}"
            if ids:
                yield f"{minus}id:{','.join(map(str, ids))}"


def parse(text: str) -> JobFilter:
    """Read a filter; blank text is the filter that lets every job through.

    Raises:
        InvalidFilter: names the term that is wrong and, for a misspelt qualifier or state, the closest right one.
    """
    if len(text) > MAX_FILTER_LENGTH:
        raise InvalidFilter("", f"is longer than {MAX_FILTER_LENGTH:,} characters")
    if any(not character.isprintable() and not character.isspace() for character in text) or "\x00" in text:
        raise InvalidFilter("", "holds characters that cannot be printed")
    found: dict[str, object] = {}
    position = 0
    while position < len(text):
        if text[position].isspace():
            position += 1
            continue
        match = _TERM.match(text, position)
        if match is None or (match.end() < len(text) and not text[match.end()].isspace()):
            raise _not_a_term(text[position:].split(maxsplit=1)[0], unclosed=text[position:].count('"') % 2 == 1)
        name, key = match["name"].lower(), ("not_" if match["minus"] else "") + _plural(match["name"].lower())
        if name not in QUALIFIERS:
            raise _unknown_qualifier(match[0], name)
        if key in found:
            raise InvalidFilter(match[0], f"{match['minus']}{name}: is given twice", hint=f"write {match['minus']}{name}:a,b for a or b")
        found[key] = _READERS[name](match[0], list(_values(match[0], match["rest"])))
        position = match.end()
    return JobFilter(**found)  # type: ignore[arg-type]


def combine(*texts: str | None, **values: str | None) -> JobFilter:
    """One filter from filter texts and from bare values, such as the query parameters `filter=…&state=failed&task=mail.*`.

    Raises:
        InvalidFilter: as `parse`; a qualifier that comes both ways counts as given twice.
    """
    terms = [text for text in texts if text]
    terms += [
        f"{name}:{value if _PLAIN.match(value.replace(',', '').rstrip('*') or '-') else _quoted(value)}"
        for name, value in values.items()
        if value
    ]
    return parse(" ".join(terms))


def exactly(name: str, value: str) -> JobFilter:
    """The filter for one value taken literally, whatever characters it has. Raises InvalidFilter when the language cannot say it."""
    return parse(f"{name}:{_quoted(value)}")


def _plural(name: str) -> str:
    return f"{name}s"


def _quoted(value: str) -> str:
    return value if _PLAIN.match(value) else '"' + value.replace('"', '""') + '"'


def _values(term: str, rest: str) -> Iterator[Pattern]:
    position = 0
    while True:
        match = _VALUE.match(rest, position)
        if match is None:
            raise InvalidFilter(
                term,
                "a * may only stand at the end of a value" if '"' not in rest else "mixes quoted and plain text in one value",
                hint='task:mail.* is a beginning; a name with spaces, commas or * goes in quotes: task:"a * b"',
            )
        text = match[1].replace('""', '"') if match[1] is not None else match[3]
        prefix = bool(match[2] or match[4])
        if not text and not prefix:
            raise InvalidFilter(term, "has an empty value" if rest else "has no value")
        yield Pattern(text, prefix)
        position = match.end()
        if not match[5]:
            return


def _exact(term: str, values: list[Pattern]) -> list[str]:
    if any(value.prefix for value in values):
        raise InvalidFilter(term, "only task: takes a *; name the others in full")
    return [value.text for value in values]


def _read_states(term: str, values: list[Pattern]) -> frozenset[StateWord]:
    words = [word.lower() for word in _exact(term, values)]
    for word in words:
        if word not in STATE_WORDS:
            raise InvalidFilter(term, f"there is no state {word!r}{_guess(word, STATE_WORDS)}", hint=f"states: {', '.join(STATE_WORDS)}")
    return frozenset(cast("list[StateWord]", words))


def _read_tasks(term: str, values: list[Pattern]) -> tuple[Pattern, ...]:
    return _limited(term, values)


def _read_queues(term: str, values: list[Pattern]) -> tuple[str, ...]:
    return _limited(term, _exact(term, values))


def _read_ids(term: str, values: list[Pattern]) -> tuple[int, ...]:
    texts = _exact(term, values)
    for text in texts:
        if not re.fullmatch(r"#?[0-9]{1,19}", text) or not 0 < int(text.lstrip("#")) <= MAX_ID:
            raise InvalidFilter(term, f"{text!r} is not the id of a job: a whole number from 1")
    return _limited(term, [int(text.lstrip("#")) for text in texts])


_READERS = {"state": _read_states, "task": _read_tasks, "queue": _read_queues, "id": _read_ids}


def _limited(term: str, values: list[_T]) -> tuple[_T, ...]:
    if len(values) > MAX_VALUES:
        raise InvalidFilter(term, f"has more than {MAX_VALUES} values")
    return tuple(dict.fromkeys(values))


def _not_a_term(word: str, *, unclosed: bool) -> InvalidFilter:
    if unclosed and '"' in word:
        return InvalidFilter(word, "a quotation mark is not closed")
    bare = word.strip('"')
    if re.fullmatch(r"#?[0-9]+", bare):
        return InvalidFilter(word, "has no qualifier", hint=f"for the job of that number: id:{bare.lstrip('#')}")
    if bare.lower() in STATE_WORDS:
        return InvalidFilter(word, "has no qualifier", hint=f"for jobs in that state: state:{bare.lower()}")
    return InvalidFilter(
        word, "is not written as qualifier:value", hint=f"qualifiers: {', '.join(QUALIFIERS)}; such as state:failed task:mail.*"
    )


def _unknown_qualifier(term: str, name: str) -> InvalidFilter:
    return InvalidFilter(term, f"unknown qualifier {name!r}{_guess(name, QUALIFIERS)}", hint=f"qualifiers: {', '.join(QUALIFIERS)}")


def _guess(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=2, cutoff=0.6)
    return f". Did you mean {' or '.join(repr(match) for match in close)}?" if close else ""
