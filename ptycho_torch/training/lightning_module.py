"""The Lightning module ``PtychoPINN``: the network with its loss, optimiser, schedule and what its checkpoints hold.

``ptycho_torch.train`` trains it and ``ptycho_torch.inference`` reconstructs with it.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import secrets
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.tuner import lr_finder
from torch import Tensor, nn

from ptycho_torch.config_params import NetworkSettings, Settings, TrainingSettings
from ptycho_torch.data.preparation import REFERENCE_JITTER_PX, REFERENCE_OFFSET_PX
from ptycho_torch.data.probe import normalise_probe
from ptycho_torch.dset_loader_pt_mmap import PtychoBatch, PtychoDataset, TensorDictDataLoader
from ptycho_torch.errors import CheckpointError, ConfigError, DataContractError, TrainingError
from ptycho_torch.losses import LossTerms, total_loss
from ptycho_torch.model import Prediction, PtychoNet, head_bias
from ptycho_torch.optim import AdaptiveClip, KerasAdam, KerasPlateau, clip_gradients
from ptycho_torch.training import checkpoint as checkpoints

log = logging.getLogger(__name__)

WARMUP_SHARE = 0.1
"""Part of the epochs over which the learning rate rises where ``lr_warmup_epochs`` is None, rounded up."""


_MOST_INITIAL_AMPLITUDE = 0.95


class ObjectPatches(NamedTuple):
    """What ``predict_step`` says about a batch of groups.

    Attributes:
        objects: (B, 1, N, N) complex object of each group.
        centres_px: (B, 2) mean position (x, y) of each group, float64; None for a plain tuple, which has none.
        experiment_ids: (B,) number of the scan of each group; None likewise.
    """

    objects: Tensor
    centres_px: Tensor | None
    experiment_ids: Tensor | None


Batch = PtychoBatch | Sequence[Tensor]
"""A batch of ``TensorDictDataLoader``, or a plain ``(images, coords, probe, scale)`` of any other loader."""


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
        run: id of the run that the module trains in, which its checkpoints have; None before the first training.
        clip: clips gradients where the settings ask for ``adaptive`` and the Trainer does not clip; else None.

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
        self._validated: dict[str, float] = {}
        self.history: dict[str, list[float]] = {}
        self.predict = False
        self.run: str | None = None
        self._weights = settings.training.loss_weights(settings.model.loss_function)
        self._dtype = torch.float64 if settings.training.precision == "64-true" else torch.float32
        if probe is not None:
            probe = normalise_probe(torch.as_tensor(probe).to(torch.complex128), settings.model.probe_scale)
        elif self.statistics["probe_modes"] > 1:
            # A checkpoint's probe follows with its weights; here is its place.
            probe = torch.zeros(self.statistics["probe_modes"], network.N, network.N, dtype=torch.complex64)
        if network.probe_trainable and not self.statistics["one_probe"]:
            raise ConfigError(
                "probe_trainable needs one probe for all scans; train the scans one by one, or give one probe."
            )
        generator = torch.Generator().manual_seed(settings.training.seed)
        self.network = PtychoNet(network, probe, generator=generator, dtype=self._dtype)
        # A probe of zeros waits for the weights of a checkpoint.
        if settings.training.initial_amplitude == "mean_counts" and self.network.probe_parts.any():
            self._start_with_mean_counts()
        self.save_hyperparameters(
            {
                "settings": settings.as_dict(),
                "network": dataclasses.asdict(network),
                "statistics": self.statistics,
            }
        )
        self._sums: dict[str, Tensor] = {}
        self._accumulated = 0
        self._gradients: Mapping[str, Tensor] = {}
        self._schedule: Any = None
        self._schedule_state: dict[str, Any] | None = None
        self._schedule_epochs: float | None = None
        training = settings.training
        adaptive = training.gradient_clip_val is not None and training.gradient_clip_algorithm == "adaptive"
        self.clip = AdaptiveClip(training.gradient_clip_val or math.inf) if adaptive else None

    def _start_with_mean_counts(self) -> None:
        """Set the bias of the amplitude's head so that a constant object gives as many counts as the mean pattern.

        A mean pattern has Σ amplitude² = (N/2)² as normalised, a constant object of amplitude c gives c²·Σ|P|² (both
        times s_I²), so c = N/2/‖P‖; at most 0.95, which a sigmoid can leave.
        """
        amplitude = self.network.settings.N / 2 / self.network.probe_parts.detach().norm().item()
        bias = head_bias(self.network.settings.amp_activation, min(amplitude, _MOST_INITIAL_AMPLITUDE))
        nn.init.constant_(self.network.decoder_amp.head.bias, bias)

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
            "nphotons_source": derived.nphotons_source,
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
        load_weights(module.network, content, dict(content.weights))
        module.history = {name: list(values) for name, values in content.history.items()}
        return module.eval()

    @classmethod
    def load_from_checkpoint(
        cls,
        checkpoint_path: Any,
        map_location: Any = None,
        hparams_file: Any = None,
        strict: bool | None = None,
        weights_only: bool | None = None,
        **_: Any,
    ) -> PtychoPINN:
        """Load a checkpoint as Lightning's own method does, which would unpickle it.

        Raises:
            CheckpointError: as ``from_checkpoint``.
        """
        module = cls.from_checkpoint(checkpoint_path)
        return module if map_location is None else module.to(map_location)

    @property
    def learning_rate(self) -> float:
        """The rate that training starts with; what ``Tuner.lr_find`` sets becomes the setting of that name."""
        return self.settings.training.learning_rate

    @learning_rate.setter
    def learning_rate(self, rate: float) -> None:
        training = dataclasses.replace(self.settings.training, learning_rate=float(rate))
        self.settings = dataclasses.replace(self.settings, training=training)
        self.hparams["settings"] = self.settings.as_dict()
        if isinstance(self._schedule, torch.optim.lr_scheduler.LRScheduler):
            self._schedule.base_lrs = [training.learning_rate for _ in self._schedule.base_lrs]

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

    def _loss(self, batch: Batch) -> LossTerms:
        images, coords, probe, _ = _parts(batch)
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
            good_pixels=batch.good_pixels if isinstance(batch, PtychoBatch) else None,
        )

    def training_step(self, batch: Batch, batch_idx: int = 0) -> Tensor:
        """Return the loss of a batch."""
        return self._step("train", batch)

    def validation_step(self, batch: Batch, batch_idx: int = 0) -> Tensor:
        """Return the loss of a batch of validation groups."""
        return self._step("val", batch)

    def test_step(self, batch: Batch, batch_idx: int = 0) -> Tensor:
        """Return the loss of a batch of test groups."""
        return self._step("test", batch)

    def _step(self, part: str, batch: Batch) -> Tensor:
        terms = self._loss(batch)
        self._add(part, terms, len(batch[0]))
        return terms.total

    def predict_step(self, batch: Batch, batch_idx: int = 0) -> ObjectPatches:
        """Return the objects of a batch with where they belong."""
        images, coords, _, _ = _parts(batch)
        objects = self.forward_predict(images, coords)
        if not isinstance(batch, PtychoBatch):
            return ObjectPatches(objects, None, None)
        return ObjectPatches(objects, batch.centres[:, 0, 0], batch.experiment_ids)

    # The mean of an epoch is one over samples, so the sums so far belong into a checkpoint from within it.

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

    def _of_each_process(self, values: Tensor) -> Tensor:
        """Return (processes, …), the values of each process."""
        return (values[None] if self._trainer is None else of_each_process(self._trainer, values)).cpu()

    def _of_this_process(self, values: Tensor) -> Tensor:
        """Return what ``_of_each_process`` had of this process; of another number of them, the first takes the sum."""
        world, rank = (1, 0) if self._trainer is None else (self._trainer.world_size, self._trainer.global_rank)
        if len(values) == world:
            return values[rank].clone()
        return values.sum(0) if rank == 0 else torch.zeros_like(values[0])

    def setup(self, stage: str) -> None:
        """Forget what an interrupted epoch left, before a checkpoint is loaded; have checkpoints written as ours.

        Raises:
            ConfigError: the Trainer has a precision that it would convert whole batches to.
        """
        _check_precision(str(self.trainer.precision))
        self._sums.clear()
        self._accumulated, self._gradients = 0, {}
        strategy = self.trainer.strategy
        if type(strategy.checkpoint_io) is TorchCheckpointIO:
            strategy.checkpoint_io = checkpoints.PlainCheckpointIO()
        if stage == "fit":
            self.run = secrets.token_hex(8)

    def on_train_start(self) -> None:
        """Take the rate of the schedule where a resumed run has another number of epochs than it had.

        With ``overfit_batches``, keep the order of the batches, as Lightning does for the loaders of ``torch``.
        """
        self._follow_new_schedule()
        # Lightning clears the gradients between loading a checkpoint and here.
        for name, parameter in self.named_parameters():
            if name in self._gradients:
                parameter.grad = torch.empty_like(parameter).copy_(self._of_this_process(self._gradients[name]))
        self._gradients = {}
        loader = self.trainer.train_dataloader
        # Lightning sets the attribute without declaring it.
        overfits = bool(self.trainer.overfit_batches)  # type: ignore[attr-defined]
        if overfits and isinstance(loader, TensorDictDataLoader) and loader.batch_sampler.shuffle:
            log.warning("overfit_batches trains on the same batches in every epoch; their shuffling is switched off.")
            loader.batch_sampler.shuffle = False

    def _follow_new_schedule(self) -> None:
        before, now, schedule = self._schedule_epochs, self._epochs(), self._schedule
        self._schedule_epochs = None
        if before in (None, now) or not isinstance(schedule, torch.optim.lr_scheduler.LambdaLR):
            return
        factors = [factor(schedule.last_epoch) for factor in schedule.lr_lambdas]
        rates = [base * factor for base, factor in zip(schedule.base_lrs, factors, strict=True)]
        for group, rate in zip(schedule.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        schedule._last_lr = rates

    def on_after_backward(self) -> None:
        """Count the batches whose gradients wait for a step."""
        self._accumulated += 1

    def on_before_zero_grad(self, optimizer: torch.optim.Optimizer) -> None:
        """Begin to count anew."""
        self._accumulated = 0

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Average the gradients over the batches that there are.

        Lightning divides each by ``accumulate_grad_batches``; at the end of an epoch there may be fewer.
        """
        expected, found = self.trainer.accumulate_grad_batches, self._accumulated
        self._accumulated = 0
        if 0 < found < expected:
            for parameter in self.parameters():
                if parameter.grad is not None:
                    parameter.grad.mul_(expected / found)

    def on_validation_epoch_start(self) -> None:
        """Forget what an interrupted validation left."""
        self._sums.pop("val", None)
        self._validated = {}

    def on_validation_batch_end(self, outputs: Any, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Log the validation loss after the last batch, as that of training: callbacks look before the epoch ends."""
        batches = self.trainer.num_val_batches
        if dataloader_idx + 1 == len(batches) and batch_idx + 1 == batches[dataloader_idx]:
            self._validated = self._mean("val")
            self.log_dict(self._validated, on_step=False, on_epoch=True, batch_size=1, add_dataloader_idx=False)

    def on_validation_epoch_end(self) -> None:
        """Log the validation loss; while training runs, it is that of the epoch, the last one if there are several.

        A sanity check before training, and ``trainer.validate``, are no part of the history.
        """
        means = self._validated or self._mean("val")
        self._validated = {}
        self.log_dict(means, prog_bar=False)
        if self.trainer.sanity_checking or self.trainer.state.fn != TrainerFn.FITTING:
            return
        # Until an epoch's training loss is noted, its batches are in the sums.
        epoch = len(self.history.get("train_loss", ())) - ("train" not in self._sums)
        for name, value in means.items():
            values = self.history.setdefault(name, [])
            values[epoch:] = [*[math.nan] * (epoch - len(values)), value]

    def on_validation_end(self) -> None:
        """Note the training loss of an epoch that a validation within it has ended: a callback stopped training."""
        if (
            self.trainer.state.fn == TrainerFn.FITTING
            and not self.trainer.sanity_checking
            and self.stops_within_epoch()
        ):
            self._note_epoch()

    def on_test_epoch_start(self) -> None:
        """Forget what an interrupted test left."""
        self._sums.pop("test", None)

    def on_test_epoch_end(self) -> None:
        """Log the test loss."""
        self.log_dict(self._mean("test"))

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """End the epoch before, where a checkpoint was saved behind its last batch and before its end."""
        if batch_idx == 0 and "train" in self._sums:
            with warnings.catch_warnings():
                # The steps of the optimiser that PyTorch misses here were made before the interruption.
                warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*")
                self._end_epoch()

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Log the training loss after the last batch: callbacks that record an epoch look before its end does.

        Raises:
            TrainingError: the loss is no finite number.
        """
        trainer = self.trainer
        if batch_idx + 1 >= trainer.num_training_batches or trainer.is_last_batch or self.stops_within_epoch():
            self._note_epoch()
            self._log_epoch()

    def stops_within_epoch(self) -> bool:
        """Whether training stops behind this batch: after ``max_steps``, or because a callback wants it."""
        trainer = self.trainer
        if trainer.global_step == trainer.max_steps:
            return True
        enough = trainer.current_epoch >= (trainer.min_epochs or 0) and trainer.global_step >= (trainer.min_steps or 0)
        return trainer.should_stop and enough

    def _note_epoch(self) -> None:
        """Put the means of the epoch's training into the history, once."""
        means = self._mean("train")
        if not means:
            return
        rate = float(self.optimizers(use_pl_optimizer=False).param_groups[0]["lr"])  # type: ignore[union-attr]
        self._note(means | {"learning_rate": rate})
        loss = means["train_loss"]
        if not math.isfinite(loss) and not _searches_rate(self.trainer):
            raise TrainingError(
                f"The training loss of epoch {len(self.history['train_loss'])} is {loss}. Lower learning_rate (now "
                f"{rate:g}), clip gradients (gradient_clip_val), or check the scans (ptycho-torch check-data)."
            )

    def _log_epoch(self) -> None:
        """Log what training has noted last."""
        ours = {name: values[-1] for name, values in self.history.items() if values and "val_" not in name}
        self.log_dict(ours, on_step=False, on_epoch=True, batch_size=1)

    def on_train_epoch_end(self) -> None:
        """Set the next epoch's learning rate.

        Lightning would step the schedules behind its end-of-epoch checkpoints, so that a resumed run would miss a step.
        """
        self._end_epoch()
        if self._trainer is not None:
            self._log_epoch()

    def _end_epoch(self) -> None:
        self._note_epoch()
        epochs, watched = len(self.history["train_loss"]), self._watched()
        if isinstance(self._schedule, KerasPlateau):
            if watched is not None:
                self._schedule.step(watched)
        elif self._schedule is not None:
            self._schedule.step()
        for values in self.history.values():
            values += [math.nan] * (epochs - len(values))

    def _watched(self) -> float | None:
        """Return the epoch's loss that decides the plateau; None for an epoch that is not to be validated."""
        training, validated = self.history["train_loss"], self.history.get("val_loss")
        if validated is not None:
            return validated[-1] if len(validated) >= len(training) else None
        trainer = self._trainer
        every = 1 if trainer is None or not trainer.enable_validation else trainer.check_val_every_n_epoch
        return training[-1] if every and len(training) % every == 0 else None

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
        self._schedule = _schedule(optimiser, training, self._epochs())
        if self._schedule is not None and self._schedule_state is not None:
            _restore(self._schedule, self._schedule_state)
        return optimiser

    def _epochs(self) -> float:
        """Return how many epochs the run has: as the settings say, else the Trainer; infinite where neither does."""
        given, trainer = self.settings.training.max_epochs, self._trainer
        if given is not None or trainer is None:
            return math.inf if given is None else given
        steps = trainer.estimated_stepping_batches
        batches = trainer.num_training_batches / trainer.accumulate_grad_batches
        return math.ceil(steps / batches) if 0 < steps < math.inf and batches > 0 else math.inf

    def teardown(self, stage: str) -> None:
        """Forget the schedule of a checkpoint: the next training may begin anew."""
        self._schedule_state = None

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip over all parameters together: as the Trainer says, else adaptively if the settings do."""
        parameters = (parameter for group in optimizer.param_groups for parameter in group["params"])
        if gradient_clip_val:
            clip_gradients(parameters, gradient_clip_val, gradient_clip_algorithm or "norm")
        elif self.clip is not None:
            self.clip(parameters)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add settings, statistics, history, and the state of schedule and running means."""
        own = checkpoints.ours(self.settings, self.network.settings, self.statistics, self.history)
        own["run"] = self.run
        own["sums"] = {part: self._of_each_process(values) for part, values in self._sums.items()}
        if self._accumulated:
            own["gradients"] = {
                name: self._of_each_process(parameter.grad)
                for name, parameter in self.named_parameters()
                if parameter.grad is not None
            }
            own["accumulated"] = self._accumulated
        own["schedule"] = None if self._schedule is None else self._schedule.state_dict()
        own["schedule_epochs"] = None if self._schedule is None else self._epochs()
        own["clip"] = None if self.clip is None else self.clip.state_dict()
        trainer = self._trainer
        own["processes"] = 1 if trainer is None else trainer.world_size
        done = len(self.history.get("train_loss", ()))
        own["finished"] = trainer is not None and (done == trainer.max_epochs or ended_early(trainer))
        checkpoint[checkpoints.KEY] = own

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up run, history, schedule, running means, and gradients that wait for a step."""
        own = checkpoint.get(checkpoints.KEY, {})
        self.run = own.get("run") or self.run
        self.history = {name: list(values) for name, values in own.get("history", {}).items()}
        self._sums = {part: self._of_this_process(values) for part, values in own.get("sums", {}).items()}
        self._accumulated = own.get("accumulated", 0)
        self._gradients = own.get("gradients", {})
        if self.clip is not None and own.get("clip") is not None:
            self.clip.load_state_dict(own["clip"])
        self._schedule_state = own.get("schedule")
        self._schedule_epochs = own.get("schedule_epochs")
        if self._schedule is not None and self._schedule_state is not None:
            _restore(self._schedule, self._schedule_state)


def of_each_process(trainer: pl.Trainer, values: Tensor) -> Tensor:
    """Return (processes, …), the values that each process has."""
    if trainer.world_size == 1:
        return values[None]
    parts = [torch.empty_like(values) for _ in range(trainer.world_size)]
    torch.distributed.all_gather(parts, values.contiguous())
    return torch.stack(parts)


def ended_early(trainer: pl.Trainer) -> bool:
    """Whether a rule of early stopping has ended training, and not a budget of time or steps."""
    rules = [rule for rule in trainer.callbacks if isinstance(rule, EarlyStopping)]  # type: ignore[attr-defined]
    return trainer.should_stop and any(rule.stopped_epoch or rule.wait_count >= rule.patience for rule in rules)


def _restore(schedule: Any, state: Mapping[str, Any]) -> None:
    """Give a schedule its state; what its factors are follows from the settings, whose epochs may be others now."""
    state = dict(state)
    if "lr_lambdas" in state:
        state["lr_lambdas"] = [None] * len(state["lr_lambdas"])
    schedule.load_state_dict(state)


def _parts(batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return (images, coords, probe, scale) of a batch.

    Raises:
        DataContractError: it has other parts. A TensorDict would be taken apart into its samples.
    """
    parts: Sequence[Tensor] = tuple(batch) if isinstance(batch, PtychoBatch | tuple | list) else ()
    if len(parts) != 4:
        raise DataContractError(
            f"A batch is a PtychoBatch or a tuple (images, coords, probe, scale); found {type(batch).__name__} of "
            f"{len(parts)} parts. Let the loader's collate_fn return such a tuple."
        )
    images, coords, probe, scale = parts
    return images, coords, probe, scale


def _searches_rate(trainer: pl.Trainer) -> bool:
    """Whether ``Tuner.lr_find`` is at work, which continues until a rate is too high."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    return any(type(callback).__module__ == lr_finder.__name__ for callback in callbacks)


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


def _schedule(optimiser: torch.optim.Optimizer, training: TrainingSettings, epochs: float = math.inf) -> Any:
    """Return the schedule of the learning rate over so many epochs, one step an epoch; None where it is constant."""
    schedules = torch.optim.lr_scheduler
    match training.scheduler:
        case "Exponential":
            return schedules.ExponentialLR(optimiser, training.lr_gamma)
        case "WarmupCosine":
            if epochs == math.inf:
                log.warning("WarmupCosine without max_epochs or max_steps: the learning rate does not fall")
            return schedules.LambdaLR(optimiser, _WarmupCosine(training, epochs))
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

    def __init__(self, training: TrainingSettings, epochs: float) -> None:
        given = training.lr_warmup_epochs
        self.warmup = math.ceil(WARMUP_SHARE * epochs) if given is None and epochs < math.inf else given or 0
        self.last = epochs
        self.least = training.lr_min_ratio

    def __call__(self, epoch: int) -> float:
        if epoch < self.warmup:
            return (epoch + 1) / (self.warmup + 1)
        done = min((epoch - self.warmup) / max(self.last - 1 - self.warmup, 1), 1.0)
        return self.least + (1 - self.least) * (1 + math.cos(math.pi * done)) / 2


def _check_precision(precision: str) -> None:
    """Raise for a precision of the Trainer that is no autocast: batches hold whole and complex numbers as well."""
    if precision == "32-true" or precision.endswith("-mixed"):
        return
    ours = '"64-true" is a setting of the module: Settings().override({"precision": "64-true"})'
    remedy = ours if precision == "64-true" else 'for a network in bfloat16 take Trainer(precision="bf16-mixed")'
    raise ConfigError(
        f'Trainer(precision="{precision}"): the Trainer would convert network and batches by itself; expected '
        f'"32-true" or a mixed precision. Leave it out; {remedy}.'
    )


def load_weights(network: PtychoNet, content: checkpoints.Checkpoint, weights: dict[str, Tensor]) -> None:
    """Give a network weights, under the names of its state; ``content`` is where they come from.

    Raises:
        CheckpointError: they are not those of this network.
    """
    try:
        network.load_state_dict(weights, strict=True)
    except RuntimeError as err:
        reason = "; ".join(line.strip() for line in str(err).splitlines()[1:4])
        raise CheckpointError(
            f"{content.path}: its weights are not those of this network (N = {network.settings.N}, gridsize = "
            f"{network.settings.gridsize}, n_filters_scale = {network.settings.n_filters_scale}): {reason}"
        ) from err


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
