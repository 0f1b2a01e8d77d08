"""The arithmetic of the benchmarks: medians, spread, percentiles, ratios, verdicts, and who is ahead."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.figures import Best, Bound, Reading, Target, Verdict, losses, median, percentile, rounds_of, spread
from bench.targets import TARGETS

RATE = "jobs_per_second"
OURS, BARE = Reading("drain", "ours", RATE), Reading("drain", "bare", RATE)


def entry(kind="peer", rank="best", failed=None, **figures):
    """What a document keeps of a contender."""
    return {"kind": kind, "rank": rank, "figures": figures} | ({"failed": failed} if failed else {})


def drain(**entries):
    """Documents with one scenario."""
    return {"drain": {"entries": entries}}


@pytest.mark.parametrize(("rounds", "middle"), [([3], 3), ([1, 9, 2], 2), ([4, 1, 3, 2], 2.5)])
def test_a_median_is_the_middle_round_or_between_the_two(rounds, middle):
    """The order of rounds does not matter, and one that went wild does not move it."""
    assert median(rounds) == middle


def test_nothing_measured_has_no_median_and_no_spread():
    """An empty list is an error, not a zero that would be published."""
    for figure in (median, spread):
        with pytest.raises(ValueError, match="nothing was measured"):
            figure([])


def test_spread_is_smallest_and_largest():
    """Both ends of the rounds, whatever their order."""
    assert spread([5, 1, 9]) == (1, 9)


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0.01, 1))
def test_a_percentile_has_its_share_of_the_values_at_or_below_it(values, share):
    """Nearest rank: at least that share is not above it, and fewer would not do."""
    found = percentile(values, share)
    assert found in values
    assert sum(value <= found for value in values) >= share * len(values)
    assert sum(value < found for value in values) < share * len(values)


@pytest.mark.parametrize(("values", "share"), [([], 0.5), ([1], 0), ([1], 1.1)])
def test_an_impossible_percentile_is_refused(values, share):
    """No values, or a share outside (0, 1]."""
    with pytest.raises(ValueError, match="no percentile"):
        percentile(values, share)


def test_rounds_of_a_failed_or_absent_entry_are_none():
    """What a contender measured before it broke is not used."""
    documents = drain(ours=entry(jobs_per_second=[1, 2], failed="it broke"))
    assert rounds_of(documents["drain"], "ours", RATE) == []
    assert rounds_of(documents["drain"], "nobody", RATE) == []
    assert rounds_of(None, "ours", RATE) == []


def test_a_ratio_is_between_medians():
    """Of ours to the named alternative, in the same document."""
    documents = drain(ours=entry(jobs_per_second=[10, 90, 30]), bare=entry(jobs_per_second=[1, 20, 100]))
    assert Bound(OURS, "≥", 1, "×", BARE).reached(documents) == 1.5


@pytest.mark.parametrize(
    ("sense", "limit", "verdict"),
    [
        ("≥", 10, Verdict.MET),
        ("≥", 10.1, Verdict.NOT_MET),
        ("≤", 10, Verdict.MET),
        ("≤", 9.9, Verdict.NOT_MET),
    ],
)
def test_a_bound_is_met_at_its_limit_and_not_beyond(sense, limit, verdict):
    """Equal is met, for both senses."""
    assert Bound(OURS, sense, limit).verdict(drain(ours=entry(jobs_per_second=[10]))) is verdict


@pytest.mark.parametrize("documents", [{}, drain(), drain(ours=entry(jobs_per_second=[10])), drain(bare=entry(jobs_per_second=[10]))])
def test_what_was_not_measured_is_neither_met_nor_not(documents):
    """A missing scenario, ours missing, or the alternative missing: the target says so."""
    assert Bound(OURS, "≥", 1, "×", BARE).verdict(documents) is Verdict.NOT_MEASURED


def test_an_alternative_of_zero_has_no_ratio():
    """Nothing is divided by it, and nothing is claimed."""
    documents = drain(ours=entry(jobs_per_second=[10]), bare=entry(jobs_per_second=[0]))
    assert Bound(OURS, "≥", 1, "×", BARE).verdict(documents) is Verdict.NOT_MEASURED


def test_a_target_is_as_good_as_its_worst_bound():
    """One that is not met outweighs one that was not measured, and that outweighs those that are met."""
    met, failed, open_ = Bound(OURS, "≥", 1), Bound(OURS, "≥", 99), Bound(BARE, "≥", 1)
    documents = drain(ours=entry(jobs_per_second=[10]))
    assert Target(1, "", (met,)).verdict(documents) is Verdict.MET
    assert Target(1, "", (met, open_)).verdict(documents) is Verdict.NOT_MEASURED
    assert Target(1, "", (met, open_, failed)).verdict(documents) is Verdict.NOT_MET


def test_the_best_of_the_peers_is_neither_ours_nor_bare_nor_of_another_rank():
    """Only peers count, at the rank that was asked for, and by their medians."""
    documents = drain(
        ours=entry("ours", "default", jobs_per_second=[99]),
        bare=entry("bare", "default", jobs_per_second=[98]),
        slow=entry("peer", "default", jobs_per_second=[5, 6, 70]),
        quick=entry("peer", "default", jobs_per_second=[7, 7, 7]),
        best=entry("peer", "best", jobs_per_second=[50]),
    )
    best = Best("drain", RATE, rank="default")
    assert (best.winner(documents), best.value(documents)) == ("quick", 7)
    assert Best("drain", RATE, kind="ours").value(documents) == 99
    assert Best("drain", RATE, rank="none such").value(documents) is None


def test_losses_name_every_peer_that_is_ahead_at_the_same_rank():
    """Higher is better or lower is better, as the figure is; ours without a rank is compared with nobody."""
    document = drain(
        ours=entry("ours", "best", jobs_per_second=[10]),
        alone=entry("ours", "", jobs_per_second=[1]),
        bare=entry("bare", "best", jobs_per_second=[1000]),
        ahead=entry("peer", "best", jobs_per_second=[15]),
        far=entry("peer", "best", jobs_per_second=[25]),
        other=entry("peer", "default", jobs_per_second=[100]),
        behind=entry("peer", "best", jobs_per_second=[5]),
    )["drain"]
    assert losses(document, RATE, higher_is_better=True) == [("ours", "far", 2.5), ("ours", "ahead", 1.5)]
    assert losses(document, RATE, higher_is_better=False) == [("ours", "behind", 2.0)]


def test_equal_is_no_loss():
    """A peer with the same figure is not ahead."""
    document = drain(ours=entry("ours", jobs_per_second=[10]), peer=entry(jobs_per_second=[10]))["drain"]
    assert losses(document, RATE, higher_is_better=True) == []


def test_targets_are_numbered_from_one():
    """As the list of demands is."""
    assert [target.number for target in TARGETS] == list(range(1, len(TARGETS) + 1))
