"""Replaying a bundle: is the oracle the stored truth, is the reference as measured, does training follow it?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from conformance.bundle import Bundle, Sampled
from conformance.judge import (
    NONE,
    ONE_ULP,
    SMALL,
    Errors,
    Limits,
    Verdict,
    compare,
    deviation,
    errors,
    float32_budget,
    float64_budget,
    rounding,
)
from conformance.measured import Measured
from conformance.parity import FLOAT64, FORWARD_FREE, GRADIENT_FREE, LOSS, REFERENCE, TRAIN, Key, Measurement, Quantity
from conformance.torch_subject import TorchSubject
from conformance.truth import Truth, moved_case

TRAIN_DRAWS = 1
"""Trainings of the truth from weights moved by one ulp, whose spread three float32 steps are judged against."""


def _sampled_errors(values: np.ndarray, truth: np.ndarray, rms: float) -> Errors:
    return errors([deviation(values, truth, scale=rms)])


def oracle_verdicts(bundle: Bundle, measurement: Measurement, limits: Limits) -> dict[Key, Verdict]:
    """Judge the oracle's own run against the float64 truth stored in the bundle (clause FLOAT64)."""
    verdicts: dict[Key, Verdict] = {}
    truth, condition = measurement.truth, measurement.condition("float64")

    def add(name: str, found: Errors, amplified: Callable[[], Errors]) -> None:
        settled = found.e <= limits.float64_floor
        budget = float64_budget(NONE if settled else amplified(), limits)
        verdicts[FLOAT64, name] = Verdict(FLOAT64, name, None, found, budget)

    for name, stored in bundle.truth_stages.items():
        mine = bundle.stages[name].pick(truth.stages[name])
        found = _sampled_errors(mine, stored, bundle.rms[f"stage/{name}"])
        add(name, found, lambda name=name: condition.free.stages[name])  # type: ignore[misc]
    for name, stored in bundle.truth_gradients.items():
        mine = bundle.gradients[name].pick(truth.gradients.constants[name])
        found = _sampled_errors(mine, stored, bundle.rms[f"grad/{name}"])
        add(name, found, lambda name=name: condition.free.gradients[name])  # type: ignore[misc]
    for name, value in bundle.truth_losses.items():
        found = compare(np.array(truth.losses[name]), np.array(value))
        add(f"loss.{name}", found, lambda name=name: condition.free.losses[name])  # type: ignore[misc]
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


def reference_verdicts(bundle: Bundle, measurement: Measurement, measured: Measured) -> dict[Key, Verdict]:
    """Judge the recorded reference against its measured ceilings (clause REFERENCE).

    A reference that has moved away from the truth is a failure, never a wider budget. Its gradients were recorded
    without the linear pieces they were taken on, so they have one ceiling that covers flips of pieces.
    """
    verdicts: dict[Key, Verdict] = {}
    factor, truth, condition = measured.reference_factor, measurement.truth, measurement.condition("float32").free
    for (clause, name), found in recorded_errors(bundle).items():
        if clause == FORWARD_FREE:
            key, stage = (clause, name), name
            amplified = condition.stages[name].largest(rounding(truth.stages[name], "float32"))
        else:
            key, stage = (REFERENCE, name), name.rpartition(".")[0]
            gradient = truth.gradients.constants[name]
            amplified = condition.gradients[name].largest(rounding(gradient, "float32"))
        ceiling = measured.envelope(key, Quantity(stage, found, amplified)).largest(amplified)
        budget = Errors(ceiling.e * factor.e, ceiling.m * factor.m)
        verdicts[REFERENCE, name] = Verdict(REFERENCE, name, found, found, budget)
    loss_errors = errors(
        [deviation(np.array(bundle.losses[name]), np.array(value)) for name, value in bundle.truth_losses.items()]
    )
    amplified = max(condition.losses.values(), key=lambda each: each.e)
    ceiling = measured.gains[LOSS]["loss"]
    budget = Errors(factor.e * max(ceiling.e, 1) * amplified.e, factor.m * max(ceiling.m, 1) * amplified.m)
    verdicts[REFERENCE, "loss"] = Verdict(REFERENCE, "loss", loss_errors, loss_errors, budget)
    return verdicts


def _updates(before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: after[name].astype(np.float64) - before[name].astype(np.float64) for name in before}


@dataclass(frozen=True)
class TrainingTruth:
    """The truth's own training on a recorded batch.

    Attributes:
        losses: total before each update.
        updates: weight name → change over all updates.
        spread: weight name, or ``losses`` → errors of trainings whose inputs were moved by one float32 ulp. Adam
            divides by small second moments, so rounding moves an update by percents.
    """

    losses: np.ndarray
    updates: Mapping[str, np.ndarray]
    spread: Mapping[str, Errors]

    @classmethod
    def of(cls, truth: Truth, steps: int) -> TrainingTruth:
        """Train the truth, and copies of it moved by an ulp."""
        losses, weights = truth.train(steps)
        updates = _updates(truth.constants.weights, weights)
        spread = dict.fromkeys([*updates, "losses"], Errors(0.0, 0.0))
        for seed in range(TRAIN_DRAWS):
            moved = Truth(moved_case(truth.case, np.random.default_rng(seed)))
            moved_losses, moved_weights = moved.train(steps)
            moved_updates = _updates(moved.constants.weights, moved_weights)
            spread["losses"] = spread["losses"].largest(compare(np.array(moved_losses), np.array(losses)))
            spread |= {name: spread[name].largest(compare(moved_updates[name], updates[name])) for name in updates}
        return cls(np.array(losses), updates, spread)


def train_verdicts(
    bundle: Bundle, training: TrainingTruth, subject: TorchSubject, measured: Measured
) -> dict[Key, Verdict]:
    """Judge the recorded training steps: losses before each update, and the whole update of every weight.

    In float32 the budget is the spread of the truth's own training, or the recorded reference's error; in float64 it is
    that spread shrunk to float64.
    """
    found_losses, found_weights = subject.train(bundle.case, len(bundle.train_losses))
    found_updates = _updates(bundle.case.weights, found_weights)
    verdicts: dict[Key, Verdict] = {}
    shrink = ONE_ULP["float64"] / ONE_ULP["float32"]

    def add(name: str, found: Errors, recorded: Errors) -> None:
        spread = training.spread[name]
        if subject.dtype == "float64":
            budget = float64_budget(spread.scaled(shrink), measured.limits)
        else:
            budget = float32_budget(recorded, spread, measured.limits)
        verdicts[TRAIN, name] = Verdict(TRAIN, name, recorded, found, budget)

    recorded_losses = compare(np.array(bundle.train_losses), training.losses)
    add("losses", compare(np.array(found_losses), training.losses), recorded_losses)
    for name, update in training.updates.items():
        if subject.dtype == "float32" and update.size < SMALL:
            continue  # Its kernel speaks for it: the ratio of a few rounding errors means nothing.
        sampled = bundle.trained[name]
        recorded_update = _wide(sampled) - sampled.pick(bundle.case.weights[name].astype(np.float64))
        rms = float(np.sqrt(np.mean(update**2)))
        add(name, compare(found_updates[name], update), _sampled_errors(recorded_update, sampled.pick(update), rms))
    return verdicts
