"""Reconstructions as CXI: what is written is what is read, in metres, and its positions can be imported again."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from ptycho_torch.errors import ConfigError, DataContractError
from ptycho_torch.importer.beamline import open_beamline
from ptycho_torch.importer.beamline_search import Wanted
from ptycho_torch.reconstruction.cxi import write_cxi
from ptycho_torch.reconstruction.products import Geometry, Reconstruction

GEOMETRY = Geometry(wavelength_m=1e-10, detector_distance_m=2.0, detector_pixel_m=5e-5, frame_px=8)
PIXEL_M = 1e-10 * 2.0 / (8 * 5e-5)
POSITIONS_PX = np.random.default_rng(1).uniform(-5, 20, (7, 2))
ENTRY = "/entry_1"


@pytest.fixture
def reconstruction() -> Reconstruction:
    draw = np.random.default_rng(0)
    return Reconstruction(
        object=(draw.random((12, 20)) + 1j * draw.random((12, 20))).astype(np.complex64),
        coverage=draw.random((12, 20), np.float32),
        origin_px=(3.0, -4.5),
        positions_px=10 * draw.random((6, 2)),
        probe=(draw.random((2, 8, 8)) + 1j * draw.random((2, 8, 8))).astype(np.complex64),
        provenance={"scan": "star.npz"},
        disagreement=draw.random((12, 20), np.float32),
        pixel_size_m=GEOMETRY.object_pixel_m,
    )


@pytest.fixture
def cxi(reconstruction: Reconstruction, tmp_path: Path) -> Path:
    write_cxi(
        tmp_path / "object.cxi",
        reconstruction,
        GEOMETRY,
        positions_px=POSITIONS_PX,
        indexes=np.arange(7) * 2,
        name="star",
        program="ptycho-torch 0",
    )
    return tmp_path / "object.cxi"


@pytest.mark.parity_clause("PRODUCT-02")
def test_object_probe_and_geometry_are_read_as_they_were_written(cxi: Path, reconstruction: Reconstruction) -> None:
    with h5py.File(cxi) as file:
        assert file["cxi_version"][()] == 160
        entry = file[ENTRY]
        image, source, detector = entry["image_1"], entry["instrument_1/source_1"], entry["instrument_1/detector_1"]
        np.testing.assert_array_equal(image["data"][:], reconstruction.object)
        np.testing.assert_array_equal(image["coverage"][:], reconstruction.coverage)
        np.testing.assert_array_equal(image["data_error"][:], reconstruction.disagreement)
        np.testing.assert_array_equal(source["illumination"][:], reconstruction.probe)
        assert image["x_pixel_size"][()] == image["y_pixel_size"][()] == pytest.approx(PIXEL_M)
        assert source["wavelength"][()] == 1e-10
        # E = h·c / λ
        assert source["energy"][()] == entry["instrument_1/beam_1/energy"][()] == pytest.approx(1.98644586e-15)
        assert detector["distance"][()] == 2.0
        assert detector["x_pixel_size"][()] == detector["y_pixel_size"][()] == 5e-5
        assert image["data_space"].asstr()[()] == "real"
        assert "definition" not in entry


@pytest.mark.parity_clause("PRODUCT-02")
def test_positions_and_pixels_have_one_origin(cxi: Path, reconstruction: Reconstruction) -> None:
    """A position lies at the pixel of the object that it lies at in the frame of the scan."""
    with h5py.File(cxi) as file:
        image = file[f"{ENTRY}/image_1"]
        translation = file[f"{ENTRY}/sample_1/geometry_1/translation"]
        assert translation.attrs["units"] == "m"
        np.testing.assert_array_equal(file[f"{ENTRY}/data_1/translation"][:], translation[:])
        np.testing.assert_array_equal(file[f"{ENTRY}/instrument_1/detector_1/translation"][:], translation[:])
        for axis, key in enumerate("xy"):
            column = np.interp(-translation[:, axis], image[key][:], np.arange(len(image[key])), np.nan, np.nan)
            inside = np.isfinite(column)
            assert inside.any()
            expected = POSITIONS_PX[:, axis] - reconstruction.origin_px[axis]
            np.testing.assert_allclose(column[inside], expected[inside], atol=1e-9)


def test_viewers_find_the_image_and_its_axes(cxi: Path) -> None:
    with h5py.File(cxi) as file:
        image = file[file.attrs["default"]][file[ENTRY].attrs["default"]]
        assert image.attrs["NX_class"] == "NXdata"
        assert image[image.attrs["signal"]].shape == tuple(len(image[name]) for name in image.attrs["axes"])


def test_the_importer_takes_positions_from_it(cxi: Path, tmp_path: Path) -> None:
    patterns = tmp_path / "patterns.h5"
    with h5py.File(patterns, "w") as file:
        file["/entry_1/data_1/data"] = np.ones((7, 8, 8), np.uint16)
    wanted = Wanted(positions_file=cxi, given=("wavelength_m", "distance_m", "pixel_m"))
    with open_beamline(patterns, wanted) as scan:
        found = -scan.translation_m / PIXEL_M
    np.testing.assert_allclose(found - found[0], POSITIONS_PX - POSITIONS_PX[0], atol=1e-9)


def test_without_a_geometry_nothing_is_written(reconstruction: Reconstruction, tmp_path: Path) -> None:
    arguments = {"positions_px": POSITIONS_PX, "indexes": np.arange(7), "name": "star", "program": ""}
    with pytest.raises(DataContractError, match="PRODUCT-02"):
        write_cxi(tmp_path / "none.cxi", reconstruction, None, **arguments)
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_there_is_refused(cxi: Path, reconstruction: Reconstruction) -> None:
    with pytest.raises(ConfigError, match=r"object\.cxi"):
        write_cxi(
            cxi, reconstruction, GEOMETRY, positions_px=POSITIONS_PX, indexes=np.arange(7), name="star", program=""
        )
