"""Seeded faults of the network, forward, and of the losses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from conformance.seeding import GRAPH, Body, Fault, after, argument, instead, only
from ptycho_torch import helper, losses, model, reassembly


def convolution_with(
    *,
    first_channel: Callable[[model.Convolution], int] = lambda convolution: convolution.first_channel,
    features: Callable[[Tensor], Tensor] = lambda each: each,
    weight: Callable[[Tensor], Tensor] = lambda each: each,
    bias: Callable[[Tensor], Tensor | None] = lambda each: each,
    padding: str = "constant",
    relu: Callable[[Tensor], Tensor] = torch.relu,
) -> Body:
    """Return a convolution that is wrong in one of its parts; the doublings that it reads are made."""

    def forward(self: model.Convolution, read: Tensor, *, doubled: bool = False) -> Tensor:
        if doubled:
            read = nn.functional.interpolate(read, scale_factor=2.0, mode="nearest")
        start = first_channel(self) % read.shape[1]
        read = nn.functional.pad(features(read[:, start : start + self.in_channels]), (1, 1, 1, 1), mode=padding)
        read = nn.functional.conv2d(read, weight(self.weight), bias(self.bias))
        return relu(read) if self.relu else read

    return forward


linear = convolution_with(relu=lambda each: each)
"""A convolution without its ReLU."""


def _masked(patches: Tensor) -> Tensor:
    return patches * helper.central_mask(patches.shape[-1], dtype=patches.real.dtype, device=patches.device)


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


def is_second(module: model.Convolution) -> bool:
    """Whether a convolution is the second of a block."""
    return module.relu and module.in_channels == module.weight.shape[0]


def _is_phase(module: model.HeadActivation) -> bool:
    return module.kind is None


def _is_amplitude(module: model.HeadActivation) -> bool:
    return module.kind is not None


def _decoder_with_crossed_border(self: model.Decoder, features: Tensor) -> Tensor:
    first = self.get_submodule("0")(features)
    for index in range(1, self.depth):
        features = self.get_submodule(str(index))(first)
    channels = features.shape[1]
    wrong = nn.functional.interpolate(first[:, :channels], scale_factor=2.0, mode="nearest")
    return self.output(self.activation(self.central(features)), self.outer(wrong))  # type: ignore[no-any-return]


def _eleven_bits(values: Tensor) -> Tensor:
    """Round to the significant bits of TensorFloat-32 and half precision."""
    fraction, exponent = torch.frexp(values)
    # The gradient passes as if nothing was rounded.
    return values + (torch.ldexp((fraction * 2.0**11).round() / 2.0**11, exponent) - values).detach()


def _in_half_precision(wave: Tensor) -> Tensor:
    return torch.complex(_eleven_bits(wave.real), _eleven_bits(wave.imag))


CONV, _HEAD = model.Convolution, model.HeadActivation


def _mixed_channels(images: Tensor) -> Tensor:
    return images.permute(0, 2, 3, 1).reshape(images.shape).contiguous()


def _coherent(self: model.Diffract, exit_wave: Tensor) -> Tensor:
    return helper.diffract(exit_wave.sum(dim=2, keepdim=True))


def _one_canvas(self: model.MergePatches, patches: Tensor, offsets_px: Tensor) -> Tensor:
    canvas = helper.merge_patches(patches, offsets_px, self.canvas_px)
    return canvas.sum(dim=0, keepdim=True).expand_as(canvas)


def _padded_one_off(self: model.DecoderOutput, activated: Tensor, outer: Tensor | None = None) -> Tensor:
    m = self.margin
    padded = nn.functional.pad(activated, (m + 1, m - 1, m, m))
    return padded if outer is None else padded + self.border * outer


def _without_blur(self: model.Illuminate, views: Tensor, probe: Tensor) -> Tensor:
    return helper.illuminate(views, probe, smoothing_sigma=0.0, disk=self.disk)


def _without_disk(self: model.Illuminate, views: Tensor, probe: Tensor) -> Tensor:
    return helper.illuminate(views, probe, smoothing_sigma=self.smoothing_sigma, disk=None)


def _first_mode(self: model.Illuminate, views: Tensor, probe: Tensor) -> Tensor:
    alone = torch.cat([probe[:1], torch.zeros_like(probe[1:])])
    return helper.illuminate(views, alone, smoothing_sigma=self.smoothing_sigma, disk=self.disk)


def _counts_for_amplitude(original: Body) -> Body:
    return lambda intensity, measured, good_pixels=None: original(intensity, measured.abs().sqrt(), good_pixels)


def _group_transposed(views: Tensor) -> Tensor:
    grid = int(views.shape[1] ** 0.5)
    exchanged: Tensor = views.unflatten(1, (grid, grid)).transpose(1, 2).flatten(1, 2)
    return exchanged


def _forward(
    name: str, stage: str, owner: Any, build: Callable[[Any], Any], cause: str | None, graph: str = GRAPH
) -> Fault:
    return Fault(name, "forward", stage, owner, "forward", build, cause, graph)


_BLUR = "n64_g2_mask_blur"


_FIRST, _SECOND, _BORDER = "encoder.0.conv1", "encoder.0.conv2", "decoder_amp.outer.conv1"


FORWARD: tuple[Fault, ...] = (
    # Merging and cutting
    _forward("sign of offsets in merging", "merged", model.MergePatches, argument(2, torch.neg), "sign of offsets"),
    _forward("sign of offsets in views", "views", model.ExtractViews, argument(2, torch.neg), "sign of offsets"),
    _forward(
        "x and y swapped in merging", "merged", model.MergePatches, argument(2, lambda o: o.flip(-1)), "swapped x/y"
    ),
    _forward("x and y swapped in views", "views", model.ExtractViews, argument(2, lambda o: o.flip(-1)), "swapped x/y"),
    _forward("offsets of whole pixels", "merged", model.MergePatches, argument(2, torch.round), "whole pixels"),
    _forward("views half a pixel off", "views", model.ExtractViews, argument(2, lambda o: o + 0.5), None),
    _forward("one canvas for the batch", "merged", model.MergePatches, instead(_one_canvas), None),
    Fault("0.001 missing", "forward", "merged", helper, "MERGE_FLOOR", instead(0.0), "missing epsilon"),
    Fault("0.001 is 0.0011", "forward", "merged", helper, "MERGE_FLOOR", instead(0.0011), "another epsilon"),
    _forward(
        "mask on the numerator",
        "merged",
        model.MergePatches,
        argument(1, _masked),
        "mask on the numerator",
    ),
    _forward("channels reversed", "views", model.ExtractViews, after(lambda v: v.flip(1)), "channel order"),
    _forward(
        "rows and columns of a group exchanged",
        "views",
        model.ExtractViews,
        after(_group_transposed),
        "rows and columns of the group",
    ),
    _forward(
        "views one pixel off", "views", model.ExtractViews, after(lambda v: v.roll(1, dims=-1)), "one-pixel shift"
    ),
    _forward(
        "object one pixel off", "object", model.TrimObject, after(lambda o: o.roll(1, dims=-2)), "one-pixel shift"
    ),
    Fault(
        "offsets rounded down a little too late",
        "forward",
        "forward.translate",
        helper,
        "shift_matrix",
        lambda right: (
            lambda shift_px, *given, **named: right(shift_px - 1e-3 * (shift_px.frac().abs() < 1e-3), *given, **named)
        ),
        None,
    ),
    Fault(
        "smooth weights half a pixel off",
        "forward",
        "forward.stitch",
        reassembly,
        "_weights",
        lambda right: lambda fraction_px, *given: right(fraction_px + 0.5, *given),
        None,
    ),
    Fault(
        "patches stitched with x for y",
        "forward",
        "forward.stitch",
        reassembly.ExperimentStitcher,
        "add",
        argument(2, lambda positions_px: positions_px.flip(1)),
        None,
    ),
    # Diffraction
    _forward("missing fftshift", "amplitude", model.Diffract, instead(_diffract_with(shift=False)), "missing fftshift"),
    _forward("FFT divided by N", "amplitude", model.Diffract, instead(_diffract_with(power=1.0)), "FFT normalisation"),
    _forward("FFT not divided", "amplitude", model.Diffract, instead(_diffract_with(power=0.0)), "FFT normalisation"),
    _forward(
        "intensity for amplitude",
        "amplitude",
        model.Diffract,
        instead(_diffract_with(root=False)),
        "intensity for amplitude",
    ),
    _forward(
        "1e-6 under the root",
        "amplitude",
        model.Diffract,
        instead(_diffract_with(floor=1e-6)),
        "epsilon under the root",
    ),
    _forward("pattern flipped", "amplitude", model.Diffract, after(lambda a: a.flip(-1)), "spatial flip"),
    _forward("pattern transposed", "amplitude", model.Diffract, after(lambda a: a.mT), "spatial transpose"),
    _forward("modes summed coherently", "amplitude", model.Diffract, instead(_coherent), "modes summed coherently"),
    # Illumination
    _forward(
        "probe conjugated", "exit_wave", model.Illuminate, argument(2, torch.conj_physical), "conjugation of the probe"
    ),
    _forward("probe transposed", "exit_wave", model.Illuminate, argument(2, lambda p: p.mT), "spatial transpose"),
    _forward("the first mode alone", "exit_wave", model.Illuminate, instead(_first_mode), "first probe mode"),
    _forward("blur forgotten", "exit_wave", model.Illuminate, instead(_without_blur), "missing blur", _BLUR),
    _forward("disk forgotten", "exit_wave", model.Illuminate, instead(_without_disk), "missing mask", _BLUR),
    _forward("physics in half precision", "exit_wave", model.Illuminate, after(_in_half_precision), "half precision"),
    # Heads
    _forward(
        "π dropped",
        "decoder_phase.activation",
        _HEAD,
        only(_is_phase, instead(lambda _, z: z.tanh())),
        "wrong activation scale",
    ),
    _forward(
        "hard sigmoid",
        "decoder_amp.activation",
        _HEAD,
        only(_is_amplitude, instead(lambda _, z: nn.functional.hardsigmoid(z))),
        "hard sigmoid",
    ),
    _forward(
        "swish for sigmoid",
        "decoder_amp.activation",
        _HEAD,
        only(_is_amplitude, instead(lambda _, z: nn.functional.silu(z))),
        "swish in place of sigmoid",
    ),
    _forward(
        "softplus turns linear early",
        "decoder_amp.output",
        _HEAD,
        only(_is_amplitude, instead(lambda _, z: nn.functional.softplus(z, threshold=0.0))),
        None,
        "n64_g1_nopad",
    ),
    _forward(
        "last four channels taken from the front",
        _BORDER,
        CONV,
        only(_is_outer_start, instead(convolution_with(first_channel=lambda _: 0))),
        "wrong end of the channels",
    ),
    _forward(
        "centre reads the last channels",
        "decoder_amp.central",
        CONV,
        only(
            _is_central,
            instead(convolution_with(first_channel=lambda convolution: -convolution.in_channels)),
        ),
        "wrong end of the channels",
    ),
    _forward("ReLU behind the centre", "decoder_amp.central", CONV, only(_is_central, after(torch.relu)), "ReLU"),
    _forward("ReLU for swish", "decoder_amp.outer.swish", model.Swish, instead(lambda _, f: f.relu()), "relu"),
    _forward(
        "border not masked",
        "decoder_amp.output",
        model.DecoderOutput,
        instead(lambda self, a, outer: nn.functional.pad(a, (self.margin,) * 4) + outer),
        "missing mask",
    ),
    _forward(
        "centre one pixel off", "decoder_amp.output", model.DecoderOutput, instead(_padded_one_off), "one-pixel shift"
    ),
    _forward("border fed from the wrong block", _BORDER, model.Decoder, instead(_decoder_with_crossed_border), None),
    _forward("phase conjugated", "patches", model.CombinePatches, after(torch.conj_physical), "conjugation"),
    _forward(
        "amplitude and phase exchanged",
        "patches",
        model.CombinePatches,
        lambda original: lambda self, amplitude, phase: original(self, phase, amplitude),
        "amplitude and phase exchanged",
    ),
    # Convolutions
    _forward("bias dropped", _FIRST, CONV, instead(convolution_with(bias=lambda _: None)), "bias dropped"),
    _forward(
        "bias dropped in the second convolutions",
        _SECOND,
        CONV,
        only(is_second, instead(convolution_with(bias=lambda _: None))),
        "bias dropped",
    ),
    _forward("kernel transposed", _FIRST, CONV, instead(convolution_with(weight=lambda w: w.mT)), "transposed"),
    _forward("kernel flipped", _FIRST, CONV, instead(convolution_with(weight=lambda w: w.flip(2, 3))), "flipped"),
    _forward(
        "inputs and outputs of kernels exchanged",
        _SECOND,
        CONV,
        only(is_second, instead(convolution_with(weight=lambda w: w.transpose(0, 1)))),
        "inputs and outputs",
    ),
    _forward("edges repeated", _FIRST, CONV, instead(convolution_with(padding="replicate")), "padding"),
    _forward("edges wrapped", _FIRST, CONV, instead(convolution_with(padding="circular")), "padding"),
    _forward(
        "ReLU missing",
        _SECOND,
        CONV,
        only(is_second, instead(linear)),
        "missing ReLU",
    ),
    _forward(
        "leaky second ReLU",
        _SECOND,
        CONV,
        only(is_second, instead(convolution_with(relu=nn.functional.leaky_relu))),
        "leaky ReLU",
    ),
    _forward(
        "TF32 in convolutions",
        _FIRST,
        CONV,
        instead(convolution_with(features=_eleven_bits, weight=_eleven_bits)),
        "TF32",
    ),
    _forward(
        "mean for maximum", "encoder.0.pool", model.Pool, instead(lambda _, f: nn.functional.avg_pool2d(f, 2)), "mean"
    ),
    _forward(
        "bilinear upsampling",
        "decoder_amp.0.up",
        model.Upsample,
        instead(lambda _, f: nn.functional.interpolate(f, scale_factor=2.0, mode="bilinear")),
        "bilinear",
    ),
    Fault(
        "parities of doublings in the wrong order",
        "forward",
        "decoder_amp.1.conv1",
        helper,
        "doubled_kernel",
        lambda right: lambda kernel: right(kernel).flip(0),
        None,
    ),
    # Scales
    _forward(
        "input not normalised",
        "normalized_input",
        model.NormalizedInput,
        instead(lambda _, x, scale: x),
        "intensity scale left out",
    ),
    _forward(
        "input multiplied by the scale",
        "normalized_input",
        model.NormalizedInput,
        instead(lambda _, x, scale: x * scale.exp()),
        "intensity scale upside down",
    ),
    _forward(
        "channels-last input taken for channels-first",
        "normalized_input",
        model.NormalizedInput,
        after(_mixed_channels),
        "channels-last/first mix-up",
    ),
    _forward(
        "scale forgotten",
        "predicted_amplitude",
        model.ScaleAmplitude,
        instead(lambda _, amplitude, scale: amplitude + 0 * scale),
        "intensity scale left out",
    ),
    _forward(
        "intensity not squared",
        "predicted_intensity",
        model.Intensity,
        instead(lambda _, a: a.abs()),
        "amplitude for intensity",
    ),
    # Losses
    Fault("likelihood twice", "forward", "loss", losses, "poisson_nll", after(lambda loss: 2 * loss), "factor 2"),
    Fault(
        "likelihood of amplitudes",
        "forward",
        "loss",
        losses,
        "poisson_nll",
        _counts_for_amplitude,
        "amplitude against intensity",
    ),
    Fault(
        "sum for mean in the losses",
        "forward",
        "loss",
        losses,
        "_masked_mean",
        instead(lambda values, good_pixels: values.sum()),
        "sum in place of mean",
    ),
    Fault(
        "squares for absolute values in the MAE",
        "forward",
        "loss",
        losses,
        "amplitude_mae",
        instead(lambda predicted, measured, good_pixels=None: (predicted - measured).square().mean()),
        "squares",
    ),
)
"""Faults of forward pass and losses."""
