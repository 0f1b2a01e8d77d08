"""Owns the scale on which durations are counted: twenty buckets, each about three times as wide as the one before.

It must not change: counts on one scale cannot be added to counts on another. The database has the same bounds in
`jobrunner.histogram_bounds()`, and a test holds the two together.
"""

from __future__ import annotations

from bisect import bisect_right

# Bucket 0 is below the first bound, bucket i is from bound i-1 up to, but not, bound i, the last is all the rest.
BOUNDS_MS = tuple(step * 10**power for power in range(10) for step in (1, 3))[:19]  # 1 ms, 3 ms, 10 ms … 300,000 s, 1,000,000 s
BUCKETS = len(BOUNDS_MS) + 1


def bucket_of(ms: int) -> int:
    """The bucket that a duration is counted in, from 0."""
    return bisect_right(BOUNDS_MS, ms)
