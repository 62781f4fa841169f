"""What Keras' own callbacks and schedules decide on given curves of losses."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from conformance.oracle.training import Plateau
from ptycho_tf_bridge.backend import keras


def _stub(rate: float) -> Any:
    """As much of a model as a callback looks at."""
    return SimpleNamespace(optimizer=keras().optimizers.SGD(rate), stop_training=False)


def keras_plateau_rates(losses: Sequence[float], rate: float, plateau: Plateau) -> list[float]:
    """Return the learning rate of each epoch under ``keras.callbacks.ReduceLROnPlateau``."""
    callback = keras().callbacks.ReduceLROnPlateau(
        "val_loss", plateau.factor, plateau.patience, min_delta=plateau.threshold, min_lr=plateau.least
    )
    model = _stub(rate)
    callback.set_model(model)
    callback.on_train_begin()
    rates = []
    for epoch, loss in enumerate(losses):
        rates.append(float(model.optimizer.learning_rate))
        callback.on_epoch_end(epoch, {"val_loss": loss})
    return rates


def keras_epochs_before_stop(losses: Sequence[float], patience: int) -> int:
    """Return how many epochs run under ``keras.callbacks.EarlyStopping`` on the training loss."""
    callback = keras().callbacks.EarlyStopping("loss", min_delta=0, patience=patience)
    model = _stub(1.0)
    callback.set_model(model)
    callback.on_train_begin()
    for epoch, loss in enumerate(losses):
        callback.on_epoch_end(epoch, {"loss": loss})
        if model.stop_training:
            return epoch + 1
    return len(losses)


def keras_exponential_rates(epochs: int, rate: float, gamma: float) -> list[float]:
    """Return the rates of ``ExponentialDecay``, one step an epoch."""
    schedule = keras().optimizers.schedules.ExponentialDecay(rate, decay_steps=1, decay_rate=gamma, staircase=True)
    return [float(schedule(epoch)) for epoch in range(epochs)]


def keras_cosine_rates(epochs: int, rate: float, warmup: int, least_ratio: float) -> list[float]:
    """Return the rates of ``CosineDecay`` with a linear warm-up from rate / (warmup + 1), one step an epoch."""
    warming = {"warmup_target": rate, "warmup_steps": warmup} if warmup else {}
    schedule = keras().optimizers.schedules.CosineDecay(
        rate / (warmup + 1), decay_steps=epochs - 1 - warmup, alpha=least_ratio, **warming
    )
    return [float(schedule(epoch)) for epoch in range(epochs)]
