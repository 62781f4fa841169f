"""Frames, masks, probes and positions before a map is built, in plain NumPy and float64."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Preparation:
    """How frames of a detector are brought to N × N.

    Attributes:
        frame_px: side of the frames.
        N: side of what becomes of them.
        bins: side of the square of pixels that are added up.
        centre_px: row and column of the zero frequency; None is the middle of the frame.
    """

    frame_px: int
    N: int
    bins: int = 1
    centre_px: tuple[int, int] | None = None

    @property
    def window_px(self) -> int:
        """Side of the part of a frame that is kept."""
        return self.N * self.bins

    def windows(self, frames: np.ndarray) -> np.ndarray:
        """Return (…, N, N, bins·bins): the pixels of (…, frame, frame) that become one pixel."""
        row, column = (self.frame_px // 2,) * 2 if self.centre_px is None else self.centre_px
        found = np.empty((*frames.shape[:-2], self.N, self.N, self.bins**2), frames.dtype)
        for i, j, pixel in np.ndindex(self.N, self.N, self.bins**2):
            down, right = divmod(pixel, self.bins)
            here = (
                row - self.window_px // 2 + i * self.bins + down,
                column - self.window_px // 2 + j * self.bins + right,
            )
            found[..., i, j, pixel] = frames[(..., *here)]
        return found

    def amplitude(self, frames: np.ndarray) -> np.ndarray:
        """Return (…, N, N): counts are added up, so amplitude is √Σ amplitude²."""
        return np.asarray(np.sqrt((self.windows(frames.astype(np.float64)) ** 2).sum(axis=-1)))

    def good_pixels(self, good_pixels: np.ndarray) -> np.ndarray:
        """Return (N, N): good where every pixel that was added up is."""
        return np.asarray(self.windows(good_pixels).all(axis=-1))

    def probe(self, probe: np.ndarray) -> np.ndarray:
        """Return (…, N, N) of a (…, H, W) probe: what the kept frequencies say of it, and of that the middle.

        The sum over |amplitude|² of a detector pixel that is kept does not change.
        """
        H, W = probe.shape[-2:]
        window = self.window_px
        k = np.arange(window) - window // 2
        rows, columns = (np.exp(-2j * np.pi * np.outer(k, np.arange(side)) / side) for side in (H, W))
        back = np.exp(2j * np.pi * np.outer(np.arange(window), k) / window) / window
        seen = rows @ probe.astype(np.complex128) @ columns.T  # (…, window, window), frequencies in order
        coarse = back @ seen @ back.T * (window / np.sqrt(H * W))
        middle = slice(window // 2 - self.N // 2, window // 2 - self.N // 2 + self.N)
        return np.asarray(coarse[..., middle, middle])

    def positions_px(self, positions_px: np.ndarray, *, swap_xy: bool, flip_x: bool, flip_y: bool) -> np.ndarray:
        """Return (M, 2) positions, (x, y): counted in pixels that grew as the window shrank, swapped, then mirrored."""
        x, y = (positions_px * self.window_px / self.frame_px).T
        if swap_xy:
            x, y = y, x
        return np.stack([-x if flip_x else x, -y if flip_y else y], axis=1)


def oriented(images: np.ndarray, *, transpose: bool, flip: str) -> np.ndarray:
    """Return (…, N, N) images transposed, then mirrored ``vertical``, ``horizontal`` or ``both`` ways.

    The zero frequency, at N // 2, stays where it is: pixel i comes from pixel 2·(N // 2) − i, counted modulo N.
    """
    N = images.shape[-1]
    straight, mirrored = np.arange(N), np.array([(2 * (N // 2) - i) % N for i in range(N)])
    rows = mirrored if flip in ("vertical", "both") else straight
    columns = mirrored if flip in ("horizontal", "both") else straight
    if transpose:
        images = np.moveaxis(images, -1, -2)
    return np.asarray(images[..., rows[:, None], columns[None, :]])
