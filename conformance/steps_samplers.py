"""Who is in a group: every sampler, number for number, and a scan of more points than are taken at once."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from conformance.data_parity import reference_indices
from conformance.hypotheses import Hypothesis
from conformance.oracle_data import subsampled_groups
from conformance.step import FLOAT64, Outcome, Step, StepBench
from conformance.steps_scans import FLOAT32
from ptycho_torch import grouping
from ptycho_torch.config_params import DataSettings

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

Groups = dict[str, np.ndarray]


def _places(points: int) -> np.ndarray:
    return np.random.default_rng(19).uniform((20, 90), (45, 130), (points, 2))


def wanted_groups(
    positions_px: np.ndarray, settings: DataSettings, *, distinct: bool = True, spare: int = 2
) -> np.ndarray:
    """Return the groups that settings ask for, (L, C), by plain loops.

    Args:
        positions_px: (M, 2) of one scan.
        settings: of groups.
        distinct: of the samplers around points, whether the groups of a point differ; False makes a mistake.
        spare: of oversampling, how many times the seed points that suffice are drawn; all but 2 make a mistake.
    """
    if settings.group_sampler == "reference":
        return reference_indices(positions_px, settings, spare=spare)
    return subsampled_groups(
        positions_px,
        gridsize=settings.gridsize,
        K=settings.K,
        n_subsample=settings.n_subsample,
        seed=settings.group_seed,
        with_centre=settings.group_sampler == "with_centre",
        distinct=distinct,
    )


def _samplers(_: StepBench) -> Outcome:
    """Draw groups by every sampler."""
    given = {name: grouping.group_scan(_places(points), settings) for name, (points, settings) in SAMPLINGS.items()}
    right = _all(lambda settings: settings)
    return Outcome(right, given, 0.0, lambda: _mistakes(right))


def _all(change: Callable[[DataSettings], DataSettings], **mistaken: Any) -> Groups:
    return {
        name: wanted_groups(_places(points), change(settings), **mistaken)
        for name, (points, settings) in SAMPLINGS.items()
    }


def _mistakes(right: Groups) -> Iterator[Hypothesis]:
    def with_changes(name: str, **changed: object) -> Hypothesis:
        return Hypothesis(name, _all(lambda settings: dataclasses.replace(settings, **changed)))  # type: ignore[arg-type]

    def of(sampler: str, change: Callable[[np.ndarray], np.ndarray]) -> Groups:
        return {
            name: change(right[name]) if settings.group_sampler == sampler else right[name]
            for name, (_, settings) in SAMPLINGS.items()
        }

    yield with_changes("the same groups with every seed", group_seed=0)
    yield Hypothesis("a group twice at one point", _all(lambda settings: settings, distinct=False))
    yield Hypothesis("half as many seed points", _all(lambda settings: settings, spare=1))
    yield with_changes("seed points in random order in place of their sequence", sequential_sampling=False)
    yield with_changes("the pool of neighbours ignored", neighbor_pool_size=None)
    yield Hypothesis("the pool of neighbours taken without oversampling too", _all(_pool_always))
    yield Hypothesis("K one off", _all(lambda settings: dataclasses.replace(settings, K=settings.K + 1)))
    yield Hypothesis("the point last in its group", of("with_centre", lambda rows: np.roll(rows, -1, axis=1)))
    yield Hypothesis(
        "neighbours of a group farthest first",
        of("with_centre", lambda rows: np.concatenate([rows[:, :1], rows[:, :0:-1]], axis=1))
        | {name: rows[:, ::-1] for name, rows in right.items() if "without" in name},
    )
    yield Hypothesis(
        "groups of a point not one behind the other",
        {name: _draw_by_draw(rows, SAMPLINGS[name][1].n_subsample) for name, rows in right.items()},
    )
    yield Hypothesis("the point in the groups that are without it", _all(_always_with_centre))


def _pool_always(settings: DataSettings) -> DataSettings:
    pool = settings.neighbor_pool_size or 0
    return dataclasses.replace(settings, K=pool) if pool >= settings.C else settings


def _draw_by_draw(rows: np.ndarray, n_subsample: int) -> np.ndarray:
    """Return the first groups of all points, then the second ones, and so on."""
    return np.concatenate([rows[turn::n_subsample] for turn in range(n_subsample)])


def _always_with_centre(settings: DataSettings) -> DataSettings:
    if settings.group_sampler != "without_centre":
        return settings
    return dataclasses.replace(settings, group_sampler="with_centre")


def _same_place(_: StepBench) -> Outcome:
    """Group points of which many share a place: which of them come is open, how far away they are is not."""
    rng = np.random.default_rng(4)
    positions = np.concatenate([np.full((9, 2), 3.25), rng.uniform(0, 12, (14, 2)), np.full((3, 2), 7.5)])
    K, count = 3, len(positions)
    groups = grouping.group_scan(positions, DataSettings(K=K))
    far = np.linalg.norm(positions[:, None] - positions[None], axis=-1)
    np.fill_diagonal(far, np.inf)
    found = np.linalg.norm(positions[groups[:, 1:]] - positions[groups[:, :1]], axis=-1)
    expected = {
        "first of a group": np.arange(count),
        "different": np.full(count, K + 1),
        "distances": np.sort(far, axis=1)[:, :K],
    }
    given = {
        "first of a group": groups[:, 0],
        "different": np.array([len(set(group.tolist())) for group in groups]),
        "distances": found,
    }
    with_itself = np.sort(np.where(np.isinf(far), 0.0, far), axis=1)[:, :K]
    return Outcome(expected, given, FLOAT64, [Hypothesis("a point twice in its own group", {"distances": with_itself})])


SIDE_PX, MANY = 2, 2**17 + 37
"""More patterns than a stream holds at once, and more points and groups than are computed at once."""

_BESIDE = 4
"""On a line of points one pixel apart, moved by less than a third, the four nearest are among four on each side."""


def _large_map(_: StepBench) -> Outcome:
    """Map a scan that is taken in several parts: patterns, groups, and offsets."""
    from ptycho_torch.dset_loader_pt_mmap import PtychoDataset

    rng = np.random.default_rng(23)
    amplitude = rng.random((MANY, SIDE_PX, SIDE_PX), np.float32)
    line = np.stack([np.arange(MANY), np.zeros(MANY)], axis=1)
    positions = line + rng.uniform(-0.3, 0.3, (MANY, 2))
    settings = DataSettings(N=SIDE_PX, K=4, n_subsample=2, group_seed=1)
    with tempfile.TemporaryDirectory(prefix="conformance-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        np.savez(
            folder / "scan.npz",
            diff3d=amplitude,
            xcoords=positions[:, 0],
            ycoords=positions[:, 1],
            probeGuess=np.ones((SIDE_PX, SIDE_PX), np.complex64),
        )
        dataset = PtychoDataset(folder / "scan.npz", data_dir=folder / "map", settings=settings)
        members = dataset.nn_indices.numpy().astype(np.int64)
        given = {
            "amplitude": dataset.map.patterns["amplitude"].numpy(),
            "energy": dataset.map.patterns["energy"].numpy(),
            # Far out on the line, e of the places themselves would leave room for a rounding to float32.
            "positions beside the line": dataset.positions_px.numpy() - line,
            "offsets": dataset.map.groups["coords_relative"].numpy()[:, :, 0],
            "centres beside their first points": dataset.centres_px.numpy() - line[members[:, 0]],
        }
    places = positions[members]
    centres = places.mean(axis=1)
    expected = {
        "amplitude": amplitude,
        "energy": np.square(amplitude, dtype=np.float64).sum(axis=(1, 2)),
        "positions beside the line": positions - line,
        "offsets": centres[:, None] - places,
        "centres beside their first points": centres - line[members[:, 0]],
    }
    return _with_members(expected, given, members, positions, settings)


def _with_members(
    expected: Groups, given: Groups, members: np.ndarray, positions_px: np.ndarray, settings: DataSettings
) -> Outcome:
    """Judge, beside other things, the groups of points that lie on a line."""
    steps = np.array([step for step in range(-_BESIDE, _BESIDE + 1) if step])
    beside = np.arange(MANY)[:, None] + steps
    there = (beside >= 0) & (beside < MANY)
    far = np.linalg.norm(positions_px[np.where(there, beside, 0)] - positions_px[:, None], axis=-1)
    order = np.argsort(np.where(there, far, np.inf), axis=1)[:, : settings.K]
    near = np.take_along_axis(beside, order, axis=1)  # (M, K)
    own = np.repeat(np.arange(MANY), settings.n_subsample)
    rank = (members[:, 1:, None] == near[own][:, None]).argmax(axis=-1)  # (L, C − 1), of each neighbour
    subset = (1 << rank).sum(axis=1).reshape(MANY, settings.n_subsample)
    expected |= {
        "first of a group": own,
        "neighbours": np.ones((len(own), settings.C - 1), bool),
        "nearest first": np.ones(len(own), bool),
        "groups of a point differ": np.ones(MANY, bool),
    }
    given |= {
        "first of a group": members[:, 0],
        "neighbours": (members[:, 1:, None] == near[own][:, None]).any(axis=-1),
        "nearest first": np.all(np.diff(rank, axis=1) > 0, axis=1),
        "groups of a point differ": np.asarray(subset[:, 0] != subset[:, 1]),
    }
    return Outcome(expected, given, FLOAT32)


SAMPLING: tuple[Step, ...] = (
    Step("data.samplers", ("STEP-DATA", "GROUP-02", "REF-08"), _samplers),
    Step("data.same_place", ("STEP-DATA", "GROUP-02"), _same_place),
    Step("data.large_map", ("STEP-DATA", "MAP-01", "GROUP-02", "GROUP-03"), _large_map, ("tensordict",)),
)
