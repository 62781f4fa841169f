"""Known mistakes of each kind of stage, forward: what the oracle gives when it makes them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from conformance.judge.mistakes.arrays import OFFSETS, Hypothesis, array_mistakes, fitted, rounded, spatial_mistakes
from conformance.judge.rules import compare
from conformance.judge.truth import Truth
from conformance.oracle import operations
from conformance.oracle import stages as oracle_stages
from conformance.oracle.stages import Constants, Stage

COVERED = 0.01
"""Patches that cover a pixel, from which on its value is no matter of rounding."""


def forward_mistakes(truth: Truth, stage: str, found: np.ndarray) -> Iterator[Hypothesis]:
    """Yield what a stage gives with each mistake, fed with the truth.

    Args:
        truth: of the case.
        stage: stage id.
        found: what the candidate gave; mistakes with a free number, a factor or an order, are fitted to it.
    """
    expected = truth.stages[stage]
    situation = Situation.of(truth, stage, found)
    if isinstance(situation.node, oracle_stages.Merge) and situation.node.object_big:
        yield _missing_epsilon(situation)
    kind = _FORWARD.get(type(situation.node), _no_mistakes)
    for name, output in kind(situation):
        yield Hypothesis(name, {stage: output})
    for name, change in array_mistakes(expected):
        yield Hypothesis(name, {stage: change(expected)})
    for name, output in _misfed(situation):
        yield Hypothesis(name, {stage: output})
    for name, output in _coarse(situation):
        yield Hypothesis(name, {stage: output})
    yield from fitted(stage, expected, found)


@dataclass(frozen=True)
class Situation:
    """A stage with what the truth feeds it, and what the candidate made of that."""

    truth: Truth
    stage: str
    node: Stage
    inputs: list[np.ndarray]
    constants: Constants
    found: np.ndarray

    @classmethod
    def of(cls, truth: Truth, stage: str, found: np.ndarray) -> Situation:
        """Feed a stage with the truth."""
        inputs = truth.values_of(stage, truth.stages, truth.network_input)
        return cls(truth, stage, truth.oracle.node(stage), inputs, truth.constants, found)

    def value(
        self, node: Stage | None = None, inputs: list[np.ndarray] | None = None, **constants: object
    ) -> np.ndarray:
        """Return the output with another node, other inputs or other constants."""
        changed = dataclasses.replace(self.constants, **constants) if constants else self.constants  # type: ignore[arg-type]
        return (self.node if node is None else node).evaluate(self.inputs if inputs is None else inputs, changed)


Outputs = Iterator[tuple[str, np.ndarray]]


def _no_mistakes(_: Situation) -> Outputs:
    return iter(())


def _misfed(at: Situation) -> Outputs:
    """Feed the stage with what another stage gave, if that fits, or leave the stage out."""
    expected = at.truth.stages[at.stage]
    if len(at.inputs) == 1 and at.inputs[0].shape == expected.shape:
        yield "the step is left out", at.inputs[0]
    names = at.truth.oracle.inputs[at.stage]
    if len(names) == 2 and at.inputs[0].shape == at.inputs[1].shape:
        yield "its two inputs exchanged", at.value(inputs=at.inputs[::-1])
    for position, name in enumerate(names):
        for other, array in at.truth.stages.items():
            fits = (array.shape, array.dtype) == (at.inputs[position].shape, at.inputs[position].dtype)
            if fits and other not in (name, at.stage):
                inputs = [*at.inputs[:position], array, *at.inputs[position + 1 :]]
                yield f"reads {other} in place of {name}", at.value(inputs=inputs)
    for name, change in array_mistakes(at.inputs[0]):
        if at.inputs[0].ndim == 4 and change is not np.zeros_like:
            changed = change(at.inputs[0])
            if changed.shape == at.inputs[0].shape:
                yield f"{name} of its input", at.value(inputs=[changed, *at.inputs[1:]])


def _coarse(at: Situation) -> Outputs:
    """Compute with inputs and weights, and perhaps the output, of fewer digits."""
    own = set(at.node.weight_shapes())
    for name, bits in (("TF32", 11), ("bfloat16", 8)):
        weights = {
            key: rounded(array, bits) if key in own and key.endswith("kernel") else array
            for key, array in at.constants.weights.items()
        }
        value = at.value(inputs=[rounded(array, bits) for array in at.inputs], weights=weights)
        yield f"{name} in place of float32", value
        yield f"{name} in place of float32", rounded(value, bits)
    # Values that are near the truth and have few digits were rounded, on whichever side of a tie.
    expected, found = at.truth.stages[at.stage], at.found
    for name, bits in (("bfloat16", 8), ("half precision", 11)):
        if found.shape == expected.shape and compare(found.astype(expected.dtype), expected).e < 2.0**-bits:
            yield f"{name} in place of float32", rounded(found.astype(expected.dtype), bits)


def _convolution(at: Situation) -> Outputs:
    node = at.node
    assert isinstance(node, oracle_stages.Convolution)
    weights, name = at.constants.weights, node.name
    kernel, bias = weights[f"{name}.kernel"], weights[f"{name}.bias"]

    def with_weights(kernel: np.ndarray = kernel, bias: np.ndarray = bias) -> np.ndarray:
        return at.value(weights={**weights, f"{name}.kernel": kernel, f"{name}.bias": bias})

    yield "bias dropped", with_weights(bias=np.zeros_like(bias))
    yield "bias twice", with_weights(bias=2 * bias)
    yield "bias subtracted", with_weights(bias=-bias)
    if node.relu:
        linear = at.value(dataclasses.replace(node, relu=False))
        yield "missing ReLU", linear
        yield "swish for ReLU", oracle_stages.ACTIVATIONS["swish"][0](linear)
        for leak in (0.01, 0.1, 0.2, 0.3):
            yield "leaky ReLU for ReLU", np.where(linear > 0, linear, leak * linear)
        yield "ReLU before the bias", np.maximum(linear - bias, 0) + bias
    else:
        yield "a ReLU too many", at.value(dataclasses.replace(node, relu=True))
    yield "kernel flipped (convolution for correlation)", with_weights(kernel[::-1, ::-1])
    yield "kernel flipped in x", with_weights(kernel[:, ::-1])
    yield "kernel flipped in y", with_weights(kernel[::-1])
    yield "kernel transposed in space", with_weights(kernel.swapaxes(0, 1))
    if kernel.shape[2] == kernel.shape[3]:
        yield "kernel's inputs and outputs exchanged", with_weights(kernel.swapaxes(2, 3))
    yield "kernel's channels-last/first mix-up", with_weights(kernel.transpose(3, 2, 0, 1).reshape(kernel.shape))
    out, taken = kernel.shape[3], kernel.shape[2]
    yield "kernel's channels-last/first mix-up", with_weights(kernel.reshape(out, taken, 3, 3).transpose(2, 3, 1, 0))
    images = at.inputs[0][..., node.used]
    for padding in ("edge", "reflect", "wrap"):
        yield f"padding by {padding} in place of zeros", _padded_convolution(images, kernel, bias, padding, node.relu)
    channels = at.inputs[0].shape[-1]
    if images.shape[-1] < channels:
        first, last = slice(0, node.taken), slice(channels - node.taken, channels)
        end = last if node.used.start is None else first
        yield "reads the wrong end of the channels", at.value(dataclasses.replace(node, used=end))
        for step in (1, -1):
            rolled = np.roll(at.inputs[0], step, axis=-1)
            yield "reads channels that are one off", at.value(inputs=[rolled])
    other = _partner(name)
    if other is not None and weights[f"{other}.kernel"].shape == kernel.shape:
        yield f"weights of {other}", with_weights(weights[f"{other}.kernel"], weights[f"{other}.bias"])
        yield f"kernel of {other}", with_weights(weights[f"{other}.kernel"])
        yield f"bias of {other}", with_weights(bias=weights[f"{other}.bias"])


def _partner(name: str) -> str | None:
    """Name the convolution of the other decoder."""
    if name.startswith("decoder_amp"):
        return name.replace("decoder_amp", "decoder_phase", 1)
    return name.replace("decoder_phase", "decoder_amp", 1) if name.startswith("decoder_phase") else None


def _padded_convolution(
    images: np.ndarray, kernel: np.ndarray, bias: np.ndarray, padding: str, relu: bool
) -> np.ndarray:
    around = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode=padding)  # type: ignore[call-overload]
    value = oracle_stages.correlate(around, kernel)[:, 1:-1, 1:-1] + bias
    return np.maximum(value, 0) if relu else np.asarray(value)


def _activation(at: Situation) -> Outputs:
    node, z = at.node, at.inputs[0]
    assert isinstance(node, oracle_stages.Activation)
    if node.kind == "pi_tanh":
        yield "wrong activation scale (π missing)", np.tanh(z)
        yield "wrong activation scale (π/2)", np.pi / 2 * np.tanh(z)
        yield "wrong activation scale (2π)", 2 * np.pi * np.tanh(z)
        yield "wrong activation scale (inside the tanh)", np.tanh(np.pi * z)
        yield "sigmoid in place of tanh", np.pi * (2 * oracle_stages.ACTIVATIONS["sigmoid"][0](z) - 1)
    for kind, (function, _) in oracle_stages.ACTIVATIONS.items():
        if kind != node.kind:
            yield f"{kind} in place of {node.kind}", function(z)
    yield f"tanh in place of {node.kind}", np.tanh(z)
    yield f"hard sigmoid in place of {node.kind}", np.clip(z / 6 + 0.5, 0, 1)
    yield f"hard sigmoid in place of {node.kind}", np.clip(0.2 * z + 0.5, 0, 1)
    yield f"no activation in place of {node.kind}", z


def _pool(at: Situation) -> Outputs:
    B, H, W, K = at.inputs[0].shape
    windows = at.inputs[0].reshape(B, H // 2, 2, W // 2, 2, K)
    yield "mean in place of maximum", windows.mean(axis=(2, 4))
    yield "minimum in place of maximum", windows.min(axis=(2, 4))
    yield "every other pixel in place of maximum", at.inputs[0][:, ::2, ::2]


def _upsample(at: Situation) -> Outputs:
    images = at.inputs[0]
    for axis in (1, 2):
        n = images.shape[axis]
        place = np.clip((np.arange(2 * n) + 0.5) / 2 - 0.5, 0, n - 1)
        low = np.floor(place).astype(int)
        weight = (place - low).reshape([-1 if each == axis else 1 for each in range(4)])
        images = (1 - weight) * images.take(low, axis) + weight * images.take(np.minimum(low + 1, n - 1), axis)
    yield "bilinear in place of nearest neighbour", images
    tiled = np.tile(at.inputs[0], (1, 2, 2, 1))
    yield "tiled in place of repeated", tiled


def _padded_output(at: Situation) -> Outputs:
    expected, (inner, *outer) = at.truth.stages[at.stage], at.inputs
    quarter = expected.shape[1] // 4
    padded = np.pad(inner, ((0, 0), (quarter, quarter), (quarter, quarter), (0, 0)))
    yield "border missing", padded
    yield "centre missing", expected - padded
    for axis, letter in ((2, "x"), (1, "y")):
        for steps in (1, -1):
            yield f"one-pixel shift of the centre in {letter}", expected - padded + np.roll(padded, steps, axis)
    if outer:
        yield "missing mask (border not masked)", padded + outer[0]
        centre = operations.central_square(expected.shape[1])[:, :, None]
        yield "mask inverted", padded + centre * outer[0]
        for low, high in ((1, 0), (0, 1), (1, 1), (-1, 0), (0, -1), (-1, -1)):
            line = np.zeros(expected.shape[1])
            line[quarter - low : 3 * quarter + high] = 1
            yield "central square of another size", padded + (1 - np.outer(line, line))[:, :, None] * outer[0]


def _patches(at: Situation) -> Outputs:
    amplitude, phase = at.inputs
    yield "conjugation", amplitude * np.exp(-1j * phase)
    if amplitude.shape == phase.shape:
        yield "amplitude and phase exchanged", phase * np.exp(1j * amplitude)
    yield "sine and cosine exchanged", amplitude * (np.sin(phase) + 1j * np.cos(phase))
    yield "phase left out", amplitude * np.ones_like(phase) + 0j
    yield "amplitude left out", np.exp(1j * phase)
    yield "amplitude and phase taken for real and imaginary part", amplitude + 1j * phase


def _with_offsets(at: Situation) -> Outputs:
    for name, change in OFFSETS:
        yield name, at.value(offsets_px=change(at.constants.offsets_px))


def _merge(at: Situation) -> Outputs:
    found = at.found
    yield from _with_offsets(at)
    node = at.node
    assert isinstance(node, oracle_stages.Merge)
    if not node.object_big:
        return
    cover = node.cover(at.constants)[..., None]
    total = at.truth.stages[at.stage] * cover
    count = cover - oracle_stages.COVER_FLOOR
    yield "not divided by the cover", total
    centre = operations.central_square(node.N)[:, :, None]
    yield "mask on the numerator", at.value(inputs=[at.inputs[0] * centre])
    everywhere = dataclasses.replace(node, mask_px=node.N).cover(at.constants)[..., None]
    yield "missing mask (whole patches counted)", total / everywhere
    yield "divided by the number of patches", total / at.inputs[0].shape[-1]
    for name, change in OFFSETS:
        elsewhere = dataclasses.replace(at.constants, offsets_px=change(at.constants.offsets_px))
        yield f"{name}, in the cover alone", total / node.cover(elsewhere)[..., None]
    for floor in (1e-6, 1e-8, 1e-9, 1e-2, 1.0, _fitted_floor(total, count, found)):
        with np.errstate(divide="ignore", invalid="ignore"):
            yield "another epsilon under the sum", total / (count + floor)
    yield "cover cut at one", total / np.maximum(count, 1)


def _missing_epsilon(at: Situation) -> Hypothesis:
    """Without the epsilon, nothing can be said of pixels that no central square reaches."""
    assert isinstance(at.node, oracle_stages.Merge)
    cover = at.node.cover(at.constants)[..., None]
    count = cover - oracle_stages.COVER_FLOOR
    covered = count > COVERED
    given = np.divide(at.truth.stages[at.stage] * cover, count, out=np.zeros(cover.shape, complex), where=covered)
    return Hypothesis("missing epsilon (0.001 under the sum)", {at.stage: given}, covered)


def _fitted_floor(total: np.ndarray, count: np.ndarray, found: np.ndarray) -> float:
    """Return the epsilon with which total / (count + epsilon) would be what was found, where patches lie."""
    if found.shape != total.shape:
        return 0.0
    lit = (count > COVERED) & (np.abs(found) > 0)
    if not lit.any():
        return 0.0
    return float(np.median((total[lit] / found[lit]).real - count[lit]))


def _views(at: Situation) -> Outputs:
    yield from _with_offsets(at)
    B, C = len(at.inputs[0]), at.node.channels
    if B > 1:
        of_group = np.arange(B * C).reshape(B, C) % B
        views = [at.value(inputs=[np.roll(at.inputs[0], -group, axis=0)]) for group in range(B)]
        chosen = ((of_group - np.arange(B)[:, None]) % B).ravel()
        yield "objects of other groups (batch fastest)", np.stack([views[k][row] for row, k in enumerate(chosen)])


def _exit_wave(at: Situation) -> Outputs:
    node, probe = at.node, at.constants.probe
    assert isinstance(node, oracle_stages.ExitWave)
    yield "conjugation of the probe", at.value(probe=probe.conj())
    yield "conjugation of the views", at.value(inputs=[at.inputs[0].conj()])
    for name, change in spatial_mistakes(-2, -1):
        yield f"{name} of the probe", at.value(probe=change(probe))
    yield "amplitude of the probe alone", at.value(probe=np.abs(probe) + 0j)
    yield "probe left out", at.value(probe=np.ones_like(probe))
    if node.sigma > 0:
        yield "missing blur", at.value(dataclasses.replace(node, sigma=0.0))
        yield "blur of twice the width", at.value(dataclasses.replace(node, sigma=2 * node.sigma))
        yield "variance for standard deviation of the blur", at.value(dataclasses.replace(node, sigma=node.sigma**0.5))
        yield "variance for standard deviation of the blur", at.value(dataclasses.replace(node, sigma=node.sigma**2))
    yield (
        ("missing mask" if node.masked else "a mask too many"),
        at.value(dataclasses.replace(node, masked=not node.masked)),
    )
    if len(probe) > 1:
        first = probe.copy()
        first[1:] = 0
        yield "the first probe mode alone", at.value(probe=first)
        yield "probe modes in reverse order", at.value(probe=probe[::-1])


def _amplitude(at: Situation) -> Outputs:
    N = at.node.size
    expected = at.truth.stages[at.stage]
    intensity = expected**2
    yield "missing fftshift", np.fft.ifftshift(expected, axes=(1, 2))
    yield "intensity for amplitude", intensity
    for power, name in ((1, "not divided by N"), (2, "not divided, once more times N"), (-1, "divided by N once more")):
        yield f"FFT normalisation ({name})", expected * float(N) ** power
    yield "FFT normalisation (divided by √N in place of N)", expected * math.sqrt(N)
    yield "FFT normalisation (divided by √N once more)", expected / math.sqrt(N)
    for k in (1, 2, -1):
        yield "FFT normalisation (of the intensity)", intensity * float(N) ** k
    waves = np.moveaxis(at.inputs[0], -1, 1)
    if waves.shape[1] > 1:
        together = operations.diffract(waves.sum(axis=1))
        yield "modes summed coherently", _grouped(together, at)
        yield "the first probe mode alone", _grouped(operations.diffract(waves[:, 0]), at)
        yield "amplitudes of modes summed", _grouped(operations.diffract(waves).sum(axis=1), at)
        yield "mean over modes in place of their sum", expected / math.sqrt(waves.shape[1])
    for epsilon in (1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-9, 1e-10, 1e-12):
        yield "an epsilon under the root", np.sqrt(intensity + epsilon)
        yield "an epsilon added to the amplitude", expected + epsilon
    yield "inverse FFT", _grouped(operations.diffract(waves[..., ::-1, ::-1]), at, many=True)
    shifted = np.fft.fftshift(waves, axes=(-2, -1))
    yield "an fftshift too many", _grouped(operations.diffract(shifted), at, many=True)


def _grouped(images: np.ndarray, at: Situation, *, many: bool = False) -> np.ndarray:
    """(B·C, N, N), or with one for each mode (B·C, M, N, N), → (B, N, N, C)."""
    if many:
        images = np.sqrt((images**2).sum(axis=1))
    N, C = at.node.size, at.node.channels
    return np.moveaxis(images.reshape(-1, C, N, N), 1, -1)


def _scale(at: Situation) -> Outputs:
    node, value = at.node, at.inputs[0]
    assert isinstance(node, oracle_stages.Scale)
    yield "intensity scale left out", value
    yield "intensity scale upside down", at.value(dataclasses.replace(node, sign=-node.sign))
    yield "logarithm of the intensity scale for the scale", value * at.constants.log_scale**node.sign
    yield "intensity scale twice", value * np.exp(2 * node.sign * at.constants.log_scale)
    yield "square of the intensity scale left out", value * np.exp(node.sign * at.constants.log_scale / 2)


def _square(at: Situation) -> Outputs:
    yield "amplitude for intensity", at.inputs[0]


_FORWARD: Mapping[type[Stage], Callable[[Situation], Outputs]] = {
    oracle_stages.Convolution: _convolution,
    oracle_stages.Activation: _activation,
    oracle_stages.Pool: _pool,
    oracle_stages.Upsample: _upsample,
    oracle_stages.PaddedOutput: _padded_output,
    oracle_stages.Patches: _patches,
    oracle_stages.Merge: _merge,
    oracle_stages.Views: _views,
    oracle_stages.ExitWave: _exit_wave,
    oracle_stages.Amplitude: _amplitude,
    oracle_stages.Scale: _scale,
    oracle_stages.Square: _square,
}
