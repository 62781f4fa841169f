"""Batches of a memory map, groups at one place, and a large map."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tensordict", reason="maps need tensordict; pip install tensordict")

from conformance.judge.agreement import FLOAT32, FLOAT64, assert_agrees
from ptycho_torch.config_params import DataSettings
from ptycho_torch.data import grouping
from ptycho_torch.dset_loader_pt_mmap import PtychoDataset
from tests.support.scan_scenes import PLAIN, draw_unlike_scans, found_tables, write_scans

SIDE_PX, MANY = 2, 2**17 + 37
"""More patterns than a stream holds at once, and more points and groups than are computed at once."""

BESIDE = 4
"""On a line of points one pixel apart, moved by less than a third, the four nearest are among four on each side."""


@pytest.mark.parity_clause("STEP-DATA", "BATCH-01", "BATCH-02", "BATCH-03", "BATCH-04", "BATCH-05")
def test_a_batch_holds_what_the_map_has_of_its_groups(tmp_path: Path) -> None:
    scans = write_scans(tmp_path / "scans", draw_unlike_scans())
    dataset = PtychoDataset(scans, data_dir=tmp_path / "map", settings=PLAIN)
    table, chosen = found_tables(dataset), np.array([25, 3, 17, 32, 0])
    batch = dataset[chosen]
    rows, scan = table["nn_indices"][chosen], table["experiment_id"][chosen]
    scale = table["scale"][scan].astype(np.float64)
    expected = {
        "images": table["amplitude"][rows] * scale[:, None, None, None],
        "coords": table["coords_relative"][chosen][:, :, None],
        "scale": scale,
        "centres": table["centres_px"][chosen][:, None, None],
        "indices": rows,
        "experiment_ids": scan,
        "probe": np.repeat(table["probe"][scan][:, None], PLAIN.C, axis=1),
        "good_pixels": table["good_pixels"][scan][:, None],
    }
    found = {name: np.asarray(getattr(batch, name).numpy(force=True)) for name in expected}
    found |= {name: found[name].astype(np.int64) for name in ("indices", "experiment_ids")}
    assert_agrees(expected, found, FLOAT32)


@pytest.mark.parity_clause("STEP-DATA", "GROUP-02")
def test_groups_of_points_that_share_a_place() -> None:
    """Which of them come is open, how far away they are is not."""
    rng = np.random.default_rng(4)
    positions = np.concatenate([np.full((9, 2), 3.25), rng.uniform(0, 12, (14, 2)), np.full((3, 2), 7.5)])
    K, count = 3, len(positions)
    groups = grouping.group_scan(positions, DataSettings(K=K))
    far = np.linalg.norm(positions[:, None] - positions[None], axis=-1)
    np.fill_diagonal(far, np.inf)
    assert_agrees(
        {
            "first of a group": np.arange(count),
            "different": np.full(count, K + 1),
            "distances": np.sort(far, axis=1)[:, :K],
        },
        {
            "first of a group": groups[:, 0],
            "different": np.array([len(set(group.tolist())) for group in groups]),
            "distances": np.linalg.norm(positions[groups[:, 1:]] - positions[groups[:, :1]], axis=-1),
        },
        FLOAT64,
    )


@pytest.mark.parity_clause("STEP-DATA", "MAP-01", "GROUP-02", "GROUP-03")
def test_a_scan_of_more_patterns_than_are_taken_at_once(tmp_path: Path) -> None:
    rng = np.random.default_rng(23)
    amplitude = rng.random((MANY, SIDE_PX, SIDE_PX), np.float32)
    line = np.stack([np.arange(MANY), np.zeros(MANY)], axis=1)
    positions = line + rng.uniform(-0.3, 0.3, (MANY, 2))
    settings = DataSettings(N=SIDE_PX, K=4, n_subsample=2, group_seed=1)
    np.savez(
        tmp_path / "scan.npz",
        diff3d=amplitude,
        xcoords=positions[:, 0],
        ycoords=positions[:, 1],
        probeGuess=np.ones((SIDE_PX, SIDE_PX), np.complex64),
    )
    dataset = PtychoDataset(tmp_path / "scan.npz", data_dir=tmp_path / "map", settings=settings)
    members = dataset.nn_indices.numpy().astype(np.int64)
    near = _nearest_on_a_line(positions, settings.K)
    own = np.repeat(np.arange(MANY), settings.n_subsample)
    is_near = members[:, 1:, None] == near[own][:, None]
    rank = is_near.argmax(axis=-1)  # (L, C − 1), of each neighbour
    subset = (1 << rank).sum(axis=1).reshape(MANY, settings.n_subsample)
    places = positions[members]
    centres = places.mean(axis=1)
    assert_agrees(
        {
            "amplitude": amplitude,
            "energy": np.square(amplitude, dtype=np.float64).sum(axis=(1, 2)),
            "positions beside the line": positions - line,
            "offsets": centres[:, None] - places,
            "centres beside their first points": centres - line[members[:, 0]],
            "first of a group": own,
            "neighbours": np.ones((len(own), settings.C - 1), bool),
            "nearest first": np.ones(len(own), bool),
            "groups of a point differ": np.ones(MANY, bool),
        },
        {
            "amplitude": dataset.map.patterns["amplitude"].numpy(),
            "energy": dataset.map.patterns["energy"].numpy(),
            # Far out on the line, e of the places themselves would leave room for a rounding to float32.
            "positions beside the line": dataset.positions_px.numpy() - line,
            "offsets": dataset.map.groups["coords_relative"].numpy()[:, :, 0],
            "centres beside their first points": dataset.centres_px.numpy() - line[members[:, 0]],
            "first of a group": members[:, 0],
            "neighbours": is_near.any(axis=-1),
            "nearest first": np.all(np.diff(rank, axis=1) > 0, axis=1),
            "groups of a point differ": np.asarray(subset[:, 0] != subset[:, 1]),
        },
        FLOAT32,
    )


def _nearest_on_a_line(positions_px: np.ndarray, K: int) -> np.ndarray:
    """Return the (M, K) points nearest to each, nearest first."""
    steps = np.array([step for step in range(-BESIDE, BESIDE + 1) if step])
    beside = np.arange(MANY)[:, None] + steps
    there = (beside >= 0) & (beside < MANY)
    far = np.linalg.norm(positions_px[np.where(there, beside, 0)] - positions_px[:, None], axis=-1)
    order = np.argsort(np.where(there, far, np.inf), axis=1)[:, :K]
    return np.take_along_axis(beside, order, axis=1)
