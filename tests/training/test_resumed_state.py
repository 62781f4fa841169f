"""What a checkpoint keeps of schedule, history, early stopping and running means, wherever training is interrupted."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.trainer.states import TrainerFn

from conformance.oracle.training import (
    Plateau,
    epochs_before_stop,
    exponential_rates,
    plateau_rates,
    warmup_cosine_rates,
)
from ptycho_torch import train
from ptycho_torch.config_params import Settings
from ptycho_torch.losses import LossTerms
from ptycho_torch.training import lightning_module

CURVE = (8.0, 7.0, 7.2, 7.1, 6.9, 6.95, 6.96, 6.97, 6.98, 6.91, 6.92, 6.93, *([6.8] * 7), 5.0)
"""Validation losses with plateaus and ties."""

PATIENT = Plateau(factor=0.5, patience=3, threshold=1e-4, least=1e-4)
"""Waits for up to two epochs where a run may be interrupted."""

SCHEDULES: dict[str, tuple[dict[str, Any], list[float]]] = {
    "ReduceLROnPlateau": (
        {"plateau_factor": 0.5, "plateau_patience": 3, "plateau_threshold": 1e-4, "plateau_min_lr": 1e-4},
        plateau_rates(CURVE, 1e-3, PATIENT),
    ),
    "Exponential": ({"lr_gamma": 0.9}, exponential_rates(len(CURVE), 1e-3, 0.9)),
    "WarmupCosine": (
        {"lr_warmup_epochs": 6, "lr_min_ratio": 0.05}, warmup_cosine_rates(len(CURVE), 1e-3, 6, 0.05)
    ),
}  # fmt: skip


def small_module(**chosen: Any) -> train.PtychoPINN:
    return train.PtychoPINN(
        Settings().override({"n_filters_scale": 1, "gridsize": 1, "intensity_scale": 1.0, **chosen})
    )


def reloaded(content: dict[str, Any]) -> dict[str, Any]:
    """Write a checkpoint and read it as training does."""
    file = io.BytesIO()
    torch.save(content, file)
    file.seek(0)
    found: dict[str, Any] = torch.load(file, weights_only=True)
    return found


def checkpoint_of(module: train.PtychoPINN, optimiser: torch.optim.Optimizer) -> dict[str, Any]:
    content: dict[str, Any] = {"optimizer": optimiser.state_dict()}
    module.on_save_checkpoint(content)
    return reloaded(content)


def epochs(module: train.PtychoPINN, optimiser: torch.optim.Optimizer, losses: Sequence[float]) -> Iterator[float]:
    """Let epochs with these validation losses pass, and yield the rate of each after it."""
    for loss in losses:
        rate = float(optimiser.param_groups[0]["lr"])
        optimiser.step()
        module._note({"train_loss": 0.0, "val_loss": loss})
        module.on_train_epoch_end()
        yield rate


@pytest.mark.parity_clause("STEP-OPTIMISER", "TRAIN-RATE", "TRAIN-STATE")
@pytest.mark.parametrize("optimiser_first", [False, True], ids=["checkpoint first", "optimiser first"])
@pytest.mark.parametrize("scheduler", SCHEDULES)
def test_rates_and_history_resume_after_any_epoch(scheduler: str, optimiser_first: bool) -> None:
    chosen, right = SCHEDULES[scheduler]
    settings = {"max_epochs": len(CURVE), "learning_rate": 1e-3, "scheduler": scheduler, **chosen}
    module, other = small_module(**settings), small_module(**settings)
    optimiser, rates = module.configure_optimizers(), []
    for epoch, rate in enumerate(epochs(module, optimiser, CURVE), 1):
        rates.append(rate)
        if epoch in (1, 3, 6, 7, 10, 14):
            content = checkpoint_of(module, optimiser)
            other._schedule = other._schedule_state = None
            if optimiser_first:
                fresh = other.configure_optimizers()
                other.on_load_checkpoint(content)
            else:
                other.on_load_checkpoint(content)
                fresh = other.configure_optimizers()
            fresh.load_state_dict(content["optimizer"])
            resumed = [*rates, *epochs(other, fresh, CURVE[epoch:])]
            np.testing.assert_allclose(resumed, right, rtol=1e-12, err_msg=f"interrupted after epoch {epoch}")
            assert other.history["val_loss"] == list(CURVE)
    np.testing.assert_allclose(rates, right, rtol=1e-12)


@pytest.mark.parity_clause("STEP-OPTIMISER", "TRAIN-STOP")
def test_early_stopping_resumes_after_any_epoch() -> None:
    curve, patience = (3.0, 2.0, 2.5, 2.4, 1.9, 2.2, 2.1, 1.95, 1.0), 3
    last = epochs_before_stop(curve, patience)
    assert last == 8
    module = small_module()
    settings = Settings().override({"early_stop_patience": patience, "device": "cpu", "validation_fraction": 0.0})

    def run_from(start: int, state: dict[str, Any] | None) -> tuple[int, list[dict[str, Any]]]:
        """Return the last epoch that runs, and the state after each that does not stop."""
        with lightning_module.quiet_lightning():
            trainer = train.make_trainer(settings.training, Path(), validate=False, progress=False)
        trainer.state.fn = TrainerFn.FITTING
        callback, states = trainer.early_stopping_callback, []
        assert callback is not None
        if state is not None:
            callback.load_state_dict(state)
        for epoch, loss in enumerate(curve[start:], start + 1):
            trainer.callback_metrics["train_loss"] = torch.tensor(loss)
            callback.on_train_epoch_end(trainer, module)
            if trainer.should_stop:
                return epoch, states
            states.append(reloaded(callback.state_dict()))
        return len(curve), states

    ended, states = run_from(0, None)
    assert ended == last == len(states) + 1
    assert [run_from(epoch, state)[0] for epoch, state in enumerate(states, 1)] == [last] * len(states)


@pytest.mark.parity_clause("STEP-OPTIMISER", "TRAIN-STATE")
@pytest.mark.parametrize("interrupted", [1, 2])
def test_the_loss_of_an_epoch_counts_the_batches_before_an_interruption(interrupted: int) -> None:
    losses, sizes, module = (4.0, 1.0, 7.0), (16, 16, 5), small_module()
    for number, (loss, size) in enumerate(zip(losses, sizes, strict=True), 1):
        value, zero = torch.tensor(loss, dtype=torch.float64), torch.zeros((), dtype=torch.float64)
        module._add("train", LossTerms(value, value, zero, zero), size)
        if number == interrupted:
            content, module = checkpoint_of(module, module.configure_optimizers()), small_module()
            module.on_load_checkpoint(content)
    assert module._mean("train")["train_loss"] == pytest.approx(np.dot(losses, sizes) / sum(sizes), rel=1e-12)
