"""Who is in a group, and all the way from positions, patterns and probes to what the network is given."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from conformance.checks.light import draw_wave
from conformance.judge.agreement import Compared
from conformance.judge.data_parity import both_ways, draw_scan, reference_indices
from conformance.oracle.data import subsampled_groups
from ptycho_torch.config_params import DataSettings
from ptycho_torch.data import grouping

N, POINTS = 16, 23
"""No multiple of anything that groups are made of."""

_AROUND = DataSettings(K=6, group_seed=5)
_WITHOUT = DataSettings(K=6, group_seed=5, group_sampler="without_centre")
_REFERENCE = DataSettings(K=6, group_seed=5, group_sampler="reference")
_OVERSAMPLED = dataclasses.replace(_REFERENCE, K=5, n_groups=2 * POINTS + 3, enable_oversampling=True)

SAMPLINGS: Mapping[str, tuple[int, DataSettings]] = {
    "one group a point": (POINTS, _AROUND),
    "one group a point, another seed": (POINTS, dataclasses.replace(_AROUND, group_seed=6)),
    "four groups a point": (POINTS, dataclasses.replace(_AROUND, n_subsample=4)),
    "every group of a point": (POINTS, dataclasses.replace(_AROUND, K=4, n_subsample=4)),
    "the nearest alone": (POINTS, dataclasses.replace(_AROUND, K=3)),
    "groups of nine": (POINTS, dataclasses.replace(_AROUND, gridsize=3, K=10, n_subsample=3)),
    "groups of one": (POINTS, dataclasses.replace(_AROUND, gridsize=1)),
    "fewer points than neighbours": (7, dataclasses.replace(_AROUND, K=40, n_subsample=2)),
    "without centre": (POINTS, _WITHOUT),
    "without centre, another seed": (POINTS, dataclasses.replace(_WITHOUT, group_seed=6)),
    "without centre, four groups a point": (POINTS, dataclasses.replace(_WITHOUT, n_subsample=4)),
    "without centre, the nearest alone": (POINTS, dataclasses.replace(_WITHOUT, K=4)),
    "without centre, groups of one": (POINTS, dataclasses.replace(_WITHOUT, gridsize=1)),
    "reference": (POINTS, _REFERENCE),
    "reference, some groups": (POINTS, dataclasses.replace(_REFERENCE, n_groups=9, neighbor_pool_size=9)),
    "reference, some groups, another seed": (
        POINTS,
        dataclasses.replace(_REFERENCE, n_groups=9, group_seed=6, neighbor_pool_size=2),
    ),
    "reference, in sequence": (POINTS, dataclasses.replace(_REFERENCE, n_groups=9, sequential_sampling=True)),
    "reference, groups of one": (POINTS, dataclasses.replace(_REFERENCE, gridsize=1, n_groups=9)),
    "reference, fewer points than neighbours": (5, dataclasses.replace(_REFERENCE, K=5)),
    "oversampled": (POINTS, _OVERSAMPLED),
    "oversampled, another seed": (POINTS, dataclasses.replace(_OVERSAMPLED, group_seed=6)),
    "oversampled from a pool": (POINTS, dataclasses.replace(_OVERSAMPLED, neighbor_pool_size=7)),
    "oversampled many times": (POINTS, dataclasses.replace(_OVERSAMPLED, K=4, n_groups=3 * POINTS)),
    "oversampled from every point": (POINTS, dataclasses.replace(_OVERSAMPLED, n_groups=3 * POINTS)),
    "oversampled in sequence": (POINTS, dataclasses.replace(_OVERSAMPLED, sequential_sampling=True)),
}
"""Name → points of the scan, and settings."""


def _places(points: int) -> np.ndarray:
    return np.random.default_rng(19).uniform((20, 90), (45, 130), (points, 2))


def wanted_groups(positions_px: np.ndarray, settings: DataSettings) -> np.ndarray:
    """Return the groups of one scan that settings ask for, (L, C), by plain loops; positions are (M, 2)."""
    if settings.group_sampler == "reference":
        return reference_indices(positions_px, settings)
    return subsampled_groups(
        positions_px,
        gridsize=settings.gridsize,
        K=settings.K,
        n_subsample=settings.n_subsample,
        seed=settings.group_seed,
        with_centre=settings.group_sampler == "with_centre",
    )


def samplers() -> Compared:
    """Draw groups by every sampler."""
    drawn = {name: (_places(points), settings) for name, (points, settings) in SAMPLINGS.items()}
    expected = {name: wanted_groups(*each) for name, each in drawn.items()}
    return Compared(expected, {name: grouping.group_scan(*each) for name, each in drawn.items()})


def path() -> Compared:
    """Take two scans of different lengths, counts and probes all the way to what the network is given."""
    rng = np.random.default_rng(11)
    with tempfile.TemporaryDirectory() as folder:
        for number, patterns in enumerate((24, 31)):
            scan = draw_scan(rng, M=patterns, N=N) | {"probeGuess": draw_wave(rng, N, N).astype(np.complex64)}
            np.savez(Path(folder) / f"scan_{number}.npz", **scan)  # type: ignore[arg-type]
        return both_ways(Path(folder), DataSettings(N=N, K=7, group_sampler="reference", group_seed=3, nphotons=1e5))
