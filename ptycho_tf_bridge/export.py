"""From a checkpoint to an archive that the TensorFlow reference loads; written without TensorFlow."""

from __future__ import annotations

import dataclasses
import io
import math
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from ptycho_tf_bridge.archives.keras_file import write_keras
from ptycho_tf_bridge.archives.saved_parameters import PROBE_KEY, SAVED_FIELDS, SCALE_KEY, legacy_key
from ptycho_tf_bridge.config import Finding, to_legacy
from ptycho_tf_bridge.errors import ArchiveError
from ptycho_tf_bridge.weights import to_tensorflow, torch_shapes
from ptycho_torch.config_params import NetworkSettings, Settings
from ptycho_torch.files.npz_writer import replacing
from ptycho_torch.training.checkpoint import Checkpoint, read_checkpoint

MODELS = ("autoencoder", "diffraction_to_obj")
"""Folders of an archive; both hold the same weights."""

VERSION = "1.0"
"""Of the layout, as the reference writes it."""

_PROTOCOL = 4
_TRAINED = {"probe_trainable": "probe.trainable", "intensity_scale_trainable": "intensity_scale.trainable"}


@dataclasses.dataclass(frozen=True)
class Export:
    """What an export has written.

    Attributes:
        path: the archive.
        findings: what became of every setting.
        notes: sentences about what is not as in the checkpoint.
    """

    path: Path
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]


def export(
    checkpoint: str | Path, path: str | Path, *, widen_amplitude_head: bool = False, overwrite: bool = False
) -> Export:
    """Write the model of a checkpoint as an archive of the reference.

    Its ``model.keras`` is a model of Keras' own layers up to amplitude and phase of the patches, see
    ``ptycho_tf_bridge.archives.keras_file``; weights, probe and scale are the checkpoint's bit for bit.

    Args:
        checkpoint: of training, or converted.
        path: the archive, which the reference looks for as ``wts.h5.zip``; its folder is made.
        widen_amplitude_head: repeat a single amplitude channel for each pattern of a group, which the reference of
            today needs; the function stays the same, and ``shared_amplitude_head`` does not.
        overwrite: whether the file may be there.

    Raises:
        CheckpointError: the checkpoint cannot be read.
        ArchiveError: no archive can hold it: several probe modes.
        WeightMapError: its weights are not those of its network.
        ConfigError: the file is there and may not be overwritten.
    """
    content, path = read_checkpoint(checkpoint), Path(path)
    notes: list[str] = []
    network = content.network
    shapes = torch_shapes(network)
    arrays = {name: _float32(name, content.weights[name], notes) for name in shapes if name in content.weights}
    weights = to_tensorflow(arrays, network)
    if network.shared_amplitude_head and widen_amplitude_head:
        network, weights = _widened(network, weights)
        notes.append(f"The amplitude head has its one channel {network.C} times; the function is the same.")
    elif network.shared_amplitude_head:
        notes.append(
            "One amplitude channel serves each group, which the reference has not had since 2026-02-10: its loader "
            "refuses such weights. --widen-amplitude-head repeats the channel."
        )
    network = dataclasses.replace(network, intensity_scale=_scale(content))
    parameters, findings = _parameters(content, network, _probe(content))
    members = {"manifest.dill": pickle.dumps({"models": list(MODELS), "version": VERSION}, _PROTOCOL)}
    model = write_keras(network, weights)
    for name in MODELS:
        members |= {
            f"{name}/custom_objects.dill": pickle.dumps({}, _PROTOCOL),
            f"{name}/model.keras": model,
            f"{name}/model.h5": _scale_file(network.intensity_scale),
            f"{name}/params.dill": pickle.dumps(parameters, _PROTOCOL),
        }
    with replacing(path, overwrite=overwrite) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return Export(path, findings, tuple(dict.fromkeys(notes)))


def _float32(name: str, tensor: torch.Tensor, notes: list[str]) -> np.ndarray:
    if tensor.dtype != torch.float32:
        notes.append(f"The weights were {tensor.dtype} and are float32 in the archive, as everything is there.")
    return tensor.detach().to(torch.float32).contiguous().numpy()


def _widened(
    network: NetworkSettings, weights: Mapping[str, np.ndarray]
) -> tuple[NetworkSettings, dict[str, np.ndarray]]:
    """Repeat the heads of the amplitude along their last axis, the output channels."""
    heads = ("decoder_amp.central.", "decoder_amp.outer.head.")
    wide = {
        name: np.repeat(array, network.C, axis=-1) if name.startswith(heads) else array
        for name, array in weights.items()
    }
    return dataclasses.replace(network, shared_amplitude_head=False), wide


def _scale(content: Checkpoint) -> float:
    """Return s_I: the one of the settings, or exp(log_scale) where that was trained."""
    stated = content.network.intensity_scale
    log_scale = float(_weight(content, "log_scale"))
    return stated if np.float32(math.log(stated)) == np.float32(log_scale) else math.exp(log_scale)


def _probe(content: Checkpoint) -> np.ndarray:
    """Return the probe as the reference keeps it, (N, N, 1) complex64."""
    parts = _weight(content, "probe_parts").to(torch.float32).contiguous()
    modes = torch.view_as_complex(parts).numpy()
    if len(modes) != 1:
        raise ArchiveError(
            f"{content.path}: the probe has {len(modes)} modes, and the reference has one; train with one mode."
        )
    return np.ascontiguousarray(modes.transpose(1, 2, 0))


def _weight(content: Checkpoint, name: str) -> torch.Tensor:
    if name not in content.weights:
        raise ArchiveError(f"{content.path}: no {name} among the weights; this is no checkpoint of this network.")
    return content.weights[name]


def _parameters(
    content: Checkpoint, network: NetworkSettings, probe: np.ndarray
) -> tuple[dict[str, Any], tuple[Finding, ...]]:
    """Return the reference's dictionary: what the settings decide, and above it what the model is."""
    parameters, findings = to_legacy(_as_run(content, network))
    parameters |= {legacy_key(field): getattr(network, field) for field in SAVED_FIELDS}
    for field, key in _TRAINED.items():
        parameters[key] = getattr(network, field)
    return parameters | {SCALE_KEY: network.intensity_scale, PROBE_KEY: probe, "_version": VERSION}, findings


def _as_run(content: Checkpoint, network: NetworkSettings) -> Settings:
    """Return the settings with what the run derived from its scans: canvas, scale and counts of a pattern."""
    derived: dict[str, Any] = {field: getattr(network, field) for field in (*SAVED_FIELDS, SCALE_KEY)}
    nphotons = content.statistics.get("nphotons")
    return content.settings.override(derived | ({} if nphotons is None else {"nphotons": nphotons}))


def _scale_file(scale: float) -> bytes:
    file = io.BytesIO()
    with h5py.File(file, "w") as root:
        root.attrs[SCALE_KEY] = scale
    return file.getvalue()
