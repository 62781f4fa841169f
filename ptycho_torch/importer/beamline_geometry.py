"""Wavelength, distance, pixels and beam centre in a file of a beamline.

Clause CXI-01 of <doc-ref type="contract">specs/data_contracts.md</doc-ref>.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ptycho_torch.data.preparation import HC_J_M
from ptycho_torch.errors import DataContractError
from ptycho_torch.files.hdf5_files import Dataset
from ptycho_torch.importer.beamline_positions import PositionFinder
from ptycho_torch.importer.beamline_search import OPTIONS
from ptycho_torch.importer.units import Kind

_WAVELENGTHS_M = (1e-14, 1e-5)
_ENERGIES_J = (1e-20, 1e-12)
"""From infrared light to 6 MeV; electronvolts taken for joules, or ångströms for metres, are far outside."""

_SAME = 5e-3
"""How far two statements of the wavelength may lie apart, as a share; both are rounded as a rule."""


class GeometryFinder(PositionFinder):
    """Finds the numbers of the geometry, each of which may be said in several places that have to agree."""

    def _distance_m(self) -> float:
        names = ("distance", "detector_distance")
        return self._one_length("distance", "distance_m", names, f"{self._detector_group}/distance")

    def _pixel_m(self) -> float:
        names = {axis: (f"{axis}_pixel_size", f"pixel_size_{axis}") for axis in "xy"}
        of_basis = None
        if self._detector("basis_vectors") is not None and self._basis is not None:
            of_basis = [float(np.linalg.norm(each)) for each in reversed(self._basis)]
        if of_basis is not None and all(self._detector("|".join(each)) is None for each in names.values()):
            x, y = of_basis
        else:
            x, y = (
                self._one_length("pixel", "pixel_m", names[axis], f"{self._detector_group}/{axis}_pixel_size")
                for axis in "xy"
            )
            if of_basis is not None and not np.allclose(of_basis, [x, y], rtol=_SAME):
                raise self._contradiction("pixel", "pixel_m", "basis_vectors", of_basis[0], f"{names['x'][0]}", x)
        if abs(x - y) > 1e-6 * x:
            raise self._wrong(
                f"x_pixel_size {x:.6g} m and y_pixel_size {y:.6g} m",
                self._detector_group,
                "square pixels",
                "If the pixels are square, give their side: --pixel-m METRES",
            )
        return x

    def _one_length(self, what: str, name: str, names: Sequence[str], where: str) -> float:
        """Return a length of the detector that goes by several names; all that are there must agree."""
        there = [each for each in names if self._detector(each) is not None]
        values = [self._length(what, name, self._detector(each), where) for each in there or names[:1]]
        for other, value in zip(there[1:], values[1:], strict=True):
            if abs(value - values[0]) > _SAME * values[0]:
                raise self._contradiction(what, name, other, value, there[0], values[0])
        return values[0]

    def _contradiction(
        self, what: str, name: str, key: str, value: float, other_key: str, other: float
    ) -> DataContractError:
        option = OPTIONS[name]
        return self._wrong(
            f"{value:.6g} m, and {other:.6g} m in {other_key}",
            f"{self._detector_group}/{key}",
            f"one {what}",
            f"Say which is right: `{option} {other:.9g}` or `{option} {value:.9g}`",
        )

    def _wavelength_m(self) -> float:
        """Return λ, or h·c / E of the energy of a photon; all that the file says of them must agree."""
        lengths = self._matching(
            r"/instrument[^/]*/(beam|source|monochromator)[^/]*/(incident_)?wavelength",
            r"/sample[^/]*/beam[^/]*/(incident_)?wavelength",
            r"/instrument[^/]*/detector[^/]*/(detectorSpecific/)?(incident_|photon_)?wavelength",
        )
        energies = self._matching(
            r"/instrument[^/]*/(beam|monochromator)[^/]*/(incident_(beam_)?|photon_)?energy",
            r"/instrument[^/]*/detector[^/]*/detectorSpecific/photon_energy",
            r"/sample[^/]*/beam[^/]*/(incident_)?energy",
            r"/instrument[^/]*/source[^/]*/energy",
        )
        found: list[tuple[str, float]] = []
        doubts: list[DataContractError] = []
        for dataset in dict.fromkeys(lengths + energies):
            kind: Kind = "length" if dataset in lengths else "energy"
            value = self._one(dataset, OPTIONS["wavelength_m"]) * self._factor(
                dataset, kind, None, "Give it in metres: --wavelength-m METRES"
            )
            if kind == "energy" and "/source" in dataset.path and dataset.units and value > _ENERGIES_J[1]:
                self._notices.append(
                    f"{dataset.path} is the energy of the machine, {value:.4g} J, and not of the photons"
                )
                continue
            low, high = _WAVELENGTHS_M if kind == "length" else _ENERGIES_J
            if not low < value < high:
                doubts.append(self._no_photon(dataset, kind, value))
                continue
            found.append((dataset.path, value if kind == "length" else HC_J_M / value))
        if not found and doubts:
            raise doubts[0]
        if not found:
            raise self._absent(
                "nothing there",
                f"{self._entry or '/entry_1'}/instrument_1/source_1/wavelength or energy",
                "wavelength, one number above 0",
                f"Give it in metres: {OPTIONS['wavelength_m']} METRES",
            )
        self._notices += [f"{doubt.key} is left out: {doubt.found}" for doubt in doubts]
        (first, wavelength_m), *others = found
        for path, _ in found:
            self._say("wavelength", self._tree.datasets[path])
        for path, other in others:
            if abs(other - wavelength_m) > _SAME * wavelength_m:
                raise self._wrong(
                    f"a wavelength of {other:.6g} m, and {wavelength_m:.6g} m in {first}",
                    path,
                    "one wavelength",
                    f"Say which is right: `--wavelength-m {wavelength_m:.9g}` or `--wavelength-m {other:.9g}`",
                )
        return wavelength_m

    def _no_photon(self, dataset: Dataset, kind: Kind, value: float) -> DataContractError:
        wanted = "the energy of one photon in joule" if kind == "energy" else "a wavelength in metres"
        remedy = (
            "If it is in electronvolts, give the wavelength: --wavelength-m (1.23984e-6 / energy in eV)."
            if kind == "energy"
            else "Give it in metres: --wavelength-m METRES"
        )
        return self._wrong(f"{value:.6g}{'' if dataset.units else ' without a unit'}", dataset.path, wanted, remedy)

    def _beam_centre(self, rows: int, columns: int) -> tuple[float, float] | None:
        """Return (row, column) where the direct beam falls, as the file says."""
        both = [self._detector(f"beam_cent(er|re)_{axis}") for axis in "yx"]
        centre = None
        if None not in both:
            centre = [self._beam_centre_px(each) for each in both if each is not None]
        elif (corner := self._detector("corner_position")) is not None and self._basis is not None:
            position = np.asarray(self._number_array(self._tree, corner, None), np.float64).reshape(-1)
            position = position * self._factor(corner, "length")
            if len(position) == 3:
                centre = [-float(position @ each) / float(each @ each) for each in self._basis]
        if centre is None or not all(map(math.isfinite, centre)) or centre == [0, 0]:
            return None
        return centre[0], centre[1]

    def _beam_centre_px(self, dataset: Dataset) -> float:
        value = self._one(dataset, "--centre ROW,COLUMN", least=-math.inf)
        if not dataset.units or dataset.units.lower().startswith(("pix", "px")):
            return value
        pixel = self._detector(f"{dataset.path[-1]}_pixel_size")
        if pixel is None:
            return math.nan
        side = self._length("pixel", "pixel_m", pixel, pixel.path)
        return value * self._factor(dataset, "length") / side
