"""The TensorFlow side of the conformance suite: our Keras model of the reference as a subject."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from conformance.case import Case, ForcedRun, FreeRun
from conformance.training import LOG_SCALE, PROBE_PARTS, State, TrainingRun, Trajectory
from ptycho_tf_bridge import keras_reference
from ptycho_tf_bridge.backend import tensorflow
from ptycho_tf_bridge.weights import weight_table
from ptycho_torch.config_params import LossWeights, NetworkSettings

LOSS_STAGE = "loss"
"""Pseudo-stage of the losses."""

_PHYSICS = {"log_scale": LOG_SCALE, "probe": PROBE_PARTS}

_LOSS_INPUTS = ("predicted_amplitude", "predicted_intensity")


class KerasSubject:
    """Runs cases of one graph on one Keras model, which is built once.

    Gradients follow the suite's convention ∂L/∂Re + i·∂L/∂Im, which is TensorFlow's own. Where max-pooled
    pixels tie, TensorFlow gives the whole gradient to the first.

    Args:
        settings: settings of every case that will run; only ``intensity_scale`` may differ between them.
        dtype: "float32", the reference as it is, or "float64".
        centre_offsets_over_batch: as ``keras_reference.build_reference`` (REF-07).
        trainable_physics: train scale and probe as the settings say, which the reference's flags intend. False is the
            reference as it is: nothing but convolutions is trained, whatever the settings say (REF-02).

    Raises:
        BackendMissingError: no TensorFlow.
    """

    def __init__(
        self,
        settings: NetworkSettings,
        dtype: str = "float32",
        centre_offsets_over_batch: bool = False,
        trainable_physics: bool = False,
    ) -> None:
        self.settings = settings
        self._tracks = trainable_physics
        self.dtype = dtype
        self._complex = "complex64" if dtype == "float32" else "complex128"
        self._stage_weights = {e.stage: (e.kernel_name, e.bias_name) for e in weight_table(settings)}
        self._model = keras_reference.build_reference(
            settings,
            np.ones((settings.N, settings.N), np.complex64),
            dtype,
            trainable_physics,
            centre_offsets_over_batch=centre_offsets_over_batch,
        )
        self._trainer = functools.cache(self._make_trainer)
        if trainable_physics:
            self._model.log_scale.trainable = settings.intensity_scale_trainable
            self._model.probe.trainable = settings.probe_trainable

    def free(self, case: Case) -> FreeRun:
        """Run the case end to end, and pull the total loss back to every stage and weight.

        Raises:
            ValueError: a case with other settings, or one that REF-01 forbids.
            WeightMapError: a weight that is unknown, missing or misshapen.
        """
        tf = tensorflow()
        zero = tf.UnconnectedGradients.ZERO
        amplitude, offsets = self._load(case)
        variables = keras_reference.named_variables(self._model)
        stages: dict[str, Any] = {}
        with tf.GradientTape() as tape:

            def record(stage: str, value: Any) -> Any:
                tape.watch(value)
                stages[stage] = value
                return value

            outputs = keras_reference.run_stages(self._model, amplitude, offsets, record)
            losses = keras_reference.losses(self.settings, case.loss_weights, outputs, amplitude)
        cotangents, gradients = tape.gradient(losses["total"], (stages, variables), unconnected_gradients=zero)
        return FreeRun(_arrays(stages), _arrays(cotangents), _arrays(gradients), _numbers(losses))

    def forced(
        self, case: Case, truth_stages: Mapping[str, np.ndarray], truth_cotangents: Mapping[str, np.ndarray]
    ) -> ForcedRun:
        """Run every stage on the truth's inputs, and pull the truth's cotangents back through it alone.

        Args:
            case: inputs and weights.
            truth_stages: every stage's output, which later stages read; cast to this subject's dtype.
            truth_cotangents: gradient of the total loss by every stage's output.

        Raises:
            ValueError: as ``free``; or the truth lacks a stage, or has it in another shape.
            WeightMapError: as ``free``.
        """
        tf = tensorflow()
        zero = tf.UnconnectedGradients.ZERO
        amplitude, offsets = self._load(case)
        stages: dict[str, Any] = {}
        fed: dict[str, Any] = {}
        with tf.GradientTape(persistent=True) as tape:

            def feed(stage: str, value: Any) -> Any:
                stages[stage] = value
                fed[stage] = self._constant(stage, truth_stages, value)
                tape.watch(fed[stage])
                return fed[stage]

            outputs = keras_reference.run_stages(self._model, amplitude, offsets, feed)
            losses = keras_reference.losses(self.settings, case.loss_weights, outputs, amplitude)
        pulled: dict[str, dict[str, np.ndarray]] = {}
        gradients: dict[str, np.ndarray] = {}
        for stage, value in stages.items():
            cotangent = self._constant(stage, truth_cotangents, value)
            pulled[stage], by_weight = self._pull(tape, value, cotangent, fed, self._weights_of(stage))
            gradients |= by_weight
        realspace = ("object",) if case.loss_weights.realspace_weight else ()
        by_output = tape.gradient(
            losses["total"], {stage: fed[stage] for stage in (*_LOSS_INPUTS, *realspace)}, unconnected_gradients=zero
        )
        pulled[LOSS_STAGE] = _arrays(by_output)
        return ForcedRun(_arrays(stages), pulled, gradients, _numbers(losses))

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

    def _load(self, case: Case) -> tuple[Any, Any]:
        """Give the model the case's weights and physics; return (scaled amplitude, offsets) as tensors."""
        tf = tensorflow()
        scale = case.settings.intensity_scale
        if dataclasses.replace(self.settings, intensity_scale=scale) != case.settings:
            raise ValueError(f"case {case.name!r} has other settings than this subject: {case.settings}.")
        patches = case.diffraction.shape[0] * case.settings.C
        if case.settings.object_big and patches >= keras_reference.MAX_PATCHES_PER_CALL:
            raise ValueError(
                f"case {case.name!r} has {patches} patches in one call. From "
                f"{keras_reference.MAX_PATCHES_PER_CALL} on, the TensorFlow reference folds the whole batch "
                "into one canvas (REF-01), so it is no reference there; use fewer groups."
            )
        keras_reference.set_named_weights(self._model, case.weights)
        keras_reference.set_physics(self._model, scale, case.probe)
        return tf.constant(case.scaled_amplitude(self.dtype)), tf.constant(case.offsets_px.astype(self.dtype))

    def _constant(self, stage: str, truth: Mapping[str, np.ndarray], value: Any) -> Any:
        """Take the truth's array of a stage as a tensor of this subject's dtype."""
        if stage not in truth:
            raise ValueError(f"the truth has no stage {stage!r}; it has {', '.join(truth)}.")
        if truth[stage].shape != tuple(value.shape):
            raise ValueError(
                f"stage {stage!r} has shape {tuple(value.shape)} here but {truth[stage].shape} in the truth."
            )
        dtype = self._complex if value.dtype.is_complex else self.dtype
        return tensorflow().constant(truth[stage].astype(dtype))

    def _weights_of(self, stage: str) -> dict[str, Any]:
        variables = keras_reference.named_variables(self._model)
        return {name: variables[name] for name in self._stage_weights.get(stage, ())}

    @staticmethod
    def _pull(
        tape: Any, value: Any, cotangent: Any, inputs: Mapping[str, Any], weights: Mapping[str, Any]
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Pull one stage's cotangent back to those inputs that it reads, and to its weights."""
        by_input, by_weight = tape.gradient(value, (dict(inputs), dict(weights)), output_gradients=cotangent)
        connected = {name: gradient for name, gradient in by_input.items() if gradient is not None}
        return _arrays(connected), _arrays(by_weight)


def _arrays(tensors: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def _numbers(tensors: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(tensor) for name, tensor in tensors.items()}
