"""Measuring what float32 costs the TensorFlow reference, for ``specs/measured.yaml``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from conformance.case import Case
from conformance.judge import UNIT_ROUNDOFF, Errors
from conformance.measured import stage_clause
from conformance.parity import Key, Quantity, Subject, measure
from conformance.truth import Truth, moved_case

RUNS = 8
"""Runs of the reference per case, each with inputs moved by one ulp."""

Table = dict[str, dict[str, Errors]]


def reference_runs(truth: Truth, subject: Subject, runs: int = RUNS) -> list[dict[Key, Quantity]]:
    """Measure the reference on the case itself and on ``runs`` copies moved by one ulp."""
    cases: list[Case | None] = [None]
    cases += [moved_case(truth.case, np.random.default_rng(seed)) for seed in range(runs)]
    return [measure(truth, subject, case) for case in cases]


def _widen(table: Table, key: Key, quantity: Quantity, errors: Errors) -> None:
    rows = table.setdefault(key[0], {})
    clause = stage_clause(quantity.stage)
    rows[clause] = rows.get(clause, Errors(0.0, 0.0)).largest(errors)


def _raw_gradient(truth: Truth, subject: Subject) -> Errors:
    """Largest errors of the gradients against the truth on the truth's own pieces, flips of pieces included."""
    from conformance.judge import compare

    gradients = subject.free(truth.case).gradients
    found = [compare(gradients[name], truth.gradients.constants[name]) for name in truth.case.weights]
    return Errors(max(each.e for each in found), max(each.m for each in found))


def calibrate(
    cases: Sequence[Case], subject: Callable[[Case], Subject], progress: Callable[[str], None]
) -> Mapping[str, Any]:
    """Return ``gains``, ``conditions`` and ``raw_gradient`` over all cases, ready to be written as YAML."""
    gains: Table = {}
    conditions: Table = {}
    raw = Errors(0.0, 0.0)
    for number, case in enumerate(cases, 1):
        truth = Truth(case)
        reference = subject(case)
        raw = raw.largest(_raw_gradient(truth, reference))
        for run in reference_runs(truth, reference):
            for key, quantity in run.items():
                amplified = quantity.amplified
                if amplified.e > 0:
                    gain = Errors(quantity.errors.e / amplified.e, quantity.errors.m / amplified.m)
                    _widen(gains, key, quantity, gain)
                    _widen(conditions, key, quantity, amplified.scaled(1 / UNIT_ROUNDOFF["float32"]))
                else:
                    _widen(gains, key, quantity, Errors(0.0, 0.0))
        progress(f"{number}/{len(cases)} {case.name}")
    return {"raw_gradient": _pair(raw), "gains": _plain(gains), "conditions": _plain(conditions)}


def _pair(errors: Errors) -> list[float]:
    return [float(f"{errors.e:.3g}"), float(f"{errors.m:.3g}")]


def _plain(table: Table) -> dict[str, dict[str, list[float]]]:
    return {clause: {stage: _pair(errors) for stage, errors in rows.items()} for clause, rows in table.items()}
