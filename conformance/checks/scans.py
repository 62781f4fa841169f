"""Two drawn scans, their files and their memory map."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from conformance.judge.data_parity import ROUNDINGS
from conformance.judge.rules import UNIT_ROUNDOFF
from ptycho_torch.config_params import DataSettings

if TYPE_CHECKING:
    from ptycho_torch.dset_loader_pt_mmap import PtychoDataset

N, GRID, K, SEED = 16, 2, 7, 3
C = GRID**2
FLOAT32 = ROUNDINGS * UNIT_ROUNDOFF["float32"]
"""What the map stores in float32 is as many roundings away from float64 as input of the network."""

SETTINGS = DataSettings(N=N, gridsize=GRID, K=K, group_sampler="reference", group_seed=SEED)
CENTRED = DataSettings(N=N, gridsize=GRID, K=K, group_sampler="with_centre", group_seed=SEED)


Scan = Mapping[str, np.ndarray]
Arrays = dict[str, np.ndarray]


def _new_folder() -> Path:
    """Make a folder in memory, if the system has a place for it: a map is flushed to the disk file by file."""
    memory = Path("/dev/shm")
    return Path(tempfile.mkdtemp(prefix="conformance-", dir=memory if os.access(memory, os.W_OK) else None))


def folder_of(owner: object) -> Path:
    """Make a folder that is there as long as its owner."""
    root = _new_folder()
    weakref.finalize(owner, shutil.rmtree, root, ignore_errors=True)
    return root


def draw_scans() -> dict[str, dict[str, np.ndarray]]:
    """Draw two scans that differ in length, counts and probe, with neither symmetry nor whole numbers in them."""
    scans: dict[str, dict[str, np.ndarray]] = {}
    for number, patterns in enumerate((24, 31)):
        rng = np.random.default_rng(11 + number)
        bad = np.zeros((N, N), bool)
        bad[2, 5 + number] = bad[9, 3] = True
        positions = rng.uniform((20, 90), (45, 130), (patterns, 2))
        scans[f"scan_{number}.npz"] = {
            "diff3d": rng.gamma(2.0, 3.0 * (1 + number), (patterns, N, N)).astype(np.float32),
            "xcoords": positions[:, 0],
            "ycoords": positions[:, 1],
            "xcoords_start": positions[:, 0] + rng.uniform(-1, 1, patterns),
            "ycoords_start": positions[:, 1] + rng.uniform(-1, 1, patterns),
            "probeGuess": (rng.standard_normal((N, N)) + 1j * rng.standard_normal((N, N))).astype(np.complex64),
            "bad_pixels": bad,
        }
    return scans


class MappedScans:
    """The drawn scans on disk, and the datasets over their memory maps, each made on first use."""

    def __init__(self) -> None:
        self.scans = draw_scans()
        self._root = folder_of(self)
        (self._root / "scans").mkdir()
        for name, scan in self.scans.items():
            np.savez(self._root / "scans" / name, **scan)  # type: ignore[arg-type]
        self._datasets: dict[DataSettings, PtychoDataset] = {}

    def dataset(self, settings: DataSettings = SETTINGS) -> PtychoDataset:
        """Return the dataset of a map that was there already, as any run after the first finds it."""
        from ptycho_torch.dset_loader_pt_mmap import PtychoDataset

        if settings not in self._datasets:
            place = self._root / f"map_{len(self._datasets)}"
            PtychoDataset(self._root / "scans", data_dir=place, settings=settings)
            self._datasets[settings] = PtychoDataset(self._root / "scans", data_dir=place, settings=settings)
        return self._datasets[settings]

    def tables(self, settings: DataSettings = SETTINGS) -> Tables:
        """Return what the map holds."""
        return Tables.of(self.dataset(settings))


@cache
def mapped_scans() -> MappedScans:
    """Return the scans with their maps, the same for every check of this process."""
    return MappedScans()


@dataclass(frozen=True)
class Tables:
    """What one map holds, as arrays."""

    amplitude: np.ndarray
    positions_px: np.ndarray
    members: np.ndarray
    coords: np.ndarray
    centres: np.ndarray
    scale: np.ndarray
    experiment_id: np.ndarray
    probe: np.ndarray
    good_pixels: np.ndarray

    @classmethod
    def of(cls, dataset: PtychoDataset) -> Tables:
        """Read them from the map."""
        found = dataset.map

        def array(table: str, name: str) -> np.ndarray:
            return np.array(getattr(found, table)[name].numpy())

        return cls(
            array("patterns", "amplitude"),
            array("scan", "positions_px"),
            array("groups", "nn_indices").astype(np.int64),
            array("groups", "coords_relative"),
            array("groups", "coords_center"),
            array("experiments", "scale"),
            array("groups", "experiment_id").astype(np.int64),
            array("experiments", "probe"),
            array("experiments", "good_pixels"),
        )


def joined(scans: Mapping[str, Scan], key: str) -> np.ndarray:
    """Return one member of all scans, one behind the other."""
    return np.concatenate([scan[key] for scan in scans.values()])


def measured(scan: Scan) -> np.ndarray:
    """Return the amplitude of a scan, zero where pixels are bad."""
    return np.where(scan["bad_pixels"], np.float32(0), scan["diff3d"])
