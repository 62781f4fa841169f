"""``ptycho-bridge export``: a checkpoint becomes an archive that the reference loads."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``export``."""
    parser.add_argument(
        "checkpoint",
        type=Path,
        metavar="CHECKPOINT",
        help="a .ckpt file of training, or the folder of a run for its checkpoints/last.ckpt",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("wts.h5.zip"),
        metavar="FILE",
        help="the archive; the reference looks for wts.h5.zip (default wts.h5.zip)",
    )
    parser.add_argument(
        "--widen-amplitude-head",
        action="store_true",
        help="repeat a single amplitude channel for each pattern of a group, as the reference of today needs it",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a file that is there")
    parser.add_argument("--full", action="store_true", help="report settings that stay the same as well")


def run(options: argparse.Namespace) -> int:
    """Export; return 0.

    Raises:
        PtychoError: a checkpoint that cannot be read or exported, or a file that is there.
    """
    from ptycho_torch.files.folders import checkpoint_of, refuse_outputs

    checkpoint = checkpoint_of(options.checkpoint)
    refuse_outputs([options.output], [checkpoint], overwrite=options.overwrite)
    # These load PyTorch.
    from ptycho_tf_bridge.commands.config import report_lines
    from ptycho_tf_bridge.export import export

    written = export(
        checkpoint,
        options.output,
        widen_amplitude_head=options.widen_amplitude_head,
        overwrite=options.overwrite,
    )
    print(f"{written.path}")  # noqa: T201 - the command's answer
    for note in written.notes:
        print(f"note: {note}")  # noqa: T201
    print("\n".join(report_lines(written.findings, full=options.full)))  # noqa: T201
    return 0
