"""Known mistakes with arrays: flips, transposes, shifts, permutations, conjugates, factors, offsets.

A mistake is a name and what comes out with it; ``conformance.judge.causes`` decides which of them a candidate made.
Mistakes of one kind of stage are in ``forward`` and ``backward`` of this room.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

Arrays = Mapping[str, np.ndarray]


Change = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Hypothesis:
    """A mistake, and what comes out with it.

    Attributes:
        name: as a report says it.
        gives: by the names of what is judged.
        where: elements that the mistake decides; None for all.
    """

    name: str
    gives: Arrays
    where: np.ndarray | None = None


FACTORS: Mapping[str, float] = {
    "sign": -1.0,
    "factor 2": 2.0,
    "factor 1/2": 0.5,
    "factor π missing": 1 / math.pi,
    "factor π twice": math.pi,
}


def _roll(steps: int, axis: int) -> Change:
    return lambda array: np.roll(array, steps, axis)


def _shift(steps: int, axis: int) -> Change:
    """Shift with zeros coming in."""

    def change(array: np.ndarray) -> np.ndarray:
        moved = np.roll(array, steps, axis)
        edge = [slice(None)] * array.ndim
        edge[axis] = slice(0, steps) if steps > 0 else slice(steps, None)
        moved[tuple(edge)] = 0
        return moved

    return change


def spatial_mistakes(rows: int, columns: int) -> Iterator[tuple[str, Change]]:
    """Yield what can go wrong with rows and columns, given their axes."""
    both = (rows, columns)
    yield "spatial flip of x", lambda array: np.flip(array, columns)
    yield "spatial flip of y", lambda array: np.flip(array, rows)
    yield "spatial flip of x and y", lambda array: np.flip(array, both)
    yield "spatial transpose", lambda array: array.swapaxes(rows, columns)
    yield "spatial rotation by 90°", lambda array: np.rot90(array, 1, both)
    yield "spatial rotation by 270°", lambda array: np.rot90(array, 3, both)
    for axis, letter in ((columns, "x"), (rows, "y")):
        for steps in (1, -1):
            yield f"one-pixel shift in {letter}", _roll(steps, axis)
            yield f"one-pixel shift in {letter}", _shift(steps, axis)
    yield "missing fftshift", lambda array: np.fft.ifftshift(array, both)
    yield "missing fftshift in x", lambda array: np.fft.ifftshift(array, columns)
    yield "missing fftshift in y", lambda array: np.fft.ifftshift(array, rows)


def _spatial_axes(array: np.ndarray) -> tuple[int, int] | None:
    """Rows and columns of (B, H, W, C) images and (3, 3, in, out) kernels; None for anything else."""
    if array.ndim != 4:
        return None
    return (0, 1) if array.shape[:2] == (3, 3) else (1, 2)


def array_mistakes(expected: np.ndarray) -> Iterator[tuple[str, Change]]:
    """Yield what can go wrong with one array, whatever made it."""
    yield "nothing comes through (all zero)", np.zeros_like
    if np.iscomplexobj(expected):
        yield "conjugation", np.conj
        yield "imaginary part dropped", lambda array: array.real + 0j
        yield "real and imaginary part exchanged", lambda array: array.imag + 1j * array.real
        yield "factor i", lambda array: 1j * array
        yield "factor −i", lambda array: -1j * array
    for name, factor in FACTORS.items():
        yield name, lambda array, factor=factor: factor * array  # type: ignore[misc]
    axes = _spatial_axes(expected)
    if axes is not None:
        yield from spatial_mistakes(*axes)
        B, H, W, C = expected.shape
        if C > 1:
            yield "channel order reversed", lambda array: array[..., ::-1]
            yield "channels-last/first mix-up", lambda array: array.transpose(0, 3, 1, 2).reshape(array.shape)
            yield (
                "channels-last/first mix-up",
                lambda array: array.reshape(array.shape[0], C, H, W).transpose(0, 2, 3, 1),
            )
            yield "channels shifted by one", _roll(1, -1)
            yield "channels shifted by one", _roll(-1, -1)
            yield "the first channel for all", lambda array: np.broadcast_to(array[..., :1], array.shape)
            root = math.isqrt(C)
            if root * root == C:
                yield (
                    "rows and columns of the group exchanged",
                    lambda array: array.reshape(*array.shape[:-1], root, root).swapaxes(-1, -2).reshape(array.shape),
                )
        if B > 1 and axes == (1, 2):
            yield "batch order reversed", lambda array: array[::-1]
    if not np.iscomplexobj(expected):
        with np.errstate(over="ignore"):
            yield "intensity for amplitude", np.square
            yield "amplitude for intensity", lambda array: np.sqrt(np.abs(array))
        yield "absolute value", np.abs


def plain_mistakes(expected: np.ndarray) -> Iterator[tuple[str, Change]]:
    """Yield what can go wrong with an array whose last two axes are rows and columns, or whose last one is (x, y)."""
    yield from array_mistakes(expected)
    yield "rounded to whole numbers", np.round
    if expected.ndim == 0:
        return
    yield from (
        ("order reversed", lambda array: array[::-1]),
        ("one off in order", _roll(1, 0)),
        ("one off in order", _roll(-1, 0)),
        ("sorted", lambda array: np.sort(array, axis=-1)),
        ("the first for all", lambda array: np.broadcast_to(array[:1], array.shape)),
    )
    if expected.shape[-1] == 2:
        yield "swapped x/y", lambda array: array[..., ::-1]
        yield "sign of x", lambda array: array * np.array([-1.0, 1.0])
        yield "sign of y", lambda array: array * np.array([1.0, -1.0])
    if expected.ndim > 1:
        yield from spatial_mistakes(-2, -1)
        yield "first two axes exchanged", lambda array: array.swapaxes(0, 1)


def mistakes_everywhere(
    expected: Arrays, of_one: Callable[[np.ndarray], Iterator[tuple[str, Change]]] = array_mistakes
) -> Iterator[Hypothesis]:
    """Yield what can go wrong with several arrays, each mistake made with all of them.

    Args:
        expected: name → array.
        of_one: yields what can go wrong with one.
    """
    for mistake in dict.fromkeys(name for array in expected.values() for name, _ in of_one(array)):
        for turn in range(2):
            gives = {}
            for name, array in expected.items():
                matching = [change for other, change in of_one(array) if other == mistake]
                if len(matching) > turn:
                    gives[name] = matching[turn](array)
            if len(gives) == len(expected):
                yield Hypothesis(mistake, gives)


def permuted(expected: np.ndarray, found: np.ndarray, axis: int) -> np.ndarray | None:
    """Return ``expected`` with the entries of one axis in the order of those of ``found``; None if they are others."""
    if expected.shape != found.shape or expected.shape[axis] < 2:
        return None
    left = np.moveaxis(expected, axis, 0).reshape(expected.shape[axis], -1)
    right = np.moveaxis(found, axis, 0).reshape(found.shape[axis], -1)
    if not (np.isfinite(left).all() and np.isfinite(right).all()):
        return None
    probe = np.random.default_rng(0).standard_normal(left.shape[1])
    ours, theirs = left @ probe, right @ probe
    order = np.argmin(np.abs(theirs[:, None] - ours[None]), axis=1)
    if len(set(order.tolist())) != len(order):
        return None
    return np.asarray(np.take(expected, order, axis=axis))


def fitted_factor(expected: np.ndarray, found: np.ndarray) -> float | complex:
    """Return the factor that brings ``expected`` nearest to ``found``; 1 where nothing can be said."""
    power = float(np.vdot(expected, expected).real)
    if power == 0 or expected.shape != found.shape or not np.isfinite(found).all():
        return 1.0
    factor = np.vdot(expected, found) / power
    return complex(factor) if np.iscomplexobj(factor) and abs(factor.imag) > 1e-9 * abs(factor) else float(factor.real)


def factor_name(factor: float | complex) -> str:
    """Say which factor it is."""
    return f"a constant factor of {factor:.6g}"


def fitted(name: str, expected: np.ndarray, found: np.ndarray) -> Iterator[Hypothesis]:
    """Yield mistakes with a free order or factor, fitted to what was found."""
    for axis, what in ((-1, "channels permuted"), (0, "batch permuted")):
        if expected.ndim == 4:
            reordered = permuted(expected, found, axis)
            if reordered is not None:
                yield Hypothesis(what, {name: reordered})
    factor = fitted_factor(expected, found)
    yield Hypothesis(factor_name(factor), {name: factor * expected})


def rounded(array: np.ndarray, bits: int) -> np.ndarray:
    """Round to a number of significant bits: 11 for TensorFloat-32 and half precision, 8 for bfloat16."""
    if np.iscomplexobj(array):
        return np.asarray(rounded(array.real, bits) + 1j * rounded(array.imag, bits))
    fraction, exponent = np.frexp(array)
    return np.asarray(np.ldexp(np.round(fraction * 2.0**bits) / 2.0**bits, exponent))


def _transposed_group(offsets_px: np.ndarray) -> np.ndarray:
    C = offsets_px.shape[-1]
    root = math.isqrt(C)
    if root * root != C:
        return offsets_px
    grid = offsets_px.reshape(*offsets_px.shape[:-1], root, root)
    return np.asarray(grid.swapaxes(-1, -2).reshape(offsets_px.shape))


OFFSETS: tuple[tuple[str, Change], ...] = (
    ("sign of offsets", np.negative),
    ("swapped x/y", lambda offsets: offsets[:, :, ::-1]),
    ("swapped x/y and sign of offsets", lambda offsets: -offsets[:, :, ::-1]),
    ("sign of x", lambda offsets: offsets * np.array([-1.0, 1.0])[:, None]),
    ("sign of y", lambda offsets: offsets * np.array([1.0, -1.0])[:, None]),
    ("offsets ignored", np.zeros_like),
    ("offsets rounded to whole pixels", np.round),
    ("offsets cut to whole pixels", np.trunc),
    ("offsets twice", lambda offsets: 2 * offsets),
    ("offsets halved", lambda offsets: offsets / 2),
    ("one-pixel shift in x", lambda offsets: offsets + np.array([1.0, 0.0])[:, None]),
    ("one-pixel shift in x", lambda offsets: offsets - np.array([1.0, 0.0])[:, None]),
    ("one-pixel shift in y", lambda offsets: offsets + np.array([0.0, 1.0])[:, None]),
    ("one-pixel shift in y", lambda offsets: offsets - np.array([0.0, 1.0])[:, None]),
    ("one-pixel shift in x and y", lambda offsets: offsets + 1),
    ("one-pixel shift in x and y", lambda offsets: offsets - 1),
    ("channel order of the offsets reversed", lambda offsets: offsets[..., ::-1]),
    ("rows and columns of the group exchanged", _transposed_group),
    ("offsets of the batch's mean", lambda offsets: offsets - offsets.mean(axis=(0, 3), keepdims=True)),
)
"""What can go wrong with (B, 1, 2, C) offsets."""
