"""Curves of losses, drawn to be hard on whoever decides by them: plateaus, ties, tiny steps, numbers that are none."""

from __future__ import annotations

import numpy as np

Curve = tuple[float, ...]
"""The loss of each epoch, every one a float32 number: Keras holds losses so."""

_STEPS = (0.0, 1e-7, 9.9e-5, 1e-4, 1.01e-4, 1e-3, 0.3)
"""Steps from one epoch to the next, in units of the loss: ties, and both sides of the usual threshold of 1e-4."""

_SPECIAL = (np.nan, np.inf, -np.inf)


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
