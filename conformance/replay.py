"""Replaying a bundle: is the oracle the stored truth, is the reference as measured, does training follow it?"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from conformance.bundle import Bundle, Sampled
from conformance.judge import (
    SMALL,
    Errors,
    Limits,
    Verdict,
    compare,
    deviation,
    errors,
    float32_budget,
    float64_budget,
)
from conformance.measured import Measured
from conformance.parity import FORWARD_FREE, GRADIENT_FREE, LOSS, Key, Quantity
from conformance.torch_subject import TorchSubject
from conformance.truth import Truth, moved_case

FLOAT64, REFERENCE, TRAIN = "FLOAT64", "REFERENCE", "TRAIN"

TRAIN_DRAWS = 3
"""Trainings of the truth from weights moved by one ulp, whose spread three float32 steps are judged against."""


def _sampled_errors(values: np.ndarray, truth: np.ndarray, rms: float) -> Errors:
    return errors([deviation(values, truth, scale=rms)])


def oracle_verdicts(bundle: Bundle, truth: Truth, limits: Limits) -> dict[Key, Verdict]:
    """Judge the oracle's own run against the float64 truth stored in the bundle (clause FLOAT64)."""
    verdicts: dict[Key, Verdict] = {}
    condition = truth.condition

    def add(name: str, found: Errors, amplified: Errors) -> None:
        verdicts[FLOAT64, name] = Verdict(FLOAT64, name, None, found, float64_budget(amplified, limits))

    for name, stored in bundle.truth_stages.items():
        mine = bundle.stages[name].pick(truth.stages[name])
        add(name, _sampled_errors(mine, stored, bundle.rms[f"stage/{name}"]), condition.stages_free[name])
    for name, stored in bundle.truth_gradients.items():
        mine = bundle.gradients[name].pick(truth.gradients.constants[name])
        add(name, _sampled_errors(mine, stored, bundle.rms[f"grad/{name}"]), condition.gradients_free[name])
    for name, value in bundle.truth_losses.items():
        add(f"loss.{name}", compare(np.array(truth.losses[name]), np.array(value)), condition.losses_free[name])
    return verdicts


def recorded_errors(bundle: Bundle) -> dict[Key, Errors]:
    """Return the reference's recorded errors by quantity, as one float32 run shows them."""
    found: dict[Key, Errors] = {}
    for name, sampled in bundle.stages.items():
        found[FORWARD_FREE, name] = _sampled_errors(
            _wide(sampled), bundle.truth_stages[name], bundle.rms[f"stage/{name}"]
        )
    for name, sampled in bundle.gradients.items():
        found[GRADIENT_FREE, name] = _sampled_errors(
            _wide(sampled), bundle.truth_gradients[name], bundle.rms[f"grad/{name}"]
        )
    return found


def _wide(sampled: Sampled) -> np.ndarray:
    """The recorded values in float64: the reference's dtype is checked where it is recorded, not here."""
    return sampled.values.astype(np.complex128 if np.iscomplexobj(sampled.values) else np.float64)


def reference_verdicts(bundle: Bundle, truth: Truth, measured: Measured) -> dict[Key, Verdict]:
    """Judge the recorded reference against its measured ceilings (clause REFERENCE).

    A reference that has moved away from the truth is a failure, never a wider budget. Its gradients were recorded
    without the linear pieces they were taken on, so they have one ceiling that covers flips of pieces.
    """
    verdicts: dict[Key, Verdict] = {}
    factor = measured.reference_factor
    for (clause, name), found in recorded_errors(bundle).items():
        if clause == FORWARD_FREE:
            amplified = truth.condition.stages_free[name]
            ceiling = measured.envelope((clause, name), Quantity(name, found, amplified)).largest(amplified)
        else:
            ceiling = measured.raw_gradient
        budget = Errors(ceiling.e * factor.e, ceiling.m * factor.m)
        verdicts[REFERENCE, name] = Verdict(REFERENCE, name, found, found, budget)
    loss_errors = errors(
        [deviation(np.array(bundle.losses[name]), np.array(value)) for name, value in bundle.truth_losses.items()]
    )
    amplified = max(truth.condition.losses_free.values(), key=lambda each: each.e)
    ceiling = measured.gains[LOSS]["loss"]
    budget = Errors(factor.e * max(ceiling.e, 1) * amplified.e, factor.m * max(ceiling.m, 1) * amplified.m)
    verdicts[REFERENCE, "loss"] = Verdict(REFERENCE, "loss", loss_errors, loss_errors, budget)
    return verdicts


def _updates(before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: after[name].astype(np.float64) - before[name].astype(np.float64) for name in before}


def train_verdicts(bundle: Bundle, truth: Truth, subject: TorchSubject, measured: Measured) -> dict[Key, Verdict]:
    """Judge the recorded training steps: losses before each update, and the whole update of every weight.

    Adam divides by small second moments, so rounding moves an update by percents. The budget is therefore the spread
    of the truth's own training from inputs moved by one ulp, and in float64 that spread shrunk to float64.
    """
    steps = len(bundle.train_losses)
    if steps == 0:
        return {}
    case = truth.case
    true_losses, true_weights = truth.train(steps)
    true_updates = _updates(truth.constants.weights, true_weights)
    spread: dict[str, Errors] = {name: Errors(0.0, 0.0) for name in [*true_updates, "losses"]}
    for seed in range(TRAIN_DRAWS):
        moved = Truth(moved_case(case, np.random.default_rng(seed)))
        losses, weights = moved.train(steps)
        updates = _updates(moved.constants.weights, weights)
        spread["losses"] = spread["losses"].largest(compare(np.array(losses), np.array(true_losses)))
        for name, update in true_updates.items():
            spread[name] = spread[name].largest(compare(updates[name], update))
    found_losses, found_weights = subject.train(case, steps)
    found_updates = _updates(case.weights, found_weights)
    verdicts: dict[Key, Verdict] = {}

    def add(name: str, found: Errors, recorded: Errors) -> None:
        if subject.dtype == "float64":
            budget = float64_budget(spread[name], measured.limits)
        else:
            budget = float32_budget(recorded, spread[name], measured.limits)
        verdicts[TRAIN, name] = Verdict(TRAIN, name, recorded, found, budget)

    add(
        "losses",
        compare(np.array(found_losses), np.array(true_losses)),
        compare(np.array(bundle.train_losses), np.array(true_losses)),
    )
    for name, update in true_updates.items():
        if subject.dtype == "float32" and update.size < SMALL:
            continue  # Its kernel speaks for it: the ratio of two single rounding errors means nothing.
        rms = float(np.sqrt(np.mean(update**2)))
        sampled = bundle.trained[name]
        recorded_update = _wide(sampled) - sampled.pick(case.weights[name].astype(np.float64))
        recorded = _sampled_errors(recorded_update, sampled.pick(update), rms)
        add(name, compare(found_updates[name], update), recorded)
    return verdicts
