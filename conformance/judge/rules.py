"""The judge: truth, reference and candidate in, verdict out. Pure NumPy; knows nothing of networks.

Scale-free error of x: s = RMS(truth); e(x) = RMS(x − truth) / s; m(x) = max |x − truth| / s.
Complex values are judged as complex numbers. The rules are the clauses FLOAT64, REFERENCE and the float32
clauses of ``specs/stages.yaml``; every limit comes from ``specs/measured.yaml``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SMALL = 64
"""Tensors of fewer elements are judged pooled: a ratio of two single rounding errors means nothing."""

UNIT_ROUNDOFF = {"bfloat16": 2.0**-8, "tf32": 2.0**-11, "float32": 2.0**-24, "float64": 2.0**-53}
ONE_ULP = {"bfloat16": 2.0**-7, "tf32": 2.0**-10, "float32": 2.0**-23, "float64": 2.0**-52}
"""Relative size of the one-ulp change by which conditions and envelopes are measured."""


@dataclass(frozen=True)
class Errors:
    """Scale-free errors of one tensor or of several pooled ones: root mean square and maximum."""

    e: float
    m: float

    def scaled(self, factor: float) -> Errors:
        """Return both errors times ``factor``."""
        return Errors(self.e * factor, self.m * factor)

    def largest(self, other: Errors) -> Errors:
        """Return the larger of each."""
        return Errors(max(self.e, other.e), max(self.m, other.m))


NONE = Errors(0.0, 0.0)
WRONG = Errors(math.inf, math.inf)


@dataclass(frozen=True)
class Deviation:
    """Element-wise |x − truth| / RMS(truth), and why the tensor cannot be compared at all, if so."""

    values: np.ndarray
    mismatch: str = ""


def deviation(values: np.ndarray | None, truth: np.ndarray, *, scale: float | None = None) -> Deviation:
    """Compare one tensor with the truth, element by element.

    Args:
        values: what the subject says; None when it said nothing, which is a mismatch.
        truth: float64 or complex128.
        scale: RMS of the whole truth tensor where ``truth`` holds only samples of it.

    A shape that differs, a real tensor for a complex one, or a non-finite value on one side only, is a mismatch.
    Where truth is zero everywhere, anything but zero is one.
    """
    nothing = np.empty(0)
    if values is None:
        return Deviation(nothing, "missing")
    if values.shape != truth.shape:
        return Deviation(nothing, f"shape {values.shape}, expected {truth.shape}")
    if np.iscomplexobj(values) != np.iscomplexobj(truth):
        return Deviation(nothing, f"dtype {values.dtype}, expected {'complex' if np.iscomplexobj(truth) else 'real'}")
    finite = np.isfinite(truth)
    if not np.array_equal(np.isfinite(values), finite):
        where = int(np.flatnonzero((np.isfinite(values) != finite).ravel())[0])
        return Deviation(nothing, f"non-finite values differ, first at flat index {where}")
    if not finite.all():
        if not np.array_equal(values[~finite].astype(truth.dtype), truth[~finite], equal_nan=True):
            return Deviation(nothing, "non-finite values of different kind")
        values, truth = values[finite], truth[finite]
    difference = np.abs(values - truth)
    if scale is None:
        scale = _largest_and_rms(truth)[1]
    if scale == 0:
        return Deviation(nothing, "not zero where the truth is") if difference.any() else Deviation(difference)
    return Deviation(difference / scale)


def _largest_and_rms(finite: np.ndarray) -> tuple[float, float]:
    """Return the largest magnitude and the root mean square, both 0 for an empty array."""
    magnitude = np.abs(finite)
    largest = float(np.max(magnitude, initial=0.0))
    if largest == 0:
        return 0.0, 0.0
    # Dividing first keeps the squares of very small or very large tensors inside the float range.
    return largest, largest * float(np.sqrt(np.mean((magnitude / largest) ** 2)))


def errors(deviations: Sequence[Deviation]) -> Errors:
    """Pool deviations into one pair of errors; any mismatch is infinitely wrong."""
    if any(deviation.mismatch for deviation in deviations):
        return WRONG
    pooled = np.concatenate([deviation.values.ravel() for deviation in deviations]) if deviations else np.empty(0)
    if pooled.size == 0:
        return NONE
    return Errors(float(np.sqrt(np.mean(pooled**2))), float(np.max(pooled)))


def compare(values: np.ndarray | None, truth: np.ndarray) -> Errors:
    """Return the errors of one tensor."""
    return errors([deviation(values, truth)])


def rounding(truth: np.ndarray, dtype: str) -> Errors:
    """Return the largest errors that rounding the result itself to a dtype can cause: κ is never below 1."""
    largest, rms = _largest_and_rms(truth[np.isfinite(truth)])
    if largest == 0:
        return NONE
    return Errors(UNIT_ROUNDOFF[dtype], UNIT_ROUNDOFF[dtype] * largest / rms)


@dataclass(frozen=True)
class Limits:
    """Factors of the float32 rule, floor and factor of the float64 rule (``specs/measured.yaml``, ``limits``)."""

    e_factor: float
    m_factor: float
    float64_floor: float
    condition_factor: float


@dataclass(frozen=True)
class Verdict:
    """One judged quantity.

    Attributes:
        clause: judgement clause, for example ``FORWARD-FORCED``.
        stage: stage id, or weight name for gradients.
        reference: errors of the reference; None where it is not at hand.
        candidate: errors of the candidate.
        budget: what the candidate may use; an infinite part is not judged.
        reason: why it failed for another cause than its budget; empty otherwise.
    """

    clause: str
    stage: str
    reference: Errors | None
    candidate: Errors
    budget: Errors
    reason: str = ""

    @property
    def share(self) -> float:
        """Share of the budget used; above 1 is a failure, and one for another cause than its budget is infinite."""
        if self.reason:
            return math.inf
        return max(share_of(self.candidate.e, self.budget.e), share_of(self.candidate.m, self.budget.m))

    @property
    def passed(self) -> bool:
        """Whether the candidate holds to the clause. A NaN anywhere is a failure."""
        return self.share <= 1

    def explain(self) -> str:
        """Say in one sentence what was measured."""
        found = f"e = {self.candidate.e:.3g}, m = {self.candidate.m:.3g}"
        allowed = f"budget e = {self.budget.e:.3g}, m = {self.budget.m:.3g}"
        reference = f"; reference e = {self.reference.e:.3g}" if self.reference else ""
        cause = f" ({self.reason})" if self.reason else ""
        return f"{self.clause} {self.stage}: {found}; {allowed}{reference}{cause}"


def share_of(used: float, allowed: float) -> float:
    """Return used / allowed: 0 where everything is allowed, infinite for a NaN or where nothing is allowed."""
    if math.isinf(allowed):
        return 0.0
    if used == 0:
        return 0.0
    share = used / allowed if allowed > 0 else math.inf
    return math.inf if math.isnan(share) else share


def float64_budget(amplified: Errors, limits: Limits) -> Errors:
    """Rule 1: e ≤ max(floor, κε₆₄), κ being some times what few draws showed; the maximum is not judged.

    Args:
        amplified: κε₆₄ and κ'ε₆₄, the errors that one-ulp float64 changes cause.
        limits: from the spec.
    """
    return Errors(max(limits.float64_floor, limits.condition_factor * amplified.e), math.inf)


def float32_budget(reference: Errors, amplified: Errors, limits: Limits) -> Errors:
    """Rule 3: e ≤ 4·max(ē(reference), κε) and m ≤ 16·max(m̄(reference), κ'ε).

    Args:
        reference: envelope of the reference's errors.
        amplified: κε₃₂ and κ'ε₃₂, the errors that one-ulp float32 changes cause.
        limits: from the spec.
    """
    worst = reference.largest(amplified)
    return Errors(limits.e_factor * worst.e, limits.m_factor * worst.m)
