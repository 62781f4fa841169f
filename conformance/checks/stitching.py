"""Patches of two experiments become two objects, with either weighting."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from conformance.judge.agreement import FLOAT64, Compared
from conformance.oracle import operations as oracle

if TYPE_CHECKING:
    from ptycho_torch.reconstruction.reassembly import Stitched, Weighting

PATCH_PX, CROP_PX = 12, 8
Window = Callable[[np.ndarray, int], np.ndarray]
"""Weight at u pixels from the first one of a square of so many."""

Parts = dict[str, np.ndarray]


@dataclass(frozen=True)
class Placed:
    """Patches of one experiment.

    Attributes:
        patches: (n, N, N).
        positions_px: (n, 2), where they are put.
        expected_px: (m, 2), positions for which the canvas is made; None for those where they are put.
    """

    patches: np.ndarray
    positions_px: np.ndarray
    expected_px: np.ndarray | None = None

    @property
    def framed_px(self) -> np.ndarray:
        """Positions for which the canvas is made."""
        return self.positions_px if self.expected_px is None else self.expected_px


def hann(u: np.ndarray, crop_px: int) -> np.ndarray:
    """Weight of ``smooth``."""
    return np.where((u > -0.5) & (u < crop_px - 0.5), np.sin(np.pi * (u + 0.5) / crop_px) ** 2, 0.0)


def one(u: np.ndarray, crop_px: int) -> np.ndarray:
    """Weight of ``uniform``: 1 on the square, falling to 0 over the pixel beyond it."""
    return np.asarray(np.clip(np.minimum(1 + u, crop_px - u), 0, 1))


def _line(size_px: int, first_px: float, crop_px: int, window: Window) -> tuple[np.ndarray, np.ndarray]:
    """Return, along one axis of a canvas, the weights and the matrix that takes a square's pixels to it, bilinear.

    Where a neighbour lies outside of the square, the other one stands alone.
    """
    u = np.arange(size_px) - first_px
    near = np.clip(1 - np.abs(u[:, None] - np.arange(crop_px)), 0, None)
    inside = near.sum(axis=1, keepdims=True)
    return window(u, crop_px), np.divide(near, inside, out=near, where=inside > 0)


def smooth(scan: Placed, crop_px: int = CROP_PX) -> Parts:
    """Stitch with a Hann window, on the smallest canvas of whole pixels."""
    low, high = np.floor(scan.framed_px.min(axis=0)), np.ceil(scan.framed_px.max(axis=0))
    width, height = (high - low).astype(int) + crop_px
    return _stitched(scan, low, (height, width), crop_px, hann, 0.0)


def uniform(scan: Placed, crop_px: int = CROP_PX) -> Parts:
    """Stitch as the reference does, on its canvas about the mean position [reference page §6]."""
    mean = scan.framed_px.mean(axis=0)
    margin = int(np.ceil(np.abs(scan.framed_px - mean).max()))
    margin += margin % 2
    return _stitched(scan, mean - margin, (crop_px + 2 * margin,) * 2, crop_px, one, oracle.STITCH_FLOOR)


WEIGHTINGS: Mapping[str, Callable[..., Parts]] = {"smooth": smooth, "uniform": uniform}


def _stitched(
    scan: Placed, low: np.ndarray, shape: tuple[int, int], crop_px: int, window: Window, floor: float
) -> Parts:
    """Return object, coverage, squared disagreement and origin by the definition of ``Stitcher``.

    Args:
        scan: the patches.
        low: (x, y) of a patch whose square lies in the corner of the canvas, in pixels.
        shape: of the canvas.
        crop_px: M, side of the square.
        window: weight along an axis.
        floor: added to the coverage under the object.
    """
    height, width = shape
    total, square, cover = np.zeros((height, width), complex), np.zeros((height, width)), np.zeros((height, width))
    for crop, (x, y) in zip(oracle.central(scan.patches, crop_px), scan.positions_px - low, strict=True):
        (weights_x, to_x), (weights_y, to_y) = _line(width, x, crop_px, window), _line(height, y, crop_px, window)
        weight, values = weights_y[:, None] * weights_x, to_y @ crop @ to_x.T
        total, cover, square = total + weight * values, cover + weight, square + weight * np.abs(values) ** 2
    divisor = np.where(cover > 0, cover, 1.0)
    return {
        "object": total / (cover + floor if floor else divisor),
        "coverage": cover,
        "squared disagreement": square / divisor - np.abs(total / divisor) ** 2,
        "origin_px": low - crop_px / 2,
    }


def _scans() -> list[Placed]:
    """Draw two experiments of patches that have nothing in common, at positions between pixels."""
    rng = np.random.default_rng(2)
    scans = []
    for count in (5, 3):
        real, imaginary = rng.standard_normal((2, count, PATCH_PX, PATCH_PX))
        scans.append(Placed(real + 1j * imaginary, rng.uniform(-3, 6, (count, 2))))
    return scans


def named(parts: Mapping[str, Sequence[Parts]]) -> Parts:
    """Name parts by weighting and experiment."""
    return {
        f"{name} {number}, {weighting}": array
        for weighting, experiments in parts.items()
        for number, part in enumerate(experiments)
        for name, array in part.items()
    }


def _found(scans: Sequence[Placed], weighting: Weighting) -> list[Parts]:
    """Stitch the patches of all experiments in turn, some at a time."""
    import torch

    from ptycho_torch.reconstruction.reassembly import ExperimentStitcher

    numbers = np.concatenate([np.full(len(scan.patches), number) for number, scan in enumerate(scans)])
    order = np.random.default_rng(3).permutation(len(numbers))
    patches = torch.from_numpy(np.concatenate([scan.patches for scan in scans])[order])
    positions = torch.from_numpy(np.concatenate([scan.positions_px for scan in scans])[order])
    of_scan = torch.from_numpy(numbers[order])
    stitcher = ExperimentStitcher(
        {number: torch.from_numpy(scan.positions_px) for number, scan in enumerate(scans)},
        PATCH_PX,
        CROP_PX,
        weighting,
    )
    for first in range(0, len(order), 3):
        some = slice(first, first + 3)
        stitcher.add(patches[some], positions[some], of_scan[some])
    return parts_of(stitcher.results())


def parts_of(objects: Mapping[int, Stitched]) -> list[Parts]:
    """Return the parts of stitched objects, in the order of their experiments."""
    return [
        {
            "object": each.object.numpy(),
            "coverage": each.coverage.numpy(),
            "squared disagreement": each.disagreement.numpy() ** 2,
            "origin_px": np.array(each.origin_px),
        }
        for _, each in sorted(objects.items())
    ]


def stitched() -> Compared:
    """Stitch two experiments with either weighting."""
    scans = _scans()
    expected = {each: [stitch(scan) for scan in scans] for each, stitch in WEIGHTINGS.items()}
    found = {"smooth": _found(scans, "smooth"), "uniform": _found(scans, "uniform")}
    return Compared(named(expected), named(found), FLOAT64)
