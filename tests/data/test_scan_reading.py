"""Scan files that contain the same kind of data in different ways are read alike."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conformance.checks.light import draw_wave
from conformance.judge.agreement import FLOAT64, assert_agrees
from ptycho_torch.data.scan import open_scan
from tests.support.scan_scenes import Arrays

SIDE_PX, PATTERNS = 6, 11
CHUNK_BYTES = 3 * SIDE_PX**2 * 4
"""Three patterns of float32 at once, and more or fewer of other types."""


def draw_scan_files() -> dict[str, dict[str, Any]]:
    rng = np.random.default_rng(37)
    whole = (PATTERNS, SIDE_PX, SIDE_PX)
    probes = draw_wave(rng, 3, SIDE_PX, SIDE_PX)
    x, y, x_start, y_start = rng.uniform(10, 60, (4, PATTERNS))
    frames = rng.gamma(2.0, 3.0, whole)
    bad = np.zeros((SIDE_PX, SIDE_PX), np.uint8)
    bad[1, 4] = bad[3, 0] = 1
    start = {"xcoords_start": x_start, "ycoords_start": y_start}
    geometry = {"wavelength_m": 1.5e-10, "detector_distance_m": 2.25, "detector_pixel_m": 7.5e-5}
    return {
        "all in Fortran order": {
            "diff3d": np.asfortranarray(frames.astype(np.float32)), "xcoords": x, "ycoords": y, **start,
            "probeGuess": np.asfortranarray(probes[0]), "bad_pixels": np.asfortranarray(bad),
        },
        "float64, modes": {
            "diff3d": frames, "xcoords": x.astype(">f8"), "ycoords": y.astype(np.float32), "probeGuess": probes,
            "scan_index": rng.integers(0, 9, PATTERNS).astype(">i4"), **geometry,
        },
        "float16, whole positions, a channel of the probe": {
            "diff3d": frames.astype(np.float16), "xcoords": np.arange(PATTERNS) ** 2, "ycoords": y.astype(np.float16),
            "probeGuess": np.asfortranarray(probes[1][..., None]), "bad_pixels": bad.astype(bool),
        },
        "older name, real probe": {
            "diffraction": frames.astype(">f4"), "xcoords": x, "ycoords": y, **start,
            "probeGuess": probes[2].real.astype(np.float32), "measurement_domain": np.array("amplitude"),
        },
        "counts that are declared amplitude": {
            "diff3d": rng.integers(0, 4000, whole).astype(np.uint16), "xcoords": x, "ycoords": y, **start,
            "probeGuess": np.asfortranarray(probes[:2]), "measurement_domain": np.array("normalized_amplitude"),
        },
    }  # fmt: skip


FILES = draw_scan_files()


def contents_of(members: Mapping[str, Any]) -> Arrays:
    """Return what a scan file contains, by the tables of the contract; NaN for an unknown object pixel."""
    stored = np.asarray(members["diff3d" if "diff3d" in members else "diffraction"])
    bad = np.asarray(members.get("bad_pixels", np.zeros((SIDE_PX, SIDE_PX)))).astype(bool)
    frames = np.where(bad, np.float32(0), stored.astype(np.float32))
    positions = {
        suffix: np.stack([np.asarray(members[f"{letter}coords{suffix}"], np.float64) for letter in "xy"], axis=1)
        for suffix in ("", "_start")
        if f"xcoords{suffix}" in members
    }
    probe = np.asarray(members["probeGuess"])
    modes = probe[None] if probe.ndim == 2 else probe[None, ..., 0] if probe.shape[-1] == 1 else probe
    wavelength, distance, pixel = (
        members.get(name, np.nan) for name in ("wavelength_m", "detector_distance_m", "detector_pixel_m")
    )
    return {
        "patterns": frames,
        "first pattern of each chunk": np.arange(0, PATTERNS, CHUNK_BYTES // stored[0].nbytes),
        "energy": np.square(frames, dtype=np.float64).sum(axis=(1, 2)),
        "positions": positions[""],
        "has nominal positions": np.array("_start" in positions),
        "nominal positions": positions.get("_start", positions[""]),
        "probe": modes.astype(np.complex64),
        "scan index": np.asarray(members.get("scan_index", np.zeros(PATTERNS))).astype(np.int64),
        "good pixels": ~bad,
        "object pixel": np.array(wavelength * distance / (SIDE_PX * pixel)),
    }


@pytest.mark.parity_clause("STEP-DATA", "SCAN-02", "SCAN-06", "SCAN-07", "SCAN-08", "SCAN-10", "SCAN-11")
@pytest.mark.parametrize("writer", [np.savez, np.savez_compressed], ids=["stored", "deflated"])
@pytest.mark.parametrize("name", FILES)
def test_a_scan_is_read_whatever_its_types_order_and_names(tmp_path: Path, name: str, writer: Any) -> None:
    writer(tmp_path / "scan.npz", **FILES[name])
    scan = open_scan(tmp_path / "scan.npz")
    chunks = [
        (first, amplitude.copy(), energy.copy())
        for first, amplitude, energy in scan.stack.chunks(scan.stack.audit(), CHUNK_BYTES)
    ]
    good, nominal, pixel = scan.stack.good_pixels, scan.nominal_positions_px, scan.object_pixel_m
    found = {
        "patterns": np.concatenate([amplitude for _, amplitude, _ in chunks]),
        "first pattern of each chunk": np.array([first for first, _, _ in chunks]),
        "energy": np.concatenate([energy for _, _, energy in chunks]),
        "positions": scan.positions_px,
        "has nominal positions": np.array(nominal is not None),
        "nominal positions": scan.positions_px if nominal is None else nominal,
        "probe": np.empty(0) if scan.probe is None else scan.probe,
        "scan index": scan.scan_index,
        "good pixels": np.ones((SIDE_PX, SIDE_PX), bool) if good is None else good,
        "object pixel": np.array(np.nan if pixel is None else pixel),
    }
    assert_agrees(contents_of(FILES[name]), found, FLOAT64)
