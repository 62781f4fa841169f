"""How well object and probe predict the measured patterns: 1 for the true ones, and no number without photons."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import poisson

from conformance.checks.light import draw_wave
from conformance.judge.agreement import FLOAT32, assert_agrees
from conformance.oracle import operations as oracle_operations
from ptycho_torch.config_params import DataSettings
from ptycho_torch.data.scan import Scan, open_scan
from ptycho_torch.errors import DataContractError
from ptycho_torch.reconstruction import diffraction_scores
from ptycho_torch.reconstruction.diffraction_scores import counts_per_unit, score_diffraction, sqrt_moments
from ptycho_torch.reconstruction.products import Reconstruction
from tests.support.plain_preparation import Preparation
from tests.support.true_objects import draw_object, scaled, true_object, with_members

Known = tuple[Scan, Reconstruction]


@pytest.fixture(scope="module")
def noiseless(tmp_path_factory: pytest.TempPathFactory) -> Known:
    """A scan without noise."""
    return true_object(tmp_path_factory.mktemp("noiseless"))


@pytest.fixture(scope="module")
def photons(tmp_path_factory: pytest.TempPathFactory) -> Known:
    """A scan of photons."""
    return true_object(tmp_path_factory.mktemp("photons"), noise=True)


# Every number by its equation.

BIN, FRAME_PX, PATCH_PX, SIGMA_PX = 2, 16, 8, 0.9


@pytest.mark.parity_clause("SCORE-02", "exit_wave")
@pytest.mark.parametrize("network", [{"gaussian_smoothing_sigma": SIGMA_PX, "probe_mask": True}, None], ids=str)
def test_the_squared_error_is_that_of_binned_patterns_that_object_and_probe_predict(
    tmp_path: Path, network: dict[str, object] | None
) -> None:
    """min over c of Σ (a − c·p)² / Σ a² over good pixels of patterns whose patch is covered, blurred and masked."""
    rng = np.random.default_rng(17)
    image, coverage = draw_object(rng, (30, 36)).astype(np.complex64), rng.uniform(0.5, 2.0, (30, 36))
    coverage[:9, :12] = 0
    bad = np.zeros((FRAME_PX, FRAME_PX), bool)
    bad[3, 5] = bad[12, 9] = True
    probe = (draw_wave(rng, 2, PATCH_PX, PATCH_PX) * np.array([1.0, 0.6])[:, None, None]).astype(np.complex64)
    frames = rng.gamma(2.0, 3.0, (12, FRAME_PX, FRAME_PX)).astype(np.float32)
    places_px, origin_px = rng.uniform((3, 0), (30, 31), (12, 2)), (-3.2, -31.4)
    members = {"diff3d": frames, "xcoords": places_px[:, 0], "ycoords": places_px[:, 1], "bad_pixels": bad}
    np.savez(tmp_path / "scan.npz", **members)
    settings = DataSettings(N=PATCH_PX, detector_bin=BIN, positions_swap_xy=True, positions_flip_y=True)
    provenance = {"settings": {"data": dataclasses.asdict(settings)}} | ({"network": network} if network else {})
    reconstruction = Reconstruction(image, coverage, origin_px, np.zeros((1, 2)), probe, provenance)
    found = score_diffraction(reconstruction, open_scan(tmp_path / "scan.npz"))

    prepared = Preparation(frame_px=FRAME_PX, N=PATCH_PX, bins=BIN)
    corners = prepared.positions_px(places_px, swap_xy=True, flip_x=False, flip_y=True) - origin_px - PATCH_PX / 2
    inside = np.zeros(12, bool)
    covered = np.pad(coverage > 0, 40)
    for number, (x, y) in enumerate(corners + 40):
        reach = [slice(math.floor(each), math.ceil(each) + PATCH_PX) for each in (y, x)]
        inside[number] = covered[reach[0], reach[1]].all()
    assert 2 < inside.sum() < 10
    views = oracle_operations.ground_truth_patches(image, corners[inside] + PATCH_PX / 2, PATCH_PX)
    wave = views[:, None] * probe
    if network:
        wave = oracle_operations.smooth(wave, SIGMA_PX) * oracle_operations.disk_mask(PATCH_PX)
    good = prepared.good_pixels(~bad)
    p = np.sqrt(oracle_operations.diffracted_intensity(wave).sum(axis=1)) * good
    a = prepared.amplitude(np.where(bad, 0, frames))[inside] * good
    factor = np.sum(a * p) / np.sum(p**2)
    right = np.sum((a - factor * p) ** 2) / np.sum(a**2)
    assert_agrees({"nmse": np.asarray(right)}, {"nmse": np.asarray(found.nmse)}, FLOAT32)


# χ².


@pytest.mark.parametrize("counts", [1e3, 1e4, 1e5, 1e6])
@pytest.mark.parametrize(("specimen", "modes"), [("lines", 1), ("dead_leaves", 3)])
def test_chi_square_is_1_for_the_true_object(tmp_path: Path, counts: float, specimen: str, modes: int) -> None:
    """With 64 × 64 pixels of 10³ counts most pixels expect much less than one photon."""
    scan, truth = true_object(tmp_path, counts=counts, specimen=specimen, modes=modes, N=64, noise=True)
    found = score_diffraction(truth, scan)
    assert found.counts_per_unit == 1
    assert found.chi2_intensity == pytest.approx(1, abs=0.05)
    assert found.chi2_amplitude == pytest.approx(1, abs=0.05)
    assert found.scale == pytest.approx(1, rel=0.02)


def test_chi_square_follows_its_equations(tmp_path: Path) -> None:
    scan, truth = true_object(tmp_path, counts=500, noise=True)
    broken = dataclasses.replace(truth, object=truth.object.conj())
    found = score_diffraction(broken, scan)
    amplitude = np.concatenate([frames.copy() for _, frames, _ in scan.stack.chunks(scan.stack.audit())])
    predicted = diffraction_scores.predict_intensity(broken, truth.positions_px).astype(float)
    counts = np.rint(amplitude.astype(float) ** 2)
    scale = counts.sum() / predicted.sum()
    mean = scale * predicted
    below = np.arange(200)
    law = poisson.pmf(below, mean[..., None])
    expected = (law * np.sqrt(below)).sum(-1)
    variance = mean - expected**2
    assert mean.max() < 120
    weight = 1 / (mean + 1)
    assert found.scale == pytest.approx(scale)
    intensity = (weight * (counts - mean) ** 2).sum() / (weight * mean).sum()
    assert found.chi2_intensity == pytest.approx(intensity, rel=1e-4)
    assert found.chi2_amplitude == pytest.approx(((np.sqrt(counts) - expected) ** 2).sum() / variance.sum(), rel=1e-4)
    assert found.r_factor == pytest.approx(np.abs(amplitude - np.sqrt(mean)).sum() / amplitude.sum(), rel=1e-4)
    assert min(found.chi2_intensity or 0, found.chi2_amplitude or 0) > 1.5


@pytest.mark.parametrize("mean", [0.0, 1e-4, 0.01, 0.3, 1.0, 7.0, 40.0, 63.99, 64.01, 90.0, 1000.0])
def test_moments_of_the_root_are_those_of_the_poisson_law(mean: float) -> None:
    counts = np.arange(int(mean + 40 * math.sqrt(mean) + 60))
    law = poisson.pmf(counts, mean)
    expected = (law * np.sqrt(counts)).sum()
    found = sqrt_moments(np.array(mean))
    assert float(found[0]) == pytest.approx(expected, abs=1e-6)
    assert float(found[1]) == pytest.approx((law * (np.sqrt(counts) - expected) ** 2).sum(), abs=1e-5)


@pytest.mark.parametrize(("factor", "probe_factor"), [(3j, 1.0), (1.0, 0.1), (-0.2, 40.0)])
def test_one_common_scale_is_fitted(photons: Known, factor: complex, probe_factor: float) -> None:
    scan, truth = photons
    plain, found = score_diffraction(truth, scan), score_diffraction(scaled(truth, factor, probe_factor), scan)
    assert found.scale == pytest.approx(plain.scale / abs(factor * probe_factor) ** 2, rel=1e-4)
    for name in ("chi2_intensity", "chi2_amplitude", "r_factor"):
        assert getattr(found, name) == pytest.approx(getattr(plain, name), rel=1e-4)


@pytest.mark.parametrize(
    "broken",
    [
        lambda it: dataclasses.replace(it, origin_px=(1.0, 0.0)),
        lambda it: dataclasses.replace(it, object=it.object.T),
        lambda it: dataclasses.replace(it, object=it.object.conj()),
        lambda it: dataclasses.replace(it, object=np.full_like(it.object, it.object.mean())),
        lambda it: dataclasses.replace(it, probe=it.probe[..., ::-1, ::-1] * (1 + np.arange(16))),
    ],
    ids=["origin", "transposed", "conjugated", "blank", "probe"],
)
def test_a_broken_reconstruction_predicts_other_patterns(noiseless: Known, photons: Known, broken) -> None:
    for scan, truth in (noiseless, photons):
        right, wrong = score_diffraction(truth, scan), score_diffraction(broken(truth), scan)
        assert wrong.nmse > right.nmse + 1e-3
        assert wrong.r_factor > right.r_factor + 0.01
    assert (right.chi2_intensity, right.chi2_amplitude) == (pytest.approx(1, abs=0.1), pytest.approx(1, abs=0.1))
    assert (wrong.chi2_intensity or 0) > 1.2
    assert (wrong.chi2_amplitude or 0) > 1.2


def test_one_mode_of_several_is_not_enough(tmp_path: Path) -> None:
    scan, truth = true_object(tmp_path, modes=2, noise=True)
    one = dataclasses.replace(truth, probe=truth.probe[0])
    assert (score_diffraction(one, scan).chi2_amplitude or 0) > 1.2
    assert score_diffraction(truth, scan).chi2_amplitude == pytest.approx(1, abs=0.05)


def test_bad_pixels_count_for_nothing(photons: Known, tmp_path: Path) -> None:
    scan, truth = photons
    with np.load(scan.path) as npz:
        amplitude = npz["diff3d"]
    bad = np.zeros((16, 16), bool)
    bad[4:8, 8] = True
    amplitude[:, bad] = np.sqrt(5000.0)
    unknown = with_members(scan, tmp_path / "unknown.npz", diff3d=amplitude)
    known = with_members(scan, tmp_path / "known.npz", diff3d=amplitude, bad_pixels=bad)
    assert (score_diffraction(truth, unknown).chi2_intensity or 0) > 10
    found = score_diffraction(truth, known)
    assert found.chi2_intensity == pytest.approx(1, abs=0.1)
    assert found.chi2_amplitude == pytest.approx(1, abs=0.1)


# Without photons.


def test_amplitudes_that_count_no_photons_have_no_chi_square(noiseless: Known) -> None:
    found = score_diffraction(noiseless[1], noiseless[0])
    assert found.counts_per_unit is found.chi2_intensity is found.chi2_amplitude is None
    assert found.nmse < 1e-9
    assert found.numbers()["noise_model"] is None
    assert "number of photons is unknown" in found.numbers()["no_noise_model_because"]
    assert "none: the squared amplitudes are not whole numbers" in dict(found.describe())["diffraction χ²"]


@pytest.mark.parametrize("unit", [1 / 250, 1e-6, 3.7])
def test_normalised_photons_are_found_by_their_least_step(photons: Known, tmp_path: Path, unit: float) -> None:
    scan, truth = photons
    with np.load(scan.path) as npz:
        amplitude = npz["diff3d"] * np.float32(math.sqrt(unit))
    found = score_diffraction(truth, with_members(scan, tmp_path / "normalised.npz", diff3d=amplitude))
    assert found.counts_per_unit == pytest.approx(1 / unit, rel=1e-5)
    assert found.chi2_intensity == pytest.approx(score_diffraction(truth, scan).chi2_intensity, rel=1e-3)


@pytest.mark.parametrize(
    "amplitude",
    [
        np.zeros((2, 9)),
        np.full((2, 9), 0.5),
        np.random.default_rng(0).random((20, 99)),
        np.sqrt(np.random.default_rng(0).poisson(9, (20, 99)) + 0.3),
        np.exp(12 * np.random.default_rng(0).random((20, 99))),
    ],
    ids=["dark", "one value", "uniform", "background taken off", "many decades"],
)
def test_what_is_not_counted_has_no_photons(amplitude: np.ndarray) -> None:
    assert counts_per_unit(amplitude.astype(np.float32)) is None


# Which patterns.


def test_only_patterns_on_covered_pixels_count(noiseless: Known) -> None:
    scan, truth = noiseless
    image, coverage = truth.object.copy(), truth.coverage.copy()
    image[:, :30] = 100  # What is not covered may hold anything.
    coverage[:, :30] = 0
    half = dataclasses.replace(truth, object=image, coverage=coverage)
    found = score_diffraction(half, scan)
    assert found.nmse < 1e-9
    assert 0 < found.patterns == found.patterns_inside < found.patterns_of_scan == 30
    with pytest.raises(DataContractError, match="no pattern of"):
        score_diffraction(dataclasses.replace(half, coverage=np.zeros_like(coverage)), scan)


def test_an_even_choice_of_many_patterns_is_looked_at(photons: Known, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diffraction_scores, "MOST_PIXELS", 10 * 16**2 + 5)
    scan, truth = photons
    found = score_diffraction(truth, scan)
    assert (found.patterns, found.patterns_inside) == (10, 30)
    assert found.chi2_amplitude == pytest.approx(1, abs=0.1)


def test_frames_are_prepared_as_the_provenance_says(noiseless: Known) -> None:
    scan, truth = noiseless
    data = dataclasses.asdict(DataSettings(N=16, detector_transpose=True))
    turned = dataclasses.replace(truth, provenance={"settings": {"data": data}})
    assert score_diffraction(turned, scan).nmse > 1e-3


@pytest.mark.parametrize("name", ["object", "probe"])
def test_what_is_not_finite_predicts_nothing(photons: Known, name: str) -> None:
    scan, truth = photons
    values = getattr(truth, name).copy()
    values[..., 8, 8] = np.nan
    with pytest.raises(DataContractError, match=f"NaN or infinity in the {name}"):
        score_diffraction(dataclasses.replace(truth, **{name: values}), scan)
