"""``python -m conformance calibrate-training``: how far float32 takes Keras from the truth in ten updates."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ptycho_torch.commands.arguments import whole


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    parser.add_argument("-o", "--output", type=Path, help="JSON file to write (default: the one of the package)")
    parser.add_argument("--runs", type=whole, default=16, help="trainings of Keras, each moved by an ulp (default 16)")


def run(options: argparse.Namespace) -> int:
    """Record the envelope and return 0.

    Raises:
        BackendMissingError: no TensorFlow.
    """
    from conformance.recordings.envelope import FILE, record_envelope
    from conformance.subjects.keras import KerasSubject
    from conformance.training.runs import SETTINGS
    from ptycho_tf_bridge.backend import keras, tensorflow

    record_envelope(
        FILE if options.output is None else options.output,
        KerasSubject(SETTINGS, "float32"),
        {"tensorflow": tensorflow().__version__, "keras": keras().__version__},
        lambda line: print(line, file=sys.stderr, flush=True),  # noqa: T201 - a command shows its progress
        options.runs,
    )
    return 0
