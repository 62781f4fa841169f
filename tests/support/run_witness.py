"""Small runs by ``train.main``, and a witness that computes loss, gradient and update of every batch in plain NumPy."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from conformance.checks.light import normalised
from conformance.judge.agreement import assert_agrees
from conformance.oracle.network import Moments
from conformance.oracle.operations import central_square, intensity_scale
from conformance.oracle.optimisers import Rule, updated
from conformance.oracle.training import Predicted, clipped, loss_of_batch, shares_of_good_pixels
from ptycho_torch import train
from ptycho_torch.config_params import Settings
from ptycho_torch.dset_loader_pt_mmap import PtychoBatch, PtychoDataset
from ptycho_torch.model import Prediction
from ptycho_torch.training import training_callbacks
from ptycho_torch.training.checkpoint import read_checkpoint
from ptycho_torch.training.checkpoint_file import read_content
from tests.support.scan_scenes import Arrays, MapTables, found_tables, write_scans
from tests.support.training_runs import draw_two_scans, two_modes

COMMON: Mapping[str, Any] = {
    "gridsize": 2, "n_filters_scale": 1, "probe_scale": 3.0, "device": "cpu", "num_workers": 0, "tracking": False,
}  # fmt: skip

OF_BATCH, OF_UPDATE = 1e-5, 1e-4
"""Limits in float32: of sums of 10⁵ terms, each rounded at 6e-8; and of a change of weights by 1e-3 of their size."""


@dataclass(frozen=True)
class Case:
    """A run, and how it should train.

    Attributes:
        chosen: settings, in addition to the common ones.
        rule: its optimiser.
        loss: weights of the terms of its loss.
        clip: limit of its gradients, and what is clipped; None does not clip.
        probe_big: whether the object counts beyond its central square.
        accumulate: batches of an update.
        one_probe: whether one probe of two modes is given for both scans, and trained together with the scale.
    """

    chosen: Mapping[str, Any]
    rule: Rule
    loss: Mapping[str, float]
    clip: tuple[float, str] | None = None
    probe_big: bool = True
    accumulate: int = 1
    one_probe: bool = False

    def settings(self, **changed: Any) -> Settings:
        return Settings().override({**COMMON, **self.chosen, **changed})


class Witness(Callback):
    """Checks every batch and update of a run, and keeps what it saw.

    Attributes:
        fed: groups of each batch of training, in order.
        losses: ``train`` and ``val`` → (groups, terms of the loss) of each batch, in order.
        weights: all weights before the first update and after each.
        wrong: what was not as it should be.
    """

    def __init__(self, case: Case, dataset: PtychoDataset) -> None:
        self.case, self.table = case, found_tables(dataset)
        self.fed: list[np.ndarray] = []
        self.losses: dict[str, list[tuple[int, np.ndarray]]] = {"train": [], "val": []}
        self.weights: list[Arrays] = []
        self.wrong: list[str] = []
        self._moments: Moments = {}

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._steps = trainer.global_step
        self.weights.append(weights_of(pl_module.network.state_dict()))
        self._hook = pl_module.network.register_forward_hook(self._predicted)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._hook.remove()

    def _predicted(self, network: Any, given: tuple[Any, ...], prediction: Prediction) -> None:
        self._given, self._prediction = given, prediction
        for tensor in prediction:
            if tensor.requires_grad:
                tensor.retain_grad()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.fed.append(batch.groups.numpy().copy())
        self._check_batch("train", batch)
        if trainer.global_step > self._steps:
            self._steps = trainer.global_step
            self._check_update(weights_of(pl_module.network.state_dict()))

    def on_validation_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, *_: Any) -> None:
        self._check_batch("val", batch)

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: Any) -> None:
        named = [(name, each) for name, each in pl_module.network.named_parameters() if each.requires_grad]
        self._gradients = {name: each.grad.double().numpy().copy() for name, each in named}
        self._rate = float(optimizer.param_groups[0]["lr"])

    def _check_batch(self, part: str, batch: PtychoBatch) -> None:
        """Compare what the network was given, and the gradient by what it predicted."""
        table, case, groups = self.table, self.case, batch.groups.numpy()
        scan, amplitude = table["experiment_id"][groups], table["amplitude"].astype(np.float64)
        factor = intensity_scale(nphotons_of(table), N=64) * table["scale"][scan]
        measured = amplitude[table["nn_indices"][groups]] * factor[:, None, None, None]
        probe = normalised(table["probe"][scan].astype(np.complex128), COMMON["probe_scale"])
        right = {"amplitude": measured, "offsets": table["coords_relative"][groups][:, :, None]}
        found = {"amplitude": self._given[0].numpy(), "offsets": self._given[1].numpy()}
        if case.one_probe:
            right["own probe"], found["own probe"] = np.array(True), np.array(self._given[2] is None)
        else:
            right["probe"], found["probe"] = probe[:, None], self._given[2][:, :1].numpy()
        image, ours, intensity = (each.detach().numpy() for each in self._prediction)
        good = shares_of_good_pixels(table["good_pixels"][scan][:, None], measured.shape)
        mask = None if case.probe_big else central_square(64)
        # The signs of differences are those that float32 has.
        loss = loss_of_batch(Predicted(image, ours, intensity), found["amplitude"], good, case.loss, mask)
        self.losses[part].append((len(groups), loss.terms))
        if part == "train":
            by = (loss.by.image, loss.by.amplitude + 2 * ours * loss.by.intensity)
            for name, expected, tensor in zip(("object", "amplitude"), by, self._prediction[:2], strict=True):
                given = np.zeros_like(expected) if tensor.grad is None else tensor.grad.numpy()
                right[f"gradient by {name}"], found[f"gradient by {name}"] = expected / case.accumulate, given
        self._note(right, found, OF_BATCH, f"{part} batch of {groups.tolist()}")

    def _check_update(self, after: Arrays) -> None:
        """Compare the change of all weights, given the gradient that the update had."""
        before, names = self.weights[-1], list(self._gradients)
        old = {name: before[name].astype(np.float64) for name in names}
        gradients = clipped(self._gradients, *(self.case.clip or (None, "")))
        number = len(self.weights)
        new, self._moments = updated(self.case.rule, old, gradients, self._moments, number, self._rate)
        right = {"trained": flat({name: new[name] - old[name] for name in names})}
        found = {"trained": flat({name: after[name] - old[name] for name in names})}
        for name in before.keys() - set(names):
            right[name], found[name] = before[name], after[name]
        self._note(right, found, OF_UPDATE, f"update {number}")
        self.weights.append(after)

    def _note(self, right: Arrays, found: Arrays, limit: float, where: str) -> None:
        try:
            assert_agrees(right, found, limit)
        except AssertionError as err:
            self.wrong.append(f"{where}: {err}")

    def means(self, part: str, batches: int) -> np.ndarray:
        """Return the (epochs, 4) means over samples of total, likelihood, amplitude and object term."""
        sizes, terms = (np.array(each) for each in zip(*self.losses[part], strict=True))
        sizes, terms = sizes.reshape(-1, batches, 1), terms.reshape(-1, batches, 4)
        return np.asarray((sizes * terms).sum(axis=1) / sizes.sum(axis=1))


def nphotons_of(table: MapTables) -> float:
    """Return the mean counts of a pattern, over all groups."""
    counts = np.square(table["amplitude"].astype(np.float64)).sum(axis=(1, 2))
    return float(counts[table["nn_indices"]].mean())


def weights_of(state: Mapping[str, torch.Tensor]) -> Arrays:
    return {name: each.detach().numpy().copy() for name, each in state.items()}


def flat(weights: Arrays) -> np.ndarray:
    return np.concatenate([weights[name].ravel() for name in sorted(weights)])


@dataclass(frozen=True)
class Run:
    """What a run left.

    Attributes:
        case: what was asked for.
        result: as ``main`` returns it.
        versions: name and copy of every checkpoint as it was written, in order.
        witness: what was seen on the way.
    """

    case: Case
    result: train.TrainingResult
    versions: list[tuple[str, Path]]
    witness: Witness

    def written(self, name: str) -> list[Path]:
        """Return the versions of one checkpoint, ``last`` or ``best``."""
        return [path for each, path in self.versions if each == name]

    @cached_property
    def last(self) -> list[dict[str, Any]]:
        """The content of each version of ``last.ckpt``."""
        return [read_content(path) for path in self.written("last")]

    @cached_property
    def left(self) -> dict[str, Any]:
        """What a run that resumes has to leave as well."""
        result = self.result
        return {
            "history": result.history,
            "weights": weights_of(result.module.network.state_dict()),
            "last.ckpt": read_checkpoint(result.checkpoint).weights,
            "best.ckpt": read_checkpoint(result.best_checkpoint).weights,
            "history.json": (result.checkpoint.parents[1] / "history.json").read_text(),
        }

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


@dataclass(frozen=True)
class Scans:
    """Two small scans on disk, and runs of them."""

    root: Path

    @classmethod
    def at(cls, root: Path) -> Scans:
        write_scans(root / "scans", draw_two_scans())
        return cls(root)

    def dataset(self, case: Case) -> PtychoDataset:
        return PtychoDataset(
            self.root / "scans",
            data_dir=self.root / f"one_probe_{case.one_probe}",
            settings=case.settings().data,
            probe=two_modes(draw_two_scans()) if case.one_probe else None,
        )

    def run(self, case: Case, output: Path, **named: Any) -> Run:
        """Train by the public face; every checkpoint is copied when it is written."""
        versions: list[tuple[str, Path]] = []
        save = pl.Trainer.save_checkpoint
        kept = output / f"kept_{len(list(output.glob('kept_*')))}"

        def saving(trainer: pl.Trainer, path: str | Path, *given: Any, **options: Any) -> None:
            save(trainer, path, *given, **options)
            kept.mkdir(parents=True, exist_ok=True)
            versions.append((Path(path).stem, Path(shutil.copy(path, kept / f"{len(versions)}.ckpt"))))

        witness = Witness(case, self.dataset(case))
        # What a resumed run does is judged by what it leaves.
        watching = [] if "resume" in named else [witness]
        options: dict[str, Any] = {
            "ptycho_dir": self.root / "scans",
            "settings": case.settings(),
            "data_dir": self.root / f"one_probe_{case.one_probe}",
            "probe": torch.from_numpy(two_modes(draw_two_scans())) if case.one_probe else None,
        }
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pl.Trainer, "save_checkpoint", saving)
            patch.setattr(training_callbacks, "plot_history", lambda *_: None)
            result = train.main(
                output_dir=output, reconstruct=False, progress=False, callbacks=watching, **options | named
            )
        return Run(case, result, versions, witness)


def changed(case: Case, **chosen: Any) -> Case:
    """Return a case with some settings changed."""
    return dataclasses.replace(case, chosen={**case.chosen, **chosen})
