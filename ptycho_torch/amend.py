"""Leave out or add up patterns of a scan on their way through ``convert-scan``, and mark pixels as bad.

<doc-ref type="contract">specs/data_contracts.md</doc-ref>
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ptycho_torch.contract import violation
from ptycho_torch.errors import ConfigError
from ptycho_torch.raw_scan import POSITION_PAIRS, Passes, Source, Stack

ONE_PLACE_PX = 0.5
"""Positions that differ by less are one place: patterns there show the same part of the object."""

DARK_SHARE = 0.01
"""Counts of a dark pattern over those of the brightest tenth."""


def amended(source: Source, options: argparse.Namespace, folder: Path, *, from_intensity: bool) -> Source:
    """Return a scan as ``--bad-pixels``, ``--select``, ``--drop-dark`` and ``--merge-repeats`` want it.

    Args:
        source: as its file has it.
        options: of the command.
        folder: for what is too large for the memory.
        from_intensity: whether the patterns hold counts, and not their roots.

    Raises:
        DataContractError: no pattern is left.
        ConfigError: pixels outside the frame, numbers beyond the last pattern, or repeats of unknown size.
    """
    if options.bad_pixels:
        source = dataclasses.replace(source, bad_pixels=_with_bad_pixels(source, options.bad_pixels))
    for ranges in options.select:
        source = _kept(source, _selected(source.stack, ranges))
    if options.drop_dark:
        source = _kept(source, _lit(source, folder, from_intensity=from_intensity))
    if options.merge_repeats:
        source = _merged(source, from_intensity=from_intensity)
    return source


def _with_bad_pixels(source: Source, pixels: Sequence[tuple[int | None, int | None]]) -> np.ndarray:
    shape = source.stack.rows_px, source.stack.columns_px
    bad = np.zeros(shape, bool) if source.bad_pixels is None else source.bad_pixels.copy()
    for row, column in pixels:
        if (row or 0) >= shape[0] or (column or 0) >= shape[1]:
            raise ConfigError(f"--bad-pixels: {row},{column} lies outside frames of {shape[0]} × {shape[1]}.")
        bad[slice(None) if row is None else row, slice(None) if column is None else column] = True
    return bad


def _selected(stack: Stack, ranges: Sequence[slice]) -> np.ndarray:
    """Return the numbers of the patterns in some ranges, ascending."""
    chosen = np.zeros(stack.count, bool)
    for part in ranges:
        if part.stop is not None and part.stop > stack.count:
            raise ConfigError(f"--select: {part.stop} is beyond the {stack.count} patterns of {stack.path}.")
        chosen[part] = True
    return np.flatnonzero(chosen)


def _lit(source: Source, folder: Path, *, from_intensity: bool) -> np.ndarray:
    """Return the numbers of the patterns that are not dark, by one pass over them."""
    good = slice(None) if source.bad_pixels is None else ~source.bad_pixels
    counts = []
    with source.stack.passes(folder) as passes:
        for chunk in passes():
            values = chunk[:, good].astype(np.float64).reshape(len(chunk), -1)
            counts.append((values if from_intensity else np.square(values)).sum(axis=1))
    energies = np.concatenate(counts)
    return np.flatnonzero(energies >= DARK_SHARE * np.quantile(energies, 0.9))


def _kept(source: Source, numbers: np.ndarray) -> Source:
    """Return some patterns of a scan and what belongs to them."""
    stack = source.stack
    if not len(numbers):
        raise violation("SCAN-02", "no pattern that is left", path=stack.path, key=stack.key)
    for (x, _), stored in source.positions.items():
        if numbers[-1] >= len(stored):
            found = f"{len(stored)} positions, where pattern {numbers[-1]} is selected"
            raise violation(
                "SCAN-06", found, path=stack.path, key=x, remedy=f"Select no more: `--select 0:{len(stored)}`"
            )
    index = source.scan_index
    fields = {field.name: getattr(stack, field.name) for field in dataclasses.fields(Stack)}
    left_out = stack.count - len(numbers)
    return dataclasses.replace(
        source,
        stack=_Selection(**fields | {"count": len(numbers)}, whole=stack, numbers=numbers),
        positions={pair: stored[numbers] for pair, stored in source.positions.items()},
        scan_index=None if index is None else index[numbers[numbers < len(index)]],
        notices=(*source.notices, f"{left_out} of {stack.count} patterns are left out"),
    )


@dataclasses.dataclass(frozen=True)
class _Selection(Stack):
    """Some of the patterns of a stack.

    Attributes:
        whole: all of them.
        numbers: (count,) of those that are kept, ascending.
    """

    whole: Stack
    numbers: np.ndarray

    @contextlib.contextmanager
    def passes(self, folder: Path) -> Iterator[Passes]:
        """Give a function that starts a pass over the kept frames."""
        with self.whole.passes(folder) as passes:

            def kept() -> Iterator[np.ndarray]:
                first = 0
                for chunk in passes():
                    low, high = np.searchsorted(self.numbers, (first, first + len(chunk)))
                    if high > low:
                        yield chunk[self.numbers[low:high] - first]
                    first += len(chunk)

            yield kept


def _merged(source: Source, *, from_intensity: bool) -> Source:
    """Return a scan whose patterns are the sums of all counts at each place, in the order of their first exposures."""
    stack = source.stack
    if source.metres:
        raise ConfigError(
            f"{stack.path}: --merge-repeats is for scans (.npz), whose positions are in pixels; import this file first."
        )
    positions = source.positions[POSITION_PAIRS[0]]
    index = np.zeros(stack.count) if source.scan_index is None else source.scan_index
    keys = np.column_stack([np.round(positions / ONE_PLACE_PX), index])
    _, first, inverse = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    order = np.argsort(first)
    place_of = np.argsort(order)[inverse.ravel()]
    exposures = np.bincount(place_of)

    def mean(values: np.ndarray) -> np.ndarray:
        sums = np.stack([np.bincount(place_of, column) for column in values.T], axis=1)
        return np.asarray(sums / exposures[:, None])

    fields = {field.name: getattr(stack, field.name) for field in dataclasses.fields(Stack)}
    changed = {"count": len(order), "dtype": np.dtype(np.float64), "patterns_last": False}
    few, most = int(exposures.min()), int(exposures.max())
    notices = [f"{stack.count} exposures of {len(order)} places are added up"]
    if few < most:
        notices.append(f"places have {few} to {most} exposures, so that some patterns hold more counts than others")
    return dataclasses.replace(
        source,
        stack=_Sums(**fields | changed, whole=stack, place_of=place_of, from_intensity=from_intensity),
        positions={pair: mean(stored) for pair, stored in source.positions.items()},
        scan_index=None if source.scan_index is None else source.scan_index[first[order]],
        notices=(*source.notices, *notices),
    )


@dataclasses.dataclass(frozen=True)
class _Sums(Stack):
    """Sums of the counts of patterns at one place.

    Attributes:
        whole: every exposure.
        place_of: (M,) which sum each belongs to.
        from_intensity: whether the patterns hold counts, and not their roots.
    """

    whole: Stack
    place_of: np.ndarray
    from_intensity: bool

    @contextlib.contextmanager
    def passes(self, folder: Path) -> Iterator[Passes]:
        """Give a function that starts a pass over the sums, which lie in an unnamed file of the folder."""
        shape = (self.count, self.rows_px, self.columns_px)
        with tempfile.TemporaryFile(dir=folder) as file, self.whole.passes(folder) as passes:
            sums = np.memmap(file, np.float64, "w+", shape=shape)
            first = 0
            for chunk in passes():
                counts = chunk.astype(np.float64)
                if not self.from_intensity:
                    np.square(counts, out=counts)
                for place, frame in zip(self.place_of[first : first + len(chunk)], counts, strict=True):
                    sums[place] += frame
                first += len(chunk)
            at_once = max(1, 2**20 // (self.rows_px * self.columns_px))

            def added() -> Iterator[np.ndarray]:
                for start in range(0, self.count, at_once):
                    part = np.array(sums[start : start + at_once])
                    yield part if self.from_intensity else np.sqrt(part)

            yield added
