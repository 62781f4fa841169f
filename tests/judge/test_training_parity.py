"""Broken training: each is shown to fail the clause that is about it. And decisions on any curve of losses."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

pytest.importorskip("lightning", reason="training needs lightning; pip install lightning")

from conformance.errors import DocumentError
from conformance.oracle.training import Plateau, epochs_before_stop, plateau_rates, warmup_cosine_rates
from conformance.recordings.envelope import load_envelope
from conformance.selftest.fault import Fault, instead
from conformance.selftest.outside import OUTSIDE
from conformance.subjects.torch_training import epochs_run, rates_of_epochs, train_torch
from conformance.test_training import check_float64
from conformance.training.curves import FIXED, draw_curves
from conformance.training.runs import SETTINGS, TRAINABLE, training_run
from conformance.training.state import TrainingRun, Trajectory, largest_errors, starting_point, train_truth
from ptycho_torch import optim, train
from ptycho_torch.config_params import LossWeights, TrainingSettings
from ptycho_torch.training import lightning_module

LIMIT = 1e-10


def short(name: str, **keywords: Any) -> TrainingRun:
    """Two updates on one group: enough to see each of these faults."""
    return training_run(name, batch=1, **keywords).first(2)


@pytest.fixture(scope="module")
def truths() -> dict[str, Trajectory]:
    """The truth of each short run."""
    return {name: train_truth(short(name)) for name in ("same_batch", "clip_norm", "clip_value")} | {
        "physics": train_truth(short("same_batch", settings=TRAINABLE))
    }


def failing(run: TrainingRun, truth: Trajectory) -> set[str]:
    """Kinds of quantity that stray from the truth."""
    found = train_torch(run, "cpu", "float64")
    wrong = {kind for kind, each in largest_errors(found, truth, starting_point(run)).items() if not each.e <= LIMIT}
    steps = [state.step for state in found.states] != [state.step for state in truth.states]
    return wrong | ({"step"} if steps else set())


def test_the_training_as_it_is_passes(truths: dict[str, Trajectory]) -> None:
    for name in ("same_batch", "clip_norm", "clip_value"):
        assert not failing(short(name), truths[name]), name
    assert not failing(short("same_batch", settings=TRAINABLE), truths["physics"])


@pytest.mark.parametrize("by", [1.01, float("nan")])
def test_the_first_quantity_that_strays_is_named(truths: dict[str, Trajectory], by: float) -> None:
    run, truth = short("same_batch"), truths["same_batch"]
    assert "momentum 0e+00" in check_float64(truth, truth, run, "the oracle")
    first, second = truth.states
    name = next(name for name in second.momentum if name.startswith("decoder_phase"))
    momentum = {**second.momentum, name: by * second.momentum[name]}
    weights = {**second.weights, "encoder.0.conv1.kernel": second.weights["encoder.0.conv1.kernel"] * (1 + 1e-9)}
    strayed = dataclasses.replace(second, momentum=momentum, weights=weights)
    with pytest.raises(pytest.fail.Exception, match="beside the oracle in update 2: momentum of decoder_phase, e = "):
        check_float64(dataclasses.replace(truth, states=(first, strayed)), truth, run, "the oracle")


class _BiasOffByOne(optim.KerasAdam):
    """Counts the first update as the second."""

    def _update(self, parameter: Tensor, group: dict[str, Any]) -> None:
        if not self.state[parameter]:
            self.state[parameter] = {
                "step": 1,
                "momentum": torch.zeros_like(parameter),
                "velocity": torch.zeros_like(parameter),
            }
        super()._update(parameter, group)


def _torch_adam(parameters: Iterable[Tensor], lr: float, betas: tuple[float, float], eps: float) -> Any:
    return torch.optim.Adam(parameters, lr=lr, betas=betas, eps=eps)


def _other(change: Callable[..., dict[str, Any]]) -> Callable[..., Any]:
    def make(parameters: Iterable[Tensor], lr: float, betas: tuple[float, float], eps: float) -> Any:
        return optim.KerasAdam(parameters, **({"lr": lr, "betas": betas, "eps": eps} | change(lr=lr, betas=betas)))

    return make


OPTIMISERS: dict[str, Callable[..., Any]] = {
    "torch's ε": _torch_adam,
    "bias correction off by one": _BiasOffByOne,
    "β₂ of 0.9999": _other(lambda lr, betas: {"betas": (betas[0], 0.9999)}),
    "β exchanged": _other(lambda lr, betas: {"betas": betas[::-1]}),
    "a rate of 1.001e-3": _other(lambda lr, betas: {"lr": 1.001 * lr}),
    "ε of 1e-8": _other(lambda lr, betas: {"eps": 1e-8}),
}


@pytest.mark.parametrize("name", OPTIMISERS)
def test_another_optimiser_is_seen(truths: dict[str, Trajectory], monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(lightning_module, "KerasAdam", OPTIMISERS[name])
    assert "weights" in failing(short("same_batch"), truths["same_batch"])


def faults(*chosen: Fault) -> pytest.MarkDecorator:
    """Parametrise ``fault``."""
    return pytest.mark.parametrize("fault", chosen, ids=lambda fault: fault.name)


@faults(
    *(fault for fault in OUTSIDE if fault.where == "optimiser.clipping"),
    Fault("never called", "", train.PtychoPINN, "configure_gradient_clipping", instead(lambda *_, **__: None)),
)
def test_other_clipping_is_seen(truths: dict[str, Trajectory], fault: Fault) -> None:
    with fault.seeded():
        assert "momentum" in failing(short("clip_norm"), truths["clip_norm"])


def test_clipping_by_norm_for_one_by_value_is_seen(
    truths: dict[str, Trajectory], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        lightning_module, "clip_gradients", lambda parameters, limit, _: optim.clip_gradients(parameters, limit)
    )
    assert "momentum" in failing(short("clip_value"), truths["clip_value"])


def test_exchanged_loss_weights_are_seen(truths: dict[str, Trajectory], monkeypatch: pytest.MonkeyPatch) -> None:
    right = TrainingSettings.loss_weights

    def exchanged(training: TrainingSettings, loss_function: Any) -> LossWeights:
        weights = right(training, loss_function)
        return dataclasses.replace(weights, nll_weight=weights.mae_weight, mae_weight=weights.nll_weight)

    monkeypatch.setattr(TrainingSettings, "loss_weights", exchanged)
    assert {"losses", "momentum"} <= failing(short("same_batch"), truths["same_batch"])


@pytest.mark.parametrize("fault", ["probe conjugated", "scale read in one place", "probe frozen"])
def test_wrong_physics_gradients_are_seen(
    truths: dict[str, Trajectory], monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    def after_backward(module: train.PtychoPINN) -> None:
        probe, scale = module.network.probe_parts.grad, module.network.log_scale.grad
        assert probe is not None
        assert scale is not None
        match fault:
            case "probe conjugated":
                probe[..., 1].neg_()
            case "scale read in one place":
                scale.mul_(0.5)
            case _:
                probe.zero_()

    monkeypatch.setattr(train.PtychoPINN, "on_after_backward", after_backward)
    assert "momentum" in failing(short("same_batch", settings=TRAINABLE), truths["physics"])


def test_moving_physics_that_is_frozen_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def move(module: train.PtychoPINN) -> None:
        module.network.log_scale.data.add_(1e-7)

    monkeypatch.setattr(train.PtychoPINN, "on_after_backward", move)
    assert not train_torch(short("same_batch"), "cpu", "float64").frozen_kept


def test_an_envelope_of_another_run_is_refused() -> None:
    with pytest.raises(DocumentError, match="is another one now"):
        load_envelope("same_batch", [1.0] * 10)
    with pytest.raises(DocumentError, match="has no run 'other'"):
        load_envelope("other", [1.0] * 10)


def test_a_run_has_ten_updates_and_both_losses() -> None:
    for name in ("same_batch", "clip_norm", "clip_value"):
        run = training_run(name)
        assert len(run.batches) == 10
        assert run.start.settings == SETTINGS
        assert run.start.loss_weights.nll_weight > 0
        assert run.start.loss_weights.mae_weight > 0
    with pytest.raises(ValueError, match="no training run"):
        training_run("other")


# Decisions

curves = st.lists(
    st.one_of(
        st.floats(width=32, allow_nan=True, allow_infinity=True),
        st.sampled_from([1.0, 1.0 + 2**-20, 0.9999, 0.5, 0.0, -1.0]).map(lambda each: float(torch.tensor(each))),
    ),
    min_size=1,
    max_size=20,
)


@settings(max_examples=150, deadline=None)
@given(losses=curves, patience=st.integers(0, 4), threshold=st.sampled_from([0.0, 1e-4, 0.5]))
def test_the_rate_is_decided_by_the_rule(losses: list[float], patience: int, threshold: float) -> None:
    plateau = Plateau(factor=0.5, patience=patience, threshold=threshold, least=1e-4)
    found = rates_of_epochs(losses, "ReduceLROnPlateau", plateau=plateau)
    assert found == pytest.approx(plateau_rates(losses, 1e-3, plateau), rel=1e-12)


@settings(max_examples=60, deadline=None)
@given(losses=curves, patience=st.integers(1, 4))
def test_the_end_is_decided_by_the_rule(losses: list[float], patience: int) -> None:
    assert epochs_run(losses, patience) == epochs_before_stop(losses, patience)


def as_if(what: str, name: str, seen: Callable[[optim.KerasPlateau], float]) -> Fault:
    """Let the schedule see another setting than it has, while it decides."""

    def build(original: Callable[..., None]) -> Callable[..., None]:
        def step(self: optim.KerasPlateau, loss: float) -> None:
            own = getattr(self, name)
            setattr(self, name, seen(self))
            original(self, loss)
            setattr(self, name, own)

        return step

    return Fault(what, "", optim.KerasPlateau, "step", build)


@faults(
    as_if("patience as PyTorch counts it", "patience", lambda rule: rule.patience + 1),
    as_if("threshold ignored", "threshold", lambda _: 0.0),
    as_if("relative threshold", "threshold", lambda rule: rule.threshold * min(rule.best, 1e9)),
    as_if("lowest rate ignored", "min_lr", lambda _: 0.0),
    Fault("never stepped", "", train.PtychoPINN, "on_train_epoch_end", instead(lambda self: None)),
)
def test_another_plateau_is_seen(fault: Fault) -> None:
    plateau = Plateau(0.5, 2, 1e-4, 1e-4)
    with fault.seeded():
        differing = [
            curve
            for curve in (*FIXED, *draw_curves(60, seed=11))
            if rates_of_epochs(curve, "ReduceLROnPlateau", plateau=plateau)
            != pytest.approx(plateau_rates(curve, 1e-3, plateau), rel=1e-12)
        ]
    assert differing  # one curve turns the quick tier red; comparing in float64 matters to two of these sixty


STOPPING: dict[str, dict[str, Any]] = {
    "patience off by one": {"patience": 1},
    "sign of min_delta": {"min_delta": -0.01},
    "small improvements do not count": {"min_delta": 0.01},
    "not a number ends it": {"check_finite": True},
}


@pytest.mark.parametrize("name", STOPPING)
def test_another_end_is_seen(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    change, right = STOPPING[name], train.EarlyStopping

    def wrong(monitor: str, **given: Any) -> Any:
        given |= {key: value + given[key] if key == "patience" else value for key, value in change.items()}
        return right(monitor, **given)

    monkeypatch.setattr(train, "EarlyStopping", wrong)
    differing = [curve for curve in draw_curves(60, seed=11) if epochs_run(curve, 2) != epochs_before_stop(curve, 2)]
    assert len(differing) > 3


def test_a_warm_up_that_starts_at_nothing_is_seen() -> None:
    rates = rates_of_epochs((1.0,) * 12, "WarmupCosine", warmup=4)
    assert rates != pytest.approx([1e-3 * epoch / 4 for epoch in range(4)] + warmup_cosine_rates(12, 1e-3, 4, 0.1)[4:])
    assert all(0 < rate <= 1e-3 for rate in rates)
