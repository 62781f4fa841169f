"""Pictures of results. Matplotlib is imported where a picture is made, and without any global state.

<doc-ref type="guide">docs/workflows/pytorch.md</doc-ref>
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ptycho_torch.errors import DataContractError
from ptycho_torch.files.npz_writer import replacing
from ptycho_torch.reconstruction.products import Reconstruction
from ptycho_torch.reconstruction.reconstruction_scores import ReconstructionScores

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

_SHOWN_PX = 2048
"""Longer objects are thinned for the overview, which has fewer pixels itself."""

_SCORES_IN = 2.6
"""Height of the row of scores."""

_LIT = 0.5
"""Share of the median coverage from which on a pixel counts for the ranges. At the border of a scan few patches
overlap, and what they say there may be anything."""

_WIDEST_HUE_RAD = 2 * np.pi / 3
"""From red to green, or to blue: phases that reach less far are stretched to it, for else a weak object is all red."""

_NOTHING = "0.8"
"""Grey of pixels that no patch covers."""


def plot_reconstruction(
    reconstruction: Reconstruction, path: Path, title: str = "", *, scores: ReconstructionScores | None = None
) -> None:
    """Draw an overview of one object as a PNG, in one rename: amplitude, phase, both as colour, and how sure they are.

    The mean phase is taken off. Ranges go from the 1st to the 99th percentile of the pixels that enough patches cover;
    pixels that no patch covers are grey. Hues of weak phases are stretched, and the wheel says how far. Axes are in
    pixels of the scan's frame; where the size of a pixel is known, a bar shows the scale instead. The disagreement of
    patches is shown in parts of the object's contrast, from 0 to 1 whatever the object, so that a flat one does not
    look more certain than one with structure.

    Args:
        reconstruction: what is drawn; a file that is there is replaced.
        path: the PNG.
        title: stands above; empty is the name of the scan in the provenance.
        scores: are written below, and the agreement of the two halves is drawn; None leaves both out.

    Raises:
        DataContractError: no covered pixel has a finite value.
        ConfigError: the folder cannot be made.
        OSError: the file cannot be written.
    """
    from matplotlib import colormaps
    from matplotlib.colors import to_rgb

    amplitude, phase, covered, lit = _polar(reconstruction)
    step = -(-max(amplitude.shape) // _SHOWN_PX)
    thin = (slice(None, None, step), slice(None, None, step))
    amplitude_limits, phase_limits = _limits(amplitude[lit]), _limits(phase[lit])
    reach_rad = _reach(phase_limits)
    amplitude, phase, covered = amplitude[thin], phase[thin], covered[thin]
    height, width = reconstruction.object.shape
    x, y = reconstruction.origin_px
    extent = (x - 0.5, x + width - 0.5, y + height - 0.5, y - 0.5)
    # Heights follow the object, within what a page bears.
    rows = float(np.clip(4.2 * height / width, 2.2, 7.5))
    last = () if scores is None else (_SCORES_IN,)
    images_in = 2 * rows + 1.6
    figure = new_figure(16, images_in + sum(last))
    # Parts of their own: a row without labels would take the room of the labels above it.
    images, *below = figure.subfigures(1 + len(last), 1, height_ratios=(images_in, *last), squeeze=False)[:, 0]
    grid = images.add_gridspec(2, 3)
    (amplitude_axes, phase_axes, colour_axes), (disagreement_axes, coverage_axes, probe_axes) = (
        [images.add_subplot(grid[row, column]) for column in range(3)] for row in range(2)
    )

    def show(axes: Axes, values: np.ndarray, name: str, cmap: str, limits: tuple[float, float], label: str) -> None:
        shown = np.where(covered, values, np.nan)
        image = axes.imshow(
            shown, cmap=colormaps[cmap].with_extremes(bad=_NOTHING), vmin=limits[0], vmax=limits[1], extent=extent
        )
        add_bar(image, axes, label)
        axes.set_title(name)
        _add_scale(axes, reconstruction)

    show(amplitude_axes, amplitude, "Amplitude", "viridis", amplitude_limits, "amplitude")
    show(phase_axes, phase, "Phase, mean taken off", "cividis", phase_limits, "phase (rad)")
    colour = _colour(amplitude, phase, amplitude_limits[1], reach_rad)
    colour[~covered] = to_rgb(_NOTHING)
    colour_axes.imshow(colour, extent=extent)
    _add_wheel(colour_axes, reach_rad)
    colour_axes.set_title("Brightness: amplitude, colour: phase")
    _add_scale(colour_axes, reconstruction)
    if reconstruction.disagreement is None:
        leave_blank(disagreement_axes, "Disagreement of patches", "not computed")
    else:
        # Of a constant object every disagreement is too much.
        contrast = reconstruction.contrast or 1e-30
        disagreement = np.asarray(reconstruction.disagreement)[thin] / contrast
        show(disagreement_axes, disagreement, "Disagreement of patches", "magma", (0, 1), "parts of the contrast")
    coverage = np.asarray(reconstruction.coverage)[thin]
    show(coverage_axes, coverage, "Coverage", "magma", (0, _limits(coverage[covered])[1]), "sum of weights")
    _draw_probe(probe_axes, reconstruction.probe)
    _add_wheel(probe_axes, _WIDEST_HUE_RAD)
    if scores is not None:
        curve_axes, text_axes = below[0].subplots(1, 2, width_ratios=(1, 2))
        _draw_half_split(curve_axes, scores)
        text_axes.axis("off")
        lines = (textwrap.fill(line, 110, subsequent_indent=22 * " ") for line in scores.describe())
        text = text_axes.text(0, 1, "\n".join(lines), va="top", family="monospace", fontsize=10)
        # A long line must not take the room of the images.
        text.set_in_layout(False)
    pixel = reconstruction.pixel_size_m
    size = f", {_metres(pixel)} a pixel" if pixel is not None else ""
    name = title or str(reconstruction.provenance.get("scan", ""))
    figure.suptitle(
        f"{name}: {width} × {height} px{size}, {len(reconstruction.positions_px)} patches".removeprefix(": ")
    )
    save_figure(figure, path)


def write_images(reconstruction: Reconstruction, folder: Path, stem: str) -> tuple[Path, Path, Path]:
    """Write an object as three plain PNGs, one pixel for each of its pixels.

    ``<stem>_amplitude.png`` and ``<stem>_phase.png`` are grey, from black at the 1st to white at the 99th percentile
    of the pixels that enough patches cover; ``<stem>_colour.png`` has brightness for amplitude and hue for phase, where
    weak phases are stretched. The mean phase is taken off. Pixels that no patch covers are transparent. Files that are
    there are replaced.

    Returns:
        The three paths.

    Raises:
        DataContractError: no covered pixel has a finite value.
        ConfigError: the folder cannot be made.
        OSError: a file cannot be written.
    """
    from matplotlib.image import imsave

    amplitude, phase, covered, lit = _polar(reconstruction)

    def grey(values: np.ndarray) -> np.ndarray:
        low, high = _limits(values[lit])
        return np.repeat(np.clip((values - low) / (high - low), 0, 1)[..., None], 3, axis=2)

    paths = []
    for name, colours in (
        ("amplitude", grey(amplitude)),
        ("phase", grey(phase)),
        ("colour", _colour(amplitude, phase, _limits(amplitude[lit])[1], _reach(_limits(phase[lit])))),
    ):
        pixels = np.zeros((*covered.shape, 4), np.uint8)
        pixels[covered, :3] = np.rint(255 * colours[covered])
        pixels[covered, 3] = 255
        path = folder / f"{stem}_{name}.png"
        with replacing(path, overwrite=True) as file:
            imsave(file, pixels, format="png")
        paths.append(path)
    amplitude_path, phase_path, colour_path = paths
    return amplitude_path, phase_path, colour_path


def plot_history(history: Mapping[str, Sequence[float]], path: Path, title: str = "") -> None:
    """Draw losses over epochs, and the learning rate where there is one, as a PNG in one rename.

    Args:
        history: name → value of each epoch, in the epochs' order. A name with ``lr`` or ``learning_rate`` in it is a
            learning rate; every other one is a loss. Values that are not finite leave gaps.
        path: the PNG; a file that is there is replaced.
        title: stands above.

    Raises:
        DataContractError: no epoch is in it.
        ConfigError: the folder cannot be made.
        OSError: the file cannot be written.
    """
    from matplotlib.ticker import MaxNLocator

    curves = {name: np.asarray(values, np.float64) for name, values in history.items() if len(values) > 0}
    if not curves:
        raise DataContractError(f"The history has no epoch ({', '.join(history) or 'no name'}). Train first.")
    rates = {name: values for name, values in curves.items() if _is_rate(name)}
    losses = {name: values for name, values in curves.items() if name not in rates}
    panels = [(curves_, label) for curves_, label in ((losses, "loss"), (rates, "learning rate")) if curves_]
    figure = new_figure(9, 2.2 + 2.6 * len(panels))
    several = figure.subplots(len(panels), 1, sharex=True, squeeze=False, height_ratios=[2, 1][: len(panels)])
    for axes, (some, label) in zip(several[:, 0], panels, strict=True):
        for name, values in some.items():
            # A single epoch is a point and no line.
            marker = "o" if len(values) < 40 else ""
            axes.plot(np.arange(1, len(values) + 1), values, label=name, marker=marker, markersize=3)
        finite = np.concatenate([values[np.isfinite(values)] for values in some.values()])
        if len(finite) and finite.min() > 0 and finite.max() > 10 * finite.min():
            axes.set_yscale("log")
        axes.set_ylabel(label)
        axes.grid(color="0.9")
        axes.legend()
    several[-1, 0].set_xlabel("epoch")
    several[-1, 0].xaxis.set_major_locator(MaxNLocator(integer=True))
    if title:
        figure.suptitle(title)
    save_figure(figure, path)


def new_figure(width_in: float, height_in: float) -> Figure:
    """Return a figure that belongs to no window and to no global list."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width_in, height_in), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG, in one rename; a file that is there is replaced.

    Raises:
        ConfigError: the folder cannot be made, or something that is no file has the name.
        OSError: the file cannot be written.
    """
    with replacing(path, overwrite=True) as file:
        figure.savefig(file, format="png")


def add_bar(image: ScalarMappable, axes: Axes, label: str) -> None:
    """Put a colour bar beside an image, for which the layout keeps room."""
    axes.figure.colorbar(image, ax=axes, fraction=0.046, pad=0.02, label=label)


def leave_blank(axes: Axes, title: str, reason: str) -> None:
    """Say in the place of a picture why there is none."""
    axes.set(title=title, xticks=(), yticks=())
    axes.text(0.5, 0.5, reason, ha="center", va="center", transform=axes.transAxes)


def _polar(reconstruction: Reconstruction) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return amplitude, phase without its mean in (−π, π], which pixels have values and which are lit; all (H, W)."""
    values = np.asarray(reconstruction.object)
    covered = (np.asarray(reconstruction.coverage) > 0) & np.isfinite(values)
    if not covered.any():
        raise DataContractError(
            f"The object of {values.shape[1]} × {values.shape[0]} pixels has no covered pixel with a finite value, so "
            "there is nothing to draw. Check the training loss for values that are not finite, and the positions."
        )
    coverage = np.asarray(reconstruction.coverage)
    lit = covered & (coverage >= _LIT * np.median(coverage[covered]))
    values = np.where(covered, values, 0)
    mean = values[lit].sum(dtype=np.complex128)
    rotated = values * np.exp(-1j * np.angle(mean)).astype(values.dtype)
    return np.abs(rotated), np.angle(rotated), covered, lit


def _limits(values: np.ndarray) -> tuple[float, float]:
    """Return the 1st and 99th percentile of the finite values, apart by more than rounding."""
    values = values[np.isfinite(values)]
    if values.size == 0:
        return 0.0, 1.0
    low, high = (float(value) for value in np.percentile(values, (1, 99)))
    least = 1e-6 * max(abs(low), abs(high)) or 1e-6
    return (low, high) if high - low > least else (low - least, high + least)


def _reach(limits: tuple[float, float]) -> float:
    """Return the phase that gets the hue green, in radians: that of a green phase, or less where none reaches it."""
    return min(max(abs(limits[0]), abs(limits[1])), _WIDEST_HUE_RAD)


def _colour(amplitude: np.ndarray, phase: np.ndarray, bright: float, reach_rad: float = _WIDEST_HUE_RAD) -> np.ndarray:
    """Return (H, W, 3) colours: red at phase 0, green at ``reach_rad``, and brightness = amplitude / ``bright``.

    Hue = phase / 2π where the reach is 2π/3. Where it is less, hues are stretched and end at green and blue.
    """
    from matplotlib.colors import hsv_to_rgb

    brightness = np.clip(amplitude / bright, 0, 1) if bright > 0 else np.zeros_like(amplitude)
    if reach_rad < _WIDEST_HUE_RAD:
        phase = np.clip(phase / reach_rad, -1, 1) * _WIDEST_HUE_RAD
    hsv = np.stack([phase / (2 * np.pi) % 1, np.ones_like(phase), brightness], axis=-1)
    # The rest of a division of a tiny negative number can round to 1.
    colours: np.ndarray = hsv_to_rgb(np.clip(hsv, 0, 1))
    return colours


def _is_rate(name: str) -> bool:
    return "learning_rate" in name or "lr" in name.replace("-", "_").split("_")


def _metres(length_m: float) -> str:
    from matplotlib.ticker import EngFormatter

    return EngFormatter(unit="m", places=None)(float(f"{length_m:.4g}"))


def _add_scale(axes: Axes, reconstruction: Reconstruction) -> None:
    """Write pixels at the axes, or a bar of round length below the image where their size is known."""
    if reconstruction.pixel_size_m is None:
        axes.set(xlabel="x (object px)", ylabel="y (object px)")
        return
    from matplotlib.transforms import ScaledTranslation

    width_m = reconstruction.object.shape[1] * reconstruction.pixel_size_m
    power = 10 ** np.floor(np.log10(0.4 * width_m))
    length_m = max(step * power for step in (1, 2, 5) if step * power <= 0.4 * width_m)
    share = float(length_m / width_m)
    axes.set(xticks=(), yticks=())
    # In points below the image, so that the bar looks alike below flat and tall ones.
    below = axes.transAxes + ScaledTranslation(0, -8 / 72, axes.figure.dpi_scale_trans)
    axes.plot((0, share), (0, 0), transform=below, color="black", linewidth=4, solid_capstyle="butt", clip_on=False)
    axes.text(share + 0.02, 0, _metres(length_m), transform=below, va="center")


def _add_wheel(axes: Axes, reach_rad: float) -> None:
    """Put the disk of phases beside an image; of stretched hues the part that they use."""
    line = np.linspace(-1, 1, 101)
    x, y = np.meshgrid(line, line)
    wheel = np.ones((101, 101, 4))
    radius, angle = np.hypot(x, y), np.arctan2(y, x)
    wheel[..., :3] = _colour(radius, angle, 1)
    labels = {0.0: "0", np.pi / 2: "π/2", np.pi: "π", -np.pi / 2: "−π/2"}
    used = radius <= 1
    if reach_rad < _WIDEST_HUE_RAD:
        used &= np.abs(angle) <= _WIDEST_HUE_RAD
        labels = {0.0: "0", _WIDEST_HUE_RAD: f"{reach_rad:.2g} rad", -_WIDEST_HUE_RAD: f"−{reach_rad:.2g} rad"}
    wheel[..., 3] = used
    legend = axes.inset_axes((1.09, 0.78, 0.2, 0.2))
    legend.imshow(wheel, origin="lower")
    legend.axis("off")
    for at_rad, label in labels.items():
        where = (50 + 68 * np.cos(at_rad), 50 + 68 * np.sin(at_rad))
        # Longer labels would reach into the image on the left.
        align = "center" if reach_rad == _WIDEST_HUE_RAD else "left"
        legend.text(*where, label, ha=align, va="center", fontsize=8, clip_on=False)


def _draw_half_split(axes: Axes, scores: ReconstructionScores) -> None:
    """Draw the ring correlation of the two halves with the half-bit threshold, up to half a cycle a pixel."""
    title = "Fourier ring correlation of two halves"
    rings = None if scores.half_split is None else scores.half_split.rings
    if rings is None:
        leave_blank(axes, title, "not computed" if scores.half_split is None else scores.resolution())
        return
    axes.plot(rings.frequencies_per_px, rings.curve, color="tab:blue", label="halves")
    axes.plot(rings.frequencies_per_px[1:], rings.half_bit[1:], color="0.4", linestyle="--", label="half-bit")
    if np.isfinite(rings.half_bit_per_px):
        axes.axvline(rings.half_bit_per_px, color="tab:red", linewidth=0.8)
    axes.set(title=title, xlabel="cycles a pixel", xlim=(0, 0.5), ylim=(0, 1.02))
    axes.legend()


def _draw_probe(axes: Axes, probe: np.ndarray) -> None:
    """Show the first mode of a probe in the colours of the object."""
    modes = np.asarray(probe)
    modes = modes.reshape(-1, *modes.shape[-2:])
    if not (np.isfinite(modes[0]).all() and modes[0].any()):
        leave_blank(axes, "Probe", "without a finite value above 0")
        return
    amplitude = np.abs(modes[0])
    axes.imshow(_colour(amplitude, np.angle(modes[0]), float(amplitude.max())))
    name = f"Probe, mode 1 of {len(modes)}" if len(modes) > 1 else "Probe"
    axes.set(title=name, xlabel="column (px)", ylabel="row (px)")
