"""Seeded faults of whole runs: what settings and data decide, what a run leaves, and how it goes on."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from conformance.seeding import Body, Fault, argument, instead, of_area
from ptycho_torch import config_params, lightning_module, model, train
from ptycho_torch.checkpoint import KEY
from ptycho_torch.config_params import LossWeights, TrainingSettings
from ptycho_torch.dset_loader_pt_mmap import PtychoDataset
from ptycho_torch.optim import KerasAdam
from ptycho_torch.train import PtychoPINN


def _likelihood_beside(original: Body) -> Body:
    def wrong(self: TrainingSettings, loss_function: Any) -> LossWeights:
        weights: LossWeights = original(self, loss_function)
        return dataclasses.replace(weights, nll_weight=1.0 if self.nll_weight is None else self.nll_weight)

    return wrong


def _zero_is_none(original: Body) -> Body:
    def wrong(self: TrainingSettings, loss_function: Any) -> LossWeights:
        weights: LossWeights = original(self, loss_function)
        poisson = float(loss_function == "Poisson")
        return dataclasses.replace(weights, nll_weight=self.nll_weight or poisson)

    return wrong


def _before_kept(original: Body) -> Body:
    def wrong(self: Any, values: Mapping[str, Any]) -> None:
        before = self._settings
        original(self, values)
        self._settings = dataclasses.replace(before, **values)

    return wrong


def _first_of(number: int) -> Callable[[Body], Body]:
    """Call with so many of the positional arguments."""
    return lambda original: lambda *given: original(*given[:number])


def _seed_ignored(original: Body) -> Body:
    def wrong(*given: Any, generator: torch.Generator, **named: Any) -> Any:
        return original(*given, generator=generator.manual_seed(0), **named)

    return wrong


def _bound_of_he(original: Body) -> Body:
    def wrong(self: model.Convolution, fan_in: int, fan_out: int, **named: Any) -> None:
        original(self, fan_in, fan_out, **named)
        self.weight.data.mul_(math.sqrt((fan_in + fan_out) / fan_in))

    return wrong


def _biases_drawn(original: Body) -> Body:
    def wrong(self: model.Convolution, *given: Any, **named: Any) -> None:
        original(self, *given, **named)
        self.bias.data.uniform_(-0.1, 0.1, generator=torch.Generator().manual_seed(0))

    return wrong


def _one_probe(original: Body) -> Any:
    def wrong(dataset: PtychoDataset, settings: Any = None) -> PtychoPINN:
        module: PtychoPINN = original(dataset, settings)
        module.statistics["one_probe"] = True
        return module

    return staticmethod(wrong)


def _offset_not_handed_on(original: Body) -> Body:
    def wrong(self: PtychoDataset, *, offset: int | None = None, max_position_jitter: int | None = None) -> Any:
        return original(self, max_position_jitter=max_position_jitter)

    return wrong


def _trainer_with(**changed: Any) -> Callable[[Body], Body]:
    """Make the trainer of other settings."""
    return lambda original: (
        lambda training, *given, **named: original(dataclasses.replace(training, **changed), *given, **named)
    )


def _first_validation_kept(original: Body) -> Body:
    """Note the validation loss of the first epoch in every epoch."""

    def wrong(self: PtychoPINN) -> None:
        original(self)
        noted = self.history["val_loss"]
        noted[-1] = noted[0]

    return wrong


def _always_finished(original: Body) -> Body:
    def wrong(self: PtychoPINN, content: dict[str, Any]) -> None:
        original(self, content)
        content[KEY]["finished"] = True

    return wrong


def _from_the_beginning(original: Body) -> Body:
    return lambda self, *given, ckpt_path=None, **named: original(self, *given, **named)


_configuration, _data, _optimiser = of_area("configuration"), of_area("data"), of_area("optimiser")


RUN_CONFIGURATION: tuple[Fault, ...] = (
    _configuration(
        "likelihood beside the error of the amplitude", "loss", TrainingSettings, "loss_weights",
        _likelihood_beside, "likelihood counts beside any loss",
    ),
    _configuration(
        "weight 0 of the likelihood taken for none", "loss", TrainingSettings, "loss_weights",
        _zero_is_none, None,
    ),
    _configuration(
        "settings of before kept", "process", config_params._Singleton, "set_settings",
        _before_kept, "what was set before is kept",
    ),
)  # fmt: skip
"""Faults of what settings mean."""

RUNS: tuple[Fault, ...] = (
    _optimiser("adam with the ε of PyTorch", "choices", torch.optim, "Adam", _first_of(3), "ε ignored"),
    _optimiser("decay of PyTorch", "choices", torch.optim, "AdamW", _first_of(4), "decay ignored"),
    _optimiser(
        "Keras' form for PyTorch's", "choices", torch.optim, "Adam", instead(KerasAdam),
        "keras_adam whatever was chosen",
    ),
    _optimiser(
        "seed of the first weights ignored", "initial_weights", lightning_module, "PtychoNet", _seed_ignored,
        "one seed for all runs",
    ),
    _optimiser(
        "fan-in alone", "initial_weights", model.Convolution, "__init__", _bound_of_he,
        "bound of He for Glorot's",
    ),
    _optimiser("biases drawn", "initial_weights", model.Convolution, "__init__", _biases_drawn, None),
    _optimiser(
        "every scan lit by one probe", "of_data", PtychoPINN, "for_dataset", _one_probe,
        "one probe for all scans",
    ),
    _data(
        "given offset not handed on", "derived_of_scans", PtychoDataset, "derived", _offset_not_handed_on,
        "given offset ignored",
    ),
    _optimiser(
        "offset of the reference for its jitter", "of_data", lightning_module, "REFERENCE_JITTER_PX", instead(4),
        "offset for the jitter",
    ),
    _optimiser(
        "bfloat16 ignored", "precision", train, "make_trainer", _trainer_with(precision="32-true"),
        "32-true whatever was chosen",
    ),
    _optimiser(
        "operations that are not reproducible", "precision", train, "make_trainer",
        _trainer_with(deterministic=False), None,
    ),
    _optimiser(
        "best.ckpt by the training loss", "run", train, "BestCheckpoint", argument(1, lambda monitor: "train_loss"),
        "best.ckpt by the training loss",
    ),
    _optimiser(
        "loss noted twice an epoch", "run", PtychoPINN, "on_train_batch_end",
        argument(3, lambda number: number + 1), "loss noted behind the last batch but one",
    ),
    _optimiser(
        "validation loss of the first epoch in every epoch", "run", PtychoPINN, "on_validation_epoch_end",
        _first_validation_kept, None,
    ),
    _optimiser(
        "early stopping by the training loss", "run", train, "EarlyStopping",
        argument(0, lambda monitor: "train_loss"), "ends early by the training loss",
    ),
    _optimiser(
        "every checkpoint is the last", "run", PtychoPINN, "on_save_checkpoint", _always_finished,
        "every last.ckpt says that training has ended",
    ),
    _optimiser(
        "resumed from the beginning", "resumed_run", Trainer, "fit", _from_the_beginning,
        "training begun anew",
    ),
    _optimiser(
        "best loss not restored", "resumed_run", ModelCheckpoint, "load_state_dict",
        instead(lambda self, state: None), "best.ckpt by the epochs behind the interruption",
    ),
    _optimiser(
        "another run resumed", "resumed_run", train, "_same_run", instead(lambda *_: None), None,
    ),
)  # fmt: skip
"""Faults of runs."""
