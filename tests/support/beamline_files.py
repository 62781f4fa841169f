"""A known scan, and the files in which CXI, NeXus, Eiger, MATLAB and ptychodus would keep it."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ptycho_torch.commands import convert_scan as command_convert

WAVELENGTH_M, DISTANCE_M, PIXEL_M = 1.5e-10, 2.0, 75e-6
ENERGY_J = 6.62607015e-34 * 299792458.0 / WAVELENGTH_M
ELECTRONVOLT_J = 1.602176634e-19
E = "/entry_1"
DATA, TRANSLATION = f"{E}/data_1/data", f"{E}/sample_1/geometry_1/translation"
DETECTOR, SOURCE = f"{E}/instrument_1/detector_1", f"{E}/instrument_1/source_1"
GEOMETRY = ("--wavelength-m", str(WAVELENGTH_M), "--distance-m", str(DISTANCE_M), "--pixel-m", str(PIXEL_M))
"""The geometry as options, for files that do not have it."""


@dataclasses.dataclass(frozen=True)
class Known:
    """A scan that is known.

    Attributes:
        counts: (M, N, N) whole numbers.
        x: (M,) columns of the probe on the object, in object pixels.
        y: (M,) rows.
        probe: (3, N, N) complex64.
    """

    counts: np.ndarray
    x: np.ndarray
    y: np.ndarray
    probe: np.ndarray

    @property
    def N(self) -> int:
        return self.counts.shape[1]

    @property
    def object_pixel_m(self) -> float:
        """λ·z / (N·p)."""
        return WAVELENGTH_M * DISTANCE_M / (self.N * PIXEL_M)

    @property
    def translation_m(self) -> np.ndarray:
        """(M, 3) of the sample, which goes where the probe on it comes from."""
        return -self.object_pixel_m * np.stack([self.x, self.y, 0 * self.x], axis=1)


def known_scan(rows: int = 3, columns: int = 4, N: int = 16, seed: int = 0) -> Known:
    """Draw a scan of bright centred patterns that are unlike each other in every direction."""
    rng = np.random.default_rng(seed)
    i, j = np.indices((N, N)) - N // 2
    light = 400 * np.exp(-((i - 1) ** 2 / 6 + j**2 / 10)) + 3 + 2 * (j > 0) + (i > 2)
    y, x = (each.ravel().astype(float) for each in np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"))
    probe = np.exp(-((i + 1) ** 2 + (j - 1) ** 2) / 8) * np.exp(0.1j * (i**2 + 2 * j))
    modes = np.stack([probe, 0.3 * np.roll(probe, 2, 0), 0.1 * np.roll(probe, 1, 1)]).astype(np.complex64)
    M = rows * columns
    return Known(rng.poisson(light, (M, N, N)), 3 * x + rng.random(M), 4 * y + rng.random(M), modes)


@dataclasses.dataclass(frozen=True)
class With:
    """A dataset with attributes."""

    data: Any
    attributes: Mapping[str, Any]


def units(data: Any, unit: str) -> With:
    """Return a dataset that states its unit."""
    return With(data, {"units": unit})


Content = dict[str, Any]


def cxi(known: Known) -> Content:
    """Return the datasets of a CXI file."""
    return {
        f"{DETECTOR}/data": known.counts.astype(np.uint32),
        DATA: soft(f"{DETECTOR}/data"),
        TRANSLATION: known.translation_m,
        f"{DETECTOR}/distance": DISTANCE_M,
        f"{DETECTOR}/x_pixel_size": PIXEL_M,
        f"{DETECTOR}/y_pixel_size": PIXEL_M,
        f"{SOURCE}/wavelength": WAVELENGTH_M,
        f"{SOURCE}/illumination": known.probe,
    }


def soft(path: str) -> Any:
    """Return a link inside the file."""
    import h5py

    return h5py.SoftLink(path)


def write_hdf5(
    path: Path, content: Content, *, classes: Mapping[str, str] | None = None, user_block: int = 0, **options: Any
) -> Path:
    """Write datasets, links and NeXus classes; ``options`` go to the datasets called data."""
    import h5py

    with h5py.File(path, "w", userblock_size=user_block) as file:
        for name, value in content.items():
            if isinstance(value, h5py.SoftLink | h5py.ExternalLink):
                file[name] = value
                continue
            data = value.data if isinstance(value, With) else value
            dataset = file.create_dataset(name, data=data, **(options if name.endswith("/data") else {}))
            for key, attribute in (value.attributes if isinstance(value, With) else {}).items():
                dataset.attrs[key] = attribute
        for name, kind in (classes or {}).items():
            file.require_group(name).attrs["NX_class"] = kind
    return path


def convert(source: Path, *arguments: str) -> dict[str, np.ndarray]:
    """Import a file beside it and return what came out."""
    target = source.parent / "imported.npz"
    parser = argparse.ArgumentParser()
    command_convert.add_arguments(parser)
    assert command_convert.run(parser.parse_args([str(source), "-o", str(target), "--overwrite", *arguments])) == 0
    with np.load(target, allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


def assert_is(
    found: Mapping[str, np.ndarray], known: Known, *, bad: np.ndarray | None = None, dx: float = 1e-6
) -> None:
    """Compare an import with the scan, to float32; positions have another origin."""
    counts = known.counts.astype(np.float64)
    if bad is not None:
        np.testing.assert_array_equal(found["bad_pixels"], bad)
        counts = counts * ~bad
    np.testing.assert_allclose(found["diff3d"], np.sqrt(counts), rtol=2e-7, atol=1e-6)
    for key, right in (("xcoords", known.x), ("ycoords", known.y)):
        np.testing.assert_allclose(found[key] - found[key].min(), right - right.min(), atol=dx)
