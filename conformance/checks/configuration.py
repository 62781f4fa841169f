"""What becomes of settings: defaults, derived numbers, what is used, and the terms of the loss."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from conformance.judge.agreement import Compared
from conformance.oracle.operations import disk_mask
from ptycho_torch.config_params import Settings, TrainingSettings
from ptycho_torch.errors import ConfigError


def defaults() -> Compared:
    """Every default is what ``specs/configuration.yaml`` says."""
    from ptycho_torch.contracts.config_schema import load_schema

    settings = Settings().as_dict()
    schema = load_schema().settings
    expected = {name: np.array(repr(_plain(setting.default))) for name, setting in schema.items()}
    given = {
        name: np.array(repr(_plain(settings[setting.owner][name]))) for name, setting in schema.items()
        if name in settings[setting.owner]
    }  # fmt: skip
    return Compared(expected, given)


def _plain(value: Any) -> Any:
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


UNUSUAL: Mapping[str, Any] = {
    "amp_activation": "softplus", "probe_scale": 3.0, "n_filters_scale": 2, "object_big": False, "probe_big": False,
    "probe_mask": True, "gaussian_smoothing_sigma": 0.6, "offset": 6, "max_position_jitter": 12, "gridsize": 3,
    "nphotons": 4096.0, "learning_rate": 3e-4, "adam_beta1": 0.8, "adam_beta2": 0.95, "adam_eps": 1e-5,
    "scheduler": "ReduceLROnPlateau", "plateau_factor": 0.7, "plateau_min_lr": 2e-5,
    "plateau_threshold": 3e-3, "gradient_clip_val": 0.3, "gradient_clip_algorithm": "value", "max_epochs": 7,
    "early_stop_patience": 6, "accumulate_grad_batches": 3, "nll_weight": 0.4, "mae_weight": 0.7,
    "realspace_weight": 0.2, "tv_weight": 0.1, "device": "cpu", "validation_fraction": 0.0,
}  # fmt: skip
"""Settings of which none is a default, so that one that is ignored shows."""


def used() -> Compared:
    """What was set is what the network, the optimiser and the trainer have."""
    import torch

    from ptycho_torch.train import make_trainer
    from ptycho_torch.training.lightning_module import PtychoPINN, quiet_lightning

    settings = Settings().override(UNUSUAL)
    probe = torch.ones(64, 64, dtype=torch.complex64)
    data = {"gridsize": settings.data.gridsize, "nphotons": UNUSUAL["nphotons"]}
    module = PtychoPINN(settings, settings.model.network(N=64, **data, offset=1, max_position_jitter=1), probe)
    optimiser = module.configure_optimizers()
    with quiet_lightning():
        trainer = make_trainer(settings.training, Path(), validate=False, progress=False)
    group, network, schedule, weights = optimiser.param_groups[0], module.network, module._schedule, module._weights
    first = network.get_parameter("encoder.0.conv1.weight")
    found: dict[str, Any] = {
        "amp_activation": network.decoder_amp.activation.kind,
        "probe_scale": float(1 / np.abs(network.probe.detach().numpy()[0] * disk_mask(64)).mean()),
        "n_filters_scale": first.shape[0] // 32,
        "object_big": network.merged.object_big,
        "probe_big": network.decoder_amp.has_outer_path,
        "probe_mask": network.exit_wave.disk is not None,
        "gaussian_smoothing_sigma": network.exit_wave.smoothing_sigma,
        "offset": network.settings.offset,
        "max_position_jitter": network.settings.max_position_jitter,
        "gridsize": int(first.shape[1] ** 0.5),
        "nphotons": round(float((network.log_scale.exp() * 32) ** 2), 2),
        "learning_rate": group["lr"],
        "adam_beta1": group["betas"][0],
        "adam_beta2": group["betas"][1],
        "adam_eps": group["eps"],
        "plateau_factor": schedule.factor,
        "plateau_min_lr": schedule.min_lr,
        "plateau_threshold": schedule.threshold,
        "gradient_clip_val": trainer.gradient_clip_val,
        "gradient_clip_algorithm": str(getattr(trainer.gradient_clip_algorithm, "value", "norm")),
        "max_epochs": trainer.max_epochs,
        "accumulate_grad_batches": trainer.accumulate_grad_batches,
        "nll_weight": weights.nll_weight,
        "mae_weight": weights.mae_weight,
        "realspace_weight": weights.realspace_weight,
        "tv_weight": weights.tv_weight,
    }
    expected = {name: _rounded(UNUSUAL[name]) for name in found}
    given = {name: _rounded(value) for name, value in found.items()}
    return Compared(expected, given)


def _rounded(value: Any) -> np.ndarray:
    return np.array(
        repr(float(f"{value:.6g}") if isinstance(value, int | float) and not isinstance(value, bool) else value)
    )


def intensity_scale_of_counts() -> Compared:
    """s_I = √nphotons / (N/2) [reference page §5]."""
    expected, given = {}, {}
    for N in (64, 128, 256):
        for nphotons in (1e5, 1e9):
            name = f"N = {N}, nphotons = {nphotons:g}"
            network = Settings().model.network(N=N, gridsize=1, nphotons=nphotons, offset=0, max_position_jitter=0)
            expected[name] = np.array(np.sqrt(nphotons) / (N / 2))
            given[name] = np.array(network.intensity_scale)
    return Compared(expected, given, 1e-14)


LOSSES = ("Poisson", "MAE")
GIVEN: tuple[float | None, ...] = (None, 0.0, 0.3)
REFUSED = (math.nan,) * 5
"""In place of the weights of likelihood, amplitude, object, total variation and the object's amplitude."""

Weighing = Callable[[str, float | None, float | None], tuple[float, ...]]
"""(loss, given weight of the likelihood, of the amplitude) → weights that count."""


def _of_each(weighing: Weighing) -> dict[str, np.ndarray]:
    """Return the weights of each combination of a loss and two weights."""
    return {
        f"{loss}, {nll}, {mae}": np.array(weighing(loss, nll, None if mae is None else 2 * mae))
        for loss, nll, mae in itertools.product(LOSSES, GIVEN, GIVEN)
    }


def loss_weights() -> Compared:
    """Name a loss, with weights of its terms and without: a weight that is given wins, one that is not follows."""

    def right(loss: str, nll: float | None, mae: float | None) -> tuple[float, ...]:
        return float(loss == "Poisson") if nll is None else nll, float(loss == "MAE") if mae is None else mae

    def with_object(loss: str, nll: float | None, mae: float | None) -> tuple[float, ...]:
        weights = right(loss, nll, mae)
        # Without either no pattern would count.
        return (*weights, 0.7, 0.2, 0.0) if any(weights) else REFUSED

    def found(loss: str, nll: float | None, mae: float | None) -> tuple[float, ...]:
        chosen = TrainingSettings(nll_weight=nll, mae_weight=mae, realspace_weight=0.7, tv_weight=0.2)
        try:
            weights = chosen.loss_weights(loss)  # type: ignore[arg-type]
        except ConfigError:
            return REFUSED
        of_object = (weights.realspace_weight, weights.tv_weight, weights.realspace_mae_weight)
        return (weights.nll_weight, weights.mae_weight, *of_object)

    return Compared(_of_each(with_object), _of_each(found))
