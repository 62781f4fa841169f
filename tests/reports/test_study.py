"""The study of training: what it keeps, what it resumes from, and when its goals are missed."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("lightning", reason="training needs lightning; pip install lightning")
pytest.importorskip("tensordict", reason="the memory map is a TensorDict; pip install tensordict")

from conformance import cli
from conformance.errors import DocumentError
from conformance.provenance.digest import numerical_digest
from conformance.provenance.evidence import read_evidence, write_evidence
from conformance.session import study
from conformance.session.study import POINTS, Outcome, as_evidence, run_study, write_study_scan
from ptycho_torch.data.scan import examine

Asked = list[tuple[str, str, int]]
ONE = ("n64_g1",)


def outcome(point: str, backend: str, seed: int) -> Outcome:
    noise = 1e-4 * np.sin(seed + (backend == "torch"))
    return Outcome(
        point,
        backend,
        seed,
        loss=-100.0 - seed,
        phase_correlation=0.97 + noise,
        amplitude_error=0.05 + noise / 10,
        phase_error_rad=0.1,
        cpu_seconds=1.0,
        code=numerical_digest("training"),
    )


RUNS = [outcome(point, backend, seed) for point in POINTS for backend in ("torch", "keras") for seed in range(20)]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """Trainings that were asked for, in place of any."""
    found: Asked = []

    def train(point: str, backend: str, seed: int, scan: Path, data_dir: Path) -> Outcome:
        found.append((point, backend, seed))
        return outcome(point, backend, seed)

    monkeypatch.setattr(study, "_train", train)
    return found


def test_a_study_that_was_broken_off_goes_on(asked: Asked, tmp_path: Path) -> None:
    said: list[str] = []
    run_study(tmp_path, 1, said.append, ONE)
    assert asked == [("n64_g1", "keras", 0), ("n64_g1", "torch", 0)]
    outcomes = run_study(tmp_path, 2, said.append, ONE)
    assert asked[2:] == [("n64_g1", "keras", 1), ("n64_g1", "torch", 1)]
    assert [(each.backend, each.seed) for each in outcomes] == [("keras", 0), ("torch", 0), ("keras", 1), ("torch", 1)]
    assert any("phase correlation 0.97" in line for line in said)
    assert examine(tmp_path / "n64_g1.npz").passed


def test_shares_of_two_processes_are_judged_together(
    asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(study, "write_study_scan", lambda path, point: path)
    command = ["study", "training", "-o", str(tmp_path), "--pairs", "2"]
    for share in (["--points", "n64_g1"], ["--points", "n64_g2,n128_g2", "--backend", "torch"], ["--backend", "keras"]):
        assert cli.main([*command, *share]) == 0
    assert len(asked) == len(set(asked)) == 12
    assert capsys.readouterr().out == ""
    assert cli.main([*command, "--evidence", str(tmp_path / "evidence")]) == 1
    assert len(asked) == 12
    shown = capsys.readouterr().out
    assert "missed: ≥ 20" in shown
    assert "n64_g2 phase_correlation torch: 0.970084, 0.970091" in shown
    assert len(read_evidence(tmp_path / "evidence" / "training-study-cpu.json").values) == 12


def test_a_point_that_is_not_there_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["study", "training", "-o", str(tmp_path), "--points", "n32_g1"]) == 1
    assert "no point 'n32_g1'. Choose among n64_g1, n64_g2, n128_g2." in capsys.readouterr().err


def test_a_file_of_another_run_is_refused(asked: Asked, tmp_path: Path) -> None:
    run_study(tmp_path, 1, lambda line: None, ONE)
    first, second = (tmp_path / f"n64_g1-torch-{seed}.json" for seed in (0, 1))
    kept = first.read_text()
    second.write_text(kept)
    with pytest.raises(DocumentError, match=r"1\.json: holds n64_g1-torch-0\.json"):
        run_study(tmp_path, 2, lambda line: None, ONE)
    second.unlink()
    first.write_text(json.dumps(json.loads(kept) | {"code": "0" * 64}))
    with pytest.raises(DocumentError, match="by other code"):
        run_study(tmp_path, 1, lambda line: None, ONE)
    first.write_text(json.dumps(json.loads(kept) | {"loss": "low"}))
    with pytest.raises(DocumentError, match="loss"):
        run_study(tmp_path, 1, lambda line: None, ONE)


@pytest.mark.parametrize("name", POINTS)
def test_a_scan_is_the_same_everywhere(name: str, tmp_path: Path) -> None:
    first, second = (np.load(write_study_scan(tmp_path / f"{each}.npz", POINTS[name])) for each in "ab")
    assert first["diff3d"].shape == (POINTS[name].patterns, POINTS[name].N, POINTS[name].N)
    for key in first.files:
        np.testing.assert_array_equal(first[key], second[key])


def test_ends_that_differ_only_by_noise_are_equivalent_and_every_value_is_kept(tmp_path: Path) -> None:
    evidence = as_evidence(RUNS, "python -m conformance study training")
    assert not evidence.missed
    assert evidence.values["n128_g2 phase_correlation torch"] == tuple(
        each.phase_correlation for each in RUNS if (each.point, each.backend) == ("n128_g2", "torch")
    )
    assert read_evidence(write_evidence(tmp_path, evidence)) == evidence


@pytest.mark.parametrize(("measure", "shift"), [("phase_correlation", -0.01), ("amplitude_error", 0.0005)])
def test_a_shift_of_the_margin_misses_its_goal(measure: str, shift: float) -> None:
    wrong = [
        dataclasses.replace(each, **{measure: getattr(each, measure) + shift})
        if (each.point, each.backend) == ("n64_g2", "torch")
        else each
        for each in RUNS
    ]
    assert as_evidence(wrong, "python").missed == (f"n64_g2_{measure}_p",)


def test_a_study_that_was_too_short_misses_its_goals() -> None:
    few = as_evidence([each for each in RUNS if each.seed < 19], "python")
    assert few.missed == tuple(f"{name}_pairs" for name in POINTS)
    blank = as_evidence(
        [dataclasses.replace(each, phase_correlation=0.1 + each.seed * 1e-6) for each in RUNS], "python"
    )
    assert blank.missed == tuple(f"{name}_phase_correlation_reference_mean" for name in POINTS)


def test_a_run_without_its_pair_is_no_evidence() -> None:
    without: list[Any] = RUNS[1:]
    with pytest.raises(DocumentError, match="n64_g1: found runs without their pairs"):
        as_evidence(without, "python")
