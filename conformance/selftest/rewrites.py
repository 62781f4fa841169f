"""Equivalent rewrites of the network: each computes the same in another way, so no verdict may change."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from conformance.selftest.fault import Body, Fault, after, argument, instead, only
from conformance.selftest.network import is_phase
from ptycho_torch import helper, model


class _Passed(torch.autograd.Function):
    """Passes values and gradient on."""

    @staticmethod
    def forward(context: Any, values: Tensor) -> Tensor:
        return values.clone()

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return gradient


def _passed(values: Tensor) -> Tensor:
    passed: Tensor = _Passed.apply(values)  # type: ignore[no-untyped-call]
    return passed


def _channels_last(values: Tensor) -> Tensor:
    return values.clone(memory_format=torch.channels_last)


def _contiguous(values: Tensor) -> Tensor:
    return values.clone(memory_format=torch.contiguous_format)


def _cast(values: Tensor) -> Tensor:
    return values.to(values.dtype, copy=True)


def _in_parts(values: Tensor) -> Tensor:
    return torch.cat(values.split(1))


def _turned_twice(values: Tensor) -> Tensor:
    return values.mT.contiguous().mT


def _recomputed(original: Body) -> Body:
    """Compute a module again in the backward pass, instead of keeping what is in it."""
    return lambda self, *given, **named: checkpoint(partial(original, self, **named), *given, use_reentrant=False)


def _group_by_group(original: Body) -> Body:
    return lambda self, values, offsets_px: torch.cat(
        [original(self, each, offset) for each, offset in zip(values.split(1), offsets_px.split(1), strict=True)]
    )


def _two_transforms(_: model.Diffract, exit_wave: Tensor) -> Tensor:
    wave = torch.fft.fft(torch.fft.fft(exit_wave, dim=-1), dim=-2) / exit_wave.shape[-1]
    amplitude: Tensor = (wave.real.square() + wave.imag.square()).sum(dim=2).sqrt()
    shifted: Tensor = torch.fft.fftshift(amplitude, dim=(-2, -1))
    return shifted


def _of_parts(_: model.CombinePatches, amplitude: Tensor, phase: Tensor) -> Tensor:
    return torch.complex(amplitude * phase.cos(), amplitude * phase.sin())


def _forward(name: str, owner: Any, build: Callable[[Body], Body]) -> Fault:
    return Fault(name, "", owner, "forward", build)


REWRITES: tuple[Fault, ...] = (
    _forward("heads copied into another memory format", model.CombinePatches, argument(1, _channels_last)),
    _forward("heads copied into the usual memory format", model.CombinePatches, argument(2, _contiguous)),
    _forward("patches cast to their own type", model.MergePatches, argument(1, _cast)),
    _forward("canvas copied before views are cut", model.ExtractViews, argument(1, torch.clone)),
    _forward("views through a function of its own gradient", model.Illuminate, argument(1, _passed)),
    _forward("features of convolutions in channels_last", model.Convolution, argument(1, _channels_last)),
    _forward("features of convolutions contiguous", model.Convolution, argument(1, _contiguous)),
    _forward("features of pools viewed anew", model.Pool, argument(1, lambda f: f.flatten(0, 1).view_as(f))),
    _forward("outputs of pools turned twice", model.Pool, after(_turned_twice)),
    _forward("canvas taken apart and joined", model.TrimObject, argument(1, _in_parts)),
    _forward("amplitude plus nothing", model.ScaleAmplitude, argument(1, lambda amplitude: amplitude + 0.0)),
    _forward("outer path times one", model.Swish, argument(1, lambda features: 1.0 * features)),
    _forward("input copied", model.NormalizedInput, argument(1, torch.clone)),
    _forward("decoders recomputed in the backward pass", model.Decoder, _recomputed),
    _forward("diffraction recomputed in the backward pass", model.Diffract, _recomputed),
    _forward("convolutions recomputed in the backward pass", model.Convolution, _recomputed),
    _forward("groups merged one by one", model.MergePatches, _group_by_group),
    _forward("two Fourier transforms for one", model.Diffract, instead(_two_transforms)),
    _forward("patches of cosine and sine", model.CombinePatches, instead(_of_parts)),
    _forward("amplitude times itself", model.Intensity, instead(lambda _, amplitude: amplitude * amplitude)),
    _forward("π times tanh", model.HeadActivation, only(is_phase, instead(lambda _, z: math.pi * z.tanh()))),
    _forward("swish of sigmoid", model.Swish, instead(lambda _, features: features * features.sigmoid())),
    Fault("kernels of doublings copied", "", helper, "doubled_kernel", argument(0, _contiguous)),
)
