"""Scans of a known object as a beamline measures them: photons on a jittered raster, and a probe of no symmetry."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter

Arrays = dict[str, np.ndarray]

GEOMETRY = {
    "wavelength_m": np.array(1.2e-10),
    "detector_distance_m": np.array(1.6),
    "detector_pixel_m": np.array(5e-5),
}
"""λ·z / (N·p) is 60 nm for 64 pixels."""

PIXEL_M = 6e-8


def draw_scene(side: int = 8, N: int = 64, *, step: int = 6, seed: int = 0, counts: float = 1e5) -> Arrays:
    """Draw side × side patterns, as amplitudes; positions are whole pixels."""
    rng = np.random.default_rng(seed)
    size = (side - 1) * step + N + 8
    rough, phase = (gaussian_filter(rng.normal(size=(size, size)), 2.5, mode="wrap") for _ in range(2))
    whole = (1 - 0.2 * (rough > 0)) * np.exp(1.1j * phase / phase.std())
    y, x = np.mgrid[:N, :N] - N // 2
    probe = np.exp(-((x + 1) ** 2 + (y - 2) ** 2) / 110) * np.exp(1j * (0.015 * x**2 + 0.01 * y**2 - 0.006 * x * y))
    columns, rows = (each.ravel() * step for each in np.meshgrid(np.arange(side), np.arange(side)))
    jitter = rng.integers(-1, 2, (2, side**2))
    left, top = columns + jitter[0] + 2, rows + jitter[1] + 2
    views = np.stack([whole[j : j + N, i : i + N] for i, j in zip(left, top, strict=True)])
    light = np.abs(np.fft.fftshift(np.fft.fft2(views * probe), axes=(1, 2))) ** 2
    photons = rng.poisson(light * counts / light.sum(axis=(1, 2)).mean())
    return {
        "diff3d": np.sqrt(photons).astype(np.float32),
        "xcoords": left + N / 2.0,
        "ycoords": top + N / 2.0,
        "probeGuess": probe.astype(np.complex64),
    }


def write(path: Path, scan: Arrays) -> Path:
    """Write a scan and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **scan)  # type: ignore[arg-type]
    return path
