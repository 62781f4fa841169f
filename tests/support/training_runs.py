"""Small runs for the tests of training; also a script, so that a run can be killed or have several processes."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np

SMALL: dict[str, Any] = {
    "gridsize": 1,
    "n_filters_scale": 1,
    "batch_size": 4,
    "max_epochs": 3,
    "tracking": False,
    "validation_fraction": 0.1,
    "device": "cpu",
}
"""Settings of a run of seconds."""


def write_scan(path: Path, *, patterns: int = 20, N: int = 64, seed: int = 0, counts: float = 1e4) -> Path:
    """Write a scan of smooth random patterns with a probe."""
    draw = np.random.default_rng(seed)
    row, column = np.mgrid[:N, :N] - N / 2
    envelope = np.exp(-(row**2 + column**2) / (2 * (N / 8) ** 2))
    amplitude = envelope * (0.5 + draw.random((patterns, N, N)))
    amplitude *= np.sqrt(counts / np.square(amplitude).sum(axis=(1, 2)).mean())
    probe = np.exp(-(row**2 + column**2) / (2 * (N / 6) ** 2)) * np.exp(1j * row / N)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(
        path,
        diff3d=amplitude.astype(np.float32),
        xcoords=N / 2 + 20 * draw.random(patterns),
        ycoords=N / 2 + 20 * draw.random(patterns),
        probeGuess=probe.astype(np.complex64),
    )
    return path


def draw_two_scans() -> dict[str, dict[str, np.ndarray]]:
    """Draw two scans of 64 px that differ in length, counts, probe and bad pixels."""
    scans: dict[str, dict[str, np.ndarray]] = {}
    for number, patterns in enumerate((10, 7)):
        draw = np.random.default_rng(21 + number)
        bad = draw.random((64, 64)) < 0.02 * (1 + number)
        probe = draw.standard_normal((64, 64)) + 1j * draw.standard_normal((64, 64))
        scans[f"scan_{number}"] = {
            "diff3d": draw.gamma(2.0, 0.5 * (1 + number), (patterns, 64, 64)).astype(np.float32),
            "xcoords": draw.uniform(40, 60, patterns),
            "ycoords": draw.uniform(80, 110, patterns),
            "probeGuess": ((2 + number) * probe).astype(np.complex64),
            "bad_pixels": bad,
        }
    return scans


def two_modes(scans: dict[str, dict[str, np.ndarray]]) -> np.ndarray:
    """Return one probe of two modes for both scans."""
    first, second = (scan["probeGuess"] for scan in scans.values())
    return np.stack([first, 0.4 * second])


if __name__ == "__main__":
    from ptycho_torch import train
    from ptycho_torch.config_params import Settings

    logging.disable(logging.WARNING)
    arguments = json.loads(sys.argv[1])
    settings = Settings().override(SMALL | arguments.pop("overrides", {}))
    if arguments.pop("stay_within_the_epoch", False):
        # What is left behind is the last checkpoint within an epoch.
        train.LastCheckpoint.on_train_epoch_end = lambda *_: None  # type: ignore[method-assign]
    train.main(**arguments, settings=settings, progress=False, reconstruct=False)
