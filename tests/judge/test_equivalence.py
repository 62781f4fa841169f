"""Two one-sided tests: by hand, and as often wrong as they say."""

from __future__ import annotations

import math

import numpy as np
import pytest

from conformance.errors import DocumentError
from conformance.judge.equivalence import ALPHA, compare_pairs, power, smallest_effect, two_one_sided

RESAMPLES, PAIRS = 10_000, 20

REFERENCE = np.array([0.8803, 0.8871, 0.8916, 0.8958, 0.8971, 0.8994, 0.9012, 0.9038, 0.9087, 0.9142])
"""Phase correlations of ten trainings."""

DIFFERENCES = np.subtract.outer(REFERENCE, REFERENCE)[~np.eye(len(REFERENCE), dtype=bool)]
"""Reference against reference; each with its negative, so that the mean is 0."""

SD = float(DIFFERENCES.std())


def drawn(shift: float) -> np.ndarray:
    return np.random.default_rng(0).choice(DIFFERENCES, (RESAMPLES, PAIRS)) + shift


def called_equivalent(shift: float, margin: float) -> float:
    return float((two_one_sided(drawn(shift), margin) <= ALPHA).mean())


def slack(rate: float) -> float:
    """Four standard deviations of a rate that so many resamples show."""
    return 4 * math.sqrt(rate * (1 - rate) / RESAMPLES)


def test_a_verdict_is_as_computed_by_hand() -> None:
    # Differences 1, 2, 3: mean 2, σ 1, so t = (2 − 5)·√3 = −5.196 with 2 degrees of freedom, for which Student's
    # distribution is ½ + t / (2√(2 + t²)); the other t, 12.1, is larger.
    found = compare_pairs([11, 12, 13], [10, 10, 10], margin=5)
    assert (found.pairs, found.mean, found.sd) == (3, 2.0, 1.0)
    assert found.p == pytest.approx(0.5 - math.sqrt(27 / 29) / 2, rel=1e-9)
    assert found.p <= ALPHA
    assert compare_pairs([11, 12, 13], [10, 10, 10], margin=2.5).p > ALPHA
    assert compare_pairs([10, 10, 10], [11, 12, 13], margin=5).p == pytest.approx(found.p)


@pytest.mark.parametrize("margin_in_sd", [0.5, 0.65, 0.9])
def test_the_reference_against_itself_is_rejected_at_the_stated_rate(margin_in_sd: float) -> None:
    margin = margin_in_sd * SD
    stated = power(PAIRS, SD, margin)
    assert abs(called_equivalent(0.0, margin) - stated) <= slack(stated)


@pytest.mark.parametrize("side", [-1, 1])
@pytest.mark.parametrize("margin_in_sd", [0.3, 0.65, 0.9])
def test_a_shift_of_the_margin_is_not_called_equivalent(side: int, margin_in_sd: float) -> None:
    margin = margin_in_sd * SD
    assert called_equivalent(side * margin, margin) <= ALPHA + slack(ALPHA)


def test_the_smallest_effect_is_found_four_times_in_five() -> None:
    draws = np.random.default_rng(0).normal(smallest_effect(PAIRS, SD), SD, (RESAMPLES, PAIRS))
    t = draws.mean(axis=1) / draws.std(axis=1, ddof=1) * math.sqrt(PAIRS)
    # Student's 97.5 % for 19 degrees of freedom.
    assert abs((t > 2.093).mean() - 0.8) <= slack(0.8)


def test_pairs_that_differ_all_alike_need_no_test() -> None:
    same, far = (compare_pairs([value] * 3, [1.0] * 3, margin=0.5) for value in (1.25, 1.5))
    assert (same.p, same.sd, same.power, same.smallest_effect) == (0.0, 0.0, 1.0, 0.0)
    assert far.p > ALPHA


def test_too_few_pairs_are_refused() -> None:
    with pytest.raises(DocumentError, match="found 1 pairs"):
        compare_pairs([1.0], [1.0], margin=0.1)
