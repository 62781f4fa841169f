"""``ptycho-torch evaluate``: a reconstruction compared with the known object."""

from __future__ import annotations

import argparse
from pathlib import Path

from ptycho_torch.files.folders import refuse_outputs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``evaluate``."""
    parser.add_argument("reconstruction", type=Path, metavar="RECONSTRUCTION.npz", help="what inference wrote")
    parser.add_argument(
        "--truth", type=Path, required=True, metavar="NPZ", help="a scan, or another file, with the known objectGuess"
    )
    parser.add_argument("--border", type=int, metavar="PX", help="left out at each side, in object pixels (default 14)")
    parser.add_argument(
        "--scan", type=Path, metavar="SCAN.npz", help="measured patterns: how well do object and probe predict them?"
    )
    parser.add_argument("--refine", action="store_true", help="find the shift by least squares")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="write a picture")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers")


def run(options: argparse.Namespace) -> int:
    """Evaluate one reconstruction, and print a table; return 0.

    Raises:
        PtychoError: a file that cannot be read or written, or an object that cannot be compared.
    """
    from ptycho_torch.files.npz import NpzFile

    inputs = [path for path in (options.reconstruction, options.truth, options.scan) if path is not None]
    for path in inputs:
        NpzFile(path)
    refuse_outputs([path for path in (options.plot, options.json) if path is not None], inputs, overwrite=True)
    from ptycho_torch.data.scan import open_scan
    from ptycho_torch.evaluate import BORDER_PX, describe, evaluate, plot_evaluation, read_truth
    from ptycho_torch.files.json_numbers import write_numbers
    from ptycho_torch.reconstruction.products import read_reconstruction

    reconstruction, truth = read_reconstruction(options.reconstruction), read_truth(options.truth)
    scan = None if options.scan is None else open_scan(options.scan)
    border_px = BORDER_PX if options.border is None else options.border
    evaluation = evaluate(reconstruction, truth, border_px=border_px, refine=options.refine, scan=scan)
    print("\n".join(describe(evaluation)))  # noqa: T201 - the command's answer
    if options.json is not None:
        write_numbers(options.json, evaluation.numbers(), overwrite=True)
    if options.plot is not None:
        plot_evaluation(evaluation, options.plot)
    return 0
