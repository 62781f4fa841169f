"""The default probe, the disk mask and the probe's normalisation (docs/reference_model.md §3).

<doc-ref type="contract">specs/stages.yaml</doc-ref>
"""

import math

import numpy as np
import torch
from jaxtyping import Complex, Float, Inexact
from scipy.ndimage import gaussian_filter
from torch import Tensor

from ptycho_torch.errors import DataContractError


def default_probe(N: int) -> Float[Tensor, "N N"]:
    """Return the disk-like probe used when none is measured, float64.

    A Gaussian window of standard deviation N / (0.7·π²), divided by its maximum; its outer product with
    itself is cut at 0.5 to 0 or 1, blurred with σ = 1 pixel, and raised by 1e-9.

    >>> default_probe(64).shape
    torch.Size([64, 64])
    """
    position = np.arange(N) - (N - 1) / 2
    window = np.exp(-0.5 * (position / (N / (0.7 * math.pi**2))) ** 2)
    window /= window.max()
    disk = (np.outer(window, window) > 0.5).astype(np.float64)
    return torch.from_numpy(gaussian_filter(disk, sigma=1) + 1e-9)


def disk_mask(N: int) -> Float[Tensor, "N N"]:
    """Return 1 where the distance to the centre is below N/4 pixels and 0 elsewhere, float64.

    >>> disk_mask(4).sum()
    tensor(4., dtype=torch.float64)
    """
    position = torch.arange(N, dtype=torch.float64) - N / 2 + 0.5
    radius = torch.sqrt(position[:, None] ** 2 + position[None, :] ** 2)
    return (radius < N // 4).to(torch.float64)


def normalise_probe(
    probe: Inexact[Tensor, "*group_modes N N"], probe_scale: float = 4.0
) -> Inexact[Tensor, "*group_modes N N"]:
    """Scale a probe so that the mean of its magnitude inside the disk, over all N² pixels, is 1 / probe_scale.

    probe / (probe_scale · mean|probe · disk|). Several modes share one factor, from the root of their summed
    intensity, so that their relative strengths stay. The probe itself is not masked.

    Args:
        probe: (N, N), (modes, N, N), or (…, modes, N, N) with a factor for each of the leading axes.
        probe_scale: see above.

    Raises:
        DataContractError: the probe is zero inside the disk.
    """
    magnitude = probe.abs()
    if probe.ndim >= 3:
        magnitude = magnitude.square().sum(-3, keepdim=True).sqrt()
    disk = disk_mask(probe.shape[-1]).to(magnitude)
    mean = (magnitude * disk).mean(dim=(-2, -1), keepdim=True)
    if not bool((mean > 0).all()):
        raise DataContractError(
            "The probe is zero inside the central disk of radius N/4, so it cannot be normalised. "
            "Centre the probe, or give another one."
        )
    return probe / (probe_scale * mean)


def as_modes(probe: Tensor) -> Complex[Tensor, "M N N"]:
    """Return a probe as a stack of modes: (N, N) becomes (1, N, N).

    Raises:
        DataContractError: any other shape than (N, N) or (M, N, N).
    """
    if probe.ndim == 2:
        probe = probe[None]
    if probe.ndim != 3 or probe.shape[-1] != probe.shape[-2]:
        raise DataContractError(f"A probe is (N, N) or (modes, N, N); found shape {tuple(probe.shape)}.")
    return probe if probe.is_complex() else torch.complex(probe, torch.zeros_like(probe))
