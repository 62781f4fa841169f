"""Broken recordings and broken training: each clause about a recording is shown to fail."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch

from conformance.judge.measure import FLOAT64, REFERENCE, Measurement
from conformance.judge.measured import load_measured
from conformance.judge.truth import Truth
from conformance.recordings.bundle import RECORDINGS, Bundle, Sampled, read_bundle
from conformance.recordings.replay import TrainingTruth, reference_verdicts, stored_truth_verdicts, train_verdicts
from conformance.subjects.torch import TorchSubject
from ptycho_torch.optim import KerasAdam
from ptycho_torch.training import lightning_module


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return read_bundle(RECORDINGS / "n64_g2_base.npz")


@pytest.fixture(scope="module")
def measurement(bundle: Bundle) -> Measurement:
    return Measurement(Truth(bundle.case), load_measured().limits)


@pytest.fixture(scope="module")
def training(bundle: Bundle, measurement: Measurement) -> TrainingTruth:
    return TrainingTruth.of(measurement.truth, len(bundle.train_losses))


def against_stored_truth(bundle: Bundle, measurement: Measurement) -> set[str]:
    truth = measurement.truth
    verdicts = stored_truth_verdicts(
        bundle,
        truth.stages,
        truth.gradients.constants,
        truth.losses,
        measurement.condition,
        load_measured().limits,
    )
    assert all(clause == FLOAT64 for clause, _ in verdicts)
    return {name for (_, name), verdict in verdicts.items() if not verdict.passed}


def failing_reference(bundle: Bundle, measurement: Measurement) -> set[str]:
    verdicts = reference_verdicts(bundle, measurement, load_measured())
    assert all(clause == REFERENCE for clause, _ in verdicts)
    return {name for (_, name), verdict in verdicts.items() if not verdict.passed}


def test_the_recording_as_it_is_passes(bundle: Bundle, measurement: Measurement) -> None:
    assert not against_stored_truth(bundle, measurement)
    assert not failing_reference(bundle, measurement)


@pytest.mark.parametrize("name", ["encoder.1.conv2", "merged", "predicted_intensity"])
def test_a_stored_truth_that_is_not_the_truth_fails(bundle: Bundle, measurement: Measurement, name: str) -> None:
    stored = bundle.truth_stages[name] * (1 + 1e-10)
    wrong = dataclasses.replace(bundle, truth_stages={**bundle.truth_stages, name: stored})
    assert against_stored_truth(wrong, measurement) == {name}


def test_a_stored_scale_is_not_believed(bundle: Bundle, measurement: Measurement) -> None:
    """A huge RMS would make every error small."""
    doubled = {**bundle.truth_stages, "merged": 2 * bundle.truth_stages["merged"]}
    wrong = dataclasses.replace(bundle, truth_stages=doubled, rms={**bundle.rms, "stage/merged": 1e30})
    assert against_stored_truth(wrong, measurement) == {"merged", "rms/stage/merged"}


@pytest.mark.parametrize("name", ["encoder.0.conv1", "decoder_phase.central", "merged", "amplitude"])
def test_a_reference_that_moved_away_fails(bundle: Bundle, measurement: Measurement, name: str) -> None:
    sampled = bundle.stages[name]
    moved = Sampled((sampled.values * (1 + 1e-4)).astype(sampled.values.dtype), sampled.shape, sampled.index)
    wrong = dataclasses.replace(bundle, stages={**bundle.stages, name: moved})
    assert failing_reference(wrong, measurement) == {name}


def test_recorded_training_is_followed(bundle: Bundle, measurement: Measurement, training: TrainingTruth) -> None:
    for dtype in ("float64", "float32"):
        verdicts = train_verdicts(bundle, measurement.truth, training, TorchSubject("cpu", dtype), load_measured())
        assert {name for _, name in verdicts} == {"losses", "encoder", "decoder_amp", "decoder_phase"}
        assert all(verdict.passed for verdict in verdicts.values()), [each.explain() for each in verdicts.values()]


WRONG_OPTIMISERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "torch's ε": lambda parameters, lr, betas, eps: torch.optim.Adam(parameters, lr=lr, eps=eps),
    "plain gradient descent": lambda parameters, lr, betas, eps: torch.optim.SGD(parameters, lr=lr),
    "twice the rate": lambda parameters, lr, betas, eps: KerasAdam(parameters, lr=2 * lr),
    "no update": lambda parameters, lr, betas, eps: KerasAdam(parameters, lr=0.0),
    "β₂ of 0.99": lambda parameters, lr, betas, eps: KerasAdam(parameters, lr=lr, betas=(0.9, 0.99)),
}


@pytest.mark.parametrize("name", WRONG_OPTIMISERS)
def test_another_optimiser_is_seen(
    bundle: Bundle, measurement: Measurement, training: TrainingTruth, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """In float64 every part of the network shows it, in float32 at least one judged quantity."""
    monkeypatch.setattr(lightning_module, "KerasAdam", WRONG_OPTIMISERS[name])
    for dtype in ("float64", "float32"):
        verdicts = train_verdicts(bundle, measurement.truth, training, TorchSubject("cpu", dtype), load_measured())
        failed = {part for (_, part), verdict in verdicts.items() if not verdict.passed}
        assert failed, f"{dtype}: nothing failed"
        if dtype == "float64":
            assert {"encoder", "decoder_amp", "decoder_phase"} <= failed, dtype


@pytest.mark.parametrize("power", [-9, 6])
def test_a_power_of_two_in_the_probe_changes_no_forward_measurement(bundle: Bundle, power: int) -> None:
    """From the exit wave on the physics is homogeneous in the probe, so errors and conditions are the same numbers."""
    limits = load_measured().limits
    plain, scaled = (
        Measurement(Truth(dataclasses.replace(bundle.case, probe=bundle.case.probe * np.float32(factor))), limits)
        for factor in (1.0, 2.0**power)
    )
    subject = TorchSubject("cpu", "float32")
    found = [
        {key: each for key, each in measurement.of(subject).items() if key[0].startswith("FORWARD")}
        for measurement in (plain, scaled)
    ]
    for key, quantity in found[0].items():
        assert found[1][key].errors == quantity.errors, key
        # The noise of a condition is drawn before it is scaled, but log(scale) and offsets take part in it.
        assert found[1][key].amplified.e == pytest.approx(quantity.amplified.e, rel=1e-6), key
