"""The weights that a run begins with."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from conformance.hypotheses import Hypothesis
from conformance.oracle import Oracle
from conformance.step import Outcome, Step, StepBench
from ptycho_torch.config_params import NetworkSettings, Settings

INITIAL = NetworkSettings(N=64, gridsize=2, n_filters_scale=1)
SAMPLED = 0.03
"""How far moments of a few hundred draws may be from those of the distribution."""


def _initial_weights(_: StepBench) -> Outcome:
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
    return Outcome(expected, found, SAMPLED, lambda: _wrong_draws(kernels, bounds, len(others), expected))


def _wrong_draws(
    kernels: Mapping[str, tuple[int, ...]],
    bounds: Mapping[str, float],
    others: int,
    right: Mapping[str, np.ndarray],
) -> Iterator[Hypothesis]:
    yes = np.ones(len(kernels), np.int64)
    yield Hypothesis("one seed for all runs", {f"the same with another seed {number}": yes for number in range(others)})
    yield Hypothesis("drawn anew, whatever the seed", {"the same with the same seed": 1 - yes})

    def within(name: str, bound: Callable[[int, int], float]) -> Hypothesis:
        ratio = np.array([bound(shape[2], shape[3]) / bounds[layer] for layer, shape in kernels.items()])
        moments = {"largest": ratio, "root mean square": ratio, "fourth moment": ratio**4}
        gives = {moment: factor * right[moment] for moment, factor in moments.items()}
        return Hypothesis(name, {**right, **gives, "within the bound": (ratio <= 1).astype(np.int64)})

    yield within("nine pixels of a kernel not counted", lambda fan_in, fan_out: math.sqrt(6 / (fan_in + fan_out)))
    yield within("bound of He for Glorot's", lambda fan_in, fan_out: math.sqrt(6 / (9 * fan_in)))
    yield within("default of PyTorch", lambda fan_in, fan_out: math.sqrt(1 / (9 * fan_in)))
    yield within("standard deviation for the bound", lambda fan_in, fan_out: math.sqrt(2 / (9 * (fan_in + fan_out))))
    yield within("fan-out alone", lambda fan_in, fan_out: math.sqrt(6 / (9 * fan_out)))


INITIAL_WEIGHTS: tuple[Step, ...] = (
    Step("optimiser.initial_weights", ("RUN-01",), _initial_weights, ("lightning", "tensordict")),
)
