"""Mistakes in the product are seen, where they are and what they are; rewrites that change nothing are not.

A dozen of the hundred that ``python -m conformance.selftest`` has.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from conformance import test_spec
from conformance.checks.table import CHECKS, checked
from conformance.judge.causes import fed_with_truth, ranked_stages
from conformance.judge.measure import Measurement, judge
from conformance.judge.measured import load_measured
from conformance.judge.truth import Truth
from conformance.recordings.bundle import RECORDINGS, read_bundle
from conformance.report.results import headline
from conformance.selftest.fault import Fault, after, argument
from conformance.selftest.network import NETWORK
from conformance.selftest.outside import OUTSIDE
from conformance.selftest.rewrites import REWRITES
from conformance.selftest.run import Finding, evidence, in_network, measurement, outside
from conformance.session.bench import Bench, plan
from conformance.subjects.torch import TorchSubject
from ptycho_torch import helper, model
from ptycho_torch.config_params import NetworkSettings

SOME = ("sign of offsets in merging", "intensity for amplitude", "kernels without gradient", "likelihood twice")
ELSEWHERE = (
    "ε ignored",
    "kernels transposed",
    "groups sorted",
    "stored offsets as (y, x)",
    "σ squared in the blur",
    "every tensor clipped alone",
)
COPIES = (
    "heads copied into another memory format",
    "views through a function of its own gradient",
    "decoders recomputed in the backward pass",
)


class _Mirrored(torch.autograd.Function):
    """Passes values on, and the gradient mirrored."""

    @staticmethod
    def forward(context: Any, values: Tensor) -> Tensor:
        return values.clone()

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return gradient.flip(-1)


FREE = {
    "pixels of doublings in the wrong order": (
        Fault("", "decoder_amp.1.conv1", helper, "doubled_kernel", after(lambda kernel: kernel.flip(-1))),
        "FORWARD-FREE decoder_",
    ),
    "gradients of doublings in the wrong order": (
        Fault("", "decoder_phase.outer.up", helper, "convolve_doubled", argument(0, _Mirrored.apply)),
        "BACKWARD-FREE",
    ),
}


def chosen(faults: tuple[Fault, ...], names: tuple[str, ...]) -> pytest.MarkDecorator:
    found = [fault for fault in faults if fault.name in names]
    assert len(found) == len(names)
    return pytest.mark.parametrize("fault", found, ids=lambda fault: fault.name)


def test_there_are_a_hundred_mistakes_of_different_names() -> None:
    faults = (*NETWORK, *OUTSIDE, *REWRITES)
    assert len({fault.name for fault in faults}) == len(faults)
    assert len(NETWORK) + len(OUTSIDE) >= 100
    assert len(NETWORK) >= 60
    assert len(REWRITES) >= 15
    assert all(fault.cause for fault in NETWORK)
    assert {fault.where for fault in OUTSIDE} == set(CHECKS) - {
        "bridge.weight_order",
        "bridge.keras_archives",
        "forward.autocast",
    }


@pytest.mark.parity_clause("FAULTS")
@chosen(NETWORK, SOME)
def test_a_mistake_in_the_network_is_named_at_its_stage_by_its_cause(fault: Fault) -> None:
    found = list(in_network(fault))
    assert [each.dtype for each in found] == ["float64", "float32"]
    for each in found:
        assert each.first, each.describe()
        assert each.cause_named, each.describe()


@pytest.mark.parity_clause("FAULTS")
@chosen(OUTSIDE, ELSEWHERE)
def test_a_mistake_outside_the_network_is_seen_by_its_check(fault: Fault) -> None:
    assert outside(fault).first
    assert checked(CHECKS[fault.where]).passed, "the mistake outlived its time"


def test_a_canvas_without_the_jitter_is_seen_by_the_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    padding = property(lambda settings: (settings.gridsize - 1) * settings.offset // 2)
    monkeypatch.setattr(NetworkSettings, "padding_px", padding)
    with pytest.raises(AssertionError):
        test_spec.test_oracle_is_wired_as_specified(test_spec.OTHERS[1])


@pytest.mark.parity_clause("FAULTS")
@chosen(REWRITES, COPIES)
def test_an_equivalent_rewrite_changes_no_verdict(fault: Fault) -> None:
    assert [each.describe() for each in in_network(fault) if each.detected] == []


def test_a_fault_leaves_nothing_behind() -> None:
    case = measurement("n64_g2").truth.case
    before = TorchSubject("cpu", "float64").free(case).stages["object"]
    for fault in (*NETWORK, *OUTSIDE, *REWRITES):
        original = getattr(fault.owner, fault.attribute)
        with fault.seeded():
            assert getattr(fault.owner, fault.attribute) is not original, fault.name
        assert getattr(fault.owner, fault.attribute) == original, fault.name
    np.testing.assert_array_equal(TorchSubject("cpu", "float64").free(case).stages["object"], before)


def test_the_numbers_of_a_run_have_goals() -> None:
    first, second = NETWORK[0], OUTSIDE[0]
    assert Finding(first, "float64", (first.where, "merged"), f"{first.cause} twice").cause_named
    assert not Finding(first, "float64", ("elsewhere", first.where)).first
    assert not Finding(second, "", ()).detected
    assert "expected" in Finding(first, "float64", (first.where,), "another").describe()
    numbers = {"faults": 2.0, "detected": 0.5, "network": 1.0, "stage_first": 1.0, "cause_named": 0.5}
    found = evidence(numbers | {"rewrites": 1.0, "rewrites_passed": 1.0}, ["a note"], "command")
    assert set(found.missed) == {"detected", "cause_named"}
    assert (found.name, found.notes) == ("faults-cpu", ("a note",))


@pytest.fixture(scope="module")
def recorded() -> Measurement:
    return Measurement(Truth(read_bundle(RECORDINGS / "n64_g2_base.npz").case), load_measured().limits)


@pytest.mark.parametrize("name", FREE)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_fault_of_the_way_around_the_doublings_is_caught(recorded: Measurement, name: str, dtype: str) -> None:
    """Fed with the truth, every stage looks at its doubling; free-running, none does, as in use."""
    fault, seen_in = FREE[name]
    with fault.seeded():
        measured = recorded.of(TorchSubject("cpu", dtype))
    verdicts = judge(measured, load_measured().gains.envelope, load_measured().limits, dtype)
    failed = [f"{clause} {stage}" for (clause, stage), verdict in verdicts.items() if not verdict.passed]
    assert any(each.startswith(seen_in) for each in failed), failed
    stage_of = {key: quantity.stage for key, quantity in measured.items()}
    assert list(ranked_stages(fed_with_truth(verdicts), stage_of, recorded.truth.oracle.inputs)) == []
    assert next(ranked_stages(verdicts, stage_of, recorded.truth.oracle.inputs)) == fault.where


def test_a_network_that_raises_is_still_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pool that does not pool breaks every shape after it; fed with the truth, it alone is wrong."""
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
    fault, _ = FREE["pixels of doublings in the wrong order"]
    (planned,) = plan(str(RECORDINGS / "n64_g2_base.npz"), None, "quick")
    with fault.seeded():
        report = Bench().report(planned, "cpu", "float64")
    assert report.first_failing is None
    assert report.first_free == fault.where
    assert f"every stage alone holds; running free the first is {fault.where}; FORWARD-FREE" in headline(report)


def test_the_headline_of_a_run_names_a_failed_check_before_the_network() -> None:
    (fault,) = (each for each in OUTSIDE if each.name == "ε ignored")
    bench = Bench()
    with fault.seeded():
        report = bench.check(CHECKS[fault.where])
    assert bench.failed_checks == [report]
    assert not report.check.is_after_network
    assert CHECKS["optimiser.clipping"].is_after_network
