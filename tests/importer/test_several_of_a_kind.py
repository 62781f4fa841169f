"""Files in which something is there twice, or says in an attribute what it is: what belongs together is read, or asked.

Several entries, detectors, distances, positions; axes that NXdata states; units and directions as arrays; virtual
datasets with a fill value.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ptycho_torch.errors import PtychoError
from tests.support.beamline_files import (
    DATA,
    DETECTOR,
    DISTANCE_M,
    PIXEL_M,
    TRANSLATION,
    WAVELENGTH_M,
    Content,
    With,
    assert_is,
    convert,
    cxi,
    known_scan,
    soft,
    units,
    write_hdf5,
)

h5py = pytest.importorskip("h5py")

KNOWN = known_scan()
M, N = len(KNOWN.counts), KNOWN.N
OTHER = known_scan(seed=1)


def without(content: Content, *names: str) -> Content:
    return {name: value for name, value in content.items() if name not in names}


def nexus(folder: str = "/entry") -> Content:
    """Return a NeXus file with one detector that holds the patterns."""
    return {
        f"{folder}/instrument/detector/data": KNOWN.counts.astype(np.uint32),
        f"{folder}/instrument/detector/distance": DISTANCE_M,
        f"{folder}/instrument/detector/x_pixel_size": PIXEL_M,
        f"{folder}/instrument/detector/y_pixel_size": PIXEL_M,
        f"{folder}/instrument/beam/incident_wavelength": WAVELENGTH_M,
        f"{folder}/sample/translation": KNOWN.translation_m,
    }


def refusal(source: Path, *arguments: str) -> str:
    with pytest.raises(PtychoError) as caught:
        convert(source, *arguments)
    return str(caught.value)


def with_axes(path: Path, group: str, axes: list[str] | str) -> Path:
    with h5py.File(path, "r+") as file:
        file[group].attrs["NX_class"] = "NXdata"
        file[group].attrs["axes"] = axes
    return path


# ------------------------------------------------------------------------------------------------------------ entries


def two_entries() -> Content:
    def second(path: str) -> str:
        return path.replace("/entry_1", "/entry_2")

    first = {**cxi(OTHER), f"{DETECTOR}/distance": DISTANCE_M / 2, f"{DETECTOR}/mask": np.eye(N, dtype=np.uint32)}
    there = {second(path): value for path, value in without(cxi(KNOWN), DATA).items()}
    return first | there | {second(DATA): soft(second(f"{DETECTOR}/data"))}


@pytest.mark.parametrize("named", [(), ("--positions-path", TRANSLATION.replace("entry_1", "entry_2"))])
def test_everything_comes_from_the_entry_of_the_patterns_that_are_named(tmp_path: Path, named: tuple[str, ...]) -> None:
    source = write_hdf5(tmp_path / "scan.h5", two_entries())
    found = convert(source, "--data-path", DATA.replace("entry_1", "entry_2"), *named)
    assert_is(found, KNOWN)
    assert float(found["detector_distance_m"]) == DISTANCE_M
    assert "bad_pixels" not in found
    np.testing.assert_allclose(found["probeGuess"], KNOWN.probe)


def test_an_entry_without_patterns_is_passed_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = {f"/entry_2{path.removeprefix('/entry')}": value for path, value in nexus().items()}
    source = write_hdf5(tmp_path / "scan.h5", {"/entry_1/picture": np.ones((5, 5)), **content})
    assert_is(convert(source), KNOWN)
    assert "/entry_2 is read" in capsys.readouterr().err


def test_positions_of_another_entry_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_hdf5(tmp_path / "scan.h5", without(nexus(), "/entry/sample/translation"))
    places = {"/entry_1/sample/translation": KNOWN.translation_m, "/entry_2/sample/translation": OTHER.translation_m}
    write_hdf5(tmp_path / "places.h5", places)
    assert_is(convert(source, "--positions-file", str(tmp_path / "places.h5")), KNOWN)
    assert "/entry_2/sample/translation left out; choose: --positions-path" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------- detectors, geometry


def two_detectors(folder: Path) -> Path:
    data = "/entry/instrument/detector/data"
    content = {path.replace("/detector/", "/merlin/"): value for path, value in without(nexus(), data).items()}
    content |= {"/entry/data/data": KNOWN.counts, "/entry/instrument/andor/distance": 0.5}
    content |= {f"/entry/instrument/andor/{axis}_pixel_size": 6.5e-6 for axis in "xy"}
    classes = {f"/entry/instrument/{name}": "NXdetector" for name in ("andor", "merlin")}
    return write_hdf5(folder / "scan.h5", content, classes=classes)


def test_of_two_detectors_none_is_taken_for_the_other(tmp_path: Path) -> None:
    source = two_detectors(tmp_path)
    assert "2 detectors with a geometry" in refusal(source)
    found = convert(source, "--distance-m", str(DISTANCE_M), "--pixel-m", str(PIXEL_M))
    assert_is(found, KNOWN)
    assert float(found["detector_pixel_m"]) == PIXEL_M


def test_the_detector_that_holds_the_patterns_is_the_one(tmp_path: Path) -> None:
    source = two_detectors(tmp_path)
    with h5py.File(source, "r+") as file:
        file["/entry/instrument/merlin/frames"] = file["/entry/data/data"]
    found = convert(source)
    assert_is(found, KNOWN)
    assert float(found["detector_pixel_m"]) == PIXEL_M


@pytest.mark.parametrize(
    ("more", "options"),
    [
        ({"detector_distance": DISTANCE_M / 2}, ("--distance-m", str(DISTANCE_M))),
        ({"pixel_size_x": PIXEL_M / 2, "pixel_size_y": PIXEL_M / 2}, ("--pixel-m", str(PIXEL_M))),
        ({"basis_vectors": 2 * PIXEL_M * np.array([[0.0, 1, 0], [1, 0, 0]])}, ("--pixel-m", str(PIXEL_M))),
    ],
)
def test_a_length_that_is_said_twice_has_to_be_one(tmp_path: Path, more: Content, options: tuple[str, str]) -> None:
    content = nexus() | {f"/entry/instrument/detector/{name}": value for name, value in more.items()}
    source = write_hdf5(tmp_path / "scan.h5", content)
    remedy = refusal(source)
    assert "Say which is right" in remedy
    assert f"{options[0]} {float(options[1]):.9g}" in remedy
    assert_is(convert(source, *options), KNOWN)


# ----------------------------------------------------------------------------------------------------- axes of NXdata


def raster(rows: int, columns: int, slow: str) -> Content:
    data = "/entry/instrument/detector/data"
    steps = {
        "x": -3.0 * np.arange(rows if slow == "x" else columns),
        "y": -4.0 * np.arange(columns if slow == "x" else rows),
    }
    counts = KNOWN.counts[: rows * columns].reshape(rows, columns, N, N).astype(np.uint32)
    content = without(nexus(), data, "/entry/sample/translation") | {"/entry/data/data": counts}
    return content | {f"/entry/data/{name}": KNOWN.object_pixel_m * each for name, each in steps.items()}


@pytest.mark.parametrize(("rows", "columns"), [(3, 3), (3, 4)])
@pytest.mark.parametrize("slow", ["x", "y"])
def test_nxdata_says_which_axis_of_a_raster_is_slow(tmp_path: Path, rows: int, columns: int, slow: str) -> None:
    source = write_hdf5(tmp_path / "scan.h5", raster(rows, columns, slow))
    with_axes(source, "/entry/data", [slow, "y" if slow == "x" else "x", ".", "."])
    found = convert(source)
    along_rows, along_columns = (each.ravel() for each in np.meshgrid(range(rows), range(columns), indexing="ij"))
    x, y = (along_rows, along_columns) if slow == "x" else (along_columns, along_rows)
    np.testing.assert_allclose(found["xcoords"] - found["xcoords"].min(), 3.0 * x, atol=1e-6)
    np.testing.assert_allclose(found["ycoords"] - found["ycoords"].min(), 4.0 * y, atol=1e-6)


@pytest.mark.parametrize("axes", [[".", "x", "y"], ".:x:y"])
def test_nxdata_says_that_frames_lie_columns_first(tmp_path: Path, axes: list[str] | str) -> None:
    content = without(nexus(), "/entry/instrument/detector/data")
    content |= {
        "/entry/data/data": KNOWN.counts.swapaxes(1, 2).astype(np.uint32),
        "/entry/data/x": np.arange(N) * PIXEL_M,
    }
    source = with_axes(write_hdf5(tmp_path / "scan.h5", content), "/entry/data", axes)
    assert_is(convert(source), KNOWN)


@pytest.mark.parametrize("count", [M, N])
def test_coordinates_of_pixels_are_no_positions(tmp_path: Path, count: int) -> None:
    known = known_scan(4, 4) if count == N else KNOWN
    content = without(nexus(), "/entry/instrument/detector/data", "/entry/sample/translation")
    content |= {f"/entry/data/{name}": np.arange(N) * PIXEL_M for name in "xy"}
    content |= {f"/entry/measurement/sam{name}": known.translation_m[:, axis] for axis, name in enumerate("xy")}
    content |= {"/entry/data/data": known.counts.astype(np.uint32)}
    source = with_axes(write_hdf5(tmp_path / "scan.h5", content), "/entry/data", [".", "y", "x"])
    assert_is(convert(source), known)


def test_positions_have_the_length_of_the_patterns(tmp_path: Path) -> None:
    content = without(nexus(), "/entry/sample/translation")
    content |= {f"/entry/a/{name}": np.arange(3.0) for name in "xy"}
    content |= {f"/entry/measurement/{name}": KNOWN.translation_m[:, axis] for axis, name in enumerate("xy")}
    content["/entry/instrument/detector/translation"] = np.zeros((1, 3))
    assert_is(convert(write_hdf5(tmp_path / "scan.h5", content)), KNOWN)


# --------------------------------------------------------------------------------- attributes, numbers, fill values


def test_one_unit_for_each_column_is_a_unit(tmp_path: Path) -> None:
    place, mm = "/entry/sample/translation", 1e3 * KNOWN.translation_m
    source = write_hdf5(tmp_path / "scan.h5", nexus() | {place: With(mm, {"units": ["mm", "mm", "mm"]})})
    assert_is(convert(source), KNOWN)
    source = write_hdf5(tmp_path / "other.h5", nexus() | {place: With(mm, {"units": ["mm", "um", "mm"]})})
    assert "mm, um" in refusal(source)


@pytest.mark.parametrize("vector", [np.array([[-1.0, 0, 0]]), np.array([-1, 0, 0])])
def test_a_direction_is_read_in_any_shape(tmp_path: Path, vector: np.ndarray) -> None:
    content = without(nexus(), "/entry/sample/translation")
    content |= {
        "/entry/sample/x": With(-KNOWN.translation_m[:, 0], {"vector": vector}),
        "/entry/sample/y": units(KNOWN.translation_m[:, 1], "m"),
    }
    assert_is(convert(write_hdf5(tmp_path / "scan.h5", content)), KNOWN)


def test_a_direction_that_is_none_is_refused(tmp_path: Path) -> None:
    content = without(nexus(), "/entry/sample/translation")
    content |= {"/entry/sample/x": With(KNOWN.translation_m[:, 0], {"vector": "-1 0 0"})}
    content |= {"/entry/sample/y": KNOWN.translation_m[:, 1]}
    assert "attribute vector = -1 0 0" in refusal(write_hdf5(tmp_path / "scan.h5", content))


@pytest.mark.parametrize("digits", [1, 2, 6])
def test_numbered_datasets_may_have_any_number_of_digits(tmp_path: Path, digits: int) -> None:
    content = without(nexus(), "/entry/instrument/detector/data")
    for number, part in enumerate(np.split(KNOWN.counts.astype(np.uint32), 3), 1):
        content[f"/entry/data/data_{number:0{digits}d}"] = part
    assert_is(convert(write_hdf5(tmp_path / "scan.h5", content)), KNOWN)


@pytest.mark.parametrize(("fill", "dtype"), [(-1, "i4"), (2**32 - 1, "u4"), (np.nan, "f4"), (2**64 - 1, "u8")])
def test_what_a_virtual_dataset_has_no_source_for_is_its_fill_value(tmp_path: Path, fill: float, dtype: str) -> None:
    gap = np.zeros((N, N), bool)
    gap[:, 1:3] = True
    counts = np.where(gap, 0, KNOWN.counts)
    source = write_hdf5(tmp_path / "scan.h5", without(nexus(), "/entry/instrument/detector/data"))
    layout = h5py.VirtualLayout((M, N, N), dtype)
    for first, last in ((0, 1), (3, N)):
        part = write_hdf5(tmp_path / f"part{first}.h5", {"d": KNOWN.counts[:, :, first:last].astype(dtype)})
        layout[:, :, first:last] = h5py.VirtualSource(part.name, "d", (M, N, last - first))
    with h5py.File(source, "r+") as file:
        file.create_virtual_dataset("/entry/instrument/detector/data", layout, fillvalue=fill)
    found = convert(source)
    np.testing.assert_array_equal(found["bad_pixels"], gap)
    np.testing.assert_allclose(found["diff3d"], np.sqrt(counts), rtol=2e-7)


# ------------------------------------------------------------------------------- what is said in an unusual way


def test_unit_attributes_in_capitals_are_read(tmp_path: Path) -> None:
    path = write_hdf5(tmp_path / "a.h5", nexus() | {"/entry/instrument/detector/distance": DISTANCE_M * 1e3})
    with h5py.File(path, "r+") as file:
        file["/entry/instrument/detector/distance"].attrs["Units"] = "mm"
    assert_is(convert(path), KNOWN)


def test_basis_vectors_of_each_pattern_are_read_where_they_are_the_same(tmp_path: Path) -> None:
    basis = np.array([[0.0, PIXEL_M], [PIXEL_M, 0.0], [0.0, 0.0]])
    content = cxi(KNOWN) | {f"{DETECTOR}/basis_vectors": np.stack([basis] * M)}
    assert_is(convert(write_hdf5(tmp_path / "a.cxi", content)), KNOWN)
    content[f"{DETECTOR}/basis_vectors"][1] *= 2
    assert "basis_vectors" in refusal(write_hdf5(tmp_path / "b.cxi", content))


@pytest.mark.parametrize("name", ["data_scaling_factor", "scaling_factor"])
def test_a_scaling_factor_of_the_patterns_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert_is(convert(write_hdf5(tmp_path / "a.h5", nexus() | {f"/entry/instrument/detector/{name}": 1.0})), KNOWN)
    assert "times" not in capsys.readouterr().err
    assert_is(convert(write_hdf5(tmp_path / "b.h5", nexus() | {f"/entry/instrument/detector/{name}": 2.5})), KNOWN)
    assert "times 2.5" in capsys.readouterr().err


def test_an_offset_of_the_patterns_is_refused(tmp_path: Path) -> None:
    said = refusal(write_hdf5(tmp_path / "a.h5", nexus() | {"/entry/instrument/detector/data_offset": 3.0}))
    assert "data_offset" in said
    assert "plus that" in said
