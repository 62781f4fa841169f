"""Broken subjects: seeded faults are caught in replay, without TensorFlow, where they sit and by their name."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
import pytest

from conformance.bench import Bench, plan
from conformance.bundle import RECORDINGS, read_bundle
from conformance.causes import ranked_stages
from conformance.faults import all_faults
from conformance.faults_backward import BACKWARD
from conformance.faults_network import FORWARD
from conformance.matrix import LIVE, REPLAY, Finding, Matrix, look_for, measurement
from conformance.measured import load_measured
from conformance.parity import Measurement, first_failing_stage, judge
from conformance.reach import may_change
from conformance.report import headline
from conformance.seeding import Fault
from conformance.step import StepBench, StepReport
from conformance.steps import all_steps
from conformance.torch_subject import TorchSubject
from conformance.truth import Truth
from ptycho_torch import model

NETWORK = (*FORWARD, *BACKWARD)
OUTSIDE = [fault for fault in all_faults() if fault.stage in {step.id for step in all_steps()}]


@pytest.fixture(scope="module")
def recorded() -> Measurement:
    return Measurement(Truth(read_bundle(RECORDINGS / "n64_g2_base.npz").case), load_measured().limits)


def first_failure(fault: Fault) -> StepReport | None:
    steps = [step for step in all_steps() if may_change(step, fault)]
    with fault.seeded():
        reports = map(StepBench().report, steps)
        return next((report for report in reports if not report.passed), None)


def test_the_catalogue_is_large_and_its_names_differ() -> None:
    faults = all_faults()
    assert len({(fault.area, fault.name) for fault in faults}) == len(faults) >= 100
    areas = Counter(fault.area for fault in faults)
    assert set(areas) == {"forward", "backward", "optimiser", "data", "configuration", "bridge"}
    assert min(areas.values()) >= 8
    assert sum(fault.cause is not None for fault in faults) >= 80


@pytest.mark.parametrize("fault", OUTSIDE, ids=lambda fault: fault.name)
def test_a_fault_outside_the_network_is_caught_by_its_step_by_its_name(fault: Fault) -> None:
    (step,) = (each for each in all_steps() if each.id == fault.stage)
    assert may_change(step, fault)
    with fault.seeded():
        report = StepBench().report(step)
    assert not report.passed, "nothing failed"
    assert fault.cause is None or fault.cause in report.cause_name
    assert fault.stage in report.explain()


# All steps with every fault, and every fault of the network in float64, take a quarter of an hour: `pytest conformance
# --parity-faults` has them all.
@pytest.mark.parametrize("fault", OUTSIDE[::12], ids=lambda fault: fault.name)
def test_no_step_before_that_of_the_fault_fails(fault: Fault) -> None:
    report = first_failure(fault)
    assert report is not None, "nothing failed"
    assert report.step.id == fault.stage


# Of a generator and a property; steps behind the network take as long as all others, and tell no more.
@pytest.mark.parametrize("name", ["Fortran order of streams", "origin of a uniform canvas about 0"])
def test_a_step_that_is_left_out_passes_with_the_fault(name: str) -> None:
    (fault,) = (each for each in OUTSIDE if each.name == name)
    left_out = [step for step in all_steps() if not step.behind_network and not may_change(step, fault)]
    assert left_out
    with fault.seeded():
        reports = list(map(StepBench().report, left_out))
    assert [report.explain() for report in reports if not report.passed] == []


@pytest.mark.parametrize("fault", NETWORK[::6], ids=lambda fault: fault.name)
def test_a_fault_of_the_network_is_caught_at_its_stage_by_its_name(fault: Fault) -> None:
    found = list(look_for(fault, ("float64", "float32"), (REPLAY,)))
    assert [each.dtype for each in found] == ["float64", "float32"]
    for each in found:
        assert each.detected
        assert each.first, each.describe()
        assert fault.cause is None or each.cause_named, each.describe()


def test_a_clean_network_fails_nothing() -> None:
    nothing = Fault("nothing", "forward", "", model.Pool, "forward", lambda right: right)
    for found in look_for(nothing, ("float64", "float32"), (REPLAY,)):
        assert not found.detected, found.named


def test_the_matrix_counts_what_was_found() -> None:
    first, second, *_ = all_faults()
    right = Finding(first, "float64", REPLAY, (first.stage,), f"{first.cause} and more")
    late = Finding(second, "float64", REPLAY, ("elsewhere", second.stage), "")
    missed = Finding(second, "float64", REPLAY, (), "")
    rates = Matrix((right, late, missed, right)).rates("float64", REPLAY)
    assert (rates["faults"], rates["detected"]) == (4, 0.75)
    assert (rates["right stage first"], rates["right stage among three"], rates["cause named"]) == (0.5, 0.75, 0.5)
    assert Matrix((right,)).missed_goals == []
    assert len(Matrix((right, late, missed)).missed_goals) == 3
    assert any("missed" in line for line in Matrix((missed,)).describe())
    live = dataclasses.replace(late, envelope=LIVE)
    unnamed = dataclasses.replace(right, cause="")
    evidence = Matrix((right, missed, unnamed, live)).evidence("command")
    assert [each.name for each in evidence] == ["faults-float64_replay-cpu", "faults-float64_live-cpu"]
    assert set(evidence[0].missed) == {"detected", "stage_first", "cause_named"}
    assert [each.notes for each in evidence] == [(missed.describe(), unnamed.describe()), (live.describe(),)]


@pytest.mark.parametrize(
    ("name", "seen_in"),
    [
        ("parities of doublings in the wrong order", "FORWARD-FREE decoder_"),
        ("gradients of doublings in the wrong order", "BACKWARD-FREE"),
    ],
)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_fault_of_the_way_around_the_doublings_is_caught(
    recorded: Measurement, name: str, seen_in: str, dtype: str
) -> None:
    """Fed with the truth, every stage looks at its doubling; free-running, none does, as in use."""
    (fault,) = (each for each in NETWORK if each.name == name)
    with fault.seeded():
        measured = recorded.of(TorchSubject("cpu", dtype))
    verdicts = judge(measured, load_measured().gains.envelope, load_measured().limits, dtype)
    failed = [f"{clause} {stage}" for (clause, stage), verdict in verdicts.items() if not verdict.passed]
    assert first_failing_stage(verdicts, measured) is None
    assert any(each.startswith(seen_in) for each in failed), failed
    stage_of = {key: quantity.stage for key, quantity in measured.items()}
    assert next(ranked_stages(verdicts, stage_of, recorded.truth.oracle.inputs)) == fault.stage


def test_a_network_that_raises_is_still_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pool that does not pool breaks every shape behind it; fed with the truth, it alone is wrong."""
    monkeypatch.setattr(model.Pool, "forward", lambda self, features: features)
    (planned,) = plan(str(RECORDINGS / "n64_g2_base.npz"), None, "quick")
    report = Bench().report(planned, "cpu", "float64")
    assert not report.passed
    assert report.first_failing == "encoder.0.pool"
    assert "RuntimeError" in headline(report)


def test_the_headline_names_stage_and_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    right = model.ExtractViews.forward
    monkeypatch.setattr(model.ExtractViews, "forward", lambda self, canvas, o: right(self, canvas, -o))
    (planned,) = plan(str(RECORDINGS / "n64_g2_base.npz"), None, "quick")
    line = headline(Bench().report(planned, "cpu", "float64"))
    assert "first failing teacher-forced stage: views; cause: sign of offsets" in line


def test_the_headline_of_a_network_that_is_wrong_running_free_alone_names_the_stage() -> None:
    (fault,) = (each for each in NETWORK if each.name == "parities of doublings in the wrong order")
    (planned,) = plan(str(RECORDINGS / "n64_g2_base.npz"), None, "quick")
    with fault.seeded():
        report = Bench().report(planned, "cpu", "float64")
    assert report.first_failing is None
    assert report.first_free == fault.stage
    assert f"every stage alone holds; running free the first is {fault.stage}; FORWARD-FREE" in headline(report)


def test_a_fault_leaves_nothing_behind() -> None:
    case = measurement("n64_g2").truth.case
    before = TorchSubject("cpu", "float64").free(case).stages["object"]
    for fault in all_faults():
        original = getattr(fault.owner, fault.attribute)
        with fault.seeded():
            pass
        assert getattr(fault.owner, fault.attribute) == original, fault.name
    np.testing.assert_array_equal(TorchSubject("cpu", "float64").free(case).stages["object"], before)
    bench = StepBench()
    for step in all_steps():
        report = bench.report(step)
        assert report.passed, report.explain()
