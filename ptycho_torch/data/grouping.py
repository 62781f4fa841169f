"""Scan positions to groups of neighbouring patterns, as pure functions (clauses GROUP-01 and GROUP-02).

All draws come from NumPy's legacy MT19937 generator, whose stream NumPy keeps unchanged for ever: the reference is
reproduced number for number with it, and a map made today has the groups of one made in years.

<doc-ref type="contract">specs/data_contracts.md</doc-ref>
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

import numpy as np
from scipy.spatial import cKDTree

from ptycho_torch.config_params import DataSettings
from ptycho_torch.contracts.contract import violation
from ptycho_torch.errors import DataContractError

if TYPE_CHECKING:
    from ptycho_torch.data.scan import Scan

_POINTS_AT_ONCE = 2**17
_MOST_SUBSETS = 2**62


def group_scan(positions_px: np.ndarray, settings: DataSettings) -> np.ndarray:
    """Return the groups of one scan as indices into its patterns.

    ``with_centre``: row p·n_subsample + s holds scan point p first and then C − 1 of its K nearest neighbours, nearest
    first; the n_subsample subsets of a point are different. ``without_centre``: C of the K nearest, never p itself
    (REF-08). ``reference``: see ``reference_groups``.

    Args:
        positions_px: (M, 2) finite positions.
        settings: gridsize, K, n_subsample, group_sampler, group_seed and the sampler's own fields.

    Returns:
        (L, C) integers from 0 to M − 1; the C of a row differ.

    Raises:
        DataContractError: GROUP-01 fewer points than C, GROUP-02 fewer different groups than asked for.

    >>> group_scan(np.array([[0.0, 0], [1, 0], [0, 2], [9, 9]]), DataSettings(gridsize=1))[:, 0]
    array([0, 1, 2, 3])
    """
    M, C = len(positions_px), settings.C
    if M < C:
        raise violation(
            "GROUP-01",
            f"{M} patterns",
            expected=f"at least C = {C} patterns for gridsize = {settings.gridsize}",
            remedy=f"Make groups of fewer patterns: `--gridsize {math.isqrt(M)}`",
        )
    if settings.group_sampler == "reference":
        return reference_groups(
            positions_px,
            C=C,
            K=settings.K,
            n_groups=settings.n_groups or M,
            seed=settings.group_seed,
            sequential=settings.sequential_sampling,
            oversampling=settings.enable_oversampling,
            pool_size=settings.neighbor_pool_size,
        )
    with_centre = settings.group_sampler == "with_centre"
    drawn = C - 1 if with_centre else C
    if C == 1:
        # A group of one pattern is that pattern, whatever is said of its neighbours.
        with_centre, drawn = True, 0
    K = min(settings.K, M - 1)
    subsets = math.comb(K, drawn)
    if not settings.n_subsample <= subsets < _MOST_SUBSETS:
        raise violation(
            "GROUP-02",
            f"{subsets} different groups around a point (K = {K} of {M} points, C = {C}, {settings.group_sampler})",
            expected=f"at least n_subsample = {settings.n_subsample}, and fewer than 2⁶²",
            remedy=_more_groups(settings, M, drawn, subsets),
        )
    draw = np.random.RandomState(settings.group_seed)
    tree = cKDTree(positions_px)
    groups = np.empty((M, settings.n_subsample, C), np.int64)
    for first in range(0, M, _POINTS_AT_ONCE):
        points = np.arange(first, min(first + _POINTS_AT_ONCE, M))
        ranks = _distinct_ranks(draw, len(points), settings.n_subsample, subsets)
        chosen = _subset(ranks, K, drawn)  # (points, n_subsample, drawn)
        neighbours = _neighbours(tree, positions_px, points, K)  # (points, K)
        part = groups[first : first + len(points)]
        part[..., C - drawn :] = np.take_along_axis(neighbours[:, None], chosen, axis=2)
        if with_centre:
            part[..., 0] = points[:, None]
    return groups.reshape(-1, C)


def group_file(scan: Scan, positions_px: np.ndarray, settings: DataSettings) -> dict[int, np.ndarray]:
    """Make the groups of a file, none of which holds patterns of two scans [clauses GROUP-01 and GROUP-02].

    Args:
        scan: the file.
        positions_px: (M, 2) of its patterns.
        settings: how groups are made.

    Returns:
        ``scan_index`` in ascending order → (L, C) patterns of each group, counted in the file.

    Raises:
        DataContractError: GROUP-01 or GROUP-02.
    """
    members = {}
    indices = np.unique(scan.scan_index)
    for index in indices.tolist():
        rows = np.flatnonzero(scan.scan_index == index)
        try:
            members[index] = rows[group_scan(positions_px[rows], settings)]
        except DataContractError as err:
            found = err.found if len(indices) == 1 else f"{err.found} of scan_index {index}"
            raise violation(str(err.clause), found, path=scan.path, expected=err.expected, remedy=err.remedy) from err
    return members


def _more_groups(settings: DataSettings, M: int, drawn: int, subsets: int) -> str:
    """Return which settings ask for as many groups of a point as there are."""
    if subsets >= _MOST_SUBSETS:
        return f"Draw from fewer neighbours: `--K {drawn}`"
    enough = next((K for K in range(settings.K, M) if math.comb(K, drawn) >= settings.n_subsample), None)
    if enough is not None:
        return f"Draw from more neighbours: `--K {enough}`"
    if subsets:
        return f"Make fewer groups of a point: `--n-subsample {subsets}`"
    return "Make groups of fewer patterns: `--gridsize 1`"


def _neighbours(tree: cKDTree, positions_px: np.ndarray, points: np.ndarray, K: int) -> np.ndarray:
    """Return the K nearest other points of each point, nearest first; of points at one place any may come first."""
    if K == 0:
        return np.empty((len(points), 0), np.int64)
    _, found = tree.query(positions_px[points], k=K + 1, workers=-1)
    others = found != points[:, None]
    # Where many points share a place, a point may be missing from its own list; then the farthest goes.
    others[others.all(axis=1), -1] = False
    return np.asarray(found[others].reshape(len(points), K), np.int64)


def _distinct_ranks(draw: np.random.RandomState, points: int, count: int, total: int) -> np.ndarray:
    """Draw ``count`` different numbers below ``total`` for each point, every set equally likely (Floyd's algorithm)."""
    ranks = np.empty((points, count), np.int64)
    for turn in range(count):
        last = total - count + turn
        number = draw.randint(0, last + 1, size=points, dtype=np.int64)
        taken = (ranks[:, :turn] == number[:, None]).any(axis=1)
        ranks[:, turn] = np.where(taken, last, number)
    return ranks


def _subset(ranks: np.ndarray, K: int, size: int) -> np.ndarray:
    """Return the subsets of {0 … K − 1} with these ranks in colexicographic order, ascending, on a new last axis."""
    subsets = np.empty((*ranks.shape, size), np.int64)
    for place in range(size, 0, -1):
        # No rank reaches the bound; elements beyond it may have numbers that 64 bits cannot hold.
        below = np.array([min(math.comb(element, place), _MOST_SUBSETS) for element in range(K)], np.int64)
        element = np.searchsorted(below, ranks, side="right") - 1
        subsets[..., place - 1] = element
        ranks = ranks - below[element]
    return subsets


def reference_groups(
    positions_px: np.ndarray,
    *,
    C: int,
    K: int,
    n_groups: int,
    seed: int,
    sequential: bool = False,
    oversampling: bool = False,
    pool_size: int | None = None,
) -> np.ndarray:
    """Return the groups that the TensorFlow reference draws, number for number [clause GROUP-02, REF-08].

    n_groups seed points are drawn without replacement (all of them, in order, where there are no more), and for each
    one C of its K nearest neighbours, in random order and without the point itself. ``sequential`` takes points 0, 1,
    2, … and draws neighbours with seed 0. ``oversampling`` makes more groups than points: from
    min(2·⌈n_groups / (K choose C)⌉, M) points, drawn unless they are all or ``sequential``, all C-subsets of the
    ``pool_size`` nearest neighbours, until there are 2·n_groups, and n_groups of those.

    On a raster many points are equally near, and which of them are among the K depends on how the tree was cut: it is
    the reference's, ``cKDTree`` with leaves of 16 points.

    Args:
        positions_px: (M, 2) positions.
        C: patterns in a group.
        K: neighbours to draw from.
        n_groups: how many groups; for C = 1 never more than M.
        seed: of NumPy's MT19937.
        sequential: take seed points in order.
        oversampling: allow n_groups > M where C > 1.
        pool_size: K of oversampling; None is K.

    Returns:
        (n_groups, C) int64.

    Raises:
        DataContractError: GROUP-01 or GROUP-02.
    """
    M = len(positions_px)
    if M < C:
        remedy = f"Make groups of fewer patterns: `--gridsize {math.isqrt(M)}`"
        raise violation("GROUP-01", f"{M} patterns", expected=f"at least C = {C} patterns", remedy=remedy)
    oversampled = C > 1 and n_groups > M
    pool = K if pool_size is None or not oversampled else pool_size
    if C > 1 and pool < C:
        name = "K" if pool_size is None or not oversampled else "neighbor-pool-size"
        raise violation(
            "GROUP-02", f"K = {pool}", expected=f"K ≥ C = {C}", remedy=f"Draw from more neighbours: `--{name} {C}`"
        )
    draw = np.random.RandomState(seed)
    if oversampled:
        if not oversampling:
            raise violation(
                "GROUP-02",
                f"n_groups = {n_groups} for {M} scan points",
                expected="no more groups than scan points",
                remedy=f"Make fewer: `--n-groups {M}`; only `train` can draw points again: `--enable-oversampling`",
            )
        return _oversampled(draw, positions_px, C, pool, n_groups, sequential=sequential)
    if sequential:
        seeds, draw = np.arange(min(n_groups, M)), np.random.RandomState(0)
    else:
        seeds = np.arange(M) if n_groups >= M else draw.choice(M, n_groups, replace=False)
    if C == 1:
        return seeds.astype(np.int64)[:, None]
    neighbours = _nearest(positions_px, seeds, K)
    if M > K:
        neighbours = neighbours[:, 1:]
    return np.stack([draw.choice(row, C, replace=False) for row in neighbours])


def _nearest(positions_px: np.ndarray, seeds: np.ndarray, K: int) -> np.ndarray:
    """Return (seeds, min(K + 1, M)) points, nearest first; a seed that shares its place need not be the first."""
    _, found = cKDTree(positions_px).query(positions_px[seeds], k=min(K + 1, len(positions_px)))
    return np.asarray(found, np.int64).reshape(len(seeds), -1)


def _oversampled(
    draw: np.random.RandomState, positions_px: np.ndarray, C: int, pool: int, n_groups: int, *, sequential: bool
) -> np.ndarray:
    M = len(positions_px)
    count = min(2 * math.ceil(n_groups / math.comb(pool, C)), M)
    seeds = np.arange(count) if sequential or count == M else draw.choice(M, count, replace=False)
    neighbours = _nearest(positions_px, seeds, pool)[:, 1:]
    if neighbours.shape[1] < C:
        neighbours = np.column_stack([seeds, neighbours])
    subsets = itertools.chain.from_iterable(itertools.combinations(row, C) for row in neighbours)
    candidates = np.array(list(itertools.islice(subsets, 2 * n_groups)), np.int64)
    return candidates[draw.choice(len(candidates), n_groups, replace=len(candidates) < n_groups)]
