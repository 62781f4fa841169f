"""Our Keras model of the reference as a subject, which can be trained too."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from conformance.subjects.tensorflow import TensorFlowSubject
from conformance.training.state import LOG_SCALE, PROBE_PARTS, State, TrainingRun, Trajectory
from ptycho_tf_bridge import keras_reference
from ptycho_tf_bridge.backend import tensorflow
from ptycho_tf_bridge.keras_reference import OnStage
from ptycho_torch.config_params import LossWeights, NetworkSettings

_PHYSICS = {"log_scale": LOG_SCALE, "probe": PROBE_PARTS}


class _Staged:
    """The Keras model, stage by stage."""

    max_patches: int | None = keras_reference.MAX_PATCHES_PER_CALL - 1

    def __init__(self, model: Any) -> None:
        self._model = model

    def load(self, weights: Mapping[str, np.ndarray], intensity_scale: float, probe: np.ndarray) -> None:
        keras_reference.set_named_weights(self._model, weights)
        keras_reference.set_physics(self._model, intensity_scale, probe)

    def named_variables(self) -> dict[str, Any]:
        return keras_reference.named_variables(self._model)

    def run_stages(self, scaled_amplitude: Any, offsets_px: Any, on_stage: OnStage) -> tuple[Any, Any, Any]:
        return keras_reference.run_stages(self._model, scaled_amplitude, offsets_px, on_stage)


class KerasSubject(TensorFlowSubject):
    """Runs and trains cases of one graph on one Keras model, which is built once.

    Args:
        settings: settings of every case that will run; only ``intensity_scale`` may differ between them.
        dtype: "float32", the reference as it is, or "float64".
        trainable_physics: train scale and probe as the settings say, which the reference's flags intend. False is the
            reference as it is: nothing but convolutions is trained, whatever the settings say (REF-02).

    Raises:
        BackendMissingError: no TensorFlow.
    """

    def __init__(self, settings: NetworkSettings, dtype: str = "float32", trainable_physics: bool = False) -> None:
        self._tracks = trainable_physics
        self._model = keras_reference.build_reference(
            settings, np.ones((settings.N, settings.N), np.complex64), dtype, trainable_physics
        )
        super().__init__(settings, dtype, _Staged(self._model))
        self._trainer = functools.cache(self._make_trainer)
        if trainable_physics:
            self._model.log_scale.trainable = settings.intensity_scale_trainable
            self._model.probe.trainable = settings.probe_trainable

    def train(self, run: TrainingRun) -> Trajectory:
        """Train as a run says, by Keras' own Adam and clipping.

        Raises:
            ValueError, WeightMapError: as ``free``.
        """
        inputs = [self._load(dataclasses.replace(run.start, diffraction=batch.diffraction, offsets_px=batch.offsets_px))
                  for batch in run.batches]  # fmt: skip
        optimizer, update = self._trainer(run.learning_rate, run.clip, run.clip_algorithm, run.start.loss_weights)
        for variable in optimizer.variables:
            if variable is not optimizer.learning_rate:
                variable.assign(tensorflow().zeros_like(variable))
        before = self._physics()
        losses, states = [], []
        for amplitude, offsets in inputs:
            losses.append(float(update(amplitude, offsets)))
            weights, momentum, velocity = (
                self._by_name(each)
                for each in (self._model.trainable_variables, optimizer._momentums, optimizer._velocities)
            )
            states.append(State(weights, momentum, velocity, int(optimizer.iterations)))
        trained = states[-1].weights
        kept = all(np.array_equal(each, before[name]) for name, each in self._physics().items() if name not in trained)
        return Trajectory(np.array(losses), tuple(states), kept)

    def _physics(self) -> dict[str, np.ndarray]:
        return {name: np.array(getattr(self._model, ours).numpy()) for ours, name in _PHYSICS.items()}

    def _make_trainer(
        self, learning_rate: float, clip: float | None, clip_algorithm: str, loss_weights: LossWeights
    ) -> tuple[Any, Any]:
        """Return an optimiser, and the compiled function that takes one step on a batch and gives the loss before."""
        tf = tensorflow()
        variables = self._model.trainable_variables
        optimizer = keras_reference.adam(learning_rate, self.dtype, clip, clip_algorithm)
        optimizer.build(variables)

        def update(amplitude: Any, offsets: Any) -> Any:
            with tf.GradientTape() as tape:
                outputs = keras_reference.run_stages(self._model, amplitude, offsets)
                total = keras_reference.losses(self.settings, loss_weights, outputs, amplitude)["total"]
            optimizer.apply_gradients(zip(tape.gradient(total, variables), variables, strict=True))
            return total

        return optimizer, tf.function(update)

    def _by_name(self, values: Sequence[Any]) -> dict[str, np.ndarray]:
        """Name what belongs to the trainable variables, in their order."""
        names = {id(variable): name for name, variable in keras_reference.named_variables(self._model).items()}
        names |= {id(getattr(self._model, name).value): other for name, other in _PHYSICS.items() if self._tracks}
        ordered = [names[id(variable.value)] for variable in self._model.trainable_variables]
        return {name: np.array(value.numpy()) for name, value in zip(ordered, values, strict=True)}
