"""One image brought onto another: phase plane, shift and scale, each by least squares or by its definition."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from conformance.hypotheses import Hypothesis
from conformance.step import Outcome, Step, StepBench
from conformance.steps_scores import FITTED, TRIM_PX, draw_object, untouched

SHIFT_PX, SLOPES = (0.3, -0.6), (-0.31, 0.4)
TENTHS = np.array([3.0, -6.0])
"""The same to a tenth: the correlation tells twentieths apart."""

_INNER = (slice(TRIM_PX, -TRIM_PX),) * 2


def plane(image: np.ndarray, truth: np.ndarray, valid: np.ndarray, slopes: tuple[float, float] = (0, 0)) -> np.ndarray:
    """Return (phase at the centre, slope in x, slope in y) that bring the phase of an image to that of another.

    Least squares over valid pixels with weights |t a*|, repeated about what was found, with the rest wrapped.

    Args:
        image: a.
        truth: t.
        valid: pixels that count.
        slopes: where the slopes in x and y are, to a fraction of a turn over the image.
    """
    height, width = image.shape
    y, x = np.mgrid[:height, :width] - np.array([(height - 1) / 2, (width - 1) / 2])[:, None, None]
    terms = np.stack([np.ones(image.shape), x, y], axis=-1)[valid]
    product = (truth * image.conj())[valid]
    weights = np.sqrt(np.abs(product))
    steep = np.array([0.0, *slopes])
    found = np.array([np.angle((product * np.exp(-1j * (terms @ steep))).sum()), *slopes])
    for _ in range(40):
        rest = np.angle(product * np.exp(-1j * (terms @ found)))
        found = found + np.linalg.lstsq(weights[:, None] * terms, weights * rest, rcond=None)[0]
    return found


def waves_of(found: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Return exp(i plane) about the centre of an image."""
    height, width = shape
    y, x = np.mgrid[:height, :width] - np.array([(height - 1) / 2, (width - 1) / 2])[:, None, None]
    return np.asarray(np.exp(1j * (found[0] + found[1] * x + found[2] * y)))


def moved(image: np.ndarray, x: float, y: float) -> np.ndarray:
    """Move the content of an image by (x, y), by sums over its frequencies."""

    def along(n: int, by: float) -> np.ndarray:
        waves = np.fft.fftfreq(n) * n
        there = np.exp(-2j * np.pi * np.outer(waves, np.arange(n)) / n)
        back = np.exp(2j * np.pi * np.outer(np.arange(n) - by, waves) / n) / n
        return np.asarray(back @ there)

    height, width = image.shape
    return np.asarray(along(height, y) @ image @ along(width, x).T)


def real_scale(image: np.ndarray, truth: np.ndarray) -> float:
    """Return the real factor of an image that comes nearest to another."""
    both = [np.concatenate([each.real.ravel(), each.imag.ravel()]) for each in (image, truth)]
    return float(np.linalg.lstsq(both[0][:, None], both[1], rcond=None)[0][0])


def _aligned_by(
    shift_px: tuple[float, float],
    image: np.ndarray,
    truth: np.ndarray,
    covered: np.ndarray,
    kept: np.ndarray,
    *,
    fill: bool = True,
) -> np.ndarray:
    """Return the image brought onto the known one by a shift, 0 outside ``kept``, where its holes do not reach."""
    level = image * waves_of(plane(image, truth, covered), image.shape)
    level = np.where(covered, level, level[covered].mean() if fill else 0)
    there, known = moved(level, *shift_px)[_INNER], truth[_INNER]
    there = there * waves_of(plane(there, known, kept), there.shape)
    return np.where(kept, real_scale(there[kept], known[kept]) * there, 0)


def _alignment(_: StepBench) -> Outcome:
    """Fit plane and scale of images that are alike in part, move one, and align one with a hole."""
    from ptycho_torch import alignment

    rng = np.random.default_rng(20)
    truth = draw_object(rng, (52, 60))
    other = 1.4 * truth * waves_of(np.array([0.9, -SLOPES[0], -SLOPES[1]]), truth.shape) + 0.1 * draw_object(
        rng, truth.shape
    )
    valid = rng.random(truth.shape) > 0.3
    fitted = alignment.fit_phase_plane(other, truth, valid)
    turned = other * np.exp(0.4j)
    covered = np.ones(truth.shape, bool)
    covered[24:27, 31:33] = False
    image = np.where(covered, moved(truth, -SHIFT_PX[0], -SHIFT_PX[1]) * np.exp(0.6j) / 1.3, 0)
    found = alignment.align(image, truth, covered, trim_px=TRIM_PX)
    # The moved edge of a hole reaches two pixels further.
    kept = untouched(covered, int(np.ceil(max(map(abs, SHIFT_PX)))) + 2)[_INNER]
    right = _aligned_by(found.shift_px, image, truth, covered, kept)
    expected = {
        "plane": plane(other, truth, valid, SLOPES),
        "moved": moved(other, 3.4, -1.7),
        "scale": np.array(real_scale(turned[valid], truth[valid])),
        "shift, in tenths": TENTHS,
        "valid": kept,
        "aligned": right,
    }
    given = {
        "plane": np.array([fitted.phase_rad, *fitted.ramp_rad_per_px]),
        "moved": alignment.shift_image(other, (3.4, -1.7)),
        "scale": np.array(alignment.fit_scale(turned, truth, valid)),
        "shift, in tenths": np.round(np.array(found.shift_px) * 10),
        "valid": found.valid,
        "aligned": np.where(kept, found.aligned, 0),
    }

    def mistakes() -> Iterator[Hypothesis]:
        everywhere = np.ones_like(valid)
        yield Hypothesis("pixels that are not valid counted", {"plane": plane(other, truth, everywhere, SLOPES)})
        yield Hypothesis("sign of the plane", {"plane": -expected["plane"]})
        yield Hypothesis("slopes in x and y exchanged", {"plane": expected["plane"][[0, 2, 1]]})
        yield Hypothesis(
            "plane about the corner", {"plane": expected["plane"] - [expected["plane"][1:] @ [29.5, 25.5], 0, 0]}
        )
        yield Hypothesis("sign of the shift", {"moved": moved(other, -3.4, 1.7)})
        yield Hypothesis("sign of the shift", {"shift, in tenths": -TENTHS})
        yield Hypothesis("x and y of the shift exchanged", {"moved": moved(other, -1.7, 3.4)})
        yield Hypothesis("x and y of the shift exchanged", {"shift, in tenths": TENTHS[::-1]})
        yield Hypothesis("shift of whole pixels", {"moved": moved(other, 3.0, -2.0)})
        size = np.abs(np.vdot(turned[valid], truth[valid])) / np.sum(np.abs(turned[valid]) ** 2)
        yield Hypothesis("scale of the magnitude", {"scale": np.array(size)})
        yield Hypothesis("scale upside down", {"scale": np.array(real_scale(truth[valid], turned[valid]))})
        yield Hypothesis("pixels that are not valid counted", {"scale": np.array(real_scale(turned, truth))})
        empty = _aligned_by(found.shift_px, image, truth, covered, kept, fill=False)
        yield Hypothesis("holes filled with zeros", {"aligned": empty})
        yield Hypothesis("not moved", {"aligned": _aligned_by((0.0, 0.0), image, truth, covered, kept)})

    return Outcome(expected, given, FITTED, mistakes)


ALIGNMENT: tuple[Step, ...] = (Step("forward.alignment", ("SCORE-02",), _alignment, ("skimage",)),)
