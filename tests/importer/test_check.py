"""``ptycho-torch check-data`` as a user types it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ptycho_torch.commands import cli

Arrays = dict[str, np.ndarray]


@pytest.fixture
def scan() -> Arrays:
    draw = np.random.default_rng(0)
    return {
        "diff3d": draw.random((12, 16, 16), np.float32),
        "xcoords": 20 + 6 * draw.random(12),
        "ycoords": 20 + 6 * draw.random(12),
        "probeGuess": np.ones((16, 16), np.complex64),
    }


@pytest.fixture
def folder(scan: Arrays, tmp_path: Path) -> Path:
    """Two good scans, and between them one without xcoords and with a negative amplitude."""
    scans = tmp_path / "scans"
    scans.mkdir()
    np.savez(scans / "a.npz", **scan)
    np.savez(scans / "c.npz", **scan, note=np.array("hello"))
    broken = {key: array for key, array in scan.items() if key != "xcoords"}
    broken["diff3d"] = broken["diff3d"].copy()
    broken["diff3d"][7, 3, 5] = -1
    np.savez(scans / "b.npz", **broken)
    return scans


def check(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, list[str]]:
    status = cli.main(["check-data", "--no-hints", *map(str, arguments)])
    return status, capsys.readouterr().out.splitlines()


def test_a_good_scan_passes_and_shows_what_follows_from_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, lines = check(capsys, folder / "a.npz", "-v")
    assert status == 0
    assert lines[0].startswith(f"{folder / 'a.npz'}: 12 patterns of 16 × 16 pixels")
    assert sum(line.startswith("  holds ") for line in lines) == 16
    assert any("g = 2" in line and "max_position_jitter = " in line for line in lines)
    assert lines[-1] == "1 of 1 files hold every clause"


def test_clauses_that_hold_are_told_on_request_only(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, lines = check(capsys, folder / "c.npz")
    assert [line for line in lines if "holds" in line or "SCAN-" in line] == []
    assert lines[-1] == "1 of 1 files hold every clause (1 notices: -v shows them)"


def test_it_ends_with_the_verdict_and_the_hints(
    scan: Arrays, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.npz", "b.npz"):
        np.savez(tmp_path / name, **(scan | {"xcoords": 1e-6 * scan["xcoords"], "ycoords": 1e-6 * scan["ycoords"]}))
    assert cli.main(["check-data", str(tmp_path)]) == 0
    verdict, *hints = capsys.readouterr().out.splitlines()[-7:]
    assert verdict.startswith("2 of 2 files hold every clause")
    kinds = ("hint (position-unit): Positions span", "hint (photons): nphotons = ", "train stops at these")
    expected = [(name, kind) for name in ("a.npz", "b.npz") for kind in kinds]
    for (name, kind), hint in zip(expected, hints, strict=True):
        assert hint.startswith(f"  {tmp_path / name}: {kind}")
    assert hints[-1].endswith("unless --accept position-unit")


def test_one_broken_file_among_good_ones_is_told_apart(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, lines = check(capsys, folder, "-v")
    assert status == 1
    assert lines[-2] == "2 of 3 files hold every clause"
    assert lines[-1] == f"  {folder / 'b.npz'}: breaks SCAN-04, SCAN-06"
    broken = [line.split()[1] for line in lines if line.startswith("  BROKEN")]
    assert broken == ["SCAN-04", "SCAN-06"]
    assert any("key 'diff3d': found -1 at row 3, column 5 of pattern 7" in line for line in lines)
    assert any("key 'xcoords': found no such member" in line for line in lines)
    assert any("notice" in line and "not read: note" in line for line in lines)


def test_a_path_that_is_not_there_fails_with_its_clause(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, lines = check(capsys, tmp_path / "nowhere")
    assert status == 1
    assert any("SCAN-14" in line and "no such file or folder" in line for line in lines)


def test_a_scan_of_too_few_points_says_so_beside_its_clauses(
    scan: Arrays, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "few.npz", **{key: array[:3] if len(array) == 12 else array for key, array in scan.items()})
    status, lines = check(capsys, tmp_path / "few.npz")
    assert status == 0
    assert any("GROUP-01" in line for line in lines)


def test_probes_of_a_folder_are_judged_for_the_scan_of_their_stem(
    folder: Path, scan: Arrays, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    probes = tmp_path / "probes"
    probes.mkdir()
    for stem in ("a", "b"):
        np.savez(probes / f"{stem}.npz", probe=scan["probeGuess"])
    (folder / "b.npz").unlink()
    status, lines = check(capsys, folder, "--probe-dir", probes, "-v")
    assert status == 1
    assert any("notice" in line and str(probes / "a.npz") in line for line in lines)
    assert any("PROBE-02" in line and "no probe c.npz" in line for line in lines)


def test_pictures_are_written_where_asked(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check(capsys, folder, "--plot", tmp_path / "pictures")
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == [
        "a.png",
        "c.png",
    ]  # b has patterns that cannot be read


def test_the_module_runs_as_a_command_with_help_and_an_example() -> None:
    for arguments in ((), ("check-data",), ("convert-scan",)):
        command = [sys.executable, "-m", "ptycho_torch", *arguments, "--help"]
        result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert result.returncode == 0, result.stderr
        assert "example: ptycho-torch" in result.stdout


def test_an_error_is_one_line_and_debug_shows_the_traceback(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    arguments = ["check-data", str(tmp_path), "--plot", str(tmp_path / "file")]
    command = [sys.executable, "-m", "ptycho_torch", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 1
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    result = subprocess.run([*command, "--debug"], capture_output=True, text=True, timeout=60, check=False)
    assert "Traceback" in result.stderr
