"""The data path of the reference in plain NumPy: reading, grouping, offsets, normalisation, from what is known of it.

Everything is float64 and brute force. Nothing here imports the packages under test.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from conformance.oracle.operations import normalise_amplitude, relative_offsets

PATTERN_KEYS = ("diff3d", "diffraction")
"""Keys of the patterns in the order in which the reference looks for them."""


class RefusedError(ValueError):
    """The reference does not read this file."""


@dataclass(frozen=True)
class ReadScan:
    """What the reference's reader makes of a file.

    Attributes:
        amplitude: (M, N, N).
        positions_px: (M, 2), (x, y).
        probe: (N, N).
    """

    amplitude: np.ndarray
    positions_px: np.ndarray
    probe: np.ndarray


def read_scan(members: Mapping[str, np.ndarray]) -> ReadScan:
    """Read a file as the reference's training script does; types and values are not looked at.

    Raises:
        RefusedError: a key is missing, or shapes do not fit.
    """
    key = next((key for key in PATTERN_KEYS if key in members), None)
    if key is None:
        raise RefusedError("no patterns")
    for name in ("xcoords", "ycoords", "xcoords_start", "ycoords_start", "probeGuess"):
        if name not in members:
            raise RefusedError(f"no {name}")
    coordinates = [members[name] for name in ("xcoords", "ycoords", "xcoords_start", "ycoords_start")]
    if any(each.shape != coordinates[0].shape for each in coordinates) or coordinates[0].ndim != 1:
        raise RefusedError("coordinates of different shapes, or not one-dimensional")
    amplitude = _patterns_first(members[key], len(coordinates[0]))
    if amplitude.shape[1] != amplitude.shape[2]:
        raise RefusedError("patterns are not square")
    if members["probeGuess"].ndim != 2:
        raise RefusedError("the probe is not two-dimensional")
    if "objectGuess" in members and members["objectGuess"].ndim != 2:
        raise RefusedError("the object is not two-dimensional")
    return ReadScan(amplitude, np.stack(coordinates[:2], axis=1), np.asarray(members["probeGuess"]))


def _patterns_first(patterns: np.ndarray, points: int) -> np.ndarray:
    """Return (M, H, W); the older order (H, W, M) is turned where only its last axis fits the positions."""
    if patterns.ndim == 4 and patterns.shape[-1] == 1:
        patterns = patterns[..., 0]
    if patterns.ndim != 3:
        raise RefusedError(f"patterns of {patterns.ndim} axes")
    if patterns.shape[0] == points:
        return patterns
    if patterns.shape[-1] == points:
        return np.moveaxis(patterns, -1, 0)
    raise RefusedError("patterns do not fit the positions")


def draw_groups(
    positions_px: np.ndarray,
    *,
    gridsize: int,
    K: int,
    n_groups: int,
    seed: int,
    sequential: bool = False,
    oversampling: bool = False,
    pool_size: int | None = None,
) -> np.ndarray:
    """Return (groups, C) indices: seed points, and for each some of its neighbours in random order.

    The draws are those of NumPy's legacy generator in the order in which the reference asks for them; oversampling
    draws twice the seed points that suffice, or takes all points, or the first ones where ``sequential``.

    Raises:
        RefusedError: too few points or neighbours, or more groups than points without leave.
    """
    M, C = len(positions_px), gridsize**2
    if M < C:
        raise RefusedError(f"{M} points for groups of {C}")
    if C > 1 and n_groups > M:
        pool = K if pool_size is None else pool_size
        if not oversampling or pool < C:
            raise RefusedError(f"{n_groups} groups of {M} points")
        draw = np.random.RandomState(seed)
        count = min(2 * math.ceil(n_groups / math.comb(pool, C)), M)
        points = range(count) if sequential or count == M else draw.choice(M, count, replace=False)
        return _oversample(draw, positions_px, C, pool, n_groups, points)
    if C > 1 and K < C:
        raise RefusedError(f"K = {K} for groups of {C}")
    draw = np.random.RandomState(seed)
    if sequential:
        seeds, draw = np.arange(min(n_groups, M)), np.random.RandomState(0)
    elif n_groups >= M:
        seeds = np.arange(M)
    else:
        seeds = draw.choice(M, n_groups, replace=False)
    if C == 1:
        return seeds[:, None]
    return np.array([draw.choice(neighbours(positions_px, int(point), K), C, replace=False) for point in seeds])


def neighbours(positions_px: np.ndarray, point: int, K: int) -> np.ndarray:
    """Return the K nearest of a point, nearest first, without it; of K points or fewer all, itself included."""
    distances = np.hypot(*(positions_px - positions_px[point]).T)
    order = np.argsort(distances, kind="stable")
    return order if len(positions_px) <= K else order[1 : K + 1]


def subsampled_groups(
    positions_px: np.ndarray,
    *,
    gridsize: int,
    K: int,
    n_subsample: int,
    seed: int,
    with_centre: bool,
) -> np.ndarray:
    """Return (M·n_subsample, C) indices: groups of each point one behind the other, members nearest first.

    GROUP-02 says no more than that the groups of a point differ; which they are is the rule of
    ``ptycho_torch.data.grouping``, Floyd's draw of places in the colexicographic list of all subsets: a point gets one
    number after another, the s-th below total − n_subsample + s + 1, and one that the point has already makes way for
    the last of these. Every point draws its s-th number before any draws the next; the package draws so up to
    ``grouping._POINTS_AT_ONCE`` = 2¹⁷ points, and part by part beyond.

    Args:
        positions_px: (M, 2), no two the same.
        gridsize: g.
        K: neighbours to draw from.
        n_subsample: groups of a point.
        seed: of NumPy's legacy generator.
        with_centre: the point first, and C − 1 of its neighbours; else C of them.

    Raises:
        ValueError: fewer subsets than n_subsample.
    """
    M, C = len(positions_px), gridsize**2
    with_centre, K = with_centre or C == 1, min(K, M - 1)
    size = C - 1 if with_centre else C
    subsets = sorted(itertools.combinations(range(K), size), key=lambda subset: subset[::-1])
    draw, numbers = np.random.RandomState(seed), [list[int]() for _ in range(M)]
    for last in range(len(subsets) - n_subsample, len(subsets)):
        for had, number in zip(numbers, draw.randint(0, last + 1, size=M, dtype=np.int64).tolist(), strict=True):
            had.append(last if number in had else number)
    groups = []
    for point, had in enumerate(numbers):
        near = neighbours(positions_px, point, K)
        groups += [[point] * with_centre + [int(near[place]) for place in subsets[number]] for number in had]
    return np.array(groups, np.int64)


def _oversample(
    draw: np.random.RandomState, positions_px: np.ndarray, C: int, pool: int, n_groups: int, points: Iterable[int]
) -> np.ndarray:
    candidates: list[tuple[int, ...]] = []
    for point in points:
        near = [each for each in neighbours(positions_px, int(point), pool).tolist() if each != point]
        candidates += itertools.combinations(near if len(near) >= C else [int(point), *near], C)
        if len(candidates) >= 2 * n_groups:
            break
    candidates = candidates[: 2 * n_groups]
    chosen = draw.choice(len(candidates), n_groups, replace=len(candidates) < n_groups)
    return np.array([candidates[each] for each in chosen])


@dataclass(frozen=True)
class GroupedScan:
    """What the network is given, channels last.

    Attributes:
        indices: (groups, C) patterns of each group.
        amplitude: (groups, N, N, C) normalised.
        offsets_px: (groups, 1, 2, C), mean of the group minus position, (x, y) on axis 2.
        centres_px: (groups, 1, 2, 1).
        factor: what normalised the amplitude.
    """

    indices: np.ndarray
    amplitude: np.ndarray
    offsets_px: np.ndarray
    centres_px: np.ndarray
    factor: float


def group(scan: ReadScan, indices: np.ndarray) -> GroupedScan:
    """Gather the patterns of groups, normalise them, and centre the positions of each group."""
    positions = np.moveaxis(scan.positions_px.astype(np.float64)[indices], 1, -1)[:, None]  # (groups, 1, 2, C)
    measured = np.moveaxis(scan.amplitude.astype(np.float64)[indices], 1, -1)  # (groups, N, N, C)
    amplitude = normalise_amplitude(measured, measured.shape[1])
    brightest = measured.argmax()
    return GroupedScan(
        indices,
        amplitude,
        relative_offsets(positions),
        positions.mean(axis=-1, keepdims=True),
        float(amplitude.flat[brightest] / measured.flat[brightest]),
    )
