"""Reconstructions as CXI files, with the classes of NeXus: for viewers and for programs that read no ptychodus product.

Clause PRODUCT-02 of <doc-ref type="contract">specs/data_contracts.md</doc-ref>. CXI 1.6 (Maia, Nature Methods 9, 854,
2012) goes by names, and NXcxi_ptycho puts classes to them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ptycho_torch.contracts.contract import violation
from ptycho_torch.data.preparation import HC_J_M
from ptycho_torch.files.npz_writer import replacing
from ptycho_torch.reconstruction.products import Geometry, Reconstruction, positions_m

if TYPE_CHECKING:
    import h5py

CXI_VERSION = 160


def write_cxi(
    path: Path,
    reconstruction: Reconstruction,
    geometry: Geometry | None,
    *,
    positions_px: np.ndarray,
    indexes: np.ndarray,
    name: str,
    program: str,
    overwrite: bool = False,
) -> None:
    """Write object, probe, geometry and positions as CXI, in one rename [clause PRODUCT-02].

    The origin of all metres is the centre of the object, x with columns and y with rows. CXI states translations of the
    sample, which are minus the positions of the probe on it.

    Args:
        path: the file.
        reconstruction: what is written.
        geometry: of the scan; without it pixels have no size in metres.
        positions_px: (M, 2) positions (x, y) of all patterns of the scan, in the frame of the reconstruction.
        indexes: (M,) number of each pattern in its file.
        name: name of the scan.
        program: what made it.
        overwrite: whether a file may be there.

    Raises:
        DataContractError: PRODUCT-02, the geometry is unknown.
        ConfigError: the file is there and may not be overwritten.
    """
    if geometry is None:
        raise violation("PRODUCT-02", "a scan of unknown geometry", path=path)
    import h5py

    with replacing(path, overwrite=overwrite) as file, h5py.File(file, "w") as cxi:
        cxi["cxi_version"] = CXI_VERSION
        cxi.attrs["default"] = "entry_1"
        entry = _group(cxi, "entry_1", "NXentry")
        entry.attrs["default"] = "image_1"
        _text(entry, "title", name)
        _text(entry, "program_name", program)
        _instrument(entry, reconstruction, geometry)
        _positions(entry, -positions_m(reconstruction, geometry, positions_px), indexes)
        _image(entry, reconstruction, geometry.object_pixel_m)
        process = _group(entry, "image_1/process_1", "NXprocess")
        _text(process, "program", program)
        _text(process, "configuration", json.dumps(reconstruction.provenance, sort_keys=True))


def _instrument(entry: h5py.Group, reconstruction: Reconstruction, geometry: Geometry) -> None:
    instrument = _group(entry, "instrument_1", "NXinstrument")
    source, beam = _group(instrument, "source_1", "NXsource"), _group(instrument, "beam_1", "NXbeam")
    energy_j = HC_J_M / geometry.wavelength_m
    # CXI has the energy of photons at the source, NeXus at the beam.
    for group, key in ((source, "energy"), (beam, "energy"), (beam, "incident_beam_energy")):
        _number(group, key, energy_j, "J")
    for group, key in ((source, "wavelength"), (beam, "incident_wavelength")):
        _number(group, key, geometry.wavelength_m, "m")
    probe = np.asarray(reconstruction.probe, np.complex64)
    source["illumination"] = probe.reshape(-1, *probe.shape[-2:])  # (modes, N, N)
    detector = _group(instrument, "detector_1", "NXdetector")
    for key, metres in (
        ("distance", geometry.detector_distance_m),
        ("x_pixel_size", geometry.detector_pixel_m),
        ("y_pixel_size", geometry.detector_pixel_m),
    ):
        _number(detector, key, metres, "m")


def _positions(entry: h5py.Group, translation_m: np.ndarray, indexes: np.ndarray) -> None:
    """Write translations (M, 3) once, and links to them where CXI and NXcxi_ptycho look."""
    import h5py

    sample = _group(entry, "sample_1", "NXsample")
    geometry = _group(sample, "geometry_1", "NXcollection")
    geometry["translation"] = np.pad(translation_m, ((0, 0), (0, 1)))
    geometry["translation"].attrs["units"] = "m"
    for folder in (_group(entry, "data_1", "NXcollection"), entry["instrument_1/detector_1"]):
        folder["translation"] = h5py.SoftLink(geometry["translation"].name)
    entry["data_1/pattern_indexes"] = np.asarray(indexes, np.int64)


def _image(entry: h5py.Group, reconstruction: Reconstruction, pixel_m: float) -> None:
    image = _group(entry, "image_1", "NXdata")
    image.attrs["signal"], image.attrs["axes"] = "data", ["y", "x"]
    height, width = reconstruction.object.shape
    image.create_dataset("data", data=np.asarray(reconstruction.object, np.complex64), compression="gzip")
    _text(image, "data_space", "real")
    _text(image, "data_type", "transmission")
    image["is_fft_shifted"] = 0
    image["image_size"] = np.array([width * pixel_m, height * pixel_m, 0.0])
    for key, length in (("x", width), ("y", height)):
        _number(image, key, (np.arange(length) - length / 2) * pixel_m, "m")
        _number(image, f"{key}_pixel_size", pixel_m, "m")
    image.create_dataset("coverage", data=np.asarray(reconstruction.coverage, np.float32), compression="gzip")
    if reconstruction.disagreement is not None:
        disagreement = np.asarray(reconstruction.disagreement, np.float32)
        image.create_dataset("data_error", data=disagreement, compression="gzip")


def _group(parent: h5py.Group, name: str, nexus_class: str) -> h5py.Group:
    group = parent.create_group(name)
    group.attrs["NX_class"] = nexus_class
    return group


def _text(group: h5py.Group, name: str, text: str) -> None:
    """Write text of a fixed length: one of any length is read while it is written, and the file is open to write."""
    import h5py

    encoded = text.encode()
    group.create_dataset(name, data=encoded, dtype=h5py.string_dtype("utf-8", max(len(encoded), 1)))


def _number(group: h5py.Group, name: str, value: float | np.ndarray, units: str) -> None:
    group[name] = np.asarray(value, np.float64)
    group[name].attrs["units"] = units
