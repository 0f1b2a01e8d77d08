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
from celery.utils.functional import regen
from kombu.utils.encoding import bytes_to_str

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

logger = logging.getLogger(__name__)

_DONE, _SIZE, _ADDED, _FAILED, _PART = _NAMES = ".done", ".size", ".added", ".failed", ".part"  # behind the key of the chord
_UNROLLED = "jobrunner_unrolled"  # on the body, which goes with every part: nobody has written down which parts there are
_GENERATED = type(regen(iter(())))  # what Celery makes of a generator


class ChordBackend(KeyValueStoreBackend):  # type: ignore[misc]  # Celery has no types
    """Counts parts. `incr`, `incr_by`, `get`, `mget`, `set`, `delete`, `mdelete` and `expire` are the store's."""

    def _apply_chord_incr(self, header_result_args: tuple[str, Any], body: Any, **kwargs: Any) -> None:
        """Write down which parts there are; those of a generator do so themselves, for it is read as they are sent and not before."""
        if isinstance(header_result_args[1], _GENERATED):
            body[_UNROLLED] = True
        else:
            body.pop(_UNROLLED, None)
            super()._apply_chord_incr(header_result_args, body, **kwargs)

    def set_chord_size(self, group_id: str, chord_size: int) -> None:
        """How many parts there are; Celery says so before it sends the last one, so whoever counts that one finds it.

        Celery before 5.7 says it again, and less, when a group inside of the group is sent: what was said first holds.
        """
        key = self._chord_key(group_id, _SIZE)
        if self.get(key) is None:
            self.set(key, str(chord_size))

    def add_to_chord(self, chord_id: str, result: AsyncResult) -> None:
        """One part more, which a part that is not done yet is about to send: `Task.add_to_chord`. Its result comes behind the others."""
        number = self.incr(self._chord_key(chord_id, _ADDED))
        self.set(self._chord_key(chord_id, f"{_ADDED}.{number}"), result.id)

    def on_chord_part_return(self, request: Any, state: str, result: Any, **kwargs: Any) -> None:
        """A part is done: when it was the last one, have Celery join them all and send the body.

        A part that runs twice is one part: all that it finds done may be what a process did not live to join, else the size is gone.
        """
        group_id = request.group
        if not group_id:
            return
        if state in states.PROPAGATE_STATES:
            self.set(self._chord_key(group_id, _FAILED), "1")
        own = self._write_down(request, group_id) if (request.chord or {}).get(_UNROLLED) else []
        done = self.incr_by(self._chord_key(group_id, _DONE), self._chord_key(group_id, f"{_DONE}.{request.id}"))
        counts = self.mget([self._chord_key(group_id, name) for name in (_SIZE, _ADDED, _FAILED, _PART)])
        size, more, failed, written = (int(found or 0) for found in counts)
        if not size or done < size + more:
            self._keep(request, group_id, [_DONE, _SIZE, *([_ADDED] if more else []), *([_FAILED] if failed else []), *own])
            return
        parts = [self._chord_key(group_id, f"{_PART}.{number}") for number in range(1, written + 1)]
        added = [self._chord_key(group_id, f"{_ADDED}.{number}") for number in range(1, more + 1)]
        if parts or added:
            self._save_parts(group_id, self._values(parts) if parts else None, self._values(added))
        group = GroupResult.restore(group_id, backend=self, app=self.app)
        members = [] if group is None else [*_parts_of(group)]
        try:
            if not failed or not self._fail(request, group, members):
                request.chord["chord_size"] = 1  # Celery's own count begins now, and is complete at once
                super().on_chord_part_return(request, state, result, **kwargs)
        finally:
            names = (*_NAMES, *(f"{_DONE}.{part.id}" for part in members))
            self.mdelete([*(self._chord_key(group_id, name) for name in names), *added, *parts])

    def _fail(self, request: Any, group: GroupResult, members: Sequence[AsyncResult]) -> bool:
        """Have Celery fail the body for the first part that failed, in the header's order; gives whether one is there still."""
        for part in members:
            meta = self.get_task_meta(part.id)
            if meta["status"] in states.PROPAGATE_STATES:
                raised = meta["result"]
                error = ChordError(f"Dependency {part.id} raised {raised!r}")
                try:
                    raise error from (raised if isinstance(raised, BaseException) else None)
                except ChordError:
                    logger.exception("Chord %r raised", request.group)
                    self.chord_error_from_stack(maybe_signature(request.chord, app=self.app), error)
                group.delete(backend=self)
                return True
        return False

    def _write_down(self, request: Any, group_id: str) -> list[str]:
        """That there is this part, and its place; gives the names of what is kept of that."""
        index = request.group_index
        number = self.incr(self._chord_key(group_id, _PART))
        self.set(self._chord_key(group_id, f"{_PART}.{number}"), f"{'inf' if index is None else index} {request.id}")
        return [_PART, f"{_PART}.{number}"]

    def _save_parts(self, group_id: str, written: Sequence[str] | None, added: Sequence[str]) -> None:
        """Write down the whole group: what stands there, or what its parts have written, and what was added."""
        if written is None:
            group = GroupResult.restore(group_id, backend=self, app=self.app)
            results = [] if group is None else [*group.results]
        else:
            parts = sorted((found.split(" ", 1) for found in written), key=lambda part: float(part[0]))
            results = [self._result(task_id) for task_id in dict.fromkeys(task_id for _, task_id in parts) if task_id not in added]
        if results:
            self.save_group(group_id, GroupResult(group_id, [*results, *map(self._result, added)], app=self.app))

    def _values(self, keys: Sequence[Any]) -> list[str]:
        return [bytes_to_str(found) for found in self.mget(keys) if found] if keys else []

    def _result(self, task_id: str) -> AsyncResult:
        return AsyncResult(task_id, backend=self, app=self.app)

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
