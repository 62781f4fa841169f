"""Pictures of results: exact pixels, nothing made up where nothing is known, nothing left behind."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imread

from ptycho_torch.errors import ConfigError, DataContractError
from ptycho_torch.reconstruction import pictures
from ptycho_torch.reconstruction.half_split import HalfSplit
from ptycho_torch.reconstruction.pictures import plot_history, plot_reconstruction, write_images
from ptycho_torch.reconstruction.products import Reconstruction
from ptycho_torch.reconstruction.reconstruction_scores import ReconstructionScores
from ptycho_torch.reconstruction.rings import ring_correlation


@pytest.fixture
def reconstruction() -> Reconstruction:
    """An object of 40 rows and 60 columns whose first 5 columns no patch covers."""
    rows, columns = np.mgrid[:40, :60]
    amplitude, phase = 1 + rows / 40, np.pi / 2 * (columns - 32) / 28
    coverage = np.where(columns < 5, 0, 3.0).astype(np.float32)
    object_ = np.where(coverage > 0, amplitude * np.exp(1j * phase), 0)
    y, x = np.mgrid[-8:8, -8:8]
    return Reconstruction(
        object=object_.astype(np.complex64),
        coverage=coverage,
        origin_px=(-3.0, 11.0),
        positions_px=np.random.default_rng(0).uniform(0, 20, (9, 2)),
        probe=np.exp(-(x**2 + y**2) / 20 * (1 + 1j)).astype(np.complex64),
        provenance={"scan": "wafer.npz"},
        disagreement=(0.01 * rows).astype(np.float32),
        pixel_size_m=2e-8,
    )


def colours_of(path: Path) -> int:
    return len(np.unique((imread(path)[..., :3] * 255).astype(np.int64) @ [65536, 256, 1]))


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Figures that would be written."""
    kept: list[Figure] = []
    monkeypatch.setattr(pictures, "save_figure", lambda figure, path: kept.append(figure))
    return kept


def test_plain_images_have_the_pixels_of_the_object(reconstruction: Reconstruction, tmp_path: Path) -> None:
    paths = write_images(reconstruction, tmp_path, "wafer")
    assert [path.name for path in paths] == ["wafer_amplitude.png", "wafer_phase.png", "wafer_colour.png"]
    assert sorted(tmp_path.iterdir()) == sorted(paths)
    amplitude, phase, colour = (imread(path) for path in paths)
    for image in (amplitude, phase, colour):
        assert image.shape == (40, 60, 4)
        assert not image[:, :5, 3].any()
        assert (image[:, 5:, 3] == 1).all()
    for image in (amplitude, phase):
        assert np.ptp(image[..., :3], axis=2).max() == 0
    # Rows get brighter downwards and phases to the right; the ends are clipped at the percentiles.
    assert (np.diff(amplitude[2:-2, 10, 0]) > 0).all()
    assert (amplitude[0, 10, 0], amplitude[-1, 10, 0]) == (0, 1)
    assert (np.diff(phase[20, 8:-3, 0]) > 0).all()
    assert (phase[20, 5, 0], phase[20, -1, 0]) == (0, 1)


def test_colours_are_hue_for_phase_and_brightness_for_amplitude(reconstruction: Reconstruction, tmp_path: Path) -> None:
    values = np.ones((40, 60), np.complex64)
    # The pairs leave the mean phase at 0.
    for row, angle in enumerate((2 * np.pi / 3, -2 * np.pi / 3)):
        values[row] = np.exp(1j * angle)
    values[2] = 0.5
    seen = dataclasses.replace(reconstruction, object=values * np.complex64(1j), coverage=np.ones((40, 60)))
    colour = imread(write_images(seen, tmp_path, "wheel")[2])[..., :3]
    np.testing.assert_allclose(colour[0, 0], [0, 1, 0], atol=0.01)
    np.testing.assert_allclose(colour[1, 0], [0, 0, 1], atol=0.01)
    np.testing.assert_allclose(colour[2, 0], [0.5, 0, 0], atol=0.01)
    np.testing.assert_allclose(colour[3, 0], [1, 0, 0], atol=0.01)


def test_global_phase_and_scale_do_not_show(reconstruction: Reconstruction, tmp_path: Path) -> None:
    turned = dataclasses.replace(reconstruction, object=reconstruction.object * np.complex64(7 * np.exp(2.5j)))
    for ours, theirs in zip(
        write_images(reconstruction, tmp_path, "a"), write_images(turned, tmp_path, "b"), strict=True
    ):
        np.testing.assert_allclose(imread(ours), imread(theirs), atol=1.01 / 255)


def test_an_overview_shows_all_panels(reconstruction: Reconstruction, tmp_path: Path) -> None:
    plot_reconstruction(reconstruction, tmp_path / "whole.png")
    assert imread(tmp_path / "whole.png").shape[1] == 1760
    assert colours_of(tmp_path / "whole.png") > 1000


def test_less_is_drawn_where_less_is_known(
    reconstruction: Reconstruction, tmp_path: Path, figures: list[Figure]
) -> None:
    less = dataclasses.replace(reconstruction, disagreement=None, probe=np.zeros((2, 8, 8)))
    plot_reconstruction(reconstruction, tmp_path / "a.png")
    plot_reconstruction(less, tmp_path / "a.png")
    for figure, blank in zip(figures, (0, 2), strict=True):
        panels = figure.axes[:6]
        assert [axes.get_title() for axes in panels][3:] == ["Disagreement of patches", "Coverage", "Probe"]
        assert sum(not axes.images for axes in panels) == blank


def test_scores_and_the_agreement_of_two_halves_are_drawn(
    reconstruction: Reconstruction, tmp_path: Path, figures: list[Figure]
) -> None:
    draw = np.random.default_rng(0)
    image, noise = draw.standard_normal((2, 48, 48))
    rings = ring_correlation(image, image + 0.2 * noise)
    for split in (HalfSplit((9, 8), 0.0, 48, rings), HalfSplit((9, 8), 0.0, 0, None), None):
        scores = ReconstructionScores(0.1, 0.5, split, "a reason " * 30)
        plot_reconstruction(reconstruction, tmp_path / "a.png", scores=scores)
        drawn = figures[-1].axes
        assert "Fourier ring correlation of two halves" in [axes.get_title() for axes in drawn]
        assert any("a reason" in text.get_text() for axes in drawn for text in axes.texts)
        figures[-1].draw_without_rendering()
    curves = [next(axes for axes in figure.axes if "halves" in axes.get_title()) for figure in figures]
    halves, half_bit, crossing = curves[0].lines
    np.testing.assert_array_equal(halves.get_ydata(), rings.curve)
    np.testing.assert_array_equal(half_bit.get_ydata(), rings.half_bit[1:])
    assert crossing.get_xdata()[0] == rings.half_bit_per_px
    assert [len(axes.lines) for axes in curves] == [3, 0, 0]


def test_disagreement_is_drawn_in_parts_of_the_contrast(
    reconstruction: Reconstruction, tmp_path: Path, figures: list[Figure]
) -> None:
    flat = dataclasses.replace(reconstruction, object=1 + 0.01 * (reconstruction.object - 1))
    for seen, factor in ((reconstruction, 1), (flat, 100)):
        plot_reconstruction(seen, tmp_path / "a.png")
        image = figures[-1].axes[3].images[0]
        assert image.get_clim() == (0, 1)
        shown = np.nanmean(image.get_array().filled(np.nan))
        covered = seen.coverage > 0
        expected = factor * seen.disagreement[covered].mean() / reconstruction.contrast
        assert shown == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize(
    ("pixel_size_m", "expected"), [(2e-8, "200 nm"), (2.2e-8, "500 nm"), (None, "x (object px)"), (1.7e-6, "20 µm")]
)
def test_the_scale_is_in_metres_where_it_is_known(
    reconstruction: Reconstruction,
    tmp_path: Path,
    figures: list[Figure],
    pixel_size_m: float | None,
    expected: str,
) -> None:
    """The bar is the longest of 1, 2, 5 · 10ᵏ within 0.4 of the width: 480 and 528 nm in the first two."""
    plot_reconstruction(dataclasses.replace(reconstruction, pixel_size_m=pixel_size_m), tmp_path / "a.png", "A title")
    axes = figures[0].axes[0]
    written = [text.get_text() for text in axes.texts] + [axes.get_xlabel()]
    assert expected in written
    assert figures[0].get_suptitle().startswith("A title: 60 × 40 px")
    if pixel_size_m is None:
        assert axes.get_xlim() == (-3.5, 56.5)
        assert axes.get_ylim() == (50.5, 10.5)
    else:
        (line,) = axes.lines
        share = float(np.ptp(line.get_xdata()))
        number, unit = expected.split(" ")
        assert share * 60 * pixel_size_m == pytest.approx(float(number) * {"nm": 1e-9, "µm": 1e-6}[unit])


def test_large_objects_are_thinned_and_lie_where_they_did(
    reconstruction: Reconstruction, tmp_path: Path, figures: list[Figure], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "_SHOWN_PX", 20)
    plot_reconstruction(dataclasses.replace(reconstruction, pixel_size_m=None), tmp_path / "a.png")
    (image,) = figures[0].axes[0].images
    assert image.get_array().shape == (14, 20)
    assert tuple(image.get_extent()) == (-3.5, 56.5, 50.5, 10.5)


def test_strange_values_are_left_out_and_constants_drawn(
    reconstruction: Reconstruction, tmp_path: Path, figures: list[Figure]
) -> None:
    strange = reconstruction.object.copy()
    strange[10:12] = np.nan
    image = imread(write_images(dataclasses.replace(reconstruction, object=strange), tmp_path, "a")[0])
    assert not image[10:12, :, 3].any()
    assert (np.diff(image[12:-2, 10, 0]) > 0).all()
    for constant in (0, 1):
        plot_reconstruction(
            dataclasses.replace(reconstruction, object=np.full((40, 60), constant, np.complex64)), tmp_path / "c.png"
        )
        figures[-1].draw_without_rendering()
    for nothing in (
        dataclasses.replace(reconstruction, coverage=np.zeros((40, 60))),
        dataclasses.replace(reconstruction, object=np.full((40, 60), np.nan, np.complex64)),
    ):
        with pytest.raises(DataContractError, match="nothing to draw"):
            plot_reconstruction(nothing, tmp_path / "n.png")
    assert len(figures) == 2


def test_a_history_is_drawn(tmp_path: Path) -> None:
    plot_history({"train_loss": [3.0, 1.0]}, tmp_path / "history.png", "run")
    assert colours_of(tmp_path / "history.png") > 50


def test_a_history_shows_losses_and_learning_rates_apart(tmp_path: Path, figures: list[Figure]) -> None:
    history = {"train_loss": [1, 0.1, np.nan, 0.01], "val_loss": [2, 1, 0.5, 0.4], "lr-Adam": [1e-3, 1e-3, 1e-4, 1e-4]}
    plot_history(history, tmp_path / "history.png", "run")
    assert figures[0].get_suptitle() == "run"
    losses, rates = figures[0].axes
    assert [line.get_label() for line in losses.lines] == ["train_loss", "val_loss"]
    assert [line.get_label() for line in rates.lines] == ["lr-Adam"]
    assert losses.get_yscale() == "log"
    np.testing.assert_array_equal(losses.lines[0].get_xdata(), [1, 2, 3, 4])
    # Losses of Poisson statistics can be below 0.
    plot_history({"train_loss": [-3.0, -5.0], "val_loss": []}, tmp_path / "history.png")
    (axes,) = figures[1].axes
    assert (axes.get_yscale(), len(axes.lines)) == ("linear", 1)
    plot_history({"train_loss": [np.nan]}, tmp_path / "history.png")
    with pytest.raises(DataContractError, match="no epoch"):
        plot_history({"train_loss": []}, tmp_path / "history.png")


def test_a_picture_that_cannot_be_written_leaves_nothing(reconstruction: Reconstruction, tmp_path: Path) -> None:
    (tmp_path / "taken.png").mkdir()
    with pytest.raises(ConfigError, match="taken"):
        plot_reconstruction(reconstruction, tmp_path / "taken.png")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="file"):
        write_images(reconstruction, tmp_path / "file", "a")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "taken.png"]


def test_pictures_need_no_global_state_of_matplotlib(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; import numpy as np; from ptycho_torch.reconstruction.pictures import *; "
        "from ptycho_torch.reconstruction.pictures import Reconstruction; assert 'matplotlib' not in sys.modules; "
        "one = np.ones((8, 8), np.complex64); folder = Path(sys.argv[1]); "
        "seen = Reconstruction(one, one.real, (0.0, 0.0), np.zeros((1, 2)), one, {}); "
        "plot_reconstruction(seen, folder / 'a.png'); write_images(seen, folder, 'a'); "
        "plot_history({'loss': [1.0]}, folder / 'h.png'); assert 'matplotlib.pyplot' not in sys.modules"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr
    assert len(list(tmp_path.iterdir())) == 5


def test_weak_phases_show_all_colours_whatever_the_border_says(
    reconstruction: Reconstruction, tmp_path: Path, figures: list[Figure]
) -> None:
    rows, columns = np.mgrid[:40, :60]
    phase = 0.05 * np.sin(2 * np.pi * columns / 20)
    border = (rows < 6) | (rows > 33)
    phase = np.where(border, np.random.default_rng(0).uniform(-3, 3, phase.shape), phase)
    weak = dataclasses.replace(
        reconstruction, object=np.exp(1j * phase).astype(np.complex64), coverage=np.where(border, 0.4, 3.0)
    )
    colour, grey = (imread(write_images(weak, tmp_path, "weak")[number])[6:34] for number in (2, 1))
    # From blue over red to green; without the stretch all of it is red.
    assert (colour[..., 1] > 0.9).any()
    assert (colour[..., 2] > 0.9).any()
    assert np.ptp(grey[..., 0]) == 1
    plot_reconstruction(weak, tmp_path / "weak.png")
    panels = {axes.get_title(): axes for axes in figures[0].findobj(Axes)}
    low, high = panels["Phase, mean taken off"].images[0].get_clim()
    assert (low, high) == pytest.approx((-0.05, 0.05), abs=0.002)
    wheel = panels["Brightness: amplitude, colour: phase"].child_axes[0]
    assert [text.get_text() for text in wheel.texts] == ["0", "0.05 rad", "−0.05 rad"]
    # A probe has every phase.
    assert [text.get_text() for text in panels["Probe"].child_axes[0].texts] == ["0", "π/2", "π", "−π/2"]
