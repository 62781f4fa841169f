"""An object that is known: its patches, its place in a group, and the loss of a prediction against it."""

from __future__ import annotations

import numpy as np

from conformance.checks.light import SIDE_PX, draw_wave
from conformance.judge.agreement import FLOAT64, Compared
from conformance.oracle import losses as oracle_losses
from conformance.oracle import operations as oracle_operations

TV_WEIGHT, OBJECT_WEIGHT, REALSPACE_WEIGHT = 0.02, 0.3, 0.5


def known_object() -> Compared:
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

    return Compared(expected, found, FLOAT64)


def _loss_of_object(predicted: np.ndarray, target: np.ndarray, what: str) -> dict[str, np.ndarray]:
    """Return the real-space loss and its gradient by the (B, 1, N, N) prediction."""
    whole = np.ones((SIDE_PX, SIDE_PX))
    centre = oracle_operations.central_square(SIDE_PX) if what == "central square" else whole
    image, known = (predicted * centre)[:, 0, ..., None], target[:, 0, ..., None]
    loss = TV_WEIGHT * oracle_losses.total_variation(image) + OBJECT_WEIGHT * oracle_losses.object_error(image, known)
    by = TV_WEIGHT * oracle_losses.total_variation_gradient(image)
    by = by + OBJECT_WEIGHT * oracle_losses.object_error_gradient(image, known)
    gradient = REALSPACE_WEIGHT * centre * by[:, None, ..., 0]
    return {f"loss, {what}": np.array(REALSPACE_WEIGHT * loss), f"gradient, {what}": gradient}
