"""Training as the judge sees it: some updates, and what weights and optimiser state were after each."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from conformance.cases.case import Case
from conformance.judge.condition import noisy_run
from conformance.judge.rules import Deviation, Errors, compare, deviation, errors
from conformance.judge.truth import Truth, moved, moved_case
from conformance.oracle.network import Constants, Moments, keras_adam
from conformance.oracle.training import clipped

LOG_SCALE, PROBE_PARTS = "log_scale", "probe_parts"
"""Names of the physics among the weights: () ln(s_I), and (2, M, N, N) real and imaginary part of the probe."""


Branches = Callable[[int, Truth], Mapping[str, np.ndarray]]
"""Number of an update, from 1 on, and the truth before it → linear pieces, as ``Truth.gradients_on`` takes them."""


@dataclass(frozen=True)
class TrainingRun:
    """What is to be trained, and how.

    Attributes:
        name: how reports call it.
        batches: one update each. Weights, probe and settings are those of the first.
        learning_rate: of Adam in the Keras form.
        clip: limit of the gradients; None does not clip.
        clip_algorithm: ``norm`` of all gradients together, or ``value`` of each element.
    """

    name: str
    batches: tuple[Case, ...]
    learning_rate: float = 1e-3
    clip: float | None = None
    clip_algorithm: str = "norm"

    def first(self, updates: int) -> TrainingRun:
        """Return the run with only its first updates."""
        return dataclasses.replace(self, batches=self.batches[:updates])

    @classmethod
    def repeated(cls, case: Case, steps: int) -> TrainingRun:
        """Return some updates on one batch, without clipping."""
        return cls(case.name, (case,) * steps)

    @property
    def start(self) -> Case:
        """The case that gives weights, probe, settings and loss weights."""
        return self.batches[0]

    def moved(self, seed: int) -> TrainingRun:
        """Return the run with every input and weight moved by a float32 ulp; equal batches stay equal."""
        rng = np.random.default_rng(seed)
        found: dict[int, Case] = {}
        for batch in self.batches:
            if id(batch) not in found:
                found[id(batch)] = moved_case(batch, rng)
        return dataclasses.replace(self, batches=tuple(found[id(batch)] for batch in self.batches))


@dataclass(frozen=True)
class State:
    """Weights and optimiser state after an update, by TensorFlow name.

    Attributes:
        weights: what is trained: every kernel and bias, and ``LOG_SCALE`` and ``PROBE_PARTS`` where they are trainable.
        momentum: m, the first moment of each.
        velocity: v, the second moment of each.
        step: updates that the optimiser counts.
    """

    weights: Mapping[str, np.ndarray]
    momentum: Mapping[str, np.ndarray]
    velocity: Mapping[str, np.ndarray]
    step: int


@dataclass(frozen=True)
class Trajectory:
    """One training.

    Attributes:
        losses: (steps,) total before each update.
        states: after each update.
        frozen_kept: whether scale and probe, where they are not trained, kept every bit.
        gradients: of everything trained before each update, not clipped; the oracle's alone.
    """

    losses: np.ndarray
    states: tuple[State, ...]
    frozen_kept: bool = True
    gradients: tuple[Mapping[str, np.ndarray], ...] = ()


def starting_point(run: TrainingRun) -> dict[str, np.ndarray]:
    """Return everything that a run trains, in float64, as it is before the first update."""
    constants = Truth(run.start).constants
    trained = dict(constants.weights)
    if run.start.settings.intensity_scale_trainable:
        trained[LOG_SCALE] = np.array(constants.log_scale)
    if run.start.settings.probe_trainable:
        trained[PROBE_PARTS] = np.stack([constants.probe.real, constants.probe.imag])
    return trained


def train_truth(
    run: TrainingRun, noise: float | None = None, seed: int = 0, branches: Branches | None = None
) -> Trajectory:
    """Train by the NumPy oracle in float64.

    Args:
        run: what and how.
        noise: move every quantity by this relative step as it passes, to see what rounding does to a training; for
            runs that train weights alone.
        seed: of the noise.
        branches: the linear pieces to differentiate on without noise; None takes the oracle's own.
    """
    rng = np.random.default_rng(seed)
    trained = starting_point(run)
    moments: Moments = {}
    losses, states, every = [], [], []
    for step, batch in enumerate(run.batches, 1):
        here = _before_update(run, batch, trained)
        if noise is None:
            loss, found = here.losses["total"], _gradients(here, branches and branches(step, here))
        else:
            noisy = noisy_run(here, lambda array: moved(array, rng, noise))
            loss, found = noisy.losses["total"], noisy.gradients
        every.append({name: found[name] for name in trained})
        gradients = clipped(every[-1], run.clip, run.clip_algorithm)
        trained, moments = keras_adam(trained, gradients, moments, step, run.learning_rate)
        losses.append(loss)
        states.append(
            State(
                trained,
                {name: first for name, (first, _) in moments.items()},
                {name: second for name, (_, second) in moments.items()},
                step,
            )
        )
    return Trajectory(np.array(losses), tuple(states), gradients=tuple(every))


def _before_update(run: TrainingRun, batch: Case, trained: Mapping[str, np.ndarray]) -> Truth:
    """Return the truth of a batch with everything as it is trained by then."""
    start = Truth(dataclasses.replace(run.start, diffraction=batch.diffraction, offsets_px=batch.offsets_px))
    constants = start.constants
    parts = trained.get(PROBE_PARTS)
    return Truth(
        start.case,
        Constants(
            weights={name: trained[name] for name in constants.weights},
            offsets_px=constants.offsets_px,
            probe=constants.probe if parts is None else parts[0] + 1j * parts[1],
            log_scale=float(trained.get(LOG_SCALE, constants.log_scale)),
        ),
    )


def _gradients(here: Truth, branches: Mapping[str, np.ndarray] | None) -> Mapping[str, np.ndarray]:
    """Return the gradient of the total loss by everything that can be trained."""
    gradients = dict(here.gradients_on(branches).constants)
    probe = gradients.pop("probe")
    return gradients | {PROBE_PARTS: np.stack([probe.real, probe.imag])}


def largest_errors(found: Trajectory, truth: Trajectory, before: Mapping[str, np.ndarray]) -> dict[str, Errors]:
    """Return the largest errors of any tensor after any update, in units of its RMS, by kind.

    Weights are measured by their change since the start, which is far smaller than they are themselves.
    """
    worst = {"losses": compare(found.losses, truth.losses)}
    for mine, theirs in zip(found.states, truth.states, strict=True):
        for kind, _, each in _deviations(mine, theirs, before):
            worst[kind] = worst.get(kind, errors([each])).largest(errors([each]))
    return worst


def pooled_errors(
    found: Trajectory, truth: Trajectory, before: Mapping[str, np.ndarray]
) -> dict[tuple[str, str, int], Errors]:
    """Return errors by kind, part of the network and step; tensors are measured in their own RMS and then pooled."""
    pools: dict[tuple[str, str, int], list[Deviation]] = {}
    for step, (mine, theirs) in enumerate(zip(found.states, truth.states, strict=True), 1):
        for kind, name, each in _deviations(mine, theirs, before):
            pools.setdefault((kind, name.partition(".")[0], step), []).append(each)
    pooled = {key: errors(found) for key, found in pools.items()}
    for step, (mine, theirs) in enumerate(zip(found.losses, truth.losses, strict=True), 1):
        pooled["losses", "loss", step] = compare(np.array(mine), np.array(theirs))
    return pooled


def _deviations(mine: State, theirs: State, before: Mapping[str, np.ndarray]) -> Iterator[tuple[str, str, Deviation]]:
    for name, start in before.items():
        weight = mine.weights.get(name)
        change = None if weight is None else weight.astype(np.float64) - start
        yield "weights", name, deviation(change, theirs.weights[name] - start)
        yield "momentum", name, deviation(mine.momentum.get(name), theirs.momentum[name])
        yield "velocity", name, deviation(mine.velocity.get(name), theirs.velocity[name])


def envelope(runs: Sequence[Mapping[tuple[str, str, int], Errors]]) -> dict[tuple[str, str, int], Errors]:
    """Return the largest errors of several runs, quantity by quantity."""
    return {key: Errors(max(run[key].e for run in runs), max(run[key].m for run in runs)) for key in runs[0]}


def persistent(runs: Sequence[Mapping[tuple[str, str, int], Errors]]) -> dict[tuple[str, str, int], Errors]:
    """Return the smallest errors of several runs, quantity by quantity: what is wrong in every one of them.

    In one float32 training of ten or so a single rounding puts a pixel on the other side of a kink, and from there on
    it strays a hundred times as far as the others. Which one that is, is chance; a fault is in all of them.
    """
    return {key: Errors(min(run[key].e for run in runs), min(run[key].m for run in runs)) for key in runs[0]}
