"""``python -m conformance history``: what many reports say, one after the other."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder of reports; those of folders below count too")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="write one HTML page with a picture and all reports"
    )


def run(options: argparse.Namespace) -> int:
    """Print a line for each report, oldest first, and write the page; return 0.

    Raises:
        DocumentError: there is no report in the folder.
    """
    from conformance.provenance.json_files import write_text
    from conformance.report.history import history_page, read_history

    entries, others = read_history(options.folder)
    print(*entries, *(f"left out: {each}" for each in others), sep="\n")  # noqa: T201 - what the command is for
    if options.output:
        print(f"wrote {write_text(options.output, history_page(entries))}")  # noqa: T201
    return 0
