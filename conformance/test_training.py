"""Training: optimiser state after each update, scale and probe, learning rates, and the end of training."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable, Sequence
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
import pytest

from conformance.judge.measured import load_measured
from conformance.judge.rules import Errors, Verdict, float32_budget
from conformance.oracle.training import (
    Plateau,
    epochs_before_stop,
    exponential_rates,
    plateau_rates,
    warmup_cosine_rates,
)
from conformance.provenance.evidence import committed_evidence
from conformance.recordings.envelope import load_envelope, measure_envelope
from conformance.session.bench import NO_TENSORFLOW
from conformance.training.curves import FIXED, Curve, draw_curves
from conformance.training.runs import RUNS, SETTINGS, TRAINABLE, training_run
from conformance.training.state import (
    LOG_SCALE,
    PROBE_PARTS,
    TrainingRun,
    Trajectory,
    largest_errors,
    persistent,
    pooled_errors,
    starting_point,
    train_truth,
)
from ptycho_tf_bridge import backend

if importlib.util.find_spec("lightning") is None:
    pytest.skip("training needs lightning; pip install lightning", allow_module_level=True)

if TYPE_CHECKING:
    from conformance.subjects.keras import KerasSubject

FLOAT64_LIMIT = 1e-10
"""Largest e of losses, weights and moments after any update, in float64 (clause TRAIN-STATE)."""

MOVED_SEEDS = (101, 102, 103)
"""Others than those that the envelope was recorded with."""

CURVES = {"quick": 60, "full": 300, "study": 5000}
PATIENCES = (1, 2, 3, 5)

needs_tensorflow = pytest.mark.skipif(not backend.is_available(), reason=NO_TENSORFLOW)


@cache
def _training() -> ModuleType:
    """Import what trains when it is first needed: Lightning takes seconds, also where no test of training is chosen."""
    from conformance.subjects import torch_training

    return torch_training


def clauses(clause: str, names: Sequence[object]) -> pytest.MarkDecorator:
    """Parametrise ``name``; each test is marked with its clause, and its id begins with it."""
    mark = pytest.mark.parity_clause(clause)
    return pytest.mark.parametrize("name", [pytest.param(name, id=f"{clause}-{name}", marks=mark) for name in names])


@cache
def _truth(name: str) -> Trajectory:
    return train_truth(training_run(name))


@cache
def _ours(name: str, device: str) -> Trajectory:
    trained: Trajectory = _training().train_torch(training_run(name), device, "float64")
    return trained


@cache
def _keras(dtype: str) -> KerasSubject:
    from conformance.subjects.keras import KerasSubject

    return KerasSubject(SETTINGS, dtype)


def _need_tier(name: str, tier: str) -> None:
    if tier == "quick" and name not in RUNS[:2]:
        pytest.skip(f"training {name} is judged so in tier full: --parity-tier full")


def check_float64(found: Trajectory, expected: Trajectory, run: TrainingRun, who: str) -> str:
    """Fail above the limit, and name the update and the part of the network; return the largest errors in words."""
    before = starting_point(run)
    pooled = pooled_errors(found, expected, before)
    beyond = [(step, each.e, kind, part) for (kind, part, step), each in pooled.items() if not each.e <= FLOAT64_LIMIT]
    if beyond:
        first = min(step for step, *_ in beyond)
        _, e, kind, part = max((each for each in beyond if each[0] == first), key=lambda each: np.nan_to_num(each[1]))
        pytest.fail(
            f"first beside {who} in update {first}: {kind} of {part}, e = {e:.1e}, limit {FLOAT64_LIMIT:.0e}; in all "
            f"{len(beyond)} of {len(pooled)} quantities"
        )
    worst = largest_errors(found, expected, before)
    assert all(each.e <= FLOAT64_LIMIT for each in worst.values()), worst
    assert [state.step for state in found.states] == [state.step for state in expected.states]
    return ", ".join(f"{kind} {each.e:.0e}" for kind, each in worst.items())


@pytest.mark.parity_dtype("float64")
@clauses("TRAIN-STATE", RUNS)
def test_state_is_the_oracle_s(name: str, parity_device: str, parity_notes: list[str]) -> None:
    """Weights and moments of the real training follow the NumPy oracle, update by update."""
    found = check_float64(_ours(name, parity_device), _truth(name), training_run(name), "the oracle")
    parity_notes.append(f"training {name} on {parity_device}, float64, ten updates against the oracle: e of {found}")


@needs_tensorflow
@pytest.mark.parity_keras
@pytest.mark.parity_dtype("float64")
@clauses("TRAIN-STATE", RUNS)
def test_state_is_keras(name: str, parity_device: str, parity_tier: str, parity_notes: list[str]) -> None:
    """Weights and moments follow live Keras: its Adam, its clipping, its gradients."""
    _need_tier(name, parity_tier)
    run = training_run(name)
    found = check_float64(_ours(name, parity_device), _keras("float64").train(run), run, "Keras")
    parity_notes.append(f"training {name} on {parity_device}, float64, ten updates against Keras: e of {found}")


def _judge_float32(
    train: Callable[[TrainingRun], Trajectory], name: str, budgets: dict[tuple[str, str, int], Errors]
) -> Verdict:
    """Fail where a run and all copies of it moved by an ulp stray too far; return the verdict nearest to that.

    Args:
        train: trains in float32.
        name: of the run.
        budgets: envelope of the reference, by kind, part of the network and update.
    """
    limits, run = load_measured().limits, training_run(name)
    runs = [run, *(run.moved(seed) for seed in MOVED_SEEDS)]
    mine = persistent([pooled_errors(train(each), _truth(name), starting_point(run)) for each in runs])
    verdicts = []
    for (kind, part, step), each in mine.items():
        budget = float32_budget(budgets[kind, part, step], budgets[kind, part, step], limits)
        verdicts.append(Verdict("TRAIN-ROUNDING", f"{kind} of {part} after update {step}", None, each, budget))
    failed = [verdict.explain() for verdict in verdicts if not verdict.passed]
    assert not failed, "\n".join(failed[:5])
    return max(verdicts, key=lambda verdict: verdict.share)


@pytest.mark.parity_dtype("float32")
@clauses("TRAIN-ROUNDING", RUNS)
def test_float32_is_as_near_as_the_reference(
    name: str, parity_device: str, parity_tier: str, parity_notes: list[str]
) -> None:
    """In float32 training strays from the truth no further than recorded runs of Keras do."""
    _need_tier(name, parity_tier)
    most = _judge_float32(
        lambda run: _training().train_torch(run, parity_device, "float32"),
        name,
        load_envelope(name, _truth(name).losses),
    )
    parity_notes.append(
        f"training {name} on {parity_device}, float32, ten updates: most of a budget used {most.share:.0%}, "
        f"{most.stage}"
    )


@needs_tensorflow
@pytest.mark.parity_keras
@pytest.mark.parity_dtype("float32")
@clauses("TRAIN-ROUNDING", RUNS[:1])
def test_the_reference_is_as_recorded(name: str) -> None:
    """Live Keras in float32 lies within the envelope that was recorded of it."""
    _judge_float32(_keras("float32").train, name, load_envelope(name, _truth(name).losses))


@needs_tensorflow
@pytest.mark.parity_keras
@pytest.mark.parity_dtype("float32")
@clauses("TRAIN-ROUNDING", RUNS)
def test_float32_is_inside_the_live_envelope(name: str, parity_device: str, parity_tier: str) -> None:
    """The same against runs of live Keras, each moved by an ulp."""
    if parity_tier == "quick":
        pytest.skip("nine trainings of Keras are made in tier full: --parity-tier full")
    if parity_tier == "full" and name != RUNS[0]:
        pytest.skip(f"nine trainings {name} of Keras are made in tier study: --parity-tier study")
    envelope = measure_envelope(training_run(name), _truth(name), _keras("float32"), runs=8, noisy_runs=3)
    _judge_float32(lambda run: _training().train_torch(run, parity_device, "float32"), name, envelope)


@pytest.mark.parity_dtype("float64")
@clauses("TRAIN-PHYSICS", ("trainable",))
def test_trainable_physics_is_the_oracle_s(name: str, parity_device: str, parity_notes: list[str]) -> None:
    """A trainable probe and scale move as the derivative of the loss says, and so do their moments."""
    run = training_run("same_batch", TRAINABLE)
    assert {LOG_SCALE, PROBE_PARTS} <= set(starting_point(run))
    found = check_float64(_training().train_torch(run, parity_device, "float64"), train_truth(run), run, "the oracle")
    parity_notes.append(f"training with trainable probe and scale on {parity_device}, float64, oracle: e of {found}")


@needs_tensorflow
@pytest.mark.parity_keras
@pytest.mark.parity_dtype("float64")
@clauses("TRAIN-PHYSICS", ("trainable",))
def test_trainable_physics_is_keras_as_intended(name: str, parity_device: str) -> None:
    """The same against our Keras model with both tracked, which the reference's flags intend."""
    from conformance.subjects.keras import KerasSubject

    run = training_run("same_batch", TRAINABLE)
    keras = KerasSubject(TRAINABLE, "float64", trainable_physics=True).train(run)
    check_float64(_training().train_torch(run, parity_device, "float64"), keras, run, "Keras")


@clauses("TRAIN-PHYSICS", ("frozen",))
def test_frozen_physics_does_not_move(name: str, parity_device: str) -> None:
    """Frozen scale and probe are no part of training, and keep every bit."""
    run = training_run("same_batch").first(2)
    ours = _training().train_torch(run, parity_device, "float32")
    assert not {LOG_SCALE, PROBE_PARTS} & set(ours.states[-1].weights)
    assert ours.frozen_kept


@needs_tensorflow
@pytest.mark.parity_keras
@clauses("TRAIN-PHYSICS", ("reference_as_it_is",))
def test_the_reference_s_flags_do_nothing(name: str, parity_device: str) -> None:
    """With both flags set, the reference as it is trains as ours does with both frozen (REF-02)."""
    from conformance.subjects.keras import KerasSubject

    flagged = training_run("clip_norm", TRAINABLE).first(3)
    keras = KerasSubject(TRAINABLE, "float64").train(flagged)
    assert keras.frozen_kept
    frozen = training_run("clip_norm").first(3)
    check_float64(_training().train_torch(frozen, parity_device, "float64"), keras, frozen, "Keras")


PLATEAU = Plateau(factor=0.5, patience=2, threshold=1e-4, least=1e-4)


def _curves(tier: str) -> list[Curve]:
    return [*FIXED, *draw_curves(CURVES[tier], seed=11)]


@clauses("TRAIN-RATE", PATIENCES)
def test_rates_at_a_plateau_are_the_oracle_s(name: int, parity_tier: str, parity_notes: list[str]) -> None:
    """Every decision of the plateau schedule is that of the rule."""
    plateau = dataclasses.replace(PLATEAU, patience=name)
    curves = _curves(parity_tier)
    for curve in curves:
        ours = _training().rates_of_epochs(curve, "ReduceLROnPlateau", plateau=plateau)
        assert ours == pytest.approx(plateau_rates(curve, 1e-3, plateau), rel=1e-12), curve
    parity_notes.append(f"plateau schedule, patience {name}: {len(curves)} curves, every decision is the rule's")


@needs_tensorflow
@pytest.mark.parity_keras
@clauses("TRAIN-RATE", PATIENCES)
def test_rates_at_a_plateau_are_keras(name: int, parity_tier: str) -> None:
    """Every decision of the plateau schedule is that of Keras' callback on the same curve."""
    from conformance.training.keras_callbacks import keras_plateau_rates

    plateau = dataclasses.replace(PLATEAU, patience=name)
    for curve in _curves(parity_tier):
        if not np.isfinite(curve[0]):
            continue
        ours = _training().rates_of_epochs(curve, "ReduceLROnPlateau", plateau=plateau)
        # Keras holds the rate in float32.
        assert ours == pytest.approx(keras_plateau_rates(curve, 1e-3, plateau), rel=1e-6), curve


@needs_tensorflow
@pytest.mark.parity_keras
@clauses("TRAIN-RATE", ("first_loss_no_number",))
def test_a_first_loss_that_is_no_number(name: str) -> None:
    """Keras never improves on a NaN in the first epoch; here the first number is the best."""
    from conformance.training.keras_callbacks import keras_plateau_rates

    curve = (float("nan"), 4.0, 3.0, 2.0, 1.0)
    assert keras_plateau_rates(curve, 1e-3, PLATEAU) == pytest.approx([1e-3, 1e-3, 1e-3, 5e-4, 5e-4], rel=1e-6)
    assert _training().rates_of_epochs(curve, "ReduceLROnPlateau", plateau=PLATEAU) == [1e-3] * 5


@clauses("TRAIN-RATE", ("Exponential", "WarmupCosine", "Default"))
def test_rates_that_no_loss_decides(name: str) -> None:
    """Exponential and warm-up schedules give the rate of their formula in every epoch."""
    for epochs, warmup in ((1, 0), (12, 0), (12, 4), (30, 7)):
        ours = _training().rates_of_epochs((1.0,) * epochs, name, gamma=0.93, warmup=warmup, least_ratio=0.07)
        expected = {
            "Exponential": exponential_rates(epochs, 1e-3, 0.93),
            "WarmupCosine": warmup_cosine_rates(epochs, 1e-3, warmup, 0.07),
            "Default": [1e-3] * epochs,
        }[name]
        assert ours == pytest.approx(expected, rel=1e-12), (epochs, warmup)


@needs_tensorflow
@pytest.mark.parity_keras
@clauses("TRAIN-RATE", ("Exponential", "WarmupCosine"))
def test_rates_that_no_loss_decides_are_keras(name: str) -> None:
    """Keras' own schedules give the same rates."""
    from conformance.training.keras_callbacks import keras_cosine_rates, keras_exponential_rates

    for epochs, warmup in ((12, 0), (12, 4), (30, 7)):
        ours = _training().rates_of_epochs((1.0,) * epochs, name, gamma=0.93, warmup=warmup, least_ratio=0.07)
        if name == "Exponential":
            theirs = keras_exponential_rates(epochs, 1e-3, 0.93)
        else:
            theirs = keras_cosine_rates(epochs, 1e-3, warmup, 0.07)
        assert ours == pytest.approx(theirs, rel=1e-6), (epochs, warmup)


@clauses("TRAIN-STOP", PATIENCES)
def test_training_stops_by_the_rule(name: int, parity_tier: str) -> None:
    """The callback of the real Trainer stops where the rule says."""
    for curve in _curves(parity_tier):
        assert _training().epochs_run(curve, name) == epochs_before_stop(curve, name), curve


@needs_tensorflow
@pytest.mark.parity_keras
@clauses("TRAIN-STOP", PATIENCES)
def test_training_stops_where_keras_does(name: int, parity_tier: str) -> None:
    """The callback of the real Trainer stops where Keras' callback does."""
    from conformance.training.keras_callbacks import keras_epochs_before_stop

    for curve in _curves(parity_tier):
        if np.isfinite(curve[0]):
            assert _training().epochs_run(curve, name) == keras_epochs_before_stop(curve, name), curve


@pytest.mark.parity_clause("TRAIN-STUDY")
def test_both_backends_end_alike() -> None:
    """The study's evidence that comes with the package shows equivalence at each point, for the code that is here."""
    found = [each for each in committed_evidence() if (each.kind, each.case) == ("training", "study")]
    if not found:
        pytest.skip("no study of training is kept as evidence; make one: python -m conformance study training (hours)")
    for evidence in found:
        few = [name for name in evidence.missed if name.endswith("_pairs")]
        if few:
            pytest.skip(f"too few to be evidence: {', '.join(f'{name} {evidence.numbers[name]}' for name in few)}")
        assert not evidence.missed, {name: evidence.numbers[name] for name in evidence.missed}
        if not evidence.is_fresh():
            pytest.skip(f"the study of {evidence.created_utc} is valid for other code; repeat it: {evidence.command}")
