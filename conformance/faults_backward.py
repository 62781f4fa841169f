"""Seeded faults of derivatives: the forward pass is right, and what comes back is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from conformance.faults_network import CONV, convolution_with, is_second, linear
from conformance.seeding import GRAPH, Body, Fault, argument, instead, only
from ptycho_torch import helper, model


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


def _backward(
    name: str, stage: str, owner: Any, build: Callable[[Any], Any], cause: str | None, graph: str = GRAPH
) -> Fault:
    return Fault(name, "backward", stage, owner, "forward", build, cause, graph)


def _decodes_amplitude(module: model.Decoder) -> bool:
    return module.activation.kind is not None


BACKWARD: tuple[Fault, ...] = (
    _backward(
        "border cut off the gradient",
        "decoder_amp.outer.conv1",
        model.Decoder,
        only(_decodes_amplitude, instead(_decoder_with_detached_border)),
        "gradient cut off",
    ),
    _backward(
        "phase passes no gradient",
        "patches",
        model.CombinePatches,
        argument(2, lambda phase: phase.detach()),
        "gradient cut off",
    ),
    _backward(
        "gradient through closed ReLUs",
        "decoder_phase.outer.conv2",
        CONV,
        only(is_second, lambda original: _through(original, linear)),
        "where the ReLU is closed",
    ),
    _backward(
        "gradient of the mean for that of the maximum",
        "encoder.2.pool",
        model.Pool,
        lambda original: _through(original, lambda _, f: nn.functional.avg_pool2d(f, 2)),
        "spread over the window",
    ),
    _backward(
        "missing conjugate in the probe's derivative",
        "exit_wave",
        model.Illuminate,
        _lit_back_without_conjugate,
        "missing conjugate",
    ),
    _backward(
        "kernels without gradient",
        "decoder_phase.outer.conv2",
        CONV,
        only(is_second, instead(convolution_with(weight=lambda w: w.detach()))),
        "gradient cut off",
    ),
    _backward(
        "biases without gradient",
        "decoder_phase.outer.conv2",
        CONV,
        only(is_second, instead(convolution_with(bias=lambda b: b.detach()))),
        "gradient cut off",
    ),
    _backward("factor 2 missing behind the square", "predicted_intensity", model.Intensity, _scaled_back(0.5), "1/2"),
    _backward("N too many in the FFT's adjoint", "amplitude", model.Diffract, _scaled_back(64.0), "FFT normalisation"),
    _backward(
        "sign of offsets in the adjoint of merging",
        "merged",
        model.MergePatches,
        _merged_back_with_wrong_sign,
        "sign of offsets",
    ),
    Fault(
        "gradients of doublings in the wrong order",
        "backward",
        "decoder_phase.outer.up",
        helper._Interleave,
        "backward",
        lambda right: staticmethod(lambda context, gradient: right(context, gradient).flip(-1)),
        None,
    ),
)
"""Faults of derivatives whose forward pass is right."""
