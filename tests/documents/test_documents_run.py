"""The tutorial, the examples of files and the examples in Python run as printed, one page after the other."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.support.document_blocks import REPOSITORY, blocks, prepare, run_blocks
from tests.support.training_runs import write_scan

DOCS = REPOSITORY / "docs"

pytest.importorskip("tensordict", reason="the memory map is a TensorDict; pip install tensordict")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a reader has followed the tutorial."""
    folder = tmp_path_factory.mktemp("tutorial")
    prepare(folder)
    run_blocks(DOCS / "tutorial.md", folder, activated=True)
    return folder


def test_the_tutorial_leaves_the_files_that_it_shows(folder: Path) -> None:
    for name in ("scan.png", "run/history.png", "run/reconstructions/star.npz", "objects/star.png", "comparison.png"):
        assert (folder / name).is_file(), name
    assert "max_epochs" in (folder / "settings.yaml").read_text(encoding="utf-8")


def test_the_examples_of_files_go_on_where_the_tutorial_ends(folder: Path) -> None:
    said = run_blocks(DOCS / "file_formats.md", folder, activated=True)
    assert "1 of 1 files" in said
    first, second = (np.load(folder / name) for name in ("mine.npz", "sample.npz"))
    # Out as metres and counts, in as pixels and amplitude: the same scan, shifted as a whole.
    np.testing.assert_allclose(second["diff3d"], first["diff3d"], rtol=1e-6)
    for axis in ("xcoords", "ycoords"):
        np.testing.assert_allclose(np.diff(second[axis]), np.diff(first[axis]), rtol=1e-9, atol=1e-9)


def test_the_parts_run_from_python(tmp_path: Path) -> None:
    prepare(tmp_path)
    write_scan(tmp_path / "scans" / "star.npz", patterns=24)
    said = run_blocks(DOCS / "python.md", tmp_path, activated=True)
    assert "torch.Size([8, 1, 64, 64])" in said
    assert "torch.Size([16, 4, 64, 64])" in said
    assert "max_position_jitter" in said
    assert (tmp_path / "objects" / "star.npz").is_file()
    assert (tmp_path / "run-of-arrays" / "checkpoints" / "last.ckpt").is_file()


def test_the_network_trains_in_twenty_lines() -> None:
    ((_, code),) = [block for block in blocks(DOCS / "python.md") if "PtychoNet(settings)" in block[1]]
    assert len([line for line in code.splitlines() if line.strip()]) <= 20


def test_parameters_of_the_reference_become_settings(tmp_path: Path) -> None:
    ((_, code),) = [block for block in blocks(DOCS / "migration.md") if block[0] == "python"]
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("60\n")
    assert "n_subsample 512  None collision" in result.stdout


def test_every_picture_of_the_documents_is_shown_and_every_page_is_in_the_index() -> None:
    texts = {path: path.read_text(encoding="utf-8") for path in [REPOSITORY / "README.md", *DOCS.rglob("*.md")]}
    for picture in (DOCS / "pictures").glob("*.png"):
        assert any(f"pictures/{picture.name})" in text for text in texts.values()), picture.name
    index = texts[DOCS / "README.md"]
    for path in texts:
        if path.is_relative_to(DOCS) and path.name != "README.md":
            assert f"]({path.relative_to(DOCS).as_posix()})" in index, path.name
