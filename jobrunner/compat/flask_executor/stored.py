"""Owns the futures that all processes of an application share: keys are references in the database, futures are made of their jobs.

It must not enqueue: a stored call and its reference are written by one statement, which the executor asks for.
"""

from __future__ import annotations

import json
import logging
import weakref
from collections.abc import Hashable, Iterator, Mapping
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar

from jobrunner import jsonvalues
from jobrunner.compat.flask_executor.futures import FutureCollection
from jobrunner.errors import DuplicateReference, JobNotFound
from jobrunner.references import References

if TYPE_CHECKING:
    from collections.abc import Callable

    from jobrunner.compat.jobfutures import JobFuture
    from jobrunner.database import Database
    from jobrunner.values import Values

T = TypeVar("T")

logger = logging.getLogger("jobrunner.futures")

_AS_JSON = "json:"  # before a key that is no text


class StoredFutures(FutureCollection):
    """As `FutureCollection`, in the database: a key stored by one process is found by the others, until its job's history is dropped.

    What is asked about a future is answered as it is at this moment. `None` also stands for a key whose job retention has dropped.

    Args:
        space: of the references.
        database: where they and the jobs are.
        values: for keys that are no text.
        future: makes the future of a job; raises JobNotFound.
        proxied: what callers are given in its place.
        max_length: references that are kept; the oldest go first, none while its job is unfinished. None keeps all.
    """

    def __init__(
        self,
        space: str,
        database: Callable[[], Database],
        values: Values,
        future: Callable[[int], JobFuture[Any]],
        proxied: Callable[[Future[Any]], Future[Any]],
        max_length: int | None = None,
    ) -> None:
        self.max_length = max_length
        self.space = space
        self._database, self._values, self._future, self._proxied = database, values, future, proxied
        self._here: weakref.WeakValueDictionary[int, JobFuture[Any]] = weakref.WeakValueDictionary()
        self._futures = _View(self)

    @property
    def references(self) -> References:
        """Of the database as it is now configured."""
        return References(self._database())

    def __contains__(self, future: object) -> bool:
        job_id = getattr(future, "job_id", None)
        return isinstance(job_id, int) and self.references.key_of(self.space, job_id) is not None

    def add(self, future_key: Hashable, future: Future[Any]) -> None:
        """Give a key to the job of a future; see `FutureCollection.add`.

        Raises:
            ValueError: there is one with that key.
            TypeError: the future is not one of a job.
        """
        job_id = getattr(future, "job_id", None)
        if not isinstance(job_id, int):
            raise TypeError("only futures of jobs can be stored where other processes find them")
        self.taking(future_key, lambda text: self.references.add(self.space, text, job_id))
        self.trim()

    def taking(self, future_key: Hashable, write: Callable[[str], T]) -> T:
        """Have `write` give a key to a job, also when the one that has it is gone: `pop` and `done` say that there is none then.

        Args:
            future_key: of the caller.
            write: is given the key as the database has it; raises DuplicateReference.

        Raises:
            ValueError: there is a future with that key.
        """
        text = self.text_of(future_key)
        try:
            return write(text)
        except DuplicateReference:
            if self._is_there(text):
                raise ValueError(f"future_key {future_key} already exists") from None
        try:
            return write(text)
        except DuplicateReference:  # another process was faster
            raise ValueError(f"future_key {future_key} already exists") from None

    def pop(self, future_key: Hashable) -> Future[Any] | None:
        """Take a key away; its job and its future go on. Of several processes that take it at once one gets the future, the others None."""
        future = self._futures.get(future_key)  # first: when the database does not answer, the key stays
        job_id = self.references.drop(self.space, self.text_of(future_key))
        if job_id is None or job_id == getattr(future, "job_id", None):
            return future if job_id is not None else None
        try:
            return self.future_of(job_id)  # the key was given to another job in between
        except JobNotFound:
            return None

    def trim(self) -> None:
        """Hold `max_length`. Never raises: what was stored before is stored, and the next trim takes what this one has left."""
        if self.max_length is None:
            return
        try:
            self.references.trim(self.space, self.max_length)
        except Exception:  # whatever it is: the caller would take a job that is written for one that is not, and write another
            logger.exception("old futures of %s could not be dropped", self.space)

    def keep(self, future: JobFuture[Any]) -> None:
        """A future of this process: it is the one that is found, as long as anybody holds it."""
        self._here[future.job_id] = future

    def future_of(self, job_id: int) -> Future[Any]:
        """The future of a job, as it is now. Raises JobNotFound."""
        future = self._here.get(job_id)
        if future is None:
            future = self._future(job_id)
            self.keep(future)
        else:
            future.look()
        return self._proxied(future)

    def _is_there(self, text: str) -> bool:
        """Whether the key is that of a job. One that retention has dropped loses it."""
        job_id = self.references.find(self.space, text)
        if job_id is None:
            return False
        if self.references.there([job_id]):  # asked there: a finished future that this process still holds knows nothing of retention
            return True
        self.references.drop(self.space, text, job_id)
        return False

    def text_of(self, key: Hashable) -> str:
        """A key as the database has it: text as it is, all else as typed JSON.

        Raises:
            TypeError: it is neither.
        """
        if isinstance(key, str) and key and not key.startswith(_AS_JSON) and jsonvalues.text_problem(key) is None:
            return key
        try:
            return _AS_JSON + jsonvalues.to_canonical_text(self._values.encode(key))
        except jsonvalues.Refusal as refusal:
            raise TypeError(f"the future_key {refusal.problem}: other processes could not ask for it") from None

    def key_of(self, text: str) -> Hashable:
        """The way back."""
        return self._values.decode(json.loads(text.removeprefix(_AS_JSON))) if text.startswith(_AS_JSON) else text


class _View(Mapping[Any, Future[Any]]):
    """The futures by key, as a mapping, which other libraries look at: `executor.futures._futures`. `len` counts keys of gone jobs too."""

    def __init__(self, stored: StoredFutures) -> None:
        self._stored = stored

    def __getitem__(self, key: Hashable) -> Future[Any]:
        job_id = self._stored.references.find(self._stored.space, self._stored.text_of(key))
        if job_id is None:
            raise KeyError(key)
        try:
            return self._stored.future_of(job_id)
        except JobNotFound:
            raise KeyError(key) from None

    def __iter__(self) -> Iterator[Any]:
        references, space = self._stored.references, self._stored.space
        texts = references.keys(space)
        job_ids = references.find_many(space, texts)
        there = references.there(job_ids.values())
        for text in texts:
            if job_ids.get(text) in there:  # not one whose job is gone: `values` would ask for it
                yield self._stored.key_of(text)

    def __len__(self) -> int:
        return self._stored.references.count(self._stored.space)
