"""Mistakes in the network, forward and backward, and in the losses: a report has to name the stage and the cause."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from conformance.selftest.fault import GRAPH, Body, Fault, after, argument, instead, only
from ptycho_torch import helper, losses, model


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


def _is_second(module: model.Convolution) -> bool:
    """Whether a convolution is the second of a block."""
    return module.relu and module.in_channels == module.weight.shape[0]


def is_phase(module: model.HeadActivation) -> bool:
    """Say whether a head gives the phase."""
    return module.kind is None


def _is_amplitude(module: model.HeadActivation) -> bool:
    return module.kind is not None


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


def _through(forward: Callable[..., Tensor], backward: Callable[..., Tensor]) -> Body:
    """Give what ``forward`` gives, and the gradient that ``backward`` has."""

    def both(*given: Any, **named: Any) -> Tensor:
        passing = backward(*given, **named)
        # The first two cancel exactly, in any precision.
        return passing - passing.detach() + forward(*given, **named).detach()

    return both


def _decoder_with_detached_border(self: model.Decoder, features: Tensor) -> Tensor:
    for index in range(self.depth):
        features = self.get_submodule(str(index))(features)
    outer = self.outer(features.detach())
    return self.output(self.activation(self.central(features)), outer)  # type: ignore[no-any-return]


def _merged_back_with_wrong_sign(original: Body) -> Body:
    return _through(original, lambda self, patches, offsets_px: original(self, patches, -offsets_px))


def _lit_back_without_conjugate(original: Body) -> Body:
    return _through(original, lambda self, views, probe: original(self, views, probe.conj()))


def _scaled_back(factor: float) -> Callable[[Body], Body]:
    return lambda original: _through(original, lambda *given, **named: factor * original(*given, **named))


def _decodes_amplitude(module: model.Decoder) -> bool:
    return module.activation.kind is not None


def _stage(name: str, stage: str, owner: Any, build: Callable[[Any], Any], cause: str, graph: str = GRAPH) -> Fault:
    """Return a mistake in the ``forward`` of a module."""
    return Fault(name, stage, owner, "forward", build, cause, graph)


_BLUR = "n64_g2_mask_blur"
_FIRST, _SECOND, _BORDER = "encoder.0.conv1", "encoder.0.conv2", "decoder_amp.outer.conv1"

NETWORK: tuple[Fault, ...] = (
    _stage("sign of offsets in merging", "merged", model.MergePatches, argument(2, torch.neg), "sign of offsets"),
    _stage("sign of offsets in views", "views", model.ExtractViews, argument(2, torch.neg), "sign of offsets"),
    _stage("x and y swapped in merging", "merged", model.MergePatches, argument(2, lambda o: o.flip(-1)),
           "swapped x/y"),
    _stage("x and y swapped in views", "views", model.ExtractViews, argument(2, lambda o: o.flip(-1)), "swapped x/y"),
    _stage("offsets of whole pixels", "merged", model.MergePatches, argument(2, torch.round), "whole pixels"),
    Fault("0.001 missing", "merged", helper, "MERGE_FLOOR", instead(0.0), "missing epsilon"),
    Fault("0.001 is 0.0011", "merged", helper, "MERGE_FLOOR", instead(0.0011), "another epsilon"),
    _stage("mask on the numerator", "merged", model.MergePatches, argument(1, _masked), "mask on the numerator"),
    _stage("channels reversed", "views", model.ExtractViews, after(lambda v: v.flip(1)), "channel order"),
    _stage("rows and columns of a group exchanged", "views", model.ExtractViews, after(_group_transposed),
           "rows and columns of the group"),
    _stage("views one pixel off", "views", model.ExtractViews, after(lambda v: v.roll(1, dims=-1)), "one-pixel shift"),
    _stage("object one pixel off", "object", model.TrimObject, after(lambda o: o.roll(1, dims=-2)), "one-pixel shift"),
    _stage("missing fftshift", "amplitude", model.Diffract, instead(_diffract_with(shift=False)), "missing fftshift"),
    _stage("FFT divided by N", "amplitude", model.Diffract, instead(_diffract_with(power=1.0)), "FFT normalisation"),
    _stage("FFT not divided", "amplitude", model.Diffract, instead(_diffract_with(power=0.0)), "FFT normalisation"),
    _stage("intensity for amplitude", "amplitude", model.Diffract, instead(_diffract_with(root=False)),
           "intensity for amplitude"),
    _stage("1e-6 under the root", "amplitude", model.Diffract, instead(_diffract_with(floor=1e-6)),
           "epsilon under the root"),
    _stage("pattern flipped", "amplitude", model.Diffract, after(lambda a: a.flip(-1)), "spatial flip"),
    _stage("pattern transposed", "amplitude", model.Diffract, after(lambda a: a.mT), "spatial transpose"),
    _stage("modes summed coherently", "amplitude", model.Diffract, instead(_coherent), "modes summed coherently"),
    _stage("probe conjugated", "exit_wave", model.Illuminate, argument(2, torch.conj_physical),
           "conjugation of the probe"),
    _stage("probe transposed", "exit_wave", model.Illuminate, argument(2, lambda p: p.mT), "spatial transpose"),
    _stage("the first mode alone", "exit_wave", model.Illuminate, instead(_first_mode), "first probe mode"),
    _stage("blur forgotten", "exit_wave", model.Illuminate, instead(_without_blur), "missing blur", _BLUR),
    _stage("disk forgotten", "exit_wave", model.Illuminate, instead(_without_disk), "missing mask", _BLUR),
    _stage("physics in half precision", "exit_wave", model.Illuminate, after(_in_half_precision), "half precision"),
    _stage("π dropped", "decoder_phase.activation", _HEAD, only(is_phase, instead(lambda _, z: z.tanh())),
           "wrong activation scale"),
    _stage("hard sigmoid", "decoder_amp.activation", _HEAD,
           only(_is_amplitude, instead(lambda _, z: nn.functional.hardsigmoid(z))), "hard sigmoid"),
    _stage("swish for sigmoid", "decoder_amp.activation", _HEAD,
           only(_is_amplitude, instead(lambda _, z: nn.functional.silu(z))), "swish in place of sigmoid"),
    _stage("last four channels taken from the front", _BORDER, CONV,
           only(_is_outer_start, instead(convolution_with(first_channel=lambda _: 0))), "wrong end of the channels"),
    _stage("centre reads the last channels", "decoder_amp.central", CONV,
           only(_is_central, instead(convolution_with(first_channel=lambda convolution: -convolution.in_channels))),
           "wrong end of the channels"),
    _stage("ReLU behind the centre", "decoder_amp.central", CONV, only(_is_central, after(torch.relu)), "ReLU"),
    _stage("ReLU for swish", "decoder_amp.outer.swish", model.Swish, instead(lambda _, f: f.relu()), "relu"),
    _stage("border not masked", "decoder_amp.output", model.DecoderOutput,
           instead(lambda self, a, outer: nn.functional.pad(a, (self.margin,) * 4) + outer), "missing mask"),
    _stage("centre one pixel off", "decoder_amp.output", model.DecoderOutput, instead(_padded_one_off),
           "one-pixel shift"),
    _stage("phase conjugated", "patches", model.CombinePatches, after(torch.conj_physical), "conjugation"),
    _stage("amplitude and phase exchanged", "patches", model.CombinePatches,
           lambda original: lambda self, amplitude, phase: original(self, phase, amplitude),
           "amplitude and phase exchanged"),
    _stage("bias dropped", _FIRST, CONV, instead(convolution_with(bias=lambda _: None)), "bias dropped"),
    _stage("bias dropped in the second convolutions", _SECOND, CONV,
           only(_is_second, instead(convolution_with(bias=lambda _: None))), "bias dropped"),
    _stage("kernel transposed", _FIRST, CONV, instead(convolution_with(weight=lambda w: w.mT)), "transposed"),
    _stage("kernel flipped", _FIRST, CONV, instead(convolution_with(weight=lambda w: w.flip(2, 3))), "flipped"),
    _stage("inputs and outputs of kernels exchanged", _SECOND, CONV,
           only(_is_second, instead(convolution_with(weight=lambda w: w.transpose(0, 1)))), "inputs and outputs"),
    _stage("edges repeated", _FIRST, CONV, instead(convolution_with(padding="replicate")), "padding"),
    _stage("edges wrapped", _FIRST, CONV, instead(convolution_with(padding="circular")), "padding"),
    _stage("ReLU missing", _SECOND, CONV, only(_is_second, instead(linear)), "missing ReLU"),
    _stage("leaky second ReLU", _SECOND, CONV,
           only(_is_second, instead(convolution_with(relu=nn.functional.leaky_relu))), "leaky ReLU"),
    _stage("TF32 in convolutions", _FIRST, CONV, instead(convolution_with(features=_eleven_bits, weight=_eleven_bits)),
           "TF32"),
    _stage("mean for maximum", "encoder.0.pool", model.Pool, instead(lambda _, f: nn.functional.avg_pool2d(f, 2)),
           "mean"),
    _stage("bilinear upsampling", "decoder_amp.0.up", model.Upsample,
           instead(lambda _, f: nn.functional.interpolate(f, scale_factor=2.0, mode="bilinear")), "bilinear"),
    _stage("input not normalised", "normalized_input", model.NormalizedInput, instead(lambda _, x, scale: x),
           "intensity scale left out"),
    _stage("input multiplied by the scale", "normalized_input", model.NormalizedInput,
           instead(lambda _, x, scale: x * scale.exp()), "intensity scale upside down"),
    _stage("channels-last input taken for channels-first", "normalized_input", model.NormalizedInput,
           after(_mixed_channels), "channels-last/first mix-up"),
    _stage("scale forgotten", "predicted_amplitude", model.ScaleAmplitude,
           instead(lambda _, amplitude, scale: amplitude + 0 * scale), "intensity scale left out"),
    _stage("intensity not squared", "predicted_intensity", model.Intensity, instead(lambda _, a: a.abs()),
           "amplitude for intensity"),
    Fault("likelihood twice", "loss", losses, "poisson_nll", after(lambda loss: 2 * loss), "factor 2"),
    Fault("likelihood of amplitudes", "loss", losses, "poisson_nll", _counts_for_amplitude,
          "amplitude against intensity"),
    Fault("squares for absolute values in the MAE", "loss", losses, "amplitude_mae",
          instead(lambda predicted, measured, good_pixels=None: (predicted - measured).square().mean()), "squares"),
    # Derivatives whose forward pass is right
    _stage("border cut off the gradient", "decoder_amp.outer.conv1", model.Decoder,
           only(_decodes_amplitude, instead(_decoder_with_detached_border)), "gradient cut off"),
    _stage("phase passes no gradient", "patches", model.CombinePatches, argument(2, lambda phase: phase.detach()),
           "gradient cut off"),
    _stage("gradient through closed ReLUs", "decoder_phase.outer.conv2", CONV,
           only(_is_second, lambda original: _through(original, linear)), "where the ReLU is closed"),
    _stage("gradient of the mean for that of the maximum", "encoder.2.pool", model.Pool,
           lambda original: _through(original, lambda _, f: nn.functional.avg_pool2d(f, 2)), "spread over the window"),
    _stage("missing conjugate in the probe's derivative", "exit_wave", model.Illuminate, _lit_back_without_conjugate,
           "missing conjugate"),
    _stage("kernels without gradient", "decoder_phase.outer.conv2", CONV,
           only(_is_second, instead(convolution_with(weight=lambda w: w.detach()))), "gradient cut off"),
    _stage("biases without gradient", "decoder_phase.outer.conv2", CONV,
           only(_is_second, instead(convolution_with(bias=lambda b: b.detach()))), "gradient cut off"),
    _stage("factor 2 missing behind the square", "predicted_intensity", model.Intensity, _scaled_back(0.5), "1/2"),
    _stage("N too many in the FFT's adjoint", "amplitude", model.Diffract, _scaled_back(64.0), "FFT normalisation"),
    _stage("sign of offsets in the adjoint of merging", "merged", model.MergePatches, _merged_back_with_wrong_sign,
           "sign of offsets"),
)  # fmt: skip
