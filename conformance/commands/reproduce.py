"""``python -m conformance reproduce``: a red verdict as a program of its own."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    parser.add_argument("report", type=Path, metavar="REPORT", help="parity.json of a run with --parity-report")
    parser.add_argument("case", metavar="CASE", help="a case that failed, as the report calls it")
    parser.add_argument("stage", metavar="STAGE", help="a stage that failed there, or loss")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", default=Path("repro.py"), help="default: repro.py")


def run(options: argparse.Namespace) -> int:
    """Write the program and return 0.

    Raises:
        PtychoError: the report cannot be read, has nothing red there, or nothing of it shows on drawn input.
    """
    from conformance.provenance.json_files import write_text
    from conformance.report.reproduction import of_report
    from conformance.report.results import read_report

    script = of_report(read_report(options.report), options.case, options.stage)
    print(f"wrote {write_text(options.output, script)}: python {options.output} fails until it is repaired")  # noqa: T201
    return 0
