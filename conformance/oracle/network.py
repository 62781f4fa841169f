"""The network in float64 NumPy, forward and reverse: the truth of the conformance suite.

Written from the equations of the reference; imports nothing of the packages under test. Everything is
channels last, float64 or complex128. Cotangents of complex values are ∂L/∂Re + i·∂L/∂Im.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from conformance.oracle import losses as loss_terms
from conformance.oracle.operations import central_square, wide
from conformance.oracle.stages import (
    Activation,
    Amplitude,
    CentralObject,
    Constants,
    Convolution,
    ExitWave,
    Merge,
    PaddedOutput,
    Patches,
    Pool,
    Pullback,
    Scale,
    Square,
    Stage,
    Upsample,
    Views,
    rms,
)

__all__ = ["Constants", "Gradients", "Oracle", "Pullback", "keras_adam"]

AMPLITUDE_ACTIVATIONS = ("sigmoid", "swish", "softplus", "relu")
OUTER_CHANNELS = 4
"""Channels of the decoder's last output that the outer path takes, whatever C is."""
ALL_CHANNELS = slice(None)


@dataclass(frozen=True)
class Gradients:
    """What the reverse pass gives.

    Attributes:
        cotangents: stage id → gradient of the total loss by that stage's output, zeros if it has none.
        constants: weight name, ``probe`` (M, N, N) and ``log_scale`` () → gradient of the total loss.
    """

    cotangents: dict[str, np.ndarray]
    constants: dict[str, np.ndarray]


class Oracle:
    """The network of one configuration.

    Args:
        config: N, gridsize, n_filters_scale, object_big, probe_big, pad_object, probe_mask, amp_activation,
            gaussian_smoothing_sigma, offset, max_position_jitter; optional ``shared_amplitude_head``. Other
            keys are ignored. The intensity scale belongs to the constants.

    Attributes:
        stages: stage ids in an order in which they can be evaluated.
        inputs: stage id → ids of the stages that feed it; the network's input is ``input``.
        weight_shapes: ``STAGE.kernel`` and ``STAGE.bias`` → shape.

    Raises:
        ValueError: for an N or activation the network does not have, and where ``object_big`` meets an odd
            (gridsize − 1) · offset + max_position_jitter, which leaves no whole padding on each side.
    """

    def __init__(self, config: Mapping[str, object]) -> None:
        network = _Network(config)
        self._nodes: dict[str, Stage] = network.nodes
        self.inputs: dict[str, tuple[str, ...]] = network.inputs
        self.stages: tuple[str, ...] = tuple(network.nodes)
        self.weight_shapes: dict[str, tuple[int, ...]] = {}
        for node in network.nodes.values():
            self.weight_shapes |= node.weight_shapes()
        N = network.N
        mask = np.ones((N, N)) if network.probe_big else central_square(N)
        self._object_mask: np.ndarray = mask[:, :, None]

    def node(self, stage: str) -> Stage:
        """Return the equation of one stage; it takes inputs in the order of ``Oracle.inputs``."""
        return self._nodes[stage]

    def forward(self, network_input: np.ndarray, constants: Constants) -> dict[str, np.ndarray]:
        """Return the output of every stage for the (B, N, N, C) scaled amplitude."""
        values = {"input": wide(network_input)}
        for stage in self.stages:
            values[stage] = self._nodes[stage].evaluate([values[name] for name in self.inputs[stage]], constants)
        del values["input"]
        return values

    def losses(
        self,
        values: Mapping[str, np.ndarray],
        measured_amplitude: np.ndarray,
        loss_weights: Mapping[str, float],
        target: np.ndarray | None = None,
    ) -> dict[str, float]:
        """Return ``nll``, ``mae`` and ``total``.

        total = nll_weight · NLL + mae_weight · MAE
              + realspace_weight · (tv_weight · TV + realspace_mae_weight · MAE_object).
        An absent weight is 0.

        Args:
            values: holds ``predicted_intensity``, ``predicted_amplitude``, and ``object`` where a real-space
                weight is not zero.
            measured_amplitude: (B, N, N, C) scaled amplitude s_I · X.
            loss_weights: weight name → value.
            target: (B, N, N, 1) complex ground truth, already shifted; needed by MAE_object alone.
        """
        measured = wide(measured_amplitude)
        nll = loss_terms.likelihood(wide(values["predicted_intensity"]), measured)
        mae = float(np.abs(wide(values["predicted_amplitude"]) - measured).mean())
        total = loss_weights.get("nll_weight", 0.0) * nll + loss_weights.get("mae_weight", 0.0) * mae
        tv_weight, error_weight = _real_space_weights(loss_weights)
        if tv_weight:
            total += tv_weight * loss_terms.total_variation(self._masked_object(values))
        if error_weight:
            total += error_weight * loss_terms.object_error(self._masked_object(values), _given(target))
        return {"nll": nll, "mae": mae, "total": total}

    def loss_branch(self, values: Mapping[str, np.ndarray], measured_amplitude: np.ndarray) -> np.ndarray:
        """Return the sign of predicted − measured amplitude: +1, −1 or 0."""
        return loss_terms.signs(values["predicted_amplitude"], measured_amplitude)

    def loss_margin(
        self, values: Mapping[str, np.ndarray], measured_amplitude: np.ndarray, branch: np.ndarray
    ) -> float:
        """Return the largest |predicted − measured| where ``branch`` has another sign, over RMS(measured)."""
        predicted, measured = wide(values["predicted_amplitude"]), wide(measured_amplitude)
        disagree = branch != loss_terms.signs(predicted, measured)
        worst = float(np.abs(predicted - measured)[disagree].max(initial=0.0))
        return worst / rms(measured) if worst else 0.0

    def loss_pullback(
        self,
        values: Mapping[str, np.ndarray],
        measured_amplitude: np.ndarray,
        loss_weights: Mapping[str, float],
        branch: np.ndarray | None = None,
        target: np.ndarray | None = None,
    ) -> dict[str, np.ndarray]:
        """Return the direct gradient of the total by each stage the losses read.

        Args:
            values: as for ``losses``.
            measured_amplitude: as for ``losses``.
            loss_weights: as for ``losses``.
            branch: signs to use for the amplitude MAE instead of its own.
            target: as for ``losses``.
        """
        measured, predicted = wide(measured_amplitude), wide(values["predicted_amplitude"])
        sign = self.loss_branch(values, measured) if branch is None else branch
        gradients = {
            "predicted_intensity": loss_weights.get("nll_weight", 0.0)
            * loss_terms.likelihood_gradient(wide(values["predicted_intensity"]), measured),
            "predicted_amplitude": loss_weights.get("mae_weight", 0.0) * sign / predicted.size,
        }
        tv_weight, error_weight = _real_space_weights(loss_weights)
        if tv_weight or error_weight:
            image = self._masked_object(values)
            by_object = tv_weight * loss_terms.total_variation_gradient(image)
            if error_weight:
                by_object += error_weight * loss_terms.object_error_gradient(image, _given(target))
            gradients["object"] = by_object * self._object_mask
        return gradients

    def backward(
        self,
        values: Mapping[str, np.ndarray],
        network_input: np.ndarray,
        constants: Constants,
        measured_amplitude: np.ndarray,
        loss_weights: Mapping[str, float],
        branches: Mapping[str, np.ndarray] | None = None,
        target: np.ndarray | None = None,
    ) -> Gradients:
        """Run the reverse pass through the losses and every stage, at the given stage values.

        Args:
            values: stage id → output, as ``forward`` gives them.
            network_input: (B, N, N, C).
            constants: weights, offsets, probe and scale.
            measured_amplitude: as for ``losses``.
            loss_weights: as for ``losses``.
            branches: stage id, or ``loss``, → linear piece to differentiate instead of the values' own.
            target: as for ``losses``.
        """
        branches = branches or {}
        fed = {**values, "input": wide(network_input)}
        cotangents = {stage: np.zeros_like(wide(values[stage])) for stage in self.stages}
        direct = self.loss_pullback(values, measured_amplitude, loss_weights, branches.get("loss"), target)
        for stage, gradient in direct.items():
            cotangents[stage] += gradient
        constant_gradients: dict[str, np.ndarray] = {}
        for stage in reversed(self.stages):
            names = self.inputs[stage]
            inputs = [fed[name] for name in names]
            branch = branches.get(stage)
            if branch is None:
                branch = self._nodes[stage].branch(inputs, values[stage])
            pulled = self._nodes[stage].pullback(inputs, cotangents[stage], constants, branch)
            for name, gradient in zip(names, pulled.inputs, strict=True):
                if name != "input":
                    cotangents[name] += gradient
            for name, gradient in pulled.constants.items():
                constant_gradients[name] = constant_gradients.get(name, np.zeros(())) + gradient
        return Gradients(cotangents, constant_gradients)

    def _masked_object(self, values: Mapping[str, np.ndarray]) -> np.ndarray:
        return np.asarray(wide(values["object"]) * self._object_mask)


def _real_space_weights(loss_weights: Mapping[str, float]) -> tuple[float, float]:
    outer = loss_weights.get("realspace_weight", 0.0)
    return outer * loss_weights.get("tv_weight", 0.0), outer * loss_weights.get("realspace_mae_weight", 0.0)


def _given(target: np.ndarray | None) -> np.ndarray:
    if target is None:
        raise ValueError("a real-space MAE weight other than 0 needs the ground-truth target")
    return wide(target)


class _Network:
    """The stages of a configuration, added one after the other."""

    def __init__(self, config: Mapping[str, object]) -> None:
        def whole(name: str) -> int:
            return int(str(config[name]))

        self.N, grid = whole("N"), whole("gridsize")
        if self.N not in (64, 128, 256):
            raise ValueError(f"N is {self.N}; the network is defined for 64, 128 and 256")
        self.C, self.scale = grid**2, whole("n_filters_scale")
        self.object_big, self.probe_big = bool(config["object_big"]), bool(config["probe_big"])
        self.pad_object, self.masked = bool(config["pad_object"]), bool(config["probe_mask"])
        self.sigma = float(str(config["gaussian_smoothing_sigma"]))
        self.amp_activation = str(config["amp_activation"])
        if self.amp_activation not in AMPLITUDE_ACTIVATIONS:
            raise ValueError(f"amp_activation {self.amp_activation!r} is not one of {AMPLITUDE_ACTIVATIONS}")
        slack = (grid - 1) * whole("offset") + whole("max_position_jitter")
        if self.object_big and slack % 2:
            raise ValueError(
                f"(gridsize − 1)·offset + max_position_jitter is {slack}, odd; half of it pads each side "
                "of the canvas. Change one of the three by 1."
            )
        self.P = self.N + 2 * (slack // 2)
        self.heads = self.C if self.object_big else 1
        self.amplitude_heads = 1 if config.get("shared_amplitude_head") else self.heads
        self.depth = self.N.bit_length() - 4
        self.nodes: dict[str, Stage] = {}
        self.inputs: dict[str, tuple[str, ...]] = {}
        self._add_all()

    def _add(self, name: str, node: Stage, *inputs: str) -> str:
        self.nodes[name] = node
        self.inputs[name] = inputs
        return name

    def _convolution(
        self,
        name: str,
        source: str,
        size: int,
        channels: tuple[int, int],
        *,
        relu: bool,
        used: slice = ALL_CHANNELS,
    ) -> str:
        return self._add(name, Convolution(size, channels[1], name, channels[0], used, relu), source)

    def _pair(self, name: str, source: str, size: int, channels: tuple[int, int], used: slice = ALL_CHANNELS) -> str:
        first = self._convolution(f"{name}.conv1", source, size, channels, relu=True, used=used)
        return self._convolution(f"{name}.conv2", first, size, (channels[1], channels[1]), relu=True)

    def _add_all(self) -> None:
        N, C = self.N, self.C
        last = self._add("normalized_input", Scale(N, C, -1), "input")
        latent, channels = self._add_encoder(last)
        amplitude = self._add_decoder("amp", latent, channels, self.amplitude_heads, self.amp_activation)
        phase = self._add_decoder("phase", latent, channels, self.heads, "pi_tanh")
        self._add("patches", Patches(N, self.heads), amplitude, phase)
        self._add("merged", Merge(self.P, 1, N, self.object_big), "patches")
        self._add("object", CentralObject(N, 1), "merged")
        self._add("views", Views(N, C), "merged")
        self._add("exit_wave", ExitWave(N, C, self.sigma, self.masked), "views")
        self._add("amplitude", Amplitude(N, C), "exit_wave")
        self._add("predicted_amplitude", Scale(N, C, 1), "amplitude")
        self._add("predicted_intensity", Square(N, C), "predicted_amplitude")

    def _add_encoder(self, last: str) -> tuple[str, int]:
        """Add blocks of widths (2048/N) · 2^i · s down to 8 × 8; return the last stage and its channels."""
        size, channels = self.N, self.C
        for block in range(self.depth):
            width = 2048 // self.N * 2**block * self.scale
            last = self._pair(f"encoder.{block}", last, size, (channels, width))
            size, channels = size // 2, width
            last = self._add(f"encoder.{block}.pool", Pool(size, channels), last)
        return last, channels

    def _add_decoder(self, which: str, last: str, channels: int, heads: int, activation: str) -> str:
        """Add blocks of widths N / 2^i · s up to N/2, then the head; return the output stage."""
        name, size = f"decoder_{which}", self.N // 2**self.depth
        for block in range(self.depth - 1):
            width = self.N // 2**block * self.scale
            last = self._pair(f"{name}.{block}", last, size, (channels, width))
            size, channels = 2 * size, width
            last = self._add(f"{name}.{block}.up", Upsample(size, channels), last)
        output = f"{name}.output"
        if not self.pad_object:
            head = self._add_outer(name, last, size, channels, heads, ALL_CHANNELS)
            return self._add(output, Activation(self.N, heads, activation), head)
        inner = (channels - OUTER_CHANNELS, heads)
        used = slice(-OUTER_CHANNELS)
        self._convolution(f"{name}.central", last, size, inner, relu=False, used=used)
        parts = [self._add(f"{name}.activation", Activation(size, heads, activation), f"{name}.central")]
        if self.probe_big:
            head = self._add_outer(name, last, size, OUTER_CHANNELS, heads, slice(-OUTER_CHANNELS, None))
            parts.append(self._add(f"{name}.outer.swish", Activation(self.N, heads, "swish"), head))
        return self._add(output, PaddedOutput(self.N, heads), *parts)

    def _add_outer(self, name: str, last: str, size: int, channels: int, heads: int, used: slice) -> str:
        width = self.scale * 2048 // self.N
        last = self._pair(f"{name}.outer", last, size, (channels, width), used)
        last = self._add(f"{name}.outer.up", Upsample(2 * size, width), last)
        return self._convolution(f"{name}.outer.head", last, 2 * size, (width, heads), relu=False)


Moments = dict[str, tuple[np.ndarray, np.ndarray]]
"""Weight name → first and second moment of its gradient."""


def keras_adam(
    weights: Mapping[str, np.ndarray],
    gradients: Mapping[str, np.ndarray],
    state: Mapping[str, tuple[np.ndarray, np.ndarray]],
    step: int,
    learning_rate: float = 1e-3,
    beta_1: float = 0.9,
    beta_2: float = 0.999,
    epsilon: float = 1e-7,
) -> tuple[dict[str, np.ndarray], Moments]:
    """Return the weights and moments after one update of Adam in the Keras form.

    w ← w − lr · √(1 − β₂ᵗ) / (1 − β₁ᵗ) · m / (√v + ε).

    Args:
        weights: name → value; every one needs a gradient.
        gradients: name → gradient; names that are no weight are ignored.
        state: moments after the update before; empty at the first.
        step: t, 1 at the first update.
        learning_rate: lr.
        beta_1: β₁.
        beta_2: β₂.
        epsilon: ε, added before the bias correction.
    """
    rate = learning_rate * np.sqrt(1 - beta_2**step) / (1 - beta_1**step)
    updated, moments = {}, {}
    for name, weight in weights.items():
        gradient = wide(gradients[name])
        first, second = state.get(name, (np.zeros_like(gradient), np.zeros_like(gradient)))
        first = beta_1 * first + (1 - beta_1) * gradient
        second = beta_2 * second + (1 - beta_2) * gradient**2
        updated[name] = wide(weight) - rate * first / (np.sqrt(second) + epsilon)
        moments[name] = first, second
    return updated, moments
