"""What decides a training beside the network, in plain NumPy: masked losses, clipping, schedules, early stopping.

Each is written from the reference page and from how Keras documents its own. Nothing here imports the packages under
test.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from conformance.oracle import losses as oracle_losses


@dataclass(frozen=True)
class Predicted:
    """What the losses of a batch read of a prediction.

    Attributes:
        image: (B, 1, N, N) complex object.
        amplitude: (B, C, N, N) √counts.
        intensity: (B, C, N, N) counts.
    """

    image: np.ndarray
    amplitude: np.ndarray
    intensity: np.ndarray


@dataclass(frozen=True)
class LossOfBatch:
    """The loss of a batch, and its gradient by what is predicted.

    Attributes:
        terms: total, likelihood, error of the amplitude, real-space term.
        by: ``Predicted`` of gradients; ∂L/∂Re + i·∂L/∂Im by the object.
    """

    terms: np.ndarray
    by: Predicted


def shares_of_good_pixels(good: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Return the share of every pixel in a mean over the good pixels of every pattern; zero where no pixel is good."""
    every = np.broadcast_to(good, shape)
    return np.asarray(every / max(int(every.sum()), 1))


def loss_of_batch(
    predicted: Predicted,
    measured: np.ndarray,
    shares: np.ndarray,
    weights: Mapping[str, float],
    object_mask: np.ndarray | None = None,
) -> LossOfBatch:
    """Return nll_weight · NLL + mae_weight · MAE + realspace_weight · tv_weight · TV, and the gradient.

    Args:
        predicted: what the network says.
        measured: (B, C, N, N) s_I · X; pixels without a share may hold anything.
        shares: (B, C, N, N) share of each pixel in the means.
        weights: weight name → value.
        object_mask: (N, N), what of the object counts; None for all.
    """
    counted = shares != 0
    measured = np.where(counted, measured, 0)
    tiny = oracle_losses.SMALLEST_INTENSITY
    held = np.maximum(predicted.intensity, tiny)
    nll = float((shares * (predicted.intensity - measured**2 * np.log(held))).sum())
    slope = 1 - np.where(predicted.intensity < tiny, 0, measured**2 / held)
    difference = predicted.amplitude - measured
    mae = float((shares * np.abs(difference)).sum())
    mask = np.ones(predicted.image.shape[-2:]) if object_mask is None else object_mask
    image = np.moveaxis(predicted.image * mask, 1, -1)
    realspace = weights["tv_weight"] * oracle_losses.total_variation(image)
    by_object = np.moveaxis(oracle_losses.total_variation_gradient(image), -1, 1) * mask
    total = weights["nll_weight"] * nll + weights["mae_weight"] * mae + weights["realspace_weight"] * realspace
    return LossOfBatch(
        np.array([total, nll, mae, realspace]),
        Predicted(
            image=weights["realspace_weight"] * weights["tv_weight"] * by_object,
            amplitude=weights["mae_weight"] * shares * np.sign(difference),
            intensity=weights["nll_weight"] * shares * slope,
        ),
    )


def clipped(gradients: Mapping[str, np.ndarray], limit: float | None, algorithm: str) -> dict[str, np.ndarray]:
    """Return gradients clipped as Keras does: by the norm of all together (``norm``), or each element (``value``).

    g ← g · min(1, limit / ‖g‖). None for the limit does not clip.
    """
    if limit is None:
        return dict(gradients)
    if algorithm == "value":
        return {name: np.clip(gradient, -limit, limit) for name, gradient in gradients.items()}
    if algorithm != "norm":
        raise ValueError(f"algorithm = {algorithm!r}; choose norm or value.")
    norm = math.sqrt(sum(float(np.square(gradient).sum()) for gradient in gradients.values()))
    factor = 1.0 if norm <= limit else limit / norm
    return {name: gradient * factor for name, gradient in gradients.items()}


def _less(left: float, right: float) -> bool:
    """Compare as Keras does: in float32."""
    with np.errstate(over="ignore"):
        return bool(np.float32(left) < np.float32(right))


@dataclass(frozen=True)
class Plateau:
    """Settings of the schedule that lowers the rate where a loss stops to improve."""

    factor: float
    patience: int
    threshold: float
    least: float


def plateau_rates(losses: Sequence[float], rate: float, plateau: Plateau) -> list[float]:
    """Return the learning rate of each epoch, by Keras' rule [reference page §5].

    The first epoch runs at ``rate``. An epoch improves where its loss plus the threshold is below the best so far;
    the ``patience``-th epoch in a row that does not lowers the rate of the next.

    Args:
        losses: of the epochs.
        rate: of the first epoch.
        plateau: settings.
    """
    rates, best, bad = [rate], math.inf, 0
    for loss in losses[:-1]:
        if _less(loss + plateau.threshold, best):
            best, bad = loss, 0
        else:
            bad += 1
            if bad >= plateau.patience and rate > plateau.least:
                rate, bad = max(rate * plateau.factor, plateau.least), 0
        rates.append(rate)
    return rates


def epochs_before_stop(losses: Sequence[float], patience: int) -> int:
    """Return how many epochs run before training stops early, by Keras' rule; all of them if it does not.

    Training stops behind the ``patience``-th epoch in a row whose loss is not below the best so far.
    """
    best, bad = math.inf, 0
    for epoch, loss in enumerate(losses, 1):
        if _less(loss, best):
            best, bad = loss, 0
        else:
            bad += 1
            if bad >= patience:
                return epoch
    return len(losses)


def exponential_rates(epochs: int, rate: float, gamma: float) -> list[float]:
    """Return rate · γ^epoch."""
    return [rate * gamma**epoch for epoch in range(epochs)]


def warmup_cosine_rates(epochs: int, rate: float, warmup: int, least_ratio: float) -> list[float]:
    """Return a rate that rises linearly over ``warmup`` epochs and falls along half a cosine to ``least_ratio``.

    During warm-up rate · (epoch + 1) / (warmup + 1); the last epoch runs at rate · least_ratio.
    """
    rates = []
    for epoch in range(epochs):
        if epoch < warmup:
            rates.append(rate * (epoch + 1) / (warmup + 1))
        else:
            done = (epoch - warmup) / (epochs - 1 - warmup) if epochs - 1 > warmup else 0.0
            rates.append(rate * (least_ratio + (1 - least_ratio) * (1 + math.cos(math.pi * done)) / 2))
    return rates
