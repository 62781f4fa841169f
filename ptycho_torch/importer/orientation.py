"""Say whether the detector frames of a scan look flipped or transposed against its positions, or look like intensity.

A short reconstruction of a few overlapping patterns is run once for every guess, all guesses in one batch, with the
probe of the scan held fixed. Some patterns are held out; the guess that predicts them best is right. A misfit of
training patterns would say less: with little overlap any guess fits those.

<doc-ref type="contract">specs/data_contracts.md</doc-ref>
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence

import numpy as np
from scipy.fft import fft2, fftfreq, ifft2

from ptycho_torch.config_params import DataSettings, DetectorFlip
from ptycho_torch.data.preparation import FramePreparation, flip_about_zero_frequency
from ptycho_torch.data.scan import Scan

LEAST_PATTERNS = 9
LEAST_SHARE = 0.4
"""Least share of the held-out patterns' light that falls where other patterns tell the object: where the step is about
three quarters of the probe's full width at half maximum. The next best orientation of simulated scans was worse by 1.1
to 4.9 at shares of 0.46 to 0.52, and by 1.3 at most at 0.33 and below."""

_SIDES_PX = (64, 128)
"""Frames are cropped or binned to the first of these that keeps ``_LEAST_LIGHT`` of the probe, in both spaces."""

_LEAST_LIGHT = 0.9
_SWEEPS = 12
_SPACING = 0.2
"""Of the radius that holds half of the probe's light: patterns nearer than that add little."""

_FOLDS = 3
_ENOUGH_HELD_OUT = 8
_MOST_MODES = 4
_MOST_WAYS = 4
_TINY = 1e-12


@dataclasses.dataclass(frozen=True)
class Orientation:
    """One way to read a scan, in the settings of ``ptycho_torch.config_params.DataSettings`` that bring it about.

    Attributes:
        detector_transpose: swap rows and columns of the frames.
        detector_flip: which way to mirror the frames about the zero frequency.
        positions_swap_xy: swap x and y of the positions.
        positions_flip_x: count x the other way.
        positions_flip_y: count y the other way.
    """

    detector_transpose: bool = False
    detector_flip: DetectorFlip = "none"
    positions_swap_xy: bool = False
    positions_flip_x: bool = False
    positions_flip_y: bool = False

    @property
    def settings(self) -> dict[str, bool | str]:
        """The settings that differ from their defaults.

        >>> Orientation(detector_flip="vertical").settings
        {'detector_flip': 'vertical'}
        """
        changed = ((field.name, field.default, getattr(self, field.name)) for field in dataclasses.fields(self))
        return {name: value for name, default, value in changed if value != default}

    def describe(self) -> str:
        """Return the settings as text.

        >>> Orientation(positions_swap_xy=True, positions_flip_x=True).describe()
        'positions_swap_xy = True and positions_flip_x = True'
        """
        texts = (f"{name} = {value!r}".replace("'", '"') for name, value in self.settings.items())
        return " and ".join(texts) or "the frames and positions as they are"


AS_IT_IS = Orientation()


@dataclasses.dataclass(frozen=True)
class Fit:
    """How well one orientation predicts the held-out patterns.

    Attributes:
        orientation: what was tried.
        misfit: Σ (measured − predicted amplitude)² / Σ measured amplitude² over the held-out patterns.
        twin: whether its frames are those of the best orientation turned by 180°.
    """

    orientation: Orientation
    misfit: float
    twin: bool = False


@dataclasses.dataclass(frozen=True)
class OrientationHint:
    """What the frames say about their orientation.

    Attributes:
        fits: every orientation that was tried, the best first; empty where the scan cannot be judged.
        held_out: how many patterns were predicted.
        intensity_gain: misfit of the frames in the best orientation over that of their square root.
        reason: why the scan cannot be judged, else empty.
    """

    fits: tuple[Fit, ...] = ()
    held_out: int = 0
    intensity_gain: float = 0.0
    reason: str = ""

    @property
    def margin(self) -> float:
        """1 + 2.5 / √held_out: one orientation is told from another where its misfit is lower by this factor.

        It is 1.88 for the 8 patterns that are held out of 48, and 2.25 for 4 of 9. Measured misfits as it is over those
        of the best orientation: both real scans turned in each of 14 ways, 3.6 … 11.1, and the best is the right one.
        What the margin must exceed, the same number for scans that were not turned: the real ones 1, with a wrong
        probe up to 1.3; 832 simulated ones up to 1.6, and 2.5 with a twin (see ``alike``).
        """
        return 1 + 2.5 / math.sqrt(max(self.held_out, 1))

    @property
    def best(self) -> Fit | None:
        """The orientation of the lowest misfit."""
        return self.fits[0] if self.fits else None

    @property
    def as_it_is(self) -> Fit | None:
        """The frames and positions as they are in the file."""
        return next((fit for fit in self.fits if fit.orientation == AS_IT_IS), None)

    @property
    def alike(self) -> tuple[Fit, ...]:
        """The orientations that cannot be told from the best one, the best included.

        A twin must be worse by the square of the margin: with a nearly real probe, a reconstruction that has begun to
        turn into its twin image can fit turned frames better than right ones.
        """
        margins = (self.margin ** (2 if fit.twin else 1) for fit in self.fits)
        return tuple(
            fit for fit, margin in zip(self.fits, margins, strict=True) if fit.misfit < margin * self.fits[0].misfit
        )

    @property
    def looks_wrong(self) -> bool:
        """Whether another orientation fits better than the file's by the margin."""
        return bool(self.fits) and self.as_it_is not in self.alike

    @property
    def looks_like_intensity(self) -> bool:
        """Whether the square root of the frames fits better than the frames by the margin; then it was used.

        Measured gains: real scans 0.15 and their squares 9.3 and 9.9; simulated amplitude at most 0.9 (1.4 with a wrong
        probe), and simulated intensity above 1.88 in four of five scans, from few counts to strong scattering.
        """
        return self.intensity_gain >= self.margin

    def describe(self) -> str:
        """Return one line for people: what was found, with the misfits, and the settings to use."""
        best, as_it_is, alike = self.best, self.as_it_is, self.alike
        if best is None or as_it_is is None:
            return f"Orientation not judged: {self.reason}."
        found = f"the misfit of held-out patterns is {as_it_is.misfit:.3f} as they are"
        if self.looks_wrong and len(alike) <= _MOST_WAYS:
            ways = "; or ".join(f"{fit.orientation.describe()} ({fit.misfit:.3f})" for fit in alike)
            twin = any(fit.orientation.settings == {"detector_flip": "both"} for fit in alike)
            return (
                f"Frames and positions look flipped or transposed against each other: {found}. It is lower with {ways}."
                + (" A probe that is the complex conjugate of the right one looks the same." if twin else "")
            )
        if self.looks_wrong:
            return f"Orientation looks wrong: {found} and {best.misfit:.3f} or a little more in {len(alike)} others."
        if len(alike) == 1:
            return (
                f"Frames and positions fit: {found}, and {self.fits[1].misfit:.3f} or more in the "
                f"{len(self.fits) - 1} other orientations."
            )
        if len(alike) <= _MOST_WAYS:
            ways = "; ".join(fit.orientation.describe() for fit in alike if fit is not as_it_is)
            return f"Frames and positions fit: {found}. It is not clearly higher with {ways}."
        return (
            f"Orientation cannot be told: {found} and {best.misfit:.3f} in the best of {len(self.fits)} orientations."
        )


def judge_orientation(scan: Scan, *, patterns: int = 48) -> OrientationHint:
    """Compare the frames as they are with 14 other orientations of frames or positions.

    Seven repairs of the frames (transpose, vertical, horizontal), which leave the probe as it is against the positions,
    and seven of the positions, which leave the probe as it is against the frames. Two faults at once are not tried.

    A probe of a symmetry S, P(S r) = P(r), cannot tell a repair of the frames by S from one of the positions. Turning
    the frames by 180° is the same as conjugating object and probe, |F[conj ψ](k)| = |F[ψ](−k)|, so that a probe that
    is real and symmetric cannot tell it either. What cannot be told apart is in ``OrientationHint.alike``.

    Where the square root of the frames fits much better, the frames are taken for intensity and their root is used.

    Args:
        scan: positions in object pixels, and a probe; an object is not needed.
        patterns: how many patterns around the middle of the scan are looked at, at most.

    Raises:
        DataContractError: a pattern that is read breaks SCAN-04.
    """
    cluster = _choose(scan, patterns)
    if isinstance(cluster, str):
        return OrientationHint(reason=cluster)
    turns = [_Turn(*bits) for bits in itertools.product((False, True), repeat=3)]
    # A fault of the positions is one of frames and probe together, seen from the positions. The place of each
    # pattern is then the same in every guess, and all guesses are one batch.
    guesses = {turn.of_frames: (turn, turns[0]) for turn in turns}
    guesses |= {turn.of_positions: (turn, turn) for turn in turns[1:]}

    def fit(amplitude: np.ndarray, *orientations: Orientation) -> tuple[Fit, ...]:
        tried = [guesses[orientation] for orientation in orientations]
        misfits = _held_out_misfits(
            cluster,
            [turn(amplitude) for turn, _ in tried],
            [turn(cluster.probe) for _, turn in tried],
            [turn(cluster.good_pixels) for turn, _ in tried],
        )
        best = tried[int(np.argmin(misfits))][0]
        twins = [turn == best.turned for turn, _ in tried]
        fits = (Fit(*values) for values in zip(orientations, misfits, twins, strict=True))
        return tuple(sorted(fits, key=lambda each: each.misfit))

    fits = fit(cluster.amplitude, *guesses)
    root = np.sqrt(cluster.amplitude)
    gain = fits[0].misfit / max(fit(root, fits[0].orientation)[0].misfit, 1e-12)
    hint = OrientationHint(fits, cluster.held_out, gain)
    return dataclasses.replace(hint, fits=fit(root, *guesses)) if hint.looks_like_intensity else hint


@dataclasses.dataclass(frozen=True)
class _Turn:
    """Transpose, then mirror rows, then columns, about the zero frequency, as ``FramePreparation`` does."""

    transpose: bool
    vertical: bool
    horizontal: bool

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        if self.transpose:
            frames = frames.swapaxes(-2, -1)
        if self.vertical:
            frames = flip_about_zero_frequency(frames, -2)
        if self.horizontal:
            frames = flip_about_zero_frequency(frames, -1)
        return frames

    @property
    def turned(self) -> _Turn:
        """This and half a turn."""
        return _Turn(self.transpose, not self.vertical, not self.horizontal)

    @property
    def of_frames(self) -> Orientation:
        flips: dict[tuple[bool, bool], DetectorFlip] = {
            (False, False): "none",
            (True, False): "vertical",
            (False, True): "horizontal",
            (True, True): "both",
        }
        return Orientation(detector_transpose=self.transpose, detector_flip=flips[self.vertical, self.horizontal])

    @property
    def of_positions(self) -> Orientation:
        """What to do to the positions in place of doing this to frames and probe: the inverse."""
        flip_x, flip_y = self.horizontal, self.vertical
        if self.transpose:  # Positions are swapped before they are mirrored, so the mirrors change places.
            flip_x, flip_y = flip_y, flip_x
        return Orientation(positions_swap_xy=self.transpose, positions_flip_x=flip_x, positions_flip_y=flip_y)


@dataclasses.dataclass(frozen=True)
class _Cluster:
    """Overlapping patterns in the middle of a scan.

    Attributes:
        amplitude: (n, N, N), zero frequency in the centre.
        positions_px: (n, 2), (x, y).
        probe: (modes, N, N) complex.
        good_pixels: (N, N) bool.
        folds: numbers of the patterns that are held out, one set for each reconstruction.
    """

    amplitude: np.ndarray
    positions_px: np.ndarray
    probe: np.ndarray
    good_pixels: np.ndarray
    folds: tuple[frozenset[int], ...]

    @property
    def held_out(self) -> int:
        """How many patterns are predicted."""
        return sum(map(len, self.folds))


def _choose(scan: Scan, patterns: int) -> _Cluster | str:
    """Choose patterns and read them, or say why the scan cannot be judged."""
    if scan.probe is None:
        return "the scan has no probe"
    # Probes come in any unit; float32 must hold their squares.
    probe = scan.probe.astype(np.complex128) / np.abs(scan.probe).max()
    preparation = _preparation(scan.stack.frame_px, probe)
    if preparation is None:
        return (
            f"this probe does not allow frames of {scan.stack.frame_px} pixels to be made {max(_SIDES_PX)} or smaller"
        )
    probe = preparation.probe(probe)
    N = probe.shape[-1]
    counts = _intensity(probe).sum(axis=(-2, -1), dtype=np.float64)
    probe = probe[np.argsort(-counts, kind="stable")[:_MOST_MODES]]
    light = _intensity(probe).sum(axis=0, dtype=np.float64)
    positions_px = preparation.positions(scan.positions_px)
    chosen = _neighbours(positions_px, scan.scan_index, patterns, _SPACING * _radius_px(light), reach_px=1.5 * N)
    if len(chosen) < LEAST_PATTERNS:
        return f"only {len(chosen)} patterns at different places lie near each other, fewer than {LEAST_PATTERNS}"
    good_pixels = scan.stack.good_pixels
    good_pixels = np.ones((N, N), bool) if good_pixels is None else preparation.good_pixels(good_pixels)
    amplitude = _read(scan, chosen, preparation) * good_pixels
    lit = amplitude.any(axis=(-2, -1))
    if lit.sum() < LEAST_PATTERNS:
        return f"only {lit.sum()} patterns in the middle of the scan are not dark"
    amplitude, near = amplitude[lit], positions_px[chosen][lit]
    folds = _folds(near)
    share = float(np.mean([_overlap_share(near, light, held_out) for held_out in folds]))
    if share < LEAST_SHARE:
        return f"neighbouring patterns share {share:.0%} of their light, less than {LEAST_SHARE:.0%}"
    return _Cluster(amplitude / amplitude.max(), near, probe, good_pixels, folds)


def _preparation(frame_px: int, probe: np.ndarray) -> FramePreparation | None:
    """Bring frames to at most 64 × 64 pixels, or else 128 × 128, an even number, with nearly all light of the probe.

    The pixels around the zero frequency are kept, binned as little as possible.
    """
    far_field = _intensity(np.fft.fftshift(fft2(probe), axes=(-2, -1))).sum(axis=0)
    light = _intensity(probe).sum()
    for side in _SIDES_PX:
        b = 1
        while True:
            N = min(side, frame_px // b)
            N -= N % 2
            preparation = FramePreparation(frame_px, DataSettings(N=N, detector_bin=b, detector_crop=True))
            start, window = frame_px // 2 - N * b // 2, N * b
            seen = far_field[start : start + window, start : start + window].sum() / far_field.sum()
            kept = _intensity(preparation.probe(probe)).sum() / light
            if min(seen, kept) >= _LEAST_LIGHT:
                return preparation
            if window == frame_px or side > N:
                break
            b *= 2
    return None


def _radius_px(light: np.ndarray) -> float:
    """Return the radius around the centre of mass that holds half of the light."""
    rows, columns = np.indices(light.shape)
    total = light.sum()
    row, column = (rows * light).sum() / total, (columns * light).sum() / total
    radii = np.hypot(rows - row, columns - column).ravel()
    order = np.argsort(radii)
    return float(radii[order][np.searchsorted(np.cumsum(light.ravel()[order]), total / 2)])


def _neighbours(
    positions_px: np.ndarray, scan_index: np.ndarray, patterns: int, spacing_px: float, reach_px: float
) -> np.ndarray:
    """Return the numbers of patterns around the middle of the largest scan, no two nearer than the spacing."""
    indices, counts = np.unique(scan_index, return_counts=True)
    members = np.flatnonzero(scan_index == indices[counts.argmax()])
    places = positions_px[members]
    seed = places[np.linalg.norm(places - places.mean(axis=0), axis=1).argmin()]
    distances = np.linalg.norm(places - seed, axis=1)
    chosen: list[int] = []
    for number in np.argsort(distances, kind="stable"):
        if distances[number] > reach_px or len(chosen) == patterns:
            break
        if not chosen or np.linalg.norm(places[chosen] - places[number], axis=1).min() >= max(spacing_px, 0.5):
            chosen.append(int(number))
    return np.sort(members[chosen])


def _folds(positions_px: np.ndarray) -> tuple[frozenset[int], ...]:
    """Hold out patterns of the inner half, which others surround; in one turn where that gives enough, or in three."""
    distances = np.linalg.norm(positions_px - positions_px.mean(axis=0), axis=1)
    inner = np.argsort(distances, kind="stable")[: len(distances) // 2].tolist()
    folds: list[frozenset[int]] = []
    for first in range(_FOLDS):
        if sum(map(len, folds)) < _ENOUGH_HELD_OUT:
            folds.append(frozenset(inner[first::_FOLDS]))
    return tuple(folds)


def _overlap_share(positions_px: np.ndarray, light: np.ndarray, held_out: frozenset[int]) -> float:
    """Return Σ |P|²·W / (|P|² + W) / Σ |P|², mean over held-out patterns; W is the light of the other patterns.

    It is 0 without overlap and n / (n + 1) where n other patterns light the same pixels as much.
    """
    corners, (height, width) = _corners(positions_px, len(light))
    N = len(light)
    others = np.zeros((height, width))
    for number, (x, y) in enumerate(corners):
        if number not in held_out:
            others[y : y + N, x : x + N] += light
    shares = []
    for x, y in corners[sorted(held_out)]:
        W = others[y : y + N, x : x + N]
        shares.append((light * W / np.maximum(light + W, np.finfo(float).tiny)).sum() / light.sum())
    return float(np.mean(shares))


def _corners(positions_px: np.ndarray, N: int) -> tuple[np.ndarray, tuple[int, int]]:
    """Return the whole-pixel corner (x, y) of each pattern's window on a canvas, and its (height, width)."""
    corners = np.rint(positions_px - positions_px.min(axis=0)).astype(np.int64)
    width, height = (corners.max(axis=0) + N).tolist()
    return corners, (height, width)


def _read(scan: Scan, chosen: np.ndarray, preparation: FramePreparation) -> np.ndarray:
    """Read the chosen patterns, in order; what lies after the last one is not read."""
    parts = []
    for first, amplitude, _ in scan.stack.chunks(scan.stack.audit()):
        here = chosen[(chosen >= first) & (chosen < first + len(amplitude))] - first
        parts.append(preparation.frames(amplitude[here]))
        if first + len(amplitude) > chosen[-1]:
            break
    return np.concatenate(parts)


def _held_out_misfits(
    cluster: _Cluster,
    amplitude: Sequence[np.ndarray],
    probe: Sequence[np.ndarray],
    good_pixels: Sequence[np.ndarray],
) -> list[float]:
    """Reconstruct the object of each guess from the patterns that are not held out, and predict those that are.

    ψ' = F⁻¹[a·Fψ / |Fψ|],  O ← O + conj(P)·(ψ' − ψ) / max |P|²,  pattern after pattern, from O = 1: the
    extended ptychographic iterative engine with a fixed probe (Maiden and Rodenburg, Ultramicroscopy 109 (2009) 1256).
    Modes share the modulus constraint, a / √Σ |Fψ|². Bad pixels keep the predicted amplitude.

    NumPy on one thread: the arrays are small, and several threads on a busy machine are many times slower.

    Args:
        cluster: where the patterns are.
        amplitude: of each guess, (n, N, N).
        probe: of each guess, (modes, N, N).
        good_pixels: of each guess, (N, N).
    """
    N = cluster.probe.shape[-1]
    measured = _fft_order(amplitude, np.float32)  # (guesses, n, N, N)
    measured /= np.sqrt(np.square(measured).sum(axis=(2, 3), keepdims=True).mean(axis=1, keepdims=True))
    good = _fft_order(good_pixels, np.float32)[:, None]  # (guesses, 1, N, N)
    spectrum = fft2(np.stack(probe).astype(np.complex64))  # (guesses, modes, N, N)
    seen = (_intensity(spectrum) / N**2 * good).sum(axis=(1, 2, 3), keepdims=True)
    spectrum /= np.sqrt(np.maximum(seen, _TINY))
    brightest = _intensity(ifft2(spectrum)).sum(axis=1, keepdims=True).max(axis=(2, 3), keepdims=True)
    corners, (height, width) = _corners(cluster.positions_px, N)
    fractions = cluster.positions_px - cluster.positions_px.min(axis=0) - corners
    canvas = np.empty((len(measured), 1, height, width), np.complex64)
    k = fftfreq(N)

    def look(number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return probe, window of the object, far field and its amplitude at one position."""
        (x, y), (fx, fy) = corners[number].tolist(), fractions[number].tolist()
        # Windows lie on whole pixels; the rest of the position is a shift of the probe.
        ramp = np.exp(-2j * np.pi * (fy * k[:, None] + fx * k)).astype(np.complex64)
        shifted = ifft2(spectrum * ramp)
        window = canvas[:, :, y : y + N, x : x + N]
        field = fft2(shifted * window, norm="ortho")
        return shifted, window, field, np.sqrt(_intensity(field).sum(axis=1, keepdims=True))

    missed, total = np.zeros(len(measured)), np.zeros(len(measured))
    for held_out in cluster.folds:
        canvas[:] = 1
        training = [number for number in range(len(corners)) if number not in held_out]
        generator = np.random.default_rng(0)
        for _ in range(_SWEEPS):
            for number in generator.permutation(training).tolist():
                shifted, window, field, predicted = look(number)
                factor = measured[:, number, None] / np.maximum(predicted, _TINY) - 1
                change = ifft2(field * (factor * good), norm="ortho")
                window += (shifted.conj() * change).sum(axis=1, keepdims=True) / brightest
        for number in sorted(held_out):
            _, _, _, predicted = look(number)
            missed += np.square((measured[:, number, None] - predicted) * good).sum(axis=(1, 2, 3), dtype=np.float64)
            total += np.square(measured[:, number]).sum(axis=(1, 2), dtype=np.float64)
    misfits: list[float] = (missed / total).tolist()
    return misfits


def _intensity(field: np.ndarray) -> np.ndarray:
    intensity: np.ndarray = np.square(field.real) + np.square(field.imag)
    return intensity


def _fft_order(frames: Sequence[np.ndarray], dtype: type[np.floating]) -> np.ndarray:
    """Stack frames, (guesses, …, N, N), with the zero frequency in the corner."""
    return np.stack([np.fft.ifftshift(each, axes=(-2, -1)) for each in frames]).astype(dtype)
