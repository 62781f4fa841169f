"""Reconstructions as files: what is written is what is read, and the tables of the contract hold."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import h5py
import numpy as np
import pytest

from ptycho_torch.contracts.contract import load_contract
from ptycho_torch.errors import ConfigError, DataContractError
from ptycho_torch.reconstruction.products import (
    Geometry,
    Reconstruction,
    read_reconstruction,
    write_product,
    write_reconstruction,
)

GEOMETRY = Geometry(wavelength_m=1e-10, detector_distance_m=2.0, detector_pixel_m=5e-5, frame_px=8)


@pytest.fixture
def reconstruction() -> Reconstruction:
    draw = np.random.default_rng(0)
    return Reconstruction(
        object=(draw.random((12, 20)) + 1j * draw.random((12, 20))).astype(np.complex64),
        coverage=draw.random((12, 20), np.float32),
        origin_px=(3.0, -4.5),
        positions_px=10 * draw.random((6, 2)),
        probe=(draw.random((2, 8, 8)) + 1j * draw.random((2, 8, 8))).astype(np.complex64),
        provenance={"scan": "star.npz", "settings": {"N": 8}},
        disagreement=draw.random((12, 20), np.float32),
        pixel_size_m=GEOMETRY.object_pixel_m,
    )


@pytest.mark.parametrize("known", [True, False], ids=["all members", "required members alone"])
def test_a_reconstruction_is_read_as_it_was_written(
    reconstruction: Reconstruction, tmp_path: Path, known: bool
) -> None:
    if not known:
        reconstruction = dataclasses.replace(reconstruction, disagreement=None, pixel_size_m=None)
    write_reconstruction(tmp_path / "object.npz", reconstruction)
    again = read_reconstruction(tmp_path / "object.npz")
    for field in dataclasses.fields(Reconstruction):
        np.testing.assert_array_equal(getattr(again, field.name), getattr(reconstruction, field.name), field.name)


def test_a_reconstruction_needs_no_unpickling(reconstruction: Reconstruction, tmp_path: Path) -> None:
    write_reconstruction(tmp_path / "object.npz", reconstruction)
    with np.load(tmp_path / "object.npz", allow_pickle=False) as members:
        assert set(members) == set(load_contract().files["reconstruction"].keys)


WRONG = {
    "object": np.zeros((3, 3), np.float32),
    "coverage": np.zeros((12, 19), np.float32),
    "probe": np.zeros((8, 7), np.complex64),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_member_that_does_not_fit_is_refused_and_nothing_written(
    reconstruction: Reconstruction, tmp_path: Path, name: str
) -> None:
    if name == "object":  # Real numbers are written as complex ones; another shape than coverage's is not.
        reconstruction = dataclasses.replace(reconstruction, object=WRONG[name])
        name = "coverage"
    else:
        reconstruction = dataclasses.replace(reconstruction, **{name: WRONG[name]})
    with pytest.raises(DataContractError, match=f"key '{name}'.*REC-01"):
        write_reconstruction(tmp_path / "object.npz", reconstruction)
    assert not list(tmp_path.iterdir())


def test_a_file_with_a_member_missing_is_refused_by_name(reconstruction: Reconstruction, tmp_path: Path) -> None:
    members = reconstruction.members()
    del members["probe"]
    np.savez(tmp_path / "object.npz", **members)
    with pytest.raises(DataContractError, match="key 'probe': found no such member"):
        read_reconstruction(tmp_path / "object.npz")


@pytest.mark.parametrize("pixel", [0.0, -1e-9, np.inf, np.nan])
def test_a_pixel_without_size_is_refused(reconstruction: Reconstruction, tmp_path: Path, pixel: float) -> None:
    with pytest.raises(DataContractError, match="REC-02"):
        write_reconstruction(tmp_path / "object.npz", dataclasses.replace(reconstruction, pixel_size_m=pixel))


def test_a_file_that_is_there_stays(reconstruction: Reconstruction, tmp_path: Path) -> None:
    (tmp_path / "object.npz").write_text("mine")
    with pytest.raises(ConfigError, match="is there already"):
        write_reconstruction(tmp_path / "object.npz", reconstruction)
    assert (tmp_path / "object.npz").read_text() == "mine"


def test_a_product_has_the_attributes_and_datasets_of_the_contract(
    reconstruction: Reconstruction, tmp_path: Path
) -> None:
    write_product(
        tmp_path / "object.h5",
        reconstruction,
        GEOMETRY,
        positions_px=np.ones((9, 2)),
        indexes=np.arange(9),
        name="star",
        photons=1e5,
        losses=np.array([3.0, 2.0]),
    )
    contract = load_contract().product
    letters = {"M": 9, "modes": 2, "N": 8, "H": 12, "W": 20, "epochs": 2}
    with h5py.File(tmp_path / "object.h5") as product:
        assert set(product.attrs) == {entry["name"] for entry in contract["attributes"]}
        assert set(product) == {entry["name"] for entry in contract["datasets"]}
        for entry in contract["datasets"]:
            shape = tuple(letters[each] if each in letters else int(each) for each in entry["shape"].split())
            assert (product[entry["name"]].shape, product[entry["name"]].dtype) == (shape, entry["dtype"])
        # 12.398 keV is one ångström.
        np.testing.assert_allclose(product.attrs["probe_energy_eV"], 12398.4198, rtol=1e-8)
        np.testing.assert_allclose(product["object"].attrs["pixel_width_m"], 1e-10 * 2 / (8 * 5e-5), rtol=1e-12)


def test_a_product_places_positions_about_the_centre_of_the_object(
    reconstruction: Reconstruction, tmp_path: Path
) -> None:
    """A patch centred on the object's centre is at (0, 0); one that starts at its first pixel is half an object off."""
    middle, corner = (3 + 10, -4.5 + 6), (3.0, -4.5)
    positions = np.array([middle, corner])
    write_product(
        tmp_path / "object.h5", reconstruction, GEOMETRY, positions_px=positions, indexes=np.array([3, 8]), name="star"
    )
    with h5py.File(tmp_path / "object.h5") as product:
        assert product["probe_position_indexes"][:].tolist() == [3, 8]
        pixel = product["object"].attrs["pixel_width_m"]
        np.testing.assert_allclose(product["probe_position_x_m"][:] / pixel, [0, -10], atol=1e-9)
        np.testing.assert_allclose(product["probe_position_y_m"][:] / pixel, [0, -6], atol=1e-9)


def test_a_product_of_unknown_geometry_is_not_made_up(reconstruction: Reconstruction, tmp_path: Path) -> None:
    positions, path = np.ones((9, 2)), tmp_path / "object.h5"
    with pytest.raises(DataContractError, match="unknown geometry"):
        write_product(path, reconstruction, None, positions_px=positions, indexes=np.arange(9), name="star")
    assert not list(tmp_path.iterdir())
