"""Training with Lightning: the module ``PtychoPINN`` and ``main``, which does all of it.

How to use it, on one device or many: <doc-ref type="guide">docs/workflows/pytorch.md</doc-ref>. How the parts hang
together: <doc-ref type="guide">docs/architecture.md</doc-ref>.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, Checkpoint, EarlyStopping, ModelCheckpoint
from torch import Tensor

from ptycho_torch import checkpoint as checkpoints
from ptycho_torch.config_params import NetworkSettings, Settings, TrainingSettings
from ptycho_torch.dset_loader_pt_mmap import PtychoBatch, PtychoDataset, TensorDictDataLoader
from ptycho_torch.errors import CheckpointError, ConfigError, TrainingError
from ptycho_torch.losses import LossTerms, total_loss
from ptycho_torch.model import Prediction, PtychoNet
from ptycho_torch.npz_writer import replacing
from ptycho_torch.optim import KerasAdam, KerasPlateau, clip_gradients
from ptycho_torch.preparation import REFERENCE_JITTER_PX, REFERENCE_OFFSET_PX
from ptycho_torch.probe import normalise_probe
from ptycho_torch.tracking import Tracker, print_auto_logged_info, track

__all__ = ["ObjectPatches", "PtychoPINN", "TrainingResult", "main", "make_trainer", "print_auto_logged_info"]

log = logging.getLogger(__name__)

_OF_THE_RUN = (
    "device", "devices", "num_nodes", "strategy", "max_epochs", "num_workers", "checkpoint_every_n_steps", "tracking",
    "experiment_name", "run_name",
)  # fmt: skip
"""Training settings that a resumed run may change: they do not touch the weights that an epoch ends with."""


class ObjectPatches(NamedTuple):
    """What ``predict_step`` says about a batch of groups.

    Attributes:
        objects: (B, 1, N, N) complex object of each group.
        centres_px: (B, 2) mean position (x, y) of each group, float64.
        experiment_ids: (B,) number of the scan of each group.
    """

    objects: Tensor
    centres_px: Tensor
    experiment_ids: Tensor


class PtychoPINN(pl.LightningModule):
    """The network with its loss, optimiser and schedule.

    Args:
        settings: of the run, frozen or as plain values; None takes what the three singletons say now.
        network: of the network, completed from the data; None completes ``settings.model`` with the reference's offset
            of 4 and jitter of 10 pixels where it gives none, and needs ``nphotons`` or ``intensity_scale``.
        probe: (N, N) or (modes, N, N), normalised here with ``probe_scale``; None for the default probe.
        statistics: what is known of the data, see ``PtychoPINN.for_dataset``.

    Attributes:
        predict: True makes ``forward`` return complex objects in place of diffraction.

    Raises:
        ConfigError: settings that do not fit together.

    Example:
        module = PtychoPINN.for_dataset(dataset, settings)
        trainer.fit(module, loader)
        module.predict = True
        objects = module(*next(iter(loader)))  # (B, 1, N, N) complex
    """

    def __init__(
        self,
        settings: Settings | Mapping[str, Any] | None = None,
        network: NetworkSettings | Mapping[str, Any] | None = None,
        probe: Tensor | None = None,
        statistics: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if settings is None:
            settings = Settings.current()
        elif not isinstance(settings, Settings):
            settings = Settings.from_dict(settings)
        if network is None:
            network = _stand_alone(settings)
        elif not isinstance(network, NetworkSettings):
            network = NetworkSettings(**network)
        self.settings = settings
        self.statistics: dict[str, Any] = dict(statistics or {"probe_modes": 1, "one_probe": True})
        self.history: dict[str, list[float]] = {}
        self.predict = False
        self._weights = settings.training.loss_weights(settings.model.loss_function)
        self._dtype = torch.float64 if settings.training.precision == "64-true" else torch.float32
        if probe is not None:
            probe = normalise_probe(torch.as_tensor(probe), settings.model.probe_scale)
        elif self.statistics["probe_modes"] > 1:
            # A checkpoint's probe follows with its weights; here is its place.
            probe = torch.zeros(self.statistics["probe_modes"], network.N, network.N, dtype=torch.complex64)
        if network.probe_trainable and not self.statistics["one_probe"]:
            raise ConfigError("probe_trainable needs one probe for all scans; train each scan alone, or give one.")
        generator = torch.Generator().manual_seed(settings.training.seed)
        self.network = PtychoNet(network, probe, generator=generator, dtype=self._dtype)
        self.save_hyperparameters(
            {
                "settings": settings.as_dict(),
                "network": dataclasses.asdict(network),
                "statistics": self.statistics,
            },
            logger=False,
        )
        self._sums: dict[str, Tensor] = {}
        self._schedule: Any = None
        self._schedule_state: dict[str, Any] | None = None

    @classmethod
    def for_dataset(cls, dataset: PtychoDataset, settings: Settings | None = None) -> PtychoPINN:
        """Make a module whose canvas, scale and probe follow from a dataset [clause PREP-02].

        Raises:
            ConfigError: settings that do not fit together or to the dataset.
            DataContractError: PREP-02.
        """
        settings = Settings.current() if settings is None else settings
        settings = dataclasses.replace(settings, data=dataset.settings)
        model = settings.model
        derived = dataset.derived(offset=model.offset, max_position_jitter=model.max_position_jitter)
        network = model.network(
            N=dataset.settings.N,
            gridsize=dataset.settings.gridsize,
            nphotons=derived.nphotons,
            offset=derived.offset,
            max_position_jitter=derived.max_position_jitter,
        )
        probes = dataset.probes
        statistics = {
            "nphotons": derived.nphotons,
            "step_px": derived.step_px,
            "reach_px": derived.reach_px,
            "clipped_groups": derived.clipped_groups,
            "groups": len(dataset),
            "patterns": len(dataset.positions_px),
            "scans": list(dataset.names),
            "positions_sum_px": float(dataset.positions_px.sum()),
            "probe_modes": probes.shape[1],
            "one_probe": bool((probes == probes[:1]).all()),
        }
        return cls(settings, network, probes[0], statistics)

    @classmethod
    def from_checkpoint(cls, path: str | Path) -> PtychoPINN:
        """Load a checkpoint for prediction or evaluation.

        Raises:
            CheckpointError: it cannot be read, or its weights are not those of its network.
        """
        content = checkpoints.read_checkpoint(path)
        module = cls(content.settings, content.network, statistics=content.statistics)
        _load(module.network, content, dict(content.weights))
        module.history = {name: list(values) for name, values in content.history.items()}
        return module.eval()

    @property
    def scale(self) -> float:
        """s_I, the factor between normalised amplitude and √counts; what is trained beside it is ``log_scale``."""
        return self.network.settings.intensity_scale

    def forward(
        self, images: Tensor, coords: Tensor, probe: Tensor | None = None, scale: Tensor | None = None
    ) -> Tensor:
        """Return predicted amplitude in √counts, or, after ``predict = True``, the complex objects.

        Args:
            images: (B, C, N, N) normalised amplitude.
            coords: (B, C, 1, 2) offsets in pixels.
            probe: (B, C, N, N) or (B, C, modes, N, N) as the loader gives it; None takes the network's own.
            scale: what the loader multiplied the amplitude by; a batch may be given as ``module(*batch)``.
        """
        if self.predict:
            return self.forward_predict(images, coords, probe, scale)
        return self._predict(images, coords, None if probe is None else self._normalised(probe)).amplitude

    def forward_predict(
        self, images: Tensor, coords: Tensor, probe: Tensor | None = None, scale: Tensor | None = None
    ) -> Tensor:
        """Return the (B, 1, N, N) complex object of each group, without simulating diffraction; arguments as above."""
        return self.network.reconstruct((images * self.scale).to(self._dtype), coords.to(self._dtype))

    def _predict(self, images: Tensor, coords: Tensor, probe: Tensor | None) -> Prediction:
        prediction: Prediction = self.network((images * self.scale).to(self._dtype), coords.to(self._dtype), probe)
        return prediction

    def _normalised(self, probe: Tensor) -> Tensor:
        """Return (B, C, modes, N, N) of a probe as the loader gives it."""
        if probe.ndim == 4:
            probe = probe[:, :, None]
        complex_dtype = torch.complex128 if self._dtype == torch.float64 else torch.complex64
        return normalise_probe(probe.to(complex_dtype), self.settings.model.probe_scale)

    def _loss(self, batch: PtychoBatch) -> LossTerms:
        images, coords, probe, _ = batch
        # With one probe for all scans the network's own is it, trained or not.
        given = None if self.statistics["one_probe"] else self._normalised(probe)
        prediction = self._predict(images, coords, given)
        return total_loss(
            prediction.object,
            prediction.amplitude,
            prediction.intensity,
            (images * self.scale).to(self._dtype),
            self._weights,
            probe_big=self.network.settings.probe_big,
            good_pixels=batch.good_pixels,
        )

    def training_step(self, batch: PtychoBatch, batch_idx: int = 0) -> Tensor:
        """Return the loss of a batch."""
        terms = self._loss(batch)
        self._add("train", terms, len(batch.groups))
        return terms.total

    def validation_step(self, batch: PtychoBatch, batch_idx: int = 0) -> Tensor:
        """Return the loss of a batch of validation groups."""
        terms = self._loss(batch)
        self._add("val", terms, len(batch.groups))
        return terms.total

    def predict_step(self, batch: PtychoBatch, batch_idx: int = 0) -> ObjectPatches:
        """Return the objects of a batch with where they belong."""
        images, coords, _, _ = batch
        return ObjectPatches(self.forward_predict(images, coords), batch.centres[:, 0, 0], batch.experiment_ids)

    # The mean of an epoch is one over samples, and half an epoch's sum belongs into a checkpoint.

    def _add(self, part: str, terms: LossTerms, samples: int) -> None:
        dtype = torch.float32 if terms.total.device.type == "mps" else torch.float64
        values = torch.stack([terms.total, terms.nll, terms.mae, terms.realspace, torch.ones_like(terms.total)])
        total = self._sums.get(part)
        self._sums[part] = values.detach().to(dtype) * samples + (0 if total is None else total.to(values.device))

    def _over_processes(self, sums: Tensor) -> Tensor:
        if self._trainer is None or self._trainer.world_size == 1:
            return sums
        # Lightning reduces in place.
        return self._trainer.strategy.reduce(sums.clone(), reduce_op="sum")

    def _mean(self, part: str) -> dict[str, float]:
        """Return and forget the means of an epoch, over all processes."""
        sums = self._sums.pop(part, None)
        if sums is None:
            return {}
        sums = self._over_processes(sums)
        total, nll, mae, realspace = (sums[:4] / sums[4]).tolist()
        means = {f"{part}_loss": total}
        terms = {
            f"poisson_{part}_loss": (self._weights.nll_weight, nll),
            f"mae_{part}_loss": (self._weights.mae_weight, mae),
            f"realspace_{part}_loss": (self._weights.realspace_weight, realspace),
        }
        used = {name: value for name, (weight, value) in terms.items() if weight}
        # A term that is alone is the loss.
        if len(used) > 1:
            means |= used
        return means

    def on_validation_epoch_start(self) -> None:
        """Forget what an interrupted validation left."""
        self._sums.pop("val", None)

    def on_validation_epoch_end(self) -> None:
        """Log the validation loss."""
        means = self._mean("val")
        self.log_dict(means, prog_bar=False)
        self._note(means)

    def on_train_batch_end(self, outputs: Any, batch: PtychoBatch, batch_idx: int) -> None:
        """Log the training loss behind the last batch: callbacks that record an epoch look before its end does.

        Raises:
            TrainingError: the loss is no finite number.
        """
        if batch_idx + 1 < self.trainer.num_training_batches:
            return
        means = self._mean("train")
        rate = float(self.optimizers(use_pl_optimizer=False).param_groups[0]["lr"])  # type: ignore[union-attr]
        means["learning_rate"] = rate
        self.log_dict(means, on_step=False, on_epoch=True, batch_size=1)
        self._note(means)
        loss = means["train_loss"]
        if not math.isfinite(loss):
            raise TrainingError(
                f"The training loss of epoch {len(self.history['train_loss'])} is {loss}. Lower learning_rate (now "
                f"{rate:g}), clip gradients (gradient_clip_val), or check the scans (ptycho-torch check-data)."
            )

    def on_train_epoch_end(self) -> None:
        """Set the next epoch's learning rate.

        Lightning would step the schedules behind its end-of-epoch checkpoints, so that a resumed run would miss a step.
        """
        watched = self.history.get("val_loss", self.history["train_loss"])[-1]
        if isinstance(self._schedule, KerasPlateau):
            self._schedule.step(watched)
        elif self._schedule is not None:
            self._schedule.step()

    def _note(self, means: Mapping[str, float]) -> None:
        for name, value in means.items():
            self.history.setdefault(name, []).append(value)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Make the optimiser; its schedule is stepped here, at the end of each epoch."""
        training = self.settings.training
        parameters = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        betas = (training.adam_beta1, training.adam_beta2)
        optimiser: torch.optim.Optimizer
        match training.optimizer:
            case "keras_adam":
                optimiser = KerasAdam(parameters, training.learning_rate, betas, training.adam_eps)
            case "adam":
                optimiser = torch.optim.Adam(parameters, training.learning_rate, betas, training.adam_eps)
            case "adamw":
                optimiser = torch.optim.AdamW(
                    parameters, training.learning_rate, betas, training.adam_eps, training.weight_decay
                )
        self._schedule = _schedule(optimiser, training)
        if self._schedule is not None and self._schedule_state is not None:
            self._schedule.load_state_dict(self._schedule_state)
        return optimiser

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip as Keras does, over all parameters of the optimiser together."""
        if gradient_clip_val:
            parameters = (parameter for group in optimizer.param_groups for parameter in group["params"])
            clip_gradients(parameters, gradient_clip_val, gradient_clip_algorithm or "norm")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add settings, statistics, history, and the state of schedule and running means."""
        own = checkpoints.ours(self.settings, self.network.settings, self.statistics, self.history)
        own["sums"] = {part: self._over_processes(values).cpu() for part, values in self._sums.items()}
        own["schedule"] = None if self._schedule is None else self._schedule.state_dict()
        trainer = self._trainer
        done = len(self.history.get("train_loss", ()))
        own["finished"] = trainer is not None and (trainer.should_stop or done == trainer.max_epochs)
        checkpoint[checkpoints.KEY] = own

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up history, schedule and running means."""
        own = checkpoint.get(checkpoints.KEY, {})
        self.history = {name: list(values) for name, values in own.get("history", {}).items()}
        # They are those of all processes together.
        first = self._trainer is None or self._trainer.is_global_zero
        self._sums = {
            part: values if first else torch.zeros_like(values) for part, values in own.get("sums", {}).items()
        }
        self._schedule_state = own.get("schedule")
        if self._schedule is not None and self._schedule_state is not None:
            self._schedule.load_state_dict(self._schedule_state)


def _stand_alone(settings: Settings) -> NetworkSettings:
    model, data = settings.model, settings.data
    if model.intensity_scale is None and data.nphotons is None:
        raise ConfigError(
            "Neither nphotons nor intensity_scale is set, and no dataset is there to derive them from; set one, or use "
            "PtychoPINN.for_dataset(dataset)."
        )
    return model.network(
        N=data.N,
        gridsize=data.gridsize,
        nphotons=data.nphotons or 1.0,
        offset=REFERENCE_OFFSET_PX,
        max_position_jitter=REFERENCE_JITTER_PX,
    )


def _schedule(optimiser: torch.optim.Optimizer, training: TrainingSettings) -> Any:
    """Return the schedule of the learning rate, one step an epoch; None where it is constant."""
    schedules = torch.optim.lr_scheduler
    match training.scheduler:
        case "Exponential":
            return schedules.ExponentialLR(optimiser, training.lr_gamma)
        case "WarmupCosine":
            return schedules.LambdaLR(optimiser, _WarmupCosine(training))
        case "ReduceLROnPlateau":
            return KerasPlateau(
                optimiser,
                factor=training.plateau_factor,
                patience=training.plateau_patience,
                threshold=training.plateau_threshold,
                min_lr=training.plateau_min_lr,
            )
        case _:
            return None


class _WarmupCosine:
    """Factor of the learning rate: linear up over the warm-up, then half a cosine down to ``lr_min_ratio``."""

    def __init__(self, training: TrainingSettings) -> None:
        self.warmup, self.last = training.lr_warmup_epochs, training.max_epochs
        self.least = training.lr_min_ratio

    def __call__(self, epoch: int) -> float:
        if epoch < self.warmup:
            return (epoch + 1) / (self.warmup + 1)
        done = min((epoch - self.warmup) / max(self.last - 1 - self.warmup, 1), 1.0)
        return self.least + (1 - self.least) * (1 + math.cos(math.pi * done)) / 2


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
) -> pl.Trainer:
    """Make the Lightning trainer of these settings; checkpoints go to ``output_dir/checkpoints``.

    Raises:
        ConfigError: the device is not there.
    """
    folder = output_dir / "checkpoints"
    # Lightning runs callbacks that save behind all others, so that what the others decide is in the checkpoint.
    watching: list[Callback] = [
        ModelCheckpoint(
            folder,
            "best",
            monitor="val_loss" if validate else "train_loss",
            enable_version_counter=False,
            save_on_train_epoch_end=True,
        ),
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


def accelerator(device: str) -> str:
    """Return Lightning's name of a device that is there.

    Raises:
        ConfigError: it is not.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device = 'cuda', but PyTorch sees no CUDA device here; take 'auto' or 'cpu'.")
    if device == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("device = 'mps', but PyTorch sees no Metal device here; take 'auto' or 'cpu'.")
    return device


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
    data_dir: str | Path = "data/memmap",
    remake_map: bool = False,
    probe: Tensor | None = None,
    resume: str | Path | None = None,
    start_from: str | Path | None = None,
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
        data_dir: folder of the memory map.
        remake_map: build the map anew.
        probe: (N, N) or (modes, N, N) probe for every scan, in place of files.
        resume: checkpoint of a run that was interrupted; it goes on to the same weights.
        start_from: checkpoint whose weights a new run starts with.
        reconstruct: write the objects of the training scans at the end.
        progress: show progress bars.
        overrides: settings by name, whoever owns them: ``max_epochs``, ``devices``, ``gradient_clip_val`` …

    Raises:
        ConfigError: settings that do not fit together.
        DataContractError: a scan or probe that breaks a clause.
        CheckpointError: a checkpoint that cannot be read or does not belong to these data or settings.
        TrainingError: the loss is no number any more.

    Example:
        train.main("scans", "probes", max_epochs=60, gradient_clip_val=None)
    """
    if resume is not None and start_from is not None:
        raise ConfigError("resume goes on with a run and start_from begins a new one; give one of them.")
    saved = None if resume is None else checkpoints.read_checkpoint(resume)
    settings = _settings_of(saved, settings).override(overrides)
    if saved is not None:
        _same_run(saved, settings)
    accelerator(settings.training.device)
    output_dir = Path(output_dir)
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
    # The environment decides where runs are tracked. To decide it here, uncomment:
    # os.environ["MLFLOW_TRACKING_URI"] = "http://127.0.0.1:5000"
    with track(settings.training, parameters=_flat(module), output_dir=output_dir) as tracker, quiet_lightning():
        trainer = make_trainer(
            settings.training,
            output_dir,
            validate=validation is not None,
            callbacks=tuple(tracker.callbacks),
            progress=progress,
        )
        # A run that ended early has ended as well; only more epochs than it was given make it go on.
        if saved is not None and saved.finished and settings.training.max_epochs <= saved.settings.training.max_epochs:
            log.info("%s: training had come to its end", resume)
            _load(module.network, saved, dict(saved.weights))
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
    _load(module.network, content, weights)


def _load(network: PtychoNet, content: checkpoints.Checkpoint, weights: dict[str, Tensor]) -> None:
    try:
        network.load_state_dict(weights, strict=True)
    except RuntimeError as err:
        reason = "; ".join(line.strip() for line in str(err).splitlines()[1:4])
        raise CheckpointError(
            f"{content.path}: its weights are not those of this network (N = {network.settings.N}, gridsize = "
            f"{network.settings.gridsize}, n_filters_scale = {network.settings.n_filters_scale}): {reason}"
        ) from err


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


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Silence Lightning's banners, and its advice about loaders that are not its own."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*exists and is not empty.*")
        warnings.filterwarnings("ignore", message=".*Trying to infer the `batch_size`.*")
        warnings.filterwarnings("ignore", message=".*fewer than the logging interval.*")
        warnings.filterwarnings("ignore", message=".*resuming from a checkpoint that ended before the epoch ended.*")
        warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
        # The module takes its means over all processes before it logs them.
        warnings.filterwarnings("ignore", message=".*sync_dist=True.*")
        warnings.filterwarnings("ignore", message=".*have no `val_dataloader`.*")
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


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
        from ptycho_torch.inference import reconstruct as reconstruct_objects
        from ptycho_torch.inference import write_results
        from ptycho_torch.pictures import plot_history

        with replacing(output_dir / "history.json", overwrite=True) as file:
            file.write(json.dumps(module.history, indent=1).encode())
        plot_history(module.history, output_dir / "history.png")
        tracker.log_file(output_dir / "history.png", folder="pictures")
        for path in (last, best):
            if path.exists():
                tracker.log_file(path, folder="checkpoints")
        if reconstruct:
            objects = reconstruct_objects(module, dataset, progress=progress)
            results = write_results(
                objects, module, dataset, output_dir / "reconstructions", source=last, overwrite=True
            )
            for result in results:
                for picture in result.pictures:
                    tracker.log_file(picture, folder="pictures")
            files = tuple(result.npz for result in results)
    return TrainingResult(module, last, best, module.history, files, tracker.run_id)
