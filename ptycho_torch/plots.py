"""Pictures for people. Matplotlib is imported where a picture is made, and without any global state."""

from __future__ import annotations

import secrets
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ptycho_torch.preparation import median_step
from ptycho_torch.scan import Examination

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable


def plot_scan(examination: Examination, path: Path, hints: Sequence[str] = ()) -> None:
    """Draw the mean pattern, the probe and the positions of one scan as a PNG, in one rename.

    Args:
        examination: of a scan whose patterns could be read; probe and positions are left blank where they could not.
        path: the PNG.
        hints: lines to write below.

    Raises:
        ValueError: the patterns could not be read.
        OSError: the file cannot be written.
    """
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import ListedColormap, LogNorm
    from matplotlib.figure import Figure

    counts, scan = examination.mean_counts, examination.scan
    if counts is None:
        raise ValueError(f"{examination.path}: the patterns could not be read, so there is nothing to draw.")
    notes = [line for hint in hints for line in textwrap.wrap(f"Hint: {hint}", 150)]
    figure = Figure(figsize=(16, 4.2 + 0.2 * len(notes)), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    pattern_axes, amplitude_axes, phase_axes, position_axes = figure.subplots(1, 4, width_ratios=(1, 1, 1, 1.1))

    def add_bar(image: ScalarMappable, axes: Axes, label: str) -> None:
        """Put a colour bar beside an image, as high as the image is whatever its shape."""
        figure.colorbar(image, cax=axes.inset_axes((1.03, 0, 0.05, 1)), label=label)

    good = None if scan is None else scan.stack.good_pixels
    shown = np.where(counts > 0, counts, np.nan)
    if good is not None:
        shown[~good] = np.nan
    colours = colormaps["inferno"].with_extremes(bad="0.75")
    bright = float(np.nanmax(shown, initial=0)) or 1.0
    norm = LogNorm(max(bright * 1e-6, float(np.nanmin(shown, initial=bright)), 1e-30), bright)
    image = pattern_axes.imshow(shown, cmap=colours, norm=norm)
    add_bar(image, pattern_axes, "counts (grey: none)")
    title = "Mean pattern"
    if good is not None:
        pattern_axes.imshow(np.where(good, np.nan, 1), cmap=ListedColormap(["deepskyblue"]))
        title += f", {int((~good).sum())} bad pixels blue"
    pattern_axes.set(title=title, xlabel="column (px)", ylabel="row (px)")

    probe = None if scan is None else scan.probe
    if probe is None:
        for axes, title in ((amplitude_axes, "Probe amplitude"), (phase_axes, "Probe phase")):
            axes.set(title=title, xticks=(), yticks=())
            axes.text(0.5, 0.5, "no probe here", ha="center", va="center", transform=axes.transAxes)
    else:
        modes = f", mode 1 of {len(probe)}" if len(probe) > 1 else ""
        strength = np.abs(probe[0])
        image = amplitude_axes.imshow(strength, cmap="viridis")
        add_bar(image, amplitude_axes, "amplitude, any unit")
        amplitude_axes.set(title=f"Probe amplitude{modes}", xlabel="column (px)")
        # Where there is no light, the phase is noise.
        phase = np.where(strength > 0.02 * strength.max(), np.angle(probe[0]), np.nan)
        image = phase_axes.imshow(phase, cmap=colormaps["twilight"].with_extremes(bad="0.9"), vmin=-np.pi, vmax=np.pi)
        add_bar(image, phase_axes, "phase (rad)")
        phase_axes.set(title=f"Probe phase{modes}", xlabel="column (px)")

    numbers = f"{examination.path.name}: mean {examination.mean_energy:.4g} counts a pattern"
    if scan is None:
        position_axes.set(title="Positions", xticks=(), yticks=())
        position_axes.text(0.5, 0.5, "the scan breaks a clause", ha="center", va="center")
    else:
        x, y = scan.positions_px.T
        position_axes.plot(x, y, color="0.85", linewidth=0.5, zorder=0)
        size = float(np.clip(4000 / len(x), 0.5, 25))
        points = position_axes.scatter(x, y, c=np.arange(len(x)), cmap="plasma", s=size, rasterized=True)
        add_bar(points, position_axes, "number of the pattern")
        position_axes.set_aspect("equal")
        position_axes.invert_yaxis()
        position_axes.set(title="Positions", xlabel="x (object px)", ylabel="y (object px)")
        numbers += (
            f", {scan.stack.count} patterns of {scan.stack.frame_px} × {scan.stack.frame_px} px, "
            f"median step {median_step(scan.positions_px):.2f} px"
        )
    figure.suptitle(numbers)
    if notes:
        figure.supxlabel("\n".join(notes), fontsize=9, color="firebrick")
    part = path.parent / f".{secrets.token_hex(8)}.png"
    try:
        figure.savefig(part, format="png")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
