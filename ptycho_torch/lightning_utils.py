"""Where ptychodus looks for the checkpoint of a run.

<doc-ref type="guide">docs/ptychodus.md</doc-ref>
"""

from __future__ import annotations

from pathlib import Path


def find_best_checkpoint(run_dir: str | Path) -> Path | None:
    """Return ``best.ckpt`` of a run, ``last.ckpt`` where there is no best one, or None where there is neither."""
    names = ("best.ckpt", "last.ckpt")
    return next((path for name in names if (path := Path(run_dir) / "checkpoints" / name).is_file()), None)
