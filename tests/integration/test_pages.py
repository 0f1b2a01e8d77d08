"""Where the versions of a row are written: a claim that finds room beside the old one writes a tenth less to the log."""

from __future__ import annotations

import psycopg

from jobrunner.store import Store
from tests.support.rows import Scene
from tests.support.workers import insert

PAGES = "SELECT id, (ctid::text::point)[0]::int FROM jobrunner.jobs ORDER BY id"


def test_a_claim_stays_on_the_page(fresh_dsn):
    """However many jobs were enqueued at once: none has to look for room elsewhere when it is claimed."""
    insert(fresh_dsn, "send", 500)
    with psycopg.connect(fresh_dsn, autocommit=True) as connection:
        before = connection.execute(PAGES).fetchall()
        assert len({page for _, page in before}) > 10
        store, worker = Store(connection), Scene(connection).worker()
        assert len(store.claim(worker, ["send"], "default", 0, 500, None)) == 500
        assert connection.execute(PAGES).fetchall() == before
