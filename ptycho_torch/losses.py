"""The training losses (docs/reference_model.md §5), finite everywhere.

Where the reference's loss is finite, these equal it; where it is NaN or infinite (REF-05), these are finite.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor

from ptycho_torch.config_params import LossWeights
from ptycho_torch.errors import ConfigError, DataContractError
from ptycho_torch.helper import central_mask


class _FiniteLog(torch.autograd.Function):
    """ln(max(x, smallest normal number)), whose gradient g / x is held inside the finite numbers."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.clamp_min(torch.finfo(x.dtype).tiny).log()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        limits = torch.finfo(x.dtype)
        slope = (grad / x.clamp_min(limits.tiny)).clamp(limits.min, limits.max)
        return torch.where(x >= limits.tiny, slope, 0)


def _masked_mean(values: Tensor, good_pixels: Tensor | None) -> Tensor:
    """Mean over good pixels; zero where no pixel is good, so that an empty pattern has no influence."""
    if good_pixels is None:
        return values.mean()
    good = good_pixels.expand_as(values)
    return torch.where(good, values, 0).sum() / good.sum().clamp_min(1)


def poisson_nll(
    predicted_intensity: Float[Tensor, "B C N N"],
    measured_amplitude: Float[Tensor, "B C N N"],
    good_pixels: Bool[Tensor, "*broadcast N N"] | None = None,
) -> Float[Tensor, ""]:
    """Return the Poisson negative log-likelihood, mean over every good pixel.

    mean(I − I₀·ln max(I, tiny)), I₀ = measured²; the term ln(I₀!) does not depend on the model and is left out.

    Args:
        predicted_intensity: I, scaled like the measurement.
        measured_amplitude: √I₀ = s_I·X.
        good_pixels: True where the detector pixel counts; bad pixels may hold anything, NaN included.
    """
    if good_pixels is not None:
        measured_amplitude = torch.where(good_pixels, measured_amplitude, 0)
    measured_intensity = measured_amplitude.square()
    log_intensity: Tensor = _FiniteLog.apply(predicted_intensity)  # type: ignore[no-untyped-call]
    return _masked_mean(predicted_intensity - measured_intensity * log_intensity, good_pixels)


def amplitude_mae(
    predicted_amplitude: Float[Tensor, "B C N N"],
    measured_amplitude: Float[Tensor, "B C N N"],
    good_pixels: Bool[Tensor, "*broadcast N N"] | None = None,
) -> Float[Tensor, ""]:
    """Return mean |predicted − measured| of the scaled amplitude over every good pixel."""
    if good_pixels is not None:
        measured_amplitude = torch.where(good_pixels, measured_amplitude, 0)
    return _masked_mean((predicted_amplitude - measured_amplitude).abs(), good_pixels)


def total_variation(images: Complex[Tensor, "B K N N"]) -> Float[Tensor, ""]:
    """Sum, over batch and pixels, the squared differences of neighbours, real and imaginary parts alike.

    The reference as it runs under Keras 3 sees only the real part (REF-06).
    """
    parts = torch.view_as_real(images)
    return parts.diff(dim=-3).square().sum() + parts.diff(dim=-2).square().sum()


def object_mae(predicted: Complex[Tensor, "B 1 N N"], target: Complex[Tensor, "B 1 N N"]) -> Float[Tensor, ""]:
    """Return mean ||o| − |t|| + mean |arg o − arg t| against a known object (simulation only)."""
    amplitude = (predicted.abs() - target.abs()).abs().mean()
    return amplitude + (predicted.angle() - target.angle()).abs().mean()


@dataclass(frozen=True)
class LossTerms:
    """The loss and the terms it was summed from; terms of weight zero are not computed and are zero."""

    total: Tensor
    nll: Tensor
    mae: Tensor
    realspace: Tensor


def total_loss(
    predicted_object: Complex[Tensor, "B 1 N N"],
    predicted_amplitude: Float[Tensor, "B C N N"],
    predicted_intensity: Float[Tensor, "B C N N"],
    measured_amplitude: Float[Tensor, "B C N N"],
    weights: LossWeights,
    *,
    probe_big: bool = True,
    good_pixels: Bool[Tensor, "*broadcast N N"] | None = None,
    target_object: Complex[Tensor, "B 1 N N"] | None = None,
) -> LossTerms:
    """Sum the weighted terms of ``LossWeights``.

    Args:
        predicted_object: stage ``object``; outside the central square it counts only if ``probe_big``.
        predicted_amplitude: stage ``predicted_amplitude``.
        predicted_intensity: stage ``predicted_intensity``.
        measured_amplitude: s_I·X.
        weights: weight of each term.
        probe_big: the network's setting of that name.
        good_pixels: True where the detector pixel counts.
        target_object: known object, shifted to the group's frame; needed by ``realspace_mae_weight``.

    Raises:
        ConfigError: a weight asks for a target and none is given.
        DataContractError: prediction and measurement differ in shape.
    """
    if predicted_amplitude.shape != measured_amplitude.shape:
        raise DataContractError(
            f"measured_amplitude has shape {tuple(measured_amplitude.shape)}, the prediction has "
            f"{tuple(predicted_amplitude.shape)}; both are (B, C, N, N)."
        )
    zero = predicted_intensity.new_zeros(())
    nll = poisson_nll(predicted_intensity, measured_amplitude, good_pixels) if weights.nll_weight else zero
    mae = amplitude_mae(predicted_amplitude, measured_amplitude, good_pixels) if weights.mae_weight else zero
    realspace = zero
    if weights.realspace_weight:
        if not probe_big:
            centre = central_mask(
                predicted_object.shape[-1], device=predicted_object.device, dtype=predicted_amplitude.dtype
            )
            predicted_object = predicted_object * centre
        realspace = weights.tv_weight * total_variation(predicted_object)
        if weights.realspace_mae_weight:
            if target_object is None:
                raise ConfigError("realspace_mae_weight needs target_object; set the weight to 0 or give the object.")
            realspace = realspace + weights.realspace_mae_weight * object_mae(predicted_object, target_object)
    total = weights.nll_weight * nll + weights.mae_weight * mae + weights.realspace_weight * realspace
    return LossTerms(total=total, nll=nll, mae=mae, realspace=realspace)
