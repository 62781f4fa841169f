"""HDF5 files of beamlines as scans: CXI, NeXus (NXcxi_ptycho), masters of Eiger detectors, MATLAB 7.3, and others.

Every dataset that bears on the result is used, or a notice names it and says how to use it: where patterns, positions,
geometry, mask, dark frames and probe lie, in which units, along which axes, and in which frame of coordinates.

Clause CXI-01 of <doc-ref type="contract">specs/data_contracts.md</doc-ref>. CXI has SI units where a dataset does not
state its own (Maia, Nature Methods 9, 854, 2012).
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import re
import shlex
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from ptycho_torch.contracts.contract import violation
from ptycho_torch.errors import DataContractError, IncompleteFileError
from ptycho_torch.files.hdf5_files import Dataset, open_hdf5
from ptycho_torch.files.npz import listed
from ptycho_torch.files.remedies import adding
from ptycho_torch.importer.beamline_geometry import GeometryFinder
from ptycho_torch.importer.beamline_images import DARK, ImageFinder
from ptycho_torch.importer.beamline_search import OPTIONS, AbsentError, Wanted, is_absent


@dataclasses.dataclass(frozen=True)
class BeamlineScan:
    """What a file says of a scan, checked.

    Attributes:
        key: path of the patterns.
        shape: of the patterns, as they lie in the file; a raster is one axis.
        raster: (rows, columns) of a raster, or None.
        axes: of the patterns: the letters of ``Wanted.axes``.
        dtype: of the patterns.
        translation_m: (K, 2) float64, translation of the sample along columns and rows of the detector, in metres; not
            finite where the file has no number.
        states_units: whether the file or the user states their unit.
        numbers: ``wavelength_m``, ``distance_m``, ``pixel_m``, each where it was asked for.
        bad_pixels: (H, W) bool, or None.
        dark: (H, W) float32 mean of the dark frames, or None.
        white: (H, W) float32 flat field, or None.
        limits: smallest and largest value that is a measurement, as the file says; infinite where it does not.
        bits: of a pixel's value, or None where the file does not say.
        beam_centre: (row, column) of the direct beam, or None.
        probe: (modes, H, W) or (H, W) complex64, or None.
        files: all that the file and the one with the positions link to.
        notices: what a user should know.
        blocks: start a pass over the content of the patterns, in C order, as uint8 blocks of as many bytes as is
            asked for; the memory of a block is used again for the third one after it.
    """

    key: str
    shape: tuple[int, ...]
    raster: tuple[int, int] | None
    axes: str
    dtype: np.dtype
    translation_m: np.ndarray
    states_units: bool
    numbers: Mapping[str, float]
    bad_pixels: np.ndarray | None
    dark: np.ndarray | None
    white: np.ndarray | None
    limits: tuple[float, float]
    bits: int | None
    beam_centre: tuple[float, float] | None
    probe: np.ndarray | None
    files: Collection[Path]
    notices: tuple[str, ...]
    blocks: Callable[[int], Iterator[np.ndarray]]


@contextlib.contextmanager
def open_beamline(path: Path, wanted: Wanted) -> Iterator[BeamlineScan]:
    """Open a scan in an HDF5 file; the processes that read it end with the block.

    Raises:
        DataContractError: CXI-01 something is missing, of the wrong form, or contradicts itself; CXI-02 damaged or
            hostile content.
        PtychoError: h5py, or a package of the extra ``beamline`` that is needed, is not installed.
    """
    with contextlib.ExitStack() as stack:
        tree = stack.enter_context(open_hdf5(path))
        places = tree if wanted.positions_file is None else stack.enter_context(open_hdf5(wanted.positions_file))
        yield Finder(tree, places, wanted).scan()


class Finder(GeometryFinder, ImageFinder):
    """Finds all that a scan needs."""

    def scan(self) -> BeamlineScan:
        """Return what is there.

        Raises:
            DataContractError: CXI-01 or CXI-02.
        """
        self._refuse_incomplete()
        patterns = self._patterns()
        self._say("patterns", patterns.datasets[0])
        count, rows, columns = patterns.frame
        self._refuse_rescaled(patterns.datasets[0])
        numbers = {name: getattr(self, f"_{name}")() for name in OPTIONS if name not in self._wanted.given}
        translation, states_units = self._translation(patterns)
        _, middle, last = patterns.shape if len(patterns.shape) == 3 else (0, 0, 0)
        if self._wanted.axes is None and last == len(translation) not in (count, middle):
            raise self._wrong(
                f"shape {patterns.shape} for {len(translation)} positions: patterns along the last axis",
                patterns.key,
                "patterns along the first axis",
                "Turn it: `--axes hwm`",
            )
        white, dark, bad_pixels = self._white(rows, columns), self._dark(rows, columns), self._mask(rows, columns)
        if dark is not None and (unknown := np.isnan(dark)).any():
            bad_pixels = unknown if bad_pixels is None else bad_pixels | unknown
            dark[unknown] = 0
        low = self._stated("underload_value", least=-math.inf)
        high = self._stated("saturation_value", "; if pixels run over: --saturated VALUE")
        limits = (-math.inf if low is None else low, math.inf if high is None else high)
        scan = BeamlineScan(
            key=patterns.key,
            shape=patterns.shape,
            raster=patterns.raster,
            axes=patterns.axes,
            dtype=patterns.datasets[0].dtype or np.dtype(np.float32),
            translation_m=translation,
            states_units=states_units,
            numbers=numbers,
            bad_pixels=bad_pixels,
            dark=dark,
            white=white,
            limits=limits,
            bits=self._bits(),
            beam_centre=self._beam_centre(rows, columns),
            probe=self._probe(rows, columns),
            files={*self._tree.files, *self._places.files},
            notices=(),
            blocks=functools.partial(self._tree.blocks, patterns.datasets),
        )
        self._say_what_is_left()
        read = ", ".join(f"{what} from {' and '.join(names)}" for what, names in self._read.items())
        self._notices.insert(0, f"read {read}")
        return dataclasses.replace(scan, notices=tuple(dict.fromkeys((*self._tree.notices, *self._notices))))

    def _refuse_incomplete(self) -> None:
        """Raise where several things are missing, with all options that say them; one alone is told where it is read.

        Raises:
            IncompleteFileError: CXI-01.
        """
        missing: dict[str, str] = {}
        noticed = len(self._notices)
        stack: Sequence[Dataset] = ()
        try:
            stack = self._pattern_datasets()
        except AbsentError:
            stack = sorted(self._stacks(), key=lambda each: math.prod(each.shape))[-1:]
            missing["patterns"] = f"--data-path {shlex.quote(stack[0].path) if stack else 'PATH'}"
        except DataContractError:
            return
        if not self._wanted.positions_paths and is_absent(lambda: self._position_datasets(self._places)):
            missing["positions"] = self._naming_positions(stack[0].shape if stack else ())
        for name, option in OPTIONS.items():
            if name not in self._wanted.given and is_absent(getattr(self, f"_{name}")):
                missing[name.removesuffix("_m")] = f"{option} METRES"
        # All of it is looked for again, and noted, when it is read.
        self._used.clear()
        self._read.clear()
        for name in ("_basis", "_detector_group", "_usual_axes"):
            self.__dict__.pop(name, None)
        del self._notices[noticed:]
        if len(missing) < 2:
            return
        if "patterns" not in missing:
            self._patterns()  # Whether they can be read at all comes first.
        arrays = [f"{each.path} {each.shape}" for each in self._tree.datasets.values() if math.prod(each.shape) > 1]
        options = " ".join(missing.values())
        elsewhere = "; positions in another file: --positions-file FILE" if "positions" in missing else ""
        error = violation(
            "CXI-01", f"no {', no '.join(missing)} where files of beamlines have them; arrays there: {listed(arrays)}",
            path=self._tree.path,
            remedy=f"Say what they are: {options}{elsewhere}",
        )  # fmt: skip
        incomplete = IncompleteFileError(
            str(error), path=error.path, clause=error.clause, found=error.found, expected=error.expected,
            remedy=error.remedy,
        )  # fmt: skip
        incomplete.options = options
        raise incomplete

    def _naming_positions(self, shape: tuple[int, ...]) -> str:
        """Return the options that name the positions of a stack of patterns: arrays of its length, where they are."""
        count = shape[0] if shape else 0
        arrays = [
            each
            for each in self._places.datasets.values()
            if each.dtype is not None and each.dtype.kind in "fiu" and count > 1
        ]
        whole = [each for each in arrays if each.shape in ((count, 2), (count, 3), (2, count), (3, count))]
        single = sorted((each for each in arrays if each.shape == (count,)), key=lambda each: each.path)
        chosen = whole[:1] or (single if len(single) == 2 else [])
        paths = " ".join(shlex.quote(each.path) for each in chosen) or "X Y"
        stated = self._wanted.positions_units is not None or (bool(chosen) and all(each.units for each in chosen))
        return f"--positions-path {paths}" + ("" if stated else " --positions-units UNIT")

    def _bits(self) -> int | None:
        bits = self._stated("bit_depth_image")
        return int(bits) if bits is not None and 1 <= bits <= 64 else None

    def _refuse_rescaled(self, dataset: Dataset) -> None:
        """Raise where NXdata says that counts are the stored numbers plus something; say where it is times something.

        Raises:
            DataContractError: CXI-01.
        """
        folders = (each.path.rsplit("/", 1) for each in self._tree.datasets.values() if each.mark == dataset.mark)
        for folder, name in folders:
            for what, neutral in (("scaling_factor", 1.0), ("offset", 0.0)):
                for path in (f"{folder}/{name}_{what}", f"{folder}/{what}"):
                    stated = self._tree.datasets.get(path)
                    if stated is None or math.prod(stated.shape) != 1:
                        continue
                    value = self._one(stated, "", least=-math.inf)
                    if value == neutral:
                        continue
                    if what == "offset":
                        raise self._wrong(
                            f"{value:.6g}: counts are the stored numbers plus that",
                            path,
                            "counts as they were measured",
                            "Add it to the numbers, and take it out of the file (h5py, h5edit).",
                        )
                    self._notices.append(
                        f"{path}: counts are the stored numbers times {value:.6g}, which is not applied; say the mean "
                        "counts of a pattern when you train: --nphotons NUMBER"
                    )

    def _say_what_is_left(self) -> None:
        """Name the arrays that nothing was made of."""
        left = [
            dataset.path
            for dataset in {each.mark: each for each in self._tree.datasets.values()}.values()
            if dataset.mark not in self._used and math.prod(dataset.shape) > 1 and dataset.dtype is not None
        ]
        dark = [path for path in left if re.fullmatch(DARK, path.rsplit("/", 1)[1])]
        if dark:
            option = adding("--dark-path", dark[0])
            self._notices.append(f"dark frames are not used: {listed(dark)}; to take them off: {option}")
        monitors = [
            path
            for path in left
            if self._tree.groups.get(path.rsplit("/", 1)[0]) == "NXmonitor" or "monitor" in path.lower()
        ]
        if monitors:
            self._notices.append(
                f"the flux of each pattern is not used: {listed(monitors)}; training takes one photon number a scan"
            )
        left = [path for path in left if path not in (*dark, *monitors)]
        if left:
            self._notices.append(f"arrays that are not used: {listed(left)}")
        self._notices += [f"{path} is left out: {error.found}" for path, error in self._tree.broken.items()]
