"""The command as a user types it: wrong use is answered in one line, right use leaves a report."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from conformance import test_float64
from conformance.provenance.digest import numerical_digest
from conformance.recordings.bundle import RECORDINGS
from conformance.report.results import read_report
from tests.support.html_pages import check

REPOSITORY = Path(__file__).parents[2]
EMBEDDED = RECORDINGS / "n64_g2_base.npz"
USAGE_ERROR = 4


def run(*arguments: str, folder: Path = REPOSITORY, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    variables = {**os.environ, **environment}
    return subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture
def error_of(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Run the suite in this process; return the one line with which it is refused."""
    monkeypatch.chdir(REPOSITORY)

    def refused(*arguments: str) -> str:
        capsys.readouterr()
        code = pytest.main(["-q", "-p", "no:cacheprovider", "conformance", *arguments])
        said = "".join(capsys.readouterr())
        assert code == USAGE_ERROR, said
        assert "Traceback" not in said
        (line,) = [line for line in said.splitlines() if line.startswith("ERROR")]
        return line

    return refused


def test_a_missing_reference_is_one_clear_line(error_of: Callable[..., str]) -> None:
    assert "nowhere.npz: found a file that cannot be read" in error_of("--parity-reference", "nowhere.npz")


def test_a_seed_that_is_none_is_one_clear_line(error_of: Callable[..., str]) -> None:
    assert "--parity-seed: found '-3'; expected a whole number" in error_of("--parity-seed=-3")


def test_clean_draws_have_the_seed_that_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []
    notes: list[str] = []
    monkeypatch.setattr(test_float64, "clean_runs", lambda graph, seed, *_: seeds.append(seed) or [])
    for seed in (0, 0, 5):
        test_float64.test_clean_runs_raise_no_alarm("cpu", "quick", seed, notes)
    assert seeds[:4] == seeds[4:8]
    assert not set(seeds[:4]) & set(seeds[8:])
    assert "4 draws of seed 5" in notes[-1]


def test_a_truncated_reference_is_one_clear_line(tmp_path: Path, error_of: Callable[..., str]) -> None:
    path = tmp_path / "cut.npz"
    path.write_bytes(EMBEDDED.read_bytes()[:100_000])
    assert "expected a complete NPZ file" in error_of("--parity-reference", str(path))


def test_an_unknown_key_is_one_clear_line(tmp_path: Path, error_of: Callable[..., str]) -> None:
    path = tmp_path / "odd.npz"
    with np.load(EMBEDDED) as recording:
        np.savez(path, **recording, **{"stage/encoder.7.pool": np.zeros(3)})
    assert "unknown key 'stage/encoder.7.pool'" in error_of("--parity-reference", str(path))


def test_a_report_that_cannot_be_written_is_said_at_once(tmp_path: Path, error_of: Callable[..., str]) -> None:
    (tmp_path / "file").write_text("")
    assert "no folder can be made" in error_of("--parity-report", str(tmp_path / "file"))


def test_a_previous_report_that_cannot_be_read_is_said_at_once(tmp_path: Path, error_of: Callable[..., str]) -> None:
    (tmp_path / "old.json").write_text("{}")
    arguments = ("--parity-previous", str(tmp_path / "old.json"))
    assert "give --parity-report DIR too" in error_of(*arguments)
    message = error_of("--parity-report", str(tmp_path / "out"), *arguments)
    assert "old.json: is no report file" in message


def test_a_folder_of_scans_is_judged_clause_by_clause(tmp_path: Path) -> None:
    """One broken file among good ones: its clauses fail by name, and the others are judged all the same."""
    draw = np.random.default_rng(0)
    scan = {
        "diff3d": draw.random((9, 32, 32), np.float32),
        "xcoords": 9 * draw.random(9),
        "ycoords": 9 * draw.random(9),
        "probeGuess": np.ones((32, 32), np.complex64),
    }
    np.savez(tmp_path / "a_good.npz", **scan)
    np.savez(tmp_path / "b_broken.npz", **{key: array for key, array in scan.items() if key != "xcoords"})
    result = run("conformance", "--parity-scan", str(tmp_path), "-vv")
    assert result.returncode == 1
    assert "test_scan_clause[SCAN-06-a_good] PASSED" in result.stdout
    assert "test_scan_clause[SCAN-06-b_broken] FAILED" in result.stdout
    assert "test_scan_clause[SCAN-04-b_broken] PASSED" in result.stdout
    assert "key 'xcoords': found no such member" in result.stdout
    assert "BROKEN     SCAN-06" in result.stdout


def test_a_folder_without_scans_is_one_clear_line(tmp_path: Path, error_of: Callable[..., str]) -> None:
    assert "found no .npz file" in error_of("--parity-scan", str(tmp_path))


def test_two_cases_at_once_are_refused(error_of: Callable[..., str]) -> None:
    message = error_of("--parity-scan", "a.npz", "--parity-reference", "b.npz")
    assert "give one of them" in message


@pytest.mark.parametrize("flags", [["--no-summary"], ["-p", "no:junitxml"], ["-n", "2", "-x"]])
def test_a_report_is_written_whatever_the_flags_are(flags: list[str], tmp_path: Path) -> None:
    if "-n" in flags:
        pytest.importorskip("xdist", reason="without pytest-xdist there is no -n")
    result = run("conformance/test_spec.py", *flags, "--parity-report", str(tmp_path))
    assert result.returncode == 0, result.stdout + result.stderr
    report = json.loads((tmp_path / "parity.json").read_text(encoding="utf-8"))
    assert report["tests"]["passed"] == len(report["results"]) - report["tests"]["skipped"] > 40
    assert report["tests"]["failed"] == 0
    assert ("-n was left out" in result.stdout) == ("-n" in flags)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the CUDA device whose absence is tested")
def test_absent_cuda_is_one_clear_line(error_of: Callable[..., str]) -> None:
    assert "finds no CUDA device here" in error_of("--parity-device", "cuda")


def test_a_row_that_does_not_exist_is_one_clear_line(error_of: Callable[..., str]) -> None:
    assert "found no row 'fp8'; expected none, all, or some of float32-contiguous" in error_of(
        "--parity-variants", "fp8"
    )


@pytest.mark.parametrize("option", ["--parity-device", "--parity-dtype", "--parity-tier"])
def test_an_unknown_choice_lists_the_known_ones(option: str) -> None:
    result = run("conformance", option, "banana")
    assert result.returncode == USAGE_ERROR
    assert "invalid choice: 'banana'" in result.stderr


def test_a_recording_alone_leaves_a_report(tmp_path: Path) -> None:
    """Float32 replay of the embedded recording; every stage is a test whose id names clause and stage."""
    result = run(
        "conformance",
        "--parity-reference",
        str(EMBEDDED),
        "--parity-dtype",
        "float32",
        "--parity-device",
        "cpu",
        "--parity-report",
        str(tmp_path / "out"),
        "-vv",
    )
    assert result.returncode == 0, result.stdout[-3000:]
    name = "test_stage[decoder_amp.outer.conv1-FORWARD-FORCED-n64_g2_base-cpu-float32]"
    (test,) = ElementTree.parse(tmp_path / "out" / "parity.xml").findall(f".//testcase[@name='{name}']")
    properties = [(each.get("name"), each.get("value")) for each in test.iter("property")]
    assert {("clause", "FORWARD-FORCED"), ("clause", "decoder_{D}.outer.conv1"), ("device", "cpu")} <= set(properties)
    check((tmp_path / "out" / "parity.html").read_text())
    assert "test_stage[decoder_amp.outer.conv1-FORWARD-FORCED-n64_g2_base-cpu-float32] PASSED" in result.stdout
    assert "passed  n64_g2_base on cpu in float32" in result.stdout
    report = read_report(tmp_path / "out" / "parity.json")
    assert report["passed"] is True
    assert report["numerical_digest"] == numerical_digest()
    assert {each["outcome"] for each in report["results"]} <= {"passed", "skipped"}
    assert all(each["clauses"] for each in report["results"])
    (case,) = report["cases"]
    stages = {verdict["stage"] for verdict in case["verdicts"]}
    assert {"encoder.0.conv1", "merged", "predicted_intensity", "loss", "train"} <= stages
    assert all(verdict["candidate"]["e"] <= verdict["budget"]["e"] for verdict in case["verdicts"])
    assert "share of budget" in (tmp_path / "out" / "parity.txt").read_text()


def test_operations_are_judged_one_by_one() -> None:
    result = run("conformance", "--parity-reference", str(RECORDINGS / "ops_1.npz"), "-vv")
    assert result.returncode == 0, result.stdout[-3000:]
    passed = [line for line in result.stdout.splitlines() if "test_operation" in line and "PASSED" in line]
    assert any("translate" in line and "float64" in line for line in passed)
    assert "test_stage" not in result.stdout


def test_a_failing_subject_is_named_in_the_headline(tmp_path: Path) -> None:
    """A wrong π, put in by a plugin of this test, is found and named."""
    plugin = tmp_path / "wrong_pi.py"
    plugin.write_text(
        "from conformance.selftest.network import NETWORK\n"
        "(fault,) = [each for each in NETWORK if each.name == 'π dropped']\n"
        "seeded = fault.seeded()\n"
        "seeded.__enter__()\n"
    )
    arguments = ("-p", "wrong_pi", "conformance", "--parity-reference", str(EMBEDDED), "--parity-dtype", "float64")
    result = run(*arguments, PYTHONPATH=str(tmp_path))
    assert result.returncode == 1
    assert "first failing teacher-forced stage: decoder_phase.activation" in result.stdout


def test_other_test_suites_are_left_alone(tmp_path: Path) -> None:
    """The plugin is loaded by every pytest run of the environment, and must not import torch for it."""
    (tmp_path / "test_other.py").write_text(
        "import sys\n\n\ndef test_light():\n    assert not {'torch', 'tensorflow'} & set(sys.modules)\n"
    )
    result = run("test_other.py", folder=tmp_path)
    assert result.returncode == 0, result.stdout
    assert "parity" not in result.stdout
