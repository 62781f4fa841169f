"""The network, stage by stage: recordings, live Keras and real scans."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from conformance.judge.measure import Key
from conformance.judge.rules import Verdict
from conformance.report.reproduction import reproduce_command
from conformance.session.bench import NO_TENSORFLOW, Bench
from conformance.session.targets import Target
from conformance.subjects.precision import KINDS, measure_precision
from conformance.subjects.torch import TorchSubject
from conformance.subjects.variants import subject_of, unavailable
from ptycho_tf_bridge import backend

pytestmark = [
    pytest.mark.parity_case,
    pytest.mark.parity_recorded,
    pytest.mark.parity_scan,
    pytest.mark.parity_keras,
]


def _need_tensorflow(target: Target) -> None:
    if target.planned.kind == "live" and not backend.is_available():
        pytest.skip(NO_TENSORFLOW)


def _explain(verdicts: list[Verdict]) -> str:
    failed = [verdict for verdict in verdicts if not verdict.passed]
    return "\n".join(verdict.explain() for verdict in failed[:5]) + ("\n…" if len(failed) > 5 else "")


def test_recording(parity_bench: Bench, parity_target: Target) -> None:
    """The oracle is the stored truth, and the recorded reference is as far from it as measured."""
    record: Mapping[Key, Verdict] = parity_bench.record(parity_target.planned)
    verdicts = [verdict for (clause, _), verdict in record.items() if clause == parity_target.clause]
    assert verdicts, f"the recording says nothing about {parity_target.clause}"
    assert all(verdict.passed for verdict in verdicts), _explain(verdicts)


@pytest.mark.parity_candidate
def test_stage(parity_bench: Bench, parity_target: Target, parity_report_file: Path) -> None:
    """The candidate holds to one clause at one stage."""
    _need_tensorflow(parity_target)
    report = parity_bench.report(parity_target.planned, parity_target.device, parity_target.dtype)
    if parity_target.clause in report.not_given:
        pytest.skip(report.not_given[parity_target.clause])
    verdicts = report.of(parity_target.clause, parity_target.stage)
    assert verdicts, f"nothing was measured for {parity_target.id}; {report.error}"
    name, stage = parity_target.planned.name, parity_target.stage
    # A program of this package says nothing of another candidate.
    command = reproduce_command(parity_report_file, name, stage) if parity_bench.factory is TorchSubject else ""
    told = f"{_explain(verdicts)}\nAs a program that fails by itself: {command}" if command else _explain(verdicts)
    assert all(verdict.passed for verdict in verdicts), told


def test_variant(parity_bench: Bench, parity_target: Target, parity_report_file: Path) -> None:
    """Run another way, the candidate holds to one clause at one stage, within the budget of that way."""
    reason = unavailable(parity_target.device, parity_target.dtype)
    if reason:
        pytest.skip(f"{parity_target.dtype} on {parity_target.device}: {reason}")
    test_stage(parity_bench, parity_target, parity_report_file)


@pytest.mark.parity_clause("FORWARD-FREE")
@pytest.mark.parity_dtype("float32")
def test_products_run_in_float32(parity_device: str, parity_notes: list[str]) -> None:
    """Float32 means float32: no TensorFloat-32, no bfloat16 (clause FORWARD-FREE)."""
    precision = measure_precision(parity_device)
    parity_notes.append(str(precision))
    assert precision.kind == "float32", str(precision)


@pytest.mark.parity_clause("FORWARD-FREE")
def test_products_run_in_what_the_row_says(parity_device: str, parity_row: str, parity_notes: list[str]) -> None:
    """A row of lower precision is judged with a wider budget, so it has to run in that precision."""
    reason = unavailable(parity_device, parity_row)
    if reason:
        pytest.skip(f"{parity_row} on {parity_device}: {reason}")
    products = subject_of(parity_device, parity_row).products
    precision = measure_precision(parity_device, products)
    parity_notes.append(f"row {parity_row}, {precision}")
    assert precision.kind == KINDS[products], str(precision)
