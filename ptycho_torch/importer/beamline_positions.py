"""Positions of a scan in a file of a beamline, and the frame of coordinates that they are in.

Clause CXI-01 of <doc-ref type="contract">specs/data_contracts.md</doc-ref>.
"""

from __future__ import annotations

import functools
import math
import shlex
from collections import Counter
from collections.abc import Sequence

import numpy as np

from ptycho_torch.files.hdf5_files import Dataset, Hdf5Tree
from ptycho_torch.files.npz import listed
from ptycho_torch.files.remedies import of_raster
from ptycho_torch.importer.beamline_search import Patterns, Search

_PAIRS = (
    ("x", "y"), ("translation_x", "translation_y"), ("position_x", "position_y"), ("positions_x", "positions_y"),
    ("x_translation", "y_translation"), ("sam_x", "sam_y"), ("samx", "samy"), ("sx", "sy"), ("sample_x", "sample_y"),
)  # fmt: skip
"""Names of two datasets that hold x and y of the sample."""


class PositionFinder(Search):
    """Finds the translations of the sample."""

    def _translation(self, patterns: Patterns) -> tuple[np.ndarray, bool]:
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

    def _from_one(self, dataset: Dataset, array: np.ndarray, patterns: Patterns) -> np.ndarray:
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

    def _from_two(self, datasets: Sequence[Dataset], arrays: Sequence[np.ndarray], patterns: Patterns) -> np.ndarray:
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
            if vectors.ndim == 3 and len(vectors) and (vectors == vectors[0]).all():
                vectors = vectors[0]  # One for each pattern, all the same.
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


def _vector(direction: np.ndarray) -> str:
    return "(" + ", ".join(f"{number:.3g}" for number in direction + 0.0) + ")"
