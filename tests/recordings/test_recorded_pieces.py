"""Gradients of a recording are judged on the pieces that rounding may have put the reference on, and on no others."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cache

import numpy as np
import pytest

from conformance.cases.case import NOTHING_FREE, Case, FreeRun
from conformance.judge.measure import Measurement
from conformance.judge.measured import load_measured
from conformance.judge.rules import compare
from conformance.judge.truth import Truth
from conformance.oracle.stages import rms
from conformance.recordings import replay
from conformance.recordings.bundle import RECORDINGS, Bundle, Sampled, read_bundle
from conformance.recordings.pieces import recorded_pieces
from conformance.recordings.replay import TrainingTruth, reference_verdicts, train_verdicts
from conformance.subjects import torch_training
from conformance.training.state import TrainingRun, train_truth

STAGE = "decoder_amp.outer.conv1"


@cache
def truth() -> Truth:
    return Truth(read_bundle(RECORDINGS / "n64_g1_nopad.npz").case)


@cache
def distances() -> np.ndarray:
    inputs = truth().values_of(STAGE, truth().stages, truth().network_input)
    found = truth().oracle.node(STAGE).distances(inputs, truth().constants)
    assert found is not None
    return found


def nearest(number: int) -> tuple[int, float]:
    """Return flat index and distance of the element that is the so-manyth nearest to its kink."""
    index = int(np.argsort(distances(), axis=None)[number])
    return index, float(distances().flat[index])


def flipped_pieces(stage: str, *indices: int) -> Mapping[str, np.ndarray]:
    pieces = dict(truth().own_branches)
    pieces[stage] = pieces[stage].copy()
    for index in indices:
        pieces[stage].flat[index] = ~pieces[stage].flat[index]
    return pieces


def with_flips(stage: str, *indices: int) -> Mapping[str, np.ndarray]:
    return truth().gradients_on(flipped_pieces(stage, *indices)).constants


def explained(recorded: Mapping[str, np.ndarray], reach: float) -> Mapping[str, np.ndarray] | None:
    names = truth().case.weights

    def shares(gradients: Mapping[str, np.ndarray]) -> dict[str, float]:
        return {name: compare(recorded[name], gradients[name]).e / 1e-9 for name in names}

    of_stages = dict.fromkeys((*truth().oracle.stages, "loss"), 0.0)
    return recorded_pieces(truth(), of_stages | {STAGE: reach}, shares)


def test_elements_near_their_kinks_explain_a_gradient() -> None:
    """Two of three elements within reach were on the other side, and the recording does not say which."""
    (first, _), (_, _), (third, reach) = (nearest(number) for number in range(3))
    recorded = with_flips(STAGE, first, third)
    found = explained(recorded, reach)
    assert found is not None
    for name in truth().case.weights:
        assert compare(found[name], recorded[name]).e < 1e-12, name


def test_an_element_out_of_reach_explains_nothing() -> None:
    (_, reach), (far, _) = nearest(2), nearest(3)
    assert explained(with_flips(STAGE, far), reach) is None


def test_a_wrong_gradient_is_not_explained() -> None:
    _, reach = nearest(2)
    recorded = {name: array * 1.001 for name, array in truth().gradients.constants.items()}
    assert explained(recorded, reach) is None


def test_the_loss_has_a_kink_too() -> None:
    distance = np.abs(truth().stages["predicted_amplitude"] - truth().network_input)
    index = int(distance.argmin())
    pieces = dict(truth().own_branches)
    pieces["loss"] = pieces["loss"].copy()
    pieces["loss"].flat[index] *= -1
    recorded = truth().gradients_on(pieces).constants
    names = truth().case.weights

    def shares(gradients: Mapping[str, np.ndarray]) -> dict[str, float]:
        return {name: compare(recorded[name], gradients[name]).e / 1e-9 for name in names}

    unit = np.sqrt(np.mean(truth().network_input ** 2))
    reach = dict.fromkeys(truth().oracle.stages, 0.0) | {"loss": float(distance.min() / unit)}
    found = recorded_pieces(truth(), reach, shares)
    assert found is not None
    assert all(compare(found[name], recorded[name]).e < 1e-12 for name in names)


@pytest.fixture(scope="module")
def at_a_kink() -> tuple[Bundle, Measurement, int]:
    """A recording without an envelope, of a case with an element whose bias puts it at its kink; where that is."""
    whole = read_bundle(RECORDINGS / "n64_g1_nopad.npz")
    # Of the elements near their kinks, the one that the loss feels most.
    near = np.argsort(distances(), axis=None)[:200]
    index = int(max(near, key=lambda each: abs(truth().gradients.cotangents[STAGE].flat[each])))
    inputs = truth().values_of(STAGE, truth().stages, truth().network_input)
    channel = index % truth().stages[STAGE].shape[-1]
    bias = whole.case.weights[f"{STAGE}.bias"].copy()
    lifted = dataclasses.replace(truth().constants, weights={**truth().constants.weights, f"{STAGE}.bias": bias + 1.0})
    # Far above the kink, the output says what stands before it.
    bias[channel] -= truth().oracle.node(STAGE).evaluate(inputs, lifted).flat[index] - 1.0
    case = dataclasses.replace(whole.case, weights={**whole.case.weights, f"{STAGE}.bias": bias})
    moved = Truth(case)
    stages = {
        name: Sampled(each.pick(moved.stages[name]).astype(each.values.dtype), each.shape, each.index)
        for name, each in whole.stages.items()
    }
    bundle = dataclasses.replace(
        whole,
        case=case,
        stages=stages,
        truth_stages={name: each.pick(moved.stages[name]) for name, each in whole.stages.items()},
        rms={**{f"stage/{name}": rms(array) for name, array in moved.stages.items()},
             **{f"grad/{name}": rms(moved.gradients.constants[name]) for name in case.weights}},
        truth_gradients={name: each.pick(moved.gradients.constants[name]) for name, each in whole.gradients.items()},
        losses=moved.losses,
        truth_losses=moved.losses,
        envelope=None,
    )  # fmt: skip
    return bundle, Measurement(moved, load_measured().limits), index


@pytest.mark.parametrize(
    ("asked", "stray"),
    [(True, 1.0), (False, 1.0), (True, 1.01)],
    ids=["a flip", "a flip that nobody looks for", "a flip and a wrong gradient"],
)
def test_a_recording_without_an_envelope_is_judged_on_its_own_pieces(
    at_a_kink: tuple[Bundle, Measurement, int], monkeypatch: pytest.MonkeyPatch, asked: bool, stray: float
) -> None:
    """One element that rounding puts on the other side makes no recording of a right reference fail."""
    if not asked:
        monkeypatch.setattr(replay, "recorded_pieces", lambda *arguments: None)
    bundle, measurement, index = at_a_kink
    moved = measurement.truth
    pieces = dict(moved.own_branches)
    pieces[STAGE] = pieces[STAGE].copy()
    pieces[STAGE].flat[index] ^= True
    flipped = moved.gradients_on(pieces).constants
    held = {
        name: Sampled(
            (each.pick(flipped[name]) * (stray if name == f"{STAGE}.kernel" else 1.0)).astype(np.float32),
            each.shape,
            each.index,
        )
        for name, each in bundle.gradients.items()
    }
    recorded = dataclasses.replace(bundle, gradients=held)
    verdicts = reference_verdicts(recorded, measurement, load_measured())
    failed = {name for (_, name), each in verdicts.items() if not each.passed}
    assert bool(failed) is (stray != 1.0 or not asked)


class AsTrained:
    """Runs the network as the truth does, but for the elements that are flipped before the first update."""

    device, dtype = "cpu", "float64"

    def __init__(self, *flipped: int) -> None:
        self.flipped = flipped

    def free(self, case: Case) -> FreeRun:
        stages = dict(Truth(case).stages)
        if case.weights is truth().case.weights:
            stages[STAGE] = stages[STAGE].copy()
            for index in self.flipped:
                stages[STAGE].flat[index] = 0.0 if stages[STAGE].flat[index] > 0 else 1e-12
        return dataclasses.replace(NOTHING_FREE, stages=stages)


def test_a_training_is_judged_on_the_pieces_that_its_own_network_was_on(monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = dataclasses.replace(read_bundle(RECORDINGS / "n64_g1_nopad.npz"), case=truth().case)
    expected = TrainingTruth.of(truth(), len(bundle.train_losses))
    index, _ = nearest(0)
    trained = train_truth(
        TrainingRun.repeated(truth().case, len(bundle.train_losses)),
        branches=lambda step, here: flipped_pieces(STAGE, index) if step == 1 else here.own_branches,
    )
    monkeypatch.setattr(torch_training, "train_torch", lambda *_: trained)

    def failing(subject: AsTrained) -> bool:
        verdicts = train_verdicts(bundle, truth(), expected, subject, load_measured())  # type: ignore[arg-type]
        return not all(verdict.passed for verdict in verdicts.values())

    assert not failing(AsTrained(index))
    assert failing(AsTrained())
    assert failing(AsTrained(nearest(1)[0]))
