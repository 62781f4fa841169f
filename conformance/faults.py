"""Seeded faults: small named wrongs put into the PyTorch network, to show that the suite catches them.

Each fault says at which stage it sits; the first failing teacher-forced stage must be that one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ptycho_torch import helper, losses, model

Body = Callable[..., Any]


@dataclass(frozen=True)
class Fault:
    """One wrong.

    Attributes:
        name: what is wrong.
        stage: stage id where it sits, on a network with outer paths; ``loss`` for the losses.
        owner: class or module that is patched.
        attribute: what is replaced there.
        build: makes the replacement from the original.
    """

    name: str
    stage: str
    owner: Any
    attribute: str
    build: Callable[[Any], Any]

    @contextlib.contextmanager
    def seeded(self) -> Iterator[None]:
        """Put the fault in for the time of the context."""
        original = getattr(self.owner, self.attribute)
        setattr(self.owner, self.attribute, self.build(original))
        try:
            yield
        finally:
            setattr(self.owner, self.attribute, original)


def _after(change: Callable[[Tensor], Tensor]) -> Callable[[Body], Body]:
    """Change what a stage returns."""
    return lambda original: lambda *given, **named: change(original(*given, **named))


def _argument(position: int, change: Callable[[Any], Any]) -> Callable[[Body], Body]:
    """Change one positional argument of a stage (0 is the module itself)."""

    def build(original: Body) -> Body:
        def wrong(*given: Any, **named: Any) -> Any:
            return original(*given[:position], change(given[position]), *given[position + 1 :], **named)

        return wrong

    return build


def _instead(function: Body) -> Callable[[Body], Body]:
    return lambda _: function


def _only(condition: Callable[[Any], bool], wrong: Callable[[Body], Body]) -> Callable[[Body], Body]:
    """Put the wrong into the modules for which the condition holds, and leave the others."""

    def build(original: Body) -> Body:
        faulty = wrong(original)
        return lambda module, *given, **named: (faulty if condition(module) else original)(module, *given, **named)

    return build


def _as_it_is_read(features: Tensor, doubled: bool) -> Tensor:
    return nn.functional.interpolate(features, scale_factor=2.0, mode="nearest") if doubled else features


def _convolution_from(first_channel: Callable[[model.Convolution, Tensor], int]) -> Body:
    def forward(self: model.Convolution, features: Tensor, *, doubled: bool = False) -> Tensor:
        features = _as_it_is_read(features, doubled)
        start = first_channel(self, features)
        features = features[:, start : start + self.in_channels]
        features = nn.functional.conv2d(features, self.weight, self.bias, padding=1)
        return features.relu() if self.relu else features

    return forward


def _convolution_with(
    weight: Callable[[Tensor], Tensor] = lambda each: each,
    bias: Callable[[Tensor], Tensor | None] = lambda each: each,
    padding: str = "constant",
) -> Body:
    def forward(self: model.Convolution, features: Tensor, *, doubled: bool = False) -> Tensor:
        features = _as_it_is_read(features, doubled)
        start = self.first_channel % features.shape[1]
        features = nn.functional.pad(features[:, start : start + self.in_channels], (1, 1, 1, 1), mode=padding)
        features = nn.functional.conv2d(features, weight(self.weight), bias(self.bias))
        return features.relu() if self.relu else features

    return forward


def _masked_numerator(patches: Tensor, offsets_px: Tensor, canvas_px: int) -> Tensor:
    centre = helper.central_mask(patches.shape[-1], dtype=patches.real.dtype, device=patches.device)
    return helper.merge_patches(patches * centre, offsets_px, canvas_px)


def _merge_with(change: Body) -> Body:
    return lambda self, patches, offsets_px: change(patches, offsets_px, self.canvas_px)


def _diffract_with(shift: bool = True, power: float = 2.0, root: bool = True, floor: float = 0.0) -> Body:
    def forward(self: model.Diffract, exit_wave: Tensor) -> Tensor:
        N = exit_wave.shape[-1]
        intensity = torch.fft.fft2(exit_wave).abs().square().sum(dim=2) / N**power + floor
        if shift:
            intensity = torch.fft.fftshift(intensity, dim=(-2, -1))
        amplitude: Tensor = intensity.sqrt() if root else intensity
        return amplitude

    return forward


def _is_outer_start(module: model.Convolution) -> bool:
    return module.first_channel > 0


def _is_central(module: model.Convolution) -> bool:
    return not module.relu and module.in_channels % 32 == 28


def _is_second(module: model.Convolution) -> bool:
    return module.relu and module.in_channels == module.weight.shape[0]


def _is_phase(module: model.HeadActivation) -> bool:
    return module.kind is None


def _is_amplitude(module: model.HeadActivation) -> bool:
    return module.kind is not None


def _decodes_amplitude(module: model.Decoder) -> bool:
    return module.activation.kind is not None


def _decoder_with_detached_border(self: model.Decoder, features: Tensor) -> Tensor:
    for index in range(self.depth):
        features = self.get_submodule(str(index))(features)
    outer = self.outer(features.detach())
    return self.output(self.activation(self.central(features)), outer)  # type: ignore[no-any-return]


def _decoder_with_crossed_border(self: model.Decoder, features: Tensor) -> Tensor:
    first = self.get_submodule("0")(features)
    for index in range(1, self.depth):
        features = self.get_submodule(str(index))(first)
    channels = features.shape[1]
    wrong = nn.functional.interpolate(first[:, :channels], scale_factor=2.0, mode="nearest")
    return self.output(self.activation(self.central(features)), self.outer(wrong))  # type: ignore[no-any-return]


_CONV, _HEAD = model.Convolution, model.HeadActivation
_LEAK = 0.01

FAULTS: tuple[Fault, ...] = (
    Fault("sign of offsets in merging", "merged", model.MergePatches, "forward", _argument(2, torch.neg)),
    Fault("sign of offsets in cutting views", "views", model.ExtractViews, "forward", _argument(2, torch.neg)),
    Fault("x and y swapped in merging", "merged", model.MergePatches, "forward", _argument(2, lambda o: o.flip(-1))),
    Fault("x and y swapped in views", "views", model.ExtractViews, "forward", _argument(2, lambda o: o.flip(-1))),
    Fault("missing fftshift", "amplitude", model.Diffract, "forward", _instead(_diffract_with(shift=False))),
    Fault("FFT divided by N", "amplitude", model.Diffract, "forward", _instead(_diffract_with(power=1.0))),
    Fault("intensity for amplitude", "amplitude", model.Diffract, "forward", _instead(_diffract_with(root=False))),
    Fault("1e-6 under the root", "amplitude", model.Diffract, "forward", _instead(_diffract_with(floor=1e-6))),
    Fault("pattern flipped", "amplitude", model.Diffract, "forward", _after(lambda a: a.flip(-1))),
    Fault("π dropped", "decoder_phase.activation", _HEAD, "forward", _only(_is_phase, _instead(lambda _, z: z.tanh()))),
    Fault(
        "hard sigmoid",
        "decoder_amp.activation",
        _HEAD,
        "forward",
        _only(_is_amplitude, _instead(lambda _, z: nn.functional.hardsigmoid(z))),
    ),
    Fault(
        "last four channels taken from the front",
        "decoder_amp.outer.conv1",
        _CONV,
        "forward",
        _only(_is_outer_start, _instead(_convolution_from(lambda self, features: 0))),
    ),
    Fault(
        "centre reads the last channels",
        "decoder_amp.central",
        _CONV,
        "forward",
        _only(_is_central, _instead(_convolution_from(lambda self, features: features.shape[1] - self.in_channels))),
    ),
    Fault("0.001 missing", "merged", helper, "MERGE_FLOOR", _instead(0.0)),  # type: ignore[arg-type]
    Fault("0.001 is 0.0011", "merged", helper, "MERGE_FLOOR", _instead(0.0011)),  # type: ignore[arg-type]
    Fault("mask on the numerator", "merged", model.MergePatches, "forward", _instead(_merge_with(_masked_numerator))),
    Fault("bias dropped", "encoder.0.conv1", _CONV, "forward", _instead(_convolution_with(bias=lambda _: None))),
    Fault(
        "bias dropped in the second convolutions",
        "encoder.0.conv2",
        _CONV,
        "forward",
        _only(_is_second, _instead(_convolution_with(bias=lambda _: None))),
    ),
    Fault("kernel transposed", "encoder.0.conv1", _CONV, "forward", _instead(_convolution_with(weight=lambda w: w.mT))),
    Fault(
        "kernel flipped",
        "encoder.0.conv1",
        _CONV,
        "forward",
        _instead(_convolution_with(weight=lambda w: w.flip(2, 3))),
    ),
    Fault("edges repeated", "encoder.0.conv1", _CONV, "forward", _instead(_convolution_with(padding="replicate"))),
    Fault(
        "leaky second ReLU",
        "encoder.0.conv2",
        _CONV,
        "forward",
        _only(
            _is_second,
            _instead(
                lambda self, f: nn.functional.leaky_relu(
                    nn.functional.conv2d(f, self.weight, self.bias, padding=1), _LEAK
                )
            ),
        ),
    ),
    Fault(
        "mean for maximum",
        "encoder.0.pool",
        model.Pool,
        "forward",
        _instead(lambda _, f: nn.functional.avg_pool2d(f, 2)),
    ),
    Fault(
        "bilinear upsampling",
        "decoder_amp.0.up",
        model.Upsample,
        "forward",
        _instead(lambda _, f: nn.functional.interpolate(f, scale_factor=2.0, mode="bilinear")),
    ),
    Fault("ReLU for swish", "decoder_amp.outer.swish", model.Swish, "forward", _instead(lambda _, f: f.relu())),
    Fault(
        "border not masked",
        "decoder_amp.output",
        model.DecoderOutput,
        "forward",
        _instead(lambda self, a, outer: nn.functional.pad(a, (self.margin,) * 4) + outer),
    ),
    Fault("phase conjugated", "patches", model.CombinePatches, "forward", _after(torch.conj_physical)),
    Fault(
        "amplitude and phase exchanged",
        "patches",
        model.CombinePatches,
        "forward",
        lambda original: lambda self, amplitude, phase: original(self, phase, amplitude),
    ),
    Fault("probe conjugated", "exit_wave", model.Illuminate, "forward", _argument(2, torch.conj_physical)),
    Fault("channels reversed", "views", model.ExtractViews, "forward", _after(lambda v: v.flip(1))),
    Fault("views one pixel off", "views", model.ExtractViews, "forward", _after(lambda v: v.roll(1, dims=-1))),
    Fault("object one pixel off", "object", model.TrimObject, "forward", _after(lambda o: o.roll(1, dims=-2))),
    Fault(
        "input not normalised", "normalized_input", model.NormalizedInput, "forward", _instead(lambda _, x, scale: x)
    ),
    Fault(
        "scale forgotten",
        "predicted_amplitude",
        model.ScaleAmplitude,
        "forward",
        _instead(lambda _, amplitude, scale: amplitude + 0 * scale),
    ),
    Fault("intensity not squared", "predicted_intensity", model.Intensity, "forward", _instead(lambda _, a: a.abs())),
    Fault(
        "physics in half precision", "exit_wave", model.Illuminate, "forward", _after(lambda w: w + w.abs() * 2.0**-12)
    ),
    Fault(
        "border cut off the gradient",
        "decoder_amp.outer.conv1",
        model.Decoder,
        "forward",
        _only(_decodes_amplitude, _instead(_decoder_with_detached_border)),
    ),
    Fault(
        "border fed from the wrong block",
        "decoder_amp.outer.conv1",
        model.Decoder,
        "forward",
        _instead(_decoder_with_crossed_border),
    ),
    Fault(
        "phase passes no gradient",
        "patches",
        model.CombinePatches,
        "forward",
        _argument(2, lambda phase: phase.detach()),
    ),
    Fault("likelihood of twice the counts", "loss", losses, "poisson_nll", _after(lambda loss: 2 * loss)),
)
"""The catalogue. Faults of the optimiser, the data path and the bridge are not in it."""
