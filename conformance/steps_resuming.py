"""What a checkpoint keeps: training that was broken off goes on, and another training starts from its weights."""

from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from conformance.hypotheses import Hypothesis
from conformance.oracle import Moments, keras_adam
from conformance.oracle_operations import default_probe, normalise_probe
from conformance.oracle_training import (
    BEST,
    WAIT,
    epochs_before_stop,
    exponential_rates,
    plateau_rates,
    warmup_cosine_rates,
)
from conformance.step import FLOAT64, Outcome, Step, StepBench
from conformance.steps_training import (
    BETA_1,
    BETA_2,
    CURVES,
    EPSILON,
    PLATEAU,
    RATE,
    SIZE,
    STEPS,
    add_loss,
    draw_gradients,
)

if TYPE_CHECKING:
    import torch

    from ptycho_torch.train import PtychoPINN

PROBE_SCALE = 3.0
INTERRUPTIONS = (1, 3, 6, 7, 10, 14)
"""Epochs behind which a run over a curve of 20 is interrupted, each in a run of its own."""

PATIENT = dataclasses.replace(PLATEAU, patience=3)
"""Waits for up to two epochs where a run may be interrupted."""


def _reloaded(content: dict[str, Any]) -> dict[str, Any]:
    """Write a checkpoint and read it as training does."""
    import torch

    file = io.BytesIO()
    torch.save(content, file)
    file.seek(0)
    found: dict[str, Any] = torch.load(file, weights_only=True)
    return found


def _resumed_module(
    module: PtychoPINN, optimiser: torch.optim.Optimizer, *, optimiser_first: bool = False
) -> tuple[PtychoPINN, torch.optim.Optimizer]:
    """Return a new module and a new optimiser that go on with a checkpoint, made in either order."""
    from conformance.torch_training import small_module

    content: dict[str, Any] = {"optimizer": optimiser.state_dict()}
    module.on_save_checkpoint(content)
    content, other = _reloaded(content), small_module()
    other.settings = module.settings
    if optimiser_first:
        fresh = other.configure_optimizers()
        other.on_load_checkpoint(content)
    else:
        other.on_load_checkpoint(content)
        fresh = other.configure_optimizers()
    fresh.load_state_dict(content["optimizer"])
    return other, fresh


def _run_epochs(module: PtychoPINN, optimiser: torch.optim.Optimizer, losses: Sequence[float]) -> Iterator[float]:
    """Let epochs with these validation losses pass, and yield the rate of each behind it."""
    for loss in losses:
        rate = float(optimiser.param_groups[0]["lr"])
        optimiser.step()
        module._note({"train_loss": 0.0, "val_loss": loss})
        module.on_train_epoch_end()
        yield rate


def _resumed_runs(
    losses: Sequence[float], chosen: Mapping[str, Any], *, optimiser_first: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Return the rate of every epoch, and the history of losses, of runs that are interrupted and go on."""
    from conformance.torch_training import small_module
    from ptycho_torch.config_params import Settings

    module = small_module()
    module.settings = Settings().override({"max_epochs": len(losses), "learning_rate": RATE, **chosen})
    optimiser = module.configure_optimizers()
    rates, histories, so_far = [], [], []
    for epoch, rate in enumerate(_run_epochs(module, optimiser, losses), 1):
        so_far.append(rate)
        if epoch in INTERRUPTIONS:
            other, fresh = _resumed_module(module, optimiser, optimiser_first=optimiser_first)
            rates.append([*so_far, *_run_epochs(other, fresh, losses[epoch:])])
            noted = other.history.get("val_loss", [])[: len(losses)]
            histories.append([*noted, *[np.nan] * (len(losses) - len(noted))])
    return np.array(rates), np.array(histories)


def _resumed_updates(behind: int) -> np.ndarray:
    """Return the change of the weight after ten updates, by an optimiser that is made anew behind one."""
    import torch

    from ptycho_torch.optim import KerasAdam

    def made(weight: torch.Tensor) -> tuple[torch.nn.Parameter, KerasAdam]:
        # Another rate, that of the checkpoint has to win.
        parameter = torch.nn.Parameter(weight.detach().clone())
        return parameter, KerasAdam([parameter], lr=7 * RATE, betas=(0.5, 0.6), eps=0.1)

    parameter = torch.nn.Parameter(torch.zeros(SIZE, dtype=torch.float64))
    optimiser = KerasAdam([parameter], lr=RATE, betas=(BETA_1, BETA_2), eps=EPSILON)
    for step, gradient in enumerate(draw_gradients(), 1):
        parameter.grad = torch.from_numpy(gradient)
        optimiser.step()
        if step == behind:
            saved = _reloaded(optimiser.state_dict())
            parameter, optimiser = made(parameter)
            optimiser.load_state_dict(saved)
    return parameter.detach().numpy()


FIRST_MOMENT, SECOND_MOMENT, STEPS_TAKEN = "first moment", "second moment", "steps taken"


def _updates_forgetting(behind: int, forgets: Sequence[str] = ()) -> np.ndarray:
    """Return the change after ten updates of the oracle, which forgets some of its state behind one."""
    weights: Mapping[str, np.ndarray] = {"w": np.zeros(SIZE)}
    state: Moments = {}
    taken = 0
    for step, gradient in enumerate(draw_gradients(), 1):
        taken += 1
        weights, state = keras_adam(weights, {"w": gradient}, state, taken, RATE, BETA_1, BETA_2, EPSILON)
        if step == behind:
            first, second = state["w"]
            state = {"w": (first * (FIRST_MOMENT not in forgets), second * (SECOND_MOMENT not in forgets))}
            taken *= STEPS_TAKEN not in forgets
    return weights["w"]


def _resumed_epochs(losses: Sequence[float], patience: int) -> list[int]:
    """Return how many epochs run where the callback of another Trainer takes over, behind each epoch in turn."""
    import torch
    from lightning.pytorch.trainer.states import TrainerFn

    from conformance.torch_training import small_module
    from ptycho_torch import lightning_module, train
    from ptycho_torch.config_params import Settings

    chosen = {"early_stop_patience": patience, "device": "cpu", "validation_fraction": 0.0}
    settings, module = Settings().override(chosen), small_module()

    def run_from(start: int, state: dict[str, Any] | None) -> tuple[int, list[dict[str, Any]]]:
        """Return the last epoch that runs, and the state behind each that does not stop."""
        states: list[dict[str, Any]] = []
        with lightning_module.quiet_lightning():
            trainer = train.make_trainer(settings.training, Path(), validate=False, progress=False)
        trainer.state.fn = TrainerFn.FITTING
        callback = trainer.early_stopping_callback
        assert callback is not None
        if state is not None:
            callback.load_state_dict(state)
        for epoch, loss in enumerate(losses[start:], start + 1):
            trainer.callback_metrics["train_loss"] = torch.tensor(loss)
            callback.on_train_epoch_end(trainer, module)
            if trainer.should_stop:
                return epoch, states
            states.append(_reloaded(callback.state_dict()))
        return len(losses), states

    return [run_from(epoch, state)[0] for epoch, state in enumerate(run_from(0, None)[1], 1)]


def _interrupted_epoch(losses: np.ndarray, sizes: np.ndarray, behind: int) -> dict[str, float]:
    """Return the means of an epoch that is interrupted behind a batch."""
    from conformance.torch_training import small_module

    module = small_module()
    optimiser = module.configure_optimizers()
    for number, (loss, size) in enumerate(zip(losses, sizes, strict=True), 1):
        add_loss(module, "train", loss, size)
        if number == behind:
            module, optimiser = _resumed_module(module, optimiser)
    return module._mean("train")


STOPPING: Sequence[float] = (3.0, 2.0, 2.5, 2.4, 1.9, 2.2, 2.1, 1.95, 1.0)
"""A curve over which training with a patience of 3 stops behind epoch 8."""


def _resumed(_: StepBench) -> Outcome:
    """What is interrupted and goes on from a checkpoint, in new objects, ends as if nothing had happened."""
    curve, patience = CURVES["plateaus"], 3
    epochs, gamma, warmup, least = len(curve), 0.9, 6, 0.05
    batches, sizes = np.array([4.0, 1.0, 7.0]), np.array([16, 16, 5])
    chosen: dict[str, dict[str, Any]] = {
        "ReduceLROnPlateau": {
            "plateau_factor": PATIENT.factor,
            "plateau_patience": PATIENT.patience,
            "plateau_threshold": PATIENT.threshold,
            "plateau_min_lr": PATIENT.least,
        },
        "Exponential": {"lr_gamma": gamma},
        "WarmupCosine": {"lr_warmup_epochs": warmup, "lr_min_ratio": least},
    }
    plain = {
        "ReduceLROnPlateau": plateau_rates(curve, RATE, PATIENT),
        "Exponential": exponential_rates(epochs, RATE, gamma),
        "WarmupCosine": warmup_cosine_rates(epochs, RATE, warmup, least),
    }
    expected: dict[str, np.ndarray] = {}
    found: dict[str, np.ndarray] = {}
    for first in (False, True):
        for scheduler, right in plain.items():
            key = f"{scheduler}, optimiser made first" if first else scheduler
            settings = {"scheduler": scheduler, **chosen[scheduler]}
            found[key], found[f"losses with {key}"] = _resumed_runs(curve, settings, optimiser_first=first)
            expected[key] = np.array([right] * len(INTERRUPTIONS))
            expected[f"losses with {key}"] = np.array([curve] * len(INTERRUPTIONS))
    last = epochs_before_stop(STOPPING, patience)
    ends, updates = range(1, last), range(1, STEPS)
    expected |= {
        "early stopping": np.full(len(ends), last),
        "updates": np.array([_updates_forgetting(STEPS)] * len(updates)),
        "loss of an interrupted epoch": np.full(2, (batches * sizes).sum() / sizes.sum()),
    }
    found |= {
        "early stopping": np.array(_resumed_epochs(STOPPING, patience)),
        "updates": np.array([_resumed_updates(behind) for behind in updates]),
        "loss of an interrupted epoch": np.array(
            [_interrupted_epoch(batches, sizes, behind)["train_loss"] for behind in (1, 2)]
        ),
    }

    def either_way(rates: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {**rates, **{f"{name}, optimiser made first": each for name, each in rates.items()}}

    def mistakes() -> Iterator[Hypothesis]:
        cosine = plain["WarmupCosine"]
        again = [[*cosine[: behind + 1], *cosine[1 : epochs - behind]] for behind in INTERRUPTIONS]
        for name, forgets in (
            ("epochs without improvement (wait) forgotten", (WAIT,)),
            ("lowest loss (best) forgotten", (BEST,)),
            ("state of the schedule forgotten", (BEST, WAIT)),
        ):
            rates = [
                plateau_rates(curve, RATE, PATIENT, interrupted_behind=behind, forgets=forgets)
                for behind in INTERRUPTIONS
            ]
            stops = [
                epochs_before_stop(STOPPING, patience, interrupted_behind=behind, forgets=forgets) for behind in ends
            ]
            # Without the lowest loss the next one is it, however long there was none.
            cosines = {"WarmupCosine": np.array(again)} if len(forgets) == 2 else {}
            yield Hypothesis(name, either_way({"ReduceLROnPlateau": np.array(rates), **cosines}))
            yield Hypothesis(f"{name} by early stopping", {"early stopping": np.array(stops)})
        for forgotten in (
            (FIRST_MOMENT,),
            (SECOND_MOMENT,),
            (STEPS_TAKEN,),
            (FIRST_MOMENT, SECOND_MOMENT),
            (FIRST_MOMENT, SECOND_MOMENT, STEPS_TAKEN),
        ):
            changes = np.array([_updates_forgetting(behind, forgotten) for behind in updates])
            yield Hypothesis(f"{' and '.join(forgotten)} of the optimiser forgotten", {"updates": changes})
        short = [[*curve[behind:], *[np.nan] * behind] for behind in INTERRUPTIONS]
        histories = {f"losses with {scheduler}": np.array(short) for scheduler in plain}
        yield Hypothesis("history before the interruption forgotten", either_way(histories))
        rest = [(batches[behind:] * sizes[behind:]).sum() / sizes[behind:].sum() for behind in (1, 2)]
        yield Hypothesis("batches before the interruption forgotten", {"loss of an interrupted epoch": np.array(rest)})

    return Outcome(expected, found, FLOAT64, mistakes)


def _of_module(module: PtychoPINN) -> dict[str, np.ndarray]:
    """Return what a module starts with."""
    import torch

    state = {name: each.detach().double().numpy() for name, each in module.network.state_dict().items()}
    probe, log_scale = state.pop("probe_parts"), state.pop("log_scale")
    return {
        "weights": np.concatenate([state[name].ravel() for name in sorted(state)]),
        "probe": np.asarray(torch.view_as_complex(torch.from_numpy(probe)).numpy()),
        "log_scale": log_scale,
        "scale of the input": np.array(module.scale),
    }


TRAINED_BY = 0.3
"""What training has added to every weight of a checkpoint, and to ln of its scale."""


def _start_from(_: StepBench) -> Outcome:
    """A new run takes the weights of a checkpoint, and probe and scale of its own; a prediction takes all of it."""
    import tempfile

    import torch

    from ptycho_torch import checkpoint, train
    from ptycho_torch.config_params import Settings

    rng = np.random.default_rng(6)
    scales = {"checkpoint": 2.5, "new run": 7.25}
    probes = {name: rng.standard_normal((64, 64)) + 1j * rng.standard_normal((64, 64)) for name in scales}
    modules: dict[str, PtychoPINN] = {}
    for seed, (name, scale) in enumerate(scales.items()):
        chosen = {"n_filters_scale": 1, "gridsize": 2, "intensity_scale": scale, "probe_scale": PROBE_SCALE}
        settings = Settings().override({**chosen, "precision": "64-true", "seed": seed})
        modules[name] = train.PtychoPINN(settings, probe=torch.from_numpy(probes[name]))
    old, new = modules["checkpoint"], modules["new run"]
    drawn = _of_module(old)["weights"].copy()
    with torch.no_grad():
        # What training has done to it, its scale among it.
        for name, each in old.network.named_parameters():
            each.add_(0 if name == "probe_parts" else TRAINED_BY)
    before = {name: _of_module(module) for name, module in modules.items()}

    def physics(name: str) -> dict[str, np.ndarray]:
        return {
            "probe": normalise_probe(probes[name], PROBE_SCALE)[None],
            "log_scale": np.array(math.log(scales[name]) + (TRAINED_BY if name == "checkpoint" else 0)),
            "scale of the input": np.array(scales[name]),
        }

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "old.ckpt"
        checkpoint.write_checkpoint(
            path, old.settings, old.network.settings, old.statistics, old.network.state_dict(), overwrite=False
        )
        train._start_from(new, checkpoint.read_checkpoint(path))
        loaded = train.PtychoPINN.from_checkpoint(path)
    weights = {name: each["weights"] for name, each in before.items()}
    expected = {"weights": weights["checkpoint"], **physics("new run")}
    whole = {"weights": weights["checkpoint"], **physics("checkpoint")}
    expected |= {f"{name}, for prediction": each for name, each in whole.items()}
    found = _of_module(new) | {f"{name}, for prediction": each for name, each in _of_module(loaded).items()}

    def mistakes() -> Iterator[Hypothesis]:
        theirs = physics("checkpoint")
        for what, names in (
            ("probe", ("probe",)),
            ("scale", ("log_scale",)),
            ("probe and scale", ("probe", "log_scale")),
        ):
            yield Hypothesis(f"{what} of the checkpoint kept", {name: theirs[name] for name in names})
        yield Hypothesis("weights of the checkpoint not taken", {"weights": weights["new run"]})
        raw = {name: probes[name][None] / PROBE_SCALE for name in probes}
        yield Hypothesis("probe not normalised", {"probe": raw["new run"], "probe, for prediction": raw["checkpoint"]})
        rest = {f"{name}, for prediction": each for name, each in physics("new run").items()}
        yield Hypothesis("probe and scale of another run", rest)
        untrained = np.array(math.log(scales["checkpoint"]))
        yield Hypothesis("scale before training", {"log_scale, for prediction": untrained})
        default = {"weights": drawn, "probe": normalise_probe(default_probe(64), 4.0)[None], "log_scale": untrained}
        nothing = {f"{name}, for prediction": each.astype(whole[name].dtype) for name, each in default.items()}
        yield Hypothesis("nothing of the checkpoint loaded", nothing)

    return Outcome(expected, found, FLOAT64, mistakes)


RESUMING: tuple[Step, ...] = (
    Step(
        "optimiser.resumed",
        ("STEP-OPTIMISER", "TRAIN-RATE", "TRAIN-STOP", "TRAIN-STATE"),
        _resumed,
        ("lightning", "tensordict"),
    ),
    Step("optimiser.start_from", ("STEP-OPTIMISER", "REF-02", "WEIGHT-01"), _start_from, ("lightning", "tensordict")),
)
