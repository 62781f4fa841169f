"""Small scans and runs over them by ``ptycho_torch.train.main``, which steps of training share."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np

from conformance.steps_map_tables import write_scans
from conformance.steps_scans import Tables, folder_of
from ptycho_torch.config_params import Settings

if TYPE_CHECKING:
    from conformance.plain_training import Plan, TrainingData
    from ptycho_torch.dset_loader_pt_mmap import PtychoBatch, PtychoDataset
    from ptycho_torch.train import TrainingResult

SIDE_PX, GRID, PROBE_SCALE = 64, 2, 3.0
PATTERNS = (10, 7)
WHOLE = 1e-6
"""Limit of a whole run: each update starts from weights that are a rounding of what a map keeps in float32 apart."""

COMMON: Mapping[str, Any] = {
    "gridsize": GRID, "n_filters_scale": 1, "probe_scale": PROBE_SCALE, "precision": "64-true", "device": "cpu",
    "num_workers": 0, "tracking": False,
    # A network of four weights has no head whose bias could be set.
    "initial_amplitude": "zero_bias",
}  # fmt: skip


def draw_small_scans() -> dict[str, dict[str, np.ndarray]]:
    """Draw two small scans that differ in length, counts, probe and bad pixels."""
    scans: dict[str, dict[str, np.ndarray]] = {}
    for number, patterns in enumerate(PATTERNS):
        rng = np.random.default_rng(21 + number)
        bad = rng.random((SIDE_PX, SIDE_PX)) < 0.02 * (1 + number)
        probe = rng.standard_normal((SIDE_PX, SIDE_PX)) + 1j * rng.standard_normal((SIDE_PX, SIDE_PX))
        scans[f"scan_{number}"] = {
            "diff3d": rng.gamma(2.0, 0.5 * (1 + number), (patterns, SIDE_PX, SIDE_PX)).astype(np.float32),
            "xcoords": rng.uniform(40, 60, patterns),
            "ycoords": rng.uniform(80, 110, patterns),
            "probeGuess": ((2 + number) * probe).astype(np.complex64),
            "bad_pixels": bad,
        }
    return scans


class SmallScans:
    """The drawn scans on disk, with the datasets that runs of them train on."""

    def __init__(self) -> None:
        self.scans = draw_small_scans()
        self.root = folder_of(self)
        write_scans(self.root / "scans", self.scans)

    @cached_property
    def modes(self) -> np.ndarray:
        """One probe of two modes for both scans."""
        first, second = (scan["probeGuess"] for scan in self.scans.values())
        return np.stack([first, 0.4 * second])

    def place(self, *, one_probe: bool) -> Path:
        """Return the folder of the map of the scans, with a probe of their own or one for both."""
        return self.root / ("one_probe" if one_probe else "own_probes")

    def dataset(self, settings: Settings, *, one_probe: bool) -> PtychoDataset:
        """Return the dataset that a run of these settings trains on."""
        from ptycho_torch.dset_loader_pt_mmap import PtychoDataset

        return PtychoDataset(
            self.root / "scans",
            data_dir=self.place(one_probe=one_probe),
            settings=settings.data,
            probe=self.modes if one_probe else None,
        )


@dataclass(frozen=True)
class RunCase:
    """A run, and what it has to be.

    Attributes:
        chosen: settings by name, beside the common ones.
        plan: the same for the plain loop.
        one_probe: whether one probe is given for all scans.
    """

    chosen: Mapping[str, Any]
    plan: Plan
    one_probe: bool = False

    @property
    def settings(self) -> Settings:
        """Settings of the run."""
        return Settings().override({**COMMON, **self.chosen})


@dataclass(frozen=True)
class RealRun:
    """What a run left.

    Attributes:
        result: as ``main`` returns it.
        output: its folder.
        versions: name and copy of every checkpoint as it was written, in order.
        fed: groups of every batch of training, in order.
    """

    result: TrainingResult
    output: Path
    versions: list[tuple[str, Path]]
    fed: list[np.ndarray]

    def written(self, name: str) -> list[Path]:
        """Return the versions of one checkpoint, ``last`` or ``best``."""
        return [path for each, path in self.versions if each == name]

    def put_back(self, number: int) -> Path:
        """Make the folder what it was when version ``number`` of ``last`` was written; return that checkpoint."""
        version = self.written("last")[number]
        shutil.copy(version, self.result.checkpoint)
        before = [path for name, path in self.versions[: self.versions.index(("last", version))] if name == "best"]
        if before:
            shutil.copy(before[-1], self.result.best_checkpoint)
        else:
            self.result.best_checkpoint.unlink(missing_ok=True)
        return self.result.checkpoint


@contextlib.contextmanager
def _checkpoints_kept(folder: Path) -> Iterator[list[tuple[str, Path]]]:
    """Keep a copy of every checkpoint that is written."""
    import lightning.pytorch as pl

    versions: list[tuple[str, Path]] = []
    save = pl.Trainer.save_checkpoint

    def saving(trainer: pl.Trainer, path: str | Path, *given: Any, **named: Any) -> None:
        save(trainer, path, *given, **named)
        folder.mkdir(parents=True, exist_ok=True)
        versions.append((Path(path).stem, Path(shutil.copy(path, folder / f"{len(versions)}.ckpt"))))

    with mock.patch.object(pl.Trainer, "save_checkpoint", saving):
        yield versions


@contextlib.contextmanager
def _batches_noted() -> Iterator[list[np.ndarray]]:
    """Note the groups of every batch of training."""
    from ptycho_torch.train import PtychoPINN

    fed: list[np.ndarray] = []
    step = PtychoPINN.training_step

    def noting(module: PtychoPINN, batch: PtychoBatch, *given: Any, **named: Any) -> Any:
        fed.append(batch.groups.numpy().copy())
        return step(module, batch, *given, **named)

    with mock.patch.object(PtychoPINN, "training_step", noting):
        yield fed


def run_main(scans: SmallScans, case: RunCase, output: Path, **named: Any) -> RealRun:
    """Train by the public face, with the network that stands in for the real one."""
    import torch
    from lightning.pytorch.callbacks import Callback

    from conformance.plain_training import StandIn
    from ptycho_torch import lightning_module, train, training_callbacks

    given: dict[str, Any] = {
        "ptycho_dir": scans.root / "scans",
        "settings": case.settings,
        "data_dir": scans.place(one_probe=case.one_probe),
        "probe": torch.from_numpy(scans.modes) if case.one_probe else None,
    }
    with (
        mock.patch.object(lightning_module, "PtychoNet", StandIn),
        mock.patch.object(training_callbacks, "plot_history"),
        # The stand-in predicts no patches whose diffraction could be compared.
        mock.patch.object(train, "BlankWatch", return_value=Callback()),
        mock.patch.object(train, "check_objects", return_value={}),
        tempfile.TemporaryDirectory(dir=scans.root) as elsewhere,
        _checkpoints_kept(Path(elsewhere)) as versions,
        _batches_noted() as fed,
        warnings.catch_warnings(),
    ):
        # What a broken run warns of is no finding: what it leaves is.
        warnings.simplefilter("ignore")
        result = train.main(output_dir=output, reconstruct=False, progress=False, **given | named)
        kept = Path(shutil.move(elsewhere, output / f"kept_{len(list(output.iterdir()))}"))
        Path(elsewhere).mkdir()
    return RealRun(result, output, [(name, kept / path.name) for name, path in versions], fed)


def training_data(scans: SmallScans, case: RunCase) -> TrainingData:
    """Return what a run of a case is fed with: what its map holds, in the order of its loaders."""
    from conformance.plain_training import TrainingData
    from ptycho_torch.train import loaders

    settings = case.settings
    dataset = scans.dataset(settings, one_probe=case.one_probe)
    table = Tables.of(dataset)
    training, validation = loaders(dataset, settings.training)
    amplitude = table.amplitude.astype(np.float64)
    factor = table.scale[table.experiment_id].astype(np.float64)[:, None, None, None]
    return TrainingData(
        images=amplitude[table.members] * factor,
        offsets_px=table.coords.astype(np.float64),
        probes=table.probe,
        good_pixels=table.good_pixels,
        scans=table.experiment_id,
        epochs=[[batch.groups.numpy() for batch in training] for _ in range(settings.training.max_epochs or 0)],
        validation=[] if validation is None else [batch.groups.numpy() for batch in validation],
        nphotons=float(np.square(amplitude).sum(axis=(1, 2))[table.members].mean()),
    )
