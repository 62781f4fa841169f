"""One parity case, and what a subject (oracle, Keras, PyTorch) says about it.

Everything here is NumPy and channels-last, the layout of the TensorFlow reference and of recorded
bundles. Complex cotangents follow one convention: ∂L/∂Re + i·∂L/∂Im.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from ptycho_torch.config_params import LossWeights, NetworkSettings


@dataclass(frozen=True)
class Case:
    """Inputs and weights of one run of the network.

    Attributes:
        name: how reports call it.
        settings: the network's settings.
        loss_weights: weights of the loss terms.
        diffraction: (B, N, N, C) normalised amplitude X.
        offsets_px: (B, 1, 2, C), (x, y) on axis 2, pixels.
        probe: (M, N, N) complex modes, used as they are.
        weights: ``NAME.kernel`` (kh, kw, in, out) and ``NAME.bias`` (out,), NAME a stage id.
    """

    name: str
    settings: NetworkSettings
    loss_weights: LossWeights
    diffraction: np.ndarray
    offsets_px: np.ndarray
    probe: np.ndarray
    weights: Mapping[str, np.ndarray]

    def scaled_amplitude(self, dtype: npt.DTypeLike) -> np.ndarray:
        """(B, N, N, C) s_I·X computed in ``dtype``: the network's input, and what the losses measure against."""
        scale = np.asarray(self.settings.intensity_scale, dtype=dtype)
        return np.asarray(self.diffraction.astype(dtype) * scale)


NOT_GIVEN: Mapping[str, Any] = MappingProxyType({})
"""What a candidate does not offer at all. Its clauses are skipped by name; a mapping that lacks something fails."""


def _not_given() -> Mapping[str, Any]:
    return NOT_GIVEN


@dataclass(frozen=True)
class FreeRun:
    """A subject run end to end; of a candidate of others only the stages are required.

    Attributes:
        stages: stage id → output.
        cotangents: stage id → gradient of the total loss by that output (zeros where it has no influence).
        gradients: weight name → gradient of the total loss, TensorFlow kernel layout.
        losses: ``nll``, ``mae``, ``total``.
        watched: another run, with the cotangents of stages that nobody computes in use; None if there are none.
            Rounding may put it on other linear pieces, and its cotangents are judged on its own.
    """

    stages: Mapping[str, np.ndarray]
    cotangents: Mapping[str, np.ndarray] = field(default_factory=_not_given)
    gradients: Mapping[str, np.ndarray] = field(default_factory=_not_given)
    losses: Mapping[str, float] = field(default_factory=_not_given)
    watched: FreeRun | None = None


NOTHING_FREE = FreeRun({}, {}, {}, {})
"""What a subject that raised has given."""


@dataclass(frozen=True)
class ForcedRun:
    """A subject run stage by stage, every stage fed with the truth.

    Attributes:
        stages: stage id → output from the truth's inputs.
        pulled: stage id → {input stage id → the truth's cotangent of this stage pulled back to that input}.
            The losses count as one stage, ``loss``, whose cotangent is 1.
        gradients: weight name → gradient by the weights of one stage, from the truth's cotangent.
        losses: ``nll``, ``mae``, ``total`` from the truth's predictions.
    """

    stages: Mapping[str, np.ndarray] = field(default_factory=_not_given)
    pulled: Mapping[str, Mapping[str, np.ndarray]] = field(default_factory=_not_given)
    gradients: Mapping[str, np.ndarray] = field(default_factory=_not_given)
    losses: Mapping[str, float] = field(default_factory=_not_given)


NOTHING_FORCED = ForcedRun({}, {}, {}, {})
"""What a subject that raised has given."""
