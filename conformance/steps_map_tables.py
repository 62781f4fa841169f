"""What every table of a map holds, in plain NumPy, and scans of several kinds to make maps of."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from conformance.oracle_data import Preparation, oriented
from conformance.steps_samplers import wanted_groups
from conformance.steps_scans import Scan
from ptycho_torch.config_params import DataSettings

if TYPE_CHECKING:
    from ptycho_torch.dset_loader_pt_mmap import PtychoDataset

FRAME_PX = 8
Scans = dict[str, dict[str, np.ndarray]]
MapTables = dict[str, np.ndarray]
"""Tables of a map of E scans with M patterns and L groups of C.

    amplitude (M, N, N), energy (M,), positions_px (M, 2), scan_index (M,);
    nn_indices (L, C), rows of the patterns; coords_relative (L, C, 2), mean of the group minus position;
    centres_px (L, 2), experiment_id (L,);
    probe (E, modes, N, N), good_pixels (E, N, N), scale (E,), first_row (E,).
"""


def draw_unlike_scans() -> Scans:
    """Draw scans of different lengths, counts, masks and modes, one of them without nominal positions and index."""
    scans: Scans = {}
    for number, (name, patterns, modes) in enumerate((("c_first", 13, 2), ("a_second", 9, 1), ("b_third", 11, 3))):
        rng = np.random.default_rng(41 + number)
        real, imaginary = rng.standard_normal((2, modes, FRAME_PX, FRAME_PX))
        positions = rng.uniform((20, 90), (45, 130), (patterns, 2))
        scans[name] = {
            "diff3d": rng.gamma(2.0, 3.0 * (1 + number), (patterns, FRAME_PX, FRAME_PX)).astype(np.float32),
            "xcoords": positions[:, 0],
            "ycoords": positions[:, 1],
            "probeGuess": (real + 1j * imaginary).astype(np.complex64).squeeze(),
        }
        if number < 2:
            moved = positions + rng.uniform(-4, 4, (patterns, 2))
            scans[name] |= {"xcoords_start": moved[:, 0], "ycoords_start": moved[:, 1]}
            scans[name]["scan_index"] = np.full(patterns, rng.integers(1, 6))
        if number > 0:
            bad = np.zeros((FRAME_PX, FRAME_PX), bool)
            bad[2, 5] = bad[6, number] = True
            scans[name]["bad_pixels"] = bad
    return {name: scans[name] for name in sorted(scans)}


def write_scans(folder: Path, scans: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Write scans, and nothing else, into a folder."""
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        path.unlink()
    for name, members in scans.items():
        np.savez(folder / f"{name}.npz", **members)  # type: ignore[arg-type]


def _preparation(settings: DataSettings) -> Preparation:
    return Preparation(frame_px=FRAME_PX, N=settings.N, bins=settings.detector_bin)


def pattern_tables(scans: Scans, settings: DataSettings) -> MapTables:
    """Return ``amplitude`` and ``energy``: the patterns of all scans, prepared."""
    how = _preparation(settings)
    frames = [np.where(_bad(scan), np.float32(0), scan["diff3d"]) for scan in scans.values()]
    amplitude = _turned(how.amplitude(np.concatenate(frames)), settings)
    return {"amplitude": amplitude, "energy": np.square(amplitude).sum(axis=(1, 2))}


def _bad(scan: Scan) -> np.ndarray:
    return scan.get("bad_pixels", np.zeros((FRAME_PX, FRAME_PX), bool))


def _turned(images: np.ndarray, settings: DataSettings) -> np.ndarray:
    return oriented(images, transpose=settings.detector_transpose, flip=settings.detector_flip)


def positions_of(scan: Scan, settings: DataSettings) -> np.ndarray:
    """Return (M, 2) positions as settings choose and prepare them."""
    nominal = settings.position_source == "nominal" and "xcoords_start" in scan
    keys = ("xcoords_start", "ycoords_start") if nominal else ("xcoords", "ycoords")
    return _preparation(settings).positions_px(
        np.stack([scan[key].astype(np.float64) for key in keys], axis=1),
        swap_xy=settings.positions_swap_xy,
        flip_x=settings.positions_flip_x,
        flip_y=settings.positions_flip_y,
    )


def scale_of(energy: np.ndarray, N: int) -> float:
    """Return what normalises the amplitude of a scan (GROUP-04): (N/2) / √(mean energy)."""
    return float(N / 2 / np.sqrt(energy.mean()))


def stacked_probes(probes: list[np.ndarray]) -> np.ndarray:
    """Return (E, modes, N, N): modes of zeros behind those of a scan that has fewer than another."""
    modes = [probe.reshape(-1, *probe.shape[-2:]) for probe in probes]
    found = np.zeros((len(modes), max(map(len, modes)), *modes[0].shape[1:]), np.complex128)
    for row, mine in zip(found, modes, strict=True):
        row[: len(mine)] = mine
    return found


def group_tables(
    scans: Scans,
    settings: DataSettings,
    energy: np.ndarray,
    probes: list[np.ndarray] | None = None,
    groups_of: Callable[[np.ndarray, DataSettings], np.ndarray] = wanted_groups,
) -> MapTables:
    """Return the tables that are not of patterns: positions, groups and what belongs to each scan.

    Args:
        scans: by name.
        settings: how groups are made.
        energy: (M,) of the prepared patterns.
        probes: of each scan for its frames; None takes those of the scans.
        groups_of: draws the groups of one scan.
    """
    how = _preparation(settings)
    places = [positions_of(scan, settings) for scan in scans.values()]
    rows = [groups_of(each, settings) for each in places]
    firsts = np.cumsum([0, *map(len, places)])
    inside = [each[members] for each, members in zip(places, rows, strict=True)]  # (l, C, 2)
    centres = [each.mean(axis=1, keepdims=True) for each in inside]
    given = [scan["probeGuess"] for scan in scans.values()] if probes is None else probes
    scale = [scale_of(energy[members + first], settings.N) for members, first in zip(rows, firsts, strict=False)]
    return {
        "positions_px": np.concatenate(places),
        "scan_index": np.concatenate(
            [scan.get("scan_index", np.zeros(len(scan["xcoords"]), np.int64)) for scan in scans.values()]
        ),
        "nn_indices": np.concatenate([members + first for members, first in zip(rows, firsts, strict=False)]),
        "coords_relative": np.concatenate([mean - each for mean, each in zip(centres, inside, strict=True)]),
        "centres_px": np.concatenate(centres)[:, 0],
        "experiment_id": np.concatenate([np.full(len(each), number) for number, each in enumerate(rows)]),
        "probe": stacked_probes([how.probe(probe.reshape(-1, FRAME_PX, FRAME_PX)) for probe in given]),
        "good_pixels": np.stack([_turned(how.good_pixels(~_bad(scan)), settings) for scan in scans.values()]),
        "scale": np.array(scale) if settings.normalize else np.ones(len(scale)),
        "first_row": firsts[:-1],
    }


def all_tables(scans: Scans, settings: DataSettings, probes: list[np.ndarray] | None = None) -> MapTables:
    """Return every table of a map of these scans."""
    patterns = pattern_tables(scans, settings)
    return patterns | group_tables(scans, settings, patterns["energy"], probes)


def found_tables(dataset: PtychoDataset) -> MapTables:
    """Return every table of a dataset, by its properties where it has them."""
    tables, scan, groups = dataset.map.patterns, dataset.map.scan, dataset.map.groups
    found = {
        "amplitude": tables["amplitude"],
        "energy": tables["energy"],
        "positions_px": dataset.positions_px,
        "scan_index": scan["scan_index"],
        "nn_indices": dataset.nn_indices,
        "coords_relative": groups["coords_relative"][:, :, 0],
        "centres_px": dataset.centres_px,
        "experiment_id": dataset.experiment_ids,
        "probe": dataset.probes,
        "good_pixels": dataset.map.experiments["good_pixels"],
        "scale": dataset.scale,
        "first_row": dataset.map.experiments["first_row"],
    }
    arrays = {name: np.array(tensor.numpy()) for name, tensor in found.items()}
    return arrays | {name: arrays[name].astype(np.int64) for name in ("nn_indices", "experiment_id", "first_row")}


def with_settings(settings: DataSettings, **changed: object) -> DataSettings:
    """Return the settings with some of them changed."""
    return dataclasses.replace(settings, **changed)  # type: ignore[arg-type]
