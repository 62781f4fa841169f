"""Reconstructions as files: an NPZ of ours, and the HDF5 product that other ptychography programs read.

Clauses REC-01, REC-02 and PRODUCT-01 of <doc-ref type="contract">specs/data_contracts.md</doc-ref>.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ptycho_torch.contracts.contract import load_contract, shape_fits, violation
from ptycho_torch.data.preparation import ELECTRONVOLT_J, HC_J_M, object_pixel_m
from ptycho_torch.files.npz import NpzFile
from ptycho_torch.files.npz_writer import NpzWriter, replacing

_CONSTANT = 1e-6
"""An object that deviates by less than this part of its mean is constant: complex64 rounds to 1e-7."""


@dataclasses.dataclass(frozen=True)
class Geometry:
    """What turns pixels into metres.

    Attributes:
        wavelength_m: λ.
        detector_distance_m: z.
        detector_pixel_m: p.
        frame_px: N of the detector frames.
    """

    wavelength_m: float
    detector_distance_m: float
    detector_pixel_m: float
    frame_px: int

    @property
    def object_pixel_m(self) -> float:
        """λ·z / (N·p), side of an object pixel [clause REC-02]."""
        return object_pixel_m(self.wavelength_m, self.detector_distance_m, self.detector_pixel_m, self.frame_px)


@dataclasses.dataclass(frozen=True)
class Reconstruction:
    """One whole object in its own frame [clause REC-01].

    Attributes:
        object: (H, W) complex64.
        coverage: (H, W) sum of the weights of all patches at each pixel; 0 where the object is unknown and 0.
        origin_px: (x, y) of object[0, 0] in the frame of the scan's positions.
        positions_px: (n, 2) positions (x, y) of the patches that were stitched.
        probe: (N, N) or (modes, N, N) complex64.
        provenance: versions, settings, digest of the checkpoint, name of the scan.
        disagreement: (H, W) weighted RMS deviation of overlapping patches from their mean, or None.
        pixel_size_m: side of an object pixel, or None where the geometry is unknown.
    """

    object: np.ndarray
    coverage: np.ndarray
    origin_px: tuple[float, float]
    positions_px: np.ndarray
    probe: np.ndarray
    provenance: Mapping[str, Any]
    disagreement: np.ndarray | None = None
    pixel_size_m: float | None = None

    @property
    def contrast(self) -> float:
        """RMS deviation of the object from its mean, weighted by the coverage: √(Σ w |o − ō|² / Σ w)."""
        weight, values = self._covered()
        total = weight.sum() or 1.0
        mean = (weight * values).sum() / total
        return float(np.sqrt((weight * np.square(np.abs(values - mean))).sum() / total))

    @property
    def mean_modulus(self) -> float:
        """Modulus of the mean object, weighted by the coverage: |Σ w o / Σ w|."""
        weight, values = self._covered()
        return float(np.abs((weight * values).sum()) / (weight.sum() or 1.0))

    @property
    def relative_disagreement(self) -> float:
        """RMS disagreement, weighted by the coverage, over the contrast.

        A flat object has little of the first and less of the second. NaN where the disagreement was not computed, or
        the object is constant to the precision of its numbers.
        """
        contrast = self.contrast
        if self.disagreement is None or not contrast > _CONSTANT * self.mean_modulus:
            return math.nan
        weight = np.asarray(self.coverage, np.float64)
        spread = np.asarray(self.disagreement, np.float64)
        return float(np.sqrt((weight * np.square(spread)).sum() / weight.sum())) / contrast

    def _covered(self) -> tuple[np.ndarray, np.ndarray]:
        weight = np.asarray(self.coverage, np.float64)
        return weight, np.where(weight > 0, np.asarray(self.object, np.complex128), 0)

    def members(self) -> dict[str, np.ndarray]:
        """Return the members of the NPZ file."""
        members: dict[str, np.ndarray] = {
            "object": np.asarray(self.object, np.complex64),
            "coverage": np.asarray(self.coverage, np.float32),
            "origin_px": np.array(self.origin_px, np.float64),
            "xcoords": np.ascontiguousarray(self.positions_px[:, 0], np.float64),
            "ycoords": np.ascontiguousarray(self.positions_px[:, 1], np.float64),
            "probe": np.asarray(self.probe, np.complex64),
            "provenance": np.array(json.dumps(self.provenance, sort_keys=True)),
        }
        if self.disagreement is not None:
            members["disagreement"] = np.asarray(self.disagreement, np.float32)
        if self.pixel_size_m is not None:
            members["pixel_size_m"] = np.array(self.pixel_size_m)
        return members


def write_reconstruction(path: Path, reconstruction: Reconstruction, *, overwrite: bool = False) -> None:
    """Write a reconstruction as NPZ, in one rename.

    Raises:
        DataContractError: REC-01 or REC-02, before anything is written.
        ConfigError: the file is there and may not be overwritten.
    """
    members = reconstruction.members()
    _check(path, {key: (array.shape, array.dtype) for key, array in members.items()})
    _check_pixel(path, reconstruction.pixel_size_m)
    with replacing(path, overwrite=overwrite) as file, NpzWriter(file, compress=True) as npz:
        for key, array in members.items():
            npz.array(key, array)


def read_reconstruction(path: Path) -> Reconstruction:
    """Read a reconstruction.

    Raises:
        DataContractError: NPZ-…, REC-01 or REC-02.
    """
    npz, keys = NpzFile(path), load_contract().files["reconstruction"].keys
    headers = {key: npz.header(key) for key in npz.keys if key in keys}
    _check(path, {key: (header.shape, header.dtype) for key, header in headers.items()})
    members = {key: npz.read(key) for key in headers}
    try:
        provenance = json.loads(str(members["provenance"]))
    except (ValueError, RecursionError) as err:
        raise violation("REC-01", f"no JSON ({err})", path=path, key="provenance") from err
    pixel = float(members["pixel_size_m"]) if "pixel_size_m" in members else None
    _check_pixel(path, pixel)
    x, y = (float(number) for number in members["origin_px"])
    return Reconstruction(
        object=members["object"],
        coverage=members["coverage"],
        origin_px=(x, y),
        positions_px=np.stack([members["xcoords"], members["ycoords"]], axis=1),
        probe=members["probe"],
        provenance=provenance,
        disagreement=members.get("disagreement"),
        pixel_size_m=pixel,
    )


def _check(path: Path, found: Mapping[str, tuple[tuple[int, ...], np.dtype]]) -> None:
    """Hold shapes and dtypes against the contract's table; a letter has one length in the whole file."""
    keys = load_contract().files["reconstruction"].keys
    letters: dict[str, int] = {}
    for name, key in keys.items():
        if name not in found:
            if key.required:
                raise violation(key.clause, f"no such member; present: {', '.join(found)}", path=path, key=name)
            continue
        shape, dtype = found[name]
        choices = [choice for choice in key.shapes if shape_fits(choice, shape, letters)]
        if not choices or dtype.kind not in key.kinds:
            expected = " or ".join(f"({', '.join(choice.split())})" for choice in key.shapes)
            raise violation(
                key.clause, f"shape {shape} of {dtype}", path=path, key=name, expected=f"{expected}, as in the table"
            )
        letters |= {
            letter: length for letter, length in zip(choices[0].split(), shape, strict=True) if not letter.isdigit()
        }


def _check_pixel(path: Path, pixel_size_m: float | None) -> None:
    if pixel_size_m is not None and not 0 < pixel_size_m < np.inf:
        raise violation("REC-02", f"{pixel_size_m}", path=path, key="pixel_size_m")


def positions_m(reconstruction: Reconstruction, geometry: Geometry, positions_px: np.ndarray) -> np.ndarray:
    """Return (M, 2) positions in metres relative to the centre of the object: (x − origin_x − W/2) · pixel."""
    height, width = reconstruction.object.shape
    centre_px = np.array(reconstruction.origin_px) + np.array([width, height]) / 2
    return np.asarray((np.asarray(positions_px, np.float64) - centre_px) * geometry.object_pixel_m)


def write_product(
    path: Path,
    reconstruction: Reconstruction,
    geometry: Geometry | None,
    *,
    positions_px: np.ndarray,
    indexes: np.ndarray,
    name: str,
    comments: str = "",
    exposure_time_s: float = 0.0,
    photons: float | None = None,
    losses: np.ndarray | None = None,
    overwrite: bool = False,
) -> None:
    """Write the HDF5 product of ptychodus, in one rename [clause PRODUCT-01].

    A position is x_m = (x − origin_x − W/2) · pixel: relative to the centre of the object, which lies at (0, 0). There
    is one for each pattern, whatever groups were made of the patterns: other programs join positions and patterns by
    the index.

    Args:
        path: the file.
        reconstruction: what is written.
        geometry: of the scan; without it pixels have no size in metres.
        positions_px: (M, 2) positions (x, y) of all patterns of the scan, in the frame of the reconstruction.
        indexes: (M,) number of each pattern in its file.
        name: name of the scan.
        comments: what made it.
        exposure_time_s: of one pattern; 0 where unknown.
        photons: mean counts of a pattern, or None.
        losses: (epochs,) training loss, or None.
        overwrite: whether a file may be there.

    Raises:
        DataContractError: PRODUCT-01, the geometry is unknown.
        ConfigError: the file is there and may not be overwritten.
    """
    if geometry is None:
        raise violation("PRODUCT-01", "a scan of unknown geometry", path=path)
    import h5py

    pixel = geometry.object_pixel_m
    _check_pixel(path, pixel)
    places_m = positions_m(reconstruction, geometry, positions_px)
    losses = np.empty(0) if losses is None else np.asarray(losses, np.float64)
    probe = np.asarray(reconstruction.probe, np.complex64)
    with replacing(path, overwrite=overwrite) as file, h5py.File(file, "w") as product:
        product.attrs["name"] = name
        product.attrs["comments"] = comments
        product.attrs["detector_object_distance_m"] = float(geometry.detector_distance_m)
        product.attrs["probe_energy_eV"] = HC_J_M / ELECTRONVOLT_J / geometry.wavelength_m
        product.attrs["exposure_time_s"] = float(exposure_time_s)
        if photons is not None:
            product.attrs["probe_photon_count"] = float(photons)
        product.attrs["format_id"] = "ptychodus.product.hdf5"
        product.attrs["format_version"] = "1.0"
        product["probe_position_indexes"] = np.asarray(indexes, np.int64)
        product["probe_position_x_m"], product["probe_position_y_m"] = places_m[:, 0], places_m[:, 1]
        product["probe"] = probe.reshape(-1, *probe.shape[-2:])
        product["object"] = np.asarray(reconstruction.object, np.complex64)[None]
        for dataset in ("probe", "object"):
            product[dataset].attrs["pixel_width_m"] = product[dataset].attrs["pixel_height_m"] = pixel
        product["object"].attrs["center_x_m"] = product["object"].attrs["center_y_m"] = 0.0
        product["object_layer_spacing_m"] = np.empty(0)
        product["loss_values"] = losses
        product["loss_epochs"] = np.arange(len(losses), dtype=np.int64)
