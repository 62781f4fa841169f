"""A simulated scan of a known object: its patterns, its counts, its noise and its file."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from conformance.hypotheses import Hypothesis, spatial_mistakes
from conformance.oracle_operations import diffracted_intensity, ground_truth_patches
from conformance.step import Outcome, Step, StepBench
from conformance.steps_light import draw_wave
from conformance.steps_scans import FLOAT32, Arrays

N, MODES, PATTERNS, NPHOTONS = 128, 4, 17, 5e4
"""More waves than are computed at once."""

SEED = 6


def _intensity(specimen: np.ndarray, modes: np.ndarray, positions_px: np.ndarray) -> np.ndarray:
    """Return what reaches the detector, (n, N, N)."""
    views = ground_truth_patches(specimen, positions_px, modes.shape[-1])
    return np.asarray(sum(diffracted_intensity(views * mode) for mode in modes))


def _scaled(specimen: np.ndarray, modes: np.ndarray, positions_px: np.ndarray) -> np.ndarray:
    """Return the probe with which the mean pattern holds ``NPHOTONS`` counts."""
    counts = _intensity(specimen, modes, positions_px).sum(axis=(1, 2)).mean()
    return np.asarray(modes * np.sqrt(NPHOTONS / counts))


def _file(specimen: np.ndarray, scaled: np.ndarray, positions_px: np.ndarray) -> tuple[Arrays, float]:
    """Return the members of a simulated file with noise, and the mean counts that were said."""
    from ptycho_torch.simulate import write_scan

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scan.npz"
        mean = write_scan(path, specimen, scaled, positions_px, np.random.default_rng(SEED))
        with np.load(path) as npz:
            return dict(npz), mean


def _simulated(_: StepBench) -> Outcome:
    """Simulate patterns of several modes without noise, and write a file with noise."""
    from ptycho_torch.simulate import scale_probe, simulate_patterns

    rng = np.random.default_rng(18)
    specimen = draw_wave(rng, 139, 150).astype(np.complex64)
    probe = draw_wave(rng, MODES, N, N) * np.array([1.0, 0.5, 0.3, 0.7])[:, None, None]
    positions = rng.uniform(N / 2, (150 - N / 2, 139 - N / 2), (PATTERNS, 2))
    scaled = scale_probe(specimen, probe, positions, NPHOTONS)
    patterns = np.concatenate(list(simulate_patterns(specimen, scaled, positions, None)))
    written, mean = _file(specimen, scaled, positions)
    right = _scaled(specimen, probe, positions)
    clean = _intensity(specimen, right, positions)
    # Noise is drawn from the counts of the very probe that is in the file.
    counts = np.random.default_rng(SEED).poisson(_intensity(specimen, scaled.astype(np.complex128), positions))
    expected: Arrays = {
        "probe": right,
        "amplitude without noise": np.sqrt(clean),
        "counts of the file": counts.astype(np.float64),
        "mean counts": np.array(counts.sum() / PATTERNS),
        "xcoords": positions[:, 0],
        "ycoords": positions[:, 1],
        "xcoords_start": positions[:, 0],
        "ycoords_start": positions[:, 1],
        "probe of the file": scaled,
        "object of the file": specimen,
        "domain": np.array("amplitude"),
    }
    found: Arrays = {
        "probe": scaled,
        "amplitude without noise": patterns,
        "counts of the file": np.square(written["diff3d"], dtype=np.float64),
        "mean counts": np.array(mean),
        **{name: written[name] for name in ("xcoords", "ycoords", "xcoords_start", "ycoords_start")},
        "probe of the file": written["probeGuess"],
        "object of the file": written["objectGuess"],
        "domain": written["measurement_domain"],
    }

    return Outcome(expected, found, FLOAT32, lambda: _mistakes(specimen, right, positions, counts))


def _mistakes(
    specimen: np.ndarray, right: np.ndarray, positions: np.ndarray, counts: np.ndarray
) -> Iterator[Hypothesis]:
    clean = _intensity(specimen, right, positions)
    for name, factor in {
        "counts of the whole scan": 1 / PATTERNS,
        "counts of a pixel": N**2,
        "counts of each mode": MODES,
    }.items():
        both = {"probe": np.sqrt(factor) * right, "amplitude without noise": np.sqrt(factor * clean)}
        yield Hypothesis(name, both)
    alone = np.concatenate([_scaled(specimen, mode[None], positions) for mode in right])
    yield Hypothesis(
        "every mode with the counts by itself",
        {"probe": alone, "amplitude without noise": np.sqrt(_intensity(specimen, alone, positions))},
    )
    exchanged = _scaled(specimen, right, positions[:, ::-1])
    swapped = np.sqrt(_intensity(specimen, exchanged, positions[:, ::-1]))
    yield Hypothesis("swapped x/y", {"probe": exchanged, "amplitude without noise": swapped})
    views: dict[str, Callable[[], np.ndarray]] = {
        "swapped x/y": lambda: _intensity(specimen, right, positions[:, ::-1]),
        "the first mode alone": lambda: _intensity(specimen, right[:1], positions),
        "modes added as fields": lambda: _intensity(specimen, right.sum(axis=0, keepdims=True), positions),
        "conjugation of the probe": lambda: _intensity(specimen, right.conj(), positions),
    }
    for name, intensity in views.items():
        yield Hypothesis(name, {"amplitude without noise": np.sqrt(intensity())})
    yield Hypothesis("intensity for amplitude", {"amplitude without noise": clean})
    for name, change in spatial_mistakes(1, 2):
        yield Hypothesis(name, {"amplitude without noise": change(np.sqrt(clean))})
    yield Hypothesis("no noise in the file", {"counts of the file": clean, "mean counts": np.array(NPHOTONS)})
    yield Hypothesis(
        "swapped x/y",
        {
            "xcoords": positions[:, 1],
            "ycoords": positions[:, 0],
            "xcoords_start": positions[:, 1],
            "ycoords_start": positions[:, 0],
        },
    )
    yield Hypothesis("sum of the counts for their mean", {"mean counts": np.array(counts.sum())})


SIMULATING: tuple[Step, ...] = (Step("forward.simulated", ("SCAN-09", "exit_wave", "amplitude"), _simulated),)
