"""Axis orders of TensorFlow and PyTorch, as named pairs that undo each other.

An axis order is a tuple of axes: a letter is one axis, ``B*C`` two folded into one with the second
fastest, a digit an axis of that fixed length. Both directions are read from the same two tuples, so one
is the inverse of the other by construction.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from ptycho_tf_bridge.errors import LayoutError


@dataclass(frozen=True)
class Layout:
    """One quantity's axes on both sides.

    Attributes:
        name: key in ``LAYOUTS``.
        tensorflow: axes of the TensorFlow array.
        torch: axes of the PyTorch array.

    >>> LAYOUTS["channels"].to_torch(np.zeros((3, 64, 64, 4))).shape
    (3, 4, 64, 64)
    >>> LAYOUTS["flat"].to_torch(np.zeros((12, 64, 64, 1)), channels=4).shape
    (3, 4, 64, 64)
    """

    name: str
    tensorflow: tuple[str, ...]
    torch: tuple[str, ...]

    @property
    def needs_channels(self) -> bool:
        """Whether ``to_torch`` must be told C, which the folded TensorFlow array does not show."""
        return any("*" in axis for axis in self.tensorflow)

    def to_torch(self, array: np.ndarray, channels: int | None = None) -> np.ndarray:
        """Return a contiguous copy in PyTorch's axis order, values and dtype untouched.

        Args:
            array: in the TensorFlow order.
            channels: C, needed by the folded layouts and ignored by the others.

        Raises:
            LayoutError: wrong number of axes, wrong length of a fixed axis, C missing or no divisor.
        """
        return self._convert(array, self.tensorflow, self.torch, channels)

    def to_tensorflow(self, array: np.ndarray) -> np.ndarray:
        """Return a contiguous copy in TensorFlow's axis order; the inverse of ``to_torch``."""
        return self._convert(array, self.torch, self.tensorflow, None)

    def _convert(
        self, array: np.ndarray, source: tuple[str, ...], target: tuple[str, ...], channels: int | None
    ) -> np.ndarray:
        sizes = self._axis_sizes(array, source, channels)
        letters = [letter for axis in target for letter in axis.split("*") if letter != "1"]
        order = list(sizes)
        unfolded = array.reshape(tuple(sizes.values())).transpose([order.index(letter) for letter in letters])
        shape = tuple(math.prod(sizes.get(letter, 1) for letter in axis.split("*")) for axis in target)
        return np.array(unfolded.reshape(shape), order="C", copy=True)

    def _axis_sizes(self, array: np.ndarray, axes: tuple[str, ...], channels: int | None) -> dict[str, int]:
        """Length of each axis once folded ones are split and axes of length 1 dropped, in array order."""
        where = f"layout {self.name!r}: expected axes ({', '.join(axes)}), found shape {array.shape}"
        if array.ndim != len(axes):
            raise LayoutError(f"{where}: {array.ndim} axes instead of {len(axes)}.")
        sizes: dict[str, int] = {}
        for axis, size in zip(axes, array.shape, strict=True):
            if axis.isdigit() and size != int(axis):
                raise LayoutError(f"{where}: an axis of length {axis} has length {size}.")
            if "*" in axis:
                if channels is None or channels < 1:
                    raise LayoutError(f"{where}: pass channels=C ≥ 1 to split the folded axis {axis}.")
                if size % channels:
                    raise LayoutError(f"{where}: {size} patches are no whole number of groups of {channels}.")
                outer, inner = axis.split("*")
                sizes |= {outer: size // channels, inner: channels}
            elif axis != "1":
                sizes[axis] = size
        return sizes


LAYOUTS: Mapping[str, Layout] = MappingProxyType(
    {
        layout.name: layout
        for layout in (
            Layout("channels", ("B", "H", "W", "C"), ("B", "C", "H", "W")),
            Layout("flat", ("B*C", "H", "W", "1"), ("B", "C", "H", "W")),
            Layout("flat_modes", ("B*C", "H", "W", "M"), ("B", "C", "M", "H", "W")),
            Layout("offsets", ("B", "1", "2", "C"), ("B", "C", "1", "2")),
            Layout("kernel", ("kh", "kw", "in", "out"), ("out", "in", "kh", "kw")),
            Layout("vector", ("n",), ("n",)),
        )
    }
)
"""Every layout by name; stage and weight tables refer to these names."""
