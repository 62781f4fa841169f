"""The element that deviates most is found, and the map shows where it is."""

from __future__ import annotations

import numpy as np
import pytest

from conformance.judge.worst import KERNEL, SIDE, locate


@pytest.mark.parametrize(
    ("shape", "index", "shown"),
    [((3, 64, 64, 4), (1, 31, 32, 3), (1, 2)), ((2, 7, 9, 1), (1, 6, 8, 0), (1, 2)), ((5,), (4,), (0,))],
)
def test_a_place_is_that_of_the_largest_deviation(
    shape: tuple[int, ...], index: tuple[int, ...], shown: tuple[int, ...]
) -> None:
    deviation = np.random.default_rng(0).random(shape)
    deviation[index] = 7.0
    place = locate(deviation)
    assert place is not None
    assert (place.index, place.deviation, place.axes, place.shape) == (index, 7.0, shown, shape)
    assert place.cells.max() == 7.0
    assert max(place.cells.shape) <= SIDE
    row, column = np.unravel_index(np.argmax(place.cells), place.cells.shape)
    steps = [-(-shape[axis] // SIDE) for axis in shown]
    expected = [index[axis] // step for axis, step in zip(shown, steps, strict=True)]
    assert [row, column][-len(expected) :] == expected


def test_a_kernel_shows_its_channels() -> None:
    deviation = np.zeros((3, 3, 5, 6))
    deviation[2, 0, 4, 1] = 1.0
    place = locate(deviation, KERNEL)
    assert place is not None
    assert place.cells.shape == (5, 6)
    assert place.cells[4, 1] == 1.0


def test_nothing_has_no_place() -> None:
    assert locate(np.empty(0)) is None


def test_a_single_number_has_a_place() -> None:
    place = locate(np.array(3.0))
    assert place is not None
    assert (place.index, place.cells.shape) == ((), (1, 1))
