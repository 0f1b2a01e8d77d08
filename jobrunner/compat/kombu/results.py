"""Owns Celery's result backend `jobrunner://`: task results, groups and chord counters in the table `broker_results`.

It must not be needed by the transport: any other result backend goes with it as well.
"""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeVar

from kombu.utils.encoding import bytes_to_str, str_to_bytes

from jobrunner import jitter
from jobrunner.compat.kombu.address import dsn_of, masked
from jobrunner.compat.kombu.broker import SWEPT, Results
from jobrunner.compat.kombu.chords import ChordBackend
from jobrunner.compat.kombu.link import UNANSWERED, Link
from jobrunner.transient import is_transient

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Answer = TypeVar("Answer")

PATIENCE = 30.0  # seconds for which a database that is away is waited for: the task is done, and its result would be lost
FIRST_PAUSE, MAX_PAUSE = 0.1, 2.0  # seconds


class Backend(ChordBackend):
    """Results by key. Expired ones are swept by the workers; without any that uses our transport, by Celery's `backend_cleanup`."""

    implements_incr = True
    supports_native_join = True
    persistent = True

    def __init__(self, url: str | None = None, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, url=url, **kwargs)
        self.url = url
        address = SimpleNamespace(
            hostname=url or "jobrunner://", userid=None, password=None, virtual_host=None, port=None, transport_options={}
        )
        self._link = Link(dsn_of(address), "jobrunner-results")
        self._results = Results(self._link)

    def __reduce__(self, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        return super().__reduce__(args, {**(kwargs or {}), "url": self.url})

    def as_uri(self, include_password: bool = False) -> str:  # noqa: FBT001, FBT002  Celery's
        """The address for people."""
        url = self.url or "jobrunner://"
        return url if include_password else masked(url, "**")

    def get(self, key: str | bytes) -> bytes | None:
        """One value, or None."""
        return self.mget([key])[0]

    def mget(self, keys: Sequence[str | bytes]) -> list[bytes | None]:
        """The values of these keys, in their order."""
        names = [bytes_to_str(key) for key in keys]
        found = self._patiently(lambda: self._results.get(names))
        return [found.get(name) for name in names]

    def set(self, key: str | bytes, value: str | bytes) -> None:
        """Store a value for `result_expires`."""
        self._patiently(lambda: self._results.set(bytes_to_str(key), str_to_bytes(value), self._ttl_ms(self.expires)))

    def delete(self, key: str | bytes) -> None:
        """Forget a value."""
        self.mdelete([key])

    def mdelete(self, keys: Sequence[str | bytes]) -> None:
        """Forget values."""
        self._patiently(lambda: self._results.delete([bytes_to_str(key) for key in keys]))

    def incr(self, key: str | bytes) -> int:
        """Add one to a number. Not tried again after a lost answer: it would count twice."""
        return self._results.count(bytes_to_str(key), self._ttl_ms(self.expires))

    def incr_by(self, key: str | bytes, part: str | bytes) -> int:
        """Add one to a number, once for each part, whatever runs or is tried again."""
        return self._patiently(lambda: self._results.count_part(bytes_to_str(key), bytes_to_str(part), self._ttl_ms(self.expires)))

    def expire(self, key: str | bytes, value: float | None) -> None:
        """Keep a value for so many seconds from now on."""
        self._patiently(lambda: self._results.expire(bytes_to_str(key), self._ttl_ms(value)))

    def wait_for(self, task_id: str, *args: Any, on_interval: Callable[[], object] | None = None, **kwargs: Any) -> Any:
        """Wait for a result, and then look once more at what Celery looks at in between: whether what the task waited for has failed.

        Redis tells of results, and so looks after each. A chord's failed part and its body are there at the same time, and `get()` then
        raises what the part raised; a look before the sleep only would make the exception a matter of luck.
        """
        meta = super().wait_for(task_id, *args, on_interval=on_interval, **kwargs)
        if on_interval:
            on_interval()
        return meta

    def cleanup(self) -> None:
        """Remove what has expired; for Celery's periodic `backend_cleanup`."""
        while self._results.sweep() == SWEPT:
            pass

    def close(self) -> None:
        """Close the connection; the next call opens another."""
        self._link.close()

    def exception_safe_to_retry(self, exc: BaseException) -> bool:
        """For Celery's `result_backend_always_retry`."""
        return isinstance(exc, UNANSWERED) or is_transient(exc)

    def _ttl_ms(self, seconds: float | None) -> int | None:
        return int(seconds * 1000) if seconds else None

    def _patiently(self, step: Callable[[], Answer]) -> Answer:
        until, pause = time.monotonic() + PATIENCE, FIRST_PAUSE
        while True:
            try:
                return step()
            except UNANSWERED:
                if time.monotonic() >= until:
                    raise
            time.sleep(pause * jitter.between(0.5, 1.0))
            pause = min(MAX_PAUSE, pause * 2)
