"""Single operations where drawn cases seldom go: offsets at, and next to, whole pixels, and beyond the image."""

from __future__ import annotations

import numpy as np

from conformance import oracle_operations as oracle
from conformance.hypotheses import Hypothesis
from conformance.step import FLOAT64, Outcome, Step, StepBench

_EDGES = (0.0, 1.0, -1.0, 3.0, 0.5, -0.5, 1e-9, -1e-9, 0.9995, -0.9995, 2.0005, -2.0005, 7.25, -11.75, 20.0, -20.0)
"""Offsets in pixels of a 12 × 14 image: whole, next to whole, and outside."""


def _translate(_: StepBench) -> Outcome:
    """Shift images by every pair of hard offsets."""
    import torch

    from ptycho_torch import helper

    pairs = np.array([(x, y) for x in _EDGES for y in _EDGES])
    rng = np.random.default_rng(0)
    images = rng.standard_normal((len(pairs), 12, 14)) + 1j * rng.standard_normal((len(pairs), 12, 14))
    found = helper.translate(torch.from_numpy(images), torch.from_numpy(pairs)).numpy()

    def with_offsets(name: str, offsets_px: np.ndarray) -> Hypothesis:
        return Hypothesis(name, {"translated": oracle.translate(images, offsets_px)})

    mistakes = [
        with_offsets("sign of offsets", -pairs),
        with_offsets("swapped x/y", pairs[:, ::-1]),
        with_offsets("offsets rounded to whole pixels", np.round(pairs)),
        with_offsets("offsets cut to whole pixels", np.trunc(pairs)),
        with_offsets("offsets rounded down to whole pixels", np.floor(pairs)),
        with_offsets("one-pixel shift in x", pairs + np.array([1, 0])),
        with_offsets("one-pixel shift in x", pairs - np.array([1, 0])),
        with_offsets("one-pixel shift in y", pairs + np.array([0, 1])),
        with_offsets("one-pixel shift in y", pairs - np.array([0, 1])),
        with_offsets("one-pixel shift in x and y", pairs + 1),
        with_offsets("one-pixel shift in x and y", pairs - 1),
        with_offsets("offsets ignored", np.zeros_like(pairs)),
        with_offsets("bilinear weights exchanged", 2 * np.ceil(pairs) - 1 - pairs),
    ]
    return Outcome({"translated": oracle.translate(images, pairs)}, {"translated": found}, FLOAT64, mistakes)


FORWARD: tuple[Step, ...] = (Step("forward.translate", ("merged", "views"), _translate),)
