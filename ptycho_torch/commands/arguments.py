"""Arguments that several commands take, and the types of their values."""

from __future__ import annotations

import argparse
import math
from pathlib import Path


def add_probe_dir(parser: argparse.ArgumentParser) -> None:
    """Add ``--probe-dir``."""
    parser.add_argument(
        "--probe-dir", type=Path, metavar="DIR", help="folder of probes, one for all scans or one for each by its stem"
    )


def add_data_dir(parser: argparse._ActionsContainer) -> None:
    """Add ``--data-dir``."""
    parser.add_argument(
        "--data-dir",
        type=Path,
        metavar="DIR",
        help="folder of the memory map (default: a folder in data/memmap, the same for the same SCANS in train and "
        "infer)",
    )


def add_progress(parser: argparse.ArgumentParser) -> None:
    """Add ``--progress`` and ``--no-progress``."""
    parser.add_argument(
        "--progress",
        action=argparse.BooleanOptionalAction,
        help="progress bars (default: where a terminal shows them; elsewhere training prints a line an epoch)",
    )


def whole(text: str) -> int:
    """Read a whole number above 0."""
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return number


def seed(text: str) -> int:
    """Read a whole number of 0 or more."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of 0 or more")
    return int(text)


def zero_or_more(text: str) -> float:
    """Read a finite number of 0 or more."""
    number = _number(text)
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of 0 or more")
    return number


def positive(text: str) -> float:
    """Read a finite number above 0."""
    number = _number(text)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return number


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
