"""Pictures of scans: they show something, and they leave nothing behind."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from ptycho_torch.data.scan import Examination, examine
from ptycho_torch.errors import ConfigError
from ptycho_torch.reconstruction.plots import plot_scan


@pytest.fixture
def examination(tmp_path: Path) -> Examination:
    draw = np.random.default_rng(0)
    np.savez(
        tmp_path / "scan.npz",
        diff3d=draw.random((12, 16, 16), np.float32),
        xcoords=20 + 6 * draw.random(12),
        ycoords=20 + 6 * draw.random(12),
        probeGuess=draw.random((2, 16, 16)) * np.exp(1j * draw.random((2, 16, 16))),
    )
    return examine(tmp_path / "scan.npz")


def colours_of(path: Path) -> int:
    return len(np.unique(imread(path)[..., :3].reshape(-1, 3), axis=0))


def test_a_picture_shows_pattern_probe_and_positions(examination: Examination, tmp_path: Path) -> None:
    plot_scan(examination, tmp_path / "scan.png", ["Something looks wrong."])
    assert imread(tmp_path / "scan.png").shape[1] == 1760
    assert colours_of(tmp_path / "scan.png") > 1000


def test_less_is_drawn_of_a_scan_without_probe_or_with_a_broken_clause(
    examination: Examination, tmp_path: Path
) -> None:
    assert examination.scan is not None
    plot_scan(examination, tmp_path / "whole.png")
    for name, scan in (("probeless", dataclasses.replace(examination.scan, probe=None)), ("broken", None)):
        plot_scan(dataclasses.replace(examination, scan=scan), tmp_path / f"{name}.png")
        assert 50 < colours_of(tmp_path / f"{name}.png") < colours_of(tmp_path / "whole.png")


def test_a_picture_that_cannot_be_written_leaves_nothing(examination: Examination, tmp_path: Path) -> None:
    (tmp_path / "taken.png").mkdir()
    with pytest.raises(ConfigError, match="taken"):
        plot_scan(examination, tmp_path / "taken.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scan.npz", "taken.png"]


def test_a_scan_whose_patterns_cannot_be_read_has_no_picture(examination: Examination, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing to draw"):
        plot_scan(dataclasses.replace(examination, mean_counts=None), tmp_path / "scan.png")


def test_pictures_need_no_global_state_of_matplotlib(examination: Examination, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from ptycho_torch.reconstruction.plots import plot_scan; "
        "from ptycho_torch.data.scan import examine; assert 'matplotlib' not in sys.modules; "
        f"plot_scan(examine(Path({str(examination.path)!r})), Path({str(tmp_path / 'scan.png')!r})); "
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
