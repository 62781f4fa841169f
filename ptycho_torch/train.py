"""Training with Lightning: ``main`` does all of it, with the module ``PtychoPINN``.

How to use it, on one device or many: <doc-ref type="guide">docs/workflows/pytorch.md</doc-ref>. How the parts hang
together: <doc-ref type="guide">docs/architecture.md</doc-ref>.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, Checkpoint, EarlyStopping, ModelCheckpoint
from torch import Tensor

from ptycho_torch import checkpoint as checkpoints
from ptycho_torch import folders, inference
from ptycho_torch.config_params import Settings, TrainingSettings
from ptycho_torch.dset_loader_pt_mmap import PtychoDataset, TensorDictDataLoader
from ptycho_torch.errors import CheckpointError, ConfigError
from ptycho_torch.lightning_module import ObjectPatches, PtychoPINN, accelerator, load_weights, quiet_lightning
from ptycho_torch.npz_writer import replacing
from ptycho_torch.pictures import plot_history
from ptycho_torch.tracking import Tracker, print_auto_logged_info, track

__all__ = ["ObjectPatches", "PtychoPINN", "TrainingResult", "main", "make_trainer", "print_auto_logged_info"]

log = logging.getLogger(__name__)

_OF_THE_RUN = (
    "device", "devices", "num_nodes", "strategy", "max_epochs", "num_workers", "checkpoint_every_n_steps", "tracking",
    "experiment_name", "run_name",
)  # fmt: skip
"""Training settings that a resumed run may change: they do not touch the weights that an epoch ends with."""


class _BestCheckpoint(ModelCheckpoint):
    """Keeps ``best.ckpt``; a resumed run takes along the one that lies beside the checkpoint that it resumes."""

    def __init__(self, folder: Path, monitor: str, resume: Path | None) -> None:
        super().__init__(folder, "best", monitor, enable_version_counter=False, save_on_train_epoch_end=True)
        self._own = folder / "best.ckpt"
        self._beside = self._own if resume is None else resume.with_name("best.ckpt")

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self._beside.is_file():
            if self._beside.resolve() != self._own.resolve() and _process() == 0:
                self._own.parent.mkdir(parents=True, exist_ok=True)
                with self._beside.open("rb") as theirs, replacing(self._own, overwrite=True) as ours:
                    shutil.copyfileobj(theirs, ours)
            # Lightning restores the lowest loss only where the folder is called as it was.
            path = str(Path(self.dirpath or "", "best.ckpt"))
            own = {"dirpath": self.dirpath, "best_model_path": path, "kth_best_model_path": path}
            state_dict = state_dict | own | {"best_k_models": {path: state_dict["best_model_score"]}}
        super().load_state_dict(state_dict)


class _LastCheckpoint(Checkpoint):
    """Keeps ``last.ckpt`` current: at the end of each epoch, and every so many steps within one."""

    def __init__(self, path: Path, every_n_steps: int) -> None:
        self.path, self.every_n_steps = path, every_n_steps
        self._saved = -1

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # Behind the last batch comes the validation; what it decides belongs to the checkpoint of the whole epoch.
        step = trainer.global_step
        if not self.every_n_steps or step % self.every_n_steps or step == self._saved:
            return
        if batch_idx + 1 < trainer.num_training_batches:
            self._saved = step
            trainer.save_checkpoint(self.path)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        trainer.save_checkpoint(self.path)


def make_trainer(
    training: TrainingSettings,
    output_dir: Path,
    *,
    validate: bool = True,
    callbacks: tuple[Callback, ...] = (),
    progress: bool = True,
    resume: Path | None = None,
) -> pl.Trainer:
    """Make the Lightning trainer of these settings; checkpoints go to ``output_dir/checkpoints``.

    Args:
        training: settings of the run.
        output_dir: see above.
        validate: whether there are validation groups, whose loss is watched then.
        callbacks: more of them.
        progress: show progress bars.
        resume: checkpoint that the run goes on from; the ``best.ckpt`` beside it is that of its epochs.

    Raises:
        ConfigError: the device is not there.
    """
    folder = output_dir / "checkpoints"
    # Lightning runs callbacks that save behind all others, so that what the others decide is in the checkpoint.
    watching: list[Callback] = [
        _BestCheckpoint(folder, "val_loss" if validate else "train_loss", resume),
        _LastCheckpoint(folder / "last.ckpt", training.checkpoint_every_n_steps),
    ]
    if training.early_stop_patience is not None:
        monitor = training.early_stop_monitor if validate else "train_loss"
        watching.insert(
            0,
            EarlyStopping(
                monitor,
                min_delta=0.0,
                patience=training.early_stop_patience,
                # A validation loss that is no number is one that did not improve, as for Keras; a training loss that is
                # none has ended the run already.
                check_finite=False,
                check_on_train_epoch_end=True,
            ),
        )
    return pl.Trainer(
        accelerator=accelerator(training.device),
        devices="auto" if training.devices == -1 else training.devices,
        num_nodes=training.num_nodes,
        strategy=training.strategy,
        # The module makes and feeds a float64 network itself.
        precision="bf16-mixed" if training.precision == "bf16-mixed" else "32-true",
        max_epochs=training.max_epochs,
        accumulate_grad_batches=training.accumulate_grad_batches,
        gradient_clip_val=training.gradient_clip_val,
        gradient_clip_algorithm=training.gradient_clip_algorithm,
        deterministic=training.deterministic or None,
        callbacks=[*callbacks, *watching],
        logger=False,
        num_sanity_val_steps=0,
        limit_val_batches=1.0 if validate else 0,
        enable_progress_bar=progress,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=output_dir,
    )


@dataclasses.dataclass(frozen=True)
class TrainingResult:
    """What a run left.

    Attributes:
        module: the trained module.
        checkpoint: ``last.ckpt``: where training stands; resuming and inference start from it.
        best_checkpoint: ``best.ckpt``: the weights of the lowest validation loss.
        history: name → value of each epoch.
        reconstructions: files of the objects of the training scans.
        run_id: of the MLflow run, or None where the run was not tracked.
    """

    module: PtychoPINN
    checkpoint: Path
    best_checkpoint: Path
    history: Mapping[str, list[float]]
    reconstructions: tuple[Path, ...]
    run_id: str | None


def main(
    ptycho_dir: str | Path,
    probe_dir: str | Path | None = None,
    *,
    settings: Settings | None = None,
    output_dir: str | Path = "training_outputs",
    data_dir: str | Path | None = None,
    remake_map: bool = False,
    probe: Tensor | None = None,
    resume: str | Path | None = None,
    start_from: str | Path | None = None,
    overwrite: bool = False,
    reconstruct: bool = True,
    progress: bool = True,
    **overrides: Any,
) -> TrainingResult:
    """Train on a folder of scans: dataset, network, checkpoints, tracking, and a picture of the objects at the end.

    Args:
        ptycho_dir: folder of scans, one NPZ file an experiment, or a single scan.
        probe_dir: folder of probes; None takes ``probeGuess`` of each scan.
        settings: of the run; None takes what the three singletons say now, or the checkpoint's when resuming.
        output_dir: where checkpoints, history, pictures and reconstructions go.
        data_dir: folder of the memory map; None takes the one that every command has for these scans
            (``folders.map_folder``).
        remake_map: build the map anew.
        probe: (N, N) or (modes, N, N) probe for every scan, in place of files.
        resume: checkpoint of a run that was interrupted; it goes on to the same weights. Into another ``output_dir``
            it brings the ``best.ckpt`` that lies beside it.
        start_from: checkpoint whose weights a new run starts with.
        overwrite: remove checkpoints, history and reconstructions of another run in ``output_dir``, right before
            training begins. Without it such a folder is refused.
        reconstruct: write the objects of the training scans at the end.
        progress: show progress bars.
        overrides: settings by name, whoever owns them: ``max_epochs``, ``devices``, ``gradient_clip_val`` …

    Raises:
        ConfigError: settings that do not fit together, or ``output_dir`` holds another run.
        DataContractError: a scan or probe that breaks a clause.
        CheckpointError: a checkpoint that cannot be read or does not belong to these data or settings.
        TrainingError: the loss is no number any more.

    Example:
        train.main("scans", "probes", max_epochs=60, gradient_clip_val=None)
    """
    if resume is not None and start_from is not None:
        raise ConfigError("resume goes on with a run and start_from begins a new one; give one of them.")
    output_dir = Path(output_dir)
    folders.refuse_run(output_dir, resume=None if resume is None else Path(resume), overwrite=overwrite)
    saved = None if resume is None else checkpoints.read_checkpoint(resume)
    settings = _settings_of(saved, settings).override(overrides)
    if saved is not None:
        _same_run(saved, settings)
    accelerator(settings.training.device)
    output_dir.mkdir(parents=True, exist_ok=True)
    # Processes that a launcher starts behind the first one find the map that it made.
    dataset = PtychoDataset(
        ptycho_dir, probe_dir, data_dir, remake_map and _process() == 0, settings=settings.data, probe=probe
    )
    module = PtychoPINN.for_dataset(dataset, settings)
    if saved is not None:
        _same_data(saved, module)
    if start_from is not None:
        _start_from(module, checkpoints.read_checkpoint(start_from))
    training, validation = loaders(dataset, settings.training)
    if settings.training.compile:
        module.network.compile()
    if overwrite and _process() == 0:
        folders.clear_run(output_dir)
    # The environment decides where runs are tracked. To decide it here, uncomment:
    # os.environ["MLFLOW_TRACKING_URI"] = "http://127.0.0.1:5000"
    with track(settings.training, parameters=_flat(module), output_dir=output_dir) as tracker, quiet_lightning():
        trainer = make_trainer(
            settings.training,
            output_dir,
            validate=validation is not None,
            callbacks=tuple(tracker.callbacks),
            progress=progress,
            resume=None if resume is None else Path(resume),
        )
        # A run that ended early has ended as well; only more epochs than it was given make it go on.
        if saved is not None and saved.finished and settings.training.max_epochs <= saved.settings.training.max_epochs:
            log.info("%s: training had come to its end", resume)
            load_weights(module.network, saved, dict(saved.weights))
            module.history = {name: list(values) for name, values in saved.history.items()}
        else:
            trainer.fit(module, training, validation, ckpt_path=resume, weights_only=True)
        return _finish(module, trainer, dataset, output_dir, tracker, reconstruct=reconstruct, progress=progress)


def loaders(
    dataset: PtychoDataset, training: TrainingSettings
) -> tuple[TensorDictDataLoader, TensorDictDataLoader | None]:
    """Return the loader of the training groups, and that of the validation groups if there are any.

    Raises:
        ConfigError: no group is left for training.
    """
    shuffle_seed = training.seed if training.validation_selection == "random" else None
    train_groups, val_groups = dataset.validation_split(training.validation_fraction, shuffle_seed=shuffle_seed)
    if not len(train_groups):
        raise ConfigError(
            f"{len(dataset)} groups leave none for training with validation_fraction = {training.validation_fraction}; "
            "lower it to 0, or give more patterns."
        )
    common: dict[str, Any] = {
        "num_workers": training.num_workers,
        "pin_memory": training.device in ("auto", "cuda") and torch.cuda.is_available(),
    }
    train = TensorDictDataLoader(
        dataset, training.batch_size, groups=train_groups, shuffle=True, seed=training.seed, **common
    )
    if not len(val_groups):
        return train, None
    return train, TensorDictDataLoader(dataset, training.batch_size, groups=val_groups, **common)


def _settings_of(saved: checkpoints.Checkpoint | None, settings: Settings | None) -> Settings:
    if settings is not None:
        return settings
    return Settings.current() if saved is None else saved.settings


def _same_run(saved: checkpoints.Checkpoint, settings: Settings) -> None:
    """Raise where a resumed run would not be the run that was interrupted."""
    theirs, ours = saved.settings.as_dict(), settings.as_dict()
    for owner, values in ours.items():
        for name, value in values.items():
            if theirs[owner][name] != value and not (owner == "training" and name in _OF_THE_RUN):
                raise CheckpointError(
                    f"{saved.path}: trained with {owner} setting {name} = {theirs[owner][name]!r}, now {value!r}. "
                    "Resume with the settings of the run, or begin a new one with start_from."
                )


def _same_data(saved: checkpoints.Checkpoint, module: PtychoPINN) -> None:
    for name in ("scans", "groups", "patterns", "positions_sum_px", "nphotons"):
        theirs, ours = saved.statistics.get(name), module.statistics[name]
        if theirs != ours:
            raise CheckpointError(
                f"{saved.path}: trained on data with {name} = {theirs!r}, these have {ours!r}. Resume with the scans "
                "of the run, or begin a new one with start_from."
            )


def _start_from(module: PtychoPINN, content: checkpoints.Checkpoint) -> None:
    """Take the weights of a checkpoint; probe and scale stay those of the new data."""
    own = dict(module.network.state_dict())
    weights = dict(content.weights) | {name: own[name] for name in ("probe_parts", "log_scale")}
    load_weights(module.network, content, weights)


def _process() -> int:
    """Return the number of this process among those of a launcher; 0 where there is none."""
    for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK"):
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    return 0


def _flat(module: PtychoPINN) -> dict[str, Any]:
    """Return every setting and statistic under one name, for tracking."""
    owners = module.settings.as_dict().items()
    flat = {f"{owner}.{name}": value for owner, values in owners for name, value in values.items()}
    flat |= {f"network.{name}": value for name, value in dataclasses.asdict(module.network.settings).items()}
    return flat | {f"statistics.{name}": value for name, value in module.statistics.items()}


def _finish(
    module: PtychoPINN,
    trainer: pl.Trainer,
    dataset: PtychoDataset,
    output_dir: Path,
    tracker: Tracker,
    *,
    reconstruct: bool,
    progress: bool,
) -> TrainingResult:
    """Write history, objects and pictures, by the first process."""
    last, best = (output_dir / "checkpoints" / f"{name}.ckpt" for name in ("last", "best"))
    files: tuple[Path, ...] = ()
    if trainer.is_global_zero:
        with replacing(output_dir / "history.json", overwrite=True) as file:
            file.write(json.dumps(module.history, indent=1).encode())
        plot_history(module.history, output_dir / "history.png")
        tracker.log_file(output_dir / "history.png", folder="pictures")
        for path in (last, best):
            if path.exists():
                tracker.log_file(path, folder="checkpoints")
        if reconstruct:
            objects = inference.reconstruct(module, dataset, progress=progress)
            results = inference.write_results(
                objects, module, dataset, output_dir / "reconstructions", source=last, overwrite=True
            )
            for result in results:
                for picture in result.pictures:
                    tracker.log_file(picture, folder="pictures")
            files = tuple(result.npz for result in results)
    return TrainingResult(module, last, best, module.history, files, tracker.run_id)
