"""Fourier ring correlation: its equation, and that neither noise nor empty images have a resolution."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ptycho_torch.errors import DataContractError
from ptycho_torch.reconstruction import rings as module
from ptycho_torch.reconstruction.rings import (
    RingCorrelation,
    describe_resolution,
    half_bit_threshold,
    noise_level,
    ring_correlation,
)

CROSSINGS = ("frc50_per_px", "frc1over7_per_px", "half_bit_per_px", "resolution_px", "half_bit_resolution_px")


def noise(seed: int, shape: tuple[int, int] = (64, 64)) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.asarray(rng.standard_normal(shape) + 1j * rng.standard_normal(shape))


def resolutions(rings: RingCorrelation) -> list[float]:
    return [getattr(rings, name) for name in CROSSINGS]


@pytest.mark.parametrize("shape", [(64, 64), (65, 65), (60, 71)])
def test_rings_of_equal_images_correlate_fully(shape: tuple[int, int]) -> None:
    rings = ring_correlation(noise(0, shape), 2j * noise(0, shape))
    np.testing.assert_allclose(rings.curve, 1, atol=1e-9)
    n = min(shape)
    assert len(rings.curve) == round(n // 2 * math.sqrt(2)) + 1
    np.testing.assert_allclose(rings.frequencies_per_px, np.arange(len(rings.curve)) / n)
    assert rings.resolution_px == rings.half_bit_resolution_px == 2


def test_resolution_is_where_noise_takes_over() -> None:
    signal = noise(0)
    spectrum = np.fft.fftfreq(64)
    low = np.hypot(spectrum, spectrum[:, None]) < 0.2
    # Shared below 0.2 cycles a pixel, noise of its own beyond.
    images = [np.fft.ifft2(np.where(low, np.fft.fft2(signal), np.fft.fft2(noise(seed)))) for seed in (1, 2)]
    rings = ring_correlation(*images)
    # A ring is 1/64 wide, and the taper smears by as much.
    assert rings.frc50_per_px == pytest.approx(0.2, abs=2 / 64)
    assert rings.frc50_per_px <= rings.frc1over7_per_px
    assert rings.resolution_px == pytest.approx(1 / rings.frc50_per_px)


# What has no resolution.


@pytest.mark.parametrize("side", [32, 64, 101])
@pytest.mark.parametrize(
    "kind",
    [lambda image: image, lambda image: image.real, lambda image: np.exp(0.05j * image.real)],
    ids=["complex", "real", "phase"],
)
def test_noise_against_noise_has_no_resolution(side: int, kind) -> None:
    for seed in range(100):
        rings = ring_correlation(kind(noise(seed, (side, side))), kind(noise(1000 + seed, (side, side))))
        assert all(map(math.isnan, resolutions(rings))), seed


@pytest.mark.parametrize("flat", [0.0, 1.0, 0.3 - 2j])
def test_a_constant_image_has_no_resolution(flat: complex) -> None:
    constant = np.full((64, 64), flat, np.complex64)
    for other in (noise(0), constant):
        rings = ring_correlation(constant, other)
        assert not rings.curve.any()
        assert all(map(math.isnan, resolutions(rings)))


def test_a_curve_below_the_threshold_everywhere_has_no_resolution_though_its_corner_is_full() -> None:
    rings = ring_correlation(noise(0, (96, 96)), noise(1, (96, 96)))
    # The outermost ring is one frequency.
    assert rings.curve[-1] == pytest.approx(1)
    assert math.isnan(rings.resolution_px)


def test_agreement_of_the_innermost_rings_decides_nothing() -> None:
    distance = np.hypot(np.fft.fftfreq(64, 1 / 64)[:, None], np.fft.fftfreq(64, 1 / 64))
    shared = np.fft.fft2(noise(7)) * (distance < 2.5)
    images = [np.fft.ifft2(20 * shared + np.fft.fft2(noise(seed))) for seed in (0, 1)]
    rings = ring_correlation(*images, taper=0)
    assert rings.curve[1:3].min() > 0.99
    assert all(map(math.isnan, resolutions(rings)))


# Crossings.


def crossing(curve: list[float], threshold: float = 0.5, noise: float = 0.2, first: int = 1) -> float:
    found = np.array(curve)
    return module._crossing(found, np.full(len(found), threshold), np.full(len(found), noise), range(first, len(found)))


def test_the_first_crossing_counts_and_lies_between_rings() -> None:
    assert crossing([0.1, 1, 0.9, 0.9, 0.3, 0.9, 0.9, 0.9]) == pytest.approx(3 + 0.4 / 0.6)
    assert crossing([1, 0.9, 0.8, 0.7]) == math.inf
    # Rings that decide nothing are in no band.
    assert crossing([1, 0.1, 0.9, 0.8, 0.8, 0.3], first=2) == pytest.approx(4 + 0.3 / 0.5)
    assert math.isnan(crossing([1, 0.9, 0.9, 0.9, 0.3], first=2))


def test_a_dip_at_large_periods_does_not_hide_the_band_after_it() -> None:
    assert crossing([1, 0.4, 0.9, 0.9, 0.9, 0.3]) == pytest.approx(4 + 0.4 / 0.6)
    assert crossing([1, 0.9, 0.4, 0.9, 0.9, 0.9, 0.3]) == pytest.approx(5 + 0.4 / 0.6)


def test_a_peak_of_few_rings_is_no_band() -> None:
    assert math.isnan(crossing([1, 0.4, 0.3, 0.2, 0.1]))
    assert math.isnan(crossing([1, 0.4, 0.99, 0.99, 0.3, 0.99, 0.3, 0.99, 0.99]))


def test_above_the_threshold_and_within_noise_is_no_band() -> None:
    assert math.isnan(crossing([1, 0.6, 0.55, 0.6, 0.3], noise=0.7))
    assert crossing([1, 0.6, 0.75, 0.6, 0.3], noise=0.7) > 3


def test_rings_decide_from_24_frequencies_to_half_a_cycle_a_pixel() -> None:
    distance = np.hypot(*(np.indices((64, 64)) - 32))
    counts = np.bincount(np.rint(distance).astype(int).ravel())
    deciding = module._deciding(counts, 64)
    assert (deciding.start, deciding[-1]) == (4, 32)
    assert counts[3] < 24 <= counts[4:33].min()
    assert not module._deciding(np.array([1, 4, 3]), 3)


def test_the_half_bit_threshold_is_that_of_the_paper() -> None:
    """Van Heel & Schatz 2005: (SNR + 2√SNR/√n + 1/√n) / (SNR + 1 + 2√SNR/√n) at the SNR of half a bit in half sets."""
    snr, root = (math.sqrt(2) - 1) / 2, np.sqrt(np.array([1.0, 9.0, 100.0, 1e4]))
    general = (snr + 2 * math.sqrt(snr) / root + 1 / root) / (snr + 1 + 2 * math.sqrt(snr) / root)
    np.testing.assert_allclose(half_bit_threshold(root**2), general, atol=1e-4)


def test_noise_exceeds_its_level_as_rarely_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "NOISE_PROBABILITY", 0.05)
    draw = np.random.default_rng(0)
    first, second = draw.standard_normal((2, 4000, 40)) + 1j * draw.standard_normal((2, 4000, 40))
    spread = np.sqrt((np.abs(first) ** 2).sum(1) * (np.abs(second) ** 2).sum(1))
    correlation = np.abs((first * second.conj()).sum(1)) / spread
    # Twice as many frequencies as are free.
    assert (correlation > noise_level(np.array(80.0), 1)).mean() == pytest.approx(0.05, abs=0.015)
    assert noise_level(np.array([0.0, 2.0]), 3) == pytest.approx(1)
    assert (noise_level(np.array(80.0), 10) > noise_level(np.array(80.0), 1)).all()


def test_the_half_bit_crossing_of_a_signal_in_noise() -> None:
    low = np.hypot(np.fft.fftfreq(128)[:, None], np.fft.fftfreq(128)) < 0.2
    signal = np.fft.fft2(noise(0, (128, 128)))
    images = [np.fft.ifft2(np.where(low, signal, np.fft.fft2(noise(seed, (128, 128))))) for seed in (1, 2)]
    rings = ring_correlation(*images)
    assert rings.half_bit_per_px == pytest.approx(0.2, abs=2 / 128)
    assert rings.half_bit_resolution_px == pytest.approx(1 / rings.half_bit_per_px)
    empty = rings.without_resolution()
    assert all(map(math.isnan, resolutions(empty)))
    np.testing.assert_array_equal(empty.curve, rings.curve)


@pytest.mark.parametrize(
    ("resolution_px", "pixel_m", "expected"),
    [
        (math.nan, 1e-9, "none"),
        (4.0, None, "4.00 px"),
        (4.0, 2e-8, "4.00 px (80 nm)"),
        (2.0, None, "2.00 px, the limit of the pixels"),
    ],
)
def test_a_resolution_is_told(resolution_px: float, pixel_m: float | None, expected: str) -> None:
    found = describe_resolution(resolution_px, pixel_m, "1/2")
    assert found.startswith(expected)
    assert ("none" in found) == math.isnan(resolution_px)


@pytest.mark.parametrize("shapes", [((8, 8), (8, 9)), ((3, 9), (3, 9)), ((8,), (8,))])
def test_shapes_that_do_not_fit_are_refused(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    with pytest.raises(DataContractError, match="two images of one shape"):
        ring_correlation(*(np.zeros(shape) for shape in shapes))
