"""Two complex images of one object made comparable: shift, global phase, linear phase ramp and scale taken out.

Pure functions of arrays. A vector is (x, y), x along columns and y along rows, in pixels.

<doc-ref type="guide">docs/workflows/pytorch.md</doc-ref>
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

UPSAMPLE = 20
"""Parts of a pixel that the cross-correlation tells apart."""

_FLAT_RAD = 1e-6
_PASSES, _CONVERGED_RAD = 30, 1e-10


@dataclasses.dataclass(frozen=True)
class Alignment:
    """An image brought onto a known one.

    aligned = scale · exp(i (phase + ramp · (x − x₀, y − y₀))) · image moved by the shift, (x₀, y₀) the image's centre.

    Attributes:
        aligned: (H, W) complex128, what ``trim_px`` left of the image.
        truth: (H, W) complex128, the same pixels of the known image.
        valid: (H, W) bool, where the two may be compared.
        shift_px: (x, y) that the image lies off: what was found to move it by.
        moved_px: (x, y) that it was moved by; (0, 0) where the shift is larger than what was cut off at each side.
        phase_rad: global phase that was added, at the centre.
        ramp_rad_per_px: (x, y) slope of the phase that was added.
        scale: real factor.
    """

    aligned: np.ndarray
    truth: np.ndarray
    valid: np.ndarray
    shift_px: tuple[float, float]
    moved_px: tuple[float, float]
    phase_rad: float
    ramp_rad_per_px: tuple[float, float]
    scale: float


@dataclasses.dataclass(frozen=True)
class PhasePlane:
    """A phase that is linear in x and y.

    Attributes:
        phase_rad: at the centre of the image.
        ramp_rad_per_px: (x, y).
    """

    phase_rad: float
    ramp_rad_per_px: tuple[float, float]

    def factor(self, shape: tuple[int, ...]) -> np.ndarray:
        """Return (H, W) exp(i (phase + ramp · (x − x₀, y − y₀))), (x₀, y₀) = ((W − 1)/2, (H − 1)/2)."""
        x, y = _centred(shape)
        ramp_x, ramp_y = self.ramp_rad_per_px
        return np.asarray(np.exp(1j * (self.phase_rad + ramp_x * x + ramp_y * y)))


def shift_image(image: np.ndarray, shift_px: tuple[float, float]) -> np.ndarray:
    """Move the content of an (H, W) image by (x, y) pixels to higher columns and rows; what leaves comes back in.

    F(shifted) = F(image) · exp(−2πi (f_x · x + f_y · y))
    """
    height, width = image.shape
    phase = np.fft.fftfreq(width) * shift_px[0] + np.fft.fftfreq(height)[:, None] * shift_px[1]
    return np.asarray(np.fft.ifft2(np.fft.fft2(image) * np.exp(-2j * np.pi * phase)))


def fit_phase_plane(image: np.ndarray, truth: np.ndarray, valid: np.ndarray | None = None) -> PhasePlane:
    """Fit the plane that brings the phase of an image to the phase of a known one, by least squares.

    min Σ |t a*| · arg(t a* exp(−i plane))², with the residual wrapped and the fit repeated until it stays. It starts
    at the mean step of t a* from pixel to pixel, so that ramps below half a turn a pixel are found.

    Args:
        image: (H, W) complex, a.
        truth: (H, W) complex, t.
        valid: (H, W) bool, pixels to fit; None for all.
    """
    product = truth * np.conj(image)
    if valid is not None:
        product = np.where(valid, product, 0)
    x, y = _centred(product.shape)
    slope_x = float(np.angle((product[:, 1:] * np.conj(product[:, :-1])).sum()))
    slope_y = float(np.angle((product[1:] * np.conj(product[:-1])).sum()))
    rest = product * np.exp(-1j * (slope_x * x + slope_y * y))
    plane = np.array([np.angle(rest.sum()), slope_x, slope_y])
    weights = np.abs(product)
    terms = np.stack([np.ones(product.shape), np.broadcast_to(x, product.shape), np.broadcast_to(y, product.shape)])
    normal = np.einsum("ahw,bhw,hw->ab", terms, terms, weights, optimize=True)
    for _ in range(_PASSES):
        residual = np.angle(product * np.exp(-1j * np.tensordot(plane, terms, axes=1)))
        step = np.linalg.lstsq(normal, np.einsum("ahw,hw->a", terms, weights * residual), rcond=None)[0]
        plane = plane + step
        if np.abs(step).max() * max(product.shape) < _CONVERGED_RAD:
            break
    phase = math.remainder(float(plane[0]), 2 * math.pi)
    return PhasePlane(phase, (float(plane[1]), float(plane[2])))


def fit_scale(image: np.ndarray, truth: np.ndarray, valid: np.ndarray | None = None) -> float:
    """Return the real s that minimises Σ |s a − t|²: s = Re Σ a* t / Σ |a|²; 0 for an image of zeros."""
    if valid is not None:
        image, truth = image[valid], truth[valid]
    energy = float(np.sum(np.abs(image) ** 2))
    return float(np.sum(np.conj(image) * truth).real) / energy if energy > 0 else 0.0


def find_shift(
    image: np.ndarray, truth: np.ndarray, valid: np.ndarray | None = None, *, upsample: int = UPSAMPLE
) -> tuple[float, float]:
    """Find (x, y) by which to move an image onto a known one, by phase cross-correlation.

    The pictures that are correlated are the phases, each about the mean phase of its image; the amplitudes where the
    phase of either is flat. A ramp between the two is to be taken out before. Pixels that are not valid count as
    mean. The correlation is normalised in Fourier space, which makes its peak sharp; on smooth images, whose edges
    stand still, it takes a part of the shift for the whole, and ``refine_shift`` finds the rest.

    Args:
        image: (H, W) complex.
        truth: (H, W) complex.
        valid: (H, W) bool; None for all.
        upsample: the shift is found to 1/upsample pixel.
    """
    from skimage.registration import phase_cross_correlation

    inside = np.ones(image.shape, bool) if valid is None else valid
    for picture in (_phase_picture, np.abs):
        ours, theirs = (picture(each) for each in (image, truth))
        ours, theirs = (np.where(inside, each - each[inside].mean(), 0) for each in (ours, theirs))
        if min(ours.std(), theirs.std()) > _FLAT_RAD:
            # skimage has no types.
            (row, column), _, _ = phase_cross_correlation(  # type: ignore[no-untyped-call]
                theirs, ours, upsample_factor=upsample
            )
            return float(column), float(row)
    return 0.0, 0.0


def refine_shift(
    image: np.ndarray,
    truth: np.ndarray,
    start_px: tuple[float, float],
    valid: np.ndarray | None = None,
    *,
    trim_px: int = 8,
) -> tuple[float, float]:
    """Find (x, y) by which to move an image onto a known one, by least squares, from a start about a pixel off or less.

    max over the shift of |Σ m* t| / √Σ|m|², m the moved image with its phase plane fitted: the smallest
    min Σ |s m − t|² over scale, phase and ramp. ``trim_px`` pixels at each side do not count.
    """
    from scipy.optimize import minimize

    inner = (slice(trim_px, -trim_px or None),) * 2
    inside = np.ones(image.shape, bool) if valid is None else valid
    known, weights = truth[inner], inside[inner]

    def loss(shift: np.ndarray) -> float:
        moved = np.where(weights, shift_image(image, (float(shift[0]), float(shift[1])))[inner], 0)
        moved = moved * fit_phase_plane(moved, known).factor(moved.shape)
        energy = np.sum(np.abs(moved) ** 2) * np.sum(np.abs(known[weights]) ** 2)
        return -float(np.sum(np.conj(moved) * known).real / np.sqrt(energy)) if energy > 0 else 0.0

    simplex = np.array(start_px) + np.array([[0, 0], [0.3, 0], [0, 0.3]])
    options = {"initial_simplex": simplex, "xatol": 2e-3, "fatol": 1e-9, "maxfev": 120}
    best = minimize(loss, np.array(start_px), method="Nelder-Mead", options=options).x
    return float(best[0]), float(best[1])


def align(
    image: np.ndarray,
    truth: np.ndarray,
    valid: np.ndarray | None = None,
    *,
    trim_px: int = 8,
    upsample: int = UPSAMPLE,
    refine: bool = False,
) -> Alignment:
    """Bring an image onto a known one of the same pixels.

    Phase plane, shift by cross-correlation, phase plane again, scale; each from what is left after the one before.
    The plane that is reported is the last one on the image as it came. The shift is a Fourier shift, whose wrapped
    edge is cut off.

    Args:
        image: (H, W) complex.
        truth: (H, W) complex.
        valid: (H, W) bool, known pixels of the image; None for all. Others are filled with the mean of the known,
            and what they may reach when the image moves is no longer valid.
        trim_px: pixels that are cut off at each side after the shift, and the largest shift that is made.
        upsample: parts of a pixel that the cross-correlation tells apart.
        refine: find the shift by least squares, from what the cross-correlation found.
    """
    image, truth = np.asarray(image, np.complex128), np.asarray(truth, np.complex128)
    inside = np.ones(image.shape, bool) if valid is None else np.asarray(valid, bool)
    plane = fit_phase_plane(image, truth, inside)
    level = image * plane.factor(image.shape)
    level = np.where(inside, level, level[inside].mean())
    shift = find_shift(level, truth, inside, upsample=upsample)
    if refine and max(map(abs, shift)) <= trim_px:
        shift = refine_shift(level, truth, shift, inside, trim_px=trim_px)
    moved_px = shift if max(map(abs, shift)) <= trim_px else (0.0, 0.0)
    moved = shift_image(level, moved_px) if any(moved_px) else level
    if not inside.all():
        from scipy.ndimage import binary_erosion

        # The moved edge of a hole rings for about two pixels more.
        reach = math.ceil(max(map(abs, moved_px))) + 2
        inside = binary_erosion(inside, np.ones((3, 3), bool), iterations=reach, border_value=1)
    inner = (slice(trim_px, -trim_px or None),) * 2
    moved, known, inside = moved[inner], truth[inner], inside[inner]
    rest = fit_phase_plane(moved, known, inside)
    moved = moved * rest.factor(moved.shape)
    scale = fit_scale(moved, known, inside)
    # A plane moves with its image: its value at the centre falls by ramp · shift.
    (first_x, first_y), (rest_x, rest_y) = plane.ramp_rad_per_px, rest.ramp_rad_per_px
    phase = plane.phase_rad + rest.phase_rad - first_x * moved_px[0] - first_y * moved_px[1]
    return Alignment(
        aligned=scale * moved,
        truth=known,
        valid=inside,
        shift_px=shift,
        moved_px=moved_px,
        phase_rad=math.remainder(phase, 2 * math.pi),
        ramp_rad_per_px=(first_x + rest_x, first_y + rest_y),
        scale=scale,
    )


def _centred(shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return (1, W) x and (H, 1) y about the centre."""
    height, width = shape
    return np.arange(width)[None] - (width - 1) / 2, np.arange(height)[:, None] - (height - 1) / 2


def _phase_picture(image: np.ndarray) -> np.ndarray:
    """Return the (H, W) phase about the mean phase of the image, so that no edge of ±π runs through it."""
    return np.asarray(np.angle(image * np.exp(-1j * np.angle(image.mean()))))
