"""Paired values are equivalent where two one-sided t tests find their mean difference within a margin.

A test for a difference finds none wherever it has too few pairs; this one has to show that there is none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import integrate, optimize, stats

from conformance.errors import DocumentError

ALPHA = 0.05
"""Rate at which values that differ by the margin may be called equivalent."""

SHOWN_POWER = 0.8
"""Power that the smallest detectable effect is found with."""


@dataclass(frozen=True)
class Equivalence:
    """What pairs say.

    Attributes:
        pairs: n.
        mean: of the differences.
        sd: their standard deviation σ, of n − 1 degrees of freedom.
        margin: largest mean difference that is none.
        p: of both one-sided tests, the larger one; at most ``ALPHA`` where the pairs are equivalent.
        power: how often pairs with this σ and no true difference are called equivalent.
        smallest_effect: smallest true difference that a paired t test of both sides finds with ``SHOWN_POWER``.
    """

    pairs: int
    mean: float
    sd: float
    margin: float
    p: float
    power: float
    smallest_effect: float


def two_one_sided(differences: np.ndarray, margin: float) -> np.ndarray:
    """Return p of two one-sided t tests, max(p[mean ≤ −margin], p[mean ≥ margin]), along the last axis.

    Args:
        differences: (..., n) of pairs, not all alike.
        margin: above 0.
    """
    above = stats.ttest_1samp(differences, -margin, axis=-1, alternative="greater").pvalue
    below = stats.ttest_1samp(differences, margin, axis=-1, alternative="less").pvalue
    return np.asarray(np.maximum(above, below))


def compare_pairs(ours: Sequence[float], theirs: Sequence[float], margin: float) -> Equivalence:
    """Judge whether pairs are equivalent.

    Args:
        ours: a value of each pair.
        theirs: the other, in the same order.
        margin: above 0.

    Raises:
        DocumentError: fewer than two pairs.
    """
    if len(ours) < 2:
        raise DocumentError(f"found {len(ours)} pairs; expected 2 or more, for fewer have no deviation.")
    differences = np.subtract(ours, theirs)
    n, mean = len(differences), float(differences.mean())
    if np.ptp(differences) == 0:
        return Equivalence(n, mean, 0.0, margin, float(abs(mean) >= margin), 1.0, 0.0)
    sd = float(differences.std(ddof=1))
    return Equivalence(
        n, mean, sd, margin, float(two_one_sided(differences, margin)), power(n, sd, margin), smallest_effect(n, sd)
    )


def power(pairs: int, sd: float, margin: float) -> float:
    """Return how often normal differences of mean 0 are called equivalent, exactly: mean and deviation are independent.

    ∫ [2Φ(√n·margin/σ − t·s/σ) − 1] dP(s), over all deviations s for which it is above 0; t is Student's at α.
    """
    freedom = pairs - 1
    critical, reach = stats.t.ppf(1 - ALPHA, freedom), math.sqrt(pairs) * margin / sd
    deviations = stats.chi(freedom, scale=1 / math.sqrt(freedom))
    found, _ = integrate.quad(
        lambda share: 2 * stats.norm.cdf(reach - critical * deviations.ppf(share)) - 1,
        0,
        deviations.cdf(reach / critical),
    )
    return float(found)


def smallest_effect(pairs: int, sd: float) -> float:
    """Return the mean difference that a paired t test of both sides finds with ``SHOWN_POWER``: noncentral t."""
    freedom = pairs - 1
    critical = stats.t.ppf(1 - ALPHA / 2, freedom)
    shift = optimize.brentq(lambda centre: stats.nct.sf(critical, freedom, centre) - SHOWN_POWER, 0, 50)
    return float(shift * sd / math.sqrt(pairs))
