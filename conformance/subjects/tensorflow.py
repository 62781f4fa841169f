"""The TensorFlow side of the conformance suite: a model of the reference whose stages can be read, as a subject."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from conformance.cases.case import Case, ForcedRun, FreeRun
from ptycho_tf_bridge import keras_reference
from ptycho_tf_bridge.backend import tensorflow
from ptycho_tf_bridge.keras_reference import OnStage
from ptycho_tf_bridge.weights import weight_table
from ptycho_torch.config_params import NetworkSettings

LOSS_STAGE = "loss"
"""Pseudo-stage of the losses."""

_LOSS_INPUTS = ("predicted_amplitude", "predicted_intensity")


class TensorFlowModel(Protocol):
    """A model whose stages can be read, and replaced as they pass: our own, or that of an installed package."""

    max_patches: int | None
    """Most patches in one call (REF-01); None where the model takes any number."""

    def load(self, weights: Mapping[str, np.ndarray], intensity_scale: float, probe: np.ndarray) -> None:
        """Take weights, s_I and probe."""

    def named_variables(self) -> dict[str, Any]:
        """Name each convolution's variable: ``STAGE.kernel`` and ``STAGE.bias``."""

    def run_stages(self, scaled_amplitude: Any, offsets_px: Any, on_stage: OnStage) -> tuple[Any, Any, Any]:
        """Compute every stage in order; as ``keras_reference.run_stages``."""


class TensorFlowSubject:
    """Runs cases of one graph on one model.

    Gradients follow the suite's convention ∂L/∂Re + i·∂L/∂Im, which is TensorFlow's own. Where max-pooled
    pixels tie, TensorFlow gives the whole gradient to the first.

    Args:
        settings: settings of every case that will run; only ``intensity_scale`` may differ between them.
        dtype: "float32", the reference as it is, or "float64".
        model: of these settings and in this dtype.
    """

    def __init__(self, settings: NetworkSettings, dtype: str, model: TensorFlowModel) -> None:
        self.settings = settings
        self.dtype = self.products = dtype
        self._complex = "complex64" if dtype == "float32" else "complex128"
        self._stage_weights = {e.stage: (e.kernel_name, e.bias_name) for e in weight_table(settings)}
        self._staged = model

    def free(self, case: Case) -> FreeRun:
        """Run the case end to end, and pull the total loss back to every stage and weight.

        Raises:
            ValueError: a case with other settings, or one that REF-01 forbids.
            WeightMapError: a weight that is unknown, missing or misshapen.
        """
        tf = tensorflow()
        zero = tf.UnconnectedGradients.ZERO
        amplitude, offsets = self._load(case)
        variables = self._staged.named_variables()
        stages: dict[str, Any] = {}
        with tf.GradientTape() as tape:

            def record(stage: str, value: Any) -> Any:
                tape.watch(value)
                stages[stage] = value
                return value

            outputs = self._staged.run_stages(amplitude, offsets, record)
            losses = keras_reference.losses(self.settings, case.loss_weights, outputs, amplitude)
        cotangents, gradients = tape.gradient(losses["total"], (stages, variables), unconnected_gradients=zero)
        return FreeRun(_arrays(stages), _arrays(cotangents), _arrays(gradients), _numbers(losses))

    def forced(
        self, case: Case, truth_stages: Mapping[str, np.ndarray], truth_cotangents: Mapping[str, np.ndarray]
    ) -> ForcedRun:
        """Run every stage on the truth's inputs, and pull the truth's cotangents back through each.

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

            outputs = self._staged.run_stages(amplitude, offsets, feed)
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

    def _load(self, case: Case) -> tuple[Any, Any]:
        """Give the model the case's weights and physics; return (scaled amplitude, offsets) as tensors."""
        tf = tensorflow()
        scale = case.settings.intensity_scale
        if dataclasses.replace(self.settings, intensity_scale=scale) != case.settings:
            raise ValueError(f"case {case.name!r} has other settings than this subject: {case.settings}.")
        patches = case.diffraction.shape[0] * case.settings.C
        most = self._staged.max_patches
        if most is not None and case.settings.object_big and patches > most:
            raise ValueError(
                f"case {case.name!r} has {patches} patches in one call. From {most + 1} on, the TensorFlow reference "
                "folds the whole batch into one canvas (REF-01), so it is no reference there; use fewer groups."
            )
        self._staged.load(case.weights, scale, case.probe)
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
        variables = self._staged.named_variables()
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
