"""Ten updates of the optimiser, measured: how far ours are from the oracle's and Keras', and from their budgets."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from conformance.judge.measured import load_measured
from conformance.judge.rules import Errors, Verdict, float32_budget
from conformance.provenance.evidence import Evidence, Goal, measured_here
from conformance.recordings.envelope import load_envelope
from conformance.subjects.keras import KerasSubject
from conformance.training.runs import RUNS, SETTINGS, training_run
from conformance.training.state import (
    TrainingRun,
    Trajectory,
    largest_errors,
    persistent,
    pooled_errors,
    starting_point,
    train_truth,
)

FLOAT64_LIMIT = 1e-10
"""Largest e of losses, weights and moments after any update, in float64 (clause TRAIN-STATE)."""

MOVED_SEEDS = (101, 102, 103)
"""Others than those that the envelope was recorded with."""


def float32_verdicts(
    train: Callable[[TrainingRun], Trajectory],
    name: str,
    truth: Trajectory,
    budgets: Mapping[tuple[str, str, int], Errors],
) -> list[Verdict]:
    """Judge what is wrong in every training of a run and of copies of it moved by an ulp (clause TRAIN-ROUNDING).

    Args:
        train: trains in float32.
        name: of the run.
        truth: its training by the oracle.
        budgets: envelope of the reference, by kind, part of the network and update.
    """
    limits, run = load_measured().limits, training_run(name)
    runs = [run, *(run.moved(seed) for seed in MOVED_SEEDS)]
    mine = persistent([pooled_errors(train(each), truth, starting_point(run)) for each in runs])
    verdicts = []
    for (kind, part, step), each in mine.items():
        budget = float32_budget(budgets[kind, part, step], budgets[kind, part, step], limits)
        verdicts.append(Verdict("TRAIN-ROUNDING", f"{kind} of {part} after update {step}", None, each, budget))
    return verdicts


def measure_updates(command: str, say: Callable[[str], None]) -> Evidence:
    """Train every run by ours, the oracle and live Keras, and return how far they are apart.

    Args:
        command: that anyone can repeat.
        say: is told how far it is.

    Raises:
        BackendMissingError: no TensorFlow.
    """
    from conformance.subjects.torch_training import train_torch

    keras = KerasSubject(SETTINGS, "float64")
    numbers: dict[str, float] = {}
    goals: dict[str, Goal] = {}
    meanings: dict[str, str] = {}
    for name in RUNS:
        run, truth = training_run(name), train_truth(training_run(name))
        ours = train_torch(run, "cpu", "float64")
        for who, theirs in (("oracle", truth), ("keras", keras.train(run))):
            found = largest_errors(ours, theirs, starting_point(run))
            kind = max(found, key=lambda each: found[each].e)
            key = f"{name}_{who}"
            numbers[key], goals[key] = found[kind].e, Goal(at_most=FLOAT64_LIMIT)
            meanings[key] = f"{name}, float64: largest e of losses, weights and moments against {who}, ten updates"
            say(f"{name}: compared with {who} in float64; farthest are {kind}")
        verdicts = float32_verdicts(
            lambda each: train_torch(each, "cpu", "float32"), name, truth, load_envelope(name, truth.losses)
        )
        key = f"{name}_float32_share"
        numbers[key], goals[key] = max(verdict.share for verdict in verdicts), Goal(at_most=1.0)
        meanings[key] = f"{name}, float32: largest share of a budget that comes from Keras' own runs"
        say(f"{name}: judged in float32")
    return measured_here("updates", command, numbers, goals=goals, meanings=meanings)
