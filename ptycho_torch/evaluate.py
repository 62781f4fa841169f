"""``ptycho-torch evaluate``: a reconstruction compared with the object that is known.

``compare`` aligns the two and ``score`` gives the five numbers by which reconstructions of one scan are compared;
``evaluate`` gives those, errors of amplitude and phase as images, the Fourier ring correlation, and how well object and
probe predict the measured patterns. See <doc-ref type="guide">docs/workflows/pytorch.md</doc-ref>.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ptycho_torch.data.scan import Scan
from ptycho_torch.errors import ConfigError, DataContractError
from ptycho_torch.files.json_numbers import finite_or_none
from ptycho_torch.files.npz import NpzFile, listed
from ptycho_torch.reconstruction.alignment import Alignment, align
from ptycho_torch.reconstruction.diffraction_scores import DiffractionScores, score_diffraction
from ptycho_torch.reconstruction.pictures import add_bar, new_figure, save_figure
from ptycho_torch.reconstruction.products import Reconstruction
from ptycho_torch.reconstruction.rings import RingCorrelation, describe_resolution, ring_correlation

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BORDER_PX = 14
"""Pixels left out at each side of what a reconstruction covers: 6 of the canvas's own, and ``TRIM_PX``."""

TRIM_PX = 8
"""Pixels of the border that are used to find the shift, and are cut off after it."""

FLAT_CONTRAST = 0.2
"""An object that deviates from its mean by less than this part of what the known object does is flat.

An untrained network's deviates by 0.07 of it. A flat object is near every weak one, which PSNR and SSIM would reward,
and a ring correlation does not see how faint an image is.
"""

_FLAT_RAD = 1e-6

_LEAST_SIDE_PX = 8
"""Of what is compared; SSIM needs windows of 7."""


@dataclasses.dataclass(frozen=True)
class Scores:
    """How near a reconstruction comes to the known object, b the aligned one and t the known one.

    Attributes:
        phase_error_rad: mean |arg(b t*)|.
        amplitude_error: mean ||b| − |t|| / mean |t|.
        complex_correlation: |Σ b* t| / √(Σ|b|² Σ|t|²).
        phase_correlation: Pearson's correlation of arg b and arg t; NaN where either is flat.
        residual_shift_px: length of the shift that was found between the two.
    """

    phase_error_rad: float
    amplitude_error: float
    complex_correlation: float
    phase_correlation: float
    residual_shift_px: float


@dataclasses.dataclass(frozen=True)
class ImageErrors:
    """Errors of amplitude, or of phase, as of a picture.

    Attributes:
        mae: mean absolute difference, of a phase wrapped and in rad.
        psnr_db: 10 log10(range² / mean square difference); infinite where there is none, NaN for a flat image.
        ssim: structural similarity, 1 where the two are the same; NaN for a flat image (``FLAT_CONTRAST``).
    """

    mae: float
    psnr_db: float
    ssim: float


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """All that is known of a reconstruction whose object is known.

    Attributes:
        scores: the five numbers.
        amplitude: errors of |b|, the range that of |t|.
        phase: errors of arg b, the range 2π.
        rings: Fourier ring correlation of b and t.
        alignment: the two images, and what was taken out between them.
        contrast: √(Σ|b − b̄|² / Σ|t − t̄|²), 1 as strong as the known object's; NaN where that has none.
        diffraction: how well object and probe predict the measured patterns; None where no scan was given.
        pixel_size_m: side of an object pixel, or None.
    """

    scores: Scores
    amplitude: ImageErrors
    phase: ImageErrors
    rings: RingCorrelation
    alignment: Alignment
    contrast: float
    diffraction: DiffractionScores | None = None
    pixel_size_m: float | None = None

    def numbers(self) -> dict[str, Any]:
        """Return everything but the images, ready for JSON; numbers that are not finite become None."""
        rings, alignment, size = self.rings, self.alignment, self.pixel_size_m
        found = {
            "scores": dataclasses.asdict(self.scores),
            "amplitude": dataclasses.asdict(self.amplitude),
            "phase": dataclasses.asdict(self.phase),
            "rings": {
                "frequencies_per_px": rings.frequencies_per_px.tolist(),
                "curve": rings.curve.tolist(),
                "frc50_per_px": rings.frc50_per_px,
                "frc1over7_per_px": rings.frc1over7_per_px,
                "resolution_px": rings.resolution_px,
                "resolution_m": None if size is None else rings.resolution_px * size,
            },
            "alignment": {
                "shift_px": list(alignment.shift_px),
                "moved_px": list(alignment.moved_px),
                "phase_rad": alignment.phase_rad,
                "ramp_rad_per_px": list(alignment.ramp_rad_per_px),
                "scale": alignment.scale,
                "pixels": int(alignment.valid.sum()),
            },
            "contrast": self.contrast,
            "diffraction": None if self.diffraction is None else self.diffraction.numbers(),
        }
        numbers: dict[str, Any] = finite_or_none(found)
        return numbers


def compare(
    image: np.ndarray,
    origin_px: tuple[float, float],
    truth: np.ndarray,
    *,
    region: np.ndarray | None = None,
    border_px: int = BORDER_PX,
    refine: bool = False,
) -> Alignment:
    """Cut out what a reconstruction and the known object share, and align the two.

    Pixel (row j, column i) of the image lies at row y + j and column x + i of the known object, (x, y) the origin
    rounded to whole pixels. A patch at position (x, y) of N × N pixels has its pixel (0, 0) at (x − N/2, y − N/2); on
    a canvas of P × P pixels stitched about the mean position, the origin is the mean position − P/2.
    What is compared is the rectangle about the covered pixels, from border rows and columns after the first covered
    one until before the border-th before the last one (the last covered row or column is not counted in, as in a
    slice), as far as the known object goes. The shift is found with ``TRIM_PX`` pixels more at each side.

    Args:
        image: (H, W) complex.
        origin_px: (x, y) of image[0, 0] in pixels of the truth, truth[0, 0] at (0, 0).
        truth: (Y, X) complex, the known object.
        region: (H, W) covered pixels, those where it is above 0, for example the coverage; None for those where the
            image is not 0.
        border_px: rows and columns left out at each side, at least ``TRIM_PX``.
        refine: find the shift by least squares. The rounding of the origin is then undone, which the
            cross-correlation does in part only.

    Raises:
        ConfigError: the border is less than ``TRIM_PX``.
        DataContractError: the two share too little, shapes do not fit, or a number is not finite.
    """
    if border_px < TRIM_PX:
        raise ConfigError(
            f"A border of {border_px} px; {TRIM_PX} px or more are expected, which the search for the shift needs. "
            f"Ask for at least {TRIM_PX}."
        )
    image, truth = np.asarray(image), np.asarray(truth)
    covered: np.ndarray = np.asarray(image != 0) if region is None else np.asarray(region) > 0
    if image.ndim != 2 or truth.ndim != 2 or covered.shape != image.shape:
        raise _data_error(
            f"shapes {image.shape} of the reconstruction, {truth.shape} of the object, {covered.shape} of the region",
            "two images, and a region of the reconstruction's shape",
            "Give one slice or mode of each.",
        )
    for name, array in (("reconstruction", image[covered]), ("object", truth), ("origin", np.array(origin_px))):
        if not np.isfinite(array).all():
            raise _data_error(f"NaN or infinity in the {name}", "finite numbers", "Reconstruct again, or repair it.")
    if not covered.any() or not image[covered].any():
        raise _data_error("a reconstruction of zeros", "an object", "Reconstruct again.")
    column, row = (round(float(number)) for number in origin_px)
    grow = border_px - TRIM_PX
    tops, bottoms = zip(
        _span(np.any(covered, axis=1), grow, row, truth.shape[0]),
        _span(np.any(covered, axis=0), grow, column, truth.shape[1]),
        strict=True,
    )
    sides = [bottom - top for top, bottom in zip(tops, bottoms, strict=True)]
    if min(sides) < 2 * TRIM_PX + _LEAST_SIDE_PX:
        x, y = origin_px
        raise _data_error(
            f"{max(sides[0] - 2 * TRIM_PX, 0)} rows and {max(sides[1] - 2 * TRIM_PX, 0)} columns that both frames "
            f"share within a border of {border_px} px: a reconstruction of {image.shape[0]} × {image.shape[1]} px "
            f"with its origin at x = {x:.1f}, y = {y:.1f}, an object of {truth.shape[0]} × {truth.shape[1]} px",
            f"at least {_LEAST_SIDE_PX} of each",
            "Check that the object belongs to the scan and that positions are in its pixels, or ask for less border.",
        )
    ours = (slice(tops[0], bottoms[0]), slice(tops[1], bottoms[1]))
    theirs = (slice(tops[0] + row, bottoms[0] + row), slice(tops[1] + column, bottoms[1] + column))
    valid = covered[ours]
    shared = (slice(TRIM_PX, -TRIM_PX),) * 2
    # Moving may take a few pixels more around each hole.
    if not valid[shared].any():
        raise _data_error("no covered pixel inside the border", "covered pixels", "Ask for less border.")
    aligned = align(np.where(valid, image[ours], 0), truth[theirs], valid, trim_px=TRIM_PX, refine=refine)
    if not aligned.valid.any():
        raise _data_error("covered pixels that are too scattered", "a connected region", "Stitch with larger patches.")
    return aligned


def _span(covered: np.ndarray, grow: int, offset: int, length: int) -> tuple[int, int]:
    """Return first and end of the covered lines without their border that lie on [0, length) once offset is added."""
    lines = np.flatnonzero(covered)
    return max(int(lines[0]) + grow, -offset), min(int(lines[-1]) - grow, length - offset)


def _data_error(found: str, expected: str, remedy: str) -> DataContractError:
    return DataContractError(
        f"Found {found}; expected {expected}. {remedy}", found=found, expected=expected, remedy=remedy
    )


def score(alignment: Alignment) -> Scores:
    """Score what ``compare`` has aligned; ``Scores`` has the equations.

    Global phase, linear phase ramp and real scale are out by then. With the defaults of ``compare`` the numbers are
    comparable to those published for the reference.
    """
    ours, theirs = alignment.aligned[alignment.valid], alignment.truth[alignment.valid]
    ours_amplitude, theirs_amplitude = np.abs(ours), np.abs(theirs)
    energy = float(np.sum(ours_amplitude**2) * np.sum(theirs_amplitude**2))
    ours_phase, theirs_phase = _phases(alignment)
    mean = float(theirs_amplitude.mean())
    return Scores(
        phase_error_rad=float(np.abs(np.angle(ours * np.conj(theirs))).mean()),
        amplitude_error=float(np.abs(ours_amplitude - theirs_amplitude).mean()) / mean if mean > 0 else math.nan,
        complex_correlation=float(np.abs(np.vdot(ours, theirs))) / math.sqrt(energy) if energy > 0 else 0.0,
        phase_correlation=_pearson(ours_phase[alignment.valid], theirs_phase[alignment.valid]),
        residual_shift_px=math.hypot(*alignment.shift_px),
    )


def _phases(alignment: Alignment) -> tuple[np.ndarray, np.ndarray]:
    """Return (H, W) phases of both, about the mean phase of the known one, so that few pixels lie near ±π."""
    turn = np.exp(-1j * np.angle(alignment.truth[alignment.valid].sum()))
    return np.angle(alignment.aligned * turn), np.angle(alignment.truth * turn)


def _pearson(first: np.ndarray, second: np.ndarray) -> float:
    first, second = first - first.mean(), second - second.mean()
    spreads = [math.sqrt(float(np.mean(each**2))) for each in (first, second)]
    # What is below is the rounding of complex64.
    return float(np.mean(first * second)) / math.prod(spreads) if min(spreads) > _FLAT_RAD else math.nan


def evaluate(
    reconstruction: Reconstruction,
    truth: np.ndarray,
    *,
    border_px: int = BORDER_PX,
    refine: bool = False,
    scan: Scan | None = None,
) -> Evaluation:
    """Hold a reconstruction against the known object.

    Args:
        reconstruction: its origin in pixels of the truth, its coverage above 0 where it is known.
        truth: (Y, X) complex, the known object.
        border_px: pixels left out at each side; see ``compare``.
        refine: find the shift by least squares; see ``compare``.
        scan: measured patterns; see ``ptycho_torch.reconstruction.diffraction_scores.score_diffraction``.

    Raises:
        ConfigError: as ``compare``.
        DataContractError: as ``compare`` and ``score_diffraction``.
    """
    alignment = compare(
        reconstruction.object,
        reconstruction.origin_px,
        truth,
        region=reconstruction.coverage,
        border_px=border_px,
        refine=refine,
    )
    ours, theirs, valid = alignment.aligned, alignment.truth, alignment.valid
    ours_amplitude, theirs_amplitude = np.abs(ours), np.abs(theirs)
    known = theirs_amplitude[valid]
    # Of a flat amplitude the range is 0, and its level stands in.
    amplitude_range = float(known.max() - known.min()) or float(known.max()) or 1.0
    ours_phase, theirs_phase = _phases(alignment)
    known_contrast = float(theirs[valid].std())
    contrast = float(ours[valid].std()) / known_contrast if known_contrast > 0 else math.nan
    rings = ring_correlation(np.where(valid, ours, ours[valid].mean()), np.where(valid, theirs, theirs[valid].mean()))
    return Evaluation(
        scores=score(alignment),
        amplitude=_image_errors(
            ours_amplitude, theirs_amplitude, np.abs(ours_amplitude - theirs_amplitude), valid, amplitude_range
        ),
        phase=_image_errors(ours_phase, theirs_phase, np.abs(np.angle(ours * np.conj(theirs))), valid, 2 * math.pi),
        rings=rings.without_resolution() if contrast < FLAT_CONTRAST else rings,
        alignment=alignment,
        contrast=contrast,
        diffraction=None if scan is None else score_diffraction(reconstruction, scan),
        pixel_size_m=reconstruction.pixel_size_m,
    )


def _image_errors(
    ours: np.ndarray, theirs: np.ndarray, difference: np.ndarray, valid: np.ndarray, data_range: float
) -> ImageErrors:
    from skimage.metrics import structural_similarity

    if float(ours[valid].std()) < FLAT_CONTRAST * float(theirs[valid].std()):
        return ImageErrors(float(difference[valid].mean()), math.nan, math.nan)
    # skimage has no types.
    _, similarity = structural_similarity(  # type: ignore[no-untyped-call]
        theirs, ours, data_range=data_range, full=True
    )
    # Windows of 7 × 7 that reach over the edge do not count.
    inner = np.zeros_like(valid)
    inner[3:-3, 3:-3] = valid[3:-3, 3:-3]
    square = float((difference[valid] ** 2).mean())
    return ImageErrors(
        mae=float(difference[valid].mean()),
        psnr_db=10 * math.log10(data_range**2 / square) if square > 0 else math.inf,
        ssim=float(similarity[inner].mean()) if inner.any() else math.nan,
    )


def read_truth(path: Path) -> np.ndarray:
    """Read the (Y, X) complex object that a scan, or a file of an object alone, keeps as ``objectGuess``.

    Raises:
        DataContractError: NPZ-…, or there is no such object.
    """
    npz, key = NpzFile(path), "objectGuess"
    if key not in npz:
        found = f"no member '{key}' in {path}; present: {listed(npz.keys)}"
        raise _data_error(found, "a complex image", "Give a scan or an NPZ file that keeps its object as objectGuess.")
    header = npz.header(key)
    if len(header.shape) != 2 or header.dtype.kind != "c":
        found = f"'{key}' of shape {header.shape} and dtype {header.dtype} in {path}"
        raise _data_error(found, "a complex image of two axes", "Store one slice of the object.")
    return npz.read(key)


def plot_evaluation(evaluation: Evaluation, path: Path) -> None:
    """Draw amplitudes, phases, their differences and the ring correlation as a PNG, in one rename.

    Raises:
        ConfigError, OSError: as ``pictures.save_figure``.
    """
    alignment, scores, rings = evaluation.alignment, evaluation.scores, evaluation.rings
    ours, theirs, valid = alignment.aligned, alignment.truth, alignment.valid
    height, width = ours.shape
    # A column is about 3.3 inches wide; the text needs 2.6 of height.
    figure = new_figure(16, 2 * (0.6 + min(max(3.3 * height / width, 2.6), 8)))
    axes = figure.subplots(2, 4, width_ratios=(1, 1, 1, 1.1))
    amplitudes = [np.where(valid, np.abs(each), np.nan) for each in (ours, theirs)]
    phases = [np.where(valid, each, np.nan) for each in _phases(alignment)]
    wrapped = np.where(valid, np.angle(ours * np.conj(theirs)), np.nan)
    for line, what, (mine, known), difference in (
        (axes[0], "amplitude", amplitudes, amplitudes[0] - amplitudes[1]),
        (axes[1], "phase (rad)", phases, wrapped),
    ):
        low, high = float(np.nanmin(known)), float(np.nanmax(known))
        reach = max(float(np.nanpercentile(np.abs(difference), 99)), 1e-12)
        _draw(line[0], mine, f"Reconstruction, {what}", "gray", low, high)
        _draw(line[1], known, f"Truth, {what}", "gray", low, high)
        _draw(line[2], difference, f"Difference, {what}", "RdBu_r", -reach, reach)
    curve_axes, text_axes = axes[0, 3], axes[1, 3]
    curve_axes.plot(rings.frequencies_per_px, rings.curve, color="tab:blue")
    for level, label in ((0.5, "1/2"), (1 / 7, "1/7")):
        curve_axes.axhline(level, color="0.6", linewidth=0.8)
        curve_axes.text(0.005, level + 0.01, label, color="0.4", fontsize=9)
    curve_axes.set(
        title="Fourier ring correlation", xlabel="cycles a pixel", ylabel="correlation", xlim=(0, 0.5), ylim=(0, 1.02)
    )
    text_axes.axis("off")
    text_axes.text(0, 1, "\n".join(describe(evaluation)), va="top", family="monospace", fontsize=10)
    figure.suptitle(
        f"Phase error {scores.phase_error_rad:.4f} rad, amplitude error {scores.amplitude_error:.4f}, "
        f"complex correlation {scores.complex_correlation:.4f}"
    )
    save_figure(figure, path)


def _draw(axes: Axes, image: np.ndarray, title: str, colours: str, low: float, high: float) -> None:
    shown = axes.imshow(image, cmap=colours, vmin=low, vmax=high)
    add_bar(shown, axes, "")
    axes.set(title=title, xticks=(), yticks=())


def describe(evaluation: Evaluation) -> tuple[str, ...]:
    """Return the table of the command, as lines."""
    scores, rings, alignment = evaluation.scores, evaluation.rings, evaluation.alignment
    amplitude, phase = evaluation.amplitude, evaluation.phase
    flat = f"none: the object is flat, with {evaluation.contrast:.2g} of the known object's contrast"
    resolution = describe_resolution(rings.resolution_px, evaluation.pixel_size_m, "1/2")
    half, seventh = rings.frc50_per_px, rings.frc1over7_per_px
    rows = [
        ("phase error", f"{scores.phase_error_rad:.4f} rad"),
        ("amplitude error", f"{scores.amplitude_error:.4f}"),
        ("complex correlation", f"{scores.complex_correlation:.4f}"),
        ("phase correlation", _or("none: the phase is flat", scores.phase_correlation, ".4f")),
        ("contrast", f"{evaluation.contrast:.4f} of the known object's"),
        ("residual shift", f"{scores.residual_shift_px:.2f} px"),
        ("amplitude PSNR, SSIM", _or(flat, amplitude.ssim, ".4f", f"{amplitude.psnr_db:.2f} dB, ")),
        ("phase PSNR, SSIM", _or(flat, phase.ssim, ".4f", f"{phase.psnr_db:.2f} dB, ")),
        ("FRC 1/2, 1/7", f"{_or('none', half, '.4f')}, {_or('none', seventh, '.4f')} cycles/px"),
        ("resolution (1/2)", flat if evaluation.contrast < FLAT_CONTRAST else resolution),
        ("compared", f"{alignment.truth.shape[0]} × {alignment.truth.shape[1]} px"),
    ]
    if evaluation.diffraction is not None:
        rows += evaluation.diffraction.describe()
    return tuple(f"{name:<22}{text}" for name, text in rows)


def _or(otherwise: str, number: float, form: str, before: str = "") -> str:
    return otherwise if math.isnan(number) else f"{before}{number:{form}}"
