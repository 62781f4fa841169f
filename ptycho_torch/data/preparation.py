"""From the frames of a scan to patterns of N × N, and settings that follow from a scan (clauses PREP-01, PREP-02).

<doc-ref type="contract">specs/data_contracts.md</doc-ref>
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
from scipy.spatial import KDTree

from ptycho_torch.config_params import PATCH_SIDES_PX, DataSettings
from ptycho_torch.contracts.contract import violation

REFERENCE_OFFSET_PX = 4
REFERENCE_JITTER_PX = 10
"""The reference's fixed ``offset`` and ``max_position_jitter``: a canvas 7 px wider on each side for gridsize 2."""


HC_J_M = 6.62607015e-34 * 299792458
"""h·c in joule metres, exact since the units of 2019: a photon's energy is h·c / λ."""

ELECTRONVOLT_J = 1.602176634e-19


def object_pixel_m(wavelength_m: float, detector_distance_m: float, detector_pixel_m: float, frame_px: int) -> float:
    """Return λ·z / (N·p), the side of an object pixel in metres [clauses SCAN-12 and REC-02].

    >>> object_pixel_m(1e-10, 2.0, 5e-5, 64)
    6.25e-08
    """
    return wavelength_m * detector_distance_m / (frame_px * detector_pixel_m)


@dataclasses.dataclass(frozen=True)
class FramePreparation:
    """Crop, bin, transpose and flip the frames of one scan [clause PREP-01].

    Args:
        frame_px: side of the scan's frames.
        settings: N and the ``detector_…`` and ``positions_…`` fields.
        path: the scan, for errors.

    Raises:
        DataContractError: the settings do not bring these frames to N × N.
    """

    frame_px: int
    settings: DataSettings
    path: Path | None = None

    def __post_init__(self) -> None:
        frame, N, b = self.frame_px, self.settings.N, self.settings.detector_bin
        window = N * b
        if frame != window and not self.settings.detector_crop:
            raise violation(
                "PREP-01",
                f"frames of {frame} × {frame} pixels for N = {N} and detector_bin = {b}",
                path=self.path,
                expected=f"{window} × {window}",
                remedy=_to_window(frame, N, b),
            )
        for start in self._starts:
            if start < 0 or start + window > frame:
                raise violation(
                    "PREP-01",
                    f"a window of {window} pixels from {start} on in frames of {frame}",
                    path=self.path,
                    expected="a window inside the frame",
                    remedy=_into_frame(frame, N, b),
                )

    @property
    def _starts(self) -> tuple[int, int]:
        window = self.settings.N * self.settings.detector_bin
        centres = (self.settings.detector_centre_row_px, self.settings.detector_centre_column_px)
        row, column = (self.frame_px // 2 if centre is None else centre for centre in centres)
        return row - window // 2, column - window // 2

    @property
    def is_identity(self) -> bool:
        """Whether frames stay as they are."""
        settings = self.settings
        return (
            self.frame_px == settings.N
            and self._starts == (0, 0)
            and settings.detector_bin == 1
            and not settings.detector_transpose
            and settings.detector_flip == "none"
        )

    def frames(self, amplitude: np.ndarray) -> np.ndarray:
        """Return (n, N, N) amplitude of (n, frame, frame) amplitude."""
        if self.is_identity:
            return amplitude
        amplitude = self._window(amplitude)
        if self.settings.detector_bin > 1:
            counts = np.square(self._bins(amplitude), dtype=np.float64).sum(axis=(-3, -1))
            amplitude = np.sqrt(counts).astype(np.float32)
        return np.ascontiguousarray(self._oriented(amplitude))

    def good_pixels(self, good_pixels: np.ndarray) -> np.ndarray:
        """Return (N, N) of a (frame, frame) mask; a binned pixel is good if all of its pixels are."""
        good_pixels = self._window(good_pixels)
        if self.settings.detector_bin > 1:
            good_pixels = np.asarray(self._bins(good_pixels).all(axis=(-3, -1)))
        return np.ascontiguousarray(self._oriented(good_pixels))

    def positions(self, positions_px: np.ndarray) -> np.ndarray:
        """Return (M, 2) positions in pixels of the prepared frames' object."""
        settings = self.settings
        positions_px = positions_px * (settings.N * settings.detector_bin / self.frame_px)
        if settings.positions_swap_xy:
            positions_px = positions_px[:, ::-1]
        signs = np.array([-1.0 if flip else 1.0 for flip in (settings.positions_flip_x, settings.positions_flip_y)])
        return np.ascontiguousarray(positions_px * signs)

    def probe(self, modes: np.ndarray) -> np.ndarray:
        """Return (modes, N, N) complex64 of a probe given for the scan's frames."""
        N, frame = self.settings.N, self.frame_px
        window = N * self.settings.detector_bin
        if window < frame:
            # Fewer detector pixels see a coarser probe; the factor keeps the amplitude on each detector pixel.
            far_field = np.fft.fftshift(np.fft.fft2(modes.astype(np.complex128)), axes=(-2, -1))
            start = frame // 2 - window // 2
            cut = far_field[:, start : start + window, start : start + window]
            modes = np.fft.ifft2(np.fft.ifftshift(cut, axes=(-2, -1))) * (window / frame)
        start = window // 2 - N // 2
        return np.ascontiguousarray(modes[:, start : start + N, start : start + N], dtype=np.complex64)

    def _window(self, frames: np.ndarray) -> np.ndarray:
        (row, column), window = self._starts, self.settings.N * self.settings.detector_bin
        return frames[..., row : row + window, column : column + window]

    def _bins(self, frames: np.ndarray) -> np.ndarray:
        N, b = self.settings.N, self.settings.detector_bin
        return frames.reshape(*frames.shape[:-2], N, b, N, b)

    def _oriented(self, frames: np.ndarray) -> np.ndarray:
        if self.settings.detector_transpose:
            frames = frames.swapaxes(-2, -1)
        if self.settings.detector_flip in ("vertical", "both"):
            frames = flip_about_zero_frequency(frames, -2)
        if self.settings.detector_flip in ("horizontal", "both"):
            frames = flip_about_zero_frequency(frames, -1)
        return frames


def _to_window(frame: int, N: int, b: int) -> str:
    """Return which settings bring frames to N × N."""
    ways = []
    if frame in PATCH_SIDES_PX and b == 1:
        ways.append(f"Train on whole frames: `--N {frame}`")
    if frame > N * b:
        ways.append(f"{'keep' if ways else 'Keep'} the middle: `--detector-crop`")
    if frame % N == 0 and frame // N != b:
        ways.append(f"add the counts of neighbouring pixels: `--detector-bin {frame // N}`")
    smaller = [side for side in PATCH_SIDES_PX if side * b < frame]
    if not ways and smaller:
        ways.append(f"Frames are too small for N = {N}; keep less of them: `--N {smaller[-1]} --detector-crop`")
    return "; or ".join(ways) or f"Frames of {frame} pixels are smaller than every network: {PATCH_SIDES_PX}."


def _into_frame(frame: int, N: int, b: int) -> str:
    """Return which settings bring a window into the frame."""
    if N * b > frame:
        return _to_window(frame, N, b)
    least, most = N * b // 2, frame - (N * b - N * b // 2)
    return (
        f"Centres from {least} to {most} leave room for it: `--detector-centre-row-px {(least + most) // 2} "
        f"--detector-centre-column-px {(least + most) // 2}` is the middle."
    )


def flip_about_zero_frequency(frames: np.ndarray, axis: int) -> np.ndarray:
    """Mirror frames so that the pixel at N // 2 stays: index i goes to (2·(N // 2) − i) mod N.

    >>> flip_about_zero_frequency(np.array([0, 1, 2, 3]), 0)
    array([0, 3, 2, 1])
    """
    return np.roll(np.flip(frames, axis), 1 - frames.shape[axis] % 2, axis)


@dataclasses.dataclass(frozen=True)
class DerivedSettings:
    """Settings that follow from a scan, with the numbers they come from [clause PREP-02].

    Attributes:
        nphotons: mean Σ amplitude² of a grouped pattern, or as given.
        nphotons_source: where that number comes from.
        offset: nominal scan step in whole pixels, or as given.
        max_position_jitter: pixels added to the canvas, or as given.
        step_px: median distance from a position to its nearest neighbour.
        reach_px: largest |o_c| component of any group.
        padding_px: q, pixels between patch and canvas on each side with these settings.
        groups: number of groups.
        clipped_groups: groups whose reach exceeds q.
        clipped_by_reference: groups whose reach exceeds the padding that the reference's fixed values give.
        reference_padding_px: that padding.
    """

    nphotons: float
    nphotons_source: str
    offset: int
    max_position_jitter: int
    step_px: float
    reach_px: float
    padding_px: int
    groups: int
    clipped_groups: int
    clipped_by_reference: int
    reference_padding_px: int

    def describe(self) -> tuple[str, ...]:
        """Return the numbers as lines for people."""
        lines = [
            f"nphotons = {self.nphotons:.6g} ({self.nphotons_source})",
            f"offset = {self.offset} px (median step to the nearest position {self.step_px:.2f} px)",
            f"max_position_jitter = {self.max_position_jitter} px (the widest of {self.groups} groups reaches "
            f"{self.reach_px:.2f} px from its centre; the canvas has {self.padding_px} px a side)",
        ]
        if self.clipped_groups:
            lines.append(f"{self.clipped_groups} groups are clipped at this padding; give a larger max_position_jitter")
        if self.clipped_by_reference:
            lines.append(
                f"TensorFlow's fixed offset 4 and jitter 10, not used here, ({self.reference_padding_px} px a side) "
                f"would clip {self.clipped_by_reference} groups"
            )
        return tuple(lines)


def derive(
    *,
    mean_counts: float,
    step_px: float,
    reach_px: np.ndarray,
    gridsize: int,
    nphotons: float | None = None,
    nphotons_source: str = "as given",
    offset: int | None = None,
    max_position_jitter: int | None = None,
) -> DerivedSettings:
    """Derive the settings that a scan decides; what is given stays as given [clause PREP-02].

    q = ((gridsize − 1)·offset + max_position_jitter) / 2 ≥ ⌈max |o_c|⌉

    Args:
        mean_counts: mean Σ amplitude² over groups and channels.
        step_px: median distance from a position to its nearest neighbour.
        reach_px: (L,) largest |o_c| component of each group.
        gridsize: g.
        nphotons: as given by the user or a scan, or None.
        nphotons_source: who gave it.
        offset: as given by the user, or None.
        max_position_jitter: as given by the user, or None.

    Raises:
        DataContractError: PREP-02, the numbers are not finite or no counts are there.

    >>> derive(mean_counts=1e5, step_px=8.2, reach_px=np.array([9.5]), gridsize=2).max_position_jitter
    12
    """
    widest = float(reach_px.max()) if len(reach_px) else math.nan
    if not (all(map(math.isfinite, (mean_counts, step_px, widest))) and mean_counts > 0):
        raise violation(
            "PREP-02", f"{mean_counts:.3g} mean counts, a step of {step_px:.3g} px and groups of {widest:.3g} px"
        )
    needed = 2 * math.ceil(widest)
    offset = round(step_px) if offset is None else offset
    spread = (gridsize - 1) * offset
    if max_position_jitter is None:
        max_position_jitter = max(needed - spread, 0)
        # The canvas is centred on the patch, so the sum must be even (REF-03).
        max_position_jitter += (spread + max_position_jitter) % 2
    padding = (spread + max_position_jitter) // 2
    reference_padding = ((gridsize - 1) * REFERENCE_OFFSET_PX + REFERENCE_JITTER_PX) // 2
    if nphotons is None:
        nphotons, nphotons_source = mean_counts, "mean counts of a pattern, if the patterns are √counts"
    return DerivedSettings(
        nphotons=nphotons,
        nphotons_source=nphotons_source,
        offset=offset,
        max_position_jitter=max_position_jitter,
        step_px=step_px,
        reach_px=widest,
        padding_px=padding,
        groups=len(reach_px),
        clipped_groups=int((reach_px > padding).sum()),
        clipped_by_reference=int((reach_px > reference_padding).sum()),
        reference_padding_px=reference_padding,
    )


def median_step(positions_px: np.ndarray) -> float:
    """Return the median distance from a position to its nearest different position; 0 for a single place."""
    places = np.unique(positions_px, axis=0)
    if len(places) < 2:
        return 0.0
    distances, _ = KDTree(places).query(places, k=2)
    return float(np.median(distances[:, 1]))
