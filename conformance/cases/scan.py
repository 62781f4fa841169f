"""Network input from a real scan: patterns and positions as measured, weights drawn at random."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from scipy.spatial import KDTree

from conformance.cases.case import Case
from conformance.cases.draws import BOTH_LOSSES, draw_weights
from conformance.errors import ScanError
from ptycho_torch.config_params import PATCH_SIDES_PX, NetworkSettings
from ptycho_torch.data.probe import disk_mask
from ptycho_torch.data.scan import Examination, Scan, examine, open_scan

GROUPS = 3
"""Groups judged: enough for a batch, few enough for the oracle."""

_GRIDSIZE = 2

examined = cache(examine)
"""Every clause of one scan file, judged once for the list of tests and for the tests."""


def feeds_network(examination: Examination) -> bool:
    """Say whether a scan holds every clause and has patterns of a side that the network takes."""
    return examination.scan is not None and examination.scan.stack.frame_px in PATCH_SIDES_PX


def scan_case(path: Path) -> Case:
    """Build the case of a scan: groups of 2 × 2 patterns on a canvas that holds them.

    Raises:
        DataContractError: a clause that the scan breaks.
        ScanError: a scan that holds every clause and cannot be the network's input as it is.
    """
    scan = open_scan(path)
    N = scan.stack.frame_px
    if N not in PATCH_SIDES_PX:
        sides = ", ".join(map(str, PATCH_SIDES_PX))
        raise ScanError(f"{path}: patterns have side {N}; the network takes {sides}. Crop or bin the detector.")
    if scan.probe is None:
        raise ScanError(f"{path}: key 'probeGuess' is missing; store the probe in the scan to judge the network on it.")
    groups = measured_groups(scan, _GRIDSIZE)
    # Room for the widest group, in even pixels, so that the judge sees no clipped patch.
    jitter = max(10, 2 * int(np.ceil(np.abs(groups.offsets_px).max())) - 4 + 2)
    settings = NetworkSettings(
        N=N,
        gridsize=_GRIDSIZE,
        n_filters_scale=1,
        max_position_jitter=jitter + jitter % 2,
        intensity_scale=float(np.sqrt(groups.mean_counts) / (N / 2)),
    )
    probe = scan.probe.astype(np.complex128)
    strength = np.sqrt((np.abs(probe) ** 2).sum(axis=0))
    return Case(
        name=path.stem,
        settings=settings,
        loss_weights=BOTH_LOSSES,
        diffraction=groups.diffraction,
        offsets_px=groups.offsets_px,
        probe=(probe / (4 * (strength * disk_mask(N).numpy()).mean())).astype(np.complex64),
        weights=draw_weights(settings, np.random.default_rng(0)),
    )


@dataclass(frozen=True)
class MeasuredGroups:
    """Groups of a scan as the network takes them.

    Attributes:
        diffraction: (groups, N, N, C) float32 normalised amplitude.
        offsets_px: (groups, 1, 2, C) float32, group-centred.
        mean_counts: of a pattern, over those that the normalisation stands on.
    """

    diffraction: np.ndarray
    offsets_px: np.ndarray
    mean_counts: float


def measured_groups(scan: Scan, gridsize: int) -> MeasuredGroups:
    """Choose groups of nearest neighbours spread over a scan, normalised by all of its patterns.

    Raises:
        DataContractError: patterns that break a clause.
        ScanError: too few patterns for a group, or positions that are no object pixels.
    """
    C, N = gridsize**2, scan.stack.frame_px
    if scan.stack.count < C:
        raise ScanError(f"{scan.path}: a group needs {C} patterns; the scan has {scan.stack.count}.")
    seeds = np.linspace(0, scan.stack.count - 1, GROUPS + 2).astype(int)[1:-1]
    _, indices = KDTree(scan.positions_px).query(scan.positions_px[seeds], k=[*range(1, C + 1)])
    members = scan.positions_px[indices]  # (groups, C, 2)
    offsets = -(members - members.mean(axis=1, keepdims=True))
    reach = float(np.abs(offsets).max())
    if reach > N:
        raise ScanError(
            f"{scan.path}: neighbouring positions lie {2 * reach:.3g} apart, more than two patches of {N} pixels; "
            "'xcoords' and 'ycoords' are object pixels, not metres or another unit."
        )
    amplitude, counts = _patterns(scan, indices)
    return MeasuredGroups(
        diffraction=channels_last(amplitude * np.sqrt((N / 2) ** 2 / counts)),
        offsets_px=offsets.transpose(0, 2, 1)[:, None].astype(np.float32),
        mean_counts=counts,
    )


def channels_last(amplitude: np.ndarray) -> np.ndarray:
    """Return (groups, N, N, C) float32 of (groups, C, N, N)."""
    return amplitude.transpose(0, 2, 3, 1).astype(np.float32)


def _patterns(scan: Scan, indices: np.ndarray) -> tuple[np.ndarray, float]:
    """Return (groups, C, N, N) float64 amplitude, and the mean counts of all patterns, in one pass over the file."""
    audit, N = scan.stack.audit(), scan.stack.frame_px
    chosen = np.empty((*indices.shape, N, N))
    for first, amplitude, _ in scan.stack.chunks(audit):
        for place in np.argwhere((indices >= first) & (indices < first + len(amplitude))):
            chosen[tuple(place)] = amplitude[indices[tuple(place)] - first]
    return chosen, audit.total_counts / audit.count
