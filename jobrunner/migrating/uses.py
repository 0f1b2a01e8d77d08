"""Owns what the check answers: a use with its place, its rating and what to do, and the sums.

It must not find anything, nor print.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from jobrunner.migrating.ratings import WAYS, Rating, Rule

if TYPE_CHECKING:
    from collections.abc import Iterable

    from jobrunner.migrating.files import Unread

ORDER = (Rating.UNSUPPORTED, Rating.CHANGED, Rating.OK)  # what has to be looked at first


class Use(NamedTuple):
    """One use of a thing.

    Attributes:
        path: of the file, as the way to it was given.
        cell: of a notebook, from 1; None for a file.
        line, column: from 1; in characters.
        what: the thing as it is called there, such as `task option rate_limit`.
        rule: what is known of it.
        certain: False where the receiver could not be placed, and the name alone told.
    """

    path: str
    cell: int | None
    line: int
    column: int
    what: str
    rule: Rule
    certain: bool = True

    @property
    def place(self) -> str:
        """`path:line:column`, as compilers and editors write it; `path[3]:line:column` in the third cell of a notebook."""
        return f"{self.path}{f'[{self.cell}]' if self.cell else ''}:{self.line}:{self.column}"


class Group(NamedTuple):
    """All uses of one thing."""

    what: str
    rule: Rule
    uses: list[Use]


class Report(NamedTuple):
    """What was found.

    Attributes:
        uses: by path, line and column.
        unread: files that were not looked at, and why.
        files, lines: how much was looked at.
    """

    uses: list[Use]
    unread: list[Unread]
    files: int
    lines: int

    def only(self, ratings: Iterable[Rating]) -> list[Use]:
        """The uses that have one of these ratings."""
        wanted = frozenset(ratings)
        return [use for use in self.uses if use.rule.rating in wanted]

    def counts(self) -> dict[str, dict[str, int]]:
        """For each way how many uses have which rating."""
        counted = Counter((use.rule.way, use.rule.rating) for use in self.uses)
        return {way: {rating.value: counted[way, rating] for rating in ORDER} for way in WAYS}

    @property
    def unsupported(self) -> int:
        """How many uses have nothing in their place."""
        return sum(use.rule.rating is Rating.UNSUPPORTED for use in self.uses)


def groups(uses: Iterable[Use]) -> list[Group]:
    """Uses of one thing together: the ratings in the order of `ORDER`, the ways in theirs, and in each the most used thing first."""
    found: dict[tuple[str, Rule], list[Use]] = {}
    for use in uses:
        found.setdefault((use.what, use.rule), []).append(use)

    def rank(group: Group) -> tuple[int, int, int, str]:
        return ORDER.index(group.rule.rating), WAYS.index(group.rule.way), -len(group.uses), group.what

    return sorted((Group(what, rule, uses) for (what, rule), uses in found.items()), key=rank)
