"""The addresses of the bench's servers lead each library to the database that the bench looks into."""

from __future__ import annotations

from bench.peers.shared import addresses


def test_kombu_is_given_the_number_of_the_database_as_a_virtual_host():
    """With `db` it would use number 0, which nobody empties and nobody looks into."""
    assert addresses.for_kombu("unix:///run/redis.sock?db=1") == "redis+socket:///run/redis.sock?virtual_host=1"
