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

from conformance.errors import DocumentError
from conformance.provenance.digest import numerical_digest
from conformance.session import study
from conformance.session.study import Outcome, as_evidence, run_study, write_study_scan
from ptycho_torch.data.scan import examine


def outcome(backend: str, seed: int, **numbers: float) -> Outcome:
    given: dict[str, Any] = {"loss": -100.0 - seed, "phase_correlation": 0.9 + seed / 100, "amplitude_error": 0.05}
    return Outcome(
        backend,
        seed,
        epochs=3,
        groups=400,
        phase_error_rad=0.1,
        seconds=1.0,
        code=numerical_digest("training"),
        **(given | numbers),
    )


@pytest.fixture
def stubs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Trainings that were asked for, in place of any."""
    asked: list[tuple[str, int]] = []

    def stub(backend: str) -> Any:
        def train(scan: Path, data_dir: Path, seed: int, epochs: int, say: Any) -> Outcome:
            asked.append((backend, seed))
            return outcome(backend, seed)

        return train

    monkeypatch.setattr(study, "_train_keras", stub("keras"))
    monkeypatch.setattr(study, "_train_torch", stub("torch"))
    return asked


def test_a_study_that_was_broken_off_goes_on(stubs: list[tuple[str, int]], tmp_path: Path) -> None:
    said: list[str] = []
    run_study(tmp_path, 1, 3, said.append)
    assert stubs == [("keras", 0), ("torch", 0)]
    outcomes = run_study(tmp_path, 2, 3, said.append)
    assert stubs[2:] == [("keras", 1), ("torch", 1)]
    assert [(each.backend, each.seed) for each in outcomes] == [("keras", 0), ("torch", 0), ("keras", 1), ("torch", 1)]
    assert any("phase correlation 0.910" in line for line in said)
    assert examine(tmp_path / "scan.npz").passed


def test_a_file_of_another_run_is_refused(stubs: list[tuple[str, int]], tmp_path: Path) -> None:
    run_study(tmp_path, 1, 3, lambda line: None)
    (tmp_path / "torch-3-1.json").write_text((tmp_path / "torch-3-0.json").read_text())
    with pytest.raises(DocumentError, match="holds seed 0 of torch"):
        run_study(tmp_path, 2, 3, lambda line: None)
    (tmp_path / "torch-3-1.json").unlink()
    kept = json.loads((tmp_path / "torch-3-0.json").read_text())
    (tmp_path / "torch-3-0.json").write_text(json.dumps(kept | {"code": "0" * 64}))
    with pytest.raises(DocumentError, match="by other code"):
        run_study(tmp_path, 1, 3, lambda line: None)
    damaged = json.loads((tmp_path / "torch-3-0.json").read_text()) | {"loss": "low"}
    (tmp_path / "torch-3-0.json").write_text(json.dumps(damaged))
    with pytest.raises(DocumentError, match="loss"):
        run_study(tmp_path, 1, 3, lambda line: None)


def test_the_scan_is_the_same_everywhere_and_large_enough(tmp_path: Path) -> None:
    first, second = (np.load(write_study_scan(tmp_path / f"{name}.npz")) for name in "ab")
    assert len(first["diff3d"]) >= 300
    for name in first.files:
        np.testing.assert_array_equal(first[name], second[name])


def test_goals_are_met_inside_the_reference_s_range_and_missed_outside() -> None:
    runs = [outcome(backend, seed) for backend in ("torch", "keras") for seed in range(5)]
    assert not as_evidence(runs, "python -m conformance study training").missed
    for measure, value in (("loss", -90.0), ("phase_correlation", 0.5), ("amplitude_error", 0.01)):
        wrong = [dataclasses.replace(each, **{measure: value}) if each.backend == "torch" else each for each in runs]
        assert as_evidence(wrong, "python").missed == (f"{measure}_median",)
    early = [dataclasses.replace(each, phase_correlation=0.6) for each in runs]
    assert as_evidence(early, "python").missed == ("reference_phase_correlation_median",)
    assert "seeds" in as_evidence([each for each in runs if each.seed < 2], "python").missed
    with pytest.raises(DocumentError, match="both backends"):
        as_evidence([each for each in runs if each.backend == "torch"], "python")
