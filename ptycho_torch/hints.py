"""What looks wrong in a scan that holds every clause: units, centre, orientation, intensity in place of amplitude.

A hint is a line for people and never an error: the data alone cannot prove it.

<doc-ref type="contract">specs/data_contracts.md</doc-ref>
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ptycho_torch.orientation import OrientationHint, judge_orientation
from ptycho_torch.preparation import median_step
from ptycho_torch.scan import Scan

WIDEST_SCAN_FRAMES = 1000
"""Scans wider than this many frames are hardly in pixels; the largest published ones span a few hundred."""

LEAST_SPREAD_FRAMES = 1 / 32
PLACES_FOR_SPREAD = 9
"""Nine places within 2 of 64 pixels tell nothing that one place does not: the positions are in a larger unit."""

OFF_CENTRE_PX = 2.0
OFF_CENTRE_SHARE = 1 / 16
"""How far the mean pattern may lie off the probe's own far field, in pixels, and off the middle where no probe is at
hand, as a share of the frame. A tilted probe moves both: real frames of 128 and 64 pixels lie 2.8 and 2.5 pixels off
the middle, and 0.1 off their probe's far field. A detector cut around the wrong pixel is many off."""


def scan_hints(scan: Scan, mean_counts: np.ndarray) -> Iterator[str]:
    """Yield the hints about one scan.

    Args:
        scan: the scan.
        mean_counts: (N, N) mean of amplitude², as ``ptycho_torch.scan.Examination`` has it.

    Raises:
        DataContractError: a pattern that is read breaks SCAN-04.
    """
    yield from hint_positions(scan.positions_px, scan.stack.frame_px)
    yield from hint_centre(mean_counts, scan.probe)
    yield from hint_orientation(judge_orientation(scan))


def hint_positions(positions_px: np.ndarray, frame_px: int) -> Iterator[str]:
    """Yield a line where positions are hardly in object pixels.

    >>> list(hint_positions(np.array([[0.0, 0.0], [1e-6, 0.0]]), 64))[0][:43]
    'Positions span 1e-06: hardly object pixels.'
    """
    extent = float(np.ptp(positions_px, axis=0).max())
    places = len(np.unique(positions_px, axis=0))
    crowded = extent < 1 or (places >= PLACES_FOR_SPREAD and extent < LEAST_SPREAD_FRAMES * frame_px)
    scattered = extent > WIDEST_SCAN_FRAMES * frame_px or median_step(positions_px) > frame_px
    if places > 1 and (crowded or scattered):
        yield (
            f"Positions span {extent:.3g}: hardly object pixels. If they are metres or another unit, divide them by "
            "the object pixel λ·z / (N·p): ptycho-torch convert-scan --positions-scale FACTOR."
        )


def hint_centre(mean_counts: np.ndarray, probe: np.ndarray | None) -> Iterator[str]:
    """Yield a line where the mean pattern does not lie where the light of the probe falls.

    The object spreads the light about evenly, so the centre of mass of the mean counts is that of the probe's far
    field, Σ_m |FFT2(P_m)|², in whatever orientation the frames are.

    Args:
        mean_counts: (N, N) mean of amplitude².
        probe: (modes, N, N), or None; then the middle (N // 2, N // 2) stands in, with more room.
    """
    found = _centre_of_mass(mean_counts)
    if found is None:
        return
    N = len(mean_counts)
    middle = np.array([N // 2, N // 2])
    expected, limit = np.zeros(2), OFF_CENTRE_SHARE * N
    if probe is not None:
        far_field = np.fft.fftshift((np.abs(np.fft.fft2(probe)) ** 2).sum(axis=0))
        light = _centre_of_mass(far_field)
        if light is not None:
            expected, limit = light - middle, OFF_CENTRE_PX
    off = found - middle
    turned = [np.array(signs) * each for each in (expected, expected[::-1]) for signs in _SIGNS]
    if min(float(np.abs(off - each).max()) for each in turned) > limit:
        yield (
            f"The mean pattern is centred on row {found[0]:.1f}, column {found[1]:.1f}, where neither the middle "
            f"({N // 2}, {N // 2}) nor the probe explains it: is the frame cut around the zero frequency? Cut it with "
            "detector_centre_row_px and detector_centre_column_px, or ptycho-torch convert-scan --crop N --centre "
            "ROW,COLUMN."
        )


_SIGNS = ((1, 1), (1, -1), (-1, 1), (-1, -1))


def _centre_of_mass(light: np.ndarray) -> np.ndarray | None:
    """Return (row, column), or None where there is no light."""
    total = float(light.sum())
    if not total > 0:
        return None
    pixels = np.arange(len(light))
    return np.array([(light.sum(axis=1) * pixels).sum(), (light.sum(axis=0) * pixels).sum()]) / total


def hint_orientation(orientation: OrientationHint) -> Iterator[str]:
    """Yield a line where another orientation, or the root of the patterns, fits the positions better."""
    if orientation.looks_like_intensity:
        yield (
            f"The patterns look like intensity: held-out patterns are predicted {orientation.intensity_gain:.1f} times "
            "better from their square root. Convert them: ptycho-torch convert-scan --from-intensity."
        )
    if orientation.looks_wrong:
        yield orientation.describe()
