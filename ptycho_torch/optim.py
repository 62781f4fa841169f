"""Adam, clipping and the plateau schedule in the forms that Keras uses."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor


class KerasAdam(torch.optim.Optimizer):
    """Adam whose ε stands beside the uncorrected second moment, as in Keras.

    w ← w − lr·√(1−β₂ᵗ)/(1−β₁ᵗ) · m/(√v + ε)    [docs/reference_model.md §5]

    ``torch.optim.Adam`` adds ε after the bias correction, so an equal ε is not the same optimiser: at the first
    step ε = 1e-7 here acts like 3.2e-6 there.

    Args:
        params: parameters or parameter groups.
        lr: learning rate.
        betas: decay of the first and second moment.
        eps: ε.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-7,
    ) -> None:
        if not (lr >= 0 and eps >= 0 and all(0 <= beta < 1 for beta in betas)):
            raise ValueError(f"lr = {lr}, betas = {betas}, eps = {eps}; expected lr, eps ≥ 0 and 0 ≤ β < 1.")
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps})

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update every parameter that has a gradient; return what ``closure`` returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)
        return loss

    def _update(self, parameter: Tensor, group: dict[str, Any]) -> None:
        assert parameter.grad is not None
        state = self.state[parameter]
        if not state:
            state["step"] = 0
            state["momentum"] = torch.zeros_like(parameter)
            state["velocity"] = torch.zeros_like(parameter)
        state["step"] += 1
        beta1, beta2 = group["betas"]
        state["momentum"].lerp_(parameter.grad, 1 - beta1)
        state["velocity"].lerp_(parameter.grad.square(), 1 - beta2)
        rate = group["lr"] * math.sqrt(1 - beta2 ** state["step"]) / (1 - beta1 ** state["step"])
        parameter.addcdiv_(state["momentum"], state["velocity"].sqrt().add_(group["eps"]), value=-rate)


@torch.no_grad()
def clip_gradients(parameters: Iterable[Tensor], limit: float, algorithm: str = "norm") -> None:
    """Clip the gradients of all parameters in place, as Keras does.

    ``norm``: g ← g · min(1, limit / ‖g‖), ‖g‖ over all parameters together. ``value``: every element into
    [−limit, limit]. ``torch.nn.utils.clip_grad_norm_`` divides by ‖g‖ + 1e-6, which is another gradient where the norm
    is small. A norm that is no finite number makes every gradient NaN, so that it cannot pass unseen.

    Args:
        parameters: those without a gradient are passed over.
        limit: above 0, in units of the loss a unit of the parameters.
        algorithm: ``norm`` or ``value``.

    Raises:
        ValueError: another algorithm.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if algorithm == "value":
        for gradient in gradients:
            gradient.clamp_(-limit, limit)
    elif algorithm == "norm":
        if gradients:
            norm = torch.stack([torch.linalg.vector_norm(gradient) for gradient in gradients]).norm()
            factor = limit * torch.minimum(1 / norm, torch.full_like(norm, 1 / limit)) + (norm - norm)
            for gradient in gradients:
                gradient.mul_(factor)
    else:
        raise ValueError(f"algorithm = {algorithm!r}; choose norm or value.")


class AdaptiveClip:
    """Clip the gradients of a step whose norm stands out among those of the latest steps.

    g ← g · min(1, limit · median(‖g‖ of the latest steps) / ‖g‖), ‖g‖ over all parameters together, before clipping

    The threshold follows the gradients' own size, so it stops a bad batch and leaves the others as they are. (AutoClip,
    Seetharaman et al. 2020, takes a quantile in the same way.) The first ``LEAST_STEPS`` steps are not clipped. A norm
    that is not finite makes every gradient NaN, so that it cannot pass unseen.

    Args:
        limit: above 1, in units of the median norm.

    >>> clip, weight = AdaptiveClip(2.0), torch.nn.Parameter(torch.zeros(1))
    >>> for size in [1.0] * AdaptiveClip.LEAST_STEPS + [100.0]:
    ...     weight.grad = torch.tensor([size])
    ...     clip([weight])
    >>> weight.grad
    tensor([2.])
    """

    LEAST_STEPS = 10
    """Steps before the first that may be clipped; the median of fewer norms is that of chance."""

    STEPS = 100
    """Latest steps that the median is taken of."""

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.norms = torch.empty(0)

    @torch.no_grad()
    def __call__(self, parameters: Iterable[Tensor]) -> None:
        """Clip the gradients in place, and take note of their norm; nothing waits for the device."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if not gradients:
            return
        norm = torch.stack([torch.linalg.vector_norm(gradient) for gradient in gradients]).norm()
        known = self.norms.to(norm)
        if len(known) >= self.LEAST_STEPS:
            factor = torch.clamp(self.limit * known.median() / norm, max=1.0) + (norm - norm)
            for gradient in gradients:
                gradient.mul_(factor)
        self.norms = torch.cat([known, norm[None]])[-self.STEPS :]

    def state_dict(self) -> dict[str, Tensor]:
        """Return what a checkpoint keeps."""
        return {"norms": self.norms.cpu()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take up what ``state_dict`` returned."""
        self.norms = state["norms"]


class KerasPlateau:
    """Lowers the learning rate where a loss stops to improve, decision by decision as Keras does.

    A loss improves where loss + threshold < best, compared in float32. After ``patience`` epochs without improvement,
    the last of them included, the rate is multiplied by ``factor``, down to ``min_lr``. ``torch``'s schedule waits one
    epoch longer and compares in float64. Keras takes the first loss for the best whatever it is, so that a NaN there
    is never improved on; here what is not finite is never the best.

    Args:
        optimizer: whose groups get the new rate.
        factor: between 0 and 1.
        patience: epochs; 0 and 1 are the same.
        threshold: absolute improvement that counts, in units of the loss.
        min_lr: the lowest rate.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, factor: float, patience: int, threshold: float, min_lr: float
    ) -> None:
        self.optimizer = optimizer
        self.factor, self.patience, self.threshold, self.min_lr = factor, patience, threshold, min_lr
        self.best, self.wait = math.inf, 0

    def step(self, loss: float) -> None:
        """Take note of an epoch's loss, and set the next epoch's rate."""
        with np.errstate(over="ignore"):
            improves = np.float32(loss + self.threshold) < np.float32(self.best)
        if improves:
            self.best, self.wait = loss, 0
            return
        self.wait += 1
        groups = [group for group in self.optimizer.param_groups if group["lr"] > self.min_lr]
        if self.wait < self.patience or not groups:
            return
        for group in groups:
            group["lr"] = max(group["lr"] * self.factor, self.min_lr)
        self.wait = 0

    def state_dict(self) -> dict[str, float]:
        """Return what a checkpoint keeps."""
        return {"best": self.best, "wait": self.wait}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Take up what ``state_dict`` returned."""
        self.best, self.wait = float(state["best"]), int(state["wait"])
