"""Each limit against each way to break it comes out as docs/guarantees.md says."""

from __future__ import annotations

import pytest

from tools import limits_matrix

pytestmark = pytest.mark.chaos


def test_every_limit_against_every_way_to_break_it(fresh_dsn, tmp_path):
    """Outcomes are those of the table; no neighbour loses an attempt, no worker ends, no process is left, every figure is on record."""
    run = limits_matrix.Run(fresh_dsn, tmp_path)
    run.go()
    print(limits_matrix.table(run), limits_matrix.facts(run), sep="\n\n")
    assert limits_matrix.differences(limits_matrix.PAGE.read_text(), run) == []
