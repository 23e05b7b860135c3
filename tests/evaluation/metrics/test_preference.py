"""Preference against the binomial and trinomial formulas; a published agreement."""

import numpy as np
import pytest
import scipy.stats

from unclip_jax.evaluation.metrics import preference


def single(wins, ties, losses):
    """Counts of comparisons that one rater each has answered."""
    return np.eye(3, dtype=int)[np.repeat([0, 1, 2], [wins, ties, losses])]


def test_without_ties_it_is_the_binomial_normal_interval():
    got = preference.preference(single(489, 0, 511))
    z = scipy.stats.norm.ppf(0.975)
    assert got.value == pytest.approx(0.489)
    assert got.half_width == pytest.approx(z * np.sqrt(0.489 * 0.511 / 1000))
    assert f"{100 * got.value:.1f} ± {100 * got.half_width:.1f}" == "48.9 ± 3.1"
    assert preference.decided_preference(single(489, 0, 511)) == got


def test_ties_are_half_a_win_each_or_left_out():
    wins, ties, losses = 120, 60, 70
    n = wins + ties + losses
    p, q = wins / n, ties / n
    got = preference.preference(single(wins, ties, losses))
    # of the multinomial: Var(1 * A + 1/2 * not sure)
    variance = p * (1 - p) + q * (1 - q) / 4 - p * q
    z = scipy.stats.norm.ppf(0.975)
    assert got.value == pytest.approx(p + q / 2)
    assert got.half_width == pytest.approx(z * np.sqrt(variance / n))
    other = preference.preference(single(losses, ties, wins))
    assert other.value == pytest.approx(1 - got.value)
    decided = preference.decided_preference(single(wins, ties, losses))
    assert decided.value == pytest.approx(120 / 190) and decided.n == 190
    assert preference.decided_preference(single(0, 5, 0)) is None


def test_the_interval_covers_the_truth_19_times_in_20():
    random = np.random.default_rng(0)
    truth = (0.4, 0.25, 0.35)
    hits = 0
    for draws in random.multinomial(400, truth, size=1000):
        got = preference.preference(single(*draws))
        hits += abs(got.value - 0.525) <= got.half_width
    assert scipy.stats.binomtest(hits, 1000, 0.95).pvalue > 1e-3


def test_raters_of_one_comparison_are_one_observation():
    """Answers copied by ten raters must not look like ten times the evidence."""
    counts = single(30, 10, 20)
    assert preference.preference(10 * counts) == preference.preference(counts)
    mixed = preference.preference(np.array([[2, 0, 1], [0, 1, 0], [0, 0, 2]]))
    assert mixed.value == pytest.approx((2 / 3 + 1 / 2 + 0) / 3) and mixed.n == 3


def test_agreement_is_krippendorffs():
    """His example of 4 observers, 12 units and 5 values: alpha = 0.743 (nominal)."""
    observers = (
        "1233214 12...",
        "12332241 25.3",
        ".33323422 51.",
        "123324412 51.",
    )
    rows = [[c for c in row if c != " "] for row in observers]
    assert {len(row) for row in rows} == {12}
    counts = np.zeros((12, 5), int)
    for row in rows:
        for unit, value in enumerate(row):
            if value != ".":
                counts[unit, int(value) - 1] += 1
    got = preference.agreement(counts)
    assert got["alpha"] == pytest.approx(0.743, abs=5e-4)
    assert got["n"] == 11  # the last unit has one observer


def test_agreement_of_equals_of_chance_and_of_one_rater():
    assert preference.agreement(3 * single(5, 2, 4))["alpha"] == 1
    assert preference.agreement(3 * single(5, 2, 4))["observed"] == 1
    assert np.isnan(preference.agreement(2 * single(5, 0, 0))["alpha"])
    assert preference.agreement(single(5, 2, 4)) is None
    random = np.random.default_rng(1)
    dealt = random.multinomial(3, (0.5, 0.2, 0.3), size=4000)
    assert abs(preference.agreement(dealt)["alpha"]) < 0.02


def test_refusals():
    with pytest.raises(ValueError, match="comparison 1 has no answer"):
        preference.preference(np.array([[1, 0, 0], [0, 0, 0]]))
    with pytest.raises(ValueError, match="comparisons, answers"):
        preference.preference(np.zeros((0, 3)))
