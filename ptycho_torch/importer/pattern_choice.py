"""Which patterns of a scan are taken: a range, those with a position, those with light; and exposures of one place.

<doc-ref type="contract">specs/data_contracts.md</doc-ref>
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy.spatial import KDTree

from ptycho_torch.contracts.contract import violation
from ptycho_torch.errors import ConfigError, DataContractError
from ptycho_torch.files.remedies import adding, is_few, of_member, of_positions
from ptycho_torch.importer.raw_scan import POSITION_PAIRS, Passes, Source

DARK_SHARE = 0.01
"""Counts of a dark pattern over those of the brightest tenth."""

ONE_PLACE_PX = 0.5
"""Positions that differ by less are one place: patterns there show the same part of the object."""


@dataclasses.dataclass(frozen=True)
class Choice:
    """Patterns that are taken, and what belongs to them.

    Attributes:
        total: patterns in the file.
        numbers: (n,) of those taken, ascending.
        ranks: (n,) their numbers among the selected ones, which a further ``--select`` counts.
        positions: keys → (n, 2).
        scan_index: (n,), or None.
    """

    total: int
    numbers: np.ndarray
    ranks: np.ndarray
    positions: Mapping[tuple[str, str], np.ndarray]
    scan_index: np.ndarray | None

    def kept(self, keep: np.ndarray) -> Choice:
        """Return the choice of those where ``keep``, (n,) bool, is True."""
        return Choice(
            self.total,
            self.numbers[keep],
            self.ranks[keep],
            {pair: places[keep] for pair, places in self.positions.items()},
            None if self.scan_index is None else self.scan_index[keep],
        )

    def passes(self, passes: Passes) -> Passes:
        """Return a function that starts a pass over only the patterns taken."""
        if len(self.numbers) == self.total:
            return passes
        taken = np.zeros(self.total, bool)
        taken[self.numbers] = True

        def chosen() -> Iterator[np.ndarray]:
            first = 0
            for chunk in passes():
                here = taken[first : first + len(chunk)]
                if here.any():
                    yield chunk if here.all() else chunk[here]
                first += len(chunk)

        return chosen


def with_light(totals: np.ndarray) -> np.ndarray:
    """Return (n,) whether patterns of so many counts are not dark.

    >>> with_light(np.array([1000.0, 3.0, 900.0]))
    array([ True, False,  True])
    """
    return np.asarray(totals >= DARK_SHARE * np.quantile(totals, 0.9))


def choose(source: Source, select: Sequence[Sequence[slice]], *, drop_nan: bool) -> tuple[Choice, int]:
    """Choose by number and by whether there is a position; return how many had none.

    Args:
        source: the scan.
        select: ranges of patterns, one selection after the other. Positions may be there for all patterns, or for
            those alone.
        drop_nan: leave out patterns whose position is not finite.

    Raises:
        DataContractError: SCAN-06 or CXI-01, another number of positions than of patterns, or one that is not finite.
    """
    total = source.stack.count
    numbers = _selected(total, select)
    if not len(numbers):
        raise violation("SCAN-02", f"no pattern of {total} that is left", path=source.stack.path, key=source.stack.key)

    def belonging(column: np.ndarray, key: str) -> np.ndarray:
        if len(column) == total:
            return np.asarray(column[numbers])
        if select and len(column) == len(numbers):
            return column
        if select and len(column) > numbers[-1]:
            return np.asarray(column[numbers])
        raise violation(
            "CXI-01" if source.metres else "SCAN-06",
            f"{len(column)} values for {len(numbers)} patterns",
            path=source.stack.path,
            key=key,
            expected="one for each pattern",
            remedy=_of_number(source, key, len(column), numbers, selected=bool(select)),
        )

    positions = {
        pair: belonging(places, "positions" if source.metres else pair[0]) for pair, places in source.positions.items()
    }
    index = None if source.scan_index is None else belonging(source.scan_index, "scan_index")
    choice = Choice(total, numbers, np.arange(len(numbers)), positions, index)
    finite = np.ones(len(numbers), bool)
    for places in positions.values():
        finite &= np.isfinite(places).all(axis=1)
    if drop_nan and finite.any():
        return choice.kept(finite), int((~finite).sum())
    for pair, places in positions.items():
        wrong = np.argwhere(~np.isfinite(places))
        if len(wrong):
            raise _not_finite(source, pair, places, int(wrong[0][0]), int(wrong[0][1]), numbers)
    return choice, 0


def _of_number(source: Source, key: str, found: int, numbers: np.ndarray, *, selected: bool) -> str:
    """Return what to do about another number of values than of patterns taken, ``numbers`` of the file."""
    stack, count = source.stack, len(numbers)
    if selected:
        both = int((numbers < found).sum())
        return f"If the first {found} patterns of the file have one: {adding('--select', f'0:{both}')}"
    if key in ("positions", POSITION_PAIRS[0][0]):
        square = stack.count == stack.rows_px != stack.columns_px
        return of_positions(
            found,
            count,
            adding,
            npz=None if source.metres else stack.path,
            raster=stack.raster,
            last_axis=stack.columns_px if square else None,
        )
    if is_few(found, count):
        fewer = min(found, count)
        return f"If the first {fewer} belong together: {adding('--select', f'0:{fewer}')}"
    return of_member(stack.path, key, (), "", count, adding)


def _selected(total: int, select: Sequence[Sequence[slice]]) -> np.ndarray:
    """Return the numbers of the patterns that are kept; a second selection counts what the first has left."""
    numbers = np.arange(total)
    for ranges in select:
        chosen = np.zeros(len(numbers), bool)
        for part in ranges:
            if part.stop is not None and part.stop > len(numbers):
                raise ConfigError(f"--select: {part.stop} is beyond the {len(numbers)} patterns.")
            chosen[part] = True
        numbers = numbers[chosen]
    return numbers


def _not_finite(
    source: Source, pair: tuple[str, str], places: np.ndarray, row: int, axis: int, numbers: np.ndarray
) -> DataContractError:
    clause = "CXI-01" if source.metres else "SCAN-07" if pair != POSITION_PAIRS[0] else "SCAN-06"
    return violation(
        clause,
        f"{places[row, axis]} at pattern {numbers[row]}",
        path=source.stack.path,
        key="positions" if source.metres else pair[axis],
        expected="finite positions",
        remedy=f"Leave such patterns out: {adding('--drop-nan-positions')}",
    )


def places_of(positions_px: np.ndarray, scan_index: np.ndarray | None, distance_px: float) -> np.ndarray:
    """Return (n,) number of the place of each pattern: that of the first one of the same scan that lies so near.

    Places are numbered in the order in which they come first.
    """
    marked = positions_px
    if scan_index is not None:
        # Different scans are never one place, however near.
        apart = 2 * (np.ptp(positions_px) + distance_px + 1)
        marked = np.column_stack([positions_px, scan_index * apart])
    tree = KDTree(marked)
    places = np.full(len(marked), -1)
    count = 0
    for number in range(len(marked)):
        if places[number] < 0:
            near = np.array(tree.query_ball_point(marked[number], distance_px))
            places[near[places[near] < 0]] = count
            count += 1
    return places


def mean_of_places(values: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return (places, …) mean of the values of each place."""
    total = np.zeros((places.max() + 1, *values.shape[1:]))
    np.add.at(total, places, values)
    counts = np.bincount(places)
    return total / counts.reshape(-1, *[1] * (values.ndim - 1))


def merged(amplitudes: Iterator[np.ndarray], places: np.ndarray, side_px: int, folder: Path) -> Iterator[np.ndarray]:
    """Yield (n, N, N) amplitude of places: √Σ amplitude² of all their exposures.

    The sums lie in an unnamed file, for the exposures of a place may be far from each other.

    Args:
        amplitudes: all patterns in order, (n, N, N) at a time.
        places: (M,) number of the place of each pattern.
        side_px: N.
        folder: where the file is.
    """
    count = int(places.max()) + 1
    with tempfile.TemporaryFile(dir=folder) as file:
        allocate = getattr(os, "posix_fallocate", None)
        if allocate is not None:  # or a full disk ends the process, and not with an error
            allocate(file.fileno(), 0, count * side_px**2 * 8)
        file.truncate(count * side_px**2 * 8)
        sums = np.memmap(file, np.float64, "r+", shape=(count, side_px, side_px))
        first = 0
        for chunk in amplitudes:
            for amplitude, place in zip(chunk, places[first : first + len(chunk)], strict=True):
                sums[place] += np.square(amplitude, dtype=np.float64)
            first += len(chunk)
        step = max(1, 8 * 2**20 // (side_px**2 * 8))
        for start in range(0, count, step):
            yield np.sqrt(sums[start : start + step]).astype(np.float32)
