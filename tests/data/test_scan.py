"""Scans as network input: what is refused, and that real ones pass."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from conformance.cases.scan import scan_case
from conformance.errors import ScanError
from ptycho_torch.errors import DataContractError

Arrays = dict[str, np.ndarray]


@pytest.fixture
def scan() -> Arrays:
    rng = np.random.default_rng(0)
    return {
        "diff3d": rng.random((12, 64, 64)).astype(np.float32),
        "xcoords": 40 + 10 * rng.random(12),
        "ycoords": 40 + 10 * rng.random(12),
        "probeGuess": np.ones((64, 64), np.complex64),
    }


def test_a_scan_becomes_a_case_that_holds_its_groups(scan: Arrays, tmp_path: Path) -> None:
    np.savez(tmp_path / "scan.npz", **scan)
    case = scan_case(tmp_path / "scan.npz")
    assert case.diffraction.shape == (3, 64, 64, 4)
    np.testing.assert_allclose(case.offsets_px.mean(axis=-1), 0, atol=1e-6)
    assert case.settings.padding_px >= np.abs(case.offsets_px).max()
    energy = (case.diffraction.astype(np.float64) ** 2).sum(axis=(1, 2))
    np.testing.assert_allclose(energy.mean(), 1024, rtol=0.1)


WRONG: dict[str, tuple[Callable[[Arrays], Arrays], str]] = {
    "N = 32": (
        lambda a: a | {"diff3d": a["diff3d"][:, :32, :32], "probeGuess": a["probeGuess"][:32, :32]},
        "takes 64, 128, 256",
    ),
    "no probe": (lambda a: {key: array for key, array in a.items() if key != "probeGuess"}, "'probeGuess' is missing"),
    "micrometres": (lambda a: a | {"xcoords": 1e6 * a["xcoords"]}, "object pixels, not metres"),
    "too few": (lambda a: {key: array[:3] if len(array) == 12 else array for key, array in a.items()}, "needs 4"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_scan_that_the_network_cannot_take_is_refused(scan: Arrays, tmp_path: Path, wrong: str) -> None:
    change, message = WRONG[wrong]
    path = tmp_path / "scan.npz"
    np.savez(path, **change(scan))
    with pytest.raises(ScanError) as caught:
        scan_case(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_scan_that_breaks_the_contract_is_refused_by_clause(scan: Arrays, tmp_path: Path) -> None:
    np.savez(tmp_path / "scan.npz", **(scan | {"ycoords": scan["ycoords"] * np.nan}))
    with pytest.raises(DataContractError, match="SCAN-06"):
        scan_case(tmp_path / "scan.npz")
