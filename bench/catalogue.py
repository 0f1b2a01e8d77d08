"""Owns the list of scenarios, in the order of the published page."""

from __future__ import annotations

from bench.scenarios import depth, drain, enqueue, idle, latency, workers

SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        *drain.SCENARIOS[:1],
        *enqueue.SCENARIOS,
        *latency.SCENARIOS,
        *drain.SCENARIOS[1:],
        *depth.SCENARIOS,
        *workers.SCENARIOS,
        *idle.SCENARIOS,
    )
}
PROBES = (
    *("isolation", "replacement", "fairness", "rollups", "retention", "claim-times", "history-reads", "shares", "hops", "enqueue-steps"),
    "losses",
)
"""Scripts of their own, no part of the page: about the worker's inside, printing JSON; `losses` is about lost jobs, beside peers."""
