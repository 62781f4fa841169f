"""Pictures of scans."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ptycho_torch.data.preparation import median_step
from ptycho_torch.data.scan import Examination
from ptycho_torch.reconstruction.pictures import add_bar, leave_blank, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_scan(examination: Examination, path: Path, hints: Sequence[str] = ()) -> None:
    """Draw the mean pattern, the probe and the positions of one scan as a PNG, in one rename.

    Args:
        examination: of a scan whose patterns could be read; probe and positions are left blank where they could not.
        path: the PNG.
        hints: lines to write below.

    Raises:
        ValueError: the patterns could not be read.
        ConfigError: a folder has the name.
        OSError: the file cannot be written.
    """
    counts, scan = examination.mean_counts, examination.scan
    if counts is None:
        raise ValueError(f"{examination.path}: the patterns could not be read, so there is nothing to draw.")
    notes = [line for hint in hints for line in textwrap.wrap(f"Hint: {hint}", 150)]
    figure = new_figure(16, 4.2 + 0.2 * len(notes))
    pattern_axes, amplitude_axes, phase_axes, position_axes = figure.subplots(1, 4, width_ratios=(1, 1, 1, 1.1))
    _draw_counts(pattern_axes, counts, None if scan is None else scan.stack.good_pixels)
    draw_probe(amplitude_axes, phase_axes, None if scan is None else scan.probe)
    numbers = f"{examination.path.name}: mean {examination.mean_energy:.4g} counts a pattern"
    if scan is None:
        leave_blank(position_axes, "Positions", "the scan breaks a clause")
    else:
        _draw_positions(position_axes, scan.positions_px)
        numbers += (
            f", {scan.stack.count} patterns of {scan.stack.frame_px} × {scan.stack.frame_px} px, "
            f"median step {median_step(scan.positions_px):.2f} px"
        )
    figure.suptitle(numbers)
    if notes:
        figure.supxlabel("\n".join(notes), fontsize=9, color="firebrick")
    save_figure(figure, path)


def _draw_counts(axes: Axes, counts: np.ndarray, good_pixels: np.ndarray | None) -> None:
    """Show (N, N) mean counts over six decades; dark pixels are grey and bad ones blue."""
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap, LogNorm

    shown = np.where(counts > 0, counts, np.nan)
    if good_pixels is not None:
        shown[~good_pixels] = np.nan
    bright = float(np.nanmax(shown, initial=0)) or 1.0
    norm = LogNorm(max(bright * 1e-6, float(np.nanmin(shown, initial=bright)), 1e-30), bright)
    image = axes.imshow(shown, cmap=colormaps["inferno"].with_extremes(bad="0.75"), norm=norm)
    add_bar(image, axes, "counts (grey: none)")
    title = "Mean pattern"
    if good_pixels is not None:
        axes.imshow(np.where(good_pixels, np.nan, 1), cmap=ListedColormap(["deepskyblue"]))
        title += f", {int((~good_pixels).sum())} bad pixels blue"
    axes.set(title=title, xlabel="column (px)", ylabel="row (px)")


def draw_probe(amplitude_axes: Axes, phase_axes: Axes, probe: np.ndarray | None) -> None:
    """Show amplitude and phase of the first of (modes, N, N)."""
    from matplotlib import colormaps

    if probe is None:
        for axes, title in ((amplitude_axes, "Probe amplitude"), (phase_axes, "Probe phase")):
            leave_blank(axes, title, "no probe here")
        return
    modes = f", mode 1 of {len(probe)}" if len(probe) > 1 else ""
    strength = np.abs(probe[0])
    add_bar(amplitude_axes.imshow(strength, cmap="viridis"), amplitude_axes, "amplitude, any unit")
    amplitude_axes.set(title=f"Probe amplitude{modes}", xlabel="column (px)")
    # Where there is no light, the phase is noise.
    phase = np.where(strength > 0.02 * strength.max(), np.angle(probe[0]), np.nan)
    image = phase_axes.imshow(phase, cmap=colormaps["twilight"].with_extremes(bad="0.9"), vmin=-np.pi, vmax=np.pi)
    add_bar(image, phase_axes, "phase (rad)")
    phase_axes.set(title=f"Probe phase{modes}", xlabel="column (px)")


def _draw_positions(axes: Axes, positions_px: np.ndarray) -> None:
    """Show (M, 2) positions in their order, y downwards as rows are."""
    x, y = positions_px.T
    axes.plot(x, y, color="0.85", linewidth=0.5, zorder=0)
    size = float(np.clip(4000 / len(x), 0.5, 25))
    points = axes.scatter(x, y, c=np.arange(len(x)), cmap="plasma", s=size, rasterized=True)
    add_bar(points, axes, "number of the pattern")
    axes.set_aspect("equal")
    axes.invert_yaxis()
    axes.set(title="Positions", xlabel="x (object px)", ylabel="y (object px)")
