"""The command ``ptycho-bridge``, also as ``python -m ptycho_tf_bridge``."""

from __future__ import annotations

from collections.abc import Sequence

from ptycho_torch.commands import cli
from ptycho_torch.commands.cli import Command, Program

PTYCHO_BRIDGE = Program(
    "ptycho-bridge",
    "Trained models and configurations of the TensorFlow reference: look into them, convert them, and export back.",
    "ptycho-bridge inspect wts.h5.zip",
    {
        "inspect": Command(
            "ptycho_tf_bridge.commands.inspect",
            "say what an archive of the reference holds, and what it lacks",
            "ptycho-bridge inspect wts.h5.zip",
        ),
        "convert": Command(
            "ptycho_tf_bridge.commands.convert",
            "turn an archive of the reference into a checkpoint, settings and a migration report",
            "ptycho-bridge convert wts.h5.zip -o converted",
        ),
        # It verifies, so its module is of the package above this one; only its name is known here.
        "migrate": Command(
            "conformance.commands.migrate",
            "convert an archive, reconstruct scans with it and verify it (minutes), with one summary",
            "ptycho-bridge migrate wts.h5.zip scans/ -o migrated",
        ),
        "export": Command(
            "ptycho_tf_bridge.commands.export",
            "turn a checkpoint into an archive that the reference loads",
            "ptycho-bridge export run/checkpoints/last.ckpt -o exported/wts.h5.zip",
        ),
        "config": Command(
            "ptycho_tf_bridge.commands.config",
            "translate settings between the reference and this project",
            "ptycho-bridge config reference.yaml --to torch",
        ),
    },
)
"""Every command, in the order in which one uses them."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code, and say in one line on standard error why it failed."""
    return cli.main(arguments, PTYCHO_BRIDGE)
