"""``run.json``: which run a folder holds, how far it is, and how it ended.

A folder of training holds one run. Its checkpoints carry the id of the run, so that what another run left in the folder
is never taken for its own. <doc-ref type="guide">docs/workflows/resuming.md</doc-ref>.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from ptycho_torch.files.folders import CHECKPOINTS, run_files
from ptycho_torch.files.npz_writer import replacing
from ptycho_torch.training.checkpoint_file import run_of

FILE = "run.json"
_FORMAT = 1

State = Literal["running", "interrupted", "stopped by budget", "finished", "failed"]


@dataclasses.dataclass(frozen=True)
class RunState:
    """What ``run.json`` holds.

    Attributes:
        run: id of the run, which its checkpoints have too.
        settings: SHA-256 of the settings that decide the weights.
        state: whether it runs, or how it ended. A run that was killed still says ``running``.
        epochs: that are done.
        updates: of the weights so far.
        history: name → value of each epoch.
        tracking: ``uri`` and ``run_id`` of its MLflow run; empty without one.
    """

    run: str
    settings: str
    state: State
    epochs: int = 0
    updates: int = 0
    history: Mapping[str, Sequence[float]] = dataclasses.field(default_factory=dict)
    tracking: Mapping[str, str] = dataclasses.field(default_factory=dict)


def read_state(output_dir: Path) -> RunState | None:
    """Return the state of the run in a folder; None where there is none, or none that can be read."""
    try:
        content: Any = json.loads((output_dir / FILE).read_bytes())
        del content["format"]
        state = RunState(**content)
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
    return state if isinstance(state.run, str) and state.state in get_args(State) else None


def write_state(output_dir: Path, state: RunState) -> None:
    """Write ``run.json`` in one rename."""
    content = {"format": _FORMAT, **dataclasses.asdict(state)}
    with replacing(output_dir / FILE, overwrite=True) as file:
        file.write(json.dumps(content, indent=1).encode())


def settings_digest(settings: Mapping[str, Mapping[str, Any]], without: Sequence[str]) -> str:
    """Return the SHA-256 of settings; those of ``training`` that a resumed run may change are left out."""
    deciding = {
        owner: {name: value for name, value in values.items() if owner != "training" or name not in without}
        for owner, values in settings.items()
    }
    return hashlib.sha256(json.dumps(deciding, sort_keys=True, default=str).encode()).hexdigest()


def own_checkpoint(output_dir: Path) -> Path | None:
    """Return the checkpoint that the run in a folder resumes from: its last one, else its best one.

    Those of another run than ``run.json`` names are passed over. Where there is no ``run.json``, or a checkpoint has no
    id, they count as of one run.
    """
    state = read_state(output_dir)
    for name in ("last.ckpt", "best.ckpt"):
        path = output_dir / CHECKPOINTS / name
        if path.is_file() and (state is None or run_of(path) in (None, state.run)):
            return path
    return None


def set_aside(output_dir: Path) -> Path | None:
    """Move what another run has left out of the way of a new one, into ``replaced-N``; return that folder, if any."""
    found = run_files(output_dir)
    if not found:
        return None
    number = 1
    while (place := output_dir / f"replaced-{number}").exists():
        number += 1
    for path in found:
        target = place / path.relative_to(output_dir)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.replace(target)
    return place
