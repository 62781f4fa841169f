"""Of scans that are not taken as they are: what a message says leads to the right numbers, or names what is needed."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ptycho_torch.errors import PtychoError
from ptycho_torch.files.hdf5_files import is_hdf5
from tests.support.beamline_files import (
    DATA,
    DETECTOR,
    DISTANCE_M,
    ELECTRONVOLT_J,
    ENERGY_J,
    SOURCE,
    TRANSLATION,
    Content,
    Known,
    assert_is,
    convert,
    cxi,
    known_scan,
    units,
    write_hdf5,
)

h5py = pytest.importorskip("h5py")

KNOWN = known_scan()
M, N = len(KNOWN.counts), KNOWN.N
SAMPLE = "/entry_1/sample_1"
MOST_STEPS = 4


def scan(folder: Path, changes: Content, known: Known = KNOWN) -> Path:
    """Write a CXI file with other datasets; None leaves one out."""
    content = {key: value for key, value in (cxi(known) | changes).items() if value is not None}
    return write_hdf5(folder / "scan.h5", content)


def npz(folder: Path, known: Known = KNOWN, **changes: object) -> Path:
    members = {"diff3d": np.sqrt(known.counts).astype(np.float32), "xcoords": known.x, "ycoords": known.y} | changes
    np.savez(folder / "scan.npz", **members)  # type: ignore[arg-type]
    return folder / "scan.npz"


def refused(path: Path, *arguments: str) -> str:
    with pytest.raises(PtychoError) as caught:
        convert(path, *arguments)
    return str(caught.value)


def follow(path: Path, *arguments: str) -> tuple[dict[str, np.ndarray], list[str]]:
    """Do what the messages say first; return what came out, and the messages."""
    messages: list[str] = []
    for _ in range(MOST_STEPS):
        try:
            return convert(path, *arguments), messages
        except PtychoError as err:
            messages.append(str(err))
        words = shlex.split(re.findall(r"`([^`]+)`", messages[-1])[0])
        if words[0] == "python":
            subprocess.run([sys.executable, *words[1:]], cwd=path.parent, check=True)
            path = path.parent / re.findall(r"np\.savez\('([^']+)'", words[-1])[0]
        else:
            arguments += tuple(words)
    raise AssertionError(f"still refused: {messages}")


def part(known: Known, numbers: object) -> Known:
    return Known(known.counts[numbers], known.x[numbers], known.y[numbers], known.probe)  # type: ignore[index]


# ------------------------------------------------------------------------------- other numbers of positions


@pytest.mark.parametrize("count", [M - 2, M + 3])
def test_a_few_surplus_patterns_or_positions_are_left_out(count: int, tmp_path: Path) -> None:
    places = np.vstack([KNOWN.translation_m, KNOWN.translation_m])[:count]
    found, said = follow(scan(tmp_path, {TRANSLATION: places}))
    assert_is(found, part(KNOWN, slice(min(count, M))))
    assert f"`--select 0:{min(count, M)}`" in said[0]


def raster(rows: int, columns: int) -> tuple[Known, np.ndarray, np.ndarray]:
    """Return a scan of a raster, row by row, and its axes x and y."""
    drawn = known_scan(rows, columns)
    x, y = 3.0 * np.arange(columns), 4.0 * np.arange(rows)
    grid = [each.ravel() for each in np.meshgrid(x, y)]
    return Known(drawn.counts, grid[0], grid[1], drawn.probe), x, y


@pytest.mark.parametrize(("rows", "columns"), [(4, 4), (3, 5)])
def test_axes_of_a_raster_give_each_pattern_its_place(rows: int, columns: int, tmp_path: Path) -> None:
    known, x, y = raster(rows, columns)
    frames = np.sqrt(known.counts).astype(np.float32)
    for shape in (frames.shape, (rows, columns, N, N)):
        path = npz(tmp_path, diff3d=frames.reshape(shape), xcoords=x, ycoords=y)
        assert_is(follow(path)[0], known)


@pytest.mark.parametrize(("rows", "columns"), [(4, 4), (3, 5)])
def test_axes_of_a_raster_in_hdf5_say_what_another_file_must_have(rows: int, columns: int, tmp_path: Path) -> None:
    known, x, y = raster(rows, columns)
    axes = {f"{SAMPLE}/x": x, f"{SAMPLE}/y": y, TRANSLATION: None}
    said = refused(path := scan(tmp_path, axes, known))
    assert f"as sample/translation ({rows * columns}, 3) of another HDF5 file" in said
    assert "--select" not in said
    write_hdf5(tmp_path / "places.h5", {"sample/translation": units(known.translation_m * 1e6, "um")})
    assert_is(convert(path, "--positions-file", str(tmp_path / "places.h5")), known)


@pytest.mark.parametrize(("axis", "option"), [(1, "`--select 0::2`"), (0, f"`--select 0:{M}`")])
def test_of_two_patterns_at_each_position_the_first_is_taken(axis: int, option: str, tmp_path: Path) -> None:
    both = np.stack([KNOWN.counts, KNOWN.counts // 2], axis)
    found, said = follow(scan(tmp_path, {f"{DETECTOR}/data": both}))
    assert option in said[0]
    assert_is(found, KNOWN)


def test_readings_of_an_encoder_are_not_taken_for_positions(tmp_path: Path) -> None:
    x, y = (each[:, None] + np.linspace(-1e-9, 1e-9, 10) for each in KNOWN.translation_m.T[:2])
    said = refused(scan(tmp_path, {f"{SAMPLE}/x": x, f"{SAMPLE}/y": y, TRANSLATION: None}))
    assert f"Give one position for each of the {M} patterns, such as the mean of 10 readings of an encoder" in said
    assert "--select" not in said


@pytest.mark.parametrize("count", [M - 1, M + 1])
def test_patterns_along_the_last_axis_are_told_though_a_position_is_missing(count: int, tmp_path: Path) -> None:
    places = np.vstack([KNOWN.translation_m, KNOWN.translation_m])[:count]
    changes = {f"{DETECTOR}/data": KNOWN.counts.transpose(1, 2, 0).copy(), TRANSLATION: places}
    found, said = follow(scan(tmp_path, changes))
    assert "`--axes hwm`" in said[0]
    assert_is(found, part(KNOWN, slice(min(count, M))))


def test_patterns_along_the_last_axis_are_told_where_positions_are_columns(tmp_path: Path) -> None:
    frames = np.sqrt(KNOWN.counts).astype(np.float32).transpose(1, 2, 0).copy()
    found, said = follow(npz(tmp_path, diff3d=frames, xcoords=KNOWN.x[:, None], ycoords=KNOWN.y[:, None]))
    assert "`--axes hwm`" in said[0]
    assert_is(found, KNOWN)


def test_a_pattern_is_left_out_by_the_number_that_the_option_counts(tmp_path: Path) -> None:
    """Pattern 2 has no position, 5 and 9 are NaN; a first selection leaves out pattern 0."""
    counts, places = KNOWN.counts.astype(np.float32), KNOWN.translation_m.copy()
    counts[[5, 9]], places[2] = np.nan, np.nan
    path = scan(tmp_path, {f"{DETECTOR}/data": counts, TRANSLATION: places})
    found, _ = follow(path, "--drop-nan-positions")
    assert_is(found, part(KNOWN, np.delete(np.arange(M), [2, 5, 9])))
    found, _ = follow(path, "--select", "1:", "--drop-nan-positions")
    assert_is(found, part(KNOWN, np.delete(np.arange(M), [0, 2, 5, 9])))


# ------------------------------------------------------------------------------------------ no measurement


def some_pixels() -> np.ndarray:
    bad = np.zeros((N, N), bool)
    bad[1, 2] = bad[0, 13] = True
    return bad


@pytest.mark.parametrize(
    ("value", "dtype"),
    [*((2**16 - 1, kind) for kind in ("i4", "u4", "f4", "i8", "f8")), (2**32 - 1, "i8"), (2**32 - 1, "u8")],
)
def test_a_gap_of_a_narrower_type_is_one(
    value: int, dtype: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    counts = KNOWN.counts.astype(dtype)
    counts[:, some_pixels()] = value
    path = scan(tmp_path, {f"{DETECTOR}/data": counts})
    for options in ((), ("--drop-dark",)):
        assert_is(convert(path, *options), KNOWN, bad=some_pixels())
    said = capsys.readouterr().err
    assert f"2 pixels hold 2^{value.bit_length()} − 1 in every pattern, no measurement: taken for bad" in said
    assert "--fftshift" not in said


def test_the_centre_is_that_of_the_light_and_not_of_gaps(tmp_path: Path) -> None:
    counts = KNOWN.counts.astype(np.uint32)
    without = convert(scan(tmp_path, {}), "--centre", "auto", "--crop", "12")
    counts[:, some_pixels()] = 2**16 - 1
    found = convert(scan(tmp_path, {f"{DETECTOR}/data": counts}), "--centre", "auto", "--crop", "12")
    np.testing.assert_array_equal(found["diff3d"], without["diff3d"])


@pytest.mark.parametrize("axes", ["mhw", "hwm"])
def test_gaps_are_found_in_archives_too(axes: str, tmp_path: Path) -> None:
    counts = KNOWN.counts.astype(np.int32)
    counts[:, some_pixels()] = 2**16 - 1
    stored = counts if axes == "mhw" else counts.transpose(1, 2, 0).copy()
    found = convert(npz(tmp_path, diff3d=stored), "--from-intensity", "--axes", axes)
    assert_is(found, KNOWN, bad=some_pixels())


def test_a_flat_field_may_be_as_large_as_its_type_allows(tmp_path: Path) -> None:
    flat = np.full((N, N), 255, np.uint8)
    assert_is(convert(scan(tmp_path, {"/flat": flat}), "--white-path", "/flat"), KNOWN)


def test_a_number_that_a_pixel_reaches_in_some_patterns_is_a_count(tmp_path: Path) -> None:
    counts = KNOWN.counts.copy()
    counts[1:, 8, 8] = 2**16 - 1
    found = convert(scan(tmp_path, {f"{DETECTOR}/data": counts.astype(np.uint32)}))
    assert_is(found, Known(counts, KNOWN.x, KNOWN.y, KNOWN.probe))


def test_hot_pixels_are_no_centre(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    counts = KNOWN.counts.astype(np.uint32)
    counts[:, 0, 0] = counts[:, 0, N - 1] = 60000
    convert(scan(tmp_path, {f"{DETECTOR}/data": counts}))
    assert "--fftshift" not in capsys.readouterr().err
    shifted = np.fft.ifftshift(KNOWN.counts, axes=(1, 2))
    convert(scan(tmp_path, {f"{DETECTOR}/data": shifted}))
    assert "`--fftshift`" in capsys.readouterr().err


def test_the_limits_of_the_file_are_lifted_on_request(tmp_path: Path) -> None:
    high = int(np.median(KNOWN.counts.max(axis=(1, 2))))
    path = scan(tmp_path, {f"{DETECTOR}/saturation_value": high})
    said = refused(path)
    assert f"`--saturated {high + 1}`" in said
    assert_is(convert(path, "--saturated", "keep"), KNOWN)
    bad = (KNOWN.counts > high).any(axis=0)
    assert_is(follow(path, "--accept-mask")[0], KNOWN, bad=bad)


@pytest.mark.parametrize("value", [-1, 0, np.nan])
def test_a_saturation_value_that_is_not_set_is_ignored(
    value: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert_is(convert(scan(tmp_path, {f"{DETECTOR}/saturation_value": value})), KNOWN)
    assert f"saturation_value is not used: {value}" in capsys.readouterr().err


def test_counts_below_the_underload_value_are_taken_as_they_are_on_request(tmp_path: Path) -> None:
    least = int(KNOWN.counts.min()) + 1
    found, said = follow(scan(tmp_path, {f"{DETECTOR}/underload_value": least}))
    assert "Take the numbers as they are: `--saturated keep`" in said[0]
    assert_is(found, KNOWN)


def test_a_scan_that_ended_early_loses_the_patterns_that_were_not_written(tmp_path: Path) -> None:
    counts = KNOWN.counts.astype(np.uint32)
    counts[9:] = 2**32 - 1
    path = scan(tmp_path, {f"{DETECTOR}/data": counts})
    for options in ((), ("--saturated", str(2**32 - 1))):
        found, said = follow(path, *options)
        assert "`--drop-dark`" in said[0]
        assert_is(found, part(KNOWN, slice(9)))


# ------------------------------------------------------------------------------------ masks and dark frames


def test_the_upper_bits_of_a_mask_are_bits(tmp_path: Path) -> None:
    mask = some_pixels().astype(np.uint64) << np.uint64(40)
    assert_is(convert(scan(tmp_path, {f"{DETECTOR}/mask": mask})), KNOWN, bad=some_pixels())


def test_a_mask_that_leaves_nothing_is_told_by_name(tmp_path: Path) -> None:
    found, said = follow(scan(tmp_path, {f"{DETECTOR}/mask": np.ones((N, N), np.uint8)}))
    assert "all 256 pixels marked as bad" in said[0]
    assert "`--mask-bits zero`" in said[0]
    assert_is(found, KNOWN)
    found, said = follow(npz(tmp_path, bad_pixels=np.ones((N, N), bool)))
    assert "`--drop bad_pixels`" in said[0]
    assert_is(found, KNOWN)


def test_a_mask_is_not_left_out_where_there_is_none(tmp_path: Path) -> None:
    path = scan(tmp_path, {})
    said = refused(path, "--saturated", "300")
    assert "`--accept-mask`" in said
    assert "`--saturated keep`" in said
    assert "--mask" not in said.replace("--accept-mask", "")
    assert_is(convert(path, "--saturated", "300", "--accept-mask"), KNOWN, bad=(KNOWN.counts >= 300).any(axis=0))


@pytest.mark.parametrize(
    ("name", "value", "option"),
    [
        ("data_dark", np.full(N * N, 7), "--dark-path none"),
        ("data_dark", np.full((N, N), np.nan), "--dark-path none"),
        ("mask", np.zeros((N + 2, N), np.uint8), "--mask-path none"),
    ],
)
def test_what_has_another_shape_is_left_out_by_its_option(
    name: str, value: np.ndarray, option: str, tmp_path: Path
) -> None:
    found, said = follow(scan(tmp_path, {f"{DETECTOR}/{name}": value}))
    assert f"`{option}`" in said[0]
    assert_is(found, KNOWN)


def test_what_is_no_measurement_is_no_dark_count(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dark = np.full((3, N, N), 7, np.uint32)
    dark[0, 5:9] = 2**32 - 1
    dark[:, some_pixels()] = 2**32 - 1
    found = convert(scan(tmp_path, {f"{DETECTOR}/data": KNOWN.counts + 7, f"{DETECTOR}/data_dark": dark}))
    assert_is(found, KNOWN, bad=some_pixels())
    assert "2 pixels hold no measurement in any of the dark frames" in capsys.readouterr().err


# --------------------------------------------------------------------------------------- probes, paths, files


def test_a_probe_that_is_none_is_left_out_by_its_option(tmp_path: Path) -> None:
    probe = KNOWN.probe.astype(np.complex128)
    for wrong in (np.nan, 1e300):
        probe[0, 3, 3] = wrong
        found, said = follow(scan(tmp_path, {f"{SOURCE}/illumination": probe}))
        assert "`--probe-path none`" in said[0]
        assert_is(found, KNOWN)


def test_real_and_imaginary_part_are_no_modes(tmp_path: Path) -> None:
    parts = np.stack([KNOWN.probe[0].real, KNOWN.probe[0].imag], -1)
    found, said = follow(npz(tmp_path, probeGuess=parts))
    assert "two modes, or real and imaginary part" in said[0]
    np.testing.assert_array_equal(found["probeGuess"], KNOWN.probe[0])


def test_faint_counts_of_an_hdf5_file_are_no_numpy_archive(tmp_path: Path) -> None:
    said = refused(scan(tmp_path, {f"{DETECTOR}/data": KNOWN.counts * 1e-45}))
    assert "Any scale will do: store them divided by" in said
    assert "np.load" not in said


def test_paths_with_a_space_are_quoted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stack = {"/raw data/my frames": KNOWN.counts, f"{DETECTOR}/data": None, DATA: None}
    found, said = follow(scan(tmp_path, stack))
    assert "`--data-path '/raw data/my frames'`" in said[0]
    assert_is(found, KNOWN)
    convert(scan(tmp_path, {"/entry_1/dark frames/dark": np.ones((N, N))}))
    assert "`--dark-path '/entry_1/dark frames/dark'`" in capsys.readouterr().err


def test_a_file_that_the_scan_links_to_is_not_replaced(tmp_path: Path) -> None:
    linked = tmp_path / "imported.npz"
    write_hdf5(linked, {"/frames": KNOWN.counts})
    path = scan(tmp_path, {f"{DETECTOR}/data": h5py.ExternalLink("imported.npz", "/frames")})
    assert "is an input of this command" in refused(path)
    assert is_hdf5(linked)


def test_a_symbolic_link_beside_the_scan_is_replaced_by_the_file(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    write_hdf5(tmp_path / "raw" / "my data.h5", {"/frames": KNOWN.counts})
    (tmp_path / "my data.h5").symlink_to("raw/my data.h5")
    path = scan(tmp_path, {f"{DETECTOR}/data": h5py.ExternalLink("my data.h5", "/frames")})
    said = refused(path)
    assert "Put a copy of the file in place of the symbolic link" in said
    subprocess.run(shlex.split(re.findall(r"`([^`]+)`", said)[0]), check=True)
    assert_is(convert(path), KNOWN)


def test_numbers_of_a_product_may_be_arrays_of_one(tmp_path: Path) -> None:
    np.savez(tmp_path / "scan.npz", patterns=KNOWN.counts.astype(np.uint16), indexes=np.arange(M))
    positions_m = -KNOWN.translation_m
    product = {
        "probe_position_indexes": np.arange(M),
        "probe_position_x_m": positions_m[:, 0],
        "probe_position_y_m": positions_m[:, 1],
        "detector_object_distance_m": np.array([DISTANCE_M]),
        "probe_energy_eV": np.array([[ENERGY_J / ELECTRONVOLT_J]]),
        "probe_pixel_width_m": np.array([KNOWN.object_pixel_m]),
    }
    np.savez(tmp_path / "product.npz", **product)
    assert_is(convert(tmp_path / "scan.npz", "--positions-file", str(tmp_path / "product.npz")), KNOWN)
    np.savez(tmp_path / "product.npz", **product | {"probe_energy_eV": np.ones(2)})
    said = refused(tmp_path / "scan.npz", "--positions-file", str(tmp_path / "product.npz"))
    assert "'probe_energy_eV' is (2,) of float64, and no number" in said
