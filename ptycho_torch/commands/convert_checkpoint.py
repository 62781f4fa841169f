"""``ptycho-torch convert-checkpoint``: a checkpoint of an older version, which is a pickle, becomes one of today.

<doc-ref type="guide">docs/workflows/resuming.md</doc-ref>
"""

from __future__ import annotations

import argparse
import pickle
import sys
from pathlib import Path
from typing import Any

from ptycho_torch.errors import CheckpointError
from ptycho_torch.files.folders import refuse_outputs

RISK = (
    "is a pickle, and to read one is to let it direct PyTorch's unpickler. It is read with weights_only, which refuses "
    "code, but whose gaps have let crafted files run code (CVE-2025-32434, PyTorch before 2.6)"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``convert-checkpoint``."""
    parser.add_argument("checkpoint", type=Path, metavar="OLD", help="a .ckpt file that torch.save has written")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="NEW", help="the checkpoint to write")
    parser.add_argument("--trust", action="store_true", help="you know who made OLD: reading a pickle can run code")
    parser.add_argument("--overwrite", action="store_true", help="replace NEW if it is there")


def run(options: argparse.Namespace) -> int:
    """Convert; return 0.

    Raises:
        CheckpointError: the file is not trusted, or is no checkpoint of this project.
        ConfigError: the output is there already.
    """
    old, new = options.checkpoint, options.output
    if not options.trust:
        raise CheckpointError(f"{old}: {RISK}. If you know who made the file, give --trust.")
    refuse_outputs([new], [old], overwrite=options.overwrite)
    print(f"{old} {RISK}.", file=sys.stderr)  # noqa: T201
    convert_checkpoint(old, new)
    print(new)  # noqa: T201 - the command's answer
    return 0


def convert_checkpoint(old: Path, new: Path) -> None:
    """Write a checkpoint of today with what one of an older version holds.

    Raises:
        CheckpointError: it cannot be read, or is of another program.
    """
    import torch

    from ptycho_torch.training.checkpoint_file import KEY, write_content

    try:
        content: Any = torch.load(old, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, pickle.UnpicklingError) as err:
        reason = " ".join(str(err).split())[:200]
        raise CheckpointError(f"{old}: PyTorch cannot read it with weights_only ({reason}).") from err
    own = content.get(KEY) if isinstance(content, dict) else None
    if not isinstance(own, dict):
        raise CheckpointError(f"{old}: no checkpoint of this project; it has no {KEY!r}.")
    # The sums of an epoch were those of all processes together.
    own["sums"] = {part: values[None] for part, values in own.get("sums", {}).items()}
    write_content(new, content)
