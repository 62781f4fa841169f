"""What a file of a beamline has, found by the names of groups and datasets: the search, and the patterns.

Clause CXI-01 of <doc-ref type="contract">specs/data_contracts.md</doc-ref>.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import numpy as np

from ptycho_torch.contracts.contract import violation
from ptycho_torch.errors import DataContractError
from ptycho_torch.files.hdf5_child import MAX_ROW_BYTES
from ptycho_torch.files.hdf5_files import Dataset, Hdf5Tree, is_matlab
from ptycho_torch.files.npz import listed
from ptycho_torch.files.remedies import adding
from ptycho_torch.importer.detector_mask import MaskBits
from ptycho_torch.importer.units import Kind, UnknownUnitError, si_factor

MAX_FRAME_PX = 8192
MAX_PATTERNS = 2**31 - 1

OPTIONS = {"wavelength_m": "--wavelength-m", "distance_m": "--distance-m", "pixel_m": "--pixel-m"}
"""What a file has to say → the option that says it in its place."""

_GEOMETRY = (
    "distance", "detector_distance", "x_pixel_size", "pixel_size_x", "y_pixel_size", "pixel_size_y", "basis_vectors",
)  # fmt: skip
"""Names of datasets of a detector that say where its pixels are."""


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
class Patterns:
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
        """Path of the first dataset."""
        return self.datasets[0].path

    @property
    def frame(self) -> tuple[int, int, int]:
        """(M, H, W)."""
        return frame_axes(self.shape, self.axes)


class AbsentError(DataContractError):
    """Something that a file does not have at all."""


def is_absent(find: Callable[[], object]) -> bool:
    """Return whether nothing is there; what is there and wrong is told when it is read."""
    try:
        find()
    except AbsentError:
        return True
    except DataContractError:
        pass
    return False


class Search:
    """Searches one tree, and notes what was used, read and left out.

    Args:
        tree: of the scan.
        places: of the file with the positions, which may be the same.
        wanted: what the user says.
    """

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

    def _stacks(self) -> list[Dataset]:
        """Return what may be patterns, by its axes."""
        return [
            dataset
            for dataset in self._tree.datasets.values()
            if len(dataset.shape) in (3, 4) and dataset.dtype is not None and dataset.dtype.kind in "fiu"
        ]

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

    def _number_array(self, tree: Hdf5Tree, dataset: Dataset, column: int | None) -> np.ndarray:
        if dataset.dtype is None or dataset.dtype.kind not in "fiu":
            raise self._wrong("no real numbers", dataset.path, "real numbers")
        array = tree.read(dataset)
        if column is None:
            return array
        if array.ndim != 2 or column >= array.shape[1]:
            raise self._wrong(f"shape {dataset.shape}", dataset.path, f"a table with a column {column}")
        return np.asarray(array[:, column])

    def _factor(self, dataset: Dataset, kind: Kind, given: str | None = None, remedy: str = "") -> float:
        try:
            return si_factor(given or dataset.units, kind) if given or dataset.units else 1.0
        except UnknownUnitError as err:
            raise self._wrong(
                str(err), dataset.path, f"a unit of {kind}, or none for {'metre' if kind == 'length' else 'joule'}",
                remedy or "Correct the attribute 'units' of that dataset (h5edit, h5py), or leave it out.",
            ) from err  # fmt: skip

    def _length(self, what: str, name: str, dataset: Dataset | None, where: str) -> float:
        remedy = f"Give it in metres: {OPTIONS[name]} METRES"
        if dataset is None:
            raise self._absent("nothing there", where, f"{what}, one number above 0", remedy)
        self._say(what, dataset)
        return self._one(dataset, OPTIONS[name]) * self._factor(dataset, "length", None, remedy)

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

    def _absent(self, found: str, key: str, expected: str, remedy: str) -> AbsentError:
        error = self._wrong(found, key, expected, remedy)
        return AbsentError(
            str(error), path=error.path, key=key, clause=error.clause, found=found, expected=expected, remedy=remedy
        )

    def _wrong(self, found: str, key: str, expected: str, remedy: str = "") -> DataContractError:
        return violation("CXI-01", found, path=self._tree.path, key=key, expected=expected, remedy=remedy)

    # ------------------------------------------------------------------------------------------------ patterns

    def _patterns(self) -> Patterns:
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
        patterns = Patterns(tuple(datasets), shape, axes, raster)
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


def _is_entry(path: str, kind: str) -> bool:
    return kind == "NXentry" or re.fullmatch(r"/entry(_?\d+)?", path) is not None


def _along(name: str, axis: str) -> bool:
    """Return whether the name of an axis says that it runs along x, or along y."""
    return re.fullmatch(rf"(.*[_.])?{axis}([_.].*)?", name.lower()) is not None
