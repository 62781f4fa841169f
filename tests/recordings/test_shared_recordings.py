"""Every recording and real scan that is at hand but no part of the repository."""

from __future__ import annotations

from pathlib import Path

import pytest

from conformance.report.results import headline
from conformance.session.bench import Bench, plan

RECORDINGS = (
    "n64_g1_base",
    "n64_g1_objsmall",
    "n64_g2_base",
    "n64_g2_mask_sigma",
    "n64_g2_nopad",
    "n64_g2_probesmall",
    "n64_g2_softplus",
    "n128_g2_base",
)
SCANS = ("siemens_star_n64", "siemens_star_n128")


def existing(path: Path) -> str:
    if not path.is_file():
        pytest.skip(f"{path} is absent")
    return str(path)


@pytest.mark.parametrize("name", RECORDINGS)
def test_a_recording_passes(shared: Path, name: str) -> None:
    """Stages, gradients, losses and training, free-running and teacher-forced, in both dtypes."""
    (planned,) = plan(existing(shared / "goldens" / f"{name}.npz"), None, "quick")
    bench = Bench()
    assert all(verdict.passed for verdict in bench.record(planned).values())
    for dtype in ("float64", "float32"):
        report = bench.report(planned, "cpu", dtype)
        assert report.passed, headline(report)


@pytest.mark.parametrize("name", SCANS)
def test_a_real_scan_passes(shared: Path, name: str) -> None:
    """All stages on measured patterns and positions."""
    (planned,) = plan(None, existing(shared / "data" / f"{name}.npz"), "quick")
    bench = Bench()
    for dtype in ("float64", "float32"):
        report = bench.report(planned, "cpu", dtype)
        assert report.passed, headline(report)
