"""Every optimiser that a run may choose, one update at a time in plain NumPy.

Each is written from what its authors published. Nothing here imports the packages under test.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from conformance.oracle.network import Moments, keras_adam

Weights = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Rule:
    """How gradients become weights.

    Attributes:
        name: ``keras_adam``, ``adam`` or ``adamw``.
        rate: lr, before the first epoch.
        beta_1: decay of the first moment.
        beta_2: decay of the second moment.
        epsilon: ε; ``keras_adam`` adds it before the bias correction, the others behind it.
        decay: λ of ``adamw``.
    """

    name: str
    rate: float = 1e-3
    beta_1: float = 0.9
    beta_2: float = 0.999
    epsilon: float = 1e-7
    decay: float = 0.0


def updated(
    rule: Rule, weights: Weights, gradients: Weights, moments: Moments, step: int, rate: float | None = None
) -> tuple[dict[str, np.ndarray], Moments]:
    """Return weights and moments after one update.

    ``adam``: w ← w − lr · m̂ / (√v̂ + ε), m̂ = m / (1 − β₁ᵗ), v̂ = v / (1 − β₂ᵗ) (Kingma & Ba 2015, algorithm 1).
    ``adamw``: the same from w · (1 − lr · λ) (Loshchilov & Hutter 2019, algorithm 2). ``keras_adam``: with ε beside √v
    and both corrections in the rate (reference page §5).

    Args:
        rule: which and with what.
        weights: name → value.
        gradients: name → gradient.
        moments: those after the update before; empty at the first.
        step: t, 1 at the first update.
        rate: lr of this update; None for that of the rule.

    Raises:
        ValueError: another name.
    """
    rate = rule.rate if rate is None else rate
    if rule.name == "keras_adam":
        return keras_adam(weights, gradients, moments, step, rate, rule.beta_1, rule.beta_2, rule.epsilon)
    if rule.name not in ("adam", "adamw"):
        raise ValueError(f"no optimiser is called {rule.name!r}.")
    after, found = {}, {}
    for name, weight in weights.items():
        gradient = gradients[name]
        first, second = moments.get(name, (np.zeros_like(gradient), np.zeros_like(gradient)))
        first = rule.beta_1 * first + (1 - rule.beta_1) * gradient
        second = rule.beta_2 * second + (1 - rule.beta_2) * gradient**2
        kept = weight * (1 - rate * rule.decay) if rule.name == "adamw" else weight
        root = np.sqrt(second) / math.sqrt(1 - rule.beta_2**step)
        after[name] = np.asarray(kept - rate * first / (1 - rule.beta_1**step) / (root + rule.epsilon))
        found[name] = first, second
    return after, found
