"""From runs of a subject to verdicts: every quantity of a case, measured against the truth and judged."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Protocol

import numpy as np

from conformance.cases.case import Case, ForcedRun, FreeRun
from conformance.judge.condition import Amplified, Condition
from conformance.judge.rules import (
    NONE,
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
from conformance.judge.truth import Pieces, Truth
from conformance.judge.worst import IMAGE, KERNEL, Place, locate
from conformance.spec.loader import Stage

FORWARD_FREE, FORWARD_FORCED = "FORWARD-FREE", "FORWARD-FORCED"
BACKWARD_FREE, BACKWARD_FORCED = "BACKWARD-FREE", "BACKWARD-FORCED"
GRADIENT_FREE, GRADIENT_FORCED = "GRADIENT-FREE", "GRADIENT-FORCED"
LOSS = "LOSS"
FLOAT64, REFERENCE, TRAIN, RECORDED = "FLOAT64", "REFERENCE", "TRAIN", "RECORDED"
FRESH = "FRESH"

NETWORK_CLAUSES = (
    *(FORWARD_FREE, FORWARD_FORCED, BACKWARD_FREE, BACKWARD_FORCED, GRADIENT_FREE, GRADIENT_FORCED),
    LOSS,
)
"""What every case of the network is judged by."""


def stage_clauses(stage: Stage) -> Iterator[str]:
    """Yield the judgement clauses that a stage has something to show for."""
    yield from (FORWARD_FREE, FORWARD_FORCED, BACKWARD_FREE)
    if any(name != "input" for name in stage.inputs):
        yield BACKWARD_FORCED
    if stage.weights:
        yield from (GRADIENT_FREE, GRADIENT_FORCED)


Conditions = Callable[[str], Amplified]
"""dtype → the condition of everything."""

Key = tuple[str, str]
"""(judgement clause, name of the quantity)."""


class Subject(Protocol):
    """Something that can be judged: the PyTorch network, or Keras as the reference."""

    @property
    def dtype(self) -> str:
        """``float32`` or ``float64``."""

    @property
    def products(self) -> str:
        """What its convolutions run in, a key of ``UNIT_ROUNDOFF``; the dtype, if not less."""

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
        place: where it deviates most, if that was asked for.
        unit: the rounding that ``amplified`` is of.
        terms: how many products each element sums over images, rows and columns; 1 but for gradients of weights.
    """

    stage: str
    errors: Errors
    amplified: Errors
    mismatch: str = ""
    place: Place | None = field(default=None, compare=False, repr=False)
    unit: str = "float32"
    terms: int = 1


@dataclass(frozen=True)
class _Part:
    """One tensor of a quantity; its condition is measured only if somebody asks."""

    values: np.ndarray | None
    truth: np.ndarray
    amplified: Callable[[], Errors]


@dataclass(frozen=True)
class _Ruler:
    """How to measure.

    Attributes:
        dtype: of the subject.
        products: what its convolutions run in.
        settled: errors e that pass whatever the condition is, so that it need not be measured.
        locating: whether to say where a quantity deviates most.
    """

    dtype: str
    products: str
    settled: float
    locating: bool

    def forced(self, has_weights: bool) -> str:
        """Say what rounding a stage fed with the truth may show: less than the dtype's only in a convolution."""
        return self.products if has_weights else self.dtype

    def quantity(
        self,
        stage: str,
        parts: Sequence[_Part],
        margin: float = 0.0,
        axes: tuple[int, int] = IMAGE,
        unit: str | None = None,
    ) -> Quantity:
        """Measure the parts of one quantity and pool them; the first one is the one to locate deviations in.

        ``unit`` is the rounding that the condition is of; None for that of the convolutions.
        """
        unit = self.products if unit is None else unit
        deviations = [_typed_deviation(part, self.dtype) for part in parts]
        found = errors(deviations)
        mismatch = next((each.mismatch for each in deviations if each.mismatch), "")
        amplified = NONE if found.e <= self.settled else _pooled_condition(parts, unit)
        place = locate(deviations[0].values, axes) if self.locating and not mismatch else None
        return Quantity(stage, Errors(found.e, max(found.m, margin)), amplified, mismatch, place, unit)


def _pooled_condition(parts: Sequence[_Part], dtype: str) -> Errors:
    sizes = np.array([part.truth.size for part in parts], dtype=np.float64)
    floored = [part.amplified().largest(rounding(part.truth, dtype)) for part in parts]
    squares = np.array([each.e**2 for each in floored])
    return Errors(float(np.sqrt(np.sum(sizes * squares) / np.sum(sizes))), max(each.m for each in floored))


def _typed_deviation(part: _Part, dtype: str) -> Deviation:
    if part.values is not None:
        found = np.dtype(part.values.dtype)
        expected = np.dtype(dtype if np.isrealobj(part.truth) else {"float32": "complex64"}.get(dtype, "complex128"))
        if found != expected and np.iscomplexobj(part.values) == np.iscomplexobj(part.truth):
            return Deviation(np.empty(0), f"dtype {found}, expected {expected}")
    return deviation(part.values, part.truth)


class Measurement:
    """Measures subjects against the truth of one case.

    Args:
        truth: of the case.
        limits: from the spec; float64 errors far below their floor need no condition.
    """

    def __init__(self, truth: Truth, limits: Limits) -> None:
        self.truth = truth
        # An error near the floor is shown beside what its condition allows, and not as a budget nearly used up.
        self._settled = limits.float64_floor / 4
        self.condition = Condition(truth)

    def of(self, subject: Subject, case: Case | None = None, *, locating: bool = False) -> dict[Key, Quantity]:
        """Run a subject both ways and measure everything.

        Args:
            subject: who is measured.
            case: another case to run, if not the truth's own: the same one moved by an ulp, for an envelope.
            locating: whether to say where each quantity deviates most.
        """
        case = self.truth.case if case is None else case
        ruler = _Ruler(subject.dtype, subject.products, self._settled if subject.dtype == "float64" else 0.0, locating)
        found = dict(_free(self.truth, subject.free(case), case, ruler, cache(self.condition.free)))
        forced = subject.forced(case, self.truth.stages, self.truth.gradients.cotangents)
        found.update(_forced(self.truth, forced, case, ruler, cache(self.condition.forced)))
        return found


def _free(
    truth: Truth, run: FreeRun, case: Case, ruler: _Ruler, condition: Conditions
) -> Iterator[tuple[Key, Quantity]]:
    measured = case.scaled_amplitude(ruler.dtype)
    pieces = pieces_of(truth, run, measured)
    gradients = truth.gradients_on(pieces.branches)
    found, expected_cotangents = dict(run.cotangents), dict(gradients.cotangents)
    if run.watched is not None:
        others = gradients
        branches = pieces_of(truth, run.watched, measured).branches
        if any(not np.array_equal(branch, pieces.branches[name]) for name, branch in branches.items()):
            others = truth.gradients_on(branches)
        found |= run.watched.cotangents
        expected_cotangents |= {name: others.cotangents[name] for name in run.watched.cotangents}
    for name, array in truth.stages.items():
        part = _Part(run.stages.get(name), array, lambda name=name: condition(ruler.products).stages[name])  # type: ignore[misc]
        yield (FORWARD_FREE, name), ruler.quantity(name, [part], _margin(name, pieces.margins))
        part = _Part(
            found.get(name),
            expected_cotangents[name],
            lambda name=name: condition(ruler.products).cotangents[name],  # type: ignore[misc]
        )
        yield (BACKWARD_FREE, name), ruler.quantity(name, [part])
    expected = {name: gradients.constants[name] for name in truth.case.weights}
    yield from _weights(truth, GRADIENT_FREE, run.gradients, expected, lambda: condition(ruler.products), ruler)
    yield from _losses("free", truth, run.losses, run.stages, lambda: condition(ruler.products), ruler)


def pieces_of(truth: Truth, run: FreeRun, measured: np.ndarray) -> Pieces:
    """Return the linear pieces that a run was on; the truth's own where it has a stage of another shape.

    Args:
        truth: of the same case.
        run: a candidate's, running free.
        measured: the scaled amplitude in its dtype.
    """
    complete = {name: run.stages.get(name, array) for name, array in truth.stages.items()}
    comparable = all(complete[name].shape == array.shape for name, array in truth.stages.items())
    return truth.pieces(complete, complete, measured) if comparable else truth.own_pieces


def _forced(
    truth: Truth, run: ForcedRun, case: Case, ruler: _Ruler, condition: Conditions
) -> Iterator[tuple[Key, Quantity]]:
    measured = case.scaled_amplitude(ruler.dtype)
    fed = {name: _cast(array, ruler.dtype) for name, array in truth.stages.items()}
    outputs = {name: run.stages.get(name, array) for name, array in truth.stages.items()}
    comparable = all(outputs[name].shape == array.shape for name, array in truth.stages.items())
    pieces = truth.pieces(fed, outputs, measured) if comparable else truth.own_pieces
    expected: dict[str, np.ndarray] = {}
    convolutions = {name.rpartition(".")[0] for name in truth.case.weights}
    for name, array in truth.stages.items():
        unit = ruler.forced(name in convolutions)
        part = _Part(run.stages.get(name), array, lambda name=name, unit=unit: condition(unit).stages[name])  # type: ignore[misc]
        yield (FORWARD_FORCED, name), ruler.quantity(name, [part], _margin(name, pieces.margins), unit=unit)
        by_input, by_weight = truth.pullback(name, pieces.branches)
        yield from _pulled(name, run.pulled.get(name, {}), by_input, condition, ruler, unit)
        expected |= by_weight
    loss = truth.oracle.loss_pullback(truth.stages, truth.network_input, truth.loss_weights, pieces.branches["loss"])
    yield from _pulled("loss", run.pulled.get("loss", {}), loss, condition, ruler, ruler.dtype)
    yield from _weights(truth, GRADIENT_FORCED, run.gradients, expected, lambda: condition(ruler.products), ruler)
    yield from _losses("forced", truth, run.losses, fed, lambda: condition(ruler.dtype), ruler, ruler.dtype)


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
    condition: Conditions,
    ruler: _Ruler,
    unit: str,
) -> Iterator[tuple[Key, Quantity]]:
    strangers = sorted(set(found) - set(expected))
    for name, array in expected.items():
        key = f"{stage}<-{name}"
        part = _Part(found.get(name), array, lambda key=key: condition(unit).cotangents[key])  # type: ignore[misc]
        quantity = ruler.quantity(stage, [part], unit=unit)
        if strangers:
            quantity = dataclasses.replace(quantity, mismatch=f"also listens to {', '.join(strangers)}")
        yield (BACKWARD_FORCED, key), quantity


def _weights(
    truth: Truth,
    clause: str,
    found: Mapping[str, np.ndarray],
    expected: Mapping[str, np.ndarray],
    amplified: Callable[[], Amplified],
    ruler: _Ruler,
) -> Iterator[tuple[Key, Quantity]]:
    """Judge each weight; in float32 a small bias is pooled with the kernel of its convolution."""
    parts = {
        name: _Part(found.get(name), array, lambda name=name: amplified().gradients[name])  # type: ignore[misc]
        for name, array in expected.items()
    }
    for name, part in parts.items():
        stage, _, kind = name.rpartition(".")
        bias = parts[f"{stage}.bias"]
        pooled = ruler.dtype == "float32" and bias.truth.size < SMALL
        if pooled and kind == "bias":
            continue
        quantity = ruler.quantity(stage, [part, bias] if pooled else [part], axes=KERNEL)
        yield (clause, name), dataclasses.replace(quantity, terms=truth.terms(stage))


def _losses(
    mode: str,
    truth: Truth,
    found: Mapping[str, float],
    stages: Mapping[str, np.ndarray],
    amplified: Callable[[], Amplified],
    ruler: _Ruler,
    unit: str | None = None,
) -> Iterator[tuple[Key, Quantity]]:
    """Judge the three losses; in float32 pooled with the predicted intensity they are taken from."""
    parts = {
        name: _Part(
            np.array(found[name], dtype=ruler.dtype) if name in found else None,
            np.array(value),
            lambda name=name: amplified().losses[name],  # type: ignore[misc]
        )
        for name, value in truth.losses.items()
    }
    if ruler.dtype == "float64":
        for name, part in parts.items():
            yield (LOSS, f"{mode}.{name}"), ruler.quantity("loss", [part], unit=unit)
        return
    end = "predicted_intensity"
    stage = _Part(stages.get(end), truth.stages[end], lambda: amplified().stages[end])
    yield (LOSS, mode), ruler.quantity("loss", [*parts.values(), stage], unit=unit)


def envelope(runs: Sequence[Mapping[Key, Quantity]]) -> dict[Key, Errors]:
    """Return the largest errors of several runs of the reference, quantity by quantity."""
    return {
        key: Errors(max(run[key].errors.e for run in runs), max(run[key].errors.m for run in runs)) for key in runs[0]
    }


def judge(
    measured: Mapping[Key, Quantity],
    reference: Callable[[Key, Mapping[Key, Quantity]], Errors],
    limits: Limits,
    dtype: str,
    shown: Mapping[Key, Errors] | None = None,
) -> dict[Key, Verdict]:
    """Turn measurements into verdicts.

    Args:
        measured: of the candidate.
        reference: envelope of the reference's errors, as ``Gains.envelope`` gives it; float32 only.
        limits: from the spec.
        dtype: of the candidate.
        shown: the reference's own errors, to print beside the verdict.
    """
    verdicts = {}
    for key, quantity in measured.items():
        if dtype == "float64":
            budget = float64_budget(quantity.amplified, limits)
        else:
            budget = float32_budget(reference(key, measured), quantity.amplified, limits)
        beside = shown.get(key) if shown else None
        verdicts[key] = Verdict(*key, beside, quantity.errors, budget, quantity.mismatch)
    return verdicts


def worst(verdicts: Mapping[Key, Verdict]) -> Verdict | None:
    """Return the verdict that used most of its budget."""
    return max(verdicts.values(), key=lambda verdict: verdict.share, default=None)
