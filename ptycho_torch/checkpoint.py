"""Checkpoints: weights, the settings they were trained with, and what is known of the data.

A checkpoint is a Lightning checkpoint that loads with ``weights_only``: numbers, strings and tensors, no code. See
<doc-ref type="guide">docs/workflows/pytorch.md</doc-ref>.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ptycho_torch.config_params import NetworkSettings, Settings
from ptycho_torch.errors import CheckpointError, ConfigError
from ptycho_torch.folders import checkpoint_of
from ptycho_torch.npz_writer import replacing

FORMAT = 1
"""Number of the layout; a reader refuses any other."""

KEY = "ptycho_torch"
"""Under which a Lightning checkpoint keeps what is ours."""

_WEIGHTS = "network."


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint says.

    Attributes:
        path: the file.
        settings: settings of the run.
        network: settings of the network, completed from the data.
        statistics: what is known of the training data: nphotons, names of the scans, number of groups, and so on.
        weights: name → tensor of ``PtychoNet``.
        history: name → value of each epoch.
        epoch: epochs that were started.
        finished: whether training had come to its end.
    """

    path: Path
    settings: Settings
    network: NetworkSettings
    statistics: Mapping[str, Any]
    weights: Mapping[str, Tensor]
    history: Mapping[str, list[float]]
    epoch: int
    finished: bool


def ours(
    settings: Settings, network: NetworkSettings, statistics: Mapping[str, Any], history: Mapping[str, list[float]]
) -> dict[str, Any]:
    """Return what a checkpoint keeps under ``KEY``, as plain values."""
    return {
        "format": FORMAT,
        "settings": settings.as_dict(),
        "network": dataclasses.asdict(network),
        "statistics": dict(statistics),
        "history": {name: list(values) for name, values in history.items()},
    }


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint without running any code from it.

    Args:
        path: a checkpoint, or the folder of a run for its last one.

    Raises:
        CheckpointError: it cannot be read, is of another program, or lacks something.
    """
    path = checkpoint_of(Path(path))
    if not zipfile.is_zipfile(path):
        raise CheckpointError(f"{path}: no PyTorch checkpoint, or a truncated one; give a .ckpt file of training.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, pickle.UnpicklingError) as err:
        reason = " ".join(str(err).split())[:200]
        raise CheckpointError(
            f"{path}: not a checkpoint that loads with weights_only ({reason}). Give a .ckpt file of this project; "
            "an archive of the TensorFlow reference has to be converted first."
        ) from err
    own = content.get(KEY) if isinstance(content, dict) else None
    if not isinstance(own, dict) or own.get("format") != FORMAT:
        found = own.get("format") if isinstance(own, dict) else None
        raise CheckpointError(
            f"{path}: format {found!r} under {KEY!r}, expected {FORMAT}. The file is of another program or version."
        )
    try:
        return Checkpoint(
            path=path,
            settings=Settings.from_dict(own["settings"]),
            network=NetworkSettings(**own["network"]),
            statistics=own["statistics"],
            weights={
                name.removeprefix(_WEIGHTS): tensor
                for name, tensor in content["state_dict"].items()
                if name.startswith(_WEIGHTS)
            },
            history=own["history"],
            epoch=int(content["epoch"]),
            finished=bool(own.get("finished", False)),
        )
    except (KeyError, TypeError, AttributeError, ConfigError) as err:
        raise CheckpointError(f"{path}: incomplete or damaged ({type(err).__name__}: {err}).") from err


def write_checkpoint(
    path: Path,
    settings: Settings,
    network: NetworkSettings,
    statistics: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    *,
    overwrite: bool,
) -> None:
    """Write a checkpoint of weights that come from elsewhere: for inference, and to start a training from.

    Args:
        path: the file, written in one rename.
        settings: of a run that would go on with these weights.
        network: settings of the network.
        statistics: what is known of the training data; ``probe_modes`` and ``one_probe`` among them.
        weights: name → tensor, the whole state of ``PtychoNet``.
        overwrite: whether the file may be there.

    Raises:
        ConfigError: it is there and may not be overwritten, or its folder cannot be made.
    """
    content = {
        "epoch": 0,
        "global_step": 0,
        "pytorch-lightning_version": importlib.metadata.version("lightning"),
        "state_dict": {f"{_WEIGHTS}{name}": tensor for name, tensor in weights.items()},
        KEY: ours(settings, network, statistics, {}) | {"finished": True},
    }
    with replacing(path, overwrite=overwrite) as file:
        torch.save(content, file)
