"""Patches of two experiments become two objects, with either weighting."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from conformance import oracle_operations as oracle
from conformance.hypotheses import Hypothesis
from conformance.step import FLOAT64, Outcome, Step, StepBench

if TYPE_CHECKING:
    from ptycho_torch.reassembly import Weighting

PATCH_PX, CROP_PX = 12, 8
Window = Callable[[np.ndarray], np.ndarray]
Parts = dict[str, np.ndarray]


@dataclass(frozen=True)
class _Scan:
    """Patches (n, N, N) at positions (n, 2), of one experiment."""

    patches: np.ndarray
    positions_px: np.ndarray


def _within(u: np.ndarray, window: np.ndarray | float) -> np.ndarray:
    return np.where((u > -0.5) & (u < CROP_PX - 0.5), window, 0.0)


def _hann(u: np.ndarray) -> np.ndarray:
    """Weight at u pixels from the first one of the square."""
    return _within(u, np.sin(np.pi * (u + 0.5) / CROP_PX) ** 2)


def _line(size_px: int, first_px: float, window: Window) -> tuple[np.ndarray, np.ndarray]:
    """Return, along one axis of a canvas, the weights and the matrix that takes a square's pixels to it, bilinear.

    Where a neighbour lies outside of the square, the other one stands alone.
    """
    u = np.arange(size_px) - first_px
    near = np.clip(1 - np.abs(u[:, None] - np.arange(CROP_PX)), 0, None)
    inside = near.sum(axis=1, keepdims=True)
    return window(u), np.divide(near, inside, out=near, where=inside > 0)


def _one(u: np.ndarray) -> np.ndarray:
    """Weight 1 on the square, falling to 0 over the pixel beyond it."""
    return np.asarray(np.clip(np.minimum(1 + u, CROP_PX - u), 0, 1))


def _smooth(scan: _Scan, window: Window = _hann) -> Parts:
    """Stitch with a Hann window, on the smallest canvas of whole pixels."""
    low, high = np.floor(scan.positions_px.min(axis=0)), np.ceil(scan.positions_px.max(axis=0))
    width, height = (high - low).astype(int) + CROP_PX
    return _stitched(scan, low, (height, width), window, 0.0)


def _uniform(scan: _Scan, window: Window = _one) -> Parts:
    """Stitch as the reference does, on its canvas about the mean position [reference page §6]."""
    mean = scan.positions_px.mean(axis=0)
    margin = int(np.ceil(np.abs(scan.positions_px - mean).max()))
    margin += margin % 2
    return _stitched(scan, mean - margin, (CROP_PX + 2 * margin,) * 2, window, oracle.STITCH_FLOOR)


WEIGHTINGS: Mapping[str, Callable[..., Parts]] = {"smooth": _smooth, "uniform": _uniform}


def _stitched(scan: _Scan, low: np.ndarray, shape: tuple[int, int], window: Window, floor: float) -> Parts:
    """Return object, coverage, squared disagreement and origin by the definition of ``Stitcher``.

    Args:
        scan: the patches.
        low: (x, y) of a patch whose square lies in the corner of the canvas, in pixels.
        shape: of the canvas.
        window: weight along an axis.
        floor: added to the coverage under the object.
    """
    height, width = shape
    total, square, cover = np.zeros((height, width), complex), np.zeros((height, width)), np.zeros((height, width))
    for crop, (x, y) in zip(oracle.central(scan.patches, CROP_PX), scan.positions_px - low, strict=True):
        (weights_x, to_x), (weights_y, to_y) = _line(width, x, window), _line(height, y, window)
        weight, values = weights_y[:, None] * weights_x, to_y @ crop @ to_x.T
        total, cover, square = total + weight * values, cover + weight, square + weight * np.abs(values) ** 2
    divisor = np.where(cover > 0, cover, 1.0)
    return {
        "object": total / (cover + floor if floor else divisor),
        "coverage": cover,
        "squared disagreement": square / divisor - np.abs(total / divisor) ** 2,
        "origin_px": low - CROP_PX / 2,
    }


def _scans() -> list[_Scan]:
    """Draw two experiments of patches that have nothing in common, at positions between pixels."""
    rng = np.random.default_rng(2)
    scans = []
    for count in (5, 3):
        real, imaginary = rng.standard_normal((2, count, PATCH_PX, PATCH_PX))
        scans.append(_Scan(real + 1j * imaginary, rng.uniform(-3, 6, (count, 2))))
    return scans


def _named(parts: Mapping[str, Sequence[Parts]]) -> Parts:
    """Name parts by weighting and experiment."""
    return {
        f"{name} {number}, {weighting}": array
        for weighting, experiments in parts.items()
        for number, part in enumerate(experiments)
        for name, array in part.items()
    }


def _mistakes(scans: Sequence[_Scan]) -> Iterator[Hypothesis]:
    windows: dict[str, Window] = {
        "window half a pixel off": lambda u: _within(u, np.sin(np.pi * u / CROP_PX) ** 2),
        "window not squared": lambda u: np.sqrt(_hann(u)),
        "every pixel of the square counts alike": lambda u: _within(u, 1.0),
        "uniform in place of smooth weights": _one,
    }
    for name, window in windows.items():
        yield Hypothesis(name, _named({"smooth": [_smooth(scan, window) for scan in scans]}))
    yield Hypothesis(
        "smooth in place of uniform weights", _named({"uniform": [_uniform(scan, _hann) for scan in scans]})
    )
    changes: dict[str, Callable[[_Scan], _Scan]] = {
        "swapped x/y": lambda scan: _Scan(scan.patches, scan.positions_px[:, ::-1]),
        "sign of positions": lambda scan: _Scan(scan.patches, -scan.positions_px),
        "positions rounded to whole pixels": lambda scan: _Scan(scan.patches, np.round(scan.positions_px)),
        "conjugation": lambda scan: _Scan(scan.patches.conj(), scan.positions_px),
        "patches transposed": lambda scan: _Scan(scan.patches.swapaxes(1, 2), scan.positions_px),
        "square one pixel off in the patch": lambda scan: _Scan(
            np.roll(scan.patches, -1, axis=(1, 2)), scan.positions_px
        ),
    }
    for name, change in changes.items():
        yield Hypothesis(
            name, _named({each: [stitch(change(scan)) for scan in scans] for each, stitch in WEIGHTINGS.items()})
        )
    whole = _Scan(np.concatenate([scan.patches for scan in scans]), np.concatenate([s.positions_px for s in scans]))
    yield Hypothesis(
        "experiments mixed", _named({each: [stitch(whole)] * len(scans) for each, stitch in WEIGHTINGS.items()})
    )


def _found(scans: Sequence[_Scan], weighting: Weighting) -> list[Parts]:
    """Stitch the patches of all experiments in turn, some at a time."""
    import torch

    from ptycho_torch.reassembly import ExperimentStitcher

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
    return [
        {
            "object": each.object.numpy(),
            "coverage": each.coverage.numpy(),
            "squared disagreement": each.disagreement.numpy() ** 2,
            "origin_px": np.array(each.origin_px),
        }
        for _, each in sorted(stitcher.results().items())
    ]


def _stitch(_: StepBench) -> Outcome:
    """Stitch two experiments with either weighting."""
    scans = _scans()
    expected = {each: [stitch(scan) for scan in scans] for each, stitch in WEIGHTINGS.items()}
    found = {"smooth": _found(scans, "smooth"), "uniform": _found(scans, "uniform")}
    return Outcome(_named(expected), _named(found), FLOAT64, lambda: _mistakes(scans))


STITCHING: tuple[Step, ...] = (Step("forward.stitch", ("STITCH-01",), _stitch),)
