"""A faithful conversion is verified, and each kind of unfaithful one is caught and named at the right stage."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from conformance.cases.case import Case
from conformance.cases.draws import draw_case
from conformance.selftest.network import NETWORK
from conformance.verify.verification import Verification, verify
from ptycho_tf_bridge import backend
from ptycho_torch.config_params import NetworkSettings
from ptycho_torch.errors import CheckpointError
from tests.support.archives.archive_models import Weights, archive_of, checkpoint_of, predictions_of

SETTINGS = NetworkSettings(N=64, gridsize=2, n_filters_scale=1, intensity_scale=20.75)


@pytest.fixture(autouse=True)
def _without_tensorflow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "is_available", lambda: False)


@pytest.fixture(scope="module")
def case() -> Case:
    return draw_case(SETTINGS, seed=3, batch=1)


@pytest.fixture(scope="module")
def predictions(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return predictions_of(case, tmp_path_factory.mktemp("predictions") / "prediction.npz")


def verified(
    case: Case,
    folder: Path,
    predictions: Path | None,
    change: Callable[[Weights], None] = lambda _: None,
    **network: float,
) -> Verification:
    archive = archive_of(case)
    return verify(archive, checkpoint_of(archive, folder / "model.ckpt", change, **network), predictions=predictions)


def test_a_faithful_conversion_is_verified(case: Case, predictions: Path, tmp_path: Path) -> None:
    found = verified(case, tmp_path, predictions)
    assert found.passed, found.sentence
    assert "is the archived one" in found.sentence
    assert [report.dtype for report in found.reports] == ["float64", "float32"]
    assert [each.name for each in found.recorded] == ["object", "predicted_amplitude"]
    assert all(0 < each.converted.candidate.e < 1e-6 for each in found.recorded)
    assert found.reference == "none; envelope from specs/measured.yaml"
    assert found.not_compared == ("the stitched object: the predictions hold none",)


def _touch(name: str) -> Callable[[Weights], None]:
    def change(weights: Weights) -> None:
        flat = weights[name].flatten()
        flat[17] += 1e-3
        weights[name] = flat.reshape(weights[name].shape)

    return change


def _conjugate(weights: Weights) -> None:
    weights["probe_parts"][..., 1] *= -1


@pytest.mark.parametrize(
    ("change", "network", "stage", "words"),
    [
        (_touch("decoder_phase.1.conv2.weight"), {}, "decoder_phase.1.conv2", "differs in 1 of 9216 values"),
        (_touch("encoder.0.conv1.bias"), {}, "encoder.0.conv1", "weight encoder.0.conv1.bias differs in 1 of 32"),
        (_conjugate, {}, "exit_wave", "the probe is the archive's conjugated"),
        (
            lambda _: None,
            {"intensity_scale": 21.0},
            "normalized_input",
            "intensity_scale is 21.0 and the archive's 20.75",
        ),
    ],
    ids=["a weight", "a bias", "a conjugated probe", "another scale"],
)
def test_an_unfaithful_conversion_is_named_at_its_stage(
    case: Case,
    tmp_path: Path,
    predictions: Path,
    change: Callable[[Weights], None],
    network: dict,
    stage: str,
    words: str,
) -> None:
    found = verified(case, tmp_path, predictions, change, **network)
    assert not found.passed
    assert f"the first stage that differs is {stage};" in found.sentence, found.sentence
    assert words in found.sentence


def test_swapped_offsets_are_named_at_their_stage(case: Case, tmp_path: Path, predictions: Path) -> None:
    (fault,) = (each for each in NETWORK if each.where == "merged" and "swapped" in each.name)
    with fault.seeded():
        found = verified(case, tmp_path, predictions)
    assert not found.passed
    assert "the first stage that differs is merged" in found.sentence


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda case: dataclasses.replace(case, probe=case.probe.conj()), "the probe conjugated"),
        (lambda case: dataclasses.replace(case, probe=case.probe.swapaxes(1, 2)), "the probe transposed"),
        (
            lambda case: dataclasses.replace(case, offsets_px=case.offsets_px[:, :, ::-1]),
            "x and y of the offsets swapped",
        ),
        (lambda case: dataclasses.replace(case, offsets_px=-case.offsets_px), "the sign of the offsets turned"),
        (lambda case: dataclasses.replace(case, probe=case.probe * np.float32(1.5)), "1.5 times as large"),
    ],
    ids=["conjugated", "transposed", "swapped", "turned", "stronger"],
)
def test_an_archive_that_was_misread_as_a_whole_is_caught_by_what_was_recorded(
    case: Case, tmp_path: Path, wrong: Callable[[Case], Case], words: str
) -> None:
    """Truth and converted model would agree; only the recorded predictions know better."""
    predictions = predictions_of(wrong(case), tmp_path / "prediction.npz", X=case.diffraction, offsets=case.offsets_px)
    found = verified(case, tmp_path, predictions)
    assert not found.passed
    assert "holds at every stage, but it is NOT what the predictions were recorded with" in found.sentence
    assert words in found.sentence


def test_results_do_not_depend_on_the_order_of_archives(tmp_path: Path) -> None:
    cases = [draw_case(dataclasses.replace(SETTINGS, intensity_scale=s), seed=5, batch=1) for s in (3.0, 700.0)]

    def run(order: list[int], folder: str) -> dict[int, list]:
        (tmp_path / folder).mkdir()
        return {
            index: [
                (verdict.clause, verdict.stage, verdict.candidate, verdict.budget)
                for report in verified(cases[index], tmp_path / folder, None).reports
                for verdict in report.verdicts.values()
            ]
            for index in order
        }

    assert run([0, 1], "one") == run([1, 0], "other")


def test_live_keras_stands_for_the_reference(
    case: Case, predictions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorflow", reason="TensorFlow is not installed, so Keras is not compared live")
    monkeypatch.undo()
    found = verified(case, tmp_path, predictions)
    assert found.reference == "Keras, live"
    assert found.passed, found.sentence


def test_what_an_archive_lacks_is_taken_from_the_checkpoint_and_said(
    case: Case, predictions: Path, tmp_path: Path
) -> None:
    archive = archive_of(case)
    checkpoint = checkpoint_of(archive, tmp_path / "model.ckpt")
    lacking = dataclasses.replace(archive, probe=None, intensity_scale=None, missing=("probe", "intensity_scale"))
    found = verify(lacking, checkpoint, predictions=predictions)
    assert found.passed, found.sentence
    assert found.not_compared[0].startswith("probe, intensity_scale: the archive holds none")
    assert found.archive.probe_source == "the checkpoint"


def test_a_file_that_is_no_checkpoint_is_refused(case: Case, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        verify(archive_of(case), tmp_path / "nothing.ckpt")
