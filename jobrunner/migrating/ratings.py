"""Owns what the check knows, as data: each thing that may be found, what becomes of it, and what to do about it.

It must not look at any code: `detecting` and `commandlines` find the keys that are looked up here.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

WAYS = ("celery", "executor", "threads", "queue")
ANY = "*"  # as a name: every name of the kind that has no rule of its own


class Rating(StrEnum):
    """What becomes of a use when the imports are changed."""

    OK = "ok"  # works as it did, or makes no difference here
    CHANGED = "changed"  # has something in its place that is not the same: look at it
    UNSUPPORTED = "unsupported"  # nothing is in its place: an error that says so, or it goes


class Rule(NamedTuple):
    """One thing that the check can find.

    Attributes:
        way: which of the ways to run background work it belongs to.
        kind: what it is: `task option`, `config`, …
        name: as it is written in code; `*` for all others of the kind. `name=value` is about one value of an option.
        rating: what becomes of it.
        advice: one sentence: what to do.
    """

    way: str
    kind: str
    name: str
    rating: Rating
    advice: str


# Names that share a rating and a sentence, separated by blanks.
Row = tuple[str, Rating, str]


def rules(way: str, kind: str, rows: Iterable[Row]) -> Iterator[Rule]:
    """One rule for each name of each row."""
    for names, rating, advice in rows:
        for name in names.split():
            yield Rule(way, kind, name, rating, advice)


def _collect() -> dict[tuple[str, str], Rule]:
    from jobrunner.migrating import celery_flags, celery_imports, celery_ratings, celery_settings, other_ratings

    found: dict[tuple[str, str], Rule] = {}
    for module in (celery_ratings, celery_imports, celery_settings, celery_flags, other_ratings):
        for rule in module.all_rules():
            found[rule.kind, rule.name] = rule
    return found


_known: dict[tuple[str, str], Rule] = {}


def all_rules() -> list[Rule]:
    """Every rule, in the order of the tables."""
    return list(_table().values())


def find(kind: str, name: str, value: str | None = None) -> Rule | None:
    """The rule of a thing: of that value of it, else of its name, else of the longest of its prefixes, else of its kind.

    Args:
        kind: of the thing.
        name: as it is written; dotted names fall back to `prefix.*`, and setting names to `prefix_*`.
        value: what it is set to, when that stands there as a literal.
    """
    table = _table()
    if value is not None and (rule := table.get((kind, f"{name}={value.lower()}"))) is not None:
        return rule
    if (rule := table.get((kind, name))) is not None:
        return rule
    for separator in (".", "_"):
        prefix = name
        while separator in prefix:
            prefix = prefix.rpartition(separator)[0]
            if (rule := table.get((kind, f"{prefix}{separator}{ANY}"))) is not None:
                return rule
    return table.get((kind, ANY))


def _table() -> dict[tuple[str, str], Rule]:
    if not _known:
        _known.update(_collect())
    return _known
