"""Training, part by part: initial weights, clipping, the loss of an epoch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from conformance.judge.agreement import FLOAT64, Compared
from conformance.oracle.network import Oracle
from conformance.oracle.training import clipped
from ptycho_torch.config_params import NetworkSettings, Settings

if TYPE_CHECKING:
    from ptycho_torch.train import PtychoPINN


def clipping() -> Compared:
    """Gradients clipped by the function that training uses: above the limit, below it, and small ones."""
    import torch

    from conformance.subjects.torch_training import small_module

    module = small_module()
    rng = np.random.default_rng(2)
    gradients = {"a": rng.standard_normal((3, 4)), "b": 3 * rng.standard_normal(7)}
    norm = math.sqrt(sum(float((each**2).sum()) for each in gradients.values()))
    cases = {
        "norm": (gradients, 0.5 * norm, "norm"),
        "below": (gradients, 2 * norm, "norm"),
        "small": ({name: 1e-4 * each for name, each in gradients.items()}, 2e-5 * norm, "norm"),
        "value": (gradients, 0.7, "value"),
    }
    expected: dict[str, np.ndarray] = {}
    given: dict[str, np.ndarray] = {}
    for case, (each, limit, algorithm) in cases.items():
        tensors = {
            name: torch.nn.Parameter(torch.zeros(array.shape, dtype=torch.float64)) for name, array in each.items()
        }
        for name, tensor in tensors.items():
            tensor.grad = torch.from_numpy(each[name].copy())
        module.configure_gradient_clipping(torch.optim.SGD(tensors.values()), limit, algorithm)
        for name, array in clipped(each, limit, algorithm).items():
            key = f"{case} {name}"
            gradient = tensors[name].grad
            expected[key], given[key] = array, np.zeros_like(array) if gradient is None else gradient.numpy()
    return Compared(expected, given, FLOAT64)


def add_loss(module: PtychoPINN, part: str, loss: float, samples: int) -> None:
    """Let the module take note of the loss of a batch."""
    import torch

    from ptycho_torch.losses import LossTerms

    value, zero = torch.tensor(float(loss), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    module._add(part, LossTerms(value, value, zero, zero), int(samples))


def epoch_loss() -> Compared:
    """The loss of an epoch is the mean over its own samples, the last and smaller batch included."""
    from conformance.subjects.torch_training import small_module

    losses = {
        "train_loss": np.array([[4.0, 1.0, 7.0], [3.0, 2.0, 0.5], [0.25, 1.5, 2.5]]),
        "val_loss": np.array([[5.0, 8.0], [6.0, 1.0], [2.0, 9.0]]),
    }
    sizes = {"train_loss": np.array([16, 16, 5]), "val_loss": np.array([16, 3])}
    module = small_module()
    noted: dict[str, list[float]] = {"train_loss": [], "val_loss": []}
    for epoch in range(3):
        for name, batches in losses.items():
            part = name.removesuffix("_loss")
            if part == "val":
                # What an interrupted validation left.
                add_loss(module, part, 100.0, 7)
                module.on_validation_epoch_start()
            for loss, size in zip(batches[epoch], sizes[name], strict=True):
                add_loss(module, part, loss, size)
            noted[name].append(module._mean(part)[name])

    expected = {name: (each * sizes[name]).sum(axis=1) / sizes[name].sum() for name, each in losses.items()}
    found = {name: np.array(values) for name, values in noted.items()}
    return Compared(expected, found, FLOAT64)


INITIAL = NetworkSettings(N=64, gridsize=2, n_filters_scale=1)
SAMPLED = 0.03
"""How far moments of a few hundred draws may be from those of the distribution."""


def initial_weights() -> Compared:
    """Draw the weights of several seeds: uniform within Glorot's bound in every layer, biases zero."""
    import torch

    from ptycho_torch.train import PtychoPINN

    shapes = Oracle(dataclasses.asdict(INITIAL)).weight_shapes
    kernels = {name.removesuffix(".kernel"): shape for name, shape in shapes.items() if name.endswith(".kernel")}

    def drawn(seed: int, **chosen: Any) -> dict[str, np.ndarray]:
        common = {"n_filters_scale": 1, "gridsize": 2, "nphotons": 1e4, "initial_amplitude": "zero_bias"}
        settings = Settings().override({"seed": seed, **common, **chosen})
        state = PtychoPINN(settings).network.state_dict()
        return {name: each.double().numpy() for name, each in state.items()}

    whole = torch.get_rng_state()
    first, again, *others = (drawn(seed) for seed in (5, 5, 0, 1, 6))
    untouched = torch.equal(whole, torch.get_rng_state())
    double = drawn(5, precision="64-true")
    changed = drawn(5, learning_rate=0.5, batch_size=3, group_seed=9)
    # Fan-in and fan-out count the nine pixels of a kernel.
    bounds = {name: math.sqrt(6 / (9 * (shape[2] + shape[3]))) for name, shape in kernels.items()}
    unit = {name: first[f"{name}.weight"] / bound for name, bound in bounds.items()}

    def of_layers(number: Callable[[str], Any]) -> np.ndarray:
        return np.array([number(name) for name in kernels])

    def alike(other: Mapping[str, np.ndarray]) -> np.ndarray:
        return of_layers(lambda name: int(np.array_equal(first[f"{name}.weight"], other[f"{name}.weight"])))

    starts = {tuple(each.ravel()[:4]) for each in unit.values()}
    yes, no = np.ones(len(kernels), np.int64), np.zeros(len(kernels), np.int64)
    expected = {
        "layers": of_layers(lambda name: str(tuple(kernels[name][axis] for axis in (3, 2, 0, 1)))),
        "biases that are not zero": np.zeros(len(kernels), np.int64),
        "within the bound": yes,
        "the same with the same seed": yes,
        **{f"the same with another seed {number}": no for number in range(len(others))},
        "the same in float64, rounded": yes,
        "the same with other settings": yes,
        "kernels that begin alike": np.array(0),
        "global generator untouched": np.array(True),
        "largest": np.ones(len(kernels)),
        "root mean square": np.full(len(kernels), 1 / math.sqrt(3)),
        "fourth moment": np.full(len(kernels), 1 / 5),
        "mean above the lower bound": np.ones(len(kernels)),
    }
    found = {
        "layers": of_layers(lambda name: str(first[f"{name}.weight"].shape)),
        "biases that are not zero": of_layers(lambda name: np.count_nonzero(first[f"{name}.bias"])),
        "within the bound": of_layers(lambda name: int((np.abs(unit[name]) <= 1 + 1e-6).all())),
        "the same with the same seed": alike(again),
        **{f"the same with another seed {number}": alike(other) for number, other in enumerate(others)},
        "the same in float64, rounded": alike({name: each.astype(np.float32) for name, each in double.items()}),
        "the same with other settings": alike(changed),
        "kernels that begin alike": np.array(len(unit) - len(starts)),
        "global generator untouched": np.array(untouched),
        "largest": of_layers(lambda name: np.abs(unit[name]).max()),
        "root mean square": of_layers(lambda name: math.sqrt(np.square(unit[name]).mean())),
        "fourth moment": of_layers(lambda name: (unit[name] ** 4).mean()),
        "mean above the lower bound": of_layers(lambda name: 1 + unit[name].mean()),
    }
    return Compared(expected, found, SAMPLED)
