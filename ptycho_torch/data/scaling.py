"""From counts to amplitude and back: normalisation and intensity scale (docs/reference_model.md §5).

amplitude is √counts, intensity is amplitude², counts are photons.

<doc-ref type="contract">specs/data_contracts.md</doc-ref>
"""

import math

from jaxtyping import Float
from torch import Tensor

from ptycho_torch.errors import DataContractError


def _mean_pattern_energy(amplitude: Float[Tensor, "*any N N"]) -> float:
    """Mean over patterns of the sum over one pattern's pixels of amplitude², in float64."""
    return float(amplitude.double().square().sum(dim=(-2, -1)).mean())


def normalisation_factor(amplitude: Float[Tensor, "*any N N"]) -> float:
    """Return the factor that brings measured amplitude to the network's normalisation.

    √((N/2)² / mean Σ_xy X²); after it a pattern's energy is (N/2)² on average.

    Raises:
        DataContractError: every pattern is zero.
    """
    energy = _mean_pattern_energy(amplitude)
    if not energy > 0:
        raise DataContractError("Every diffraction pattern is zero; there is nothing to normalise by.")
    return amplitude.shape[-1] / 2 / math.sqrt(energy)


def intensity_scale(nphotons: float, N: int) -> float:
    """Return s_I = √nphotons / (N/2), for normalised amplitude.

    >>> intensity_scale(1024.0, 64)
    1.0
    """
    if not nphotons > 0:
        raise DataContractError(f"nphotons = {nphotons}; expected the mean photon count of a pattern, above 0.")
    return math.sqrt(nphotons) / (N / 2)


def intensity_scale_of(nphotons: float, amplitude: Float[Tensor, "*any N N"]) -> float:
    """Return s_I = √(nphotons / mean Σ_xy X²), for amplitude of any normalisation."""
    energy = _mean_pattern_energy(amplitude)
    if not (energy > 0 and nphotons > 0):
        raise DataContractError(f"nphotons = {nphotons} and mean pattern energy {energy}; both must be above 0.")
    return math.sqrt(nphotons / energy)
