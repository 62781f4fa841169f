"""Adam in the form that Keras uses."""

import math
from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor


class KerasAdam(torch.optim.Optimizer):
    """Adam whose ε stands beside the uncorrected second moment, as in Keras.

    w ← w − lr·√(1−β₂ᵗ)/(1−β₁ᵗ) · m/(√v + ε)    [reference page §5]

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
