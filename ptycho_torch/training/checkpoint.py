"""Checkpoints: weights, the settings they were trained with, and what is known of the data.

A checkpoint is what Lightning saves, in a file that nothing unpickles: ``ptycho_torch.training.checkpoint_file``. See
<doc-ref type="guide">docs/workflows/pytorch.md</doc-ref>.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.fabric.plugins import CheckpointIO
from torch import Tensor

from ptycho_torch.config_params import NetworkSettings, Settings
from ptycho_torch.errors import CheckpointError, ConfigError
from ptycho_torch.files.folders import checkpoint_of
from ptycho_torch.training.checkpoint_file import KEY, read_content, remove, write_content

__all__ = ["FORMAT", "KEY", "Checkpoint", "PlainCheckpointIO", "ours", "read_checkpoint", "write_checkpoint"]

FORMAT = 1
"""Number of the layout; a reader refuses any other."""

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
        run: id of the run; None for a checkpoint that no run wrote.
        within_epoch: whether it stands within an epoch, and not behind one.
        processes: that trained together.
    """

    path: Path
    settings: Settings
    network: NetworkSettings
    statistics: Mapping[str, Any]
    weights: Mapping[str, Tensor]
    history: Mapping[str, list[float]]
    epoch: int
    finished: bool
    run: str | None = None
    within_epoch: bool = False
    processes: int = 1


class PlainCheckpointIO(CheckpointIO):
    """Has Lightning write and read checkpoints as ``checkpoint_file`` lays them out, without pickles."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint as a whole or not at all."""
        write_content(path, checkpoint)

    def load_checkpoint(self, path: str | Path, *_: Any, **__: Any) -> dict[str, Any]:
        """Return what was saved, with tensors on the CPU; Lightning's other arguments are those of ``torch.load``.

        Raises:
            CheckpointError: it cannot be read.
        """
        return read_content(path)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint, if it is there."""
        remove(path)


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
    content = read_content(path)
    own = content.get(KEY)
    if not isinstance(own, dict) or own.get("format") != FORMAT:
        found = own.get("format") if isinstance(own, dict) else None
        raise CheckpointError(
            f"{path}: format {found!r} under {KEY!r}, expected {FORMAT}. The file is of another program, or of a "
            "version of ptycho-torch whose checkpoints are others: train again, or use that version."
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
            run=own.get("run"),
            within_epoch="train" in own.get("sums", {}),
            processes=int(own.get("processes", 1)),
        )
    except (KeyError, TypeError, ValueError, AttributeError, ConfigError) as err:
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
    write_content(path, content, overwrite=overwrite)
