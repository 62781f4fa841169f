"""An object that is known: its patches, its place in a group, and the loss of a prediction against it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from conformance import oracle_losses, oracle_operations
from conformance.hypotheses import Hypothesis
from conformance.step import FLOAT64, Outcome, Step, StepBench
from conformance.steps_light import SIDE_PX, draw_wave
from conformance.steps_scans import Arrays

TV_WEIGHT, OBJECT_WEIGHT, REALSPACE_WEIGHT = 0.02, 0.3, 0.5


def _target(_: StepBench) -> Outcome:
    """Cut patches out of a known object, bring the first of each group to its place, and hold a prediction to it."""
    import torch

    from ptycho_torch import helper, losses
    from ptycho_torch.config_params import LossWeights

    rng = np.random.default_rng(10)
    B, C = 2, 4
    image, predicted = draw_wave(rng, 26, 34), draw_wave(rng, B, 1, SIDE_PX, SIDE_PX)
    # Some patches reach beyond the object.
    positions = rng.uniform((2, 3), (33, 24), (B, C, 2))
    means = positions.mean(axis=1, keepdims=True)
    offsets = torch.from_numpy((means - positions)[:, :, None])
    cut = helper.cut_patches(torch.from_numpy(image), torch.from_numpy(positions.reshape(-1, 2)), SIDE_PX)
    given = oracle_operations.ground_truth_patches(image, positions.reshape(-1, 2), SIDE_PX)
    groups = given.reshape(B, C, SIDE_PX, SIDE_PX)
    moved = helper.target_object(torch.from_numpy(groups), offsets)
    right = oracle_operations.translate(groups[:, 0], positions[:, 0] - means[:, 0])[:, None]
    expected = {"patches": given, "target": right}
    found = {"patches": cut.numpy(), "target": moved.numpy()}
    weights = {"realspace_weight": REALSPACE_WEIGHT, "tv_weight": TV_WEIGHT, "realspace_mae_weight": OBJECT_WEIGHT}
    for probe_big in (True, False):
        leaf, detector = torch.from_numpy(predicted).requires_grad_(), torch.ones(B, C, SIDE_PX, SIDE_PX).double()
        terms = losses.total_loss(
            leaf,
            detector,
            detector,
            detector,
            LossWeights(nll_weight=0.0, **weights),
            probe_big=probe_big,
            target_object=torch.from_numpy(right),
        )
        (gradient,) = torch.autograd.grad(terms.total, leaf)
        what = "whole object" if probe_big else "central square"
        found |= {f"loss, {what}": terms.total.detach().numpy(), f"gradient, {what}": gradient.numpy()}
        expected |= _loss_of_object(predicted, right, what)

    def mistakes() -> Iterator[Hypothesis]:
        yield from _misplaced(image, positions, groups)
        yield from _misjudged(predicted, right)

    return Outcome(expected, found, FLOAT64, mistakes)


def _misplaced(image: np.ndarray, positions: np.ndarray, groups: np.ndarray) -> Iterator[Hypothesis]:
    means = positions.mean(axis=1, keepdims=True)
    shift = positions[:, 0] - means[:, 0]
    places = {
        "sign of offsets": (groups[:, 0], -shift),
        "swapped x/y": (groups[:, 0], shift[:, ::-1]),
        "patch not moved": (groups[:, 0], 0 * shift),
        "offsets of the last patch": (groups[:, 0], positions[:, -1] - means[:, 0]),
        "the last patch for the first": (groups[:, -1], shift),
    }
    for name, (patches, by) in places.items():
        yield Hypothesis(name, {"target": oracle_operations.translate(patches, by)[:, None]})
    cuts = {
        "swapped x/y": positions[..., ::-1],
        "cut at the mirrored position": 2 * means - positions,
        "half a pixel off": positions + 0.5,
        "one pixel off": positions + 1,
        "positions rounded to whole pixels": np.round(positions),
    }
    for name, places_px in cuts.items():
        patches = oracle_operations.ground_truth_patches(image, places_px.reshape(-1, 2), SIDE_PX)
        yield Hypothesis(name, {"patches": patches})


def _misjudged(predicted: np.ndarray, right: np.ndarray) -> Iterator[Hypothesis]:
    for name, parts in {
        "total variation twice": (2.0, 1.0),
        "total variation missing": (0.0, 1.0),
        "known object ignored": (1.0, 0.0),
    }.items():
        both = (_loss_of_object(predicted, right, what, *parts) for what in ("whole object", "central square"))
        yield Hypothesis(name, {key: each for some in both for key, each in some.items()})
    yield Hypothesis(
        "object outside its central square counts", _loss_of_object(predicted, right, "central square", whole=True)
    )
    real = _loss_of_object(predicted, right, "whole object", real=True)
    yield Hypothesis(
        "total variation of the real part alone",
        real | _loss_of_object(predicted, right, "central square", real=True),
    )


def _loss_of_object(
    predicted: np.ndarray,
    target: np.ndarray,
    what: str,
    variation: float = 1.0,
    error: float = 1.0,
    *,
    whole: bool = False,
    real: bool = False,
) -> Arrays:
    """Return the real-space loss and its gradient by the (B, 1, N, N) prediction; factors of its two parts."""
    centre = np.ones((SIDE_PX,) * 2)
    if what == "central square" and not whole:
        centre = oracle_operations.central_square(SIDE_PX)
    image, known = (predicted * centre)[:, 0, ..., None], target[:, 0, ..., None]
    varied = image.real + 0j if real else image
    loss = TV_WEIGHT * variation * oracle_losses.total_variation(varied)
    loss += OBJECT_WEIGHT * error * oracle_losses.object_error(image, known)
    by = TV_WEIGHT * variation * oracle_losses.total_variation_gradient(varied)
    by = by + OBJECT_WEIGHT * error * oracle_losses.object_error_gradient(image, known)
    gradient = REALSPACE_WEIGHT * centre * by[:, None, ..., 0]
    return {f"loss, {what}": np.array(REALSPACE_WEIGHT * loss), f"gradient, {what}": gradient}


TARGET: tuple[Step, ...] = (Step("forward.target", ("REF-04", "LOSS"), _target),)
