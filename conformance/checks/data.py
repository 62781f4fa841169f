"""Who is in a group, offsets, normalisation and probes: from positions and patterns to what the network is given."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from conformance.checks.scans import CENTRED, FLOAT32, GRID, SEED, C, K, N, Scan, mapped_scans
from conformance.judge.agreement import Compared
from conformance.judge.data_parity import reference_indices
from conformance.oracle import operations as oracle
from conformance.oracle.data import draw_groups, neighbours, subsampled_groups
from ptycho_torch.config_params import DataSettings
from ptycho_torch.data import grouping

POINTS = 23
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


def _reference_groups(positions_px: np.ndarray) -> np.ndarray:
    """Draw the groups of a scan as the reference does (REF-08): C of the K nearest, never the point itself."""
    return draw_groups(positions_px, gridsize=GRID, K=K, n_groups=len(positions_px), seed=SEED)


def _nearest(positions_px: np.ndarray) -> np.ndarray:
    """Return the K + 1 points nearest to each, (M, K + 1): itself first."""
    return np.array([[point, *neighbours(positions_px, point, K)] for point in range(len(positions_px))])


def _each_scan(scans: Mapping[str, Scan], positions_px: np.ndarray) -> list[np.ndarray]:
    ends = np.cumsum([len(scan["xcoords"]) for scan in scans.values()])
    return np.split(positions_px, ends[:-1])


def _counted_through(points_of: Callable[[np.ndarray], np.ndarray], scans_px: Sequence[np.ndarray]) -> np.ndarray:
    """Join what each scan gives, with its points counted on from those of the scans before."""
    firsts = np.cumsum([0, *map(len, scans_px)])
    return np.concatenate([points_of(each) + first for each, first in zip(scans_px, firsts, strict=False)])


def groups() -> Compared:
    """Group the points of two scans as the reference does, and with each point first."""
    mapped = mapped_scans()
    scans, found, centred = mapped.scans, mapped.tables(), mapped.tables(CENTRED)
    # Positions have a step of their own: groups are judged by those that the map has.
    parts = _each_scan(scans, found.positions_px)
    right, near = _counted_through(_reference_groups, parts), _counted_through(_nearest, parts)
    inside = (centred.members[:, :, None] == near[:, None]).any(axis=-1)
    expected = {
        "nn_indices": right,
        "first of a group": np.arange(len(right)),
        "neighbours": np.ones((len(right), C), bool),
        "different": np.full(len(right), C),
    }
    given = {
        "nn_indices": found.members,
        "first of a group": centred.members[:, 0],
        "neighbours": inside,
        "different": np.array([len(set(group.tolist())) for group in centred.members]),
    }

    return Compared(expected, given)


def offsets() -> Compared:
    """Take positions relative to the mean of their group."""
    mapped = mapped_scans()
    found = mapped.tables()
    places = found.positions_px[found.members]  # (L, C, 2)
    layout = places.transpose(0, 2, 1)[:, None]  # (L, 1, 2, C)
    right = oracle.relative_offsets(layout)
    centres = places.mean(axis=1)

    expected = {"coords_relative": right[:, 0].transpose(0, 2, 1)[:, :, None], "coords_center": centres[:, None, None]}
    return Compared(expected, {"coords_relative": found.coords, "coords_center": found.centres}, FLOAT32)


def scale() -> Compared:
    """Normalise the amplitude of each scan."""
    mapped = mapped_scans()
    scans, found = mapped.scans, mapped.tables()
    members = [found.members[found.experiment_id == number] for number in range(len(scans))]
    patterns = [found.amplitude[rows].transpose(0, 2, 3, 1).astype(np.float64) for rows in members]

    def factor(images: np.ndarray) -> float:
        if not images.any():
            return float("nan")
        return float(oracle.normalise_amplitude(images, N)[images > 0][0] / images[images > 0][0])

    right = np.array([factor(images) for images in patterns])
    return Compared({"scale": right}, {"scale": found.scale}, FLOAT32)


def probe() -> Compared:
    """Store the probe and the good pixels of each scan."""
    mapped = mapped_scans()
    scans, found = mapped.scans, mapped.tables()
    right = np.stack([scan["probeGuess"][None] for scan in scans.values()])
    good = np.stack([~scan["bad_pixels"] for scan in scans.values()])
    return Compared({"probe": right, "good_pixels": good}, {"probe": found.probe, "good_pixels": found.good_pixels})
