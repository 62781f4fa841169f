"""From numbers as a detector stores them to amplitude: values that are no measurement, dark frames, the root.

Unsigned detectors store 2^b − 1 where there was no measurement or the pixel ran over; others store negative numbers
or NaN. A pixel that holds such a value in every pattern is dead, and is a bad pixel from then on; one that holds it in
some patterns is an error, unless an option says what to do.

Clauses SCAN-04 and SCAN-11 of <doc-ref type="contract">specs/data_contracts.md</doc-ref>.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np

from ptycho_torch.contracts.contract import violation
from ptycho_torch.errors import DataContractError
from ptycho_torch.files.remedies import MOST_PIXELS, MOST_WRONG, adding

LARGEST_AMPLITUDE = 1e17

MOST_HIDDEN = 0.1
"""Share of the counts that bad pixels may hide without a word of the user."""

GAP = 2**16 - 1
"""What detectors of 16 bits write where they have no measurement; a program may have stored it in a wider type."""

_FEW = 3
_EXACT_FLOAT32 = 2**24


@dataclasses.dataclass(frozen=True)
class ValueRules:
    """What becomes of the numbers of a stack.

    Attributes:
        path: the scan, for errors.
        key: the patterns, for errors.
        counts: whether the root is taken.
        bad_pixels: (H, W) bool of the whole frame, or None.
        gaps: (H, W) bool of pixels that hold ``GAP`` in every pattern, or None.
        dark: (H, W) float32 to take off, or None.
        white: (H, W) float32 to divide by, or None.
        limits: smallest and largest value that is a measurement.
        bits: of a pixel's value, where the file says less than the type has.
        keep_saturated: whether values from 2^b − 1 on are taken as they are.
        clip_negative: whether negative values become 0.
        numbers: of the patterns in the file, for errors; None where all are taken.
        ranks: what ``--select`` counts them by, for errors; None where all are taken.
    """

    path: Path
    key: str
    counts: bool
    bad_pixels: np.ndarray | None = None
    gaps: np.ndarray | None = None
    dark: np.ndarray | None = None
    white: np.ndarray | None = None
    limits: tuple[float, float] = (-math.inf, math.inf)
    bits: int | None = None
    keep_saturated: bool = False
    clip_negative: bool = False
    numbers: np.ndarray | None = None
    ranks: np.ndarray | None = None

    def top(self, dtype: np.dtype) -> float:
        """Return the value from which on a number of this type is no measurement; infinite where there is none.

        2^b − 1 of unsigned whole numbers of b bits; of floating-point numbers and those of 64 bits 2^32 − 1, which only
        an unsigned detector of 32 bits makes.
        """
        return math.inf if self.keep_saturated else no_measurement_from(dtype, self.bits, counts=self.counts)


def no_measurement_from(dtype: np.dtype, bits: int | None = None, *, counts: bool = True) -> float:
    """Return the value from which on numbers of a type are no measurement: see ``ValueRules.top``.

    >>> no_measurement_from(np.dtype(np.uint16)), no_measurement_from(np.dtype(np.int64)) == 2**32 - 1
    (65535.0, True)
    """
    if bits is None and (dtype.kind == "f" or (counts and dtype.itemsize == 8)):
        return float(2**32 - 1) if counts and dtype.itemsize > 2 else math.inf
    if bits is None and dtype.kind != "u":
        return math.inf
    return float(2 ** min(bits or 64, 8 * dtype.itemsize) - 1)


class ValueReader:
    """Brings patterns to amplitude, and notes which pixels held no measurement.

    Args:
        rules: what becomes of the numbers.
        rows: of the part of the frames that is used.
        columns: of it.
    """

    def __init__(self, rules: ValueRules, rows: slice, columns: slice) -> None:
        self.rules, self._rows, self._columns = rules, rows, columns
        shape = (rows.stop - rows.start, columns.stop - columns.start)
        window = (rows, columns)
        self._bad = None if rules.bad_pixels is None else np.asarray(rules.bad_pixels[window], bool)
        self._gaps = None if rules.gaps is None else rules.gaps[window]
        self._dark = None if rules.dark is None else rules.dark[window].astype(np.float32)
        self._gain = self._gain_of(rules.white)
        self._count = 0
        self._top = math.inf
        self._hits = np.zeros(shape, np.int64)
        self._grave = np.zeros(shape, np.int64)
        self._first_hit = np.full(shape, -1, np.int64)
        self._held = np.zeros(shape)
        self._same = np.ones(shape, bool)
        self._below_zero = np.zeros(shape)
        self._below_dark = self._dark_counts = 0.0
        self._hidden_counts = self._kept_counts = 0.0

    def amplitude(self, first: int, stored: np.ndarray) -> np.ndarray:
        """Return (n, h, w) float32 amplitude of (n, H, W) numbers as stored; bad and dead pixels are 0.

        amplitude = √((stored − dark) / white)

        The memory of ``stored`` may be used for it.

        Args:
            first: number of the first pattern, for errors.
            stored: real numbers.

        Raises:
            DataContractError: SCAN-04 for a value on a good pixel that is no amplitude, or no intensity.
        """
        # float16 could not even be compared with the bounds.
        dtype = np.dtype(np.float32) if stored.dtype.itemsize == 2 and stored.dtype.kind == "f" else stored.dtype
        values = np.ascontiguousarray(stored[:, self._rows, self._columns], dtype=dtype.newbyteorder("="))
        self._hide(values)
        low, high = self.rules.limits
        top = self._top = self.rules.top(stored.dtype)
        # A minimum or maximum that is NaN compares as False.
        least, most = 0 if values.dtype.kind == "u" else values.min(), values.max()
        if self._gaps is not None or not (least >= max(0, low) and most < top and most <= high):
            self._note(first, values, top)
            most = values.max()
        self._count += len(values)
        if self._hits.any():
            self._refuse_loose()
        if self._dark is not None or self._gain is not None:
            values = self._corrected(values)
            most = values.max()
        largest = LARGEST_AMPLITUDE**2 if self.rules.counts else LARGEST_AMPLITUDE
        if not most <= largest:
            raise self._bad_value(first, values, ~(values <= largest))
        if not self.rules.counts:
            return values.astype(np.float32, copy=False)
        # Whole numbers from 2^24 on and float64 are more than float32 holds before the root is taken.
        if values.dtype.kind in "iu" and most < _EXACT_FLOAT32:
            amplitude = values.view(np.float32) if values.itemsize == 4 else np.empty(values.shape, np.float32)
            np.copyto(amplitude, values, casting="unsafe")
            return np.asarray(np.sqrt(amplitude, out=amplitude))
        if values.dtype == np.float32:
            return np.asarray(np.sqrt(values, out=values))
        return np.sqrt(values, dtype=np.float64, casting="unsafe").astype(np.float32)

    def finish(self) -> tuple[np.ndarray | None, tuple[str, ...]]:
        """Return the (h, w) bad pixels of the window, or None, and what a user should know.

        Raises:
            DataContractError: SCAN-04, a dark frame or a clip that takes away more than noise.
        """
        dead, notices = self._dead, []
        if dead.any():
            values = ", ".join(_number(value) for value in np.unique(self._held[dead])[:_FEW])
            notices.append(
                f"{int(dead.sum())} pixels hold {values} in every pattern, no measurement: taken for bad "
                f"({self._places(dead)})"
            )
        loose = ~dead & (self._hits > 0)
        if loose.any():
            below = float(self._below_zero[loose].sum())
            notices.append(
                f"{int(self._hits[loose].sum())} negative values, "
                f"{self._hits[loose].sum() / (self._count * dead.size):.1%} of all, are set to 0: {below:.6g} counts, "
                f"where {self._kept_counts:.6g} stay"
            )
        if self._below_dark:
            notices.append(
                f"{self._below_dark:.6g} counts by which pixels lie below the dark frames are set to 0, where "
                f"{self._kept_counts:.6g} stay"
            )
        taken_before = self._below_dark > max(self._dark_counts / 2, MOST_HIDDEN * self._kept_counts)
        if taken_before and not self.rules.clip_negative:
            raise self._refused(
                f"patterns that lie {self._below_dark:.4g} counts below the dark frames of {self._dark_counts:.4g}",
                "dark frames that were not taken off before",
                "If they were taken off before, leave them: `--dark-path none`; if not, say so: `--clip-negative`",
            )
        bad = self._bad
        if dead.any():
            bad = dead if bad is None else bad | dead
        return bad, tuple(notices)

    def note_kept(self, counts: float) -> None:
        """Note the counts of patterns that stay, for the share that bad pixels hide."""
        self._kept_counts += counts

    @property
    def hidden_share(self) -> float:
        """Share of the counts that lie on bad pixels of the mask."""
        total = self._hidden_counts + self._kept_counts
        return self._hidden_counts / total if total > 0 else 0.0

    @property
    def _dead(self) -> np.ndarray:
        """Pixels that have held the same value, which is no measurement, in every pattern so far."""
        return np.asarray((self._hits == self._count) & self._same & (self._hits > 0))

    def _gain_of(self, white: np.ndarray | None) -> np.ndarray | None:
        if white is None:
            return None
        white = white[self._rows, self._columns].astype(np.float64)
        good = (white > 0) if self._bad is None else (white > 0) & ~self._bad
        self._bad = ~(white > 0) if self._bad is None else self._bad | ~(white > 0)
        with np.errstate(divide="ignore", invalid="ignore"):
            gain = np.where(white > 0, white / white[good].mean(), 1.0)
        return np.asarray(gain, np.float32)

    def _hide(self, values: np.ndarray) -> None:
        """Set bad pixels to 0, and note what they held."""
        if self._bad is None or not self._bad.any():
            return
        hidden = values[:, self._bad]
        measured = (hidden > 0) & (hidden < min(self.rules.top(values.dtype), LARGEST_AMPLITUDE))
        held = np.where(measured, hidden, 0).astype(np.float64)
        if self._dark is not None:
            held = np.maximum(held - self._dark[self._bad], 0)
        self._hidden_counts += float(held.sum() if self.rules.counts else np.square(held).sum())
        values[:, self._bad] = 0

    def _note(self, first: int, values: np.ndarray, top: float) -> None:
        """Set values that are no measurement to 0, and note their pixels."""
        low, high = self.rules.limits
        beyond = ~(values < top) | ~(values <= high)
        if self._gaps is not None:
            beyond |= self._gaps
        negative = values < 0
        hits = beyond | negative | (values < low)
        held = np.where(hits, values, 0)
        at = hits.argmax(axis=0)
        new = hits.any(axis=0) & (self._first_hit < 0)
        self._held = np.where(new, np.take_along_axis(held, at[None], axis=0)[0], self._held)
        self._first_hit = np.where(new, first + at, self._first_hit)
        # Whatever lies beyond the largest value says the same: that there is no measurement. NaN is beyond it.
        self._same &= (~hits | (held == self._held) | (beyond & ~(self._held < 0))).all(axis=0)
        self._hits += hits.sum(axis=0)
        self._grave += (hits & ~(negative & (values > -math.inf))).sum(axis=0)
        self._below_zero -= np.where(negative, values, 0).sum(axis=0, dtype=np.float64)
        values[hits] = 0

    def _refuse_loose(self) -> None:
        """Raise where a pixel holds a measurement in some patterns and none in others."""
        wrong = (self._hits > 0) & ~self._dead
        if self.rules.clip_negative:
            wrong &= self._grave > 0
        if not wrong.any():
            return
        candidates = np.argwhere(wrong)
        row, column = (int(index) for index in candidates[np.argmin(self._first_hit[wrong])])
        held = float(self._held[row, column])
        place = self._place(int(self._first_hit[row, column]), row, column)
        expected = "finite counts ≥ 0" if self.rules.counts else ""
        filled = (self._first_hit == self._first_hit[row, column]) & (self._held == held) & wrong
        good = wrong.size if self._bad is None else wrong.size - int(self._bad.sum())
        if math.isfinite(held) and filled.sum() > MOST_WRONG * good:
            remedy = f"If the scan ended there, leave out what holds no measurement: {adding('--drop-dark')}"
            raise self._refused(f"{_number(held)} at {place} and in most of its pixels", expected, remedy)
        if -math.inf < held < 0:
            remedy = "If they are noise about zero, as after taking a background off, set them to 0: `--clip-negative`"
            raise self._refused(f"{held:.6g} at {place}", expected, remedy)
        if 0 <= held < math.inf:
            low, high = self.rules.limits
            # The smallest number that is none, or others of a pixel's numbers would be told next.
            least = min(held, self._top, math.floor(high) + 1.0 if high < self._top else math.inf)
            pixels = f"Leave such pixels out of all patterns: {adding('--saturated', _value(least))}; or take"
            raise self._refused(
                f"{_number(held)} at {place}, where the pixel has run over or holds no measurement",
                expected or "amplitudes that were measured",
                f"{'Take' if held < low else pixels} the numbers as they are: `--saturated keep`",
            )
        raise self._refused(
            f"{held:.6g} at {place}",
            expected,
            self._leave_out(candidates, int(self._first_hit[row, column])),
        )

    def _leave_out(self, pixels: np.ndarray, pattern: int) -> str:
        """Return what to do about a pattern with pixels, (n, 2), that are not finite."""
        if len(pixels) <= MOST_PIXELS:
            places = ";".join(f"{row + self._rows.start},{column + self._columns.start}" for row, column in pixels)
            return f"If these pixels measure nothing, say so: {adding('--bad-pixels', places)}"
        rank = pattern if self.rules.ranks is None else int(self.rules.ranks[pattern])
        before = f"0:{rank}," if rank else ""
        return f"Leave the pattern out: {adding('--select', f'{before}{rank + 1}:')}"

    def _corrected(self, values: np.ndarray) -> np.ndarray:
        """Take the dark frame off and divide by the flat field."""
        wide = np.float32 if values.dtype.itemsize <= 2 or values.dtype == np.float32 else np.float64
        corrected: np.ndarray = values.astype(wide)
        if self._dark is not None:
            dark = np.where(self._dead, 0, self._dark)
            if self._bad is not None:
                dark[self._bad] = 0
            corrected = np.subtract(corrected, dark, out=corrected)
            below = np.minimum(corrected, 0)
            self._below_dark -= float(below.sum(dtype=np.float64))
            self._dark_counts += len(values) * float(dark.sum(dtype=np.float64))
            corrected = np.maximum(corrected, 0, out=corrected)
        if self._gain is not None:
            corrected = np.divide(corrected, self._gain, out=corrected)
        return corrected

    def _bad_value(self, first: int, values: np.ndarray, bad: np.ndarray) -> DataContractError:
        number, row, column = (int(index) for index in np.argwhere(bad)[0])
        expected = "finite counts ≥ 0" if self.rules.counts else ""
        found = f"{values[number, row, column]:.6g} at {self._place(first + number, row, column)}"
        return self._refused(found, expected, self._leave_out(np.argwhere(bad.any(axis=0)), first + number))

    def _place(self, pattern: int, row: int, column: int) -> str:
        number = pattern if self.rules.numbers is None else self.rules.numbers[pattern]
        return f"row {row + self._rows.start}, column {column + self._columns.start} of pattern {number}"

    def _refused(self, found: str, expected: str, remedy: str) -> DataContractError:
        return violation("SCAN-04", found, path=self.rules.path, key=self.rules.key, expected=expected, remedy=remedy)

    def _places(self, pixels: np.ndarray) -> str:
        places = [
            f"row {r + self._rows.start}, column {c + self._columns.start}" for r, c in np.argwhere(pixels)[:_FEW]
        ]
        return "; ".join([*places, "…"] if pixels.sum() > _FEW else places)


def _value(value: float) -> str:
    """Return a value as an option takes it."""
    return str(int(value)) if value.is_integer() else repr(value)


def _number(value: float) -> str:
    for bits in (16, 32, 64):
        if value in (2.0**bits - 1, 2.0**bits):
            return f"2^{bits} − 1"
    return f"{value:.6g}"
