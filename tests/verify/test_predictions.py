"""Recorded predictions: what is read, what is refused, and the whole object on the reference's own groups."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from conformance.cases.case import Case
from conformance.cases.draws import draw_case
from conformance.errors import PredictionsError
from conformance.judge.truth import Truth
from conformance.oracle.operations import stitch
from conformance.verify.predictions import read_predictions, scan_amplitude
from conformance.verify.verification import verify
from ptycho_tf_bridge import backend
from ptycho_torch.config_params import NetworkSettings
from ptycho_torch.errors import DataContractError
from tests.support.archives.archive_models import archive_of, checkpoint_of, predictions_of
from tests.support.scan_files import Arrays, write_scan

SETTINGS = NetworkSettings(N=64, gridsize=2, n_filters_scale=1, intensity_scale=20.75)
CROP = 20


def _scan(folder: Path) -> tuple[Path, Arrays]:
    """A scan of eight patterns a few pixels apart, its amplitude of another strength than the network takes."""
    path = folder / "scan.npz"
    rng = np.random.default_rng(2)
    drawn = write_scan(path, M=8, N=64, seed=1)
    drawn |= {"xcoords": rng.uniform(40, 52, 8), "ycoords": rng.uniform(60, 66, 8)}
    return path, write_scan(path, drawn)


def _recorded(folder: Path) -> tuple[Path, Path, Case]:
    """Three groups of the scan, what is predicted for the first, and their whole object."""
    path, scan = _scan(folder)
    members = np.array([[0, 1, 2, 3], [4, 5, 6, 7], [0, 2, 4, 6]])
    positions = np.stack([scan["xcoords"], scan["ycoords"]], axis=1)[members]  # (L, C, 2)
    centres = positions.mean(axis=1)
    offsets = (centres[:, None] - positions).transpose(0, 2, 1)[:, None]
    energy = np.square(scan["diff3d"], dtype=np.float64).sum(axis=(1, 2))[members].mean()
    diffraction = (scan["diff3d"][members] * (32 / np.sqrt(energy))).transpose(0, 2, 3, 1)
    case = dataclasses.replace(
        draw_case(SETTINGS, seed=4, batch=3), diffraction=diffraction.astype(np.float32), offsets_px=offsets
    )
    whole = stitch(Truth(case).stages["object"][..., 0], centres, CROP)
    first = dataclasses.replace(
        case, diffraction=case.diffraction[:1], offsets_px=case.offsets_px[:1].astype(np.float32)
    )
    predictions = predictions_of(
        first,
        folder / "prediction.npz",
        nn_indices=members.astype(np.int32),
        coords_offsets=centres[:, None, :, None],
        coords_relative=offsets,
        stitched=whole[..., None].astype(np.complex64),
        M=np.array(CROP),
    )
    return path, predictions, first


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Case]:
    return _recorded(tmp_path_factory.mktemp("recorded"))


def test_the_whole_object_comes_out_again_from_the_scan(
    recorded: tuple[Path, Path, Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "is_available", lambda: False)
    scan, predictions, case = recorded
    archive = archive_of(case)
    checkpoint = checkpoint_of(archive, tmp_path / "model.ckpt")
    found = verify(archive, checkpoint, scan=scan, predictions=predictions)
    assert found.passed, found.sentence
    assert [each.name for each in found.recorded] == ["object", "predicted_amplitude", "stitched"]
    assert found.not_compared == ()
    wrong = changed(predictions, tmp_path / "wrong.npz", stitched=lambda canvas: np.roll(canvas, 1, axis=0))
    found = verify(archive, checkpoint, scan=scan, predictions=wrong)
    assert not found.passed
    assert "NOT what the predictions were recorded with: REFERENCE stitched" in found.sentence


def changed(path: Path, target: Path, **changes: Callable[[np.ndarray], np.ndarray] | None) -> Path:
    """A copy of a file with some arrays changed, and those of None left out."""
    with np.load(path) as file:
        arrays = dict(file)
    for key, change in changes.items():
        if change is None:
            del arrays[key]
        else:
            arrays[key] = change(arrays.get(key, np.zeros(3)))
    np.savez(target, **arrays)
    return target


def test_everything_is_read(recorded: tuple[Path, Path, Case]) -> None:
    _, path, case = recorded
    found = read_predictions(path, SETTINGS)
    assert np.array_equal(found.diffraction, case.diffraction)
    assert list(found.recorded) == ["object", "predicted_amplitude"]
    assert found.stitched is not None
    assert found.stitched.centres_px.shape == (3, 2)
    assert found.stitched.crop_px == CROP


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"object": None}, "key 'object' is missing"),
        ({"amplitud": lambda _: np.zeros(3)}, "unknown key 'amplitud'"),
        ({"coords_offsets": None, "M": None}, "found nn_indices, coords_relative, stitched without coords_offsets"),
        ({"X": lambda x: x[..., :2]}, "'X' has shape (1, 64, 64, 2) of float32; expected (n, N, N, C)"),
        ({"object": lambda x: x.real}, "'object' has shape (1, 64, 64, 1) of float32"),
        ({"amplitude": lambda x: np.repeat(x, 2, axis=0)}, "'amplitude' has shape (2, 64, 64, 4)"),
        ({"offsets": lambda x: x * np.nan}, "'offsets' has values that are not finite"),
        ({"M": lambda _: np.array(21)}, "M = 21; expected an even number"),
    ],
    ids=lambda each: None if isinstance(each, str) else "-".join(each),
)
def test_a_file_that_is_not_as_it_should_be_is_refused(
    recorded: tuple[Path, Path, Case], tmp_path: Path, changes: dict, message: str
) -> None:
    path = changed(recorded[1], tmp_path / "p.npz", **changes)
    with pytest.raises(PredictionsError, match=re.escape(message)):
        read_predictions(path, SETTINGS)


def test_predictions_of_another_network_are_refused(recorded: tuple[Path, Path, Case]) -> None:
    with pytest.raises(PredictionsError, match="Are they predictions of this archive"):
        read_predictions(recorded[1], dataclasses.replace(SETTINGS, gridsize=1))


def test_pickled_predictions_are_refused_unopened(tmp_path: Path) -> None:
    np.savez(tmp_path / "p.npz", X=np.array([print], dtype=object))
    with pytest.raises(DataContractError, match="NPZ-02"):
        read_predictions(changed_with_required(tmp_path / "p.npz"), SETTINGS)


def changed_with_required(path: Path) -> Path:
    with np.load(path, allow_pickle=True) as file:
        content = file["X"]
    np.savez(path, X=content, offsets=np.zeros((1, 1, 2, 4)), object=np.zeros((1, 64, 64, 1), np.complex64))
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"nn_indices": lambda x: x + 5}, "'nn_indices' reach from 5 to 12"),
        ({"coords_offsets": lambda x: x + 1}, "'coords_offsets' lies up to 1 pixels from"),
        ({"coords_relative": lambda x: -x}, "'coords_relative' lies up to"),
        ({"X": lambda x: x[:, ::-1]}, "'X' is not what the first 1 groups"),
    ],
    ids=["indices", "centres", "offsets", "patterns"],
)
def test_groups_of_another_scan_are_refused(
    recorded: tuple[Path, Path, Case], tmp_path: Path, changes: dict, message: str
) -> None:
    scan, path, _ = recorded
    predictions = read_predictions(changed(path, tmp_path / "p.npz", **changes), SETTINGS)
    with pytest.raises(PredictionsError, match=re.escape(message)):
        scan_amplitude(predictions, scan, SETTINGS)


@pytest.mark.parametrize(
    ("groups", "objects", "batch", "gridsize"),
    [(80, 3, 32, 2), (20, 5, 16, 2), (20, 1, 32, 2), (33, 2, 32, 2), (128, 2, 64, 1), (9, 2, 8, 3)],
)
def test_few_objects_of_many_groups_are_named(
    groups: int, objects: int, batch: int, gridsize: int, tmp_path: Path
) -> None:
    # REF-01, as recorded of the reference: 20 groups in batches of 16 give 5 objects, and its inference gives 3 of 80.
    network = dataclasses.replace(SETTINGS, N=64, gridsize=gridsize)
    path = _of_sizes(tmp_path, groups, objects, network.C)
    with pytest.raises(PredictionsError) as caught:
        read_predictions(path, network)
    said = str(caught.value)
    assert f"{objects} objects for {groups} groups" in said
    assert f"batches of {batch}:" in said
    assert "REF-01" in said
    assert f"at most {63 // network.C} groups a call; docs/migration.md" in said


@pytest.mark.parametrize(
    ("groups", "objects", "object_big"), [(20, 7, True), (20, 21, True), (80, 3, False), (15, 1, True)]
)
def test_other_numbers_of_objects_are_not_put_down_to_that_defect(
    groups: int, objects: int, object_big: bool, tmp_path: Path
) -> None:
    path = _of_sizes(tmp_path, groups, objects, 4)
    with pytest.raises(PredictionsError, match="key 'object' has shape") as caught:
        read_predictions(path, dataclasses.replace(SETTINGS, object_big=object_big))
    assert "REF-01" not in str(caught.value)


def _of_sizes(folder: Path, groups: int, objects: int, C: int) -> Path:
    path = folder / "prediction.npz"
    zeros = {"X": (groups, 64, 64, C), "offsets": (groups, 1, 2, C)}
    arrays = {key: np.zeros(shape, np.float32) for key, shape in zeros.items()}
    np.savez(path, **arrays, object=np.zeros((objects, 64, 64, 1), np.complex64))  # type: ignore[arg-type]
    return path
