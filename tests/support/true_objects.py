"""Simulated scans with their true objects as reconstructions of them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from ptycho_torch.data.scan import Scan, open_scan
from ptycho_torch.data.specimens import draw_specimen
from ptycho_torch.reconstruction.products import Reconstruction
from ptycho_torch.simulate import choose_probe, plan_positions, scale_probe, write_scan


def true_object(
    folder: Path,
    *,
    counts: float = 1e4,
    seed: int = 0,
    specimen: str = "dead_leaves",
    N: int = 16,
    modes: int = 1,
    noise: bool = False,
) -> tuple[Scan, Reconstruction]:
    """Write a scan of 30 patterns, and return it with its object and probe as a reconstruction."""
    draw = np.random.default_rng(seed)
    plan = plan_positions("random", 30, N, draw, step_px=4.0, size_px=44 + N)
    truth = draw_specimen(specimen, (plan.size_px, plan.size_px), draw)
    probe = choose_probe("focused", N)
    # Another mode is the first one, tilted and weaker.
    tilts = np.exp(1j * np.arange(modes)[:, None, None] * np.arange(N) / 2) * 0.6 ** np.arange(modes)[:, None, None]
    probe = scale_probe(truth, probe * tilts, plan.positions_px, counts)
    path = folder / f"scan_{specimen}_{counts:g}_{seed}_{modes}_{noise}.npz"
    write_scan(path, truth, probe, plan.positions_px, draw if noise else None, overwrite=True)
    reconstruction = Reconstruction(
        object=truth.astype(np.complex64),
        coverage=np.ones(truth.shape, np.float32),
        origin_px=(0.0, 0.0),
        positions_px=plan.positions_px,
        probe=probe,
        provenance={},
    )
    return open_scan(path), reconstruction


def with_members(scan: Scan, path: Path, **members: np.ndarray) -> Scan:
    """Write a copy of a scan with other members."""
    with np.load(scan.path) as npz:
        np.savez(path, **{**npz, **members})
    return open_scan(path)


def scaled(reconstruction: Reconstruction, factor: complex, probe_factor: float) -> Reconstruction:
    """Return the same object and probe in another scale."""
    return dataclasses.replace(
        reconstruction,
        object=reconstruction.object * np.complex64(factor),
        probe=reconstruction.probe * np.float32(probe_factor),
    )


def draw_object(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Draw a complex object whose features are of a pixel, so that its shift is found exactly."""
    amplitude, phase = rng.standard_normal((2, *shape))
    return np.asarray((0.8 + 0.06 * amplitude) * np.exp(0.25j * phase))
