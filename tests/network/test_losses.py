"""Losses: equations, masks of bad pixels, and what is asked for but missing."""

from __future__ import annotations

import dataclasses
import inspect

import numpy as np
import pytest
import torch

from conformance.cases.draws import GRAPHS, draw_case
from conformance.judge.truth import Truth
from ptycho_torch import losses
from ptycho_torch.config_params import LossWeights
from ptycho_torch.errors import ConfigError, DataContractError

SHAPE = (2, 4, 64, 64)


def draw(seed: int) -> torch.Tensor:
    return torch.rand(SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.1


@pytest.mark.parametrize("loss", [losses.poisson_nll, losses.amplitude_mae])
def test_bad_pixels_have_no_influence_whatever_they_hold(loss: object) -> None:
    good = draw(3)[0, 0] > 0.4
    measured = draw(2)
    spoiled = measured.clone()
    spoiled[..., ~good] = torch.nan
    predicted = draw(1).requires_grad_()
    value = loss(predicted, spoiled, good)  # type: ignore[operator]
    value.backward()
    by_pixel = inspect.unwrap(loss)  # type: ignore[arg-type]
    expected = by_pixel(predicted.detach()[..., good], measured[..., good])
    assert value.item() == pytest.approx(expected.item(), rel=1e-12)
    assert predicted.grad is not None
    assert torch.isfinite(predicted.grad).all()
    assert torch.count_nonzero(predicted.grad[..., ~good]) == 0
    assert torch.count_nonzero(predicted.grad[..., good]) > 0


def test_no_good_pixel_means_no_loss() -> None:
    nothing = torch.zeros(64, 64, dtype=torch.bool)
    assert losses.poisson_nll(draw(1), draw(2), nothing).item() == 0


@pytest.mark.parametrize("probe_big", [True, False])
def test_total_is_the_weighted_sum_of_the_oracle(probe_big: bool) -> None:
    weights = LossWeights(1.3, 0.4, 0.7, 1e-4, 0.2)
    settings = dataclasses.replace(GRAPHS["n64_g2"], probe_big=probe_big)
    truth = Truth(draw_case(settings, 3, batch=2, loss_weights=weights))
    rng = np.random.default_rng(0)
    target = rng.standard_normal((2, 64, 64, 1)) + 1j * rng.standard_normal((2, 64, 64, 1))
    expected = truth.oracle.losses(truth.stages, truth.network_input, truth.loss_weights, target=target)

    def first(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array.transpose(0, 3, 1, 2).copy())

    terms = losses.total_loss(
        first(truth.stages["object"]),
        first(truth.stages["predicted_amplitude"]),
        first(truth.stages["predicted_intensity"]),
        first(truth.network_input),
        weights,
        probe_big=probe_big,
        target_object=first(target),
    )
    assert terms.nll.item() == pytest.approx(expected["nll"], rel=1e-12)
    assert terms.total.item() == pytest.approx(expected["total"], rel=1e-12)


def test_a_missing_target_is_asked_for() -> None:
    image = torch.complex(draw(1)[:, :1], draw(2)[:, :1])
    weights = LossWeights(realspace_weight=1.0, realspace_mae_weight=1.0)
    with pytest.raises(ConfigError, match="needs target_object"):
        losses.total_loss(image, draw(1), draw(1), draw(2), weights)


def test_a_measurement_of_another_shape_is_refused() -> None:
    image = torch.complex(draw(1)[:, :1], draw(2)[:, :1])
    # Unwrapped: a user has no shape checker between.
    total_loss = inspect.unwrap(losses.total_loss)
    with pytest.raises(DataContractError, match="measured_amplitude has shape"):
        total_loss(image, draw(1), draw(1), draw(2)[:1], LossWeights())
