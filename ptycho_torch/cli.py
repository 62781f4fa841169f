"""The command ``ptycho-torch``, also as ``python -m ptycho_torch``."""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
from collections.abc import Sequence

from ptycho_torch.errors import PtychoError

_COMMANDS = {
    "check-data": (
        "check",
        "hold scan files against the data contract",
        "example: ptycho-torch check-data scans/ --plot pictures",
    ),
    "convert-scan": (
        "convert",
        "repair a scan, or import a CXI/HDF5 file",
        "example: ptycho-torch convert-scan counts.npz -o scans/star.npz --from-intensity",
    ),
}
"""Command → module with ``add_arguments`` and ``run``, what it does, example."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ptycho-torch",
        description="Ptychographic reconstruction with a physics-informed network.",
        epilog="example: ptycho-torch check-data scan.npz",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (module, what, example) in _COMMANDS.items():
        command = commands.add_parser(name, help=what, description=f"{what[0].upper()}{what[1:]}.", epilog=example)
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
        command.add_argument("-v", "--verbose", action="store_true", help="say more on the way")
        importlib.import_module(f"ptycho_torch.{module}").add_arguments(command)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code, and 1 with one clear line where it fails."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(format="%(message)s", level=logging.INFO if options.verbose else logging.WARNING)
    try:
        return int(importlib.import_module(f"ptycho_torch.{_COMMANDS[options.command][0]}").run(options))
    except (PtychoError, OSError) as err:
        if options.debug:
            raise
        print(f"error: {err}", file=sys.stderr)  # noqa: T201
        return 1
