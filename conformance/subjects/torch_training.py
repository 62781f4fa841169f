"""The candidate's training: ``PtychoPINN`` in its Trainer, fed with given batches, and looked at after each update."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from conformance.cases.case import Case
from conformance.oracle.training import Plateau
from conformance.subjects.torch import float32_means_float32, named
from conformance.training.state import LOG_SCALE, PROBE_PARTS, State, TrainingRun, Trajectory
from ptycho_tf_bridge.layout import LAYOUTS
from ptycho_tf_bridge.weights import to_torch
from ptycho_torch import train
from ptycho_torch.config_params import Settings
from ptycho_torch.dset_loader_pt_mmap import PtychoBatch
from ptycho_torch.training import lightning_module

_MOMENTS = {"momentum": ("momentum", "exp_avg"), "velocity": ("velocity", "exp_avg_sq")}
"""What optimisers call the two moments."""


def train_torch(run: TrainingRun, device: str = "cpu", dtype: str = "float32") -> Trajectory:
    """Train as users do, one epoch whose batches are those of the run.

    Args:
        run: what and how.
        device: torch device name.
        dtype: ``float32`` or ``float64``.
    """
    case, recorder = run.start, _Recorder(run.start)
    weights = case.loss_weights
    settings = Settings().override(
        {
            "device": device,
            "precision": "64-true" if dtype == "float64" else "32-true",
            "max_epochs": 1,
            "learning_rate": run.learning_rate,
            "scheduler": "Default",
            "gradient_clip_val": run.clip,
            "gradient_clip_algorithm": run.clip_algorithm,
            "early_stop_patience": None,
            "nll_weight": weights.nll_weight,
            "mae_weight": weights.mae_weight,
            "realspace_weight": weights.realspace_weight,
            "tv_weight": weights.tv_weight,
            "validation_fraction": 0.0,
            "tracking": False,
        }
    )
    module = _module(case, settings, getattr(torch, dtype))
    batches = [_batch(each, getattr(torch, dtype)) for each in run.batches]
    before = _frozen(module)
    with float32_means_float32(), lightning_module.quiet_lightning(), tempfile.TemporaryDirectory() as folder:
        trainer = train.make_trainer(
            settings.training, Path(folder), validate=False, callbacks=(recorder,), progress=False
        )
        trainer.fit(module, _Batches(batches))
    kept = all(torch.equal(each, before[name]) for name, each in _frozen(module).items())
    return Trajectory(np.array(recorder.losses), tuple(recorder.states), kept)


def _frozen(module: train.PtychoPINN) -> dict[str, Tensor]:
    """Return a copy of every parameter that is not trained."""
    parameters = module.network.named_parameters()
    return {name: each.detach().cpu().clone() for name, each in parameters if not each.requires_grad}


def _module(case: Case, settings: Settings, dtype: torch.dtype) -> train.PtychoPINN:
    modes = torch.from_numpy(case.probe.reshape(-1, *case.probe.shape[-2:]))
    statistics = {"probe_modes": len(modes), "one_probe": True}
    module = train.PtychoPINN(settings, dataclasses.asdict(case.settings), statistics=statistics)
    state = {name: torch.from_numpy(array) for name, array in to_torch(case.weights, case.settings).items()}
    state |= {"probe_parts": torch.view_as_real(modes), "log_scale": module.network.log_scale.detach()}
    module.network.load_state_dict(state, strict=True)
    return module


def _batch(case: Case, dtype: torch.dtype) -> PtychoBatch:
    """Return a case's patterns and offsets as the loader would give them."""
    B, C = len(case.diffraction), case.settings.C
    return PtychoBatch(
        images=torch.from_numpy(LAYOUTS["channels"].to_torch(case.diffraction)).to(dtype),
        coords=torch.from_numpy(LAYOUTS["offsets"].to_torch(case.offsets_px)).to(dtype),
        scale=torch.ones(B),
        centres=torch.zeros(B, 1, 1, 2, dtype=torch.float64),
        indices=torch.arange(B * C, dtype=torch.int32).view(B, C),
        groups=torch.arange(B),
        experiment_ids=torch.zeros(B, dtype=torch.int64),
        probes=torch.from_numpy(case.probe).reshape(1, -1, *case.probe.shape[-2:]),
        probe_ids=torch.zeros(B, dtype=torch.int64),
        masks=None,
    )


class _Batches:
    """Batches in order, as a loader: Lightning would take a list for as many loaders."""

    def __init__(self, batches: Sequence[PtychoBatch]) -> None:
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[PtychoBatch]:
        return iter(self._batches)


class _Recorder(Callback):
    """Notes loss, weights and optimiser state after every update."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.losses: list[float] = []
        self.states: list[State] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        network, (optimiser,) = pl_module.network, trainer.optimizers

        def trained(choose: Callable[[torch.nn.Parameter], Tensor]) -> dict[str, np.ndarray]:
            found = named(network, self.case, choose)
            if network.log_scale.requires_grad:
                found[LOG_SCALE] = choose(network.log_scale).detach().cpu().numpy().copy()
            if network.probe_parts.requires_grad:
                parts = choose(network.probe_parts).detach().cpu().numpy()
                found[PROBE_PARTS] = np.moveaxis(parts, -1, 0).copy()
            return found

        def moment(kind: str) -> dict[str, np.ndarray]:
            def of(parameter: torch.nn.Parameter) -> Tensor:
                state = optimiser.state.get(parameter, {})
                # An optimiser without this moment has it at zero.
                return next((state[name] for name in _MOMENTS[kind] if name in state), torch.zeros_like(parameter))

            return trained(of)

        steps = {int(state["step"]) for state in optimiser.state.values() if "step" in state}
        self.losses.append(float(outputs["loss"]))
        self.states.append(
            State(trained(lambda parameter: parameter), moment("momentum"), moment("velocity"), max(steps, default=0))
        )


def rates_of_epochs(
    losses: Sequence[float],
    scheduler: str,
    *,
    rate: float = 1e-3,
    plateau: Plateau | None = None,
    gamma: float = 0.95,
    warmup: int = 0,
    least_ratio: float = 0.1,
) -> list[float]:
    """Return the learning rate of each epoch that ``PtychoPINN`` sets where the validation losses are these."""
    chosen: dict[str, Any] = {"scheduler": scheduler, "learning_rate": rate, "lr_gamma": gamma}
    chosen |= {"lr_warmup_epochs": warmup, "lr_min_ratio": least_ratio, "max_epochs": len(losses)}
    if plateau is not None:
        chosen |= {"plateau_factor": plateau.factor, "plateau_patience": plateau.patience}
        chosen |= {"plateau_threshold": plateau.threshold, "plateau_min_lr": plateau.least}
    module = _kept_module()
    module.settings = Settings().override(chosen)
    optimiser = module.configure_optimizers()
    module.history = {"train_loss": [], "val_loss": []}
    rates = []
    for loss in losses:
        rates.append(float(optimiser.param_groups[0]["lr"]))
        # Without a gradient nothing is updated; schedules want to see the call.
        optimiser.step()
        module.history["val_loss"].append(loss)
        module.on_train_epoch_end()
    return rates


def small_module() -> train.PtychoPINN:
    """Make the smallest module: schedules, clipping and means do not ask which network it is."""
    return train.PtychoPINN(Settings().override({"n_filters_scale": 1, "gridsize": 1, "intensity_scale": 1.0}))


_kept_module = cache(small_module)


def epochs_run(losses: Sequence[float], patience: int) -> int:
    """Return how many epochs the callback of the real Trainer lets run where the training losses are these."""
    settings = Settings().override({"early_stop_patience": patience, "device": "cpu", "validation_fraction": 0.0})
    with lightning_module.quiet_lightning():
        trainer = train.make_trainer(settings.training, Path(), validate=False, progress=False)
    trainer.state.fn = TrainerFn.FITTING
    callback = trainer.early_stopping_callback
    assert callback is not None
    for epoch, loss in enumerate(losses, 1):
        trainer.callback_metrics["train_loss"] = torch.tensor(loss)
        callback.on_train_epoch_end(trainer, _kept_module())
        if trainer.should_stop:
            return epoch
    return len(losses)
