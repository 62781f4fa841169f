"""Curves of losses, drawn to be hard on whoever decides by them: plateaus, ties, tiny steps, numbers that are none."""

from __future__ import annotations

import numpy as np

Curve = tuple[float, ...]
"""The loss of each epoch; a drawn one is a float32 number: Keras holds losses so."""

_STEPS = (0.0, 1e-7, 9.9e-5, 1e-4, 1.01e-4, 1e-3, 0.3)
"""Steps from one epoch to the next, in units of the loss: ties, and both sides of the usual threshold of 1e-4."""

_SPECIAL = (np.nan, np.inf, -np.inf)

FIXED: tuple[Curve, ...] = (
    (8.0, 7.0, 7.2, 7.1, 6.9, 6.95, 6.96, 6.97, 6.98, 6.91, 6.92, 6.93, *([6.8] * 7), 5.0),
    tuple(5 - 1.5e-4 * epoch for epoch in range(10)),
    tuple(1 - 1e-5 * epoch for epoch in range(8)),
    (1.0, *([1 - 1e-4 - 1e-8] * 5), 0.9, *([0.9 - 1e-4 - 1e-8] * 5)),
    (3.0, 2.0, 2.5, 2.4, 2.3, 2.2, 1.0),
    (2.0, 2.0, 2.0, 2.0),
    (5.0, 4.0, 3.0, 2.0),
)
"""Plateaus and ties, small steps on both sides of an absolute threshold, improvements that float32 does not see."""


def draw_curves(count: int, seed: int, epochs: int = 24) -> list[Curve]:
    """Draw curves of up to ``epochs`` epochs; the same seed gives the same curves.

    A loss goes up or down by one of a few steps, returns to one that was there, or is not finite.
    """
    rng = np.random.default_rng(seed)
    return [_curve(rng, int(rng.integers(1, epochs + 1))) for _ in range(count)]


def _curve(rng: np.random.Generator, epochs: int) -> Curve:
    scale = 10.0 ** rng.integers(-2, 5)
    specials = rng.random() < 0.3
    losses = [np.float32(scale)]
    while len(losses) < epochs:
        turn = rng.random()
        if specials and turn < 0.1:
            losses.append(np.float32(rng.choice(_SPECIAL)))
        elif turn < 0.3:
            losses.append(losses[int(rng.integers(len(losses)))])
        else:
            last = next(loss for loss in reversed(losses) if np.isfinite(loss))
            sign = 1 if rng.random() < 0.4 else -1
            losses.append(np.float32(last + sign * rng.choice(_STEPS) * rng.choice([1.0, scale])))
    if specials and rng.random() < 0.2:
        losses[0] = np.float32(rng.choice(_SPECIAL))
    return tuple(float(loss) for loss in losses)
