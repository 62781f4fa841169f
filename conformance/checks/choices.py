"""What settings choose: the terms of the loss, what runs of this process take, and the optimiser."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from conformance.agreement import FLOAT64, Compared
from conformance.checks.translation import texts
from conformance.oracle import Moments
from conformance.oracle_optimisers import Rule, updated
from ptycho_torch.config_params import (
    DataConfig,
    ModelConfig,
    Settings,
    TrainingConfig,
    TrainingSettings,
)
from ptycho_torch.errors import ConfigError

if TYPE_CHECKING:
    from ptycho_torch.train import PtychoPINN

LOSSES = ("Poisson", "MAE")
GIVEN: tuple[float | None, ...] = (None, 0.0, 0.3)
REFUSED = (math.nan,) * 5
"""In place of the weights of likelihood, amplitude, object, total variation and the object's amplitude."""

Weighing = Callable[[str, float | None, float | None], tuple[float, ...]]
"""From a loss and the weights of likelihood and amplitude that are given to those that count."""


def _of_each(weighing: Weighing) -> dict[str, np.ndarray]:
    """Return the weights of each combination of a loss and two weights."""
    return {
        f"{loss}, {nll}, {mae}": np.array(weighing(loss, nll, None if mae is None else 2 * mae))
        for loss, nll, mae in itertools.product(LOSSES, GIVEN, GIVEN)
    }


def _loss_weights() -> Compared:
    """Name a loss, with weights of its terms and without: a weight that is given wins, one that is not follows."""

    def right(loss: str, nll: float | None, mae: float | None) -> tuple[float, ...]:
        return float(loss == "Poisson") if nll is None else nll, float(loss == "MAE") if mae is None else mae

    def all_terms(of_patterns: Weighing) -> dict[str, np.ndarray]:
        def weighing(*given: Any) -> tuple[float, ...]:
            weights = of_patterns(*given)
            # Without either no pattern would count.
            return (*weights, 0.7, 0.2, 0.0) if any(weights) else REFUSED

        return _of_each(weighing)

    def found(loss: str, nll: float | None, mae: float | None) -> tuple[float, ...]:
        chosen = TrainingSettings(nll_weight=nll, mae_weight=mae, realspace_weight=0.7, tv_weight=0.2)
        try:
            weights = chosen.loss_weights(loss)  # type: ignore[arg-type]
        except ConfigError:
            return REFUSED
        of_object = (weights.realspace_weight, weights.tv_weight, weights.realspace_mae_weight)
        return (weights.nll_weight, weights.mae_weight, *of_object)

    return Compared(all_terms(right), _of_each(found))


FIRST: Mapping[str, Mapping[str, Any]] = {
    "model": {"probe_scale": 3.0, "loss_function": "MAE"},
    "training": {"max_epochs": 7, "learning_rate": 0.5},
    "data": {"K": 9, "nphotons": 50.0},
}
SECOND: Mapping[str, Mapping[str, Any]] = {
    "model": {"offset": 6}, "training": {"batch_size": 5}, "data": {"gridsize": 3}
}  # fmt: skip
ADDED: Mapping[str, tuple[str, Any]] = {
    "model": ("n_filters_scale", 4), "training": ("seed", 8), "data": ("group_seed", 2)
}  # fmt: skip


def _as_text(owners: Mapping[str, Mapping[str, Any]]) -> dict[str, np.ndarray]:
    return texts("", {f"{owner}.{name}": each for owner, values in owners.items() for name, each in values.items()})


def _refuses(attempt: Callable[[], None]) -> bool:
    """Return whether an attempt is refused in the words of settings."""
    try:
        attempt()
    except ConfigError:
        return True
    except TypeError:
        return False
    return False


def _of_process() -> Compared:
    """Set the settings of the process twice, add to them, and be refused: what was set last is what runs take."""
    singletons: dict[str, Any] = {"model": ModelConfig(), "training": TrainingConfig(), "data": DataConfig()}
    before = Settings.current().as_dict()
    plain = Settings().as_dict()
    set_twice = {owner: {**plain[owner], **SECOND[owner]} for owner in plain}
    expected = {owner: {**set_twice[owner], ADDED[owner][0]: ADDED[owner][1]} for owner in plain}
    refused = 0
    try:
        for owner, each in singletons.items():
            each.set_settings(FIRST[owner])
            each.set_settings(SECOND[owner])
            each.add(*ADDED[owner])
            for name, value in (("no_such_name", 1), (ADDED[owner][0], "many")):
                refused += _refuses(partial(each.set_settings, {name: value}))
                refused += _refuses(partial(each.add, name, value))
        found = Settings.current().as_dict()
        said = {owner: {name: each.get(name) for name in plain[owner]} for owner, each in singletons.items()}
    finally:
        for owner, each in singletons.items():
            each.set_settings(before[owner])
    return Compared(
        {**_as_text(expected), "refused": np.array(12), "as each says": np.array(True)},
        {**_as_text(found), "refused": np.array(refused), "as each says": np.array(said == found)},
    )


RATE, BETA_1, BETA_2, EPSILON, DECAY, STEPS = 0.02, 0.7, 0.95, 3e-4, 0.2, 4
"""None of them is a default of the settings or of PyTorch."""


def _optimiser_module(chosen: Mapping[str, Any]) -> PtychoPINN:
    """Return a float64 module with the small network and some chosen settings."""
    from unittest import mock

    import torch

    from conformance.plain_training import StandIn
    from ptycho_torch import lightning_module

    probe = np.random.default_rng(3).standard_normal((2, 64, 64)) + 1j
    common = {"gridsize": 2, "precision": "64-true", "nphotons": 1e4, "initial_amplitude": "zero_bias"}
    settings = Settings().override({**common, **chosen})
    with mock.patch.object(lightning_module, "PtychoNet", StandIn):
        return lightning_module.PtychoPINN(settings, probe=torch.from_numpy(probe))


def _draw_gradients(module: PtychoPINN) -> list[dict[str, np.ndarray]]:
    """Draw gradients of every weight, many so small that ε counts."""
    rng = np.random.default_rng(0)
    shapes = {name: tuple(each.shape) for name, each in module.network.named_parameters()}
    return [
        {name: 10.0 ** rng.uniform(-7, 0, shape) * rng.standard_normal(shape) for name, shape in shapes.items()}
        for _ in range(STEPS)
    ]


def _chosen_optimisers() -> Compared:
    """Take some updates with every optimiser that settings allow, with numbers of which none is a default."""
    import torch

    from ptycho_torch.config_schema import load_schema

    names = load_schema().settings["optimizer"].choices
    expected: dict[str, np.ndarray] = {}
    found: dict[str, np.ndarray] = {}
    for name in names or ():
        rule = Rule(name, RATE, BETA_1, BETA_2, EPSILON, DECAY if name == "adamw" else 0.0)
        chosen = {
            "optimizer": name, "learning_rate": RATE, "adam_beta1": BETA_1, "adam_beta2": BETA_2, "adam_eps": EPSILON,
            "weight_decay": rule.decay,
        }  # fmt: skip
        for case, trainable in ((name, True), (f"{name}, probe and scale frozen", False)):
            flags = {"probe_trainable": trainable, "intensity_scale_trainable": trainable}
            module = _optimiser_module({**chosen, **flags})
            gradients, optimiser = _draw_gradients(module), module.configure_optimizers()
            parameters = dict(module.network.named_parameters())
            start = {key: each.detach().numpy().copy() for key, each in parameters.items()}
            for each in gradients:
                for key, parameter in parameters.items():
                    parameter.grad = torch.from_numpy(np.asarray(each[key]))
                optimiser.step()
            trained: Iterable[str] = parameters if trainable else ("weight",)

            expected[case] = _changes(rule, start, gradients, trained)
            found[case] = np.concatenate(
                [(each.detach().numpy() - start[key]).ravel() for key, each in parameters.items()]
            )
    return Compared(expected, found, FLOAT64)


def _changes(
    rule: Rule,
    start: Mapping[str, np.ndarray],
    gradients: Sequence[Mapping[str, np.ndarray]],
    trained: Iterable[str],
    added: float = 0.0,
) -> np.ndarray:
    """Return what updates by a rule change; ``added`` times the weights is added to each gradient."""
    weights: Mapping[str, np.ndarray] = {key: start[key] for key in trained}
    moments: Moments = {}
    for step, each in enumerate(gradients, 1):
        given = {key: each[key] + added * weight for key, weight in weights.items()}
        weights, moments = updated(rule, weights, given, moments, step)
    return np.concatenate([(weights.get(key, start[key]) - start[key]).ravel() for key in start])


CHOICES: tuple[Step, ...] = (
    Step("configuration.loss", ("STEP-CONFIGURATION",), _loss_weights),
    Step("configuration.process", ("STEP-CONFIGURATION",), _of_process),
)
CHOSEN: tuple[Step, ...] = (
    Step("optimiser.choices", ("STEP-OPTIMISER", "RUN-01"), _chosen_optimisers, ("lightning", "tensordict")),
)
