"""What looks wrong in a scan that holds every clause: units, centre, orientation, intensity in place of amplitude.

A hint is a line for people and never an error: the data alone cannot prove it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ptycho_torch.orientation import OrientationHint, judge_orientation
from ptycho_torch.scan import Scan

WIDEST_SCAN_FRAMES = 1000
"""Scans wider than this many frames are hardly in pixels; the largest published ones span a few hundred."""

OFF_CENTRE_SHARE = 1 / 16
"""Of the frame's side. A tilted probe moves the centre of mass by itself: real frames of 128 and 64 pixels that are cut
right lie 2.8 and 2.5 pixels off (0.022 and 0.039). A detector cut around the wrong pixel is many off."""


def scan_hints(scan: Scan, mean_counts: np.ndarray) -> Iterator[str]:
    """Yield the hints about one scan.

    Args:
        scan: the scan.
        mean_counts: (N, N) mean of amplitude², as ``ptycho_torch.scan.Examination`` has it.

    Raises:
        DataContractError: a pattern that is read breaks SCAN-04.
    """
    yield from hint_positions(scan.positions_px, scan.stack.frame_px)
    yield from hint_centre(mean_counts)
    yield from hint_orientation(judge_orientation(scan))


def hint_positions(positions_px: np.ndarray, frame_px: int) -> Iterator[str]:
    """Yield a line where positions are hardly in object pixels.

    >>> list(hint_positions(np.array([[0.0, 0.0], [1e-6, 0.0]]), 64))[0][:43]
    'Positions span 1e-06: hardly object pixels.'
    """
    extent = float(np.ptp(positions_px, axis=0).max())
    if 0 < extent < 1 or extent > WIDEST_SCAN_FRAMES * frame_px:
        yield (
            f"Positions span {extent:.3g}: hardly object pixels. If they are metres or another unit, divide them by "
            "the object pixel λ·z / (N·p): ptycho-torch convert-scan --positions-scale FACTOR."
        )


def hint_centre(mean_counts: np.ndarray) -> Iterator[str]:
    """Yield a line where the centre of mass of the mean counts is off the zero frequency at (N // 2, N // 2)."""
    N = len(mean_counts)
    total = mean_counts.sum()
    if not total > 0:
        return
    pixels = np.arange(N)
    row = float((mean_counts.sum(axis=1) * pixels).sum() / total)
    column = float((mean_counts.sum(axis=0) * pixels).sum() / total)
    if max(abs(row - N // 2), abs(column - N // 2)) > OFF_CENTRE_SHARE * N:
        yield (
            f"The mean pattern is centred on row {row:.1f}, column {column:.1f}, and the zero frequency belongs at "
            f"({N // 2}, {N // 2}): crop with detector_centre_row_px and detector_centre_column_px, or "
            "ptycho-torch convert-scan --crop N --centre auto."
        )


def hint_orientation(orientation: OrientationHint) -> Iterator[str]:
    """Yield a line where another orientation, or the root of the patterns, fits the positions better."""
    if orientation.looks_like_intensity:
        yield (
            f"The patterns look like intensity: held-out patterns are predicted {orientation.intensity_gain:.1f} times "
            "better from their square root. Convert them: ptycho-torch convert-scan --from-intensity."
        )
    if orientation.looks_wrong:
        yield orientation.describe()
