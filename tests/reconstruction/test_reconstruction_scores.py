"""Scores without a known object: of the true object, of a blank one, and in the files of a reconstruction."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from ptycho_torch import inference
from ptycho_torch.config_params import DataSettings, Settings
from ptycho_torch.data.scan import Scan
from ptycho_torch.dset_loader_pt_mmap import PtychoDataset
from ptycho_torch.files.json_numbers import finite_or_none, write_numbers
from ptycho_torch.inference import InferenceResult
from ptycho_torch.reconstruction.diffraction_scores import DiffractionScores, score_diffraction
from ptycho_torch.reconstruction.half_split import HalfSplit
from ptycho_torch.reconstruction.products import Reconstruction
from ptycho_torch.reconstruction.reconstruction_scores import ReconstructionScores, score_reconstruction
from ptycho_torch.reconstruction.rings import ring_correlation
from ptycho_torch.training.lightning_module import PtychoPINN
from tests.support.true_objects import true_object, with_members


def dataset_of(scan: Scan, folder: Path, gridsize: int = 1) -> PtychoDataset:
    settings = DataSettings(N=scan.stack.frame_px, gridsize=gridsize)
    return PtychoDataset(scan.path, data_dir=folder / "map", settings=settings)


def half_split_of(noise: float) -> HalfSplit:
    draw = np.random.default_rng(0)
    image, first, second = draw.standard_normal((3, 64, 64))
    return HalfSplit((15, 15), 0.0, 64, ring_correlation(image + noise * first, image + noise * second))


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> tuple[PtychoDataset, Scan, Reconstruction]:
    """A scan of photons with bad pixels as dataset and file, and its true object."""
    folder = tmp_path_factory.mktemp("known")
    scan, truth = true_object(folder, noise=True, modes=2)
    bad = np.zeros((16, 16), bool)
    bad[4:7, 8:10] = True
    with np.load(scan.path) as npz:
        amplitude = npz["diff3d"]
    amplitude[:, bad] = 99
    scan = with_members(scan, folder / "bad.npz", diff3d=amplitude, bad_pixels=bad)
    truth = dataclasses.replace(truth, disagreement=np.full(truth.object.shape, 0.01, np.float32))
    return dataset_of(scan, folder), scan, truth


def test_the_true_object_is_scored_1_with_bad_pixels_and_modes(
    known: tuple[PtychoDataset, Scan, Reconstruction],
) -> None:
    dataset, scan, truth = known
    scores = score_reconstruction(truth, half_split_of(0.1), dataset, 0)
    assert isinstance(scores.diffraction, DiffractionScores)
    assert scores.diffraction.chi2_intensity == pytest.approx(1, abs=0.1)
    assert scores.diffraction.chi2_amplitude == pytest.approx(1, abs=0.1)
    assert scores.diffraction == score_diffraction(truth, scan)
    spread = truth.object.std()
    assert scores.contrast == pytest.approx(spread / abs(truth.object.mean()), rel=1e-5)
    assert scores.disagreement == pytest.approx(0.01 / spread, rel=1e-5)
    numbers = json.loads(json.dumps(finite_or_none(scores.numbers()), allow_nan=False))
    assert numbers["half_split"]["half_bit_resolution_px"] == 2
    assert numbers["half_split"]["kind"] == "two halves of the groups, one network"
    assert numbers["diffraction"]["noise_model"] == "Poisson"
    text = "\n".join(scores.describe())
    assert "two halves of the groups, one network" in text
    assert "consistency, not accuracy, and optimistic" in text
    assert "common scale" in text


def test_a_blank_object_does_not_look_better(known: tuple[PtychoDataset, Scan, Reconstruction]) -> None:
    """Its patches differ by less than those of the true object, and its halves agree."""
    dataset, _, truth = known
    draw = np.random.default_rng(0)
    blank = dataclasses.replace(
        truth,
        object=(0.8 + 1e-4 * draw.standard_normal(truth.object.shape)).astype(np.complex64),
        disagreement=np.full(truth.object.shape, 0.001, np.float32),
    )
    good, bad = (score_reconstruction(each, half_split_of(0.1), dataset, 0) for each in (truth, blank))
    assert good.disagreement < 0.1 < 1 < bad.disagreement
    assert "2.00 px" in good.resolution()
    assert "none: overlapping patches disagree" in bad.resolution()
    assert finite_or_none(bad.numbers())["half_split"]["half_bit_resolution_px"] is None
    assert isinstance(bad.diffraction, DiffractionScores)
    assert (bad.diffraction.chi2_amplitude or 0) > 2


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"coverage": np.zeros((60, 60), np.float32)}, "no pattern of"),
        ({"object": np.full((60, 60), np.nan, np.complex64)}, "NaN or infinity in the object"),
    ],
)
def test_what_cannot_be_scored_says_why(
    known: tuple[PtychoDataset, Scan, Reconstruction], change: dict[str, np.ndarray], reason: str
) -> None:
    dataset, _, truth = known
    scores = score_reconstruction(dataclasses.replace(truth, **change), None, dataset, 0)
    numbers = finite_or_none(scores.numbers())
    assert (numbers["diffraction"], numbers["half_split"], numbers["disagreement_over_contrast"]) == (None, None, None)
    assert reason in numbers["no_diffraction_because"]
    assert any(reason in line for line in scores.describe())


@pytest.mark.parametrize("value", [0, 1, 0.3 - 2j])
def test_a_constant_object_has_no_relative_disagreement(
    known: tuple[PtychoDataset, Scan, Reconstruction], value: complex
) -> None:
    constant = dataclasses.replace(known[2], object=np.full((60, 60), value, np.complex64))
    assert constant.contrast == pytest.approx(0, abs=1e-6)
    assert math.isnan(constant.relative_disagreement)
    assert math.isnan(dataclasses.replace(known[2], disagreement=None).relative_disagreement)


def test_contrast_is_of_covered_pixels_by_their_weight(known: tuple[PtychoDataset, Scan, Reconstruction]) -> None:
    image, coverage = np.array([[1, 3j, np.nan]]), np.array([[1.0, 3.0, 0.0]])
    few = dataclasses.replace(known[2], object=image, coverage=coverage, disagreement=np.array([[0.5, 0.1, 9.0]]))
    mean = (1 + 9j) / 4
    contrast = math.sqrt((abs(1 - mean) ** 2 + 3 * abs(3j - mean) ** 2) / 4)
    assert few.contrast == pytest.approx(contrast)
    assert few.mean_modulus == pytest.approx(abs(mean))
    assert few.relative_disagreement == pytest.approx(math.sqrt((0.25 + 3 * 0.01) / 4) / contrast)


# Files.


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> InferenceResult:
    """What an untrained network makes of a scan of 64 × 64 pixels."""
    folder = tmp_path_factory.mktemp("written")
    scan, _ = true_object(folder, N=64, noise=True)
    dataset = dataset_of(scan, folder)
    settings = Settings().override({"N": 64, "gridsize": 1, "n_filters_scale": 1, "device": "cpu"})
    module = PtychoPINN.for_dataset(dataset, settings)
    objects = inference.reconstruct(module, dataset, batch_size=7, crop_px=64, device="cpu", progress=False)
    (result,) = inference.write_results(objects, module, dataset, folder / "out", source=folder / "none.ckpt")
    return result


def test_scores_are_written_beside_the_reconstruction(written: InferenceResult) -> None:
    assert written.json == written.npz.with_suffix(".json")
    numbers = json.loads(written.json.read_text(encoding="utf-8"))
    assert numbers == json.loads(json.dumps(finite_or_none(written.scores.numbers())))
    assert sum(numbers["half_split"]["groups"]) == 30
    assert numbers["half_split"]["patterns_in_both"] == 0
    assert numbers["diffraction"]["patterns_of_scan"] == 30
    assert 0 < numbers["diffraction"]["patterns"] <= 30
    assert numbers["diffraction"]["chi2_amplitude"] > 2


def test_the_picture_has_the_scores(written: InferenceResult) -> None:
    assert imread(written.pictures[0]).shape[1] == 1760


def test_numbers_are_written_whole_and_not_over_others(tmp_path: Path) -> None:
    write_numbers(tmp_path / "a.json", {"χ": [1.5, math.nan, (math.inf, 2)]})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"χ": [1.5, None, [None, 2]]}
    with pytest.raises(ValueError, match="is there already"):
        write_numbers(tmp_path / "a.json", {})
    write_numbers(tmp_path / "a.json", {}, overwrite=True)
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {}


def test_scores_without_halves_are_told() -> None:
    scores = ReconstructionScores(0.1, math.nan, None, "a reason")
    assert [line.split()[0] for line in scores.describe()] == ["contrast", "diffraction"]
    apart = dataclasses.replace(scores, half_split=HalfSplit((1, 0), 0.0, 0, None))
    assert "none: the halves share no covered square of 32 px" in "\n".join(apart.describe())
