"""Fourier ring correlation of two images, with thresholds that noise and empty images do not pass.

Pure functions of arrays. <doc-ref type="guide">docs/workflows/pytorch.md</doc-ref>
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from ptycho_torch.errors import DataContractError

LEAST_FREQUENCIES = 24
"""A ring with fewer frequencies decides nothing: the correlation of noise scatters by 1/√24 ≈ 0.2 in it.

This leaves out the three innermost rings, which also hold what alignment fits (phase plane) and the taper smears
(the mean).
"""

LEAST_BAND = 3
"""Rings in a row above the threshold that make a resolution: a grid of stitching artefacts correlates in one or two."""

NOISE_PROBABILITY = 1e-4
"""Probability at most that two images of independent noise get a resolution."""

_NYQUIST_PX = 2.0

_FLAT = 1e-6
"""An image that deviates from its mean by less than this part of it is flat: complex64 rounds to 1e-7."""


@dataclasses.dataclass(frozen=True)
class RingCorrelation:
    """Fourier ring correlation of two (n, n) images.

    A crossing is where the curve first falls below a threshold after a band of rings above it, between rings by a
    straight line; half a cycle a pixel where it does not fall. A band has ``LEAST_BAND`` rings that decide
    (``LEAST_FREQUENCIES``), and one of them is above what noise could reach (``noise_level``). The crossing is NaN
    where there is no band. Rings below the band may be below the threshold: an object with little power at a large
    period correlates badly there.

    Attributes:
        frequencies_per_px: (R,) of each ring, r / n cycles a pixel; the corners of Fourier space are in it.
        curve: (R,) |Σ F₁ F₂*| / √(Σ|F₁|² Σ|F₂|²) over each ring; 0 where one image is flat.
        half_bit: (R,) half-bit threshold of each ring, see ``half_bit_threshold``.
        frc50_per_px: crossing of 1/2; NaN where there is none.
        frc1over7_per_px: crossing of 1/7; NaN where there is none.
        half_bit_per_px: crossing of the half-bit threshold; NaN where there is none.
        resolution_px: full period at ``frc50_per_px``; NaN where there is none.
        half_bit_resolution_px: full period at ``half_bit_per_px``; NaN where there is none.
    """

    frequencies_per_px: np.ndarray
    curve: np.ndarray
    half_bit: np.ndarray
    frc50_per_px: float
    frc1over7_per_px: float
    half_bit_per_px: float
    resolution_px: float
    half_bit_resolution_px: float

    def without_resolution(self) -> RingCorrelation:
        """Return the same curve where something else than the curve tells that it has no meaning."""
        return RingCorrelation(self.frequencies_per_px, self.curve, self.half_bit, *(math.nan,) * 5)


def describe_resolution(resolution_px: float, pixel_size_m: float | None, threshold: str) -> str:
    """Return a full period for people: ``none`` for NaN, and the limit of the pixels as a limit."""
    if math.isnan(resolution_px):
        return f"none: no correlation above {threshold} that noise could not have"
    metres = "" if pixel_size_m is None else f" ({resolution_px * pixel_size_m * 1e9:.4g} nm)"
    limit = ", the limit of the pixels" if resolution_px <= _NYQUIST_PX else ""
    return f"{resolution_px:.2f} px{metres}{limit}"


def half_bit_threshold(frequencies: np.ndarray) -> np.ndarray:
    """Return (0.2071 + 1.9102 / √n) / (1.2071 + 0.9102 / √n) for n independent frequencies in a ring.

    Above it a ring carries half a bit of information a frequency, where each image has half of the data; van Heel &
    Schatz, J. Struct. Biol. 151 (2005) 250, equation 17. It is 1 where n = 1.

    >>> float(half_bit_threshold(np.array(1e12)).round(4))
    0.1716
    """
    root = np.sqrt(np.maximum(frequencies, 1.0))
    return np.asarray((0.2071 * root + 1.9102) / (1.2071 * root + 0.9102))


def noise_level(frequencies: np.ndarray, rings: int) -> np.ndarray:
    """Return what the correlation of independent noise exceeds in any of some rings with ``NOISE_PROBABILITY``.

    P(|c| > s) = (1 − s²)^(m − 1) for m independent complex Gaussian frequencies (Goodman, Statistical Optics). Real
    images, and objects of phase only, have F(−q) decided by F(q): m is half of the number of frequencies.

    Args:
        frequencies: independent frequencies of each ring.
        rings: how many rings are looked at.
    """
    free = np.maximum(frequencies / 2 - 1, 1e-9)
    return np.asarray(np.sqrt(1 - (NOISE_PROBABILITY / max(rings, 1)) ** (1 / free)))


def ring_correlation(first: np.ndarray, second: np.ndarray, *, taper: float = 0.25) -> RingCorrelation:
    """Correlate two images in rings of Fourier space.

    FRC(r) = |Σ F₁ F₂*| / √(Σ|F₁|² Σ|F₂|²) over the frequencies at round(distance) = r from the centre; the images are
    cut to their central square, their mean is taken out, and their edges are tapered. A taper w makes neighbouring
    frequencies alike: of the frequencies of a ring the share (Σw²)² / (n² Σw⁴) is independent.

    Args:
        first: (H, W) complex or real.
        second: (H, W), of the same pixels.
        taper: part of the width in which Tukey's window rises and falls; 0 for none.

    Raises:
        DataContractError: the shapes differ.
    """
    from scipy.signal.windows import tukey

    if first.shape != second.shape or first.ndim != 2 or min(first.shape) < 4:
        found = f"shapes {first.shape} and {second.shape}"
        raise DataContractError(
            f"Found {found}; expected two images of one shape. Cut both alike.",
            found=found,
            expected="two images of one shape",
            remedy="Cut both alike.",
        )
    n = min(first.shape)
    top, left = ((side - n) // 2 for side in first.shape)
    window = tukey(n, taper)
    spectra = []
    for image in (first, second):
        square = image[top : top + n, left : left + n]
        deviation = square - square.mean()
        if np.abs(deviation).max() <= _FLAT * np.abs(square).max():
            deviation = np.zeros_like(deviation)
        spectra.append(np.fft.fftshift(np.fft.fft2(deviation * window * window[:, None])))
    distance = np.arange(n) - n // 2
    ring = np.rint(np.hypot(distance, distance[:, None])).astype(np.int64).ravel()
    ours, theirs = (spectrum.ravel() for spectrum in spectra)
    product = ours * np.conj(theirs)
    cross = np.hypot(np.bincount(ring, product.real), np.bincount(ring, product.imag))
    energy = np.sqrt(np.bincount(ring, np.abs(ours) ** 2) * np.bincount(ring, np.abs(theirs) ** 2))
    curve = np.divide(cross, energy, out=np.zeros_like(cross), where=energy > 0)
    counts = np.bincount(ring)
    independent = counts * ((window**2).sum() ** 2 / (n * (window**4).sum())) ** 2
    half_bit = half_bit_threshold(independent)
    deciding = _deciding(counts, n)
    noise = noise_level(independent, len(deciding))
    half, seventh, half_bit_at = (
        min(_crossing(curve, np.broadcast_to(threshold, curve.shape), noise, deciding) / n, 1 / _NYQUIST_PX)
        for threshold in (0.5, 1 / 7, half_bit)
    )
    return RingCorrelation(
        frequencies_per_px=np.arange(len(curve)) / n,
        curve=curve,
        half_bit=half_bit,
        frc50_per_px=half,
        frc1over7_per_px=seventh,
        half_bit_per_px=half_bit_at,
        resolution_px=1 / half,
        half_bit_resolution_px=1 / half_bit_at,
    )


def _deciding(counts: np.ndarray, n: int) -> range:
    """Return the rings that decide, by the number of frequencies of each ring.

    Beyond n // 2 a ring has corners only, the last of them one frequency, where any two images correlate fully.
    """
    enough = np.flatnonzero(counts[1:] >= LEAST_FREQUENCIES) + 1
    return range(int(enough[0]) if len(enough) else n, n // 2 + 1)


def _crossing(curve: np.ndarray, threshold: np.ndarray, noise: np.ndarray, deciding: range) -> float:
    """Return the ring, in parts, where a curve falls below a threshold after the first band above it.

    Infinity where it does not fall; NaN where there is no band.

    Args:
        curve: (R,).
        threshold: (R,).
        noise: (R,) what noise does not exceed; one ring of the band must.
        deciding: rings that are looked at.
    """
    start = deciding.start
    for ring in deciding:
        if curve[ring] >= threshold[ring]:
            continue
        if _is_band(curve[start:ring], noise[start:ring]):
            high, low = (float(curve[each] - threshold[each]) for each in (ring - 1, ring))
            return ring - 1 + high / (high - low)
        start = ring + 1
    return math.inf if _is_band(curve[start : deciding.stop], noise[start : deciding.stop]) else math.nan


def _is_band(curve: np.ndarray, noise: np.ndarray) -> bool:
    return len(curve) >= LEAST_BAND and bool((curve > noise).any())
