"""Single operations of the reference in float64 NumPy, each written from its equation.

Images lie on the last two axes (row y, column x); every leading axis is a batch. Offsets and positions
end in (x, y). The oracle builds its stages on these, and recordings of single operations are checked against
them. Nothing here imports the packages under test.
"""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter

DEFAULT_PROBE_SPREAD = 0.7
"""Standard deviation of the default probe's window is N / (spread · π²)."""
STITCH_FLOOR = 1e-9
"""Added to the number of patches that cover a pixel, so that uncovered pixels divide to zero."""
_STITCHED_AT_ONCE = 64


def wide(array: np.ndarray) -> np.ndarray:
    """Return the array in float64 or complex128."""
    return np.asarray(array, dtype=np.complex128 if np.iscomplexobj(array) else np.float64)


def central(images: np.ndarray, size_px: int) -> np.ndarray:
    """Return the central ``size_px`` × ``size_px`` square of (..., H, W) images, as a view."""
    H, W = images.shape[-2:]
    top, left = (H - size_px) // 2, (W - size_px) // 2
    return images[..., top : top + size_px, left : left + size_px]


def embed(images: np.ndarray, size_px: int) -> np.ndarray:
    """Put (..., n, n) images into the centre of zeros (..., size, size); the adjoint of ``central``."""
    n = images.shape[-1]
    canvas = np.zeros((*images.shape[:-2], size_px, size_px), dtype=images.dtype)
    central(canvas, n)[...] = images
    return canvas


def central_square(N: int) -> np.ndarray:
    """Return the (N, N) mask that is 1 in the central N/2 × N/2 square and 0 outside."""
    return embed(np.ones((N // 2, N // 2)), N)


def translate(images: np.ndarray, offsets_px: np.ndarray) -> np.ndarray:
    """Shift images by (dx, dy), bilinearly, with zeros outside.

    out(y, x) = Σ_{j, i ∈ {0, 1}} v_j w_i image(y + ⌊−dy⌋ + j, x + ⌊−dx⌋ + i), v₁ and w₁ the fractions that
    the floors of −dy and −dx leave, v₀ = 1 − v₁ and w₀ = 1 − w₁. Positive offsets move content to larger x
    and y.

    Args:
        images: (..., H, W).
        offsets_px: (..., 2), (dx, dy) of each image.
    """
    return _shift(images, offsets_px, transposed=False)


def translate_adjoint(images: np.ndarray, offsets_px: np.ndarray) -> np.ndarray:
    """Scatter every pixel to the four neighbours it was gathered from: the transpose of ``translate``."""
    return _shift(images, offsets_px, transposed=True)


def _shift(images: np.ndarray, offsets_px: np.ndarray, *, transposed: bool) -> np.ndarray:
    images, offsets_px = wide(images), wide(offsets_px)
    H, W = images.shape[-2:]
    if offsets_px.shape != (*images.shape[:-2], 2):
        raise ValueError(f"offsets {offsets_px.shape} are not one (x, y) for each image of {images.shape}")
    moved = np.zeros_like(images)
    for index in np.ndindex(images.shape[:-2]):
        dx, dy = offsets_px[index]
        for row, row_weight in _neighbours(dy):
            for column, column_weight in _neighbours(dx):
                to_rows, from_rows = _overlap(row, H)
                to_columns, from_columns = _overlap(column, W)
                target, source = (*index, to_rows, to_columns), (*index, from_rows, from_columns)
                if transposed:
                    target, source = source, target
                moved[target] += row_weight * column_weight * images[source]
    return moved


def _neighbours(offset_px: float) -> tuple[tuple[int, float], tuple[int, float]]:
    """Return the two source pixels of output pixel 0 along one axis, each with its weight."""
    first = int(np.floor(-offset_px))
    fraction = float(-offset_px - first)
    return (first, 1 - fraction), (first + 1, fraction)


def _overlap(step: int, size: int) -> tuple[slice, slice]:
    """Return the outputs n for which n + step lies inside 0 … size − 1, and those n + step."""
    start, stop = max(0, -step), max(0, -step, min(size, size - step))
    return slice(start, stop), slice(start + step, stop + step)


def stitch(patches: np.ndarray, positions_px: np.ndarray, crop_px: int) -> np.ndarray:
    """Sum patches at their positions and divide by how many cover each pixel.

    O = Σ_n T(crop_n, r_n − r̄) / (1e-9 + Σ_n T(1, r_n − r̄)), every crop padded by the ceiling of the largest
    |r_n − r̄| component, plus one where that is odd.

    Args:
        patches: (n, N, N).
        positions_px: (n, 2), absolute (x, y).
        crop_px: even; the central square of each patch that is used.
    """
    positions_px = wide(positions_px)
    offsets_px = positions_px - positions_px.mean(axis=0)
    pad = int(np.ceil(np.abs(offsets_px).max()))
    size_px = crop_px + 2 * (pad + pad % 2)
    crops = central(wide(patches), crop_px)
    total, cover = np.zeros((size_px, size_px), crops.dtype), np.zeros((size_px, size_px))
    # Some at a time: a canvas for each patch of a whole scan would fill the memory.
    for first in range(0, len(crops), _STITCHED_AT_ONCE):
        some = slice(first, first + _STITCHED_AT_ONCE)
        total += translate(embed(crops[some], size_px), offsets_px[some]).sum(axis=0)
        cover += translate(embed(np.ones(crops[some].shape), size_px), offsets_px[some]).sum(axis=0)
    stitched: np.ndarray = total / (STITCH_FLOOR + cover)
    return stitched


def disk_mask(N: int) -> np.ndarray:
    """Return the (N, N) mask that is 1 where the radius of (i − N/2 + ½, j − N/2 + ½) is below N // 4."""
    axis = np.arange(N) - N // 2 + 0.5
    return np.asarray(np.hypot(axis[:, None], axis) < N // 4, dtype=np.float64)


def default_probe(N: int) -> np.ndarray:
    """Return the (N, N) default probe: a blurred half-maximum disk of a Gaussian window, plus 1e-9."""
    deviation = N / (DEFAULT_PROBE_SPREAD * np.pi**2)
    window = np.exp(-0.5 * ((np.arange(N) - (N - 1) / 2) / deviation) ** 2)
    window /= window.max()
    disk = (np.outer(window, window) > 0.5).astype(np.float64)
    return np.asarray(gaussian_filter(disk, sigma=1) + 1e-9)


def normalise_probe(probe: np.ndarray, probe_scale: float) -> np.ndarray:
    """Return probe / (probe_scale · mean|probe · disk mask|), the mean over all N² pixels; (N, N)."""
    probe = wide(probe)
    inside: np.ndarray = np.abs(probe * disk_mask(probe.shape[-1]))
    return np.asarray(probe / (probe_scale * inside.mean()))


def smooth(images: np.ndarray, sigma: float) -> np.ndarray:
    """Convolve (..., H, W) images with the 3 × 3 Gaussian, mirrored at the border without repeating the edge.

    Weights along each axis are softmax(−k² / 2σ²), k = −1, 0, 1.
    """
    return _smooth_rows(_smooth_rows(wide(images), sigma).swapaxes(-1, -2), sigma).swapaxes(-1, -2)


def smooth_adjoint(images: np.ndarray, sigma: float) -> np.ndarray:
    """Apply the transpose of ``smooth``: what the mirror read twice receives both shares."""
    return _gather_rows(_gather_rows(wide(images), sigma).swapaxes(-1, -2), sigma).swapaxes(-1, -2)


def _side_weight(sigma: float) -> float:
    side = np.exp(-1 / (2 * sigma**2))
    return float(side / (1 + 2 * side))


def _smooth_rows(images: np.ndarray, sigma: float) -> np.ndarray:
    side = _side_weight(sigma)
    smoothed = (1 - 2 * side) * images
    smoothed[..., 1:, :] += side * images[..., :-1, :]
    smoothed[..., :-1, :] += side * images[..., 1:, :]
    smoothed[..., 0, :] += side * images[..., 1, :]
    smoothed[..., -1, :] += side * images[..., -2, :]
    return smoothed


def _gather_rows(images: np.ndarray, sigma: float) -> np.ndarray:
    side = _side_weight(sigma)
    gathered = (1 - 2 * side) * images
    gathered[..., :-1, :] += side * images[..., 1:, :]
    gathered[..., 1:, :] += side * images[..., :-1, :]
    gathered[..., 1, :] += side * images[..., 0, :]
    gathered[..., -2, :] += side * images[..., -1, :]
    return gathered


def diffracted_intensity(exit_wave: np.ndarray) -> np.ndarray:
    """Return fftshift(|FFT2(exit_wave)|² / N²) of (..., N, N) waves."""
    N = exit_wave.shape[-1]
    field = np.fft.fft2(wide(exit_wave))
    return np.asarray(np.fft.fftshift((field.real**2 + field.imag**2) / N**2, axes=(-2, -1)))


def diffract(exit_wave: np.ndarray) -> np.ndarray:
    """Return the far-field amplitude sqrt(fftshift(|FFT2(exit_wave)|² / N²)) of (..., N, N) waves."""
    return np.asarray(np.sqrt(diffracted_intensity(exit_wave)))


def normalise_amplitude(amplitude: np.ndarray, N: int) -> np.ndarray:
    """Return X · sqrt((N/2)² / mean Σ_xy X²) of (n, N, N, C) patterns, the mean over groups and channels."""
    amplitude = wide(amplitude)
    return np.asarray(amplitude * (N / 2 / np.sqrt((amplitude**2).sum(axis=(1, 2)).mean())))


def intensity_scale(nphotons: float, amplitude: np.ndarray | None = None, N: int | None = None) -> float:
    """Return sqrt(nphotons / mean Σ_xy X²) for (n, N, N, C) patterns, √nphotons / (N/2) for normalised.

    Give exactly one of ``amplitude`` (any patterns) and ``N`` (normalised ones).
    """
    if (amplitude is None) == (N is None):
        raise ValueError("the intensity scale needs either the patterns or their size N, not both")
    if amplitude is not None:
        return float(np.sqrt(nphotons / (wide(amplitude) ** 2).sum(axis=(1, 2)).mean()))
    assert N is not None
    return float(np.sqrt(nphotons) / (N / 2))


def relative_offsets(coords_px: np.ndarray) -> np.ndarray:
    """Return o_c = −(r_c − r̄) of (B, 1, 2, C) positions, r̄ the mean of each group."""
    coords_px = wide(coords_px)
    return np.asarray(coords_px.mean(axis=-1, keepdims=True) - coords_px)


def ground_truth_patches(image: np.ndarray, positions_px: np.ndarray, N: int) -> np.ndarray:
    """Cut (n, N, N) patches from an (H, W) object at (n, 2) positions (x, y).

    Pixel (j, i) samples the object bilinearly at (y − N/2 + j, x − N/2 + i), zero outside.
    """
    image, positions_px = wide(image), wide(positions_px)
    H, W = image.shape
    corners = positions_px - N / 2
    patches = np.zeros((len(positions_px), N, N), dtype=image.dtype)
    for patch, (left, top) in zip(patches, corners, strict=True):
        rows, columns = top + np.arange(N)[:, None], left + np.arange(N)
        for j in (0, 1):
            for i in (0, 1):
                y, x = np.floor(rows).astype(int) + j, np.floor(columns).astype(int) + i
                weight = (1 - np.abs(rows - y)) * (1 - np.abs(columns - x))
                inside = (y >= 0) & (y < H) & (x >= 0) & (x < W)
                patch += weight * np.where(inside, image[y.clip(0, H - 1), x.clip(0, W - 1)], 0)
    return patches
