"""Scans that differ in everything in which scans may differ, and what their map has to hold, in plain NumPy."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from conformance.checks.data import wanted_groups
from conformance.checks.light import draw_wave
from ptycho_torch.config_params import DataSettings
from ptycho_torch.dset_loader_pt_mmap import PtychoDataset
from tests.support.plain_preparation import Preparation, oriented

FRAME_PX = 8
PLAIN = DataSettings(N=FRAME_PX, K=6, group_seed=3)

Arrays = dict[str, np.ndarray]
Scans = dict[str, Arrays]
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
        probe = draw_wave(rng, modes, FRAME_PX, FRAME_PX)
        positions = rng.uniform((20, 90), (45, 130), (patterns, 2))
        scans[name] = {
            "diff3d": rng.gamma(2.0, 3.0 * (1 + number), (patterns, FRAME_PX, FRAME_PX)).astype(np.float32),
            "xcoords": positions[:, 0],
            "ycoords": positions[:, 1],
            "probeGuess": probe.astype(np.complex64).squeeze(),
        }
        if number < 2:
            moved = positions + rng.uniform(-4, 4, (patterns, 2))
            scans[name] |= {"xcoords_start": moved[:, 0], "ycoords_start": moved[:, 1]}
            scans[name]["scan_index"] = np.full(patterns, rng.integers(1, 6))
        if number > 0:
            scans[name]["bad_pixels"] = np.zeros((FRAME_PX, FRAME_PX), bool)
            scans[name]["bad_pixels"][[2, 6], [5, number]] = True
    return {name: scans[name] for name in sorted(scans)}


def write_scans(folder: Path, scans: Mapping[str, Mapping[str, Any]]) -> Path:
    """Write scans, and nothing else, into a folder; return it."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        path.unlink()
    for name, members in scans.items():
        np.savez(folder / f"{name}.npz", **members)
    return folder


# ----------------------------------------------------------------------------------------------- tables of a map


def _preparation(settings: DataSettings) -> Preparation:
    centre_px = (settings.detector_centre_row_px, settings.detector_centre_column_px)
    return Preparation(FRAME_PX, settings.N, settings.detector_bin, centre_px if settings.detector_crop else None)


def _bad(scan: Arrays) -> np.ndarray:
    return scan.get("bad_pixels", np.zeros((FRAME_PX, FRAME_PX), bool))


def _turned(images: np.ndarray, settings: DataSettings) -> np.ndarray:
    return oriented(images, transpose=settings.detector_transpose, flip=settings.detector_flip)


def _positions_of(scan: Arrays, settings: DataSettings) -> np.ndarray:
    suffix = "_start" if settings.position_source == "nominal" and "xcoords_start" in scan else ""
    return _preparation(settings).positions_px(
        np.stack([scan[f"{letter}coords{suffix}"] for letter in "xy"], axis=1),
        swap_xy=settings.positions_swap_xy,
        flip_x=settings.positions_flip_x,
        flip_y=settings.positions_flip_y,
    )


def pattern_tables(scans: Scans, settings: DataSettings) -> MapTables:
    """Return ``amplitude`` and ``energy``: the patterns of all scans, prepared."""
    frames = [np.where(_bad(scan), np.float32(0), scan["diff3d"]) for scan in scans.values()]
    amplitude = _turned(_preparation(settings).amplitude(np.concatenate(frames)), settings)
    return {"amplitude": amplitude, "energy": np.square(amplitude).sum(axis=(1, 2))}


def stacked_probes(probes: Sequence[np.ndarray]) -> np.ndarray:
    """Return (E, modes, N, N): modes of zeros after those of a scan that has fewer than another."""
    modes = [probe.reshape(-1, *probe.shape[-2:]) for probe in probes]
    found = np.zeros((len(modes), max(map(len, modes)), *modes[0].shape[1:]), np.complex128)
    for row, mine in zip(found, modes, strict=True):
        row[: len(mine)] = mine
    return found


def group_tables(
    scans: Scans, settings: DataSettings, energy: np.ndarray, probe: np.ndarray | None = None
) -> MapTables:
    """Return the tables that are not of patterns: positions, groups and what belongs to each scan.

    Args:
        scans: by name.
        settings: how groups are made.
        energy: (M,) of the prepared patterns.
        probe: of all scans; None takes that of each scan.
    """
    how = _preparation(settings)
    places = [_positions_of(scan, settings) for scan in scans.values()]
    rows = [wanted_groups(each, settings) for each in places]
    firsts = np.cumsum([0, *map(len, places)])[:-1]
    shifted = [members + first for members, first in zip(rows, firsts, strict=True)]
    members = np.concatenate(shifted)
    inside = np.concatenate(places)[members]  # (L, C, 2)
    centres = inside.mean(axis=1, keepdims=True)
    probes = [scan["probeGuess"] if probe is None else probe for scan in scans.values()]
    # GROUP-04: (N/2) / √(mean energy), a pattern counted as often as groups hold it.
    scale = [settings.N / 2 / np.sqrt(energy[each].mean()) if settings.normalize else 1.0 for each in shifted]
    index = [scan.get("scan_index", np.zeros(len(scan["xcoords"]), np.int64)) for scan in scans.values()]
    return {
        "positions_px": np.concatenate(places),
        "scan_index": np.concatenate(index),
        "nn_indices": members,
        "coords_relative": centres - inside,
        "centres_px": centres[:, 0],
        "experiment_id": np.repeat(np.arange(len(rows)), [len(each) for each in rows]),
        "probe": stacked_probes([how.probe(each.reshape(-1, FRAME_PX, FRAME_PX)) for each in probes]),
        "good_pixels": np.stack([_turned(how.good_pixels(~_bad(scan)), settings) for scan in scans.values()]),
        "scale": np.array(scale),
        "first_row": firsts,
    }


def all_tables(scans: Scans, settings: DataSettings, probe: np.ndarray | None = None) -> MapTables:
    """Return every table of a map of these scans."""
    patterns = pattern_tables(scans, settings)
    return patterns | group_tables(scans, settings, patterns["energy"], probe)


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


# ------------------------------------------------------------------------------------- settings that data decide


def step_px(positions_px: np.ndarray) -> float:
    """Return the median distance from a place of (M, 2) positions to the nearest other one, by looking at all."""
    places = np.array(sorted(set(map(tuple, positions_px.tolist()))))
    if len(places) < 2:
        return 0.0
    far = np.hypot(*(places[:, None] - places[None]).transpose(2, 0, 1))
    np.fill_diagonal(far, np.inf)
    return float(np.median(far.min(axis=1)))


@dataclasses.dataclass(frozen=True)
class Given:
    """What a user gives, and the numbers of a scan.

    Attributes:
        mean_counts: mean of Σ amplitude² over the patterns of all groups.
        step_px: median over scans of the ``step_px`` of each.
        reach_px: largest |offset| of each group.
        gridsize: of the groups.
        nphotons: as given; None is derived.
        offset: likewise.
        max_position_jitter: likewise.
    """

    mean_counts: float
    step_px: float
    reach_px: np.ndarray
    gridsize: int
    nphotons: float | None = None
    offset: int | None = None
    max_position_jitter: int | None = None

    @classmethod
    def of_tables(cls, tables: MapTables, scans: Scans, gridsize: int) -> Given:
        """Return the numbers of scans with these tables; nothing is given."""
        counts = np.square(tables["amplitude"].astype(np.float64)).sum(axis=(1, 2))
        steps = [step_px(np.stack([scan["xcoords"], scan["ycoords"]], axis=1)) for scan in scans.values()]
        reach_px = np.abs(tables["coords_relative"]).max(axis=(1, 2))
        return cls(float(counts[tables["nn_indices"]].mean()), float(np.median(steps)), reach_px, gridsize)

    def derived(self) -> Arrays:
        """Return the settings and numbers by their definition (PREP-02)."""
        offset = int(np.floor(self.step_px + 0.5)) if self.offset is None else self.offset
        widest = float(self.reach_px.max())
        spread = (self.gridsize - 1) * offset
        jitter = self.max_position_jitter
        if jitter is None:
            # The least that is not negative, makes the sum even, and holds the widest group.
            jitter = max(2 * int(np.ceil(widest)) - spread, spread % 2)
        padding = (spread + jitter) // 2
        # The reference's canvas: offset 4, jitter 10.
        fixed = ((self.gridsize - 1) * 4 + 10) // 2
        numbers = {
            "nphotons": self.mean_counts if self.nphotons is None else self.nphotons,
            "offset": offset,
            "max_position_jitter": jitter,
            "step_px": self.step_px,
            "reach_px": widest,
            "padding_px": padding,
            "groups": len(self.reach_px),
            "clipped_groups": int((self.reach_px > padding).sum()),
            "clipped_by_reference": int((self.reach_px > fixed).sum()),
            "reference_padding_px": fixed,
        }
        return {name: np.array(float(number)) for name, number in numbers.items()}
