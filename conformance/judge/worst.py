"""Where in an array the largest deviation is, kept small enough for a report."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SIDE = 32
"""A map has at most as many cells on a side."""

IMAGE, KERNEL = (1, 2), (2, 3)
"""Axes that a map shows: rows and columns of a stage's output, input and output channels of a kernel."""


@dataclass(frozen=True)
class Place:
    """The element of a tensor that deviates most, and a map of where the others are.

    Attributes:
        shape: of the tensor, channels-last.
        index: of the element.
        deviation: |x − truth| / RMS(truth) there.
        axes: of the tensor, that the map shows.
        cells: (rows, columns) largest deviation of each cell, at most 32 × 32.
    """

    shape: tuple[int, ...]
    index: tuple[int, ...]
    deviation: float
    axes: tuple[int, ...]
    cells: np.ndarray


def locate(deviation: np.ndarray, axes: tuple[int, int] = IMAGE) -> Place | None:
    """Return where a tensor deviates most; None where it has no elements.

    Args:
        deviation: element-wise |x − truth| / RMS(truth).
        axes: what the map shows of a tensor with as many axes; else the map shows its last two.
    """
    if deviation.size == 0:
        return None
    index = tuple(int(each) for each in np.unravel_index(int(np.argmax(deviation)), deviation.shape))
    shown = axes if deviation.ndim > max(axes) else tuple(range(deviation.ndim))[-2:]
    others = tuple(axis for axis in range(deviation.ndim) if axis not in shown)
    plane = np.atleast_2d(deviation.max(axis=others))
    cells = _largest_of_cells(_largest_of_cells(plane, 0), 1)
    return Place(deviation.shape, index, float(deviation[index]), shown, cells)


def _largest_of_cells(plane: np.ndarray, axis: int) -> np.ndarray:
    length = plane.shape[axis]
    step = -(-length // SIDE)
    return np.asarray(np.maximum.reduceat(plane, np.arange(0, length, step), axis=axis))
