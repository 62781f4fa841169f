"""Hints about a scan: right where something was turned, silent where nothing was."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from ptycho_torch.config_params import DataSettings
from ptycho_torch.data.preparation import flip_about_zero_frequency
from ptycho_torch.data.scan import examine, open_scan
from ptycho_torch.files.remedies import adding
from ptycho_torch.importer.hints import ScanView, hint_centre, hint_orientation, hint_positions, scan_hints
from ptycho_torch.importer.orientation import OrientationHint, judge_orientation

N = 64
Arrays = dict[str, np.ndarray]


def simulated(step_px: float, seed: int = 0, points: int = 7) -> Arrays:
    """A raster of jittered positions over a smooth random object, under a probe with curvature; amplitude."""
    draw = np.random.default_rng(seed)
    side = N + int(step_px * points) + 10
    smooth = [gaussian_filter(draw.normal(size=(side, side)), 2) for _ in range(2)]
    smooth = [each / each.std() for each in smooth]
    whole = (1 + 0.2 * smooth[0]) * np.exp(0.6j * smooth[1])
    y, x = np.mgrid[:N, :N] - N / 2
    # Wider in y than in x, and off the middle, so that no symmetry of the probe hides a turn.
    probe = np.exp(-((x - 3) ** 2) / 120 - (y + 2) ** 2 / 220) * np.exp(0.03j * (x**2 + 0.4 * y**2 + 0.5 * x * y))
    grid = np.arange(points) * step_px + N / 2 + 3
    places = np.stack(np.meshgrid(grid, grid), -1).reshape(-1, 2) + draw.uniform(-1, 1, (points**2, 2))
    places = np.round(places)
    patterns = []
    for column, row in places.astype(int):
        view = whole[row - N // 2 : row + N // 2, column - N // 2 : column + N // 2]
        patterns.append(np.abs(np.fft.fftshift(np.fft.fft2(view * probe))) / N)
    amplitude = np.sqrt(draw.poisson(np.square(patterns) * 50)).astype(np.float32)
    return {"diff3d": amplitude, "xcoords": places[:, 0], "ycoords": places[:, 1], "probeGuess": probe}


def judged(arrays: Arrays, tmp_path: Path) -> OrientationHint:
    np.savez(tmp_path / "scan.npz", **{key: np.ascontiguousarray(array) for key, array in arrays.items()})
    return judge_orientation(open_scan(tmp_path / "scan.npz"))


def frames(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Arrays], Arrays]:
    return lambda arrays: arrays | {"diff3d": change(arrays["diff3d"])}


TURNS: dict[str, tuple[Callable[[Arrays], Arrays], str]] = {
    "vertical": (frames(lambda d: flip_about_zero_frequency(d, 1)), 'detector_flip = "vertical"'),
    "horizontal": (frames(lambda d: flip_about_zero_frequency(d, 2)), 'detector_flip = "horizontal"'),
    "both": (
        frames(lambda d: flip_about_zero_frequency(flip_about_zero_frequency(d, 1), 2)),
        'detector_flip = "both"',
    ),
    "transposed": (frames(lambda d: d.swapaxes(1, 2)), "detector_transpose = True"),
    "x and y swapped": (
        lambda arrays: arrays | {"xcoords": arrays["ycoords"], "ycoords": arrays["xcoords"]},
        "positions_swap_xy = True",
    ),
    "x the other way": (lambda arrays: arrays | {"xcoords": -arrays["xcoords"]}, "positions_flip_x = True"),
}
SOURCES = ("simulated", "siemens_star_n64", "siemens_star_n128")


@pytest.fixture(params=SOURCES)
def arrays(request: pytest.FixtureRequest) -> Arrays:
    """A scan as it should be, without the object."""
    if request.param == "simulated":
        return simulated(step_px=5)
    path = request.getfixturevalue("shared") / "data" / f"{request.param}.npz"
    if not path.is_file():
        pytest.skip(f"{path} is absent")
    with np.load(path) as members:
        return {key: members[key] for key in ("diff3d", "xcoords", "ycoords", "probeGuess")}


def test_a_right_scan_gets_no_hint(arrays: Arrays, tmp_path: Path) -> None:
    np.savez(tmp_path / "scan.npz", **arrays)
    examination = examine(tmp_path / "scan.npz")
    assert examination.scan is not None
    assert scan_hints(ScanView.of_scan(examination.scan, DataSettings(), examination.sample)) == ()
    assert list(hint_orientation(judge_orientation(examination.scan), adding)) == []


@pytest.mark.parametrize("turn", TURNS)
def test_a_turned_scan_is_told_the_setting_that_turns_it_back(arrays: Arrays, tmp_path: Path, turn: str) -> None:
    change, setting = TURNS[turn]
    hint = judged(change(arrays), tmp_path)
    assert hint.looks_wrong
    assert hint.best is not None
    assert setting in hint.describe()


def test_intensity_in_place_of_amplitude_is_noticed(arrays: Arrays, tmp_path: Path) -> None:
    """Scaled, so that no whole number gives it away."""
    hint = judged(arrays | {"diff3d": 0.37 * arrays["diff3d"] ** 2}, tmp_path)
    assert hint.looks_like_intensity
    assert any("--from-intensity" in found.text for found in hint_orientation(hint, adding))


def test_a_scan_without_overlap_is_not_judged(tmp_path: Path) -> None:
    hint = judged(simulated(step_px=70, points=4), tmp_path)
    assert not hint.looks_wrong
    assert "not judged" in hint.describe()


def test_a_scan_of_few_points_or_without_probe_is_not_judged(tmp_path: Path) -> None:
    arrays = simulated(step_px=5)
    few = {key: array[:8] if len(array) == 49 else array for key, array in arrays.items()}
    probeless = {key: array for key, array in arrays.items() if key != "probeGuess"}
    for each in (few, probeless):
        hint = judged(each, tmp_path)
        assert not hint.looks_wrong
        assert hint.reason


def test_turning_by_180_degrees_cannot_be_told_with_a_real_symmetric_probe(tmp_path: Path) -> None:
    arrays = simulated(step_px=5)
    y, x = np.mgrid[:N, :N] - N / 2
    probe = np.exp(-(x**2) / 120 - y**2 / 120)
    # Patterns of another probe would say nothing; the frames alone are turned in both cases.
    arrays = resimulated(arrays, probe)
    turned = frames(lambda d: flip_about_zero_frequency(flip_about_zero_frequency(d, 1), 2))(arrays)
    for each in (arrays, turned):
        assert not judged(each, tmp_path).looks_wrong


def resimulated(arrays: Arrays, probe: np.ndarray) -> Arrays:
    draw = np.random.default_rng(1)
    places = np.stack([arrays["xcoords"], arrays["ycoords"]], 1).astype(int)
    side = int(places.max()) + N
    smooth = [gaussian_filter(draw.normal(size=(side, side)), 2) for _ in range(2)]
    whole = (1 + 0.2 * smooth[0] / smooth[0].std()) * np.exp(0.6j * smooth[1] / smooth[1].std())
    views = [whole[y - N // 2 : y + N // 2, x - N // 2 : x + N // 2] for x, y in places]
    amplitude = np.abs(np.fft.fftshift(np.fft.fft2(np.stack(views) * probe), axes=(1, 2))) / N
    return arrays | {"diff3d": amplitude.astype(np.float32), "probeGuess": probe}


@pytest.mark.parametrize(
    ("step", "points", "expected"),
    [(3e-6, 2, 1), (0.0, 9, 0), (40.0, 2, 0), (0.1, 9, 1), (0.1, 8, 1), (0.2, 8, 0), (65.0, 4, 1), (60.0, 2000, 1)],
)
def test_positions_in_another_unit_are_noticed(step: float, points: int, expected: int) -> None:
    line = np.stack([step * np.arange(points), np.zeros(points)], axis=1)
    assert len(list(hint_positions(line, 64, adding))) == expected


@pytest.mark.parametrize(("shift", "expected"), [(0, 0), (3, 0), (5, 1)])
def test_a_frame_cut_around_the_wrong_pixel_is_noticed(shift: int, expected: int) -> None:
    y, x = np.mgrid[:N, :N] - N // 2
    counts = np.exp(-((x - shift) ** 2 + y**2) / 50)
    hints = list(hint_centre(counts, None, adding))
    assert len(hints) == expected
    assert all("row 32.0, column 37.0" in hint.text for hint in hints)
    assert all("`--crop 54 --centre 32,37`" in hint.text for hint in hints)


@pytest.mark.parametrize(("shift", "expected"), [((0, 5), 0), ((5, 0), 0), ((0, -5), 0), ((0, 0), 1), ((0, 8), 1)])
def test_a_tilted_probe_explains_a_pattern_off_the_middle(shift: tuple[int, int], expected: int) -> None:
    """The probe's far field lies 5 pixels off; patterns there, in any orientation, are where they belong."""
    y, x = np.mgrid[:N, :N] - N / 2
    probe = np.exp(-(x**2 + y**2) / 60) * np.exp(2j * np.pi * 5 * x / N)
    rows, columns = np.mgrid[:N, :N] - N // 2
    counts = np.exp(-((columns - shift[1]) ** 2 + (rows - shift[0]) ** 2) / 50)
    assert len(list(hint_centre(counts, probe[None], adding))) == expected


def test_the_line_names_the_misfits_it_goes_by(tmp_path: Path) -> None:
    hint = judged(simulated(step_px=5), tmp_path)
    assert hint.best is not None
    assert f"{hint.best.misfit:.3f}" in hint.describe()
    assert hint.margin == pytest.approx(1 + 2.5 / hint.held_out**0.5)
    assert not dataclasses.replace(hint, fits=()).looks_wrong
