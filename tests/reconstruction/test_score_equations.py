"""A reconstruction compared with the known object: alignment, scores, errors and rings, each by its equation."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from conformance.judge.agreement import FLOAT64, assert_agrees
from ptycho_torch.evaluate import compare, evaluate, score
from ptycho_torch.reconstruction import alignment
from ptycho_torch.reconstruction.alignment import Alignment
from ptycho_torch.reconstruction.products import Reconstruction
from ptycho_torch.reconstruction.rings import ring_correlation
from tests.support.true_objects import draw_object

FITTED = 1e-10
"""A phase plane is fitted until a step of it is below this, in radians over the image."""

TRIM_PX = 8
"""Pixels at each side of what is compared that serve only the search for the shift."""

Plane = tuple[float, float, float]
"""Phase at the centre of an image, slope in x, slope in y."""


def numbers(content: Any) -> dict[str, np.ndarray]:
    return {name: np.asarray(each) for name, each in (content if isinstance(content, dict) else vars(content)).items()}


# ------------------------------------------------------------------------------------------------------ alignment


def axes_of(shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return x and y from the centre of an image."""
    height, width = shape
    y, x = np.mgrid[:height, :width] - np.array([(height - 1) / 2, (width - 1) / 2])[:, None, None]
    return x, y


def waves_of(found: np.ndarray | Plane, shape: tuple[int, int]) -> np.ndarray:
    x, y = axes_of(shape)
    return np.asarray(np.exp(1j * (found[0] + found[1] * x + found[2] * y)))


def plane(image: np.ndarray, truth: np.ndarray, valid: np.ndarray, slopes: tuple[float, float] = (0, 0)) -> np.ndarray:
    """Return the (3,) plane that brings the phase of an image to that of another.

    Least squares over valid pixels with weights |t a*|, repeated about what was found, with the rest wrapped; it begins
    with ``slopes`` in x and y, which are right to a fraction of a turn over the image.
    """
    terms = np.stack([np.ones(image.shape), *axes_of(image.shape)], axis=-1)[valid]
    product = (truth * image.conj())[valid]
    weights = np.sqrt(np.abs(product))
    found = np.array([np.angle((product * np.exp(-1j * (terms @ [0.0, *slopes]))).sum()), *slopes])
    for _ in range(40):
        rest = np.angle(product * np.exp(-1j * (terms @ found)))
        found = found + np.linalg.lstsq(weights[:, None] * terms, weights * rest, rcond=None)[0]
    return found


def moved(image: np.ndarray, x: float, y: float) -> np.ndarray:
    """Move the content of an image by (x, y), by sums over its frequencies."""

    def along(n: int, by: float) -> np.ndarray:
        waves = np.fft.fftfreq(n) * n
        there = np.exp(-2j * np.pi * np.outer(waves, np.arange(n)) / n)
        return np.asarray(np.exp(2j * np.pi * np.outer(np.arange(n) - by, waves) / n) / n @ there)

    height, width = image.shape
    return np.asarray(along(height, y) @ image @ along(width, x).T)


def real_scale(image: np.ndarray, truth: np.ndarray) -> float:
    """Return the real factor of an image that comes nearest to another."""
    both = [np.concatenate([each.real.ravel(), each.imag.ravel()]) for each in (image, truth)]
    return float(np.linalg.lstsq(both[0][:, None], both[1], rcond=None)[0][0])


def untouched(covered: np.ndarray, reach_px: int) -> np.ndarray:
    """Return (H, W) True where no pixel within a square of 2·reach + 1 is a hole; beyond the edge there is none."""
    around = np.pad(covered, reach_px, constant_values=True)
    windows = np.lib.stride_tricks.sliding_window_view(around, (2 * reach_px + 1,) * 2)
    return np.asarray(windows.all(axis=(-2, -1)))


@pytest.mark.parity_clause("SCORE-02")
def test_plane_and_scale_are_least_squares_and_a_move_is_that_of_its_waves() -> None:
    rng = np.random.default_rng(20)
    truth, slopes = draw_object(rng, (52, 60)), (-0.31, 0.4)
    other = 1.4 * truth * waves_of((0.9, 0.31, -0.4), truth.shape) + 0.1 * draw_object(rng, truth.shape)
    valid, turned = rng.random(truth.shape) > 0.3, other * np.exp(0.4j)
    fitted = alignment.fit_phase_plane(other, truth, valid)
    found = {
        "plane": np.array([fitted.phase_rad, *fitted.ramp_rad_per_px]),
        "moved": alignment.shift_image(other, (3.4, -1.7)),
        "scale": np.array(alignment.fit_scale(turned, truth, valid)),
        "scale of nothing": np.array(alignment.fit_scale(0 * turned, truth, valid)),
    }
    right = {
        "plane": plane(other, truth, valid, slopes),
        "moved": moved(other, 3.4, -1.7),
        "scale": np.array(real_scale(turned[valid], truth[valid])),
        "scale of nothing": np.array(0.0),
    }
    assert_agrees(right, found, FITTED)


@pytest.mark.parity_clause("SCORE-02")
def test_an_image_with_a_hole_is_aligned() -> None:
    """Plane, move, plane, scale; the hole is filled with the mean before it is moved."""
    truth, shift_px = draw_object(np.random.default_rng(21), (52, 60)), (0.3, -0.6)
    covered = np.ones(truth.shape, bool)
    covered[24:27, 31:33] = False
    image = np.where(covered, moved(truth, -shift_px[0], -shift_px[1]) * np.exp(0.6j) / 1.3, 0)
    found = alignment.align(image, truth, covered, trim_px=TRIM_PX)
    # The correlation tells twentieths of a pixel apart.
    assert np.round(np.array(found.shift_px) * 10).tolist() == [3, -6]
    inner = (slice(TRIM_PX, -TRIM_PX),) * 2
    # The moved edge of a hole reaches two pixels further than the shift.
    kept, known = untouched(covered, 3)[inner], truth[inner]
    level = image * waves_of(plane(image, truth, covered), image.shape)
    there = moved(np.where(covered, level, level[covered].mean()), *found.shift_px)[inner]
    there = there * waves_of(plane(there, known, kept), there.shape)
    there = real_scale(there[kept], known[kept]) * there
    right = {"valid": kept, "aligned": np.where(kept, there, 0)}
    assert_agrees(right, {"valid": found.valid, "aligned": np.where(kept, found.aligned, 0)}, FITTED)


SCALE, PHASE_RAD, RAMP_RAD_PER_PX = 1.7, 0.7, (0.02, -0.05)


@dataclasses.dataclass(frozen=True)
class Case:
    """A reconstruction that differs from the known object by what alignment takes out.

    Attributes:
        origin_px: (x, y) of its first pixel, between pixels of the known object.
        shape: rows and columns of its canvas.
        margins_px: uncovered rows at the top and bottom, columns at the left and right.
        shift_px: (x, y), whole pixels, that it has to be moved by.
        border_px: left out at each side.
        hole_px: rows and columns of the canvas that nothing covers.
    """

    origin_px: tuple[float, float]
    shape: tuple[int, int]
    margins_px: tuple[int, int, int, int]
    shift_px: tuple[int, int]
    border_px: int = 14
    hole_px: tuple[slice, slice] | None = None

    @property
    def first(self) -> tuple[int, int]:
        """Row and column of the known object at which the canvas begins."""
        x, y = self.origin_px
        return math.floor(y + 0.5), math.floor(x + 0.5)

    @property
    def covered(self) -> np.ndarray:
        """(H, W) True where there is a reconstruction."""
        (height, width), (top, bottom, left, right) = self.shape, self.margins_px
        covered = np.zeros(self.shape, bool)
        covered[top : height - bottom, left : width - right] = True
        if self.hole_px is not None:
            covered[self.hole_px] = False
        return covered

    def compared(self, truth: np.ndarray) -> list[tuple[int, int]]:
        """Return first and end of the rows, then of the columns, of the canvas that are aligned."""
        grow = self.border_px - TRIM_PX
        margins = (self.margins_px[:2], self.margins_px[2:])
        return [
            # The last covered row or column is not counted in.
            (max(low + grow, -begin), min(size - high - 1 - grow, length - begin))
            for size, (low, high), begin, length in zip(self.shape, margins, self.first, truth.shape, strict=True)
        ]

    def image(self, truth: np.ndarray) -> np.ndarray:
        """Return the reconstruction."""
        (row, column), (x, y) = self.first, self.shift_px
        (top, bottom), (left, right) = self.compared(truth)
        image = np.zeros(self.shape, complex)
        for j, i in np.argwhere(self.covered):
            there = (row + j + y, column + i + x)
            inside = all(0 <= each < length for each, length in zip(there, truth.shape, strict=True))
            phase = PHASE_RAD + RAMP_RAD_PER_PX[0] * (i - (left + right - 1) / 2)
            phase += RAMP_RAD_PER_PX[1] * (j - (top + bottom - 1) / 2)
            image[j, i] = (truth[there] if inside else 0.5) * np.exp(-1j * phase) / SCALE
        return image

    def cut(self, truth: np.ndarray) -> np.ndarray:
        """Return the part of the known object that is compared."""
        rows, columns = (
            slice(low + begin + TRIM_PX, high + begin - TRIM_PX)
            for (low, high), begin in zip(self.compared(truth), self.first, strict=True)
        )
        return truth[rows, columns]

    def valid(self, truth: np.ndarray) -> np.ndarray:
        """Return which of the pixels that are compared the image's move does not touch."""
        (top, bottom), (left, right) = self.compared(truth)
        kept = untouched(self.covered[top:bottom, left:right], max(map(abs, self.shift_px)) + 2)
        return kept[TRIM_PX:-TRIM_PX, TRIM_PX:-TRIM_PX]


CASES = {
    "off the origin": Case((9.3, 6.7), (58, 66), (2, 3, 1, 4), (3, -1)),
    "with a hole": Case((14.8, 3.4), (58, 66), (0, 0, 3, 0), (-1, 2), hole_px=(slice(27, 30), slice(36, 38))),
    "beyond the object": Case((-5.4, 22.2), (58, 66), (0, 0, 0, 0), (2, 1), border_px=10),
}


@pytest.mark.parity_clause("SCORE-02")
@pytest.mark.parametrize("name", CASES)
def test_what_is_compared_is_what_both_cover_and_shift_plane_and_scale_are_found(name: str) -> None:
    case, truth = CASES[name], draw_object(np.random.default_rng(12), (72, 88))
    given = compare(
        case.image(truth), case.origin_px, truth, region=case.covered.astype(float), border_px=case.border_px
    )
    valid, (x, y) = case.valid(truth), case.shift_px
    right = {
        "known object": case.cut(truth),
        "valid": valid,
        "shift": np.array(case.shift_px, float),
        "moved by": np.array(case.shift_px, float),
        "plane": np.array([PHASE_RAD - RAMP_RAD_PER_PX[0] * x - RAMP_RAD_PER_PX[1] * y, *RAMP_RAD_PER_PX]),
        "scale": np.array(SCALE),
    }
    found = {
        "known object": given.truth,
        "valid": given.valid,
        "shift": np.array(given.shift_px),
        "moved by": np.array(given.moved_px),
        "plane": np.array([given.phase_rad, *given.ramp_rad_per_px]),
        "scale": np.array(given.scale),
    }
    assert_agrees(right, found, FITTED)
    assert_agrees({"aligned": case.cut(truth)[valid]}, {"aligned": given.aligned[valid]}, FITTED)


@pytest.mark.parity_clause("SCORE-02")
def test_a_shift_is_refined_by_least_squares() -> None:
    truth = draw_object(np.random.default_rng(13), (64, 72))
    # Where the moved object wraps, the canvas does not go.
    found = compare(moved(truth, -0.3, 0.6)[5:55, 8:64], (8.0, 5.0), truth, refine=True)
    assert np.round(found.shift_px, 1).tolist() == [0.3, -0.6]


# --------------------------------------------------------------------------------------------------------- scores


def plain_scores(found: Alignment) -> dict[str, float]:
    """Return the scores by the equations of ``Scores``."""
    b, t = found.aligned[found.valid], found.truth[found.valid]
    # Phases about the mean phase of the known image.
    ours, theirs = (np.angle(each / t.sum()) for each in (b, t))
    flat = min(np.ptp(ours), np.ptp(theirs)) < 1e-9
    return {
        "phase_error_rad": float(np.mean(np.abs(np.angle(b * t.conj())))),
        "amplitude_error": float(np.mean(np.abs(np.abs(b) - np.abs(t))) / np.mean(np.abs(t))),
        "complex_correlation": float(np.abs(np.vdot(b, t)) / np.linalg.norm(b) / np.linalg.norm(t)),
        "phase_correlation": math.nan if flat else float(np.corrcoef(ours, theirs)[0, 1]),
        "residual_shift_px": math.hypot(*found.shift_px),
    }


@pytest.mark.parity_clause("SCORE-01", "SCORE-02")
@pytest.mark.parametrize("name", ["two images", "flat phase", "the same twice"])
def test_scores_follow_their_equations(name: str) -> None:
    rng = np.random.default_rng(14)
    # Phases all around the circle, and about a mean that is not 0.
    first, second = (
        rng.uniform(0.2, 1.5, (17, 23)) * np.exp(1j * (2.5 + 1.3 * rng.standard_normal((17, 23)))) for _ in range(2)
    )
    aligned, truth, shift_px = {
        "two images": (first + 0.8 * second, second, (0.3, -1.2)),
        "flat phase": (first, np.abs(second) + 0j, (0.0, 0.0)),
        "the same twice": (first, first, (-2.0, 0.0)),
    }[name]
    found = Alignment(aligned, truth, rng.random((17, 23)) > 0.2, shift_px, (9.0, 9.0), 0.4, (0.1, 0.2), 1.3)
    assert_agrees(numbers(plain_scores(found)), numbers(score(found)), FLOAT64)


# ---------------------------------------------------------------------------------------------------------- rings


def tukey(n: int, taper: float) -> np.ndarray:
    """Return a window that rises over ``taper / 2`` of its width, and falls likewise."""
    edge = taper * (n - 1) / 2
    near = np.minimum(np.arange(n), np.arange(n)[::-1])
    return np.ones(n) if edge == 0 else np.where(near < edge, 0.5 * (1 - np.cos(np.pi * near / edge)), 1.0)


def ring_curve(first: np.ndarray, second: np.ndarray, taper: float) -> np.ndarray:
    """Return (R,) |Σ F₁ F₂*| / √(Σ|F₁|² Σ|F₂|²) over each ring of Fourier space, 0 where nothing is in it.

    F is the Fourier transform of the central square of an image, its mean taken out, under ``tukey`` in both axes.
    """
    n = min(first.shape)
    window = tukey(n, taper)[:, None] * tukey(n, taper)
    top, left = ((side - n) // 2 for side in first.shape)
    squares = [image[top : top + n, left : left + n] for image in (first, second)]
    fields = [np.fft.fft2((square - square.mean()) * window) for square in squares]
    waves = np.round(np.fft.fftfreq(n) * n)
    number = np.rint(np.hypot(waves[:, None], waves)).astype(int)
    curve = np.zeros(number.max() + 1)
    for ring in range(len(curve)):
        a, b = (field[number == ring] for field in fields)
        energy = np.sum(np.abs(a) ** 2) * np.sum(np.abs(b) ** 2)
        curve[ring] = np.abs(np.vdot(b, a)) / np.sqrt(energy) if energy > 0 else 0.0
    return curve


def crossing(curve: np.ndarray, thresholds: np.ndarray, counts: np.ndarray, share: float, n: int) -> float:
    """Return the ring where a curve falls below its threshold after the first band above it, by ``RingCorrelation``.

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


def ring_numbers(first: np.ndarray, second: np.ndarray, taper: float = 0.25) -> dict[str, np.ndarray]:
    """Return what ``RingCorrelation`` holds of two images."""
    curve, n = ring_curve(first, second, taper), min(first.shape)
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


def draw_pairs() -> Mapping[str, tuple[np.ndarray, np.ndarray, float]]:
    """Draw pairs of images that are not square, each with the taper that is asked for."""
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


PAIRS = draw_pairs()


@pytest.mark.parity_clause("SCORE-02")
@pytest.mark.parametrize("name", PAIRS)
def test_rings_follow_their_equations(name: str) -> None:
    first, second, taper = PAIRS[name]
    found = numbers(ring_correlation(first, second, taper=taper))
    assert_agrees(ring_numbers(first, second, taper), found, FLOAT64)


# -------------------------------------------------------------------------------------------------- a whole score


def similarity(ours: np.ndarray, theirs: np.ndarray, data_range: float, valid: np.ndarray) -> float:
    """Return the mean structural similarity over valid pixels whose 7 × 7 window lies inside the images.

    (2 x̄ȳ + c₁)(2 σ_xy + c₂) / ((x̄² + ȳ² + c₁)(σ_x² + σ_y² + c₂)), c = (K · data_range)², Wang et al. 2004, over windows
    of equal weights; variances and covariance over n − 1 of the n pixels, as scikit-image has them.
    """
    windows = [np.lib.stride_tricks.sliding_window_view(each, (7, 7)).reshape(-1, 49) for each in (ours, theirs)]
    x, y = (each.mean(axis=1) for each in windows)
    by_x, by_y = (each.var(axis=1, ddof=1) for each in windows)
    both = ((windows[0] - x[:, None]) * (windows[1] - y[:, None])).sum(axis=1) / 48
    c_1, c_2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    found = (2 * x * y + c_1) * (2 * both + c_2) / ((x**2 + y**2 + c_1) * (by_x + by_y + c_2))
    return float(found[valid[3:-3, 3:-3].ravel()].mean())


def image_errors(
    ours: np.ndarray, theirs: np.ndarray, difference: np.ndarray, data_range: float, valid: np.ndarray
) -> dict[str, float]:
    """Return the errors by the equations of ``ImageErrors``."""
    return {
        "mae": float(np.abs(difference[valid]).mean()),
        "psnr_db": float(20 * np.log10(data_range) - 10 * np.log10((difference[valid] ** 2).mean())),
        "ssim": similarity(ours, theirs, data_range, valid),
    }


@pytest.mark.parity_clause("SCORE-02")
def test_a_noisy_reconstruction_with_a_hole_is_evaluated_by_the_equations() -> None:
    rng = np.random.default_rng(16)
    truth = draw_object(rng, (76, 90)) * np.exp(2.9j)
    case = Case((11.2, 3.8), (60, 66), (0, 0, 0, 0), (0, 0), hole_px=(slice(30, 33), slice(20, 26)))
    image = case.image(truth) + 0.05 * (rng.standard_normal((60, 66)) + 1j * rng.standard_normal((60, 66)))
    # Phases so far off that their difference wraps; and what stands in the hole is no object.
    image[24:27, 40:43] *= np.exp(3j)
    image[~case.covered] = 7.0
    coverage = np.where(case.covered, rng.uniform(0.1, 3.0, case.shape), 0)
    found = evaluate(
        Reconstruction(image, coverage, case.origin_px, np.zeros((1, 2)), np.ones((8, 8)), {}, pixel_size_m=2e-9),
        truth,
    )
    ours, theirs, valid = found.alignment.aligned, found.alignment.truth, found.alignment.valid
    assert found.pixel_size_m == 2e-9
    assert_agrees(
        {"known object": case.cut(truth), "valid": case.valid(truth)}, {"known object": theirs, "valid": valid}
    )
    amplitudes = np.abs(ours), np.abs(theirs)
    turn = np.exp(-1j * np.angle(theirs[valid].sum()))
    phases = np.angle(ours * turn), np.angle(theirs * turn), np.angle(ours * theirs.conj())
    reach = float(np.ptp(amplitudes[1][valid]))
    errors = image_errors(*amplitudes, amplitudes[0] - amplitudes[1], reach, valid)
    assert_agrees(numbers(errors), numbers(found.amplitude), FLOAT64)
    assert_agrees(numbers(image_errors(*phases, 2 * np.pi, valid)), numbers(found.phase), FLOAT64)
    assert_agrees(numbers(plain_scores(found.alignment)), numbers(found.scores), FLOAT64)
    filled = [np.where(valid, each, each[valid].mean()) for each in (ours, theirs)]
    assert_agrees(ring_numbers(*filled), numbers(found.rings), FLOAT64)
