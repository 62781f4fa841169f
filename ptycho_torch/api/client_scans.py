"""Arrays of ptychodus as scans of ours, and objects of ours on its pixels.

    amplitude = √counts                                    patterns
    (x, y) = (column + ½, row + ½)                          positions

ptychodus says where the middle of a patch is: a patch of N pixels at row r begins at pixel r − (N − 1)/2 of the
object's array. Here one at y begins at y − N/2.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ptycho_torch.contracts.contract import violation
from ptycho_torch.data.scan_arrays import ScanArrays
from ptycho_torch.files.npz import NpzFile, listed
from ptycho_torch.importer.raw_scan import INTENSITY, POSITION_PAIRS
from ptycho_torch.reconstruction.reassembly import Stitched

log = logging.getLogger(__name__)

HALF_PIXEL = 0.5
"""From the middle of a patch as ptychodus counts it to ours."""

_PATTERNS, _DOMAIN = ("diff3d", "diffraction"), "measurement_domain"
_REQUIRED, _NOMINAL = POSITION_PAIRS
_AT_ONCE = 64
_WHOLE_TO_PX = 0.01


def scan_of_arrays(counts: np.ndarray, probe: np.ndarray, positions_px: np.ndarray) -> ScanArrays:
    """Return a scan of the arrays that ptychodus reconstructs from.

    Args:
        counts: (M, N, N) with the zero frequency at N // 2.
        probe: (N, N) or (modes, N, N).
        positions_px: (M, 2) row and column in pixels of the object's array.

    Raises:
        DataContractError: SCAN-04, counts that are negative or not finite; SCAN-06, another number of positions.
    """
    positions = np.asarray(positions_px, np.float64) + HALF_PIXEL
    if positions.shape != (len(counts), 2):
        raise violation("SCAN-06", f"positions of shape {positions.shape} for patterns {counts.shape}")
    blocks = (counts[first : first + _AT_ONCE] for first in range(0, len(counts), _AT_ONCE))
    return ScanArrays(
        "ptychodus",
        {
            "diff3d": _amplitude(blocks, counts.shape, Path("ptychodus")),
            "xcoords": positions[:, 1],
            "ycoords": positions[:, 0],
            "probeGuess": probe,
        },
    )


def scan_of_file(path: Path, x_bounds: tuple[float, float], y_bounds: tuple[float, float]) -> ScanArrays:
    """Read a training file of ptychodus.

    Bad pixels are taken as measured: ptychodus has filled them in, here as well as where it reconstructs.

    Args:
        path: the file.
        x_bounds: fractions of the scan's width between which patterns are taken.
        y_bounds: likewise of its height.

    Raises:
        DataContractError: NPZ-…; SCAN-01, SCAN-04 or SCAN-06; or the file says that it holds amplitude.
    """
    npz = NpzFile(path)
    key = next((name for name in _PATTERNS if name in npz), None)
    if key is None:
        raise violation("SCAN-01", f"neither of these; present: {listed(npz.keys)}", path=path, key="diff3d")
    if _DOMAIN in npz and npz.read_text(_DOMAIN) not in INTENSITY:
        raise violation(
            "SCAN-05",
            npz.read_text(_DOMAIN),
            path=path,
            key=_DOMAIN,
            expected="counts, as in the training files of ptychodus",
            remedy="Train on amplitude with ptycho-torch train.",
        )
    coordinates = {name: npz.read(name).astype(np.float64) for name in (*_REQUIRED, *_NOMINAL) if name in npz}
    shape = npz.header(key).shape
    if not coordinates.keys() >= {*_REQUIRED} or any(each.shape != shape[:1] for each in coordinates.values()):
        found = ", ".join(f"{name} {each.shape}" for name, each in coordinates.items()) or "no positions"
        raise violation("SCAN-06", f"{found} for patterns {shape}", path=path)
    taken = _within(coordinates["xcoords"], x_bounds) & _within(coordinates["ycoords"], y_bounds)
    if not taken.any():
        raise violation("SCAN-06", f"no position within x_bounds {x_bounds} and y_bounds {y_bounds}", path=path)
    arrays = {name: values[taken] + HALF_PIXEL for name, values in coordinates.items()}
    arrays |= {name: npz.read(name)[each] for name, each in (("probeGuess", ...), ("scan_index", taken)) if name in npz}
    arrays["diff3d"] = _amplitude(npz.stream(key), shape, path)[taken]
    return ScanArrays(path.name, arrays)


def _within(values: np.ndarray, bounds: tuple[float, float]) -> np.ndarray:
    least, width = values.min(), np.ptp(values)
    return np.asarray((values >= least + bounds[0] * width) & (values <= least + bounds[1] * width))


def _amplitude(blocks: Iterable[np.ndarray], shape: tuple[int, ...], path: Path) -> np.ndarray:
    """Return √counts of consecutive patterns as float32."""
    amplitude, first = np.empty(shape, np.float32), 0
    for block in blocks:
        counts = block.astype(np.float64)
        wrong = ~(np.isfinite(counts) & (counts >= 0))
        if wrong.any():
            place = f"pattern {first + int(np.argwhere(wrong)[0][0])}"
            raise violation(
                "SCAN-04", f"{counts[wrong][0]:.6g} in {place}", path=path, key="diff3d", expected="finite counts ≥ 0"
            )
        amplitude[first : first + len(block)] = np.sqrt(counts)
        first += len(block)
    return amplitude


def object_on_frame(stitched: Stitched, positions_px: np.ndarray) -> np.ndarray:
    """Return the object on the array of ptychodus whose pixels the positions count; 0 where it is not known.

    The size of that array is not handed over. ptychodus centres it on the scan, so that it has
    lowest + highest position + 1 pixels a side. Weighting ``uniform`` puts objects between pixels; they are placed on
    the nearest one.

    Args:
        stitched: the object.
        positions_px: (M, 2) positions (x, y) of the scan.

    Returns:
        (H, W) complex64.
    """
    theirs = positions_px - HALF_PIXEL
    ends = theirs.min(axis=0) + theirs.max(axis=0)
    width, height = (round(end) + 1 for end in ends.tolist())
    if np.abs(ends - np.round(ends)).max() > _WHOLE_TO_PX or min(width, height) < 1:
        log.warning(
            "The scan's middle is at (%.2f, %.2f) px of the object's array, which is between pixels: that array is not "
            "centred on the scan. The object that is returned is, and so lies elsewhere.", *(ends / 2),
        )  # fmt: skip
    frame = np.zeros((max(height, 1), max(width, 1)), np.complex64)
    left, top = (round(start) for start in stitched.origin_px)
    found = stitched.object.numpy()
    rows = slice(max(0, top), min(frame.shape[0], top + found.shape[0]))
    columns = slice(max(0, left), min(frame.shape[1], left + found.shape[1]))
    if rows.start < rows.stop and columns.start < columns.stop:
        frame[rows, columns] = found[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
    return frame
