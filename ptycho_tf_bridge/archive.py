"""What a trained model of the TensorFlow reference holds, in plain arrays and values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ptycho_torch.config_params import NetworkSettings


@dataclass(frozen=True)
class Archive:
    """One archive, read without running anything from it.

    Attributes:
        path: the file or folder.
        digest: SHA-256 of the file, or of its members' names and contents where it is a folder, in hexadecimal.
        layout: ``keras`` (``model.keras`` in a zip), ``bare_keras`` (a ``.keras`` file alone), ``savedmodel`` (in a
            zip), ``savedmodel_folder`` or ``torch``.
        era: when such archives were written, in words.
        parameters: the saved parameters (``params.dill``): legacy key → plain value or array; empty if there are none.
        network: the network that the weights belong to, from the saved parameters and checked against the weights.
        weights: ``NAME.kernel`` (kh, kw, in, out) and ``NAME.bias`` (out,), NAME a stage id, float32, in the order of
            the weight table.
        probe: (N, N) complex64, used as it is; None if the archive holds none.
        probe_source: where it was found; empty if it was not.
        intensity_scale: s_I; None if the archive holds none.
        intensity_scale_source: where it was found; empty if it was not.
        missing: what the archive does not hold and a conversion has to be given, by name: ``probe``,
            ``intensity_scale``.
        notes: sentences about what is peculiar, for the migration report.
    """

    path: Path
    digest: str
    layout: str
    era: str
    parameters: Mapping[str, Any]
    network: NetworkSettings
    weights: Mapping[str, np.ndarray]
    probe: np.ndarray | None
    probe_source: str
    intensity_scale: float | None
    intensity_scale_source: str
    missing: tuple[str, ...]
    notes: tuple[str, ...]
