"""Two halves of the groups of a scan, stitched apart: how far do they agree, frequency by frequency?

One network predicts both halves, so what it makes up in the same way twice counts as agreement. The numbers measure
consistency and not accuracy, and are optimistic. <doc-ref type="guide">docs/workflows/pytorch.md</doc-ref>
"""

from __future__ import annotations

import dataclasses

import numpy as np

from ptycho_torch.reconstruction.rings import RingCorrelation, ring_correlation

KIND = "two halves of the groups, one network"
"""What is split: neither the training nor the network."""

LEAST_SIDE_PX, MOST_SIDE_PX = 32, 2048
"""Of the square that is compared: below, rings hold too few frequencies; above, nothing is gained."""


@dataclasses.dataclass(frozen=True)
class HalfSplit:
    """Agreement of the objects of two halves of the groups.

    Attributes:
        groups: in each half.
        patterns_in_both: share of the patterns that groups of both halves contain; 0 for groups of one pattern.
        side_px: of the largest square that both halves cover, which is compared; 0 if it is too small.
        rings: Fourier ring correlation of the halves; None where nothing can be compared.
    """

    groups: tuple[int, int]
    patterns_in_both: float
    side_px: int
    rings: RingCorrelation | None


def split_patterns(count: int) -> np.ndarray:
    """Return (M,) bool, which half each of M patterns belongs to: a random half, the same one every time.

    Groups of one pattern then share no pattern between the halves. Groups of several overlap so much that no split
    that leaves each half with the whole object avoids it: ``HalfSplit.patterns_in_both`` says how many are shared.
    """
    return np.asarray(np.random.RandomState(0).permutation(count) % 2 == 1)


def half_of_groups(halves: np.ndarray) -> np.ndarray:
    """Return (B,) bool of (B, C) halves of patterns: that of most patterns, of the first one if there are as many.

    >>> half_of_groups(np.array([[True, False, False], [True, False, True]]))
    array([False,  True])
    """
    twice, size = 2 * halves.sum(axis=1), halves.shape[1]
    return np.asarray(np.where(twice == size, halves[:, 0], twice > size))


def covered_square(covered: np.ndarray) -> tuple[slice, slice] | None:
    """Return rows and columns of a largest square of an (H, W) mask; None if it is below ``LEAST_SIDE_PX``.

    No edge of the mask is inside, which would correlate whatever the images are.
    """
    from scipy.ndimage import distance_transform_cdt

    distance = distance_transform_cdt(np.pad(covered, 1), metric="chessboard")[1:-1, 1:-1]
    row, column = (int(each) for each in np.unravel_index(int(distance.argmax()), distance.shape))
    reach = min(int(distance[row, column]) - 1, (MOST_SIDE_PX - 1) // 2)
    if 2 * reach + 1 < LEAST_SIDE_PX:
        return None
    return slice(row - reach, row + reach + 1), slice(column - reach, column + reach + 1)


def compare_halves(
    first: np.ndarray, second: np.ndarray, *, groups: tuple[int, int], patterns_in_both: float
) -> HalfSplit:
    """Return the agreement of the same square of both halves' objects, (n, n) complex each."""
    return HalfSplit(groups, patterns_in_both, len(first), ring_correlation(first, second))
