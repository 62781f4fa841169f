"""Seeded faults of the optimiser, of schedules, and of the end of training."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from conformance.faults import Body, Fault, argument, instead
from ptycho_torch import train
from ptycho_torch.optim import KerasAdam, KerasPlateau
from ptycho_torch.train import PtychoPINN


def _update_with(
    change: Callable[[Tensor, Tensor, int, dict[str, Any]], Tensor],
    *,
    first: Callable[[float], float] = lambda beta: beta,
    second: Callable[[float], float] = lambda beta: beta,
) -> Body:
    """Update a parameter by another rule: (m, v, step, group) → what is subtracted."""

    def update(self: KerasAdam, parameter: Tensor, group: dict[str, Any]) -> None:
        assert parameter.grad is not None
        state = self.state[parameter]
        if not state:
            state["step"] = 0
            state["momentum"] = torch.zeros_like(parameter)
            state["velocity"] = torch.zeros_like(parameter)
        state["step"] += 1
        beta1, beta2 = group["betas"]
        state["momentum"].lerp_(parameter.grad, 1 - first(beta1))
        state["velocity"].lerp_(parameter.grad.square(), 1 - second(beta2))
        parameter.sub_(change(state["momentum"], state["velocity"], state["step"], group))

    return update


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
    largest = group.setdefault("largest", torch.zeros_like(v))
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


def _plateau_with(
    patience: int = 0, threshold: Callable[[KerasPlateau, float], float] | None = None, floor: bool = True
) -> Body:
    def step(self: KerasPlateau, loss: float) -> None:
        margin = self.threshold if threshold is None else threshold(self, loss)
        if loss + margin < self.best:
            self.best, self.wait = loss, 0
            return
        self.wait += 1
        if self.wait >= self.patience + patience:
            for group in self.optimizer.param_groups:
                lowered = group["lr"] * self.factor
                group["lr"] = max(lowered, self.min_lr) if floor else lowered
            self.wait = 0

    return step


def _relative(plateau: KerasPlateau, loss: float) -> float:
    return plateau.threshold * plateau.best if math.isfinite(plateau.best) else 0.0


def _later(original: Body) -> Body:
    return lambda self, epoch: original(self, max(epoch - 1, 0))


def _to_zero(self: Any, training: Any) -> None:
    self.warmup, self.last, self.least = training.lr_warmup_epochs, training.max_epochs, 0.0


def _stopping_with(**changed: Any) -> Callable[[Any], Any]:
    def build(original: Any) -> Any:
        def wrong(monitor: str, *, patience: int, **named: Any) -> Any:
            return original(monitor, patience=patience + changed.get("patience", 0), **{
                **named, **{name: value for name, value in changed.items() if name != "patience"}})  # fmt: skip

        return wrong

    return build


def _optimiser(
    name: str, stage: str, owner: Any, attribute: str, build: Callable[[Any], Any], cause: str | None
) -> Fault:
    return Fault(name, "optimiser", f"optimiser.{stage}", owner, attribute, build, cause)


_UPDATE = (KerasAdam, "_update")

OPTIMISER: tuple[Fault, ...] = (
    _optimiser("ε as PyTorch has it", "updates", *_UPDATE, instead(_update_with(_torch_form)), "Adam ε form"),
    _optimiser(
        "no bias correction", "updates", *_UPDATE, instead(_update_with(_uncorrected)), "missing bias correction"
    ),
    _optimiser("ε inside the root", "updates", *_UPDATE, instead(_update_with(_inside_the_root)), "ε inside the root"),
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
        instead(_update_with(_right, first=lambda beta: 1 - beta)),
        "β₁ and 1 − β₁",
    ),
    _optimiser(
        "second moment decays as the first",
        "updates",
        *_UPDATE,
        instead(_update_with(_right, second=lambda beta: 0.9)),
        "decay of the first moment",
    ),
    _optimiser(
        "learning rate twice",
        "updates",
        *_UPDATE,
        argument(2, lambda group: {**group, "lr": 2 * group["lr"]}),
        "factor 2",
    ),
    _optimiser("AMSGrad", "updates", *_UPDATE, instead(_update_with(_largest_velocity)), None),
    _optimiser("clipping as PyTorch does it", "clipping", train, "clip_gradients", instead(_clip_as_torch), "1e-6"),
    _optimiser("every tensor clipped alone", "clipping", train, "clip_gradients", _clip_alone, "every tensor"),
    _optimiser(
        "clipping by value for norm",
        "clipping",
        train,
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
        instead(_plateau_with(patience=1)),
        "patience one epoch longer",
    ),
    _optimiser(
        "relative threshold",
        "plateau",
        KerasPlateau,
        "step",
        instead(_plateau_with(threshold=_relative)),
        "relative threshold",
    ),
    _optimiser(
        "threshold ignored",
        "plateau",
        KerasPlateau,
        "step",
        instead(_plateau_with(threshold=lambda *_: 0.0)),
        "threshold ignored",
    ),
    _optimiser(
        "lowest rate ignored",
        "plateau",
        KerasPlateau,
        "step",
        instead(_plateau_with(floor=False)),
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
    _optimiser("warm-up one epoch late", "schedules", train._WarmupCosine, "__call__", _later, None),
    _optimiser(
        "cosine falls to zero", "schedules", train._WarmupCosine, "__init__", instead(_to_zero), "falls to zero"
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
)
"""Faults of all that makes weights out of gradients."""
