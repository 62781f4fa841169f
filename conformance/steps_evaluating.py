"""Errors of amplitude and phase as images, and correlation in rings of Fourier space."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from conformance.hypotheses import Hypothesis
from conformance.step import FLOAT64, Outcome, Step, StepBench
from conformance.steps_scores import Case, Pair, draw_object, plain_scores

WINDOW_PX, K_1, K_2 = 7, 0.01, 0.03
"""Of structural similarity: side of the window and the two constants of its authors (Wang et al. 2004)."""

PIXEL_M = 2e-9
"""Side of an object pixel."""


def similarity(ours: np.ndarray, theirs: np.ndarray, data_range: float, valid: np.ndarray) -> float:
    """Return the mean structural similarity over valid pixels whose 7 × 7 window lies inside the images.

    (2 x̄ȳ + c₁)(2 σ_xy + c₂) / ((x̄² + ȳ² + c₁)(σ_x² + σ_y² + c₂)), c = (K · data_range)², Wang et al. 2004, over windows
    of equal weights; variances and covariance over n − 1 of the n pixels, as scikit-image has them.
    """

    def mean(image: np.ndarray) -> np.ndarray:
        windows = np.lib.stride_tricks.sliding_window_view(image, (WINDOW_PX, WINDOW_PX))
        return np.asarray(windows.mean(axis=(-2, -1)))

    unbiased = WINDOW_PX**2 / (WINDOW_PX**2 - 1)
    x, y = mean(ours), mean(theirs)
    by_x, by_y = (unbiased * (mean(image**2) - mean(image) ** 2) for image in (ours, theirs))
    both = unbiased * (mean(ours * theirs) - x * y)
    c_1, c_2 = (K_1 * data_range) ** 2, (K_2 * data_range) ** 2
    found = (2 * x * y + c_1) * (2 * both + c_2) / ((x**2 + y**2 + c_1) * (by_x + by_y + c_2))
    edge = WINDOW_PX // 2
    return float(found[valid[edge:-edge, edge:-edge]].mean())


Pictures = tuple[np.ndarray, np.ndarray, np.ndarray]
Parts = Mapping[str, Mapping[str, np.ndarray | float]]


def image_errors(
    ours: np.ndarray, theirs: np.ndarray, difference: np.ndarray, data_range: float, valid: np.ndarray
) -> dict[str, float]:
    """Return the errors by the equations of ``ImageErrors``."""
    return {
        "mae": float(np.abs(difference[valid]).mean()),
        "psnr_db": float(20 * np.log10(data_range) - 10 * np.log10((difference[valid] ** 2).mean())),
        "ssim": similarity(ours, theirs, data_range, valid),
    }


def tukey(n: int, taper: float) -> np.ndarray:
    """Return a window that rises over ``taper / 2`` of its width, and falls likewise."""
    edge = taper * (n - 1) / 2
    near = np.minimum(np.arange(n), np.arange(n)[::-1])
    if edge == 0:
        return np.ones(n)
    return np.where(near < edge, 0.5 * (1 - np.cos(np.pi * np.minimum(near / edge, 1))), 1.0)


def rings(
    first: np.ndarray,
    second: np.ndarray,
    taper: float = 0.25,
    *,
    conjugate: Callable[[np.ndarray], np.ndarray] = np.conj,
    ring_of: Callable[[float], int] = lambda distance: int(np.rint(distance)),
    level: Callable[[np.ndarray], complex] = np.mean,
    cut: Callable[[int, int], int] = lambda side, n: (side - n) // 2,
) -> np.ndarray:
    """Return (R,) |Σ F₁ F₂*| / √(Σ|F₁|² Σ|F₂|²) over each ring of Fourier space, 0 where nothing is in it.

    F is the Fourier transform of the central square of an image, its mean taken out, under ``tukey`` in both axes.

    Args:
        first: (H, W).
        second: (H, W).
        taper: share of the width of the square over which the window rises and falls.
        conjugate: *, which a mistake may change, as the three below.
        ring_of: number of the ring by the distance from frequency 0.
        level: what is taken out.
        cut: where the square begins, by the length of a side and its own.
    """
    n = min(first.shape)
    top, left = (cut(side, n) for side in first.shape)
    window = tukey(n, taper)[:, None] * tukey(n, taper)
    fields = []
    for image in (first, second):
        square = image[top : top + n, left : left + n]
        fields.append(np.fft.fft2((square - level(square)) * window))
    waves = np.round(np.fft.fftfreq(n) * n)
    number = np.array([[ring_of(math.hypot(row, column)) for column in waves] for row in waves])
    curve = np.zeros(number.max() + 1)
    for ring in range(len(curve)):
        a, b = (field[number == ring] for field in fields)
        energy = np.sum(np.abs(a) ** 2) * np.sum(np.abs(b) ** 2)
        curve[ring] = np.abs(np.sum(a * conjugate(b))) / np.sqrt(energy) if energy > 0 else 0.0
    return curve


def crossing(curve: np.ndarray, thresholds: np.ndarray, counts: np.ndarray, share: float, n: int) -> float:
    """Return the ring where a curve falls below its threshold behind the first band above it, by ``RingCorrelation``.

    Rings of 24 frequencies or more decide, up to n // 2. Three in a row make a band, if one of them exceeds what
    independent noise does once in 10⁴ times: with m free frequencies, P(|c| > s) = (1 − s²)^(m − 1), each of the
    deciding rings being looked at. n / 2 where the curve does not fall, NaN where there is no band.

    Args:
        curve: (R,).
        thresholds: (R,).
        counts: (R,) frequencies of each ring; half of those that are independent are free.
        share: of the frequencies that the taper leaves independent.
        n: side of the images.
    """
    first = next(ring for ring in range(1, len(curve)) if counts[ring] >= 24)
    looked_at = n // 2 + 1 - first
    band: list[bool] = []
    for ring in range(first, n // 2 + 1):
        if curve[ring] >= thresholds[ring]:
            band.append((1 - min(curve[ring], 1.0) ** 2) ** (counts[ring] * share / 2 - 1) * looked_at < 1e-4)
            continue
        if len(band) >= 3 and any(band):
            above, below = (curve[each] - thresholds[each] for each in (ring - 1, ring))
            return float(ring - 1 + above / (above - below))
        band = []
    return n / 2 if len(band) >= 3 and any(band) else math.nan


def ring_numbers(curve: np.ndarray, n: int, taper: float = 0.25) -> dict[str, np.ndarray]:
    """Return what ``RingCorrelation`` holds of a curve over images of n × n pixels."""
    waves = np.arange(n) - n // 2
    counts = np.bincount(np.rint(np.hypot(waves, waves[:, None])).astype(int).ravel(), minlength=len(curve))
    window = tukey(n, taper)
    share = float(np.sum(window**2) ** 2 / (n * np.sum(window**4))) ** 2
    root = np.sqrt(np.maximum(counts[: len(curve)] * share, 1))
    half_bit = (0.2071 + 1.9102 / root) / (1.2071 + 0.9102 / root)
    half, seventh, bit = (
        crossing(curve, thresholds, counts, share, n) / n
        for thresholds in (np.full(len(curve), 1 / 2), np.full(len(curve), 1 / 7), half_bit)
    )
    return {
        "curve": curve,
        "frequencies_per_px": np.arange(len(curve)) / n,
        "half_bit": half_bit,
        "frc50_per_px": np.array(half),
        "frc1over7_per_px": np.array(seventh),
        "half_bit_per_px": np.array(bit),
        "resolution_px": np.array(1 / half),
        "half_bit_resolution_px": np.array(1 / bit),
    }


def _named(parts: Parts) -> dict[str, np.ndarray]:
    return {f"{name}, {what}": np.asarray(each) for what, some in parts.items() for name, each in some.items()}


def _ring_pairs() -> dict[str, tuple[np.ndarray, np.ndarray, float]]:
    rng = np.random.default_rng(15)
    first, other = (draw_object(rng, (33, 40)) for _ in range(2))
    coarse = np.fft.fft2(first) * (np.hypot(np.fft.fftfreq(33)[:, None], np.fft.fftfreq(40)) < 0.3)
    blurred = np.fft.ifft2(coarse)
    return {
        "blurred and noisy": (first, blurred + 0.3 * (other - other.mean()), 0.25),
        "wide taper": (first, 1j * blurred + 0.2 * other, 0.8),
        "no taper": (first.real, first.real + 0.5 * other.imag, 0.0),
        "nothing in common": (first, other, 0.25),
        "the same twice": (first, 2 * first, 0.25),
    }


def _rings(_: StepBench) -> Outcome:
    """Correlate images that are not square."""
    from ptycho_torch.rings import ring_correlation

    pairs, n = _ring_pairs(), 33
    right = {what: ring_numbers(rings(*pair), n, pair[2]) for what, pair in pairs.items()}
    found = {what: vars(ring_correlation(a, b, taper=taper)) for what, (a, b, taper) in pairs.items()}

    def mistakes() -> Iterator[Hypothesis]:
        changes: dict[str, dict[str, Any]] = {
            "conjugate missing": {"conjugate": np.asarray},
            "rings cut to whole numbers": {"ring_of": math.floor},
            "mean not taken out": {"level": lambda square: 0.0},
            "square from the corner of the image": {"cut": lambda side, n: 0},
        }
        for name, wrong in changes.items():
            curves = {what: ring_numbers(rings(*pair, **wrong), n, pair[2]) for what, pair in pairs.items()}
            yield Hypothesis(name, _named(curves))
        for name, taper in (("edges not tapered", 0.0), ("another taper", 0.5), ("Hann window for the taper", 1.0)):
            curves = {what: ring_numbers(rings(a, b, taper), n, taper) for what, (a, b, _) in pairs.items()}
            yield Hypothesis(name, _named(curves))
        for name, factor in (("frequencies over half of the width", 2.0), ("frequencies in rings", float(n))):
            yield Hypothesis(
                name,
                _named(
                    {what: {"frequencies_per_px": factor * each["frequencies_per_px"]} for what, each in right.items()}
                ),
            )
        lengths = {what: {"resolution_px": each["resolution_px"] / 2} for what, each in right.items()}
        yield Hypothesis("half of a period for the resolution", _named(lengths))

    return Outcome(_named(right), _named(found), FLOAT64, mistakes)


def _evaluate(_: StepBench) -> Outcome:
    """Evaluate a noisy reconstruction with a hole, away from the origin of the known object."""
    from ptycho_torch.evaluate import evaluate
    from ptycho_torch.products import Reconstruction

    rng = np.random.default_rng(16)
    truth = draw_object(rng, (76, 90)) * np.exp(2.9j)
    noise = rng.standard_normal((2, 60, 66))
    case = Case((11.2, 3.8), (60, 66), (0, 0, 0, 0), (0, 0), hole_px=(slice(30, 33), slice(20, 26)))
    image = case.image(truth) + 0.05 * (noise[0] + 1j * noise[1])
    # Phases so far off that their difference wraps; and what stands in the hole is no object.
    image[24:27, 40:43] *= np.exp(3j)
    image[~case.covered] = 7.0
    coverage = np.where(case.covered, rng.uniform(0.1, 3.0, case.shape), 0)
    evaluation = evaluate(
        Reconstruction(image, coverage, case.origin_px, np.zeros((1, 2)), np.ones((8, 8)), {}, pixel_size_m=PIXEL_M),
        truth,
    )
    alignment, size = evaluation.alignment, evaluation.pixel_size_m
    ours, theirs, valid = alignment.aligned, alignment.truth, alignment.valid
    amplitudes, phases = _pictures(ours, theirs, valid)
    filled, filled_truth = (np.where(valid, each, each[valid].mean()) for each in (ours, theirs))
    right: Parts = {
        "amplitude": image_errors(*amplitudes, float(np.ptp(np.abs(theirs)[valid])), valid),
        "phase": image_errors(*phases, 2 * np.pi, valid),
        "rings": ring_numbers(rings(filled, filled_truth), min(ours.shape)),
        "scores": plain_scores(Pair(ours, theirs, valid, alignment.shift_px)),
        "compared": {"known object": case.cut(truth), "valid": case.valid(truth), "pixel size": PIXEL_M},
    }
    found: Parts = {
        "amplitude": vars(evaluation.amplitude),
        "phase": vars(evaluation.phase),
        "rings": vars(evaluation.rings),
        "scores": vars(evaluation.scores),
        "compared": {"known object": theirs, "valid": valid, "pixel size": math.nan if size is None else size},
    }

    return Outcome(_named(right), _named(found), FLOAT64, lambda: _evaluated_wrongly(ours, theirs, valid))


def _pictures(ours: np.ndarray, theirs: np.ndarray, valid: np.ndarray) -> tuple[Pictures, Pictures]:
    """Return ours, theirs and their difference, of amplitude and of phase."""
    turn = np.exp(-1j * np.angle(theirs[valid].sum()))
    amplitudes = np.abs(ours), np.abs(theirs), np.abs(ours) - np.abs(theirs)
    return amplitudes, (np.angle(ours * turn), np.angle(theirs * turn), np.angle(ours * theirs.conj()))


def _evaluated_wrongly(ours: np.ndarray, theirs: np.ndarray, valid: np.ndarray) -> Iterator[Hypothesis]:
    amplitudes, phases = _pictures(ours, theirs, valid)
    reach, everywhere = float(np.ptp(np.abs(theirs)[valid])), np.ones_like(valid)
    own_reach, largest = float(np.ptp(np.abs(ours)[valid])), float(np.abs(theirs)[valid].max())
    bare = (phases[0], phases[1], phases[0] - phases[1])
    wrong: dict[str, Parts] = {
        "pixels that are not valid counted": {
            "amplitude": image_errors(*amplitudes, reach, everywhere),
            "phase": image_errors(*phases, 2 * np.pi, everywhere),
        },
        "range of the reconstruction": {"amplitude": image_errors(*amplitudes, own_reach, valid)},
        "largest value for the range": {"amplitude": image_errors(*amplitudes, largest, valid)},
        "range π of the phase": {"phase": image_errors(*phases, np.pi, valid)},
        "phase difference not wrapped": {"phase": image_errors(*bare, 2 * np.pi, valid)},
        "phases about 0 and not about their mean": {
            "phase": image_errors(np.angle(ours), np.angle(theirs), phases[2], 2 * np.pi, valid)
        },
        "holes not filled for the rings": {"rings": ring_numbers(rings(ours, theirs), min(ours.shape))},
        "coverage ignored": {"compared": {"valid": everywhere}},
        "holes filled with zeros for the rings": {
            "rings": ring_numbers(rings(np.where(valid, ours, 0), np.where(valid, theirs, 0)), min(ours.shape))
        },
    }
    for name, parts in wrong.items():
        yield Hypothesis(name, _named(parts))


EVALUATING: tuple[Step, ...] = (
    Step("forward.rings", ("SCORE-02",), _rings),
    Step("forward.evaluate", ("SCORE-02",), _evaluate, ("skimage",)),
)
