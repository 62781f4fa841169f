"""Archived models made by hand, converted and predicted with, for tests that need no archive file."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from conformance.cases.case import Case
from conformance.judge.truth import Truth
from ptycho_tf_bridge.archives.archive import Archive
from ptycho_tf_bridge.migrate import build_network
from ptycho_torch.config_params import Settings
from ptycho_torch.training.checkpoint import write_checkpoint

Weights = dict[str, Tensor]


def archive_of(case: Case, name: str = "wts.h5.zip") -> Archive:
    """An archive that holds the weights, probe and scale of a case."""
    return Archive(
        path=Path(name),
        digest="0" * 64,
        layout="keras",
        era="2026",
        parameters={},
        network=case.settings,
        weights=case.weights,
        probe=case.probe.reshape(case.probe.shape[-2:]),
        probe_source="params.dill",
        intensity_scale=case.settings.intensity_scale,
        intensity_scale_source="params.dill",
        missing=(),
        notes=(),
    )


def checkpoint_of(
    archive: Archive, path: Path, change: Callable[[Weights], None] = lambda _: None, **network: Any
) -> Path:
    """A checkpoint of the archive's model; ``change`` and other settings of the network make it a wrong one."""
    settings = dataclasses.replace(archive.network, **network)
    weights = dict(build_network(archive, settings).state_dict())
    change(weights)
    statistics = {"probe_modes": 1, "one_probe": True}
    write_checkpoint(path, Settings.current(), settings, statistics, weights, overwrite=True)
    return path


def predictions_of(case: Case, path: Path, **more: np.ndarray) -> Path:
    """What a reference without rounding errors would have recorded for the inputs of a case."""
    stages = Truth(case).stages
    arrays: Mapping[str, np.ndarray] = {
        "X": case.diffraction,
        "offsets": case.offsets_px,
        "object": stages["object"].astype(np.complex64),
        "amplitude": stages["predicted_amplitude"].astype(np.float32),
        "intensity_scale": np.array(case.settings.intensity_scale),
    }
    np.savez(path, **{**arrays, **more})
    return path
