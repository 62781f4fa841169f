"""Seeded faults of the optimiser, of schedules, and of the end of training."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from conformance.faults_runs import RUNS
from conformance.seeding import Body, Fault, argument, instead, of_area, with_named
from ptycho_torch import lightning_module, losses, train
from ptycho_torch.checkpoint import KEY, Checkpoint
from ptycho_torch.optim import KerasAdam, KerasPlateau
from ptycho_torch.train import PtychoPINN


def _update_with(
    change: Callable[[Tensor, Tensor, int, dict[str, Any]], Tensor],
    *,
    first: Callable[[float], float] = lambda beta: beta,
    second: Callable[[float], float] = lambda beta: beta,
) -> Callable[[Body], Body]:
    """Update a parameter by another rule: (m, v, step, group) → what is subtracted."""

    def build(original: Body) -> Body:
        def update(self: KerasAdam, parameter: Tensor, group: dict[str, Any]) -> None:
            beta1, beta2 = group["betas"]
            # At a rate of 0 the moments move alone.
            original(self, parameter, {**group, "lr": 0.0, "betas": (first(beta1), second(beta2))})
            state = self.state[parameter]
            parameter.sub_(change(state["momentum"], state["velocity"], state["step"], group))

        return update

    return build


def _rate(step: int, group: dict[str, Any]) -> float:
    beta1, beta2 = group["betas"]
    return float(group["lr"] * math.sqrt(1 - beta2**step) / (1 - beta1**step))


def _right(m: Tensor, v: Tensor, step: int, group: dict[str, Any]) -> Tensor:
    change: Tensor = _rate(step, group) * m / (v.sqrt() + group["eps"])
    return change


def _torch_form(m: Tensor, v: Tensor, step: int, group: dict[str, Any]) -> Tensor:
    beta1, beta2 = group["betas"]
    change: Tensor = group["lr"] / (1 - beta1**step) * m / ((v / (1 - beta2**step)).sqrt() + group["eps"])
    return change


def _uncorrected(m: Tensor, v: Tensor, step: int, group: dict[str, Any]) -> Tensor:
    change: Tensor = group["lr"] * m / (v.sqrt() + group["eps"])
    return change


def _inside_the_root(m: Tensor, v: Tensor, step: int, group: dict[str, Any]) -> Tensor:
    change: Tensor = _rate(step, group) * m / (v + group["eps"]).sqrt()
    return change


def _largest_velocity(m: Tensor, v: Tensor, step: int, group: dict[str, Any]) -> Tensor:
    largest = group.setdefault("largest", {}).setdefault(id(v), torch.zeros_like(v))
    torch.maximum(largest, v, out=largest)
    change: Tensor = _rate(step, group) * m / (largest.sqrt() + group["eps"])
    return change


def _clip_as_torch(parameters: Iterable[Tensor], limit: float, algorithm: str = "norm") -> None:
    if algorithm == "norm":
        torch.nn.utils.clip_grad_norm_(list(parameters), limit)
    else:
        torch.nn.utils.clip_grad_value_(list(parameters), limit)


def _clip_alone(original: Body) -> Body:
    def wrong(parameters: Iterable[Tensor], limit: float, algorithm: str = "norm") -> None:
        for parameter in parameters:
            original([parameter], limit, algorithm)

    return wrong


def _plateau_as_if(**seen: Callable[[KerasPlateau], float]) -> Callable[[Body], Body]:
    """Let the schedule see other settings than it has, while it decides."""

    def build(original: Body) -> Body:
        def step(self: KerasPlateau, loss: float) -> None:
            own = {name: getattr(self, name) for name in seen}
            vars(self).update({name: change(self) for name, change in seen.items()})
            original(self, loss)
            vars(self).update(own)

        return step

    return build


def _relative(plateau: KerasPlateau) -> float:
    return plateau.threshold * plateau.best if math.isfinite(plateau.best) else 0.0


def _later(original: Body) -> Body:
    return lambda self, epoch: original(self, max(epoch - 1, 0))


def _whole_rate(original: Body) -> Body:
    """Let the last epoch of the warm-up have the whole rate."""
    return lambda self, epoch: (epoch + 1) / self.warmup if epoch < self.warmup else original(self, epoch)


def _in_float64(self: KerasPlateau, loss: float) -> None:
    """Decide as Keras does, but for the precision of the comparison."""
    better = loss + self.threshold < self.best
    self.best, self.wait = (loss, 0) if better else (self.best, self.wait + 1)
    for group in self.optimizer.param_groups:
        if self.wait >= self.patience and group["lr"] > self.min_lr:
            group["lr"], self.wait = max(group["lr"] * self.factor, self.min_lr), 0


def _to_zero(self: Any, training: Any, epochs: float) -> None:
    self.warmup, self.last, self.least = training.lr_warmup_epochs, epochs, 0.0


def _stopping_with(patience: int = 0, **changed: Any) -> Callable[[Any], Any]:
    return lambda original: (
        lambda monitor, **named: original(monitor, **{**named, **changed, "patience": named["patience"] + patience})
    )


def _counted_once(values: Tensor, good_pixels: Tensor | None) -> Tensor:
    if good_pixels is None:
        return values.mean()
    return torch.where(good_pixels, values, 0).sum() / good_pixels.sum().clamp_min(1)


def _sums_kept(original: Body) -> Body:
    """Take the mean of an epoch, and go on with its sums in the next."""

    def wrong(self: PtychoPINN, part: str) -> dict[str, float]:
        sums = dict(self._sums)
        means: dict[str, float] = original(self, part)
        self._sums = sums
        return means

    return wrong


def _wait_forgotten(self: KerasPlateau, state: Mapping[str, float]) -> None:
    self.best = float(state["best"])


def _loaded_without(name: str) -> Callable[[Body], Body]:
    """Let a checkpoint lack one of the parts that the module has put there."""

    def build(original: Body) -> Body:
        def wrong(self: PtychoPINN, content: Mapping[str, Any]) -> None:
            own = {key: value for key, value in content[KEY].items() if key != name}
            original(self, {**content, KEY: own})

        return wrong

    return build


def _starting_with(*theirs: str) -> Callable[[Body], Body]:
    """Let a new run start with more of a checkpoint than its weights."""

    def build(original: Body) -> Body:
        def wrong(module: PtychoPINN, content: Checkpoint) -> None:
            original(module, content)
            module.network.load_state_dict({name: content.weights[name] for name in theirs}, strict=False)

        return wrong

    return build


_optimiser = of_area("optimiser")


_UPDATE = (KerasAdam, "_update")

OPTIMISER: tuple[Fault, ...] = (
    _optimiser(
        "mask of bad pixels ignored in training",
        "masked_loss",
        lightning_module,
        "total_loss",
        with_named(good_pixels=None),
        "mask of bad pixels ignored",
    ),
    _optimiser(
        "good pixels counted once for all channels",
        "masked_loss",
        losses,
        "_masked_mean",
        instead(_counted_once),
        "good pixels counted once",
    ),
    _optimiser(
        "object outside its central square in the loss",
        "masked_loss",
        lightning_module,
        "total_loss",
        with_named(probe_big=True),
        "probe_big ignored",
    ),
    _optimiser(
        "probes of the scans ignored",
        "masked_loss",
        PtychoPINN,
        "_predict",
        argument(3, lambda probe: None),
        "the network's probe for those of the scans",
    ),
    _optimiser("ε as PyTorch has it", "updates", *_UPDATE, _update_with(_torch_form), "Adam ε form"),
    _optimiser("no bias correction", "updates", *_UPDATE, _update_with(_uncorrected), "missing bias correction"),
    _optimiser("ε inside the root", "updates", *_UPDATE, _update_with(_inside_the_root), "ε inside the root"),
    _optimiser(
        "ε forgotten",
        "updates",
        KerasAdam,
        "_update",
        argument(2, lambda group: {**group, "eps": 1e-30}),
        "ε missing",
    ),
    _optimiser(
        "moments decay as 1 − β₁",
        "updates",
        *_UPDATE,
        _update_with(_right, first=lambda beta: 1 - beta),
        "β₁ and 1 − β₁",
    ),
    _optimiser(
        "second moment decays as the first",
        "updates",
        *_UPDATE,
        _update_with(_right, second=lambda beta: 0.9),
        "decay of the first moment",
    ),
    _optimiser(
        "learning rate twice",
        "updates",
        *_UPDATE,
        argument(2, lambda group: {**group, "lr": 2 * group["lr"]}),
        "factor 2",
    ),
    _optimiser("AMSGrad", "updates", *_UPDATE, _update_with(_largest_velocity), None),
    _optimiser(
        "clipping as PyTorch does it", "clipping", lightning_module, "clip_gradients", instead(_clip_as_torch), "1e-6"
    ),
    _optimiser(
        "every tensor clipped alone", "clipping", lightning_module, "clip_gradients", _clip_alone, "every tensor"
    ),
    _optimiser(
        "clipping by value for norm",
        "clipping",
        lightning_module,
        "clip_gradients",
        lambda original: lambda parameters, limit, algorithm="norm": original(parameters, limit, "value"),
        "other algorithm",
    ),
    _optimiser(
        "clipping never called",
        "clipping",
        PtychoPINN,
        "configure_gradient_clipping",
        instead(lambda self, *_, **__: None),
        "not clipped",
    ),
    _optimiser(
        "patience as PyTorch counts it",
        "plateau",
        KerasPlateau,
        "step",
        _plateau_as_if(patience=lambda plateau: plateau.patience + 1),
        "patience one epoch longer",
    ),
    _optimiser(
        "relative threshold",
        "plateau",
        KerasPlateau,
        "step",
        _plateau_as_if(threshold=_relative),
        "relative threshold",
    ),
    _optimiser(
        "threshold ignored",
        "plateau",
        KerasPlateau,
        "step",
        _plateau_as_if(threshold=lambda _: 0.0),
        "threshold ignored",
    ),
    _optimiser(
        "lowest rate ignored",
        "plateau",
        KerasPlateau,
        "step",
        _plateau_as_if(min_lr=lambda _: 0.0),
        "lowest rate ignored",
    ),
    _optimiser(
        "schedule never stepped",
        "plateau",
        PtychoPINN,
        "on_train_epoch_end",
        instead(lambda self: None),
        "rate never lowered",
    ),
    _optimiser("warm-up one epoch late", "schedules", lightning_module._WarmupCosine, "__call__", _later, None),
    _optimiser(
        "warm-up to the whole rate",
        "schedules",
        lightning_module._WarmupCosine,
        "__call__",
        _whole_rate,
        "warm-up ends at the whole rate",
    ),
    _optimiser(
        "plateau compared in float64", "plateau", KerasPlateau, "step", instead(_in_float64), "compared in float64"
    ),
    _optimiser(
        "amplitude weighted as the likelihood",
        "masked_loss",
        lightning_module,
        "total_loss",
        argument(4, lambda weights: dataclasses.replace(weights, mae_weight=weights.nll_weight)),
        "amplitude weighted as the likelihood",
    ),
    _optimiser(
        "cosine falls to zero",
        "schedules",
        lightning_module._WarmupCosine,
        "__init__",
        instead(_to_zero),
        "falls to zero",
    ),
    _optimiser(
        "stopped one epoch late",
        "stopping",
        train,
        "EarlyStopping",
        _stopping_with(patience=1),
        "patience one epoch longer",
    ),
    _optimiser(
        "small improvements do not count",
        "stopping",
        train,
        "EarlyStopping",
        _stopping_with(min_delta=1e-2),
        "small improvements",
    ),
    _optimiser(
        "mean over batches for mean over samples",
        "epoch_loss",
        PtychoPINN,
        "_add",
        argument(3, lambda samples: 1),
        "mean over batches",
    ),
    _optimiser("sums of an epoch kept", "epoch_loss", PtychoPINN, "_mean", _sums_kept, "mean over all epochs so far"),
    _optimiser(
        "validation that was interrupted counts",
        "epoch_loss",
        PtychoPINN,
        "on_validation_epoch_start",
        instead(lambda self: None),
        "what an interrupted validation left",
    ),
    _optimiser(
        "epochs without improvement not restored",
        "resumed",
        KerasPlateau,
        "load_state_dict",
        instead(_wait_forgotten),
        "epochs without improvement (wait) forgotten",
    ),
    _optimiser(
        "schedule not restored",
        "resumed",
        PtychoPINN,
        "on_load_checkpoint",
        _loaded_without("schedule"),
        "state of the schedule forgotten",
    ),
    _optimiser(
        "sums of half an epoch not restored",
        "resumed",
        PtychoPINN,
        "on_load_checkpoint",
        _loaded_without("sums"),
        "batches before the interruption forgotten",
    ),
    _optimiser(
        "fine-tuning keeps probe and scale of the checkpoint",
        "start_from",
        train,
        "_start_from",
        _starting_with("probe_parts", "log_scale"),
        "probe and scale of the checkpoint kept",
    ),
    _optimiser(
        "fine-tuning keeps the scale of the checkpoint",
        "start_from",
        train,
        "_start_from",
        _starting_with("log_scale"),
        "scale of the checkpoint kept",
    ),
    _optimiser(
        "nothing of a checkpoint loaded",
        "start_from",
        lightning_module,
        "load_weights",
        instead(lambda network, content, weights: None),
        "nothing of the checkpoint loaded",
    ),
    _optimiser(
        "fine-tuning takes no weights",
        "start_from",
        train,
        "_start_from",
        instead(lambda module, content: None),
        "weights of the checkpoint not taken",
    ),
    *RUNS,
)
"""Faults of all that makes weights out of gradients."""
