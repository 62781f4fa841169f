"""Network input from a real scan: patterns and positions as measured, weights drawn at random."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy.spatial import KDTree

from conformance.archive import NpzReader
from conformance.case import Case
from conformance.draws import BOTH_LOSSES, draw_weights
from conformance.errors import ScanError
from ptycho_torch.config_params import NetworkSettings

GROUPS = 3
"""Groups judged: enough for a batch, few enough for the oracle."""

_REQUIRED = ("diff3d", "xcoords", "ycoords", "probeGuess")


def _arrays(path: Path) -> dict[str, np.ndarray]:
    arrays = dict(NpzReader(path, ScanError).read(_REQUIRED))
    patterns = arrays["diff3d"]
    if patterns.ndim != 3 or patterns.shape[1] != patterns.shape[2]:
        raise ScanError(f"{path}: key 'diff3d' has shape {patterns.shape}; expected (patterns, N, N).")
    count, N, _ = patterns.shape
    if N not in (64, 128, 256):
        raise ScanError(f"{path}: patterns have side {N}; the network takes 64, 128 or 256. Crop or bin the detector.")
    for key in ("xcoords", "ycoords"):
        if arrays[key].shape != (count,):
            raise ScanError(f"{path}: key {key!r} has shape {arrays[key].shape}, but there are {count} patterns.")
    probe = arrays["probeGuess"]
    if probe.ndim not in (2, 3) or probe.shape[-2:] != (N, N) or probe.size == 0:
        raise ScanError(f"{path}: key 'probeGuess' has shape {probe.shape}; expected ({N}, {N}) or (modes, {N}, {N}).")
    for key, array in arrays.items():
        kinds = "fiuc" if key == "probeGuess" else "fiu"
        if array.dtype.kind not in kinds or not np.isfinite(array).all():
            number = "numbers" if key == "probeGuess" else "real numbers"
            raise ScanError(f"{path}: key {key!r} must hold finite {number}; found dtype {array.dtype}.")
    if (patterns < 0).any() or not patterns.any():
        raise ScanError(f"{path}: key 'diff3d' holds amplitude, zero or more and somewhere above zero.")
    if not (_strength(probe.reshape(-1, N, N)) * _disk(N)).any():
        raise ScanError(f"{path}: key 'probeGuess' is zero inside the central disk of radius N/4; centre the probe.")
    return arrays


def _disk(N: int) -> np.ndarray:
    position = np.arange(N) - N / 2 + 0.5
    return np.asarray(position[:, None] ** 2 + position[None, :] ** 2 < (N // 4) ** 2)


def _strength(modes: np.ndarray) -> np.ndarray:
    """Root of the summed intensity of all modes."""
    return np.asarray(np.sqrt((np.abs(modes.astype(np.complex128)) ** 2).sum(axis=0)))


def scan_settings(path: Path) -> NetworkSettings:
    """Return the settings a scan is judged with: groups of 2 × 2 patterns on a canvas that holds them."""
    arrays = _arrays(path)
    N = arrays["diff3d"].shape[1]
    counts = float((arrays["diff3d"].astype(np.float64) ** 2).sum(axis=(1, 2)).mean())
    _, offsets = _groups(path, arrays, channels=4)
    reach = float(np.abs(offsets).max())
    if reach > N:
        raise ScanError(
            f"{path}: neighbouring positions lie {2 * reach:.3g} apart, more than two patches of {N} pixels; "
            "'xcoords' and 'ycoords' are object pixels, not metres or another unit."
        )
    if not np.isfinite(counts):
        raise ScanError(f"{path}: key 'diff3d' is too large to square; it holds amplitude, the root of counts.")
    # Room for the widest group, in even pixels, so that the judge sees no clipped patch.
    jitter = max(10, 2 * int(np.ceil(reach)) - 4 + 2)
    return NetworkSettings(
        N=N,
        gridsize=2,
        n_filters_scale=1,
        max_position_jitter=jitter + jitter % 2,
        intensity_scale=float(np.sqrt(counts) / (N / 2)),
    )


def _groups(path: Path, arrays: dict[str, np.ndarray], channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Choose groups of nearest neighbours spread over the scan; return indices and group-centred offsets."""
    positions = np.stack([arrays["xcoords"], arrays["ycoords"]], axis=1).astype(np.float64)
    if len(positions) < channels:
        raise ScanError(f"{path}: a group needs {channels} patterns; the scan has {len(positions)}.")
    seeds = np.linspace(0, len(positions) - 1, GROUPS + 2).astype(int)[1:-1]
    _, indices = KDTree(positions).query(positions[seeds], k=channels)
    members = positions[indices]  # (groups, C, 2)
    return indices, -(members - members.mean(axis=1, keepdims=True))


def scan_case(path: Path) -> Case:
    """Build the case of a scan.

    Raises:
        ScanError: names file, key, what was found and what was expected.
    """
    arrays, settings = _arrays(path), scan_settings(path)
    N = settings.N
    indices, offsets = _groups(path, arrays, settings.C)
    amplitude = arrays["diff3d"].astype(np.float64)
    normalised = amplitude * np.sqrt((N / 2) ** 2 / (amplitude**2).sum(axis=(1, 2)).mean())
    probe = arrays["probeGuess"].reshape(-1, N, N).astype(np.complex128)
    return Case(
        name=path.stem,
        settings=settings,
        loss_weights=BOTH_LOSSES,
        diffraction=normalised[indices].transpose(0, 2, 3, 1).astype(np.float32),
        offsets_px=offsets.transpose(0, 2, 1)[:, None].astype(np.float32),
        probe=(probe / (4 * (_strength(probe) * _disk(N)).mean())).astype(np.complex64),
        weights=draw_weights(settings, np.random.default_rng(0)),
    )
