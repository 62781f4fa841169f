"""A run leaves the folders of the data as they are, and obeys no settings that lie there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from conformance.commands.words import joined
from conformance.recordings.bundle import RECORDINGS

REPOSITORY = Path(__file__).parents[2]
HOSTILE = {
    "pytest.ini": "[pytest]\naddopts = --no-such-option\npythonpath = .\n",
    "pyproject.toml": "[tool.pytest.ini_options]\naddopts = '--no-such-option'\npythonpath = ['.']\n",
    # Without settings, the folder is taken for the root folder all the same.
    "README": "",
}
CONTRACT = ("--pyargs", "conformance.test_data_contract")
"""The part of the suite that is collected soonest."""

NOTHING_COLLECTED = 5
TRACE = "from pathlib import Path\n\nPath(__file__).with_name('trace').write_text('')\n"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder of data with modules that leave a trace when they are imported."""
    folder = tmp_path / "data"
    folder.mkdir()
    draw = np.random.default_rng(0)
    np.savez(
        folder / "scan.npz",
        diff3d=draw.random((9, 64, 64), np.float32),
        xcoords=9 * draw.random(9),
        ycoords=9 * draw.random(9),
        probeGuess=np.ones((64, 64), np.complex64),
    )
    (folder / "old.json").write_text("{}")
    for name in ("conftest.py", "yaml.py"):
        (folder / name).write_text(TRACE)
    return folder


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    return folder


def run(folder: Path, *words: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run pytest as a user does, with its cache."""
    command = [sys.executable, "-B", "-m", "pytest", *map(str, words)]
    variables = {**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTEST_ADDOPTS": "", **environment}
    return subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=600, check=False)


def chose(result: subprocess.CompletedProcess[str], root: Path) -> None:
    """Fail unless pytest ran with this root folder."""
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"\nrootdir: {root}\n" in result.stdout


@pytest.mark.parametrize(("settings", "place"), [("pytest.ini", "."), ("pyproject.toml", "scan.npz"), ("README", ".")])
def test_settings_beside_the_data_are_not_obeyed(data: Path, elsewhere: Path, settings: str, place: str) -> None:
    (data / settings).write_text(HOSTILE[settings])
    before = sorted(data.iterdir())
    result = run(elsewhere, "--pyargs", "conformance", "--parity-scan", data / place, "-k", "SCAN-01")
    chose(result, elsewhere)
    assert "1 passed" in result.stdout
    assert sorted(data.iterdir()) == before
    assert (elsewhere / ".pytest_cache").is_dir(), "the cache is still kept where no data lie"


@pytest.mark.parametrize(
    "words",
    [
        ("--parity-scan", "{data}", *CONTRACT),
        (*CONTRACT, "--parity-scan={data}"),
        ("--parity-reference", "{data}/recording.npz", *CONTRACT, "--parity-device", "cpu"),
    ],
    ids=" ".join,
)
def test_every_order_and_option_keeps_the_root_folder(data: Path, elsewhere: Path, words: tuple[str, ...]) -> None:
    (data / "pytest.ini").write_text(HOSTILE["pytest.ini"])
    (elsewhere / "cpu").mkdir()  # a value that no one means as a path
    if "recording" in "".join(words):
        shutil.copy(RECORDINGS / "n64_g2_base.npz", data / "recording.npz")
    before = sorted(data.iterdir())
    result = run(elsewhere, *(word.format(data=data) for word in words), "--collect-only")
    assert f"\nrootdir: {elsewhere}\n" in result.stdout
    assert result.returncode in (0, NOTHING_COLLECTED), result.stdout + result.stderr
    assert sorted(data.iterdir()) == before


def test_words_of_the_environment_are_not_misread(data: Path, elsewhere: Path) -> None:
    (data / "pytest.ini").write_text(HOSTILE["pytest.ini"])
    before = sorted(data.iterdir())
    chose(run(elsewhere, *CONTRACT, "--collect-only", PYTEST_ADDOPTS=f"--parity-scan '{data}'"), elsewhere)
    assert sorted(data.iterdir()) == before


def test_the_settings_of_the_repository_are_kept(data: Path) -> None:
    (data / "pytest.ini").write_text(HOSTILE["pytest.ini"])
    before = sorted(data.iterdir())
    words = ("--parity-scan", data, "conformance/test_data_contract.py", "--collect-only", "-p", "no:cacheprovider")
    result = run(REPOSITORY, *words)
    chose(result, REPOSITORY)
    assert "configfile: pyproject.toml" in result.stdout
    assert sorted(data.iterdir()) == before


def test_a_folder_of_reports_gets_reports_only(data: Path, elsewhere: Path) -> None:
    """A second run finds the folder of the first one."""
    (data / "pytest.ini").write_text(HOSTILE["pytest.ini"])
    before = {each.name for each in data.iterdir()}
    words = (*CONTRACT, "--parity-report", data, "--parity-device", "cpu", "-k", "test_scan_clause")
    chose(run(elsewhere, *words), elsewhere)
    reports = {"parity.html", "parity.json", "parity.txt", "parity.xml"}
    assert {each.name for each in data.iterdir()} == before | reports


def test_the_folder_of_a_previous_report_is_not_the_root_folder(data: Path, elsewhere: Path) -> None:
    (data / "pytest.ini").write_text(HOSTILE["pytest.ini"])
    before = sorted(data.iterdir())
    words = (*CONTRACT, "--parity-report", "out", "--parity-previous", data / "old.json")
    assert "old.json: is no report file" in run(elsewhere, *words).stderr
    assert sorted(data.iterdir()) == before


def test_no_cache_is_kept_in_the_folder_of_the_data(data: Path) -> None:
    """Where a user stands among the data, pytest rightly takes that folder for its root."""
    for name in ("conftest.py", "yaml.py"):
        (data / name).unlink()
    before = sorted(data.iterdir())
    words = (*CONTRACT, "--parity-scan", "scan.npz", "-k", "SCAN-01")
    chose(run(data, *words), data)
    assert sorted(data.iterdir()) == before
    chose(run(data, *words, "--last-failed"), data)
    assert (data / ".pytest_cache").is_dir(), "whoever asks for the cache gets it"


def test_a_run_within_a_program_returns_its_status(data: Path, elsewhere: Path) -> None:
    (data / "pytest.ini").write_text(HOSTILE["pytest.ini"])
    words = [*CONTRACT, "--parity-scan", str(data), "--collect-only"]
    code = f"import pytest\nprint('status', int(pytest.main({words!r})))"
    variables = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-B", "-c", code]
    result = subprocess.run(command, cwd=elsewhere, env=variables, capture_output=True, text=True, check=True)
    assert "status 0" in result.stdout
    assert not (data / "trace").exists()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], []),
        (["--parity-scan"], ["--parity-scan"]),
        (["--parity-scan", "-q"], ["--parity-scan", "-q"]),
        (["--parity-scan=a", "b"], ["--parity-scan=a", "b"]),
        (["--other", "a", "--parity-tier", "full", "b"], ["--other", "a", "--parity-tier=full", "b"]),
    ],
)
def test_a_value_is_joined_to_its_option(words: list[str], expected: list[str]) -> None:
    assert joined(words) == expected
    assert joined(expected) == expected
