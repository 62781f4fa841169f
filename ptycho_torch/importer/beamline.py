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
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from ptycho_torch.contracts.contract import violation
from ptycho_torch.data.preparation import HC_J_M
from ptycho_torch.errors import DataContractError, IncompleteFileError
from ptycho_torch.files.hdf5_child import MAX_ROW_BYTES
from ptycho_torch.files.hdf5_files import Dataset, Hdf5Tree, is_matlab, open_hdf5
from ptycho_torch.files.npz import listed
from ptycho_torch.files.remedies import adding, of_raster
from ptycho_torch.importer.detector_mask import MaskBits, read_mask
from ptycho_torch.importer.pattern_values import no_measurement_from
from ptycho_torch.importer.probe_axes import probe_axes
from ptycho_torch.importer.units import Kind, UnknownUnitError, si_factor

MAX_FRAME_PX = 8192
MAX_PATTERNS = 2**31 - 1

_MASK_BLOCK_BYTES = 8 * 2**20
_OPTIONS = {"wavelength_m": "--wavelength-m", "distance_m": "--distance-m", "pixel_m": "--pixel-m"}
_WAVELENGTHS_M = (1e-14, 1e-5)
_ENERGIES_J = (1e-20, 1e-12)
"""From infrared light to 6 MeV; electronvolts taken for joules, or ångströms for metres, are far outside."""

_SAME = 5e-3
"""How far two statements of the wavelength may lie apart, as a share; both are rounded as a rule."""

_MASK_NAMES = r"mask|pixel_mask(_\d+)?"
_PAIRS = (
    ("x", "y"), ("translation_x", "translation_y"), ("position_x", "position_y"), ("positions_x", "positions_y"),
    ("x_translation", "y_translation"), ("sam_x", "sam_y"), ("samx", "samy"), ("sx", "sy"), ("sample_x", "sample_y"),
)  # fmt: skip
"""Names of two datasets that hold x and y of the sample."""

_WITHOUT = {
    "the mask": "Leave it: `--mask-path none`",
    "dark frames": "Leave them: `--dark-path none`",
    "the flat field": "Leave --white-path out.",
}
_GEOMETRY = (
    "distance", "detector_distance", "x_pixel_size", "pixel_size_x", "y_pixel_size", "pixel_size_y", "basis_vectors",
)  # fmt: skip
"""Names of datasets of a detector that say where its pixels are."""

_FLAT = r"data_white|white|flat_?field|qe_mask|flat"
_DARK = r"data_dark|dark|darks|dark_?field|background"


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What the user says of a file; None and empty leave it to the file.

    Attributes:
        data_paths: of the patterns, one behind the other.
        positions_paths: of one dataset with x and y, or of two; ``PATH:K`` takes column K.
        positions_units: of the positions, in place of what the file says.
        positions_file: an HDF5 file that holds the positions.
        mask_path: of the mask; ``none`` leaves masks out.
        mask_bits: the bits that make a pixel bad.
        dark_path: of dark frames; ``none`` leaves them out.
        white_path: of the flat field.
        probe_path: of the probe; ``none`` leaves it out.
        axes: how the axes of the patterns lie.
        given: numbers that are not asked for: ``wavelength_m``, ``distance_m``, ``pixel_m``.
    """

    data_paths: Sequence[str] = ()
    positions_paths: Sequence[str] = ()
    positions_units: str | None = None
    positions_file: Path | None = None
    mask_path: str | None = None
    mask_bits: MaskBits | None = None
    dark_path: str | None = None
    white_path: str | None = None
    probe_path: str | None = None
    axes: str | None = None
    given: Collection[str] = ()


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
        yield _Finder(tree, places, wanted).scan()


def frame_axes(shape: tuple[int, ...], axes: str) -> tuple[int, int, int]:
    """Return (M, H, W) of a shape whose axes lie as the letters m, h, w say; 1 is an axis of length 1.

    Raises:
        ValueError: the shape has other axes.

    >>> frame_axes((64, 32, 100), "hwm")
    (100, 64, 32)
    """
    if len(shape) != len(axes) or (axes.endswith("1") and shape[-1] != 1):
        raise ValueError(f"shape {shape} is no {axes}")
    return shape[axes.index("m")], shape[axes.index("h")], shape[axes.index("w")]


@dataclasses.dataclass(frozen=True)
class _Patterns:
    """The patterns of a file.

    Attributes:
        datasets: one behind the other.
        shape: of all together, a raster as one axis.
        axes: of them.
        raster: (rows, columns) of the raster, or None.
    """

    datasets: tuple[Dataset, ...]
    shape: tuple[int, ...]
    axes: str
    raster: tuple[int, int] | None

    @property
    def key(self) -> str:
        return self.datasets[0].path

    @property
    def frame(self) -> tuple[int, int, int]:
        return frame_axes(self.shape, self.axes)


class _AbsentError(DataContractError):
    """Something that a file does not have at all."""


def _is_absent(find: Callable[[], object]) -> bool:
    """Return whether nothing is there; what is there and wrong is told when it is read."""
    try:
        find()
    except _AbsentError:
        return True
    except DataContractError:
        pass
    return False


class _Finder:
    """Finds in one tree what a scan needs."""

    def __init__(self, tree: Hdf5Tree, places: Hdf5Tree, wanted: Wanted) -> None:
        self._tree, self._places, self._wanted = tree, places, wanted
        self._used: set[str] = set()
        self._read: dict[str, list[str]] = {}
        self._notices: list[str] = []
        self._matlab = is_matlab(tree.path)
        entries = sorted(path for path, kind in tree.groups.items() if path.count("/") == 1 and _is_entry(path, kind))
        self._entry = self._chosen(entries)
        if len(entries) > 1 and not wanted.data_paths:
            self._notices.append(
                f"{listed(entries)} are there, and {self._entry} is read; another one: --data-path with the path of "
                "its patterns"
            )

    def _chosen(self, entries: Sequence[str]) -> str:
        """Return the entry of the patterns that are named, or else the first one that may hold patterns."""

        def of(path: str) -> str:
            return path[: path.find("/", 1)]

        named = [of(path if path.startswith("/") else f"/{path}") for path in self._wanted.data_paths[:1]]
        with_stack = {of(path) for path in (*(each.path for each in self._stacks()), *self._tree.broken)}
        candidates = (*(each for each in entries if each in named), *(each for each in entries if each in with_stack))
        return next(iter((*candidates, *entries)), "")

    def scan(self) -> BeamlineScan:
        """Return what is there.

        Raises:
            DataContractError: CXI-01 or CXI-02.
        """
        self._refuse_incomplete()
        patterns = self._patterns()
        self._say("patterns", patterns.datasets[0])
        count, rows, columns = patterns.frame
        numbers = {name: getattr(self, f"_{name}")() for name in _OPTIONS if name not in self._wanted.given}
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

    # -------------------------------------------------------------------------------------- what is not there

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
        except _AbsentError:
            stack = sorted(self._stacks(), key=lambda each: math.prod(each.shape))[-1:]
            missing["patterns"] = f"--data-path {shlex.quote(stack[0].path) if stack else 'PATH'}"
        except DataContractError:
            return
        if not self._wanted.positions_paths and _is_absent(lambda: self._position_datasets(self._places)):
            missing["positions"] = self._naming_positions(stack[0].shape if stack else ())
        for name, option in _OPTIONS.items():
            if name not in self._wanted.given and _is_absent(getattr(self, f"_{name}")):
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

    def _stacks(self) -> list[Dataset]:
        """Return what may be patterns, by its axes."""
        return [
            dataset
            for dataset in self._tree.datasets.values()
            if len(dataset.shape) in (3, 4) and dataset.dtype is not None and dataset.dtype.kind in "fiu"
        ]

    # ------------------------------------------------------------------------------------------------ patterns

    def _patterns(self) -> _Patterns:
        datasets = self._pattern_datasets()
        first = datasets[0]
        for dataset in datasets:
            self._tree.check(dataset)
            self._used |= self._tree.marks(dataset)
            if dataset.dtype is None or dataset.dtype.kind not in "fiu":
                found = "no numbers" if dataset.dtype is None else f"dtype {dataset.dtype}"
                raise self._wrong(found, dataset.path, "real numbers, of at most 64 bits")
            if dataset.shape[1:] != first.shape[1:] or dataset.dtype != first.dtype:
                raise self._wrong(
                    f"shape {dataset.shape} of {dataset.dtype} behind {first.shape} of {first.dtype}",
                    dataset.path,
                    "datasets of the same frames",
                    "Name those that belong together: --data-path PATH PATH …",
                )
        axes = self._wanted.axes or self._usual_axes
        shape, raster = first.shape, None
        if self._matlab and self._wanted.axes is None:
            self._notices.append(
                "a MATLAB file: its axes are taken in reverse, (patterns, columns, rows); if they are not: `--axes mhw`"
            )
        if len(datasets) > 1:
            if not axes.startswith("m") or len(shape) != 3:
                raise self._wrong(f"shape {shape}", first.path, "patterns along the first of three axes")
            shape = (sum(dataset.shape[0] for dataset in datasets), *shape[1:])
            names = ", ".join(dataset.path.rsplit("/", 1)[1] for dataset in (first, datasets[-1]))
            self._notices.append(
                f"patterns: {len(datasets)} datasets, one behind the other ({names}); fewer: --select A:B"
            )
        if len(shape) == 4 and axes[0] == "m" and len(axes) == 3 and shape[3] != 1:
            raster = (shape[0], shape[1])
            shape = (shape[0] * shape[1], *shape[2:])
            self._notices.append(f"patterns: a raster of {raster[0]} × {raster[1]} places, row by row")
        patterns = _Patterns(tuple(datasets), shape, axes, raster)
        try:
            count, rows, columns = patterns.frame
        except ValueError:
            raise self._wrong(
                f"shape {shape}",
                first.path,
                f"axes {', '.join(axes)}",
                "Drop the last axis: `--axes mhw1`" if len(shape) == 4 and shape[3] == 1
                else "Say how the axes lie (--axes), or name another path (--data-path).",
            ) from None  # fmt: skip
        if not (0 < count <= MAX_PATTERNS and 0 < rows <= MAX_FRAME_PX and 0 < columns <= MAX_FRAME_PX):
            raise violation(
                "CXI-02", f"shape {shape}", path=self._tree.path, key=first.path,
                expected=f"patterns of at most {MAX_FRAME_PX} pixels a side",
            )  # fmt: skip
        if first.dtype is not None and math.prod(first.shape[1:]) * first.dtype.itemsize > MAX_ROW_BYTES:
            raise violation(
                "CXI-02", f"shape {shape}", path=self._tree.path, key=first.path,
                expected="at most 1 GiB for an entry of the first axis",
            )  # fmt: skip
        return patterns

    def _pattern_datasets(self) -> list[Dataset]:
        if self._wanted.data_paths:
            named = [self._named(self._tree, path, "--data-path") for path in self._wanted.data_paths]
            series = self._series(named[0].path, self._tree.datasets) if len(named) == 1 else []
            if len(series) > 1 and series[0].path == named[0].path:
                named = series
            return [self._use(dataset) for dataset in named]
        whole = self._matching(r"/data(_\d+)?/data", r"/instrument[^/]*/detector[^/]*/data", least_axes=3)
        if whole:
            others = [each.path for each in whole[1:] if each.mark != whole[0].mark and each.path.endswith("/data")]
            if others:
                self._notices.append(f"other patterns are left out: {listed(others)}; choose: --data-path PATH")
            return [self._use(whole[0])]
        numbered = self._matching(r"(/data|/instrument[^/]*/detector[^/]*|/measurement)/data_0*1", least_axes=3)
        if numbered:
            paths = (*self._tree.datasets, *self._tree.broken)
            return [self._use(dataset) for dataset in self._series(numbered[0].path, paths, least_digits=1)]
        by_class = [
            dataset
            for dataset in self._tree.datasets.values()
            if len(dataset.shape) in (3, 4)
            and dataset.path.endswith("/data")
            and self._tree.groups.get(dataset.path.rsplit("/", 1)[0]) in ("NXdata", "NXdetector")
        ]
        if by_class:
            if len({dataset.mark for dataset in by_class}) > 1:
                rest = listed([dataset.path for dataset in by_class[1:]])
                self._notices.append(f"patterns: {by_class[0].path}; other stacks are {rest}: --data-path PATH")
            return [self._use(by_class[0])]
        there = self._stacks()
        names = listed([f"{dataset.path} {dataset.shape}" for dataset in there])
        option = adding("--data-path", there[0].path) if len(there) == 1 else "--data-path PATH"
        raise self._absent(
            f"no such dataset{f'; with three or four axes there are {names}' if there else ''}",
            f"{self._entry or '/entry_1'}/data_1/data",
            "the patterns",
            f"Name their path in the file: {option}",
        )

    def _series(self, path: str, paths: Collection[str], least_digits: int = 3) -> list[Dataset]:
        """Return the numbered datasets of which this is one, in order."""
        match = re.fullmatch(rf"(.*/[^/]*?_)(\d{{{least_digits},}})", path)
        if match is None:
            return []
        pattern = re.compile(re.escape(match[1]) + r"(\d+)")
        found = {int(hit[1]): each for each in paths if (hit := pattern.fullmatch(each))}
        return [self._named(self._tree, found[number], "--data-path") for number in sorted(found)]

    # ----------------------------------------------------------------------------------------------- positions

    def _translation(self, patterns: _Patterns) -> tuple[np.ndarray, bool]:
        """Return (K, 2) metres along columns and rows of the detector, and whether their unit is stated."""
        tree, wanted = self._places, self._wanted
        if wanted.positions_paths:
            sources = [self._column(tree, path) for path in wanted.positions_paths]
            self._notices.append(
                "positions are taken as translations of the sample, and their signs are turned; if they are of the "
                "probe: `--positions-flip-x --positions-flip-y`"
            )
        else:
            sources = [(self._use(dataset), None) for dataset in self._position_datasets(tree)]
        factors, stated = [], True
        for dataset, _ in sources:
            self._say("positions", dataset, wanted.positions_units)
            if wanted.positions_units is None and not dataset.units:
                stated = False
            factors.append(self._factor(dataset, "length", wanted.positions_units, "--positions-units UNIT"))
        arrays = [
            np.asarray(self._number_array(tree, dataset, column), np.float64) * factor
            for (dataset, column), factor in zip(sources, factors, strict=True)
        ]
        if len(arrays) == 1:
            laboratory = self._from_one(sources[0][0], arrays[0], patterns)
        else:
            laboratory = self._from_two([dataset for dataset, _ in sources], arrays, patterns)
        if self._basis is None:
            return np.ascontiguousarray(laboratory[:, :2]), stated
        slow, fast = (each / np.linalg.norm(each) for each in self._basis)
        laboratory = np.pad(laboratory, ((0, 0), (0, 3 - laboratory.shape[1])))
        return np.stack([laboratory @ fast, laboratory @ slow], axis=1), stated

    def _position_datasets(self, tree: Hdf5Tree) -> list[Dataset]:
        one = self._matching(
            r"/sample[^/]*/geometry[^/]*/translation",
            r"/data(_\d+)?/translation",
            r"/instrument[^/]*/detector[^/]*/translation",
            r"/sample[^/]*/translation",
            tree=tree,
        )
        one = [dataset for dataset in one if math.prod(dataset.shape) > 3 or len(dataset.shape) == 2]
        # A single place of the detector is no positions where others are.
        one.sort(key=lambda dataset: max(dataset.shape) <= 3)
        if one and (max(one[0].shape) > 3 or not self._pairs(tree)):
            others = list(dict.fromkeys(each.path for each in one[1:] if each.mark != one[0].mark))
            if tree is not self._tree and others:
                self._notices.append(
                    f"positions: {one[0].path} is read, and {listed(others)} left out; choose: --positions-path PATH"
                )
            return one[:1]
        pairs = self._pairs(tree)
        fitting = [pair for pair in pairs if {math.prod(each.shape) for each in pair} <= self._counts]
        if pairs:
            return list((fitting or pairs)[0])
        raise self._absent(
            "no such dataset",
            f"{self._entry or '/entry_1'}/sample_1/geometry_1/translation",
            "the translations of the sample",
            "Name their path in the file: --positions-path PATH, or --positions-path X Y; if another file has them: "
            "--positions-file FILE",
        )

    def _pairs(self, tree: Hdf5Tree) -> list[tuple[Dataset, Dataset]]:
        """Return what goes by the names of x and y, below samples first; coordinates of pixels are left out."""
        folders = dict.fromkeys(path.rsplit("/", 1)[0] for path in tree.datasets)
        found = []
        for folder in sorted(folders, key=lambda folder: "/sample" not in folder):
            of_pixels = tree.axes.get(folder, ())[-2:]
            for pair in _PAIRS:
                both = [tree.datasets.get(f"{folder}/{name}") for name in pair if name not in of_pixels]
                there = [
                    each for each in both if each is not None and math.prod(each.shape) > 1 and each.dtype is not None
                ]
                if len(there) == 2:
                    found.append((there[0], there[1]))
        return found

    @functools.cached_property
    def _counts(self) -> set[int]:
        """How many positions there may be along one axis: as many as patterns, or as places along a raster."""
        counts, together = set[int](), Counter[tuple[int, ...]]()
        for count, *frame in (each.shape for each in self._stacks()):
            together[tuple(frame)] += count
            counts |= {count} if len(frame) == 2 else {count, frame[0], count * frame[0]}
        return counts | set(together.values())

    def _column(self, tree: Hdf5Tree, path: str) -> tuple[Dataset, int | None]:
        name, _, number = path.rpartition(":")
        if name and number.isdecimal() and tree.find(path) is None:
            return self._use(self._named(tree, name, "--positions-path")), int(number)
        return self._use(self._named(tree, path, "--positions-path")), None

    def _number_array(self, tree: Hdf5Tree, dataset: Dataset, column: int | None) -> np.ndarray:
        if dataset.dtype is None or dataset.dtype.kind not in "fiu":
            raise self._wrong("no real numbers", dataset.path, "real numbers")
        array = tree.read(dataset)
        if column is None:
            return array
        if array.ndim != 2 or column >= array.shape[1]:
            raise self._wrong(f"shape {dataset.shape}", dataset.path, f"a table with a column {column}")
        return np.asarray(array[:, column])

    def _from_one(self, dataset: Dataset, array: np.ndarray, patterns: _Patterns) -> np.ndarray:
        """Return (K, 2) or (K, 3) of one dataset that holds x, y and perhaps z."""
        count = patterns.frame[0]
        if array.ndim == 3 and patterns.raster and array.shape[:2] == patterns.raster and array.shape[2] in (2, 3):
            return array.reshape(-1, array.shape[2])
        last, first = ((array.ndim == 2 and array.shape[axis] in (2, 3)) for axis in (1, 0))
        if last and not (first and array.shape[0] != count and array.shape[1] == count):
            return array
        if first:
            return array.T
        raise self._wrong(
            f"shape {dataset.shape} for {count} patterns",
            dataset.path,
            f"({count}, 3) or (3, {count}), x, y, z of the sample, or 2 in place of 3",
            f"If it is x alone, name y as well: --positions-path {shlex.quote(dataset.path)} Y"
            if max(array.shape, default=0) == array.size
            else "Name the path of one translation for each pattern (--positions-path).",
        )

    def _from_two(self, datasets: Sequence[Dataset], arrays: Sequence[np.ndarray], patterns: _Patterns) -> np.ndarray:
        """Return (K, 3) of x and y in two datasets, along the directions that they state."""
        x, y = (array.reshape(-1) for array in arrays)
        raster = patterns.raster
        if raster is not None and patterns.frame[0] not in (len(x), len(y)):
            slow = self._axes_of(patterns.key)[:1] == (datasets[0].path.rsplit("/", 1)[1],)
            if (len(y), len(x)) == raster and not slow:
                self._notices.append(
                    f"positions: {datasets[0].path} for the columns of the raster, {datasets[1].path} for its rows"
                )
                x, y = (each.reshape(-1) for each in np.meshgrid(x, y))
            elif (len(x), len(y)) == raster:
                self._notices.append(
                    f"positions: {datasets[0].path} for the rows of the raster, {datasets[1].path} for its columns"
                )
                x, y = (each.reshape(-1) for each in np.meshgrid(x, y, indexing="ij"))
        if len(x) != len(y):
            raise self._wrong(
                f"{len(y)} values for {len(x)} in {datasets[0].path}", datasets[1].path, "x and y of the same length",
                of_raster(len(x), len(y), None) if len(x) * len(y) == patterns.frame[0] else "",
            )  # fmt: skip
        for dataset in datasets:
            if dataset.odd_vector:
                raise self._wrong(
                    f"attribute vector = {dataset.odd_vector}",
                    dataset.path,
                    "three numbers, the direction along which it counts",
                    "Correct that attribute (h5edit, h5py), or remove it and say the signs: --positions-flip-x, "
                    "--positions-flip-y",
                )
        directions = [
            np.array(dataset.vector or default)
            for dataset, default in zip(datasets, ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0)), strict=True)
        ]
        if any(dataset.vector is not None for dataset in datasets):
            self._notices.append(
                "positions: x and y are counted along the directions that their attributes 'vector' state, "
                f"{_vector(directions[0])} and {_vector(directions[1])}"
            )
        return np.outer(x, directions[0]) + np.outer(y, directions[1])

    @functools.cached_property
    def _basis(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Return the steps from pixel to pixel of the laboratory, (x, y, z), along a column and along a row."""
        dataset = self._detector("basis_vectors")
        if dataset is not None:
            vectors = np.asarray(self._number_array(self._tree, dataset, None), np.float64)
            if vectors.shape not in ((3, 2), (2, 3)) or not np.isfinite(vectors).all():
                raise self._wrong(f"shape {vectors.shape}", dataset.path, "(3, 2) or (2, 3) finite numbers")
            slow, fast = vectors.T if vectors.shape == (3, 2) else vectors
            slow, fast = (each * self._factor(dataset, "length") for each in (slow, fast))
            where = dataset.path
        else:
            axes = [self._detector(rf"module[^/]*/{name}_pixel_direction") for name in ("slow", "fast")]
            if any(each is None or each.vector is None for each in axes):
                return None
            slow, fast = (np.array(each.vector) for each in axes if each is not None)
            where = axes[0].path if axes[0] is not None else ""
        lengths = float(np.linalg.norm(slow)), float(np.linalg.norm(fast))
        if min(lengths) == 0 or abs(slow @ fast) > 1e-3 * lengths[0] * lengths[1]:
            raise self._wrong(f"{_vector(slow)} and {_vector(fast)}", where, "two vectors at a right angle")
        if not np.allclose([slow / lengths[0], fast / lengths[1]], [[0, 1, 0], [1, 0, 0]], atol=1e-6):
            self._notices.append(
                f"{where}: rows run along {_vector(slow / lengths[0])} and columns along {_vector(fast / lengths[1])} "
                "of the laboratory (x, y, z); positions are turned into this frame"
            )
        return slow, fast

    # ------------------------------------------------------------------------------------------------ geometry

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
        option = _OPTIONS[name]
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
            value = self._one(dataset, _OPTIONS["wavelength_m"]) * self._factor(
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
                f"Give it in metres: {_OPTIONS['wavelength_m']} METRES",
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

    # --------------------------------------------------------------------------------- mask, dark frames, probe

    def _mask(self, rows: int, columns: int) -> np.ndarray | None:
        path = self._wanted.mask_path
        if path == "none":
            return None
        if path is not None:
            masks = [self._use(self._named(self._tree, path, "--mask-path"))]
        else:
            group = re.escape(self._detector_group)
            found = self._matching(
                r"/instrument[^/]*/mask",
                rf"/(data(_\d+)?)/({_MASK_NAMES})",
                at=[rf"{group}/(detectorSpecific/)?({_MASK_NAMES})"],
            )
            masks = list({dataset.mark: dataset for dataset in found}.values())
        bad = None
        for dataset in masks:
            self._use(dataset)
            mask = read_mask(
                self._frames(dataset, rows, columns, "the mask"),
                "NeXus" if "pixel_mask" in dataset.path.rsplit("/", 1)[1] else "CXI",
                self._wanted.mask_bits,
            )
            each = (
                " of every pattern, what is bad in one is bad in all"
                if dataset.shape[0] > 1 and len(dataset.shape) > 2
                else ""
            )
            self._notices.append(f"mask {dataset.path}{each}: {mask.words}")
            bad = mask.bad if bad is None else bad | mask.bad
        return bad

    def _dark(self, rows: int, columns: int) -> np.ndarray | None:
        path = self._wanted.dark_path
        if path == "none":
            self._use_all(_DARK)
            return None
        if path is not None:
            dataset: Dataset | None = self._named(self._tree, path, "--dark-path")
        else:
            dataset = self._detector("data_dark")
        if dataset is None:
            return None
        mean = self._mean(dataset, rows, columns, "dark frames")
        if (unknown := int(np.isnan(mean).sum())) == mean.size:
            raise self._wrong("no measurement", dataset.path, "dark frames", _WITHOUT["dark frames"])
        if unknown:
            self._notices.append(f"{unknown} pixels hold no measurement in any of the dark frames: taken for bad")
        self._notices.append(
            f"dark frames {dataset.path} are taken off, {np.nanmean(mean):.4g} counts a pixel; if they were before: "
            "`--dark-path none`"
        )
        return mean

    def _white(self, rows: int, columns: int) -> np.ndarray | None:
        if self._wanted.white_path is not None:
            dataset = self._named(self._tree, self._wanted.white_path, "--white-path")
            mean = self._mean(dataset, rows, columns, "the flat field")
            self._notices.append(f"counts are divided by the flat field {dataset.path}, whose mean is made 1")
            return mean
        for name in (_FLAT, rf"detectorSpecific/({_FLAT})"):
            flat = self._detector(name)
            if flat is None:
                continue
            applied = self._detector(r"(detectorSpecific/)?flatfield(_correction)?_applied")
            if applied is not None and self._one(applied, "", least=-math.inf) != 0:
                self._notices.append(f"flat field {flat.path}: the detector has divided by it already")
            else:
                option = adding("--white-path", flat.path)
                self._notices.append(f"flat field {flat.path} is not used; to divide by it: {option}")
        return None

    def _mean(self, dataset: Dataset, rows: int, columns: int, what: str) -> np.ndarray:
        """Return (rows, columns) mean; of dark frames without what is no measurement, NaN where nothing else is."""
        total, count, left_out = np.zeros((rows, columns)), np.zeros((rows, columns)), 0
        for frames in self._frames(self._use(dataset), rows, columns, what):
            if not np.isfinite(frames).all():
                raise self._wrong("numbers that are not finite", dataset.path, what, _WITHOUT[what])
            # A flat field may be scaled to the largest number of its type.
            measured = frames < (no_measurement_from(frames.dtype) if what == "dark frames" else math.inf)
            total += np.where(measured, frames, 0).sum(axis=0, dtype=np.float64)
            count += measured.sum(axis=0)
            left_out += int((~measured).sum())
        if left_out:
            self._notices.append(f"{what} {dataset.path}: {left_out} numbers are no measurement, and are left out")
        return np.where(count > 0, total / np.maximum(count, 1), np.nan).astype(np.float32)

    def _frames(self, dataset: Dataset, rows: int, columns: int, what: str) -> Iterator[np.ndarray]:
        """Yield (n, rows, columns) of a dataset of one frame or of many."""
        shape = dataset.shape
        stored = (columns, rows) if self._turned else (rows, columns)
        if dataset.dtype is None or dataset.dtype.kind not in "biuf" or shape[-2:] != stored or 0 in shape:
            raise self._wrong(
                f"shape {shape} of {'no numbers' if dataset.dtype is None else dataset.dtype}",
                dataset.path,
                f"{what}, {stored} as the patterns have",
                _WITHOUT[what],
            )
        frame_bytes = rows * columns * dataset.dtype.itemsize
        for block in self._tree.blocks([dataset], max(1, _MASK_BLOCK_BYTES // frame_bytes) * frame_bytes):
            frames = block.view(dataset.dtype).reshape(-1, *stored)
            yield frames.swapaxes(1, 2) if self._turned else frames

    def _probe(self, rows: int, columns: int) -> np.ndarray | None:
        path = self._wanted.probe_path
        if path == "none":
            return None
        if path is not None:
            candidates = [self._named(self._tree, path, "--probe-path")]
        else:
            candidates = self._matching(
                r"/instrument[^/]*/source[^/]*/(illumination|data_illumination|probe)",
                r"/(instrument[^/]*/)?(beam|probe)[^/]*/(illumination|probe|data)",
            )
        chosen: Dataset | None = None
        for dataset in candidates:
            if chosen is not None and dataset.mark == chosen.mark:
                continue
            shape = dataset.shape
            if self._turned and len(shape) >= 2:
                shape = (*shape[:-2], shape[-1], shape[-2])
            axes = probe_axes(shape, rows, columns)
            if axes is None or dataset.dtype is None or dataset.dtype.kind != "c":
                found = f"shape {dataset.shape} of {'no numbers' if dataset.dtype is None else dataset.dtype}"
                if path is not None:
                    raise self._wrong(found, dataset.path, f"a complex probe of {rows} × {columns} pixels")
                self._notices.append(f"{dataset.path} is left out: {found} is no probe of these patterns")
                self._use(dataset)
            elif chosen is not None:
                self._notices.append(f"another probe is left out; to take it: {adding('--probe-path', dataset.path)}")
                self._use(dataset)
            else:
                chosen = self._use(dataset)
                self._say("probe", dataset)
                stored = self._tree.read(dataset)
                probe = axes.arranged(stored.swapaxes(-1, -2) if self._turned else stored)
                if axes.note:
                    self._notices.append(f"probe {dataset.path}: {axes.note}")
        if chosen is None:
            return None
        with np.errstate(over="ignore", invalid="ignore"):  # What is beyond float32 is refused with the new file.
            return np.ascontiguousarray(probe, np.complex64)

    def _stated(self, name: str, instead: str = "", *, least: float = 0.0) -> float | None:
        """Return a number that the detector states, or None where it states none; −1 and 0 stand for none."""
        dataset = self._detector(f"(detectorSpecific/)?{name}")
        try:
            return None if dataset is None else self._one(dataset, "", least=least)
        except DataContractError as err:
            if err.clause != "CXI-01":
                raise
            self._notices.append(f"{err.key} is not used: {err.found}{instead}")
            return None

    def _bits(self) -> int | None:
        bits = self._stated("bit_depth_image")
        return int(bits) if bits is not None and 1 <= bits <= 64 else None

    # ------------------------------------------------------------------------------------------------- helpers

    @property
    def _turned(self) -> bool:
        axes = self._wanted.axes or self._usual_axes
        return axes.index("w") < axes.index("h")

    @functools.cached_property
    def _usual_axes(self) -> str:
        """How the axes of the patterns lie where the user does not say."""
        if self._matlab:
            return "mwh"
        stated = self._axes_of(self._pattern_datasets()[0].path)
        if len(stated) < 3 or not (_along(stated[-2], "x") and _along(stated[-1], "y")):
            return "mhw"
        self._notices.append(
            f"the axes of the frames are {stated[-2]}, {stated[-1]}: columns first; if they are not: `--axes mhw`"
        )
        return "mwh"

    def _axes_of(self, path: str) -> tuple[str, ...]:
        """Return the names of the axes of a dataset that NXdata states with it, one for each; or nothing."""
        mark = self._tree.datasets[path].mark
        for other, dataset in self._tree.datasets.items():
            axes = self._tree.axes.get(other.rsplit("/", 1)[0], ())
            if dataset.mark == mark and len(axes) == len(dataset.shape):
                return axes
        return ()

    def _matching(
        self, *patterns: str, at: Sequence[str] = (), tree: Hdf5Tree | None = None, least_axes: int = 0
    ) -> list[Dataset]:
        """Return datasets below the entry whose paths match, in the order of the patterns; each once.

        Raises:
            DataContractError: CXI-02, a link that matches cannot be followed.
        """
        tree = tree or self._tree
        entry = re.escape(self._entry) if tree is self._tree and self._entry else "(/entry[^/]*)?"
        found: dict[str, Dataset] = {}
        for pattern in (*at, *(f"{entry}{each}" for each in patterns)):
            matches = re.compile(pattern).fullmatch
            for path in sorted((*tree.datasets, *tree.broken)):
                dataset = tree.find(path) if matches(path) else None
                if dataset is not None and (
                    not least_axes or len(dataset.shape) >= least_axes or dataset.dtype is None
                ):
                    found[path] = dataset
                elif dataset is not None and least_axes:
                    raise self._wrong(
                        f"shape {dataset.shape}", path, "patterns of three axes, or a raster of four",
                        "Name another path: --data-path PATH",
                    )  # fmt: skip
        return list(found.values())

    @functools.cached_property
    def _detector_group(self) -> str:
        groups = [
            path
            for path, kind in sorted(self._tree.groups.items())
            if re.fullmatch(rf"{re.escape(self._entry)}/instrument[^/]*/detector[^/]*", path)
            or (kind == "NXdetector" and path.startswith(f"{self._entry}/"))
        ]
        if not groups:
            return f"{self._entry or '/entry_1'}/instrument_1/detector_1"
        used = [path for path, dataset in self._tree.datasets.items() if dataset.mark in self._used]
        holding = [group for group in groups if any(path.startswith(f"{group}/") for path in used)]
        telling = [group for group in groups if any(self._tree.find(f"{group}/{name}") for name in _GEOMETRY)]
        chosen = holding or telling or groups
        if len(chosen) == 1 or holding or not telling:
            return chosen[0]
        if not {"distance_m", "pixel_m"} <= set(self._wanted.given):
            raise self._wrong(
                f"{len(chosen)} detectors with a geometry, {listed(chosen)}, and none of them holds the patterns",
                f"{self._entry}/instrument",
                "one detector, or patterns in the group of theirs",
                "Say the geometry of the right one: --distance-m METRES --pixel-m METRES",
            )
        self._notices.append(f"detectors {listed(chosen)}: none holds the patterns, and nothing of them is used")
        return f"{self._entry}/instrument/-"

    def _detector(self, name: str) -> Dataset | None:
        """Return a dataset of the detector, whose name matches, or None."""
        found = self._matching(at=[f"{re.escape(self._detector_group)}/({name})"])
        return self._use(found[0]) if found else None

    def _named(self, tree: Hdf5Tree, path: str, option: str) -> Dataset:
        dataset = tree.find(path)
        if dataset is None:
            there = [each.path for each in tree.datasets.values() if math.prod(each.shape) > 1]
            raise violation(
                "CXI-01", f"no such dataset; arrays there: {listed(there)}", path=tree.path, key=path,
                expected="the path of a dataset", remedy=f"Name one of them: {option} PATH",
            )  # fmt: skip
        return dataset

    def _use(self, dataset: Dataset) -> Dataset:
        self._used.add(dataset.mark)
        return dataset

    def _say(self, what: str, dataset: Dataset, units: str | None = None) -> None:
        """Note where something was read from, and in which unit."""
        unit = units or dataset.units
        self._read.setdefault(what, []).append(f"{dataset.path} ({unit})" if unit else dataset.path)

    def _use_all(self, names: str) -> None:
        for dataset in self._matching(at=[f"{re.escape(self._detector_group)}/({names})"]):
            self._use(dataset)

    def _factor(self, dataset: Dataset, kind: Kind, given: str | None = None, remedy: str = "") -> float:
        try:
            return si_factor(given or dataset.units, kind) if given or dataset.units else 1.0
        except UnknownUnitError as err:
            raise self._wrong(
                str(err), dataset.path, f"a unit of {kind}, or none for {'metre' if kind == 'length' else 'joule'}",
                remedy or "Correct the attribute 'units' of that dataset (h5edit, h5py), or leave it out.",
            ) from err  # fmt: skip

    def _length(self, what: str, name: str, dataset: Dataset | None, where: str) -> float:
        remedy = f"Give it in metres: {_OPTIONS[name]} METRES"
        if dataset is None:
            raise self._absent("nothing there", where, f"{what}, one number above 0", remedy)
        self._say(what, dataset)
        return self._one(dataset, _OPTIONS[name]) * self._factor(dataset, "length", None, remedy)

    def _one(self, dataset: Dataset, option: str, least: float = 0.0) -> float:
        """Return the one number of a dataset, or the number that all of its elements are."""
        self._use(dataset)
        remedy = (
            f"Give it in metres: {option} METRES" if option.endswith("-m") else f"Say it: {option}" if option else ""
        )
        if dataset.dtype is None or dataset.dtype.kind not in "fiub" or math.prod(dataset.shape) == 0:
            raise self._wrong(f"shape {dataset.shape}, no number", dataset.path, "one number above 0", remedy)
        values = self._tree.read(dataset).reshape(-1).astype(np.float64)
        number = float(values[0])
        if not (least < number < math.inf):
            raise self._wrong(f"{number:.6g}", dataset.path, "one number above 0", remedy)
        if np.abs(values - number).max() > 1e-4 * abs(number):
            raise self._wrong(
                f"shape {dataset.shape}, numbers from {values.min():.6g} to {values.max():.6g}",
                dataset.path,
                "one number above 0",
                remedy,
            )
        return number

    def _say_what_is_left(self) -> None:
        """Name the arrays that nothing was made of."""
        left = [
            dataset.path
            for dataset in {each.mark: each for each in self._tree.datasets.values()}.values()
            if dataset.mark not in self._used and math.prod(dataset.shape) > 1 and dataset.dtype is not None
        ]
        dark = [path for path in left if re.fullmatch(_DARK, path.rsplit("/", 1)[1])]
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

    def _absent(self, found: str, key: str, expected: str, remedy: str) -> _AbsentError:
        error = self._wrong(found, key, expected, remedy)
        return _AbsentError(
            str(error), path=error.path, key=key, clause=error.clause, found=found, expected=expected, remedy=remedy
        )

    def _wrong(self, found: str, key: str, expected: str, remedy: str = "") -> DataContractError:
        return violation("CXI-01", found, path=self._tree.path, key=key, expected=expected, remedy=remedy)


def _is_entry(path: str, kind: str) -> bool:
    return kind == "NXentry" or re.fullmatch(r"/entry(_?\d+)?", path) is not None


def _along(name: str, axis: str) -> bool:
    """Return whether the name of an axis says that it runs along x, or along y."""
    return re.fullmatch(rf"(.*[_.])?{axis}([_.].*)?", name.lower()) is not None


def _vector(direction: np.ndarray) -> str:
    return "(" + ", ".join(f"{number:.3g}" for number in direction + 0.0) + ")"
