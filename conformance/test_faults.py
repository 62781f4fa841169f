"""Broken subjects: every fault of the catalogue is seeded, and has to be detected, placed and named."""

from __future__ import annotations

from pathlib import Path

import pytest

from conformance.evidence import write_evidence
from conformance.suite import DTYPES
from ptycho_tf_bridge import backend

pytestmark = pytest.mark.parity_faults


@pytest.fixture
def needs_the_study(request: pytest.FixtureRequest, parity_tier: str) -> None:
    """Skip where nobody asked for minutes of seeded faults."""
    if parity_tier != "study" and not request.config.getoption("--parity-faults"):
        pytest.skip("seeding every fault takes minutes: --parity-faults, or --parity-tier study")


@pytest.mark.parity_clause("FAULTS")
@pytest.mark.usefixtures("needs_the_study")
def test_faults_are_detected_placed_and_named(request: pytest.FixtureRequest, parity_notes: list[str]) -> None:
    """Detection, place and cause reach their goals in each dtype, with the recorded and with the live envelope."""
    pytest.importorskip("lightning", reason="faults of training need lightning; pip install lightning")
    pytest.importorskip("tensordict", reason="faults of the data path need tensordict; pip install tensordict")
    from conformance.matrix import LIVE, REPLAY, run_matrix

    chosen = request.config.getoption("--parity-dtype")
    dtypes = DTYPES if chosen == "all" else (chosen,)
    envelopes = (REPLAY, LIVE) if backend.is_available() else (REPLAY,)
    capture = request.config.pluginmanager.getplugin("capturemanager")

    def progress(line: str) -> None:
        with capture.global_and_fixture_disabled():
            print(line, flush=True)  # noqa: T201 - minutes of work show where they are

    matrix = run_matrix(dtypes, envelopes, progress)
    parity_notes += matrix.describe()
    directory = request.config.getoption("--parity-report")
    if directory:
        for each in matrix.evidence("pytest conformance --parity-faults"):
            parity_notes.append(f"wrote {write_evidence(Path(directory), each)}")
    assert not matrix.missed_goals, "\n".join(matrix.missed_goals)
