"""Measuring what float32 costs the TensorFlow reference, for ``specs/measured.yaml``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from conformance.cases.case import Case
from conformance.judge.gains import Table, stage_clause, widest
from conformance.judge.measure import REFERENCE, Key, Measurement, Quantity, Subject
from conformance.judge.rules import UNIT_ROUNDOFF, Errors, Limits, compare, rounding
from conformance.judge.truth import Truth, moved_case

RUNS = 8
"""Runs of the reference per case, each with inputs moved by one ulp."""


def reference_runs(measurement: Measurement, subject: Subject) -> Iterator[dict[Key, Quantity]]:
    """Measure the reference on the case itself and on ``RUNS`` copies moved by one ulp."""
    yield measurement.of(subject)
    for seed in range(RUNS):
        yield measurement.of(subject, moved_case(measurement.truth.case, np.random.default_rng(seed)))


def raw_gradients(measurement: Measurement, gradients: Mapping[str, np.ndarray]) -> dict[Key, Quantity]:
    """Measure gradients on the truth's own pieces, flips of pieces included, as recordings hold them."""
    found: dict[Key, Quantity] = {}
    for name, gradient in gradients.items():
        expected = measurement.truth.gradients.constants[name]
        condition = measurement.condition.free("float32")
        amplified = condition.gradients[name].largest(rounding(expected, "float32"))
        found[REFERENCE, name] = Quantity(name.rpartition(".")[0], compare(gradient, expected), amplified)
    return found


def calibrate(
    cases: Sequence[Case], subject: Callable[[Case], Subject], limits: Limits, progress: Callable[[str], None]
) -> Mapping[str, Any]:
    """Return ``gains`` and ``conditions`` over all cases, ready to be written as YAML."""
    runs: list[dict[Key, Quantity]] = []
    for number, case in enumerate(cases, 1):
        measurement = Measurement(Truth(case), limits)
        reference = subject(case)
        runs += reference_runs(measurement, reference)
        runs.append(raw_gradients(measurement, reference.free(case).gradients))
        progress(f"{number}/{len(cases)} {case.name}")
    return {"gains": _plain(widest(runs).table), "conditions": _plain(_conditions(runs))}


def _conditions(runs: Sequence[Mapping[Key, Quantity]]) -> Table:
    """Return the largest κ and κ' of every stage clause."""
    table: dict[str, dict[str, Errors]] = {}
    for run in runs:
        for (judgement, _), quantity in run.items():
            kappa = quantity.amplified.scaled(1 / UNIT_ROUNDOFF["float32"])
            rows, clause = table.setdefault(judgement, {}), stage_clause(quantity.stage)
            rows[clause] = rows.get(clause, kappa).largest(kappa)
    return table


def _plain(table: Table) -> dict[str, dict[str, list[float]]]:
    return {
        clause: {stage: [float(f"{each:.3g}") for each in (errors.e, errors.m)] for stage, errors in rows.items()}
        for clause, rows in table.items()
    }
