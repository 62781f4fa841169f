"""Single operations where drawn cases seldom go: hard offsets, and the whole object."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from conformance import oracle_operations as oracle
from conformance.hypotheses import Hypothesis
from conformance.step import Outcome, Step, StepBench

FLOAT64 = 1e-12
_EDGES = (0.0, 1.0, -1.0, 3.0, 0.5, -0.5, 1e-9, -1e-9, 0.9995, -0.9995, 2.0005, -2.0005, 7.25, -11.75, 20.0, -20.0)
"""Offsets in pixels of a 12 × 14 image: whole, next to whole, and outside."""


def _translate(_: StepBench) -> Outcome:
    """Shift images by every pair of hard offsets."""
    import torch

    from ptycho_torch import helper

    pairs = np.array([(x, y) for x in _EDGES for y in _EDGES])
    rng = np.random.default_rng(0)
    images = rng.standard_normal((len(pairs), 12, 14)) + 1j * rng.standard_normal((len(pairs), 12, 14))
    found = helper.translate(torch.from_numpy(images), torch.from_numpy(pairs)).numpy()

    def with_offsets(name: str, offsets_px: np.ndarray) -> Hypothesis:
        return Hypothesis(name, {"translated": oracle.translate(images, offsets_px)})

    mistakes = [
        with_offsets("sign of offsets", -pairs),
        with_offsets("swapped x/y", pairs[:, ::-1]),
        with_offsets("offsets rounded to whole pixels", np.round(pairs)),
        with_offsets("offsets cut to whole pixels", np.trunc(pairs)),
        with_offsets("offsets rounded down to whole pixels", np.floor(pairs)),
        with_offsets("one-pixel shift in x", pairs + np.array([1, 0])),
        with_offsets("one-pixel shift in x", pairs - np.array([1, 0])),
        with_offsets("one-pixel shift in y", pairs + np.array([0, 1])),
        with_offsets("one-pixel shift in y", pairs - np.array([0, 1])),
        with_offsets("one-pixel shift in x and y", pairs + 1),
        with_offsets("one-pixel shift in x and y", pairs - 1),
        with_offsets("offsets ignored", np.zeros_like(pairs)),
        with_offsets("bilinear weights exchanged", 2 * np.ceil(pairs) - 1 - pairs),
    ]
    return Outcome({"translated": oracle.translate(images, pairs)}, {"translated": found}, FLOAT64, mistakes)


PATCH_PX, CROP_PX = 12, 8
Window = Callable[[np.ndarray], np.ndarray]


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


def _smooth(scan: _Scan, window: Window = _hann) -> dict[str, np.ndarray]:
    """Stitch by the definition: object, coverage, squared disagreement and origin."""
    low, high = np.floor(scan.positions_px.min(axis=0)), np.ceil(scan.positions_px.max(axis=0))
    width, height = (high - low).astype(int) + CROP_PX
    total, square, cover = np.zeros((height, width), complex), np.zeros((height, width)), np.zeros((height, width))
    for crop, (x, y) in zip(oracle.central(scan.patches, CROP_PX), scan.positions_px - low, strict=True):
        (weights_x, to_x), (weights_y, to_y) = _line(width, x, window), _line(height, y, window)
        weight, values = weights_y[:, None] * weights_x, to_y @ crop @ to_x.T
        total, cover, square = total + weight * values, cover + weight, square + weight * np.abs(values) ** 2
    divisor = np.where(cover > 0, cover, 1.0)
    return {
        "object": total / divisor,
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


def _named(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {f"{name} {number}": array for number, part in enumerate(parts) for name, array in part.items()}


def _stitch_mistakes(scans: list[_Scan]) -> Iterator[Hypothesis]:
    windows: dict[str, Window] = {
        "window half a pixel off": lambda u: _within(u, np.sin(np.pi * u / CROP_PX) ** 2),
        "window not squared": lambda u: np.sqrt(_hann(u)),
        "every pixel of the square counts alike": lambda u: _within(u, 1.0),
    }
    for name, window in windows.items():
        yield Hypothesis(name, _named([_smooth(scan, window) for scan in scans]))
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
        yield Hypothesis(name, _named([_smooth(change(scan)) for scan in scans]))
    whole = _Scan(np.concatenate([scan.patches for scan in scans]), np.concatenate([s.positions_px for s in scans]))
    yield Hypothesis("experiments mixed", _named([_smooth(whole)] * len(scans)))


def _stitch(_: StepBench) -> Outcome:
    """Stitch two experiments, their patches in turn, with smooth weights."""
    import torch

    from ptycho_torch.reassembly import ExperimentStitcher

    scans = _scans()
    numbers = np.concatenate([np.full(len(scan.patches), number) for number, scan in enumerate(scans)])
    order = np.random.default_rng(3).permutation(len(numbers))
    patches = np.concatenate([scan.patches for scan in scans])[order]
    positions = np.concatenate([scan.positions_px for scan in scans])[order]
    stitcher = ExperimentStitcher(
        {number: torch.from_numpy(scan.positions_px) for number, scan in enumerate(scans)},
        PATCH_PX,
        CROP_PX,
        "smooth",
    )
    for first in range(0, len(order), 3):
        some = slice(first, first + 3)
        stitcher.add(
            torch.from_numpy(patches[some]), torch.from_numpy(positions[some]), torch.from_numpy(numbers[order][some])
        )
    found = [
        {
            "object": each.object.numpy(),
            "coverage": each.coverage.numpy(),
            "squared disagreement": each.disagreement.numpy() ** 2,
            "origin_px": np.array(each.origin_px),
        }
        for _, each in sorted(stitcher.results().items())
    ]
    expected = [_smooth(scan) for scan in scans]
    return Outcome(_named(expected), _named(found), FLOAT64, lambda: _stitch_mistakes(scans))


FORWARD: tuple[Step, ...] = (
    Step("forward.translate", ("merged", "views"), _translate),
    Step("forward.stitch", ("STITCH-01",), _stitch),
)
