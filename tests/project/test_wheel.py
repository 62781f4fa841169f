"""The suite from a wheel, in an empty folder: options, specification and recordings come with it."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel and unpack it, which is all that installing a pure wheel does."""
    pytest.importorskip("hatchling", reason='building a wheel needs hatchling: pip install "ptycho-torch[dev]"')
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    built = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def run(installed: Path, folder: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "pytest", "--pyargs", "conformance", "-q", "-p", "no:cacheprovider", *arguments]
    variables = {**os.environ, "PYTHONPATH": str(installed)}
    result = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stdout


def test_all_tests_are_found_in_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    found = run(installed, tmp_path, "--collect-only")
    assert "test_network.py::test_recording[FLOAT64-n64_g2_base]" in found
    assert not (installed / "conformance" / "selftest").exists()


def test_a_recording_of_the_wheel_is_judged_there(installed: Path, tmp_path: Path) -> None:
    recording = installed / "conformance" / "recordings" / "n64_g1_nopad.npz"
    options = ("--parity-reference", str(recording), "--parity-dtype", "float32", "--parity-device", "cpu")
    assert "passed  n64_g1_nopad on cpu in float32" in run(installed, tmp_path, *options)
    assert list(tmp_path.iterdir()) == []


def test_a_report_is_written_from_the_templates_of_the_wheel(installed: Path, tmp_path: Path) -> None:
    run(installed, tmp_path, "-k", "test_every_stage", "--parity-report", "report")
    text = (tmp_path / "report" / "parity.html").read_text(encoding="utf-8")
    assert "<h1>Is the PyTorch network the TensorFlow network?</h1>" in text
