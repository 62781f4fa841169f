"""Simulated scans: what they hold, how bright they are, and that they hold the contract."""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import numpy as np
import pytest

from conformance.judge.agreement import FLOAT32, assert_agrees
from ptycho_torch import simulate
from ptycho_torch.commands import simulate as command_simulate
from ptycho_torch.data import specimens
from ptycho_torch.data.scan import examine, read_probe
from ptycho_torch.data.specimens import SPECIMENS, draw_specimen, image_object, read_image, shipped_images
from ptycho_torch.errors import ConfigError, DataContractError, PtychoError
from ptycho_torch.simulate import (
    choose_probe,
    focused_probe,
    plan_positions,
    scale_probe,
    simulate_patterns,
    simulate_scan,
)

Arrays = dict[str, np.ndarray]


def run(*arguments: str | Path) -> int:
    parser = argparse.ArgumentParser()
    command_simulate.add_arguments(parser)
    return command_simulate.run(parser.parse_args([str(argument) for argument in arguments]))


def small(target: Path, *arguments: str | Path) -> Arrays:
    """Simulate 20 patterns of 16 × 16 pixels and return what the file holds."""
    assert run("-o", target, "--N", "16", "--patterns", "20", "--step", "4", *arguments) == 0
    with np.load(target) as npz:
        return dict(npz)


def random_complex(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape) + 1j * rng.standard_normal(shape)


def expected_intensity(specimen: np.ndarray, modes: np.ndarray, positions_px: np.ndarray) -> np.ndarray:
    """Say in plain NumPy what the detector sees: four pixels weighted by hand, a sum of waves in place of an FFT."""
    N = modes.shape[-1]
    frequency = np.arange(N) - N // 2
    wave = np.exp(-2j * np.pi * np.outer(frequency, np.arange(N)) / N)  # (k, n)
    patterns = []
    for x, y in positions_px:
        left, top = x - N / 2, y - N / 2
        view = np.zeros((N, N), complex)
        for j, i in itertools.product(range(N), range(N)):
            row, column = int(np.floor(top + j)), int(np.floor(left + i))
            down, right = top + j - row, left + i - column
            for dj, di in itertools.product((0, 1), (0, 1)):
                weight = (down if dj else 1 - down) * (right if di else 1 - right)
                if weight:
                    view[j, i] += weight * specimen[row + dj, column + di]
        fields = [wave @ (view * mode) @ wave.T for mode in modes]
        patterns.append(sum(np.abs(field) ** 2 for field in fields) / N**2)
    return np.array(patterns)


# ---------------------------------------------------------------------------------------------------------- physics


@pytest.mark.parametrize(("N", "modes"), [(8, 1), (7, 2), (10, 3)])
def test_patterns_without_noise_are_the_equation(N: int, modes: int) -> None:
    rng = np.random.default_rng(N)
    specimen = random_complex(rng, 23, 31)
    probe = random_complex(rng, modes, N, N) * np.arange(1, modes + 1)[:, None, None]
    positions = rng.uniform((N / 2, N / 2), (31 - N / 2, 23 - N / 2), (6, 2))
    positions[0] = 31 - N / 2, N / 2  # Right at two edges of an object that is not square.
    scan = simulate_scan(specimen, probe, positions, 5000.0, None)
    raw = expected_intensity(specimen, probe, positions)
    expected = raw * 5000.0 / raw.sum(axis=(1, 2)).mean()
    assert scan.amplitude.dtype == np.float32
    assert scan.probe.dtype == np.complex64
    # float32 of the amplitude and complex64 of the probe are what separates them.
    np.testing.assert_allclose(scan.amplitude, np.sqrt(expected), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        scan.amplitude, np.sqrt(expected_intensity(specimen, scan.probe, positions)), rtol=1e-6, atol=1e-6
    )


def test_modes_add_as_intensities_and_keep_their_strengths() -> None:
    rng = np.random.default_rng(1)
    specimen, positions = random_complex(rng, 20, 20), rng.uniform(4, 16, (5, 2))
    probe = random_complex(rng, 2, 8, 8)
    scan = simulate_scan(specimen, probe, positions, 100.0, None)
    alone = [np.concatenate(list(simulate_patterns(specimen, mode, positions, None))) for mode in scan.probe]
    np.testing.assert_allclose(scan.amplitude**2, alone[0] ** 2 + alone[1] ** 2, rtol=1e-5, atol=1e-6)
    ratio = scan.probe / probe
    np.testing.assert_allclose(ratio, ratio[0, 0, 0], rtol=1e-5)


def test_the_mean_pattern_holds_nphotons_whatever_the_probes_scale() -> None:
    rng = np.random.default_rng(2)
    specimen, positions = random_complex(rng, 30, 30), rng.uniform(8, 22, (9, 2))
    probe = random_complex(rng, 16, 16)
    for factor, nphotons in ((1e-30, 1.0), (1.0, 1e6), (1e30, 1e15)):
        scan = simulate_scan(specimen, factor * probe, positions, nphotons, None)
        energies = np.square(scan.amplitude, dtype=np.float64).sum(axis=(1, 2))
        np.testing.assert_allclose(energies.mean(), nphotons, rtol=1e-6)
        assert energies.std() > 0.01 * nphotons  # Patterns keep their own brightness.


def test_noise_is_poisson_with_mean_and_variance_of_the_counts() -> None:
    specimen, probe = np.ones((20, 20)), np.asarray(choose_probe("default", 8))
    rng = np.random.default_rng(3)
    positions = np.full((4000, 2), 10.25)
    clean = simulate_scan(specimen, probe, positions[:1], 300.0, None)
    noisy = simulate_scan(specimen, probe, positions, 300.0, rng)
    counts, rate = noisy.amplitude.astype(np.float64) ** 2, clean.amplitude[0].astype(np.float64) ** 2
    np.testing.assert_allclose(counts, np.round(counts), atol=1e-3)
    # Five standard errors of mean and variance over 4000 draws.
    assert (np.abs(counts.mean(axis=0) - rate) <= 5 * np.sqrt(rate / 4000) + 2e-3).all()
    bright = rate > 1
    error = np.sqrt((2 * rate**2 + rate) / 4000)
    assert (np.abs(counts.var(axis=0) - rate) <= 5 * error)[bright].all()
    assert bright.sum() > 4


def test_the_pieces_do_not_change_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(4)
    specimen, probe, positions = random_complex(rng, 30, 30), random_complex(rng, 16, 16), rng.uniform(8, 22, (11, 2))
    whole = simulate_scan(specimen, probe, positions, 1e4, np.random.default_rng(0))
    monkeypatch.setattr(simulate, "_CHUNK_BYTES", 3 * 16 * 16 * 16)
    pieces = list(simulate_patterns(specimen, whole.probe, positions, np.random.default_rng(0)))
    assert [len(piece) for piece in pieces] == [3, 3, 3, 2]
    np.testing.assert_array_equal(np.concatenate(pieces), whole.amplitude)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"positions_px": np.array([[4.0, 4.0], [3.9, 4.0]])}, "Position 1 is"),
        ({"positions_px": np.array([[4.0, 6.1]])}, "Position 0 is"),
        ({"positions_px": np.zeros((0, 2))}, "at least one position"),
        ({"positions_px": np.array([[np.nan, 4.0]])}, "positions holds NaN"),
        ({"probe": np.ones((8, 7))}, "probe has shape"),
        ({"probe": np.zeros((8, 8))}, "No light passes"),
        ({"probe": np.full((8, 8), np.inf)}, "probe holds NaN or infinity"),
        ({"specimen": np.ones(5)}, "object of shape"),
        ({"specimen": np.zeros((10, 12))}, "No light passes"),
        ({"nphotons": 0.0}, "nphotons is 0"),
        ({"nphotons": float("nan")}, "nphotons is nan"),
        ({"nphotons": 1e19}, "nphotons is 1e"),
    ],
)
def test_arrays_that_make_no_scan_are_one_clear_error(change: dict, words: str) -> None:
    arguments = {
        "specimen": np.ones((10, 12)),
        "probe": np.ones((8, 8)),
        "positions_px": np.array([[8.0, 6.0]]),
        "nphotons": 100.0,
    }
    scale_probe(**arguments)  # type: ignore[arg-type]
    with pytest.raises((ConfigError, DataContractError), match=words):
        scale_probe(**arguments | change)


# -------------------------------------------------------------------------------------------- positions and probes


@pytest.mark.parametrize("kind", simulate.POSITIONS)
@pytest.mark.parametrize("size", [None, 131])
@pytest.mark.parametrize("count", [1, 7, 100])
def test_every_patch_lies_inside_the_object(kind: str, size: int | None, count: int) -> None:
    jitter = 0.0 if kind == "random" else 1.7
    rng = np.random.default_rng(5)
    plan = plan_positions(kind, count, 32, rng, step_px=4.3, jitter_px=jitter, size_px=size)
    assert plan.positions_px.shape == (count, 2)
    assert plan.positions_px.min() >= 16
    assert plan.positions_px.max() <= plan.size_px - 16
    if size is not None:
        assert plan.size_px == size
    elif kind != "random":
        with pytest.raises(ConfigError, match=f"{plan.size_px} are needed"):
            plan_positions(kind, count, 32, rng, step_px=4.3, jitter_px=jitter, size_px=plan.size_px - 1)


def test_a_raster_has_its_step_and_jitter_stays_within_its_bound() -> None:
    rng = np.random.default_rng(6)
    plain = plan_positions("raster", 30, 16, rng, step_px=8.0)
    assert plain.size_px == 16 + 5 * 8
    np.testing.assert_allclose(np.unique(plain.positions_px[:, 0]), 8 + 8 * np.arange(6))
    np.testing.assert_allclose(np.unique(plain.positions_px[:, 1]), 12 + 8 * np.arange(5))
    moved = plan_positions("raster", 30, 16, rng, step_px=8.0, jitter_px=1.5, size_px=60)
    offset = np.abs(moved.positions_px - plain.positions_px - 2)
    assert 1.2 < offset.max() <= 1.5


def test_a_spiral_is_as_dense_as_a_raster_of_its_step() -> None:
    plan = plan_positions("spiral", 1000, 16, np.random.default_rng(0), step_px=5.0)
    radius = np.hypot(*(plan.positions_px - plan.size_px / 2).T)
    inside = (radius < 50).sum()
    assert inside == pytest.approx(np.pi * 50**2 / 25, rel=0.02)


def test_a_focused_probe_is_a_lens_on_the_detector_and_spreads_with_defocus() -> None:
    for N, stop in ((64, 0.0), (65, 0.4)):
        far = np.abs(np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(focused_probe(N, central_stop=stop)))))
        q = np.hypot(*(np.mgrid[:N, :N] - N // 2))
        lens = (q < N / 6 - 1) & (q > stop * N / 6 + 1 if stop else True)
        assert np.ptp(far[lens]) < 1e-9 * far.max()
        assert far[q > N / 6 + 1].max() < 1e-9 * far.max()
        assert np.linalg.norm(focused_probe(N)) == pytest.approx(1)
    peaks = [np.abs(focused_probe(64, defocus_px=defocus)).max() for defocus in (0, 4, 10)]
    assert peaks == sorted(peaks, reverse=True)
    for wrong in ({"aperture_px": 40}, {"central_stop": 1}, {"defocus_px": 50}, {"edge_px": 0}):
        with pytest.raises(ConfigError, match="A lens of radius"):
            focused_probe(64, **wrong)  # type: ignore[arg-type]


def local_frequency(probe: np.ndarray) -> float:
    """Return q/x of the rays along the rows of a probe (N, N), detector pixels over object pixels."""
    N = len(probe)
    steps = probe[:, 1:] * probe[:, :-1].conj()
    x = np.broadcast_to(np.arange(1, N) - N // 2 - 0.5, steps.shape)
    weight = np.abs(steps)
    return float((weight * np.angle(steps) * x).sum() / (weight * x**2).sum() * N / (2 * np.pi))


def test_the_shadow_of_the_object_is_upright_behind_the_focus() -> None:
    before, behind = (local_frequency(focused_probe(64, defocus_px=d)) for d in (-12, 12))
    assert before == pytest.approx(-behind)
    assert behind > 0.5
    # a/d = 24/16; the soft edges take 1.7 % off.
    assert local_frequency(choose_probe("zone_plate", 64)[0]) == pytest.approx(24 / 16, rel=0.02)


# ---------------------------------------------------------------------------------------------------------- objects


@pytest.mark.parametrize("choice", [*SPECIMENS, "image:camera"])
def test_an_object_has_the_promised_range_and_follows_its_seed(choice: str) -> None:
    first, again, other = (draw_specimen(choice, (90, 70), np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first.shape == (90, 70)
    assert first.dtype == np.complex64
    amplitude, phase = np.abs(first), np.angle(first)
    assert amplitude.min() >= 0.3 - 1e-6
    assert amplitude.max() <= 1 + 1e-6
    assert np.abs(phase).max() <= np.pi / 2 + 1e-6
    assert amplitude.std() > 0.05
    assert phase.std() > 0.2
    np.testing.assert_array_equal(first, again)
    assert (first == other).all() == choice.startswith("image:")


def test_a_smaller_exponent_makes_a_rougher_field() -> None:
    roughness = []
    for exponent in (1.0, 3.0):
        amplitude = np.abs(specimens.draw_grf((64, 64), np.random.default_rng(0), exponent))
        roughness.append(np.abs(np.diff(amplitude)).mean() / amplitude.std())
    assert roughness[0] > 2 * roughness[1]


def test_a_picture_is_cut_in_its_middle_and_keeps_its_orientation() -> None:
    grey = np.zeros((40, 80))
    grey[5:15, 25:35] = 200.0
    patch = image_object(grey, (40, 40))  # Columns 20…59 remain.
    bright = np.argwhere(np.abs(patch) > 0.9)
    np.testing.assert_array_equal(bright.min(axis=0), (5, 5))
    np.testing.assert_array_equal(bright.max(axis=0), (14, 14))
    np.testing.assert_allclose(np.angle(patch[10, 10]), np.pi / 2, atol=1e-6)


@pytest.mark.parametrize(
    ("mode", "suffix"), [("RGB", "png"), ("RGBA", "png"), ("P", "png"), ("I;16", "tif"), ("1", "png")]
)
def test_image_files_of_many_kinds_are_read(mode: str, suffix: str, tmp_path: Path) -> None:
    from PIL import Image

    grey = np.zeros((12, 10), np.uint8)
    grey[3, 4] = 255
    path = tmp_path / f"picture.{suffix}"
    picture = Image.fromarray(grey.astype(np.uint16) * 200) if mode == "I;16" else Image.fromarray(grey).convert(mode)
    picture.save(path)
    found = read_image(str(path))
    assert found.shape == (12, 10)
    assert np.argmax(found) == 3 * 10 + 4


def test_images_that_cannot_be_used_are_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text.png").write_text("no picture")
    whole = Path(specimens.__file__).read_bytes()
    (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n" + whole[:100])
    rng = np.random.default_rng(0)
    assert "camera" in shipped_images()
    for choice, words in {
        "image:": "no image ''.*camera",
        "image:nowhere.png": "no image 'nowhere.png'.*camera",
        f"image:{tmp_path / 'text.png'}": "cannot be read as an image",
        f"image:{tmp_path / 'cut.png'}": "cannot be read as an image",
        "nothing": "no object 'nothing'.*dead_leaves",
    }.items():
        with pytest.raises(ConfigError, match=words):
            draw_specimen(choice, (32, 32), rng)
    with pytest.raises(ConfigError, match="single grey value"):
        image_object(np.ones((9, 9)), (32, 32))
    with pytest.raises(ConfigError, match="NaN"):
        image_object(np.full((9, 9), np.nan), (32, 32))
    with pytest.raises(ConfigError, match="sides have 8 to"):
        draw_specimen("lines", (32, 100_000), rng)
    monkeypatch.setattr(specimens, "MAX_IMAGE_PX", 100)
    with pytest.raises(ConfigError, match="at most 100 are read"):
        draw_specimen("image:camera", (32, 32), rng)


@pytest.mark.parity_clause("SCAN-09", "exit_wave", "amplitude")
def test_a_written_scan_holds_the_object_the_probe_and_their_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several modes, more patterns than are computed at once, an object that is not square."""
    monkeypatch.setattr(simulate, "_CHUNK_BYTES", 3 * 4 * 12 * 12 * 16)
    rng, N, count = np.random.default_rng(18), 12, 7
    specimen = random_complex(rng, 23, 34).astype(np.complex64)
    probe = random_complex(rng, 4, N, N) * np.array([1.0, 0.5, 0.3, 0.7])[:, None, None]
    positions = rng.uniform(N / 2, (34 - N / 2, 23 - N / 2), (count, 2))
    scaled = scale_probe(specimen, probe, positions, 5e4)
    mean = simulate.write_scan(tmp_path / "scan.npz", specimen, scaled, positions, np.random.default_rng(6))
    raw = expected_intensity(specimen, probe, positions)
    # Noise is drawn from the counts of the very probe that is in the file.
    seen = expected_intensity(specimen, scaled.astype(np.complex128), positions)
    counts = np.random.default_rng(6).poisson(seen)
    with np.load(tmp_path / "scan.npz") as npz:
        written = dict(npz)
    patterns = np.concatenate([*simulate_patterns(specimen, scaled, positions, None)])
    found = written | {
        "counts": np.square(written["diff3d"], dtype=np.float64),
        "mean counts": np.array(mean),
        "amplitude without noise": patterns,
    }
    right = {
        "probeGuess": probe * np.sqrt(5e4 / raw.sum(axis=(1, 2)).mean()),
        "objectGuess": specimen,
        "counts": counts.astype(np.float64),
        "mean counts": np.array(counts.sum() / count),
        "amplitude without noise": np.sqrt(seen),
        **{f"xcoords{suffix}": positions[:, 0] for suffix in ("", "_start")},
        **{f"ycoords{suffix}": positions[:, 1] for suffix in ("", "_start")},
        "measurement_domain": np.array("amplitude"),
    }
    assert_agrees(right, found, FLOAT32)


# ------------------------------------------------------------------------------------------------------ the command


@pytest.fixture
def probe_file(tmp_path: Path) -> Path:
    path = tmp_path / "probe.npz"
    np.savez(path, probe=random_complex(np.random.default_rng(7), 2, 16, 16))
    return path


@pytest.mark.parametrize("choice", [*SPECIMENS, "image:camera"])
@pytest.mark.parametrize("positions", simulate.POSITIONS)
def test_every_combination_makes_a_file_that_holds_every_clause(
    choice: str, positions: str, tmp_path: Path, probe_file: Path
) -> None:
    for number, probe in enumerate(("default", "focused", "zone_plate", probe_file)):
        target = tmp_path / f"scan-{number}.npz"
        small(target, "--object", choice, "--positions", positions, "--probe", probe)
        examination = examine(target)
        assert examination.passed, examination.findings
        assert all(finding.state == "holds" for finding in examination.findings)
        assert examination.mean_energy == pytest.approx(1e6, rel=1e-3)


def test_object_and_probe_of_the_file_explain_its_patterns(tmp_path: Path, probe_file: Path) -> None:
    npz = small(tmp_path / "scan.npz", "--probe", probe_file, "--jitter", "1.5", "--no-noise")
    positions = np.stack([npz["xcoords"], npz["ycoords"]], axis=1)
    assert npz["probeGuess"].shape == (2, 16, 16)
    expected = expected_intensity(npz["objectGuess"], npz["probeGuess"], positions)
    # Values near the darkest have the rounding of an FFT in float64, and all have that of float32.
    np.testing.assert_allclose(npz["diff3d"], np.sqrt(expected), rtol=1e-6, atol=1e-4)
    np.testing.assert_array_equal(npz["xcoords"], npz["xcoords_start"])
    np.testing.assert_array_equal(npz["ycoords"], npz["ycoords_start"])
    np.testing.assert_array_equal(npz["scan_index"], np.zeros(20))
    assert npz["diff3d"].dtype == np.float32
    assert npz["objectGuess"].dtype == npz["probeGuess"].dtype == np.complex64
    assert str(npz["measurement_domain"]) == "amplitude"


def test_a_seed_gives_the_same_bytes_and_noise_leaves_object_and_positions(tmp_path: Path) -> None:
    arguments = ("--positions", "random", "--nphotons", "1e4")
    first = small(tmp_path / "a.npz", *arguments, "--seed", "3")
    small(tmp_path / "b.npz", *arguments, "--seed", "3")
    other = small(tmp_path / "c.npz", *arguments, "--seed", "4")
    clean = small(tmp_path / "d.npz", *arguments, "--seed", "3", "--no-noise")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    for key in ("diff3d", "xcoords", "objectGuess"):
        assert (first[key] != other[key]).any()
        assert (first[key] != clean[key]).any() == (key == "diff3d")


def test_a_simulated_scan_serves_as_the_probe_of_another(tmp_path: Path) -> None:
    npz = small(tmp_path / "a.npz", "--probe", "focused")
    again = small(tmp_path / "b.npz", "--probe", tmp_path / "a.npz", "--nphotons", "4e6")
    assert npz["probeGuess"].shape == (16, 16)
    np.testing.assert_allclose(again["probeGuess"], 2 * npz["probeGuess"], rtol=1e-5)
    assert len(read_probe(tmp_path / "b.npz", 16)) == 1


def test_size_and_picture_are_as_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    npz = small(tmp_path / "scan.npz", "--size", "61", "--plot", tmp_path / "scan.png")
    assert npz["objectGuess"].shape == (61, 61)
    assert (tmp_path / "scan.png").read_bytes().startswith(b"\x89PNG")
    assert "20 patterns of 16 × 16 pixels" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scan.npz", "scan.png"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--size", "20"), "does not hold 20 raster positions"),
        (("--step", "5000"), "have at most 8192"),
        (("--step", "1e308"), "both at most 8192"),
        (("--jitter", "1e308"), "both at most 8192"),
        (("--size", "100000"), "have at most 8192"),
        (("--object", "cat"), "no object 'cat'"),
        (("--object", "image:cat"), "no image 'cat'"),
        (("--probe", "cat"), "no probe 'cat'"),
        (("--positions", "random", "--jitter", "1"), "--jitter 1 is for"),
        (("--nphotons", "1e20"), "nphotons is 1e"),
        (("--nphotons", "1e-3"), "Not one photon"),
        (("--patterns", "1000000000000"), "MiB are needed"),
    ],
)
def test_a_wrong_argument_is_one_clear_error_and_leaves_no_file(
    arguments: tuple[str, ...], words: str, tmp_path: Path
) -> None:
    with pytest.raises(PtychoError, match=words) as caught:
        small(tmp_path / "scan.npz", *arguments)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_there_is_kept_unless_told_otherwise(tmp_path: Path) -> None:
    target = tmp_path / "scan.npz"
    before = small(target)
    for arguments, words in {
        ("--seed", "1"): "is there already",
        ("--overwrite", "--plot", str(target)): "would have this name",
        ("--overwrite", "--probe", str(tmp_path / "none.npz")): "no probe",
    }.items():
        with pytest.raises(ConfigError, match=words):
            small(target, *arguments)
    np.testing.assert_array_equal(before["diff3d"], np.load(target)["diff3d"])
    small(target, "--seed", "1", "--overwrite")
    assert (before["diff3d"] != np.load(target)["diff3d"]).any()
    for name, words in {"scan.h5": "suffix .npz", "scan.npz/scan.npz": "is a file, so there can be no"}.items():
        with pytest.raises(ConfigError, match=words):
            small(tmp_path / name)


def test_a_probe_of_another_size_names_its_clause(tmp_path: Path) -> None:
    np.savez(tmp_path / "probe.npz", probe=np.ones((8, 8)))
    with pytest.raises(DataContractError, match="PROBE-01"):
        small(tmp_path / "scan.npz", "--probe", tmp_path / "probe.npz")


@pytest.mark.parametrize(
    "argument", ["--N=15", "--N=6", "--patterns=0", "--step=0", "--jitter=-1", "--seed=-1", "--nphotons=nan"]
)
def test_numbers_out_of_range_never_start(argument: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        small(tmp_path / "scan.npz", argument)
    assert argument.partition("=")[0] in capsys.readouterr().err


def test_the_command_offers_what_there_is() -> None:
    assert tuple(specimens.SPECIMENS) == command_simulate.OBJECTS
    assert simulate.POSITIONS == command_simulate.POSITIONS
    assert command_simulate.MAX_FRAME_PX == specimens.MAX_OBJECT_PX
