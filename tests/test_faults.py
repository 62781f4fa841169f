"""Broken subjects: every seeded fault is caught in replay, without TensorFlow, at the stage where it sits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from conformance.bench import Bench, plan
from conformance.bundle import RECORDINGS, read_bundle
from conformance.faults import FAULTS, Fault
from conformance.measured import load_measured
from conformance.parity import Measurement, first_failing_stage, judge
from conformance.report import headline
from conformance.torch_subject import TorchSubject
from conformance.truth import Truth
from ptycho_torch import helper, model


@pytest.fixture(scope="module")
def measurement() -> Measurement:
    return Measurement(Truth(read_bundle(RECORDINGS / "n64_g2_base.npz").case), load_measured().limits)


def found_at(measurement: Measurement, dtype: str) -> tuple[bool, str | None]:
    """Whether anything failed, and the first failing teacher-forced stage."""
    measured = measurement.of(TorchSubject("cpu", dtype))
    verdicts = judge(measured, load_measured().gains.envelope, load_measured().limits, dtype)
    return not all(verdict.passed for verdict in verdicts.values()), first_failing_stage(verdicts, measured)


def test_the_catalogue_is_large_and_its_names_differ() -> None:
    assert len({fault.name for fault in FAULTS}) == len(FAULTS) >= 20


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_clean_network_passes(measurement: Measurement, dtype: str) -> None:
    assert found_at(measurement, dtype) == (False, None)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_fault_is_caught_at_its_stage(measurement: Measurement, fault: Fault) -> None:
    with fault.seeded():
        caught, stage = found_at(measurement, "float64")
    assert caught
    assert stage == fault.stage


@pytest.mark.parametrize(
    ("owner", "attribute", "wrong", "seen_in"),
    [
        (helper, "doubled_kernel", lambda right: lambda kernel: right(kernel).flip(0), "FORWARD-FREE decoder_"),
        (
            helper._Interleave,
            "backward",
            lambda right: staticmethod(lambda context, gradient: right(context, gradient).flip(-1)),
            "BACKWARD-FREE",
        ),
    ],
    ids=["parities in the wrong order", "gradients in the wrong order"],
)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_fault_of_the_way_around_the_doublings_is_caught(
    measurement: Measurement, owner: Any, attribute: str, wrong: Any, seen_in: str, dtype: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Fed with the truth, every stage looks at its doubling; free-running, none does, as in use."""
    monkeypatch.setattr(owner, attribute, wrong(getattr(owner, attribute)))
    measured = measurement.of(TorchSubject("cpu", dtype))
    verdicts = judge(measured, load_measured().gains.envelope, load_measured().limits, dtype)
    failed = [f"{clause} {stage}" for (clause, stage), verdict in verdicts.items() if not verdict.passed]
    assert first_failing_stage(verdicts, measured) is None
    assert any(each.startswith(seen_in) for each in failed), failed


def test_faults_are_caught_in_float32_too(measurement: Measurement) -> None:
    """Coarse faults need no float64. Where one stage's share of a fault drowns in rounding, the next one shows it."""
    wrong = {}
    # The recorded patterns are nearly zero at their edges, so the first convolution hardly sees how they are padded.
    seen_later = {"edges repeated": "encoder.0.conv2"}
    for fault in FAULTS[::4]:
        with fault.seeded():
            found = found_at(measurement, "float32")
        if found != (True, seen_later.get(fault.name, fault.stage)):
            wrong[fault.name] = found
    assert not wrong


def test_a_network_that_raises_is_still_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pool that does not pool breaks every shape behind it; fed with the truth, it alone is wrong."""
    monkeypatch.setattr(model.Pool, "forward", lambda self, features: features)
    (planned,) = plan(str(RECORDINGS / "n64_g2_base.npz"), None, "quick")
    report = Bench().report(planned, "cpu", "float64")
    assert not report.passed
    assert report.first_failing == "encoder.0.pool"
    assert "RuntimeError" in headline(report)


def test_a_fault_leaves_nothing_behind(measurement: Measurement) -> None:
    before = TorchSubject("cpu", "float64").free(measurement.truth.case).stages["object"]
    for fault in FAULTS:
        with fault.seeded():
            pass
    np.testing.assert_array_equal(TorchSubject("cpu", "float64").free(measurement.truth.case).stages["object"], before)
