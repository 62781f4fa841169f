"""Scores that need no known object: how well object and probe of a reconstruction predict the measured patterns.

Object and probe are determined up to one common factor, which is fitted to all patterns together.
<doc-ref type="guide">docs/workflows/pytorch.md</doc-ref>
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from ptycho_torch.config_params import DataSettings
from ptycho_torch.data.preparation import FramePreparation
from ptycho_torch.data.scan import Scan, chosen_positions
from ptycho_torch.errors import DataContractError
from ptycho_torch.reconstruction.products import Reconstruction

if TYPE_CHECKING:
    from ptycho_torch.dset_loader_pt_mmap import PtychoDataset

MOST_PIXELS = 2**22
"""Pixels of the patterns that are looked at, evenly spread over the scan: 1,024 patterns of 64 × 64."""

UNKNOWN_COUNTS = "the squared amplitudes are not whole numbers, so the number of photons is unknown"
"""Why a scan has no noise model."""

_PATTERNS_AT_ONCE = 64

_TABLE_ROOT, _TABLE_NODES = 8.0, 8192
"""Moments of √n are tabulated up to a mean of 64 counts; above, their series is exact to 1e-7."""

_MOST_TELLING = 2.0**18
"""Counts that are larger do not show in float32 whether they are whole."""

_LEAST_DISTINCT = 3


@dataclasses.dataclass(frozen=True)
class DiffractionScores:
    """How well a reconstruction predicts the measured patterns, over good pixels.

    I is the predicted intensity, Σ_m |FFT2(view · probe_m)|² / N², a the measured amplitude, and c = Σa² / ΣI the
    common scale, the most likely one for photons. With n = κ a² counts and μ = κ c I, for which n has a Poisson
    distribution of mean μ if object and probe are right:

        χ² of the intensity  = Σ (n − μ)² / (μ + 1)  /  Σ μ / (μ + 1)
        χ² of the amplitude  = Σ (√n − E√n)²  /  Σ Var √n

    Each numerator has the denominator as its expectation, whatever the counts: both are 1 for the true object and
    probe. For bright pixels they are the mean of (n − μ)² / μ and of 4 (√n − √μ)²; a pixel that expects μ ≪ 1 counts
    as μ of a pixel in both. E√n and Var √n are the moments of the Poisson distribution (``sqrt_moments``). Only the
    scale was fitted here, so no other parameter is taken off the number of pixels.

    Attributes:
        patterns: that were looked at, evenly spread over those that could be.
        patterns_inside: that could be: their whole patch lies on covered pixels.
        patterns_of_scan: all.
        scale: c.
        nmse: min over s of Σ (a − s√I)² / Σ a², with a scale of its own.
        r_factor: Σ |a − √(cI)| / Σ a.
        counts_per_unit: κ, photons in one unit of squared amplitude; None where it is unknown.
        chi2_intensity: see above; None where κ is unknown.
        chi2_amplitude: see above; None where κ is unknown.
    """

    patterns: int
    patterns_inside: int
    patterns_of_scan: int
    scale: float
    nmse: float
    r_factor: float
    counts_per_unit: float | None
    chi2_intensity: float | None
    chi2_amplitude: float | None

    def numbers(self) -> dict[str, Any]:
        """Return all of it, ready for JSON but for numbers that are not finite."""
        noise = "Poisson" if self.counts_per_unit is not None else None
        reason = None if noise else UNKNOWN_COUNTS
        return {**dataclasses.asdict(self), "noise_model": noise, "no_noise_model_because": reason}

    def describe(self) -> tuple[tuple[str, str], ...]:
        """Return names and values for a table."""
        seen = f"{self.patterns} of {self.patterns_of_scan} patterns, common scale {self.scale:.4g} fitted"
        if self.chi2_intensity is None or self.chi2_amplitude is None:
            chi2 = f"none: {UNKNOWN_COUNTS}"
        else:
            chi2 = f"intensity {self.chi2_intensity:.4g}, amplitude {self.chi2_amplitude:.4g} (1: photon noise only)"
        return (("diffraction χ²", chi2), ("R-factor, NMSE", f"{self.r_factor:.4g}, {self.nmse:.4g} ({seen})"))


@dataclasses.dataclass(frozen=True)
class MeasuredPatterns:
    """Patterns of one scan, prepared as for the network, which are read when they are asked for.

    Attributes:
        positions_px: (M, 2) positions (x, y) in the frame of the reconstruction.
        good_pixels: (N, N) bool, or None where all are good.
        read: (n, N, N) float32 amplitude of patterns by ascending number.
        name: for errors.
    """

    positions_px: np.ndarray
    good_pixels: np.ndarray | None
    read: Callable[[np.ndarray], np.ndarray]
    name: str

    @classmethod
    def of_dataset(cls, dataset: PtychoDataset, number: int) -> MeasuredPatterns:
        """Return the patterns of a scan of a dataset, by its number."""
        import torch

        rows = torch.from_numpy(dataset.rows[number])

        def read(numbers: np.ndarray) -> np.ndarray:
            return np.asarray(dataset.amplitude.index_select(0, rows[torch.from_numpy(numbers)]).numpy())

        good = None if dataset.good_pixels is None else dataset.good_pixels[number].numpy()
        return cls(dataset.positions_px[rows].numpy(), good, read, dataset.names[number])

    @classmethod
    def of_scan(cls, scan: Scan, settings: DataSettings) -> MeasuredPatterns:
        """Return the patterns of a file, cropped, binned and turned as settings say.

        Raises:
            DataContractError: PREP-01.
        """
        preparation = FramePreparation(scan.stack.frame_px, settings, scan.path)

        def read(numbers: np.ndarray) -> np.ndarray:
            found = []
            for first, frames, _ in scan.stack.chunks(scan.stack.audit()):
                low, high = np.searchsorted(numbers, (first, first + len(frames)))
                # The memory of a chunk is used again.
                found.append(np.array(preparation.frames(frames[numbers[low:high] - first])))
            return np.concatenate(found)

        good = None if scan.stack.good_pixels is None else preparation.good_pixels(scan.stack.good_pixels)
        return cls(preparation.positions(chosen_positions(scan, settings)), good, read, str(scan.path))


def score_diffraction(reconstruction: Reconstruction, measured: MeasuredPatterns | Scan) -> DiffractionScores:
    """Score how well object and probe predict the patterns of a scan.

    Patterns count whose whole patch lies on covered pixels. Of more than ``MOST_PIXELS`` pixels, an even choice of
    the patterns is looked at, so that time and memory are bounded.

    Args:
        reconstruction: object, probe and origin. Its provenance tells how frames and positions of a file are made,
            and whether the network blurs and masks the exit wave.
        measured: the patterns, or the file with them.

    Raises:
        ConfigError: settings in the provenance that are not possible.
        DataContractError: PREP-01, SCAN-04, SCAN-05, no patch lies inside the covered region, or object or probe are
            not finite.
    """
    if isinstance(measured, Scan):
        stated = reconstruction.provenance.get("settings", {}).get("data")
        settings = DataSettings(N=measured.stack.frame_px) if stated is None else DataSettings.from_mapping(stated)
        measured = MeasuredPatterns.of_scan(measured, settings)
    covered = np.asarray(reconstruction.coverage) > 0
    for name, values in (("object", np.asarray(reconstruction.object)[covered]), ("probe", reconstruction.probe)):
        if not np.isfinite(values).all():
            raise _error(f"NaN or infinity in the {name}", "finite numbers", "Reconstruct again.")
    N = np.asarray(reconstruction.probe).shape[-1]
    local_px = measured.positions_px - np.array(reconstruction.origin_px)
    inside = np.flatnonzero(covered_patches(covered, local_px, N))
    if not len(inside):
        raise _error(
            f"no pattern of {measured.name} whose patch of {N} × {N} px lies on covered pixels",
            "patterns of the scan that was reconstructed",
            "Give that scan, or stitch with a larger crop_px.",
        )
    count = min(len(inside), max(MOST_PIXELS // N**2, 1))
    chosen = inside[np.linspace(0, len(inside) - 1, count).astype(np.int64)]
    good = slice(None) if measured.good_pixels is None else measured.good_pixels.ravel()
    amplitude = measured.read(chosen).reshape(count, -1)[:, good]
    intensity = predict_intensity(reconstruction, local_px[chosen]).reshape(count, -1)[:, good]
    scores = _scores(amplitude, intensity)
    return DiffractionScores(count, len(inside), len(measured.positions_px), **scores)


def _error(found: str, expected: str, remedy: str) -> DataContractError:
    return DataContractError(
        f"Found {found}; expected {expected}. {remedy}", found=found, expected=expected, remedy=remedy
    )


def predict_intensity(reconstruction: Reconstruction, local_px: np.ndarray) -> np.ndarray:
    """Return (n, N, N) float32 Σ_m |FFT2(view · probe_m)|² / N², zero frequency in the centre.

    Args:
        reconstruction: object and probe; its provenance tells whether the exit wave is blurred and masked.
        local_px: (n, 2) positions (x, y) on the canvas of the object.
    """
    import torch

    from ptycho_torch import helper
    from ptycho_torch.data.probe import as_modes, disk_mask

    image = torch.from_numpy(np.asarray(reconstruction.object, np.complex64))
    probe = as_modes(torch.from_numpy(np.asarray(reconstruction.probe, np.complex64)))
    N = probe.shape[-1]
    network = reconstruction.provenance.get("network", {})
    sigma_px = float(network.get("gaussian_smoothing_sigma", 0.0))
    disk = disk_mask(N).float() if network.get("probe_mask", False) else None
    intensity = np.empty((len(local_px), N, N), np.float32)
    for first in range(0, len(local_px), _PATTERNS_AT_ONCE):
        some = slice(first, first + _PATTERNS_AT_ONCE)
        views = helper.cut_patches(image, torch.from_numpy(local_px[some]).float(), N)
        wave = helper.illuminate(views[:, None], probe, smoothing_sigma=sigma_px, disk=disk)
        intensity[some] = helper.diffract(wave)[:, 0].square().numpy()
    return intensity


def _scores(amplitude: np.ndarray, intensity: np.ndarray) -> dict[str, Any]:
    """Return the scores of (n, P) measured amplitude and predicted intensity, some patterns at a time."""

    def parts() -> Any:
        for first in range(0, len(amplitude), _PATTERNS_AT_ONCE):
            some = slice(first, first + _PATTERNS_AT_ONCE)
            yield amplitude[some].astype(np.float64), intensity[some].astype(np.float64)

    sums = np.sum([(np.square(a).sum(), p.sum(), a.sum(), (a * np.sqrt(p)).sum()) for a, p in parts()], axis=0)
    measured, predicted, amplitudes, products = (float(each) for each in sums)
    scale = measured / predicted if predicted > 0 else 0.0
    kappa = counts_per_unit(amplitude)
    terms = np.zeros(5)
    for a, p in parts():
        terms[0] += np.abs(a - np.sqrt(scale * p)).sum()
        if kappa is None:
            continue
        counts, mean = kappa * np.square(a), kappa * scale * p
        expected, variance = sqrt_moments(mean)
        terms[1:] += (
            (np.square(counts - mean) / (mean + 1)).sum(),
            (mean / (mean + 1)).sum(),
            np.square(np.sqrt(counts) - expected).sum(),
            variance.sum(),
        )
    residual, intensity_error, intensity_expected, amplitude_error, amplitude_expected = (float(each) for each in terms)
    known = kappa is not None and predicted > 0
    return {
        "scale": scale,
        "nmse": 1 - products**2 / (measured * predicted) if measured * predicted > 0 else 1.0,
        "r_factor": residual / amplitudes,
        "counts_per_unit": kappa,
        "chi2_intensity": intensity_error / intensity_expected if known else None,
        "chi2_amplitude": amplitude_error / amplitude_expected if known else None,
    }


def counts_per_unit(amplitude: np.ndarray) -> float | None:
    """Return the photons in one unit of squared amplitude; None where the amplitudes do not tell.

    Photons are whole: the squares, or the squares over the least one above 0, are whole numbers to float32's
    precision. This takes what is counted in whole numbers for photons, and needs no setting, which may be wrong.
    """
    lit = amplitude[amplitude > 0][: 2**20]
    squares = np.square(lit, dtype=np.float64)
    if not len(squares):
        return None
    for unit in (1.0, float(squares.min())):
        counts = squares / unit
        telling = counts[counts < _MOST_TELLING]
        if not np.isfinite(unit) or 2 * len(telling) < len(counts):
            continue
        nearest = np.maximum(np.rint(telling), 1)
        whole = np.abs(telling - nearest) <= 1e-3 + 3e-7 * telling
        if whole.mean() > 0.999 and len(np.unique(nearest)) >= _LEAST_DISTINCT:
            return 1 / unit
    return None


def sqrt_moments(mean: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and variance of √n for n of Poisson distributions of these means.

    E√n = Σ_k √k e^{−μ} μ^k / k!, tabulated up to μ = 64; above, √μ (1 − 1/(8μ) − 7/(128μ²) − 75/(1024μ³)).
    Var √n = μ − (E√n)². For small μ neither is what is often taken, √μ and 1/4.

    >>> [float(moment.round(4)) for moment in sqrt_moments(np.array(1.0))]
    [0.7732, 0.4022]
    """
    root = np.sqrt(mean)
    low = np.interp(root, *_sqrt_table())
    inverse = 1 / np.maximum(mean, _TABLE_ROOT**2)
    high = root * (1 - inverse * (1 / 8 + inverse * (7 / 128 + inverse * 75 / 1024)))
    expected = np.where(root < _TABLE_ROOT, low, high)
    return expected, mean - np.square(expected)


@functools.cache
def _sqrt_table() -> tuple[np.ndarray, np.ndarray]:
    """Return √μ from 0 to ``_TABLE_ROOT``, and E√n."""
    from scipy.special import gammaln

    root = np.linspace(0, _TABLE_ROOT, _TABLE_NODES)
    expected = np.zeros_like(root)
    # Beyond, probabilities are below 1e-30 for every mean of the table.
    for count in range(1, int(_TABLE_ROOT**2 + 13 * _TABLE_ROOT)):
        with np.errstate(divide="ignore"):
            logarithm = 2 * count * np.log(root) - root**2 - gammaln(count + 1)
        expected += np.sqrt(count) * np.exp(logarithm)
    return root, expected


def covered_patches(covered: np.ndarray, positions_px: np.ndarray, N: int) -> np.ndarray:
    """Return (M,) whether every pixel that a patch at (x, y) reads is covered."""
    height, width = covered.shape
    corner = positions_px - N / 2
    # A patch between pixels reads one row or column more.
    first, end = np.floor(corner).astype(np.int64), np.ceil(corner).astype(np.int64) + N
    inside = np.all((first >= 0) & (end <= (width, height)), axis=1)
    # Sums over rectangles from sums over all pixels above and to the left.
    sums = np.zeros((height + 1, width + 1), np.int64)
    sums[1:, 1:] = covered.cumsum(0).cumsum(1)
    x, y = np.where(inside[:, None], first, 0).T
    right, bottom = np.where(inside[:, None], end, 0).T
    count = sums[bottom, right] - sums[y, right] - sums[bottom, x] + sums[y, x]
    return np.asarray(inside & (count == (right - x) * (bottom - y)))
