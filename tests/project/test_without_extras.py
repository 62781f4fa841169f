"""A machine without TensorFlow, Keras, MLflow and tensordict: everything numerical is judged all the same."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from conformance.recordings.bundle import RECORDINGS

REPOSITORY = Path(__file__).parents[2]
ABSENT = ("tensorflow", "keras", "mlflow", "tensordict")


def run(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run pytest in a process in which these packages cannot be imported, nor found."""
    plugin = tmp_path / "absent.py"
    plugin.write_text(f"import sys\n\nfor name in {ABSENT!r}:\n    sys.modules[name] = None\n")
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "absent", "-p", "no:cacheprovider", *arguments]
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(REPOSITORY)])}
    return subprocess.run(command, cwd=REPOSITORY, env=variables, capture_output=True, text=True, check=False)


def test_every_module_is_collected(tmp_path: Path) -> None:
    result = run(tmp_path, "conformance", "--collect-only", "--parity-tier", "full")
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]


def test_a_recording_is_judged_training_too(tmp_path: Path) -> None:
    recording = str(RECORDINGS / "n64_g1_nopad.npz")
    result = run(tmp_path, "conformance", "--parity-reference", recording, "--parity-dtype", "float32")
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    assert "skipped" not in result.stdout.splitlines()[-1]
    assert "TensorFlow is not installed" in result.stdout


def test_what_needs_tensordict_says_so(tmp_path: Path) -> None:
    result = run(tmp_path, "conformance/test_data_contract.py")
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    assert "the memory map is a TensorDict; pip install tensordict" in result.stdout
