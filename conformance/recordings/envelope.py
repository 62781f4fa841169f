"""How far float32 takes Keras from the truth in ten updates: measured, recorded, and read where there is no Keras."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from conformance.errors import DocumentError
from conformance.judge.rules import ONE_ULP, Errors
from conformance.provenance.json_files import read_json, write_text
from conformance.recordings.bundle import RECORDINGS
from conformance.training.runs import RUNS, training_run
from conformance.training.state import TrainingRun, Trajectory, envelope, pooled_errors, starting_point, train_truth

FILE = RECORDINGS / "training_envelope.json"
SCHEMA = "training_envelope.json"
_LARGEST_BYTES = 1 << 20
_SAME_LOSS = 1e-9
"""How well the truth's losses must be those of the recording: float64 on any machine is, other draws are not."""

Key = tuple[str, str, int]
"""(kind, part of the network, update)."""


class Trainer(Protocol):
    """Who trains in float32."""

    def train(self, run: TrainingRun) -> Trajectory:
        """Train as a run says."""


def measure_envelope(
    run: TrainingRun, truth: Trajectory, reference: Trainer, *, runs: int, noisy_runs: int
) -> dict[Key, Errors]:
    """Return max(ē, κε) and max(m̄, κ'ε) of every quantity, never falling from one update to the next.

    Args:
        run: what is trained.
        truth: its training by the oracle.
        reference: Keras in float32.
        runs: trainings beside that of the run itself, each with inputs and weights moved by an ulp.
        noisy_runs: trainings of the truth with noise of one ulp in everything.
    """
    before = starting_point(run)
    moved = [run, *(run.moved(seed) for seed in range(runs))]
    found = [pooled_errors(reference.train(each), truth, before) for each in moved]
    noise = [train_truth(run, ONE_ULP["float32"], seed) for seed in range(noisy_runs)]
    return _never_falling(envelope([*found, *(pooled_errors(each, truth, before) for each in noise)]))


def _never_falling(found: Mapping[Key, Errors]) -> dict[Key, Errors]:
    rising: dict[Key, Errors] = {}
    for kind, part, step in sorted(found, key=lambda key: key[2]):
        before = rising.get((kind, part, step - 1), Errors(0.0, 0.0))
        rising[kind, part, step] = found[kind, part, step].largest(before)
    return rising


def record_envelope(
    path: Path, reference: Trainer, provenance: Mapping[str, str], progress: Callable[[str], None], runs: int
) -> None:
    """Measure the envelope of every run and write it."""
    content: dict[str, Any] = {"provenance": {**provenance, "runs": str(runs)}, "runs": {}}
    for name in RUNS:
        truth = train_truth(training_run(name))
        found = measure_envelope(training_run(name), truth, reference, runs=runs, noisy_runs=4)
        rows: dict[str, dict[str, list[list[float]]]] = {}
        for (kind, part, _), each in found.items():
            pair = [float(f"{value:.3g}") for value in (each.e, each.m)]
            rows.setdefault(kind, {}).setdefault(part, []).append(pair)
        content["runs"][name] = {"losses": truth.losses.tolist(), "errors": rows}
        progress(f"{name}: recorded")
    write_text(path, json.dumps(content, indent=1) + "\n")


@cache
def _recorded() -> Mapping[str, Any]:
    return read_json(FILE, SCHEMA, largest_bytes=_LARGEST_BYTES)


def load_envelope(name: str, losses: Sequence[float] | np.ndarray) -> dict[Key, Errors]:
    """Return the recorded envelope of a run.

    Args:
        name: of the run.
        losses: the truth's, by which the run is known to be the one that was recorded.

    Raises:
        DocumentError: no such run was recorded, or it was another one.
    """
    recorded = _recorded()["runs"].get(name)
    advice = "record it again with `python -m conformance calibrate-training`, which needs TensorFlow"
    if recorded is None:
        raise DocumentError(f"{FILE}: has no run {name!r}; {advice}.")
    if not np.allclose(losses, recorded["losses"], rtol=_SAME_LOSS):
        raise DocumentError(f"{FILE}: the run {name!r} is another one now; {advice}.")
    return {(kind, part, step): Errors(*pair) for kind, part, step, pair in _rows(recorded["errors"])}


def _rows(errors: Mapping[str, Mapping[str, Sequence[Sequence[float]]]]) -> Iterable[tuple[str, str, int, Any]]:
    for kind, parts in errors.items():
        for part, pairs in parts.items():
            yield from ((kind, part, step, pair) for step, pair in enumerate(pairs, 1))
