"""Owns when a chord's parts are all done: Celery says how many there are, also those inside of groups within the group, and adds some.

It must not join results nor call the chord's body: Celery does, told once that everything is there. Celery's own stores of keys and values
wait for as many as the group has members; one that is a group itself is then joined before it is done, by a child that waits for ever. When
a part failed they say what it raised, and not which it was: that is said here, as Celery's documentation has it and its Redis backend does.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from celery import maybe_signature, states
from celery.backends.base import KeyValueStoreBackend
from celery.exceptions import ChordError
from celery.result import AsyncResult, GroupResult
from kombu.utils.encoding import bytes_to_str

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

logger = logging.getLogger(__name__)

_DONE, _SIZE, _ADDED, _FAILED = _NAMES = ".done", ".size", ".added", ".failed"  # behind the key of the chord


class ChordBackend(KeyValueStoreBackend):  # type: ignore[misc]  # Celery has no types
    """Counts parts. `incr`, `get`, `mget`, `set`, `delete` and `expire` are the store's."""

    def set_chord_size(self, group_id: str, chord_size: int) -> None:
        """How many parts there are; Celery says so before it sends the last one, so whoever counts that one finds it."""
        self.set(self._chord_key(group_id, _SIZE), str(chord_size))

    def add_to_chord(self, chord_id: str, result: AsyncResult) -> None:
        """One part more, which a part that is not done yet is about to send: `Task.add_to_chord`. Its result comes behind the others."""
        number = self.incr(self._chord_key(chord_id, _ADDED))
        self.set(self._chord_key(chord_id, f"{_ADDED}.{number}"), result.id)

    def on_chord_part_return(self, request: Any, state: str, result: Any, **kwargs: Any) -> None:
        """A part is done: when it was the last one, have Celery join them all and send the body."""
        group_id = request.group
        if not group_id:
            return
        if state in states.PROPAGATE_STATES:
            self.set(self._chord_key(group_id, _FAILED), "1")
        done = self.incr(self._chord_key(group_id, _DONE))
        counts = self.mget([self._chord_key(group_id, name) for name in (_SIZE, _ADDED, _FAILED)])
        size, more, failed = (int(found or 0) for found in counts)
        if not size or done < size + more:
            self._keep(request, group_id, [_DONE, _SIZE, *([_ADDED] if more else []), *([_FAILED] if failed else [])])
            return
        if done > size + more:  # a part that ran twice: the body is sent already
            return
        added = [self._chord_key(group_id, f"{_ADDED}.{number}") for number in range(1, more + 1)]
        if added:
            self._save_added(group_id, [bytes_to_str(found) for found in self.mget(added) if found])
        try:
            if not failed or not self._fail(request, group_id):
                request.chord["chord_size"] = 1  # Celery's own count begins now, and is complete at once
                super().on_chord_part_return(request, state, result, **kwargs)
        finally:
            for key in (*(self._chord_key(group_id, name) for name in _NAMES), *added):
                self.delete(key)

    def _fail(self, request: Any, group_id: str) -> bool:
        """Have Celery fail the body for the first part that failed, in the header's order; gives whether one is there still."""
        group = GroupResult.restore(group_id, backend=self, app=self.app)
        for part in _parts_of(group) if group is not None else ():
            meta = self.get_task_meta(part.id)
            if meta["status"] in states.PROPAGATE_STATES:
                raised = meta["result"]
                error = ChordError(f"Dependency {part.id} raised {raised!r}")
                try:
                    raise error from (raised if isinstance(raised, BaseException) else None)
                except ChordError:
                    logger.exception("Chord %r raised", group_id)
                    self.chord_error_from_stack(maybe_signature(request.chord, app=self.app), error)
                group.delete(backend=self)
                return True
        return False

    def _save_added(self, group_id: str, task_ids: Sequence[str]) -> None:
        group = GroupResult.restore(group_id, backend=self, app=self.app)
        if group is not None:
            results = [*group.results, *(AsyncResult(task_id, backend=self, app=self.app) for task_id in task_ids)]
            self.save_group(group_id, GroupResult(group_id, results, app=self.app))

    def _keep(self, request: Any, group_id: str, names: Sequence[str]) -> None:
        """A chord that takes longer than results are kept goes on: what it has so far is kept from now on."""
        seconds = getattr(self, "_chord_result_expires", self.expires)
        keys = [self._chord_key(group_id, name) for name in names]
        for key in (*keys, self.get_key_for_group(group_id), self.get_key_for_task(request.id)):
            self.expire(key, seconds)

    def _chord_key(self, group_id: str, name: str) -> Any:
        return self.get_key_for_chord(group_id, name)


def _parts_of(group: GroupResult) -> Iterator[AsyncResult]:
    for part in group.results:
        if isinstance(part, GroupResult):
            yield from _parts_of(part)
        else:
            yield part
