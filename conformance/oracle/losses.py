"""The losses of the network and their derivatives, in float64 NumPy.

Every function takes predictions channels last. Cotangents of complex values are ∂L/∂Re + i·∂L/∂Im.
"""

from __future__ import annotations

import numpy as np

SMALLEST_INTENSITY = float(np.finfo(np.float64).tiny)
"""Below this predicted intensity the logarithm of the likelihood is held, and its gradient is zero."""


def likelihood(intensity: np.ndarray, measured_amplitude: np.ndarray) -> float:
    """Return mean(I − I₀ · ln max(I, tiny)), I₀ the measured amplitude squared."""
    held = np.maximum(intensity, SMALLEST_INTENSITY)
    return float(np.mean(intensity - measured_amplitude**2 * np.log(held)))


def likelihood_gradient(intensity: np.ndarray, measured_amplitude: np.ndarray) -> np.ndarray:
    """Return (1 − I₀ / I) / n, without the second term where I is below the smallest intensity."""
    held = intensity < SMALLEST_INTENSITY
    ratio = np.where(held, 0, measured_amplitude**2 / np.where(held, 1, intensity))
    return np.asarray((1 - ratio) / intensity.size)


def signs(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return the sign of left − right as +1, −1 or 0; 0 where either is not a number."""
    return (left > right).astype(np.float64) - (left < right).astype(np.float64)


def total_variation(image: np.ndarray) -> float:
    """Return the sum over batch and pixels of |differences of neighbours|² of (B, N, N, 1) complex images."""
    return float(sum((np.abs(np.diff(image, axis=axis)) ** 2).sum() for axis in (1, 2)))


def total_variation_gradient(image: np.ndarray) -> np.ndarray:
    """Return the gradient of ``total_variation``."""
    down, right = 2 * np.diff(image, axis=1), 2 * np.diff(image, axis=2)
    gradient = np.zeros_like(image)
    gradient[:, 1:] += down
    gradient[:, :-1] -= down
    gradient[:, :, 1:] += right
    gradient[:, :, :-1] -= right
    return gradient


def object_error(image: np.ndarray, target: np.ndarray) -> float:
    """Return mean||o| − |t|| + mean|arg o − arg t|; the phase difference is not wrapped."""
    by_modulus = np.abs(np.abs(image) - np.abs(target)).mean()
    return float(by_modulus + np.abs(np.angle(image) - np.angle(target)).mean())


def object_error_gradient(image: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return (sign(|o| − |t|) + i · sign(arg o − arg t) / |o|) · o / |o| / n, and 0 where o is 0."""
    modulus = np.abs(image)
    safe = np.where(modulus > 0, modulus, 1)
    radial = signs(modulus, np.abs(target))
    angular = signs(np.angle(image), np.angle(target)) / safe
    return np.asarray((radial + 1j * angular) * image / safe / image.size)
