"""Keras-form Adam: the formula, and that torch's own Adam is another optimiser."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch

from ptycho_torch.optim import AdaptiveClip, KerasAdam


def by_formula(weights: np.ndarray, gradients: list[np.ndarray], lr: float, eps: float) -> np.ndarray:
    """The update of reference page §5 in NumPy."""
    m, v = np.zeros_like(weights), np.zeros_like(weights)
    for t, g in enumerate(gradients, 1):
        m = 0.9 * m + 0.1 * g
        v = 0.999 * v + 0.001 * g**2
        weights = weights - lr * np.sqrt(1 - 0.999**t) / (1 - 0.9**t) * m / (np.sqrt(v) + eps)
    return weights


def take_steps(optimiser: type[torch.optim.Optimizer], gradients: list[np.ndarray], start: np.ndarray) -> np.ndarray:
    parameter = torch.nn.Parameter(torch.from_numpy(start.copy()))
    stepper = optimiser([parameter], lr=1e-3, eps=1e-7)  # type: ignore[call-arg]
    for gradient in gradients:
        parameter.grad = torch.from_numpy(gradient)
        stepper.step()
    return parameter.detach().numpy()


@pytest.fixture
def gradients() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    # Small gradients, where ε counts.
    return [10.0 ** rng.uniform(-9, 0, 50) * rng.standard_normal(50) for _ in range(10)]


@pytest.mark.parity_clause("STEP-OPTIMISER", "TRAIN-STATE")
@pytest.mark.parametrize("steps", [1, 10])
def test_steps_follow_the_formula(gradients: list[np.ndarray], steps: int) -> None:
    start = np.random.default_rng(1).standard_normal(50)
    expected = by_formula(start, gradients[:steps], 1e-3, 1e-7)
    found = take_steps(KerasAdam, gradients[:steps], start)
    np.testing.assert_allclose(found - start, expected - start, rtol=1e-12)


def test_torch_adam_is_another_optimiser(gradients: list[np.ndarray]) -> None:
    start = np.random.default_rng(1).standard_normal(50)
    ours, torchs = (take_steps(kind, gradients[:1], start) - start for kind in (KerasAdam, torch.optim.Adam))
    assert np.abs(ours / torchs - 1).max() > 0.5


@pytest.mark.parity_clause("STEP-OPTIMISER", "TRAIN-STATE")
@pytest.mark.parametrize("saved_after", range(1, 10))
def test_state_survives_saving(gradients: list[np.ndarray], saved_after: int) -> None:
    """Moments, number of steps, rate and constants come from the checkpoint."""
    start = np.random.default_rng(1).standard_normal(50)
    parameter = torch.nn.Parameter(torch.from_numpy(start.copy()))
    stepper = KerasAdam([parameter])
    for number, gradient in enumerate(gradients):
        if number == saved_after:
            file = io.BytesIO()
            torch.save(stepper.state_dict(), file)
            file.seek(0)
            stepper = KerasAdam([parameter], lr=7e-3, betas=(0.5, 0.6), eps=0.1)
            stepper.load_state_dict(torch.load(file, weights_only=True))
        parameter.grad = torch.from_numpy(gradient)
        stepper.step()
    np.testing.assert_array_equal(parameter.detach().numpy(), take_steps(KerasAdam, gradients, start))


@pytest.mark.parametrize("wrong", [{"lr": -1.0}, {"eps": -1.0}, {"betas": (1.0, 0.9)}])
def test_impossible_constants_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="expected lr"):
        KerasAdam([torch.nn.Parameter(torch.zeros(1))], **wrong)  # type: ignore[arg-type]


def test_constants_at_their_bounds_are_taken() -> None:
    group = KerasAdam([torch.nn.Parameter(torch.zeros(1))], lr=0.0, betas=(0.0, 0.0), eps=0.0).param_groups[0]
    assert (group["lr"], group["betas"], group["eps"]) == (0.0, (0.0, 0.0), 0.0)


def clipped_norms(clip: AdaptiveClip, norms: list[float]) -> list[float]:
    """Return the norms of gradients over two parameters after clipping, step by step."""
    first, second = (torch.nn.Parameter(torch.zeros(3)) for _ in range(2))
    left = []
    for norm in norms:
        first.grad, second.grad = torch.tensor([0.6 * norm, 0.0, 0.0]), torch.tensor([0.0, 0.8 * norm, 0.0])
        clip([first, second])
        left.append(float(torch.cat([first.grad, second.grad]).norm()))
    return left


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e6])
def test_adaptive_clipping_follows_the_size_of_the_gradients(size: float) -> None:
    steady = (size * np.random.default_rng(2).uniform(0.5, 1.5, 60)).tolist()
    assert clipped_norms(AdaptiveClip(3.0), steady) == pytest.approx(steady, rel=1e-6), "ordinary steps keep their size"
    *_, last = clipped_norms(AdaptiveClip(3.0), [*steady, 1e4 * size])
    assert last == pytest.approx(3 * np.median(steady), rel=0.05)


def test_an_outlier_does_not_raise_the_threshold() -> None:
    clip = AdaptiveClip(2.0)
    assert clipped_norms(clip, [1.0] * 20 + [1e6] * 5)[20:] == pytest.approx([2.0] * 5)


def test_the_first_steps_are_not_clipped() -> None:
    norms = [1.0] * (AdaptiveClip.LEAST_STEPS - 1) + [1e3, 1e3]
    assert clipped_norms(AdaptiveClip(2.0), norms)[-2:] == pytest.approx([1e3, 2.0])


def test_a_gradient_that_is_not_finite_cannot_pass_unseen() -> None:
    assert math.isnan(clipped_norms(AdaptiveClip(2.0), [1.0] * 20 + [math.nan])[-1])


def test_an_adaptive_threshold_survives_saving() -> None:
    norms = np.random.default_rng(3).lognormal(0, 2, 250).tolist()
    whole = clipped_norms(AdaptiveClip(1.5), norms)
    first, second = AdaptiveClip(1.5), AdaptiveClip(1.5)
    begun = clipped_norms(first, norms[:137])
    second.load_state_dict(first.state_dict())
    assert begun + clipped_norms(second, norms[137:]) == whole
    assert len(second.norms) == AdaptiveClip.STEPS
