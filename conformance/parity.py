"""From runs of a subject to verdicts: every quantity of a case, measured against the truth and judged."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from conformance.case import Case, ForcedRun, FreeRun
from conformance.judge import (
    SMALL,
    Deviation,
    Errors,
    Limits,
    Verdict,
    deviation,
    errors,
    float32_budget,
    float64_budget,
    rounding,
)
from conformance.truth import Truth

FORWARD_FREE, FORWARD_FORCED = "FORWARD-FREE", "FORWARD-FORCED"
BACKWARD_FREE, BACKWARD_FORCED = "BACKWARD-FREE", "BACKWARD-FORCED"
GRADIENT_FREE, GRADIENT_FORCED = "GRADIENT-FREE", "GRADIENT-FORCED"
LOSS = "LOSS"
FORCED = (FORWARD_FORCED, BACKWARD_FORCED, GRADIENT_FORCED)

Key = tuple[str, str]
"""(judgement clause, name of the quantity)."""


class Subject(Protocol):
    """Something that can be judged: the PyTorch network, or Keras as the reference."""

    @property
    def dtype(self) -> str:
        """``float32`` or ``float64``."""

    def free(self, case: Case) -> FreeRun:
        """Run end to end."""

    def forced(
        self, case: Case, truth_stages: Mapping[str, np.ndarray], truth_cotangents: Mapping[str, np.ndarray]
    ) -> ForcedRun:
        """Run stage by stage on the truth's values."""


@dataclass(frozen=True)
class Quantity:
    """One thing that was measured.

    Attributes:
        stage: the stage it belongs to; ``loss`` for the losses.
        errors: of the subject. For a stage with a kink, ``m`` also covers how far from the kink the truth lies
            where the subject took the other piece.
        amplified: errors that one-ulp changes of the inputs cause.
        mismatch: why it cannot be compared at all; empty if it can.
    """

    stage: str
    errors: Errors
    amplified: Errors
    mismatch: str = ""


@dataclass(frozen=True)
class _Part:
    """One tensor of a quantity."""

    values: np.ndarray | None
    truth: np.ndarray
    amplified: Errors


def _quantity(stage: str, parts: Sequence[_Part], dtype: str, margin: float = 0.0) -> Quantity:
    """Measure the parts of one quantity and pool them."""
    deviations = [_typed_deviation(part, dtype) for part in parts]
    found = errors(deviations)
    sizes = np.array([part.truth.size for part in parts], dtype=np.float64)
    floored = [part.amplified.largest(rounding(part.truth)) for part in parts]
    squares = np.array([each.e**2 for each in floored])
    amplified = Errors(float(np.sqrt(np.sum(sizes * squares) / np.sum(sizes))), max(each.m for each in floored))
    mismatch = next((each.mismatch for each in deviations if each.mismatch), "")
    return Quantity(stage, Errors(found.e, max(found.m, margin)), amplified, mismatch)


def _typed_deviation(part: _Part, dtype: str) -> Deviation:
    if part.values is not None:
        found = np.dtype(part.values.dtype)
        expected = np.dtype(dtype if np.isrealobj(part.truth) else {"float32": "complex64"}.get(dtype, "complex128"))
        if found != expected and np.iscomplexobj(part.values) == np.iscomplexobj(part.truth):
            return Deviation(np.empty(0), f"dtype {found}, expected {expected}")
    return deviation(part.values, part.truth)


def measure(truth: Truth, subject: Subject, case: Case | None = None) -> dict[Key, Quantity]:
    """Run a subject both ways and measure everything against the truth.

    Args:
        truth: of the case that is judged.
        subject: who is measured.
        case: another case to run, if not the truth's own: the same one moved by an ulp, for an envelope.
    """
    case = truth.case if case is None else case
    found = dict(_free(truth, subject.free(case), case, subject.dtype))
    forced = subject.forced(case, truth.stages, truth.gradients.cotangents)
    found.update(_forced(truth, forced, case, subject.dtype))
    return found


def _free(truth: Truth, run: FreeRun, case: Case, dtype: str) -> Iterator[tuple[Key, Quantity]]:
    condition = truth.condition
    complete = {name: run.stages.get(name, array) for name, array in truth.stages.items()}
    comparable = all(complete[name].shape == array.shape for name, array in truth.stages.items())
    measured = case.scaled_amplitude(dtype)
    pieces = truth.pieces(complete, complete, measured) if comparable else truth.own_pieces
    gradients = truth.gradients_on(pieces.branches)
    for name, array in truth.stages.items():
        part = _Part(run.stages.get(name), array, condition.stages_free[name])
        yield (FORWARD_FREE, name), _quantity(name, [part], dtype, _margin(name, pieces.margins))
        part = _Part(run.cotangents.get(name), gradients.cotangents[name], condition.cotangents_free[name])
        yield (BACKWARD_FREE, name), _quantity(name, [part], dtype)
    parts = {
        name: _Part(run.gradients.get(name), gradients.constants[name], condition.gradients_free[name])
        for name in truth.case.weights
    }
    yield from _pooled_weights(GRADIENT_FREE, parts, dtype)
    stage_part = _Part(
        run.stages.get("predicted_intensity"),
        truth.stages["predicted_intensity"],
        condition.stages_free["predicted_intensity"],
    )
    yield from _losses("free", truth, run.losses, condition.losses_free, stage_part, dtype)


def _forced(truth: Truth, run: ForcedRun, case: Case, dtype: str) -> Iterator[tuple[Key, Quantity]]:
    condition = truth.condition
    measured = case.scaled_amplitude(dtype)
    fed = {name: _cast(array, dtype) for name, array in truth.stages.items()}
    outputs = {name: run.stages.get(name, array) for name, array in truth.stages.items()}
    comparable = all(outputs[name].shape == array.shape for name, array in truth.stages.items())
    pieces = truth.pieces(fed, outputs, measured) if comparable else truth.own_pieces
    parts: dict[str, _Part] = {}
    for name, array in truth.stages.items():
        part = _Part(run.stages.get(name), array, condition.stages_forced[name])
        yield (FORWARD_FORCED, name), _quantity(name, [part], dtype, _margin(name, pieces.margins))
        by_input, by_weight = truth.pullback(name, pieces.branches)
        yield from _pulled(name, run.pulled.get(name, {}), by_input, condition.pulled_forced, dtype)
        parts |= {
            weight: _Part(run.gradients.get(weight), gradient, condition.gradients_forced[weight])
            for weight, gradient in by_weight.items()
        }
    expected = truth.oracle.loss_pullback(
        truth.stages, truth.network_input, truth.loss_weights, pieces.branches["loss"]
    )
    yield from _pulled("loss", run.pulled.get("loss", {}), expected, condition.pulled_forced, dtype)
    yield from _pooled_weights(GRADIENT_FORCED, parts, dtype)
    stage_part = _Part(
        fed["predicted_intensity"],
        truth.stages["predicted_intensity"],
        condition.stages_forced["predicted_intensity"],
    )
    yield from _losses("forced", truth, run.losses, condition.losses_forced, stage_part, dtype)


def _cast(array: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "float64":
        return array
    return array.astype(np.complex64 if np.iscomplexobj(array) else np.float32)


def _margin(stage: str, margins: Mapping[str, float]) -> float:
    """How far the truth is from the pieces that this stage's output decides; the losses branch on the amplitude."""
    return max(margins.get(stage, 0.0), margins["loss"] if stage == "predicted_amplitude" else 0.0)


def _pulled(
    stage: str,
    found: Mapping[str, np.ndarray],
    expected: Mapping[str, np.ndarray],
    amplified: Mapping[str, Errors],
    dtype: str,
) -> Iterator[tuple[Key, Quantity]]:
    strangers = sorted(set(found) - set(expected))
    for name, array in expected.items():
        key = f"{stage}<-{name}"
        quantity = _quantity(stage, [_Part(found.get(name), array, amplified[key])], dtype)
        if strangers:
            quantity = Quantity(stage, quantity.errors, quantity.amplified, f"also listens to {', '.join(strangers)}")
        yield (BACKWARD_FORCED, key), quantity


def _pooled_weights(clause: str, parts: Mapping[str, _Part], dtype: str) -> Iterator[tuple[Key, Quantity]]:
    """Judge each weight; in float32 a small bias is pooled with the kernel of its convolution."""
    for name, part in parts.items():
        stage, _, kind = name.rpartition(".")
        if dtype == "float64":
            yield (clause, name), _quantity(stage, [part], dtype)
            continue
        bias = parts[f"{stage}.bias"]
        small = bias.truth.size < SMALL
        if kind == "kernel":
            yield (clause, name), _quantity(stage, [part, bias] if small else [part], dtype)
        elif not small:
            yield (clause, name), _quantity(stage, [part], dtype)


def _losses(
    mode: str,
    truth: Truth,
    found: Mapping[str, float],
    amplified: Mapping[str, Errors],
    stage: _Part,
    dtype: str,
) -> Iterator[tuple[Key, Quantity]]:
    """Judge the three losses; in float32 pooled with the predicted intensity they are taken from."""
    parts = {
        name: _Part(np.array(found[name], dtype=dtype) if name in found else None, np.array(value), amplified[name])
        for name, value in truth.losses.items()
    }
    if dtype == "float64":
        for name, part in parts.items():
            yield (LOSS, f"{mode}.{name}"), _quantity("loss", [part], dtype)
    else:
        yield (LOSS, mode), _quantity("loss", [*parts.values(), stage], dtype)


def envelope(runs: Sequence[Mapping[Key, Quantity]]) -> dict[Key, Errors]:
    """Return the largest errors of several runs of the reference, quantity by quantity."""
    return {
        key: Errors(max(run[key].errors.e for run in runs), max(run[key].errors.m for run in runs)) for key in runs[0]
    }


def judge(
    measured: Mapping[Key, Quantity],
    reference: Callable[[Key, Quantity], Errors],
    limits: Limits,
    dtype: str,
    shown: Mapping[Key, Errors] | None = None,
) -> dict[Key, Verdict]:
    """Turn measurements into verdicts.

    Args:
        measured: of the candidate.
        reference: envelope of the reference's errors for a quantity; float32 only.
        limits: from the spec.
        dtype: of the candidate.
        shown: reference errors to print beside the verdict, where they were recorded.
    """
    verdicts = {}
    for key, quantity in measured.items():
        if dtype == "float64":
            budget, beside = float64_budget(quantity.amplified, limits), None
        else:
            beside = reference(key, quantity)
            budget = float32_budget(beside, quantity.amplified, limits)
        beside = shown.get(key, beside) if shown else beside
        verdicts[key] = Verdict(*key, beside, quantity.errors, budget, quantity.mismatch)
    return verdicts


def first_failing_stage(verdicts: Mapping[Key, Verdict], measured: Mapping[Key, Quantity]) -> str | None:
    """Name the first stage that fails when fed with the truth: forward in order, then backward against it."""

    def failing(clauses: Sequence[str]) -> list[str]:
        return [
            measured[key].stage for key, verdict in verdicts.items() if key[0] in clauses and not verdict.passed
        ]

    forward = failing([FORWARD_FORCED])
    if forward:
        return forward[0]
    if any(not verdict.passed for key, verdict in verdicts.items() if key == (LOSS, "forced")):
        return "loss"
    backward = failing([BACKWARD_FORCED, GRADIENT_FORCED])
    order = {stage: position for position, stage in enumerate(["loss", *reversed(_forward_order(measured))])}
    return min(backward, key=order.__getitem__) if backward else None


def _forward_order(measured: Mapping[Key, Quantity]) -> list[str]:
    return [name for clause, name in measured if clause == FORWARD_FORCED]


def worst(verdicts: Mapping[Key, Verdict], clauses: Sequence[str] | None = None) -> Verdict | None:
    """Return the verdict that used most of its budget."""
    chosen = [verdict for (clause, _), verdict in verdicts.items() if clauses is None or clause in clauses]
    return max(chosen, key=lambda verdict: math.inf if verdict.reason else verdict.share, default=None)
