"""The README's examples run as printed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

README = Path(__file__).parents[1] / "README.md"


def example_that(imports: str) -> str:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    (block,) = [block for block in blocks if imports in block]
    return str(block)


def run(code: str, folder: Path) -> str:
    (folder / "example.py").write_text(code, encoding="utf-8")
    result = subprocess.run(
        [sys.executable, "example.py"], cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_network_trains_in_twenty_lines(tmp_path: Path) -> None:
    code = example_that("ptycho_torch.model")
    assert len([line for line in code.splitlines() if line.strip()]) <= 20
    assert "torch.Size([8, 1, 64, 64])" in run(code, tmp_path)


def test_a_folder_of_scans_becomes_batches(tmp_path: Path) -> None:
    pytest.importorskip("tensordict", reason="the memory map is a TensorDict; pip install tensordict")
    draw = np.random.default_rng(0)
    (tmp_path / "scans").mkdir()
    np.savez(
        tmp_path / "scans" / "a.npz",
        diff3d=draw.random((40, 64, 64), np.float32),
        xcoords=50 * draw.random(40),
        ycoords=50 * draw.random(40),
        probeGuess=np.ones((64, 64), np.complex64),
    )
    output = run(example_that("ptycho_torch.dset_loader_pt_mmap"), tmp_path)
    assert "torch.Size([16, 4, 64, 64])" in output
    assert "max_position_jitter" in output


def test_parameters_of_the_reference_become_settings(tmp_path: Path) -> None:
    output = run(example_that("ptycho_tf_bridge.config"), tmp_path)
    assert output.startswith("60\n")
    assert "n_subsample 512  None collision" in output
