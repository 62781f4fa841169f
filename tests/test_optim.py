"""Keras-form Adam: the formula, and that torch's own Adam is another optimiser."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ptycho_torch.optim import KerasAdam


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


def test_ten_steps_follow_the_formula(gradients: list[np.ndarray]) -> None:
    start = np.random.default_rng(1).standard_normal(50)
    expected = by_formula(start, gradients, 1e-3, 1e-7)
    np.testing.assert_allclose(take_steps(KerasAdam, gradients, start) - start, expected - start, rtol=1e-10)


def test_torch_adam_is_another_optimiser(gradients: list[np.ndarray]) -> None:
    start = np.random.default_rng(1).standard_normal(50)
    ours, torchs = (take_steps(kind, gradients[:1], start) - start for kind in (KerasAdam, torch.optim.Adam))
    assert np.abs(ours / torchs - 1).max() > 0.5


def test_state_survives_saving(gradients: list[np.ndarray]) -> None:
    start = np.random.default_rng(1).standard_normal(50)
    parameter = torch.nn.Parameter(torch.from_numpy(start.copy()))
    stepper = KerasAdam([parameter])
    for number, gradient in enumerate(gradients):
        if number == 5:
            saved, stepper = stepper.state_dict(), KerasAdam([parameter])
            stepper.load_state_dict(saved)
        parameter.grad = torch.from_numpy(gradient)
        stepper.step()
    np.testing.assert_array_equal(parameter.detach().numpy(), take_steps(KerasAdam, gradients, start))


@pytest.mark.parametrize("wrong", [{"lr": -1.0}, {"eps": -1.0}, {"betas": (1.0, 0.9)}])
def test_impossible_constants_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="expected lr"):
        KerasAdam([torch.nn.Parameter(torch.zeros(1))], **wrong)  # type: ignore[arg-type]
