"""``python -m conformance record``: what a reference computes, recorded for machines that do not have it."""

from __future__ import annotations

import argparse
from pathlib import Path

from conformance.errors import RecordError
from ptycho_torch.commands.arguments import seed, whole


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    parser.add_argument(
        "-o", "--output", type=Path, required=True, help="file to write; with --embedded, the folder of recordings"
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--graph", default="n64_g2", metavar="NAME", help="drawn case (default n64_g2)")
    source.add_argument("--archive", type=Path, help="a trained model of the reference, with its own weights")
    source.add_argument("--embedded", action="store_true", help="all drawn recordings that come with the package")
    parser.add_argument("--scan", type=Path, help="with --archive: the scan whose patterns and positions are used")
    parser.add_argument(
        "--reference", default="keras", metavar="NAME", help="recorded: keras, live:PACKAGE (default keras)"
    )
    parser.add_argument("--batch", type=whole, default=3, help="groups of a drawn case (default 3)")
    parser.add_argument("--modes", type=whole, default=1, help="probe modes of a drawn case (default 1)")
    parser.add_argument("--seed", type=seed, default=0, help="of a drawn case (default 0)")
    parser.add_argument("--samples", type=whole, default=1024, help="elements kept of a larger tensor (default 1024)")
    parser.add_argument("--overwrite", action="store_true", help="replace a file that is there")


def run(options: argparse.Namespace) -> int:
    """Check the paths, and record; return 0, or 1 where the reference is not what the specification says.

    Raises:
        PtychoError: as ``conformance.commands.make_recordings.run``.
    """
    if options.scan is not None and options.archive is None:
        raise RecordError("--scan goes with --archive; to judge a scan as it is: pytest conformance --parity-scan PATH")
    from ptycho_torch.files.folders import refuse_folder

    refuse_folder(options.output if options.embedded else options.output.parent)
    if options.archive is not None:
        # Only what can be read is worth the wait for the rest.
        from ptycho_tf_bridge.archives.members import open_members

        with open_members(options.archive):
            pass
    from conformance.commands import make_recordings as recordings

    return recordings.run(options)
