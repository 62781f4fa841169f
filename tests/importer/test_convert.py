"""``convert-scan``: what is repaired, what comes along, what is refused, and that nothing is ever half done."""

from __future__ import annotations

import argparse
import errno
import io
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from conformance.checks.light import draw_wave
from conformance.judge.agreement import FLOAT32, assert_agrees
from ptycho_torch import convert
from ptycho_torch.commands import convert_scan as command_convert
from ptycho_torch.config_params import DataSettings
from ptycho_torch.data.preparation import FramePreparation
from ptycho_torch.data.scan import examine
from ptycho_torch.errors import ConfigError, DataContractError, PtychoError
from ptycho_torch.files.npz_writer import NpzWriter, replacing
from ptycho_torch.importer import raw_scan
from tests.support.plain_preparation import Preparation, oriented
from tests.support.scan_files import Arrays, draw_scan

M, N = 23, 16


def converted(source: Path | Arrays, *arguments: str, folder: Path | None = None) -> Arrays:
    """Convert, hold the result against every clause, and return its members."""
    if not isinstance(source, Path):
        assert folder is not None
        np.savez(folder / "source.npz", **source)
        source = folder / "source.npz"
    target = source.parent / "new.npz"
    assert run(source, target, *arguments) == 0
    examination = examine(target)
    assert examination.passed, [finding for finding in examination.findings if finding.state == "broken"]
    assert sorted(path.name for path in source.parent.iterdir()) == sorted([source.name, target.name])
    with np.load(target, allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


def run(source: Path, target: Path, *arguments: str) -> int:
    parser = argparse.ArgumentParser()
    command_convert.add_arguments(parser)
    return command_convert.run(parser.parse_args([str(source), "-o", str(target), *arguments]))


def refused(source: Path | Arrays, *arguments: str, folder: Path, clause: str | None = None) -> str:
    """Convert what cannot be converted; nothing is left, and the error names clause and file."""
    if not isinstance(source, Path):
        np.savez(folder / "source.npz", **source)
        source = folder / "source.npz"
    there = set(folder.iterdir())
    with pytest.raises(ConfigError if clause is None else DataContractError) as caught:
        run(source, folder / "new.npz", *arguments)
    assert set(folder.iterdir()) == there
    if clause is not None:
        assert caught.value.clause == clause  # type: ignore[attr-defined]
        assert str(source) in str(caught.value)
    return str(caught.value)


@pytest.fixture
def star(shared: Path) -> Arrays:
    with np.load(shared / "data" / "siemens_star_n64.npz", allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


def assert_same(ours: Arrays, theirs: Arrays) -> None:
    assert set(ours) == set(theirs)
    for key, array in theirs.items():
        np.testing.assert_array_equal(ours[key], array, err_msg=key)
        assert ours[key].dtype == array.dtype


# ------------------------------------------------------------------------------------------------- round trips


@pytest.mark.parametrize("compress", [False, True])
def test_a_scan_that_holds_every_clause_stays_as_it_is(star: Arrays, tmp_path: Path, compress: bool) -> None:
    new = converted(star, *(["--compress"] if compress else []), folder=tmp_path)
    assert_same(new, star)
    sizes = [(tmp_path / name).stat().st_size for name in ("source.npz", "new.npz")]
    assert (sizes[1] < 0.9 * sizes[0]) == compress


def test_the_older_order_of_axes_is_turned_back(star: Arrays, tmp_path: Path) -> None:
    turned = star | {"diff3d": np.ascontiguousarray(star["diff3d"].transpose(1, 2, 0))}
    message = refused(turned, folder=tmp_path, clause="SCAN-02")
    assert "--axes hwm" in message
    assert_same(converted(tmp_path / "source.npz", "--axes", "hwm"), star)


def test_counts_become_the_amplitude_they_came_from(star: Arrays, tmp_path: Path) -> None:
    counts = np.rint(star["diff3d"].astype(np.float64) ** 2)
    assert counts.max() < 2**16
    stored = star | {"diffraction": counts.astype(np.uint16)}
    del stored["diff3d"]
    assert "--from-intensity" in refused(stored, folder=tmp_path, clause="SCAN-05")
    new = converted(tmp_path / "source.npz", "--from-intensity")
    assert str(new.pop("measurement_domain")) == "amplitude"
    # The star's patterns are roots of whole counts, so they come back to the last bit.
    assert_same(new, star)


@pytest.mark.parametrize("dtype", ["u1", "<u2", ">u2", "<u4", ">i4", "<u8", "<f2", ">f4", "<f8"])
def test_the_root_of_any_type_is_the_nearest_float32(tmp_path: Path, dtype: str) -> None:
    kind = np.dtype(dtype)
    largest = 2e3 if kind.itemsize == 2 and kind.kind == "f" else 200 if kind.itemsize == 1 else 6e4
    largest = 2**31 - 1 if kind.itemsize >= 4 and kind.kind != "f" else largest
    scan = draw_scan(M, N, seed=3)
    counts = np.random.default_rng(4).uniform(0, largest, (M, N, N)).astype(kind)
    new = converted(scan | {"diff3d": counts}, "--from-intensity", folder=tmp_path)
    np.testing.assert_array_equal(new["diff3d"], np.sqrt(counts.astype(np.float64)).astype(np.float32))


LAYOUTS: dict[str, tuple[str, Callable[[np.ndarray], np.ndarray]]] = {
    "mhw": ("mhw", lambda a: np.ascontiguousarray(a)),
    "mhw-fortran": ("mhw", np.asfortranarray),
    "hwm": ("hwm", lambda a: np.ascontiguousarray(a.transpose(1, 2, 0))),
    "hwm-fortran": ("hwm", lambda a: np.asfortranarray(a.transpose(1, 2, 0))),
    "mhw1": ("mhw1", lambda a: np.ascontiguousarray(a[..., None])),
    "mhw1-fortran": ("mhw1", lambda a: np.asfortranarray(a[..., None])),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("chunk_bytes", [1, 5000, 2**20])
def test_every_layout_gives_the_same_frames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str, chunk_bytes: int
) -> None:
    monkeypatch.setattr(raw_scan, "CHUNK_BYTES", chunk_bytes)
    monkeypatch.setattr(raw_scan, "TURN_BYTES", 3 * chunk_bytes)
    scan = draw_scan(M, N)
    frames = np.random.default_rng(1).gamma(2.0, 3.0, (M, 20, 18)).astype(np.float32)
    axes, lay = LAYOUTS[layout]
    del scan["probeGuess"]
    new = converted(scan | {"diff3d": lay(frames)}, "--axes", axes, "--crop", str(N), folder=tmp_path)
    np.testing.assert_array_equal(new["diff3d"], frames[:, 2:18, 1:17])


def test_names_types_and_unknown_members_are_put_right(
    star: Arrays, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored: Arrays = {
        "diffraction": star["diff3d"].astype(">f8"),
        "xcoords": star["xcoords"],
        "ycoords": star["ycoords"],
        "probeGuess": star["probeGuess"].astype(np.complex128)[..., None],
        "ground_truth_patches": np.zeros(3),
        "wrong\x1b[31m": np.zeros(3),
        "_metadata": np.array(json.dumps({"N": 64, "nphotons": 123456789.0}), object),
    }
    new = converted(stored, folder=tmp_path)
    assert_same(new, {key: star[key] for key in ("diff3d", "xcoords", "ycoords", "probeGuess")})
    captured = capsys.readouterr()
    assert "'diffraction' is now 'diff3d'" in captured.err
    assert "ground_truth_patches" in captured.err
    assert "_metadata" in captured.err
    assert "train with --nphotons 123456789" in captured.err
    assert "\x1b" not in captured.err
    assert "320 patterns of 64 × 64 pixels" in captured.out
    assert f"{(tmp_path / 'new.npz').stat().st_size} bytes" in captured.out


def test_pickles_are_left_out_on_request_alone(tmp_path: Path) -> None:
    scan = draw_scan(M, N)
    stored = scan | {"objectGuess": np.array(None, object)}
    assert "--drop-pickles" in refused(stored, folder=tmp_path, clause="NPZ-02")
    assert_same(converted(tmp_path / "source.npz", "--drop-pickles"), scan)
    # A required member is no less required for being a pickle.
    (tmp_path / "new.npz").unlink()
    refused(scan | {"xcoords": np.array([1, None])}, "--drop-pickles", folder=tmp_path, clause="SCAN-06")


def test_two_stacks_need_a_choice(tmp_path: Path) -> None:
    scan = draw_scan(M, N)
    other = draw_scan(M, N, seed=1)["diff3d"]
    both = scan | {"diffraction": other}
    assert "--patterns diff3d" in refused(both, folder=tmp_path, clause="SCAN-01")
    for name, patterns in (("diff3d", scan["diff3d"]), ("diffraction", other)):
        (tmp_path / "new.npz").unlink(missing_ok=True)
        assert_same(converted(tmp_path / "source.npz", "--patterns", name), scan | {"diff3d": patterns})
    (tmp_path / "new.npz").unlink()
    assert_same(converted(scan | {"diffraction": scan["diff3d"]}, folder=tmp_path), scan)
    (tmp_path / "new.npz").unlink()
    assert "diff3d" in refused(scan, "--patterns", "diffraction", folder=tmp_path, clause="SCAN-01")


# ---------------------------------------------------------------------------------------- amplitude and intensity


def test_whole_numbers_are_declared_or_converted_never_guessed(tmp_path: Path) -> None:
    scan = draw_scan(M, N)
    whole = np.random.default_rng(2).integers(0, 50, (M, N, N))
    for stored in (whole, whole.astype(np.float32)):
        refused(scan | {"diff3d": stored}, folder=tmp_path, clause="SCAN-05")
        # Binning hides that the numbers were whole.
        refused(tmp_path / "source.npz", "--bin", "2", folder=tmp_path, clause="SCAN-05")
        new = converted(tmp_path / "source.npz", "--declare-amplitude")
        np.testing.assert_array_equal(new["diff3d"], whole.astype(np.float32))
        assert str(new["measurement_domain"]) == "amplitude"
        (tmp_path / "new.npz").unlink()


def test_what_the_file_declares_is_heard(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scan = draw_scan(M, N)
    counts = scan | {"measurement_domain": np.array("count_intensity")}
    assert "--from-intensity" in refused(counts, folder=tmp_path, clause="SCAN-05")
    new = converted(tmp_path / "source.npz", "--declare-amplitude")
    np.testing.assert_array_equal(new["diff3d"], scan["diff3d"])
    assert "count_intensity" in capsys.readouterr().err
    (tmp_path / "new.npz").unlink()
    # The root is not taken twice.
    amplitude = scan | {"measurement_domain": np.array("normalized_amplitude")}
    assert "measurement_domain" in refused(amplitude, "--from-intensity", folder=tmp_path)
    assert str(converted(tmp_path / "source.npz")["measurement_domain"]) == "normalized_amplitude"
    (tmp_path / "new.npz").unlink()
    refused(scan | {"measurement_domain": np.array("photons")}, folder=tmp_path, clause="SCAN-05")
    np.testing.assert_allclose(
        converted(tmp_path / "source.npz", "--from-intensity")["diff3d"] ** 2, scan["diff3d"], rtol=1e-6
    )


@pytest.mark.parametrize("dtype", ["i4", "f4", "f8", "f2"])
def test_a_negative_count_is_named_by_its_place_in_the_file(tmp_path: Path, dtype: str) -> None:
    scan = draw_scan(M, N)
    counts = np.random.default_rng(2).integers(0, 50, (M, 20, 20)).astype(dtype)
    counts[5, 7, 9] = -1
    counts[0, 0, 0] = -1  # outside of the window
    message = refused(
        scan | {"diff3d": counts, "probeGuess": np.ones((20, 20), np.complex64)},
        "--from-intensity", "--crop", "16",
        folder=tmp_path, clause="SCAN-04",
    )  # fmt: skip
    assert "found -1 at row 7, column 9 of pattern 5" in message


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0, 1e30])
@pytest.mark.parametrize("arguments", [[], ["--from-intensity"], ["--bin", "2"]])
def test_bad_values_pass_under_the_mask_alone(tmp_path: Path, value: float, arguments: list[str]) -> None:
    if value == 1e30 and "--from-intensity" in arguments:
        value = 1e36
    scan = draw_scan(M, N)
    scan["diff3d"][4, 3, 2] = value
    message = refused(scan, *arguments, folder=tmp_path, clause="SCAN-04")
    assert "row 3, column 2 of pattern 4" in message
    bad = np.zeros((N, N), np.uint8)
    bad[3, 2] = 1
    new = converted(scan | {"bad_pixels": bad}, *arguments, folder=tmp_path)
    b = 2 if "--bin" in arguments else 1
    assert not new["diff3d"][:, 3 // b, 2 // b].any()
    assert new["bad_pixels"].sum() == new["bad_pixels"][3 // b, 2 // b] == 1


# ------------------------------------------------------------------------------------------- every option at once


@dataclass(frozen=True)
class Conversion:
    """A way to convert a scan.

    Attributes:
        arguments: of the command.
        axes: of the patterns in the file.
        order: of every array of the file, ``C`` or ``F``.
        dtype: of the patterns in the file; counts where it is of whole numbers.
        N: side of the frames that come out.
        bins: side of the square of pixels that are added up.
        centre_px: row and column of the zero frequency; None is the centre of mass of the counts.
        transpose: of the frames.
        flip: of the frames.
        mirror: of the positions: x and y swapped, x mirrored, y mirrored.
        stretch: of the positions.
        geometry_m: wavelength, distance and detector pixel that count.
    """

    arguments: str
    axes: str = "mhw"
    order: Literal["C", "F"] = "C"
    dtype: str = "<f4"
    N: int = 8
    bins: int = 1
    centre_px: tuple[int, int] | None = (7, 5)
    transpose: bool = False
    flip: str = "none"
    mirror: tuple[bool, bool, bool] = (False, False, False)
    stretch: float = 1.0
    geometry_m: tuple[float, float, float] = (1.5e-10, 2.0, 5e-5)


CONVERSIONS = {
    "patterns first": Conversion("--crop 8"),
    "patterns first, Fortran order": Conversion("--crop 8", order="F"),
    "patterns last": Conversion("--crop 8 --axes hwm", "hwm"),
    "patterns last, Fortran order": Conversion("--crop 8 --axes hwm --compress", "hwm", "F", ">f8"),
    "a channel": Conversion("--crop 8 --axes mhw1", "mhw1", dtype="<f2"),
    "a channel, Fortran order": Conversion("--crop 8 --axes mhw1", "mhw1", "F"),
    "counts, binned and turned": Conversion(
        "--from-intensity --crop 4 --bin 2 --centre 8,5 --transpose --flip vertical --positions-scale 1.5 "
        "--positions-swap-xy --positions-flip-y",
        dtype="<u2", N=4, bins=2, centre_px=(8, 5), transpose=True, flip="vertical", mirror=(True, False, True),
        stretch=1.5,
    ),
    "counts, mirrored, Fortran order": Conversion(
        "--from-intensity --crop 6 --centre 6,4 --flip horizontal --positions-flip-x",
        order="F", dtype=">i4", N=6, centre_px=(6, 4), flip="horizontal", mirror=(False, True, False),
    ),
    "about the centre of mass": Conversion(
        "--from-intensity --crop 6 --centre auto --wavelength-m 2e-10 --distance-m 3 --pixel-m 6e-5",
        dtype="<u4", N=6, centre_px=None, geometry_m=(2e-10, 3.0, 6e-5),
    ),
}  # fmt: skip

GEOMETRY = ("wavelength_m", "detector_distance_m", "detector_pixel_m")


def draw_oblong(H: int = 14, W: int = 10, patterns: int = 9) -> Arrays:
    """Draw whole counts and the small members of a scan whose frames are not square."""
    rng = np.random.default_rng(43)
    rows, columns = np.indices((H, W))
    bad = np.zeros((H, W), np.uint8)
    bad[7, 4] = bad[5, 6] = 1
    x, y, x_start, y_start = rng.uniform(20, 90, (4, patterns))
    geometry = dict(zip(GEOMETRY, map(np.array, (1.5e-10, 2.0, 5e-5)), strict=True))
    return {
        # Brighter towards one corner: their centre is not the middle, and a window around it lies in the frame.
        "diff3d": rng.poisson(rng.gamma(2.0, 30.0, (patterns, H, W)) * 1.07 ** (rows - 2 * columns)),
        "xcoords": x, "ycoords": y, "xcoords_start": x_start, "ycoords_start": y_start,
        "probeGuess": draw_wave(rng, 2, H, W), "bad_pixels": bad, "scan_index": rng.integers(0, 5, patterns),
        **geometry,
    }  # fmt: skip


def stored_as(members: Arrays, how: Conversion) -> Arrays:
    counts = members["diff3d"]
    frames = (counts if np.dtype(how.dtype).kind in "iu" else np.sqrt(counts)).astype(how.dtype)
    frames = {"mhw": frames, "hwm": np.moveaxis(frames, 0, -1), "mhw1": frames[..., None]}[how.axes]
    return {name: np.array(array, order=how.order) for name, array in {**members, "diff3d": frames}.items()}


def wanted(members: Arrays, how: Conversion) -> Arrays:
    """Return the members of the new file by what the options mean (PREP-01)."""
    window, counts, bad = how.N * how.bins, members["diff3d"], members["bad_pixels"].astype(bool)
    prepared = Preparation(frame_px=window, N=how.N, bins=how.bins)
    H, W = bad.shape
    seen = np.where(bad, 0, counts)
    centre = how.centre_px or [int(np.rint((seen * each).sum() / seen.sum())) for each in np.indices(seen.shape)[1:]]
    rows, columns = (slice(each - window // 2, each - window // 2 + window) for each in centre)
    stored = np.sqrt(counts) if np.dtype(how.dtype).kind in "iu" else np.sqrt(counts).astype(how.dtype)
    amplitude = np.where(bad, 0.0, stored.astype(np.float64))[:, rows, columns]
    good = prepared.good_pixels(~bad[rows, columns])

    def turned(images: np.ndarray) -> np.ndarray:
        return oriented(images, transpose=how.transpose, flip=how.flip)

    swap, x, y = how.mirror
    wavelength, distance, pixel = how.geometry_m
    found = {
        # A binned pixel of which one is bad is bad, and so it holds nothing.
        "diff3d": turned(np.where(good, prepared.amplitude(amplitude), 0.0)),
        "bad_pixels": turned(~good).astype(np.uint8),
        "probeGuess": prepared.probe(members["probeGuess"]),
        "scan_index": members["scan_index"],
        **dict(zip(GEOMETRY, map(np.array, (wavelength, distance, pixel * how.bins)), strict=True)),
    }
    for suffix in ("", "_start"):
        places = np.stack([members[f"xcoords{suffix}"] / W, members[f"ycoords{suffix}"] / H], axis=1)
        moved = prepared.positions_px(places * window, swap_xy=swap, flip_x=x, flip_y=y) * how.stretch
        found |= {f"xcoords{suffix}": moved[:, 0], f"ycoords{suffix}": moved[:, 1]}
    return found


@pytest.mark.parity_clause("STEP-DATA", "SCAN-02", "PREP-01")
@pytest.mark.parametrize("name", CONVERSIONS)
def test_a_converted_scan_is_what_its_options_ask_for(tmp_path: Path, name: str) -> None:
    members, how = draw_oblong(), CONVERSIONS[name]
    found = converted(stored_as(members, how), *how.arguments.split(), folder=tmp_path)
    assert_agrees(wanted(members, how), found, FLOAT32)


# --------------------------------------------------------------------------------------------- frames, positions


FRAME_OPTIONS = {
    "crop": ({"N": 8, "detector_crop": True}, ["--crop", "8"]),
    "bin": ({"N": 8, "detector_bin": 2}, ["--bin", "2"]),
    "crop and bin": ({"N": 6, "detector_crop": True, "detector_bin": 2}, ["--crop", "6", "--bin", "2"]),
    "centre": (
        {"N": 8, "detector_crop": True, "detector_centre_row_px": 6, "detector_centre_column_px": 11},
        ["--crop", "8", "--centre", "6,11"],
    ),
    "transpose": ({"N": 16, "detector_transpose": True}, ["--transpose"]),
    "vertical": ({"N": 16, "detector_flip": "vertical"}, ["--flip", "vertical"]),
    "all": (
        {
            "N": 6,
            "detector_crop": True,
            "detector_bin": 2,
            "detector_transpose": True,
            "detector_flip": "horizontal",
            "positions_swap_xy": True,
            "positions_flip_x": True,
        },
        ["--crop", "6", "--bin", "2", "--transpose", "--flip=horizontal", "--positions-swap-xy", "--positions-flip-x"],
    ),
}


@pytest.mark.parametrize("case", FRAME_OPTIONS)
@pytest.mark.parametrize("modes", [None, 3])
def test_frames_positions_probe_and_mask_go_the_way_of_the_preparation(
    tmp_path: Path, case: str, modes: int | None
) -> None:
    settings, arguments = FRAME_OPTIONS[case]
    scan = draw_scan(M, N, modes=modes)
    bad = (np.random.default_rng(8).random((N, N)) < 0.02).astype(bool)
    scan |= {"bad_pixels": bad, "xcoords_start": scan["xcoords"] + 1, "ycoords_start": scan["ycoords"] - 1}
    new = converted(scan, *arguments, folder=tmp_path)
    preparation = FramePreparation(N, DataSettings.from_mapping(settings))
    good = preparation.good_pixels(~bad)
    np.testing.assert_array_equal(new["bad_pixels"], ~good)
    np.testing.assert_allclose(
        new["diff3d"], preparation.frames(np.where(bad, np.float32(0), scan["diff3d"])) * good, rtol=1e-6
    )
    for names in (("xcoords", "ycoords"), ("xcoords_start", "ycoords_start")):
        before, after = (np.stack([a[name] for name in names], axis=1) for a in (scan, new))
        np.testing.assert_allclose(after, preparation.positions(before), rtol=1e-14)
    probe = preparation.probe(scan["probeGuess"].reshape(-1, N, N))
    np.testing.assert_allclose(new["probeGuess"].reshape(probe.shape), probe, atol=1e-6)
    assert new["probeGuess"].ndim == scan["probeGuess"].ndim


def test_frames_that_are_not_square_are_cut_to_a_square(tmp_path: Path) -> None:
    H, W = 20, 30
    rng = np.random.default_rng(0)
    scan = draw_scan(M, N)
    frames = rng.gamma(2.0, 3.0, (M, H, W)).astype(np.float32)
    probe = (rng.standard_normal((H, W)) + 1j * rng.standard_normal((H, W))).astype(np.complex64)
    stored = scan | {"diff3d": frames, "probeGuess": probe}
    assert "--crop 20" in refused(stored, folder=tmp_path, clause="SCAN-02")
    new = converted(tmp_path / "source.npz", "--crop", "16")
    np.testing.assert_array_equal(new["diff3d"], frames[:, 2:18, 7:23])
    np.testing.assert_allclose(new["xcoords"], scan["xcoords"] * 16 / 30, rtol=1e-14)
    np.testing.assert_allclose(new["ycoords"], scan["ycoords"] * 16 / 20, rtol=1e-14)
    # What the detector sees of the probe, with a unitary transform, is the middle of what it saw.
    far, new_far = (np.fft.fftshift(np.fft.fft2(p, norm="ortho")) for p in (probe, new["probeGuess"]))
    np.testing.assert_allclose(new_far, far[2:18, 7:23], atol=1e-5)


def test_binning_adds_counts_and_widens_the_detector_pixel(tmp_path: Path) -> None:
    scan = draw_scan(M, N) | {"detector_pixel_m": np.array(75e-6), "objectGuess": np.ones((90, 80), np.complex64)}
    new = converted(scan, "--bin", "2", folder=tmp_path)
    counts = scan["diff3d"].astype(np.float64) ** 2
    np.testing.assert_allclose(
        new["diff3d"].astype(np.float64) ** 2, counts.reshape(M, 8, 2, 8, 2).sum(axis=(2, 4)), rtol=1e-6
    )
    assert float(new["detector_pixel_m"]) == 150e-6
    np.testing.assert_array_equal(new["xcoords"], scan["xcoords"])
    # The object pixel is what it was, and so the object is as well.
    np.testing.assert_array_equal(new["objectGuess"], scan["objectGuess"])


@pytest.mark.parametrize(
    "arguments", [["--crop", "8"], ["--positions-flip-x"], ["--positions-swap-xy"], ["--positions-scale", "2"]]
)
def test_an_object_that_no_longer_fits_is_left_out(
    tmp_path: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    scan = draw_scan(M, N) | {"objectGuess": np.ones((90, 80), np.complex64)}
    assert "objectGuess" not in converted(scan, *arguments, folder=tmp_path)
    assert "'objectGuess' is left out" in capsys.readouterr().err


def test_an_object_in_fortran_order_is_copied(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    whole = np.asfortranarray(rng.random((90, 80)) + 1j * rng.random((90, 80)))
    assert_same(
        converted(draw_scan(M, N) | {"objectGuess": whole}, folder=tmp_path), draw_scan(M, N) | {"objectGuess": whole}
    )


def test_the_centre_of_mass_is_found_under_the_mask(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    y, x = np.mgrid[:24, :30]
    amplitude = 9 * np.exp(-((y - 10) ** 2 + (x - 17) ** 2) / 8).astype(np.float32)
    amplitude = np.repeat(amplitude[None], M, axis=0) * np.random.default_rng(0).uniform(1, 2, (M, 1, 1))
    amplitude = amplitude.astype(np.float32)
    amplitude[:, 0, 0] = np.nan
    bad = np.zeros((24, 30), np.uint8)
    bad[0, 0] = 1
    scan = draw_scan(M, N) | {"diff3d": amplitude, "bad_pixels": bad}
    del scan["probeGuess"]
    new = converted(scan, "--crop", "12", "--centre", "auto", folder=tmp_path)
    np.testing.assert_array_equal(new["diff3d"], amplitude[:, 4:16, 11:23])
    assert "row 10, column 17" in capsys.readouterr().err


def test_geometry_is_given_or_corrected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scan = draw_scan(M, N) | {"wavelength_m": np.array(1e-10)}
    new = converted(scan, "--wavelength-m", "2e-10", "--distance-m", "1.5", folder=tmp_path)
    assert (float(new["wavelength_m"]), float(new["detector_distance_m"])) == (2e-10, 1.5)
    assert "in place of the file's 1e-10" in capsys.readouterr().err


REFUSED: dict[str, tuple[Callable[[Arrays], Arrays], list[str], str]] = {
    "too few positions": (lambda a: a | {"xcoords": a["xcoords"][:5]}, [], "SCAN-06"),
    "positions of NaN": (lambda a: a | {"ycoords": a["ycoords"] * np.nan}, [], "SCAN-06"),
    "one nominal column": (lambda a: a | {"xcoords_start": a["xcoords"]}, [], "SCAN-07"),
    "probe of another frame": (lambda a: a | {"probeGuess": np.ones((8, 8), np.complex64)}, [], "SCAN-08"),
    "probe of zeros": (lambda a: a | {"probeGuess": 0 * a["probeGuess"]}, [], "SCAN-08"),
    "object of four axes": (lambda a: a | {"objectGuess": np.ones((2, 3, 4, 5))}, [], "SCAN-09"),
    "scan index of floats": (lambda a: a | {"scan_index": a["xcoords"]}, [], "SCAN-10"),
    "mask of twos": (lambda a: a | {"bad_pixels": np.full((N, N), 2)}, [], "SCAN-11"),
    "all bad": (lambda a: a | {"bad_pixels": np.ones((N, N))}, [], "SCAN-11"),
    "no wavelength": (lambda a: a | {"wavelength_m": np.array(0.0)}, [], "SCAN-12"),
    "complex patterns": (lambda a: a | {"diff3d": a["diff3d"] + 0j}, [], "SCAN-03"),
    "no patterns": (lambda a: {k: v for k, v in a.items() if k != "diff3d"}, [], "SCAN-01"),
    "dark": (lambda a: a | {"diff3d": 0 * a["diff3d"]}, [], "SCAN-04"),
    "dark auto": (lambda a: a | {"diff3d": 0 * a["diff3d"]}, ["--crop", "8", "--centre", "auto"], "SCAN-04"),
    "a channel": (lambda a: a | {"diff3d": a["diff3d"][..., None]}, [], "SCAN-02"),
    "no channel": (lambda a: a, ["--axes", "mhw1"], "SCAN-02"),
    "turned the wrong way": (lambda a: a, ["--axes", "hwm"], "SCAN-02"),
    "no multiple": (lambda a: a, ["--bin", "3"], "PREP-01"),
    "too large": (lambda a: a, ["--crop", "18"], "PREP-01"),
    "over the edge": (lambda a: a, ["--crop", "8", "--centre", "3,8"], "PREP-01"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_no_option_repairs_is_refused_and_leaves_nothing(tmp_path: Path, case: str) -> None:
    change, arguments, clause = REFUSED[case]
    refused(change(draw_scan(M, N)), *arguments, folder=tmp_path, clause=clause)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--from-intensity", "--declare-amplitude"],
        ["--crop", "7"],
        ["--bin", "0"],
        ["--centre", "4"],
        ["--centre", "-1,2"],
        ["--positions-scale", "nan"],
        ["--pixel-m", "-1"],
    ],
)
def test_options_that_make_no_sense_are_refused_at_once(tmp_path: Path, arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run(tmp_path / "source.npz", tmp_path / "new.npz", *arguments)
    assert caught.value.code == 2


def test_options_that_contradict_the_file_are_refused(tmp_path: Path) -> None:
    refused(draw_scan(M, N), "--centre", "8,8", folder=tmp_path)
    refused(tmp_path / "source.npz", "--data-path", "/data", folder=tmp_path)
    refused(draw_scan(M, 15), "--transpose", folder=tmp_path)
    with pytest.raises(ConfigError, match="no such file"):
        run(tmp_path / "nothing.npz", tmp_path / "new.npz")
    with pytest.raises(ConfigError, match=r"suffix \.npz"):
        run(tmp_path / "source.npz", tmp_path / "new.h5")
    with pytest.raises(ConfigError, match="is a file, so there can be no"):
        run(tmp_path / "source.npz", tmp_path / "source.npz" / "new.npz")


# --------------------------------------------------------------------------------------------- all or nothing


def test_nothing_is_overwritten_unless_it_is_asked_for(tmp_path: Path) -> None:
    scan = draw_scan(M, N)
    np.savez(tmp_path / "source.npz", **scan)
    target = tmp_path / "target.npz"
    target.write_bytes(b"before")
    with pytest.raises(ConfigError, match="--overwrite"):
        run(tmp_path / "source.npz", target, "--crop", "8")
    assert target.read_bytes() == b"before"
    run(tmp_path / "source.npz", target, "--crop", "8", "--overwrite")
    assert examine(target).passed
    with np.load(target) as file:
        np.testing.assert_array_equal(file["diff3d"], scan["diff3d"][:, 4:12, 4:12])
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(ConfigError, match="no file"):
        run(tmp_path / "source.npz", tmp_path / "folder.npz", "--overwrite")


def test_a_failure_keeps_the_file_that_was_there(tmp_path: Path) -> None:
    scan = draw_scan(M, N)
    scan["diff3d"][-1, 0, 0] = -1
    np.savez(tmp_path / "source.npz", **scan)
    (tmp_path / "new.npz").write_bytes(b"something else")
    with pytest.raises(DataContractError, match="SCAN-04"):
        run(tmp_path / "source.npz", tmp_path / "new.npz", "--overwrite")
    assert (tmp_path / "new.npz").read_bytes() == b"something else"
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("compress", [False, True])
def test_a_member_that_is_damaged_leaves_nothing(tmp_path: Path, compress: bool) -> None:
    path = tmp_path / "source.npz"
    (np.savez_compressed if compress else np.savez)(path, **draw_scan(M, N))
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        member = archive.getinfo("diff3d.npy")
    content[member.header_offset + member.compress_size // 2] ^= 0x10
    path.write_bytes(content)
    refused(path, folder=tmp_path, clause="NPZ-01")


def test_a_full_disk_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez(tmp_path / "source.npz", **draw_scan(M, N))
    whole = NpzWriter.array

    def full(self: NpzWriter, key: str, array: np.ndarray) -> None:
        if key == "ycoords":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        whole(self, key, array)

    monkeypatch.setattr(NpzWriter, "array", full)
    with pytest.raises(PtychoError, match="no space left") as caught:
        run(tmp_path / "source.npz", tmp_path / "new.npz")
    assert "\n" not in str(caught.value)
    monkeypatch.setattr(convert.shutil, "disk_usage", lambda _: argparse.Namespace(free=1000))
    with pytest.raises(PtychoError, match="MiB are free"):
        run(tmp_path / "source.npz", tmp_path / "new.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["source.npz"]


def test_a_result_that_breaks_a_clause_is_not_put_in_place(tmp_path: Path) -> None:
    def check(path: Path) -> None:
        assert path.stat().st_size == 3
        raise DataContractError("no")

    with pytest.raises(DataContractError), replacing(tmp_path / "new.npz", overwrite=True, check=check) as file:
        file.write(b"abc")
    assert not list(tmp_path.iterdir())
    with pytest.raises(ConfigError, match="already"), replacing(tmp_path / "new.npz", overwrite=False):
        (tmp_path / "new.npz").write_bytes(b"from someone else, meanwhile")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"from someone else, meanwhile"]


MEASURE = """
    import argparse, sys, threading, time
    from ptycho_torch import convert
    from ptycho_torch.commands import convert_scan as command_convert
    assert "h5py" not in sys.modules

    def anonymous_kb():
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("RssAnon"))

    parser = argparse.ArgumentParser()
    command_convert.add_arguments(parser)
    before, peak, done = anonymous_kb(), 0, False
    def watch():
        global peak
        while not done:
            peak = max(peak, anonymous_kb())
            time.sleep(0.003)
    watcher = threading.Thread(target=watch)
    watcher.start()
    code = command_convert.run(parser.parse_args(sys.argv[1:]))
    done = True
    watcher.join()
    print(peak - before)
    sys.exit(code)
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="needs Linux's /proc")
def test_turning_a_large_stack_takes_little_memory(tmp_path: Path) -> None:
    count = 18300
    frames = np.random.default_rng(0).random((64, 64, 1), np.float32)
    strength = np.random.default_rng(1).random(count, np.float32) + 0.5
    # 300 MB, written row by row.
    with (tmp_path / "source.npz").open("wb") as file, NpzWriter(file) as npz:
        with npz.stream("diff3d", (64, 64, count), np.dtype(np.float32)) as write:
            for row in frames:
                write(row * strength)
        npz.array("xcoords", np.arange(count))
        npz.array("ycoords", np.arange(count))
    command = [sys.executable, "-c", textwrap.dedent(MEASURE), str(tmp_path / "source.npz")]
    child = subprocess.run(
        [*command, "-o", str(tmp_path / "new.npz"), "--axes", "hwm"], capture_output=True, text=True, check=True
    )
    assert int(child.stdout.split()[-1]) < 150 * 1024
    with np.load(tmp_path / "new.npz", mmap_mode="r") as file, zipfile.ZipFile(tmp_path / "new.npz") as archive:
        assert file.files == ["diff3d", "xcoords", "ycoords"]
        with archive.open("diff3d.npy") as member:
            member.seek(128 + 17000 * 64 * 64 * 4)
            frame = np.frombuffer(member.read(64 * 64 * 4), np.float32).reshape(64, 64)
    np.testing.assert_array_equal(frame, frames[..., 0] * strength[17000])


def test_a_process_that_is_told_to_end_leaves_nothing(tmp_path: Path) -> None:
    if sys.platform == "win32":
        pytest.skip("needs SIGTERM")
    slow = """
        import sys, time
        from pathlib import Path
        from ptycho_torch.commands import cli
        from ptycho_torch.importer import raw_scan
        frames = raw_scan.Stack._frames
        def slowly(stack):
            for chunk in frames(stack):
                yield chunk
                print("on its way", flush=True)
                time.sleep(60)
        raw_scan.Stack._frames = slowly
        sys.exit(cli.main(["convert-scan", *sys.argv[1:]]))
    """
    np.savez(tmp_path / "source.npz", **draw_scan(M, N))
    command = [
        sys.executable,
        "-c",
        textwrap.dedent(slow),
        str(tmp_path / "source.npz"),
        "-o",
        str(tmp_path / "new.npz"),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"on its way\n"
        assert len(list(tmp_path.iterdir())) == 2
        child.send_signal(signal.SIGTERM)
        assert child.wait(30) == 128 + signal.SIGTERM
    assert [path.name for path in tmp_path.iterdir()] == ["source.npz"]


# ------------------------------------------------------------------------------------------------- the writer


def written(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    with NpzWriter(file) as npz:
        for key, array in arrays.items():
            npz.array(key, array)
    return file.getvalue()


def test_the_writer_writes_what_numpy_reads_and_the_same_bytes_each_time() -> None:
    arrays = {
        "whole": np.arange(6, dtype=">i4").reshape(2, 3).T,
        "text": np.array("amplitude"),
        "none": np.zeros((0, 3)),
        "number": np.array(2.5),
    }
    content = written(**arrays)
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        assert_same({key: file[key] for key in file.files}, arrays)
    time.sleep(0.01)
    assert written(**arrays) == content


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda npz: npz.array("a", np.zeros(3)), "twice"),
        (lambda npz: npz.array("b", np.array(None)), "objects"),
        (lambda npz: stream(npz, 3), "bytes are missing"),
        (lambda npz: stream(npz, 5), "bytes too many"),
    ],
)
def test_the_writer_refuses_members_that_are_none(break_it: Callable[[NpzWriter], None], message: str) -> None:
    npz = NpzWriter(io.BytesIO())
    npz.array("a", np.zeros(2))
    with pytest.raises(ValueError, match=message):
        break_it(npz)


def stream(npz: NpzWriter, count: int) -> None:
    with npz.stream("c", (4,), np.dtype(np.float64)) as write:
        write(np.zeros(count))
