"""Replaying a bundle: is the oracle the stored truth, is the reference as measured, does training follow it?"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from conformance.cases.case import NOTHING_FORCED, NOTHING_FREE, Case, ForcedRun, FreeRun
from conformance.judge.condition import STEP, Amplified, Condition
from conformance.judge.gains import Gains
from conformance.judge.measure import (
    FLOAT64,
    FORWARD_FREE,
    FRESH,
    GRADIENT_FORCED,
    GRADIENT_FREE,
    LOSS,
    NETWORK_CLAUSES,
    REFERENCE,
    TRAIN,
    Key,
    Measurement,
    Quantity,
    pieces_of,
)
from conformance.judge.measured import Measured
from conformance.judge.rules import (
    NONE,
    ONE_ULP,
    Deviation,
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
from conformance.judge.truth import Truth
from conformance.oracle.stages import rms
from conformance.recordings.bundle import Bundle
from conformance.recordings.manifest import RecordedErrors
from conformance.recordings.pieces import recorded_pieces
from conformance.subjects.candidate import CandidateSubject
from conformance.subjects.torch import TorchSubject
from conformance.training.state import TrainingRun, train_truth

RMS_BUDGET = Errors(1e-9, 1e-9)
"""How well a stored RMS must be known; it only scales other errors."""

LEARNING_RATE, BETA_1, BETA_2, EPSILON = 1e-3, 0.9, 0.999, 1e-7
"""Keras Adam as recordings were made with."""


def _sampled_errors(values: np.ndarray, truth: np.ndarray, scale: float) -> Errors:
    return errors([deviation(values, truth, scale=scale)])


def stored_truth_verdicts(
    bundle: Bundle,
    stages: Mapping[str, np.ndarray],
    gradients: Mapping[str, np.ndarray],
    losses: Mapping[str, float],
    condition: Condition,
    limits: Limits,
) -> dict[Key, Verdict]:
    """Judge a float64 run, the oracle's or the candidate's, against the truth stored in the bundle (clause FLOAT64)."""
    verdicts: dict[Key, Verdict] = {}
    amplified = cache(condition.free)

    def add(name: str, found: Errors, condition_of: Callable[[Amplified], Errors]) -> None:
        settled = found.e <= limits.float64_floor
        budget = float64_budget(NONE if settled else condition_of(amplified("float64")), limits)
        verdicts[FLOAT64, name] = Verdict(FLOAT64, name, None, found, budget)

    for name, stored in bundle.truth_stages.items():
        found = _sampled_errors(bundle.stages[name].pick(stages[name]), stored, rms(stages[name]))
        add(name, found, lambda each, name=name: each.stages[name])  # type: ignore[misc]
    for name, stored in bundle.truth_gradients.items():
        found = _sampled_errors(bundle.gradients[name].pick(gradients[name]), stored, rms(gradients[name]))
        add(name, found, lambda each, name=name: each.gradients[name])  # type: ignore[misc]
    # The stored RMS is the unit of every recorded error, so it is judged and not believed.
    for name, stored_rms in bundle.rms.items():
        kind, _, tensor = name.partition("/")
        mine = rms((stages if kind == "stage" else gradients)[tensor])
        found, budget = compare(np.array(stored_rms), np.array(mine)), RMS_BUDGET
        if found.e > budget.e:
            # A sum that symmetry holds at zero is known no better than rounding leaves it.
            table = amplified("float64").stages if kind == "stage" else amplified("float64").gradients
            budget = budget.largest(float64_budget(table[tensor], limits))
        verdicts[FLOAT64, f"rms/{name}"] = Verdict(FLOAT64, f"rms/{name}", None, found, budget)
    for name, value in bundle.truth_losses.items():
        found = compare(np.array(losses[name]), np.array(value))
        add(f"loss.{name}", found, lambda each, name=name: each.losses[name])  # type: ignore[misc]
    return verdicts


def recorded_errors(bundle: Bundle) -> dict[Key, Errors]:
    """Return the reference's recorded errors by quantity, as one float32 run shows them."""
    found: dict[Key, Errors] = {}
    for name, sampled in bundle.stages.items():
        truth, scale = bundle.truth_stages[name], bundle.rms[f"stage/{name}"]
        found[FORWARD_FREE, name] = _sampled_errors(sampled.values, truth, scale)
    for name, sampled in bundle.gradients.items():
        truth, scale = bundle.truth_gradients[name], bundle.rms[f"grad/{name}"]
        found[GRADIENT_FREE, name] = _sampled_errors(sampled.values, truth, scale)
    return found


def reference_verdicts(bundle: Bundle, measurement: Measurement, measured: Measured) -> dict[Key, Verdict]:
    """Judge the recorded reference against its measured ceilings (clause REFERENCE).

    A reference that has moved away from the truth is a failure, never a wider budget. Gradients are recorded without
    the linear pieces they were taken on. An envelope has their errors on those pieces, and is judged by them; where
    there is none, the few elements that rounding may put on another piece are found, and ceilings of the encoder, which
    has most of them, cover flips in networks with drawn weights.
    """
    factor, truth, condition = measured.reference_factor, measurement.truth, measurement.condition.free("float32")
    found = recorded_errors(bundle)
    verdicts: dict[Key, Verdict] = {}
    for name in bundle.stages:
        amplified = condition.stages[name].largest(rounding(truth.stages[name], "float32"))
        ceiling = measured.gains.times_condition(FORWARD_FREE, Quantity(name, NONE, amplified)).largest(amplified)
        mine = found[FORWARD_FREE, name]
        verdicts[REFERENCE, name] = Verdict(REFERENCE, name, mine, mine, _times_factor(ceiling, factor))
    if bundle.envelope is None:
        reach = {stage: verdict.budget.e for (_, stage), verdict in verdicts.items()}
        verdicts |= _gradient_verdicts(bundle, measurement, measured, reach)
    loss_errors = errors(
        [deviation(np.array(bundle.losses[name]), np.array(value)) for name, value in bundle.truth_losses.items()]
    )
    amplified = max(condition.losses.values(), key=lambda each: each.e)
    ceiling = measured.gains.of(LOSS, "loss")
    budget = Errors(factor.e * max(ceiling.e, 1) * amplified.e, factor.m * max(ceiling.m, 1) * amplified.m)
    verdicts[REFERENCE, "loss"] = Verdict(REFERENCE, "loss", loss_errors, loss_errors, budget)
    return verdicts


def _gradient_verdicts(
    bundle: Bundle, measurement: Measurement, measured: Measured, reach: Mapping[str, float]
) -> dict[Key, Verdict]:
    """Judge recorded gradients; where one fails, on the pieces that rounding may have put the reference on.

    Args:
        bundle: without an envelope.
        measurement: of its case.
        measured: the spec's numbers.
        reach: stage id → how far from the truth it may be, in units of the RMS.
    """
    budgets = {
        name: _times_factor(_gradient_ceiling(name, measurement, measured.gains), measured.reference_factor)
        for name in bundle.gradients
    }

    def verdicts(gradients: Mapping[str, np.ndarray]) -> dict[str, Verdict]:
        found = {
            name: _sampled_errors(sampled.values, sampled.pick(gradients[name]), bundle.rms[f"grad/{name}"])
            for name, sampled in bundle.gradients.items()
        }
        return {name: Verdict(REFERENCE, name, each, each, budgets[name]) for name, each in found.items()}

    def shares(gradients: Mapping[str, np.ndarray]) -> dict[str, float]:
        return {name: verdict.share for name, verdict in verdicts(gradients).items()}

    truth = measurement.truth
    judged = verdicts(truth.gradients.constants)
    if not all(verdict.passed for verdict in judged.values()):
        of_loss = {"loss": reach["predicted_amplitude"]}
        explained = recorded_pieces(truth, {**reach, **of_loss}, shares)
        judged = judged if explained is None else verdicts(explained)
    return {(REFERENCE, name): verdict for name, verdict in judged.items()}


def _gradient_ceiling(name: str, measurement: Measurement, gains: Gains) -> Errors:
    """Return how far a gradient running free may be from the truth: by its history, or by its own sum."""
    truth, stage = measurement.truth, name.rpartition(".")[0]
    rounded = rounding(truth.gradients.constants[name], "float32")
    amplified = measurement.condition.free("float32").gradients[name].largest(rounded)
    history = gains.times_condition(REFERENCE, Quantity(stage, NONE, amplified)).largest(amplified)
    if not _has_long_sums(truth):
        return history
    alone = measurement.condition.forced("float32").gradients[name].largest(rounded)
    own_sum = gains.times_condition(GRADIENT_FORCED, Quantity(stage, NONE, alone, terms=truth.terms(stage)))
    return history.largest(own_sum)


def _has_long_sums(truth: Truth) -> bool:
    """Whether a gradient's own sum can outgrow its history: up to N = 128 the history's ceiling holds it."""
    return truth.case.settings.N > 128


def _times_factor(ceiling: Errors, factor: Errors) -> Errors:
    return Errors(ceiling.e * factor.e, ceiling.m * factor.m)


class _Silent:
    """Gives nothing, so that of a measurement the conditions are left."""

    dtype = products = "float32"

    def free(self, case: Case) -> FreeRun:
        return NOTHING_FREE

    def forced(
        self, case: Case, truth_stages: Mapping[str, np.ndarray], truth_cotangents: Mapping[str, np.ndarray]
    ) -> ForcedRun:
        return NOTHING_FORCED


def recorded_run(envelope: RecordedErrors, measurement: Measurement) -> dict[Key, Quantity]:
    """Return a recorded envelope beside the case's condition, as that is measured here."""
    return {
        key: dataclasses.replace(each, errors=envelope.widest.get(key, NONE), mismatch="")
        for key, each in measurement.of(_Silent()).items()
    }


def envelope_verdicts(run: Mapping[Key, Quantity], truth: Truth, measured: Measured) -> dict[Key, Verdict]:
    """Judge a recorded envelope against the measured ceilings (clause REFERENCE).

    An envelope decides what a candidate may use. One that is wider than any that was measured is not believed.
    """
    gains, factor = measured.gains, measured.reference_factor
    verdicts: dict[Key, Verdict] = {}
    for (clause, name), each in run.items():
        found = gains.envelope((clause, name), run) if _has_long_sums(truth) else gains.times_condition(clause, each)
        budget = _times_factor(found.largest(each.amplified), factor)
        key = REFERENCE, f"envelope/{clause}/{name}"
        verdicts[key] = Verdict(*key, each.errors, each.errors, budget)
    return verdicts


def fresh_verdicts(bundle: Bundle) -> dict[Key, Verdict]:
    """Judge whether a recording is valid for the specification and the code that are here (clause FRESH).

    One of format 1 has no digests, so nothing can be said here; clauses FLOAT64 and REFERENCE judge it all the same.
    """
    if bundle.manifest is None:
        return {}
    reasons = {
        name: f"the recording is stale: the {name} changed since it was made; `python -m conformance record` it again"
        for name in bundle.manifest.changed()
    }
    return {
        (FRESH, name): Verdict(FRESH, name, None, NONE, NONE, reasons.get(name, "")) for name in bundle.manifest.digests
    }


def package_verdicts(run: Mapping[Key, Quantity], measured: Measured) -> dict[Key, Verdict]:
    """Judge a run of an installed reference package against the measured ceilings (clause REFERENCE).

    Stages that were fed with the truth come first, in the order of the network, so that the first failing verdict names
    the stage that is wrong.
    """
    order = sorted(NETWORK_CLAUSES, key=lambda clause: clause.endswith("FREE"))
    verdicts: dict[Key, Verdict] = {}
    for clause, name in sorted(run, key=lambda key: order.index(key[0])):
        quantity, amplified = run[clause, name], run[clause, name].amplified
        ceiling = measured.gains.envelope((clause, name), run).largest(amplified)
        key = REFERENCE, f"{name} ({clause})"
        budget = _times_factor(ceiling, measured.reference_factor)
        verdicts[key] = Verdict(*key, quantity.errors, quantity.errors, budget, quantity.mismatch)
    return verdicts


@dataclass(frozen=True)
class TrainingTruth:
    """The truth's own training on a recorded batch.

    Attributes:
        losses: total before each update.
        updates: weight name → change over all updates.
        loss_condition: what noise of relative size 1 in everything would do to the losses.
        sensitivity: weight name → per element, what an error of every step's gradient does to the whole update, the
            error being what noise of relative size 1 causes in that weight's gradient.
    """

    losses: np.ndarray
    updates: Mapping[str, np.ndarray]
    loss_condition: Errors
    sensitivity: Mapping[str, np.ndarray]

    @classmethod
    def of(cls, truth: Truth, steps: int) -> TrainingTruth:
        """Train the truth, and once more with noise, to see how far gradients and losses follow it."""
        run, before = _of_weights(truth, steps), truth.constants.weights
        true, noisy = train_truth(run), train_truth(run, STEP)
        pairs = list(zip(true.gradients, noisy.gradients, strict=True))
        steps_of = {name: [step[name] for step in true.gradients] for name in before}
        return cls(
            losses=true.losses,
            updates={name: weights - before[name] for name, weights in true.states[-1].weights.items()},
            loss_condition=compare(noisy.losses, true.losses).scaled(1 / STEP),
            sensitivity={
                name: _adam_sensitivity(found, [rms(there[name] - here[name]) / STEP for here, there in pairs])
                for name, found in steps_of.items()
            },
        )

    def on_pieces_of(self, truth: Truth, runs: Sequence[FreeRun], dtype: str) -> TrainingTruth:
        """Return the truth's training on the linear pieces that a candidate's training was on.

        What rounding explains stays as it is: it is of one piece.

        Args:
            truth: that was trained.
            runs: the candidate's network before each update, running free.
            dtype: the candidate's.
        """
        before, measured = truth.constants.weights, truth.case.scaled_amplitude(dtype)
        true = train_truth(
            _of_weights(truth, len(runs)),
            branches=lambda step, here: pieces_of(here, runs[step - 1], measured).branches,
        )
        updates = {name: weights - before[name] for name, weights in true.states[-1].weights.items()}
        return dataclasses.replace(self, losses=true.losses, updates=updates)

    def spread(self, dtype: str) -> dict[str, Errors]:
        """Return the errors that rounding in a dtype explains: of the losses, and of the update of each part."""
        parts: dict[str, list[np.ndarray]] = {}
        for name, update in self.updates.items():
            explained = self.sensitivity[name] * ONE_ULP[dtype]
            # However wrong a gradient is, Adam moves a weight by its rate and no further.
            bounded = np.minimum(explained, 2 * np.abs(update).max())
            parts.setdefault(name.partition(".")[0], []).append(bounded.ravel() / rms(update))
        pooled = {part: np.concatenate(found) for part, found in parts.items()}
        return {"losses": self.loss_condition.scaled(ONE_ULP[dtype])} | {
            part: Errors(rms(found), float(found.max())) for part, found in pooled.items()
        }

    def errors(self, losses: np.ndarray, updates: Mapping[str, np.ndarray]) -> dict[str, Errors]:
        """Measure a training: its losses, and its updates pooled over each part of the network.

        Every tensor is measured in units of its own RMS before it is pooled. A single one would not do: whether one
        element of a bias keeps its sign is a matter of one rounding.
        """
        parts: dict[str, list[Deviation]] = {}
        for name, update in self.updates.items():
            parts.setdefault(name.partition(".")[0], []).append(deviation(updates[name], update))
        return {"losses": compare(losses, self.losses)} | {part: errors(found) for part, found in parts.items()}

    def recorded(self, bundle: Bundle) -> dict[str, Errors]:
        """Measure the recorded training on its samples."""
        parts: dict[str, list[Deviation]] = {}
        for name, update in self.updates.items():
            sampled = bundle.trained[name]
            found = sampled.values - sampled.pick(bundle.case.weights[name].astype(np.float64))
            part = parts.setdefault(name.partition(".")[0], [])
            part.append(deviation(found, sampled.pick(update), scale=rms(update)))
        losses = compare(np.array(bundle.train_losses), self.losses)
        return {"losses": losses} | {part: errors(found) for part, found in parts.items()}


def _of_weights(truth: Truth, steps: int) -> TrainingRun:
    """Return a training of the weights alone, as the reference's is (REF-02)."""
    settings = dataclasses.replace(truth.case.settings, intensity_scale_trainable=False, probe_trainable=False)
    return TrainingRun.repeated(dataclasses.replace(truth.case, settings=settings), steps)


def _adam_sensitivity(gradients: Sequence[np.ndarray], noise: Sequence[float]) -> np.ndarray:
    """Return how far independent errors of each step's gradient move the sum of all updates, per element.

    u = −Σ_t rate_t · m_t / (√v_t + ε), so ∂u/∂g_s = −Σ_{t ≥ s} rate_t · [∂m_t/∂g_s − m_t · ∂√v_t/∂g_s / (√v_t + ε)]
    / (√v_t + ε). An update divides by small moments: where the gradient is nearly zero, this is large. Where it is zero
    at every step a unit is dead, and rounding does not wake it.
    """
    variance = np.zeros_like(gradients[0])
    for s, size in enumerate(noise, 1):
        slope = np.zeros_like(gradients[0])
        first, second = np.zeros_like(slope), np.zeros_like(slope)
        for t, gradient in enumerate(gradients, 1):
            first = BETA_1 * first + (1 - BETA_1) * gradient
            second = BETA_2 * second + (1 - BETA_2) * gradient**2
            if t < s:
                continue
            root = np.sqrt(second)
            by_first = (1 - BETA_1) * BETA_1 ** (t - s)
            by_root = (1 - BETA_2) * BETA_2 ** (t - s) * gradients[s - 1] / np.maximum(root, np.finfo(float).tiny)
            rate = LEARNING_RATE * np.sqrt(1 - BETA_2**t) / (1 - BETA_1**t)
            slope += rate * (by_first - first * by_root / (root + EPSILON)) / (root + EPSILON)
        variance += (slope * size) ** 2
    dead = np.all([gradient == 0 for gradient in gradients], axis=0)
    return np.where(dead, 0.0, np.sqrt(variance))


def train_verdicts(
    bundle: Bundle,
    truth: Truth,
    training: TrainingTruth,
    subject: CandidateSubject | TorchSubject,
    measured: Measured,
) -> dict[Key, Verdict]:
    """Judge the recorded training steps: losses before each update, and the whole update of every part.

    An update may be as far off as the condition of its gradients explains, in float32 also as far as the recorded one.
    A rounding that decides a ReLU or a pool changes a gradient by far more, and by Adam the next loss: a training that
    is not the truth's is judged once more by the truth on the linear pieces that its own network was on.
    """
    from conformance.subjects.torch_training import train_torch

    case = bundle.case
    trained = train_torch(TrainingRun.repeated(case, len(bundle.train_losses)), subject.device, subject.dtype)
    before = {name: weight.astype(np.float64) for name, weight in case.weights.items()}
    updates = {name: trained.states[-1].weights[name].astype(np.float64) - weight for name, weight in before.items()}
    recorded, spread = training.recorded(bundle), training.spread(subject.dtype)

    def verdicts(expected: TrainingTruth) -> dict[Key, Verdict]:
        found: dict[Key, Verdict] = {}
        for name, each in expected.errors(trained.losses, updates).items():
            if subject.dtype == "float64":
                budget = float64_budget(spread[name], measured.limits)
            else:
                budget = float32_budget(recorded[name], spread[name], measured.limits)
            found[TRAIN, name] = Verdict(TRAIN, name, recorded[name], each, budget)
        return found

    judged = verdicts(training)
    if not all(verdict.passed for verdict in judged.values()):
        weights = [case.weights, *({name: state.weights[name] for name in before} for state in trained.states[:-1])]
        runs = [subject.free(dataclasses.replace(case, weights=each)) for each in weights]
        judged = verdicts(training.on_pieces_of(truth, runs, subject.dtype))
    return judged
