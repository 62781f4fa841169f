"""Cases drawn at random: complex probes, odd batches, fractional offsets, nonzero biases."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from conformance.cases.case import Case
from ptycho_tf_bridge.weights import tensorflow_shapes
from ptycho_torch.config_params import LossWeights, NetworkSettings

BOTH_LOSSES = LossWeights(nll_weight=1.0, mae_weight=0.3)
"""Loss weights of drawn cases: each loss term reaches every gradient."""


def draw_weights(settings: NetworkSettings, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Draw Glorot-uniform kernels, and biases that are not zero, so that a dropped bias shows."""
    weights = {}
    for name, shape in tensorflow_shapes(settings).items():
        if len(shape) == 4:
            limit = np.sqrt(6 / (shape[0] * shape[1] * (shape[2] + shape[3])))
            weights[name] = rng.uniform(-limit, limit, shape).astype(np.float32)
        else:
            weights[name] = (0.05 * rng.standard_normal(shape)).astype(np.float32)
    return weights


def draw_probe(N: int, modes: int, rng: np.random.Generator) -> np.ndarray:
    """Draw (M, N, N) smooth complex modes with neither symmetry nor constant phase."""
    position = np.arange(N) - (N - 1) / 2
    envelope = np.exp(-(position[:, None] ** 2 + position[None, :] ** 2) / (2 * (N / 6) ** 2))
    noise = rng.standard_normal((modes, N, N)) + 1j * rng.standard_normal((modes, N, N))
    ramp = np.exp(1j * (0.11 * position[:, None] - 0.07 * position[None, :]))
    probe: np.ndarray = 0.4 * envelope * (ramp + 0.5 * noise) / np.arange(1, modes + 1)[:, None, None]
    return probe.astype(np.complex64)


def draw_case(
    settings: NetworkSettings,
    seed: int,
    *,
    batch: int = 3,
    modes: int = 1,
    loss_weights: LossWeights = BOTH_LOSSES,
) -> Case:
    """Draw one case; the same seed gives the same case.

    Args:
        settings: the network's settings.
        seed: of every random number.
        batch: B; odd by default, so that an axis taken for another shows.
        modes: M.
        loss_weights: weights of the loss terms.
    """
    rng = np.random.default_rng(seed)
    N, C = settings.N, settings.C
    # Offsets are centred in each group, as the data path makes them, and never whole pixels.
    offsets = rng.uniform(-5, 5, (batch, 1, 2, C))
    offsets = offsets - offsets.mean(axis=-1, keepdims=True) if C > 1 else 0 * offsets
    return Case(
        name=f"draw{seed}",
        settings=settings,
        loss_weights=loss_weights,
        diffraction=np.abs(0.15 * rng.standard_normal((batch, N, N, C))).astype(np.float32),
        offsets_px=offsets.astype(np.float32),
        probe=draw_probe(N, modes, rng),
        weights=draw_weights(settings, rng),
    )


GRAPHS: Mapping[str, NetworkSettings] = MappingProxyType(
    {
        "n64_g2": NetworkSettings(N=64, gridsize=2, n_filters_scale=1, intensity_scale=37.5),
        "n64_g1": NetworkSettings(N=64, gridsize=1, n_filters_scale=1, intensity_scale=3.7),
        "n64_g1_nopad": NetworkSettings(
            N=64, gridsize=1, n_filters_scale=1, pad_object=False, amp_activation="softplus", intensity_scale=11.0
        ),
        "n64_g2_small_object": NetworkSettings(
            N=64, gridsize=2, n_filters_scale=1, object_big=False, intensity_scale=21.3
        ),
        "n64_g2_small_probe": NetworkSettings(
            N=64, gridsize=2, n_filters_scale=1, probe_big=False, amp_activation="swish", intensity_scale=8.1
        ),
        "n64_g2_mask_blur": NetworkSettings(
            N=64,
            gridsize=2,
            n_filters_scale=1,
            probe_mask=True,
            gaussian_smoothing_sigma=0.7,
            amp_activation="relu",
            intensity_scale=37.5,
        ),
        "n64_g2_nopad_small_object": NetworkSettings(
            N=64, gridsize=2, n_filters_scale=1, pad_object=False, object_big=False, intensity_scale=5.0
        ),
        "n64_g3": NetworkSettings(
            N=64, gridsize=3, n_filters_scale=1, offset=5, max_position_jitter=8, intensity_scale=50.0
        ),
        "n64_g2_wide": NetworkSettings(
            N=64, gridsize=2, n_filters_scale=2, max_position_jitter=14, intensity_scale=0.5
        ),
        "n64_g2_shared_amplitude": NetworkSettings(
            N=64, gridsize=2, n_filters_scale=1, shared_amplitude_head=True, intensity_scale=37.5
        ),
        "n128_g2": NetworkSettings(N=128, gridsize=2, n_filters_scale=1, intensity_scale=37.5),
        "n256_g1": NetworkSettings(N=256, gridsize=1, n_filters_scale=1, intensity_scale=37.5),
    }
)
"""Twelve graphs that between them take every branch of the network."""
