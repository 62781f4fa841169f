"""What looks wrong in scans is told by all commands, and training stops where it is grave."""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ptycho_torch import check, train
from ptycho_torch.commands.cli import main
from ptycho_torch.config_params import DataSettings, Settings
from ptycho_torch.data.scan import examine, open_scan, sample_numbers, sample_patterns
from ptycho_torch.errors import ConfigError
from ptycho_torch.importer.hints import GRAVE, Hint, ScanView, far_patterns, heed, heed_patterns, scan_hints
from ptycho_torch.inference import infer
from tests.support.scenes import GEOMETRY, PIXEL_M, Arrays, draw_scene, write

SETTINGS = DataSettings()


def hints_of(arrays: Arrays, tmp_path: Path) -> dict[str, str]:
    """Return kind → text of the hints about a scan, all patterns looked at."""
    examination = examine(write(tmp_path / "scan.npz", arrays))
    assert examination.scan is not None, [finding.text for finding in examination.findings]
    return {
        hint.kind: hint.text for hint in scan_hints(ScanView.of_scan(examination.scan, SETTINGS, examination.sample))
    }


@pytest.fixture(scope="module")
def scene() -> Arrays:
    return draw_scene()


def counts_of(arrays: Arrays) -> np.ndarray:
    return np.rint(np.square(arrays["diff3d"], dtype=np.float64))


def with_counts(arrays: Arrays, counts: np.ndarray) -> Arrays:
    return arrays | {"diff3d": np.sqrt(counts).astype(np.float32)}


def moved(arrays: Arrays, x: np.ndarray, y: np.ndarray) -> Arrays:
    return arrays | {"xcoords": x, "ycoords": y}


@pytest.mark.parametrize("without", [(), ("probeGuess",)], ids=["probe", "no probe"])
@pytest.mark.parametrize("counts", [2e3, 1e5])
def test_a_right_scan_gets_no_hint(without: tuple[str, ...], counts: float, tmp_path: Path) -> None:
    arrays = draw_scene(counts=counts)
    assert hints_of({key: array for key, array in arrays.items() if key not in without}, tmp_path) == {}


@pytest.mark.parametrize("name", ["siemens_star_n64", "siemens_star_n128"])
def test_a_real_scan_gets_no_hint(name: str, shared: Path) -> None:
    path = shared / "data" / f"{name}.npz"
    if not path.is_file():
        pytest.skip(f"{path} is absent")
    assert check.hints_of(path) == ()


# ------------------------------------------------------------------------------------------------------- positions


@pytest.mark.parametrize("unit", [1.0, 1e-3, 1e-6, 1e-9], ids=["m", "mm", "µm", "nm"])
@pytest.mark.parametrize("known", [True, False], ids=["geometry known", "geometry unknown"])
def test_positions_in_another_unit_are_told_with_the_factor(
    scene: Arrays, tmp_path: Path, unit: float, known: bool
) -> None:
    x, y = (scene[name] * PIXEL_M / unit for name in ("xcoords", "ycoords"))
    found = hints_of(moved(scene, x, y) | (GEOMETRY if known else {}), tmp_path)
    assert set(found) == {"position-unit"}
    if known:
        factors = [float(factor) for factor in re.findall(r"--positions-scale (\S+?)`", found["position-unit"])]
        assert any(factor == pytest.approx(unit / PIXEL_M, rel=1e-5) for factor in factors)


OUTLIERS: dict[str, tuple[dict[int, tuple[float, float]], str]] = {
    "one far to the right": ({20: (3000.0, 0.0)}, "Pattern 20 "),
    "the first before the stage settled": ({0: (0.0, -900.0)}, "Pattern 0 "),
    "three together": ({5: (700.0, 700.0), 6: (701.0, 700.0), 40: (699.0, 702.0)}, "Patterns 5, 6, 40 "),
    "a number that stands for nothing": ({63: (-1e9, -1e9)}, "Pattern 63 "),
    "the farthest that a position may be": ({30: (9e11, 9e11)}, "Pattern 30 "),
    "two at different places": ({1: (5e5, 0.0), 2: (0.0, -5e5)}, "Patterns 1, 2 "),
}


@pytest.mark.parametrize("name", OUTLIERS)
def test_a_few_patterns_far_away_are_named_with_what_they_cost(name: str, scene: Arrays, tmp_path: Path) -> None:
    shifts, named = OUTLIERS[name]
    x, y = scene["xcoords"].copy(), scene["ycoords"].copy()
    for number, (right, down) in shifts.items():
        x[number] += right
        y[number] += down
    found = hints_of(moved(scene, x, y), tmp_path)
    assert set(found) == {"position-outlier"}
    text = found["position-outlier"]
    assert text.startswith(named)
    assert "the canvas of all groups" in text
    assert re.search(r"\d [GM]iB for one tensor", text)
    keep = re.findall(r"--select (\S+?)`", text)[0]
    kept = np.concatenate([np.arange(*map(int, part.split(":"))) for part in keep.split(",")])
    np.testing.assert_array_equal(kept, np.delete(np.arange(64), list(shifts)))


def test_the_canvas_that_is_named_is_the_one_that_training_would_have(scene: Arrays, tmp_path: Path) -> None:
    x = scene["xcoords"].copy()
    x[20] += 500
    text = hints_of(moved(scene, x, scene["ycoords"]), tmp_path)["position-outlier"]
    side, *_ = (int(number) for number in re.search(r"groups: (\d+) × \d+ px", text).groups())  # type: ignore[union-attr]
    verdict = check.judge(tmp_path / "scan.npz", with_hints=False)
    padding = re.search(r"the canvas has (\d+) px a side", " ".join(verdict.numbers))
    assert padding is not None
    assert side == 64 + 2 * int(padding[1])


def test_two_regions_of_one_scan_are_no_outliers() -> None:
    places = np.random.default_rng(0).uniform(0, 100, (60, 2))
    places[30:] += 5000
    assert len(far_patterns(places, 64)) == 0


@pytest.mark.parametrize("exposures", [7, 8, 20])
@pytest.mark.parametrize("drift_px", [0.0, 0.05])
def test_groups_of_one_place_are_told(scene: Arrays, tmp_path: Path, exposures: int, drift_px: float) -> None:
    places = np.repeat(np.arange(25), exposures)
    drift = np.random.default_rng(1).uniform(-drift_px, drift_px, (2, len(places)))
    found = hints_of(
        scene
        | {
            "diff3d": scene["diff3d"][places],
            "xcoords": scene["xcoords"][places] + drift[0],
            "ycoords": scene["ycoords"][places] + drift[1],
        },
        tmp_path,
    )
    assert f"{len(places)} patterns at 25 places" in found["one-place"]
    assert "--merge-repeats" in found["one-place"]


def test_two_exposures_a_place_still_have_overlap(scene: Arrays, tmp_path: Path) -> None:
    twice = np.repeat(np.arange(64), 2)
    arrays = scene | {key: scene[key][twice] for key in ("diff3d", "xcoords", "ycoords")}
    assert "one-place" not in hints_of(arrays, tmp_path)


def test_a_series_at_one_place_is_static(scene: Arrays, tmp_path: Path) -> None:
    assert (
        "All 64 patterns lie at one place"
        in hints_of(moved(scene, np.full(64, 40.0), np.full(64, 41.0)), tmp_path)["static"]
    )


def test_several_scans_in_a_file_are_told_and_judged_apart(scene: Arrays, tmp_path: Path) -> None:
    other = draw_scene(seed=4)
    both = {key: np.concatenate([scene[key], other[key]]) for key in ("diff3d", "xcoords", "ycoords")}
    both["xcoords"][64:] += 4000  # Far from the other scan, which is no matter.
    both |= {"probeGuess": scene["probeGuess"], "scan_index": np.repeat([3, 7], 64)}
    found = hints_of(both, tmp_path)
    assert set(found) == {"several-scans"}
    assert "3: 64 patterns, 7: 64 patterns" in found["several-scans"]
    both["xcoords"][100] += 2000
    found = hints_of(both, tmp_path)
    assert found["position-outlier"].startswith("scan_index 7: Pattern 100 ")


def test_an_index_that_counts_patterns_is_told(scene: Arrays, tmp_path: Path) -> None:
    found = hints_of(scene | {"scan_index": np.arange(64)}, tmp_path)
    assert "64 scans in one file" in found["scan-index"]


# -------------------------------------------------------------------------------------------------------- patterns


HOT: dict[str, Callable[[np.ndarray], None]] = {
    "one pixel": lambda counts: counts.__setitem__((slice(None), 50, 11), 2e6),
    "three pixels": lambda counts: counts.__setitem__((slice(None), [3, 50, 60], [3, 11, 30]), 1e5),
    "a row without measurement": lambda counts: counts.__setitem__((slice(None), 10), 2.0**32 - 1),
    "two columns of a gap": lambda counts: counts.__setitem__((slice(None), slice(None), slice(9, 11)), 65535),
    "a pixel that flickers": lambda counts: counts.__setitem__((slice(0, 64, 2), 7, 57), 3e5),
}


@pytest.mark.parametrize("probe", [True, False], ids=["probe", "no probe"])
@pytest.mark.parametrize("name", HOT)
def test_hot_pixels_are_named_and_not_taken_for_intensity(
    name: str, probe: bool, scene: Arrays, tmp_path: Path
) -> None:
    counts = counts_of(scene)
    before = counts.copy()
    HOT[name](counts)
    arrays = with_counts({key: scene[key] for key in scene if probe or key != "probeGuess"}, counts)
    found = hints_of(arrays, tmp_path)
    assert set(found) == {"hot-pixel"}
    marked = re.findall(r"--bad-pixels '?([^'`]+)", found["hot-pixel"])[0]
    bad = np.zeros((64, 64), bool)
    for pixel in marked.split(";"):
        row, column = (slice(None) if each == ":" else int(each) for each in pixel.split(","))
        bad[row, column] = True
    np.testing.assert_array_equal(bad, (counts != before).any(axis=0))
    kinds = {hint.kind for hint in check.judge(tmp_path / "scan.npz").hints}
    assert kinds == {"hot-pixel"}


@pytest.mark.parametrize("known", [True, False], ids=["probe", "no probe"])
def test_a_bright_middle_is_no_hot_pixel(known: bool, tmp_path: Path) -> None:
    """A wide probe puts most of its light into five pixels."""
    y, x = np.mgrid[:64, :64] - 32
    wide = np.exp(-(x**2 + y**2) / (2 * 16.0**2))
    views = np.random.default_rng(0).normal(1, 0.05, (64, 64, 64))
    light = np.abs(np.fft.fftshift(np.fft.fft2(views * wide), axes=(1, 2))) ** 2
    counts = np.random.default_rng(1).poisson(1e5 * light / light.sum(axis=(1, 2), keepdims=True))
    scan = with_counts(draw_scene(), counts) | {"probeGuess": wide.astype(np.complex64)}
    assert "hot-pixel" not in hints_of({key: scan[key] for key in scan if known or key != "probeGuess"}, tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.002])
def test_dark_patterns_are_named(scene: Arrays, tmp_path: Path, share: float) -> None:
    counts = counts_of(scene)
    counts[[0, 17]] = np.random.default_rng(0).poisson(share * counts[[0, 17]])
    found = hints_of(with_counts(scene, counts), tmp_path)
    assert found["dark-frames"].startswith("Patterns 0, 17 of 64 are dark")
    assert "--drop-dark" in found["dark-frames"]


def test_patterns_that_are_far_too_bright_are_named(scene: Arrays, tmp_path: Path) -> None:
    counts = counts_of(scene)
    counts[30] *= 40
    found = hints_of(with_counts(scene, counts), tmp_path)
    assert found["bright-frames"].startswith("Pattern 30 of 64 holds more than 10 times")


@pytest.mark.parametrize("largest", [150, 255, 4095, 65535])
def test_saturated_patterns_are_told(tmp_path: Path, largest: int) -> None:
    arrays = draw_scene(counts=400 * largest)
    found = hints_of(with_counts(arrays, np.minimum(counts_of(arrays), largest)), tmp_path)
    assert set(found) == {"saturated"}
    assert f"{largest} counts" in found["saturated"]


STATIC: dict[str, Callable[[Arrays], np.ndarray]] = {
    "one frame again and again": lambda arrays: np.repeat(counts_of(arrays)[:1], 64, axis=0),
    "the shutter of the stage was closed": lambda arrays: np.random.default_rng(0).poisson(
        np.repeat(counts_of(arrays).mean(axis=0, keepdims=True), 64, axis=0)
    ),
    "the beam flickers": lambda arrays: np.random.default_rng(0).poisson(
        np.linspace(0.6, 1.4, 64)[:, None, None] * counts_of(arrays).mean(axis=0, keepdims=True)
    ),
}


@pytest.mark.parametrize("name", STATIC)
def test_a_static_series_is_told(name: str, scene: Arrays, tmp_path: Path) -> None:
    assert "static" in hints_of(with_counts(scene, STATIC[name](scene)), tmp_path)


@pytest.mark.parametrize("shift", [(12, 0), (0, -20), (32, 32), (-15, 9)])
def test_a_probe_that_is_not_in_the_middle_is_told(shift: tuple[int, int], scene: Arrays, tmp_path: Path) -> None:
    scan = scene | {"probeGuess": np.roll(scene["probeGuess"], shift, (0, 1))}
    # The probe itself lies 2 rows and -1 columns off.
    assert "probe-off-centre" in hints_of(scan, tmp_path)


def test_few_patterns_are_enough(scene: Arrays, tmp_path: Path) -> None:
    """What convert-scan looks at, a few stored patterns, gives the hints that all patterns give."""
    counts = counts_of(scene)
    counts[:, 40, 3] = 1e7
    scan = open_scan(write(tmp_path / "scan.npz", with_counts(scene, counts)))
    np.savez_compressed(tmp_path / "packed.npz", **with_counts(scene, counts))  # type: ignore[arg-type]
    packed = open_scan(tmp_path / "packed.npz")
    for each in (scan, packed):
        sample = sample_patterns(each)
        np.testing.assert_array_equal(sample.amplitude, np.sqrt(counts).astype(np.float32)[sample.energy_numbers])
        assert [hint.kind for hint in scan_hints(ScanView.of_scan(each, SETTINGS, sample))] == ["hot-pixel"]
    assert len(sample_numbers(10**6, 64)) == 256
    assert len(sample_numbers(10**6, 4096)) == 16


# ------------------------------------------------------------------------------------------------------- commands


@pytest.fixture
def metres(scene: Arrays, tmp_path: Path) -> Path:
    x, y = (scene[name] * PIXEL_M for name in ("xcoords", "ycoords"))
    return write(tmp_path / "scans" / "scan.npz", moved(scene, x, y) | GEOMETRY)


@pytest.fixture
def hot(scene: Arrays, tmp_path: Path) -> Path:
    counts = counts_of(scene)
    counts[:, 40, 3] = 1e7
    return write(tmp_path / "scans" / "scan.npz", with_counts(scene, counts))


QUICK = Settings().override({"max_epochs": 1, "tracking": False, "device": "cpu", "batch_size": 16})


@pytest.mark.parametrize("name", ["metres", "hot"])
def test_training_stops_at_a_grave_hint_and_leaves_nothing(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    scan = request.getfixturevalue(name)
    with pytest.raises(ConfigError, match=r"scan\.npz: hint \((position-unit|hot-pixel)\).*--accept \1\.$") as caught:
        train.main(scan, settings=QUICK, output_dir=tmp_path / "run", data_dir=tmp_path / "map", progress=False)
    assert {"metres": "--positions-scale 1.66667e+07", "hot": "--bad-pixels 40,3"}[name] in str(caught.value)
    assert not [path for path in (tmp_path / "run").rglob("*") if path.is_file()]


def test_training_goes_on_with_an_accepted_hint_and_inference_tells_it(
    hot: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    result = train.main(
        hot, settings=QUICK, output_dir=tmp_path / "run", data_dir=tmp_path / "map", progress=False,
        accept="static,hot-pixel", reconstruct=False,
    )  # fmt: skip
    told = [record.message for record in caplog.records if "hint (hot-pixel)" in record.message]
    assert len(told) == 1
    caplog.clear()
    infer(result.checkpoint, hot, output_dir=tmp_path / "out", data_dir=tmp_path / "map", progress=False)
    assert any("hint (hot-pixel)" in record.message for record in caplog.records)
    assert (tmp_path / "out" / "scan.npz").is_file()


def test_a_kind_that_nothing_has_is_refused() -> None:
    for kind in ("hotpixel", "dark-frames", "position-unit,none"):
        with pytest.raises(ConfigError, match=r"TrainingSettings\.accept: no hint"):
            QUICK.override({"accept": kind})
    QUICK.override({"accept": ",".join(sorted(GRAVE))})


def test_all_grave_hints_are_told_at_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    hints = [Hint("static", "One."), Hint("saturated", "Two."), Hint("hot-pixel", "Three.")]
    with pytest.raises(ConfigError, match=r"One\..*Three\..*--accept position-unit,static,hot-pixel\.$"):
        heed(tmp_path, hints, "position-unit")
    assert [record.message for record in caplog.records] == [f"{tmp_path}: hint (saturated): Two."]
    heed(tmp_path, hints, None)  # as infer does
    assert len(caplog.records) == 4


def test_hints_about_cut_frames_name_the_command_that_knows_the_pixels(
    hot: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from ptycho_torch.dset_loader_pt_mmap import PtychoDataset

    settings = dataclasses.replace(SETTINGS, detector_flip="both")
    heed_patterns(PtychoDataset(hot, data_dir=tmp_path / "map", settings=settings), None)
    (record,) = caplog.records
    assert f"`ptycho-torch check-data {hot}` names the command" in record.message


# ------------------------------------------------------------------------------------------------------- repairing


def repaired(arrays: Arrays, kind: str, place: Path, capsys: pytest.CaptureFixture[str]) -> Arrays:
    """Run the command that the hint of a kind names, and return what it wrote, which has no such hint."""
    text = hints_of(arrays, place)[kind]
    words = shlex.split(re.findall(r"`([^`]+)`", text)[0])
    code, said = main(words[1:]), capsys.readouterr().err
    if code and (more := re.findall(r"`(--[^`]+)`", said)):
        # Whoever follows the next message adds what it asks for.
        code, said = main([*words[1:], *shlex.split(more[0])]), capsys.readouterr().err
    assert code == 0, said
    assert f"hint ({kind})" not in said
    new = Path(words[words.index("-o") + 1])
    assert kind not in {hint.kind for hint in check.hints_of(new)}
    with np.load(new) as members:
        return dict(members)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_far_patterns_are_left_out(scene: Arrays, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x = scene["xcoords"].copy()
    x[[0, 20]] += 3000
    new = repaired(moved(scene, x, scene["ycoords"]), "position-outlier", place, capsys)
    for key in ("diff3d", "xcoords", "ycoords"):
        np.testing.assert_array_equal(new[key], np.delete(scene[key], [0, 20], axis=0))


def test_metres_become_pixels(scene: Arrays, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x, y = (scene[name] * PIXEL_M for name in ("xcoords", "ycoords"))
    new = repaired(moved(scene, x, y) | GEOMETRY, "position-unit", place, capsys)
    np.testing.assert_allclose(new["xcoords"], scene["xcoords"], rtol=1e-5)
    np.testing.assert_allclose(new["ycoords"], scene["ycoords"], rtol=1e-5)


@pytest.mark.parametrize("order", ["one behind the other", "raster again and again"])
@pytest.mark.parametrize("domain", ["amplitude", "counts"])
def test_exposures_of_a_place_are_added(
    order: str, domain: str, scene: Arrays, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(5)
    numbers = np.repeat(np.arange(25), 8) if order == "one behind the other" else np.tile(np.arange(25), 8)
    counts = rng.poisson(counts_of(scene)[numbers] / 8)
    burst = scene | {key: scene[key][numbers] for key in ("xcoords", "ycoords")}
    if domain == "amplitude":  # The hint looks for places to half a pixel.
        burst["xcoords"] = burst["xcoords"] + rng.choice([-0.01, 0.01], len(numbers))
    if domain == "amplitude":
        new = repaired(with_counts(burst, counts), "one-place", place, capsys)
    else:
        write(place / "counts.npz", burst | {"diff3d": counts.astype(np.uint32)})
        words = ["convert-scan", "counts.npz", "-o", "new.npz", "--from-intensity", "--merge-repeats"]
        assert main(words) == 0
        with np.load("new.npz") as members:
            new = dict(members)
    sums = np.stack([counts[numbers == place].sum(axis=0) for place in range(25)])
    np.testing.assert_allclose(np.square(new["diff3d"], dtype=np.float64), sums, rtol=1e-6, atol=1e-6)
    means = np.stack([burst["xcoords"][numbers == place].mean() for place in range(25)])
    np.testing.assert_allclose(new["xcoords"], means, rtol=1e-12)
    np.testing.assert_array_equal(new["ycoords"], scene["ycoords"][:25])


def test_dark_patterns_are_left_out(scene: Arrays, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    counts = counts_of(scene)
    counts[[7, 8]] = 0
    new = repaired(with_counts(scene, counts), "dark-frames", place, capsys)
    np.testing.assert_array_equal(new["diff3d"], np.delete(scene["diff3d"], [7, 8], axis=0))


def test_hot_pixels_are_marked(scene: Arrays, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    counts = counts_of(scene)
    counts[:, 50, 11] = 2e6
    new = repaired(with_counts(scene, counts), "hot-pixel", place, capsys)
    assert np.argwhere(new["bad_pixels"]).tolist() == [[50, 11]]
    assert examine(place / "repaired" / "scan.npz").mean_energy == pytest.approx(1e5, rel=0.05)


def test_an_index_of_patterns_is_left_out(scene: Arrays, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "scan_index" not in repaired(scene | {"scan_index": np.arange(64)}, "scan-index", place, capsys)


def test_a_frame_is_cut_around_the_right_pixel(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scan = draw_scene(6, 96)
    beside = {key: scan[key] for key in scan if key != "probeGuess"}
    beside["diff3d"] = np.roll(beside["diff3d"], (9, -8), (1, 2))
    new = repaired(beside, "off-centre", place, capsys)
    half = new["diff3d"].shape[-1] // 2
    assert half > 36
    # The centre of mass of the counts is that of the light, which may be a pixel off the zero frequency.
    cut = {
        (row, column): scan["diff3d"][:, 48 + row - half : 48 + row + half, 48 + column - half : 48 + column + half]
        for row in (-1, 0, 1)
        for column in (-1, 0, 1)
    }
    assert any(np.array_equal(new["diff3d"], each) for each in cut.values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--select", "0:99"], "99 is beyond the 64 patterns"),
        (["--select", "5:5"], "no pattern .*that is left"),
        (["--bad-pixels", "64,0"], "64,0 lies outside frames of 64 × 64"),
        (["--rename", "frames=diff3d"], "key 'frames': found no such member"),
    ],
)
def test_what_cannot_be_amended_is_refused(
    options: list[str], message: str, scene: Arrays, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(place / "scan.npz", scene)
    assert main(["convert-scan", "scan.npz", "-o", "new.npz", *options]) == 1
    assert re.search(message, capsys.readouterr().err)
    assert not (place / "new.npz").exists()


@pytest.mark.parametrize("text", ["--select=3", "--select=a:b", "--bad-pixels=3", "--bad-pixels=3,x", "--rename=a"])
def test_a_wrong_spelling_is_told(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["convert-scan", "scan.npz", "-o", "new.npz", text])
    assert "is no list of" in capsys.readouterr().err
