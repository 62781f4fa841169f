"""``python -m conformance calibrate``: what float32 costs the TensorFlow reference, for ``specs/measured.yaml``."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

import yaml

_HEADER = """\
# What was measured: written by `python -m conformance calibrate`, which keeps the limits. README.md explains the
# fields, and gives the reason of every limit; a limit may grow only with its reason.
"""

DRAWS = 2
"""Draws per graph; twice as many at N = 128, and four times at 256."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    parser.add_argument("-o", "--output", type=Path, required=True, help="YAML file to write")
    parser.add_argument(
        "--bundle", type=Path, action="append", default=[], help="also calibrate on the case of a recording"
    )


def run(options: argparse.Namespace) -> int:
    """Measure and write; return 0.

    Raises:
        PtychoError: a recording that cannot be read, or no TensorFlow.
    """
    from conformance.cases.draws import GRAPHS, draw_case
    from conformance.judge.measured import FILE, load_measured
    from conformance.provenance.json_files import write_text
    from conformance.recordings.bundle import read_bundle
    from conformance.recordings.calibrate import RUNS, calibrate
    from conformance.subjects.keras import KerasSubject
    from ptycho_tf_bridge.backend import keras, tensorflow
    from ptycho_torch.contracts.contract import read_yaml

    cases = [read_bundle(path).case for path in options.bundle]
    cases += [
        dataclasses.replace(
            draw_case(settings, seed, batch=3 if settings.N == 64 else 1, modes=1 + seed % 2), name=f"{name}/{seed}"
        )
        for name, settings in GRAPHS.items()
        # What float32 costs a sum over many pixels varies most from draw to draw.
        for seed in range(DRAWS * settings.N // 64)
    ]
    tables = calibrate(
        cases,
        lambda case: KerasSubject(case.settings, "float32"),
        load_measured().limits,
        lambda line: print(line, file=sys.stderr, flush=True),  # noqa: T201 - a command shows its progress
    )
    content = {
        "provenance": {
            "tensorflow": tensorflow().__version__,
            "keras": keras().__version__,
            "cases": [case.name for case in cases],
            "runs_per_case": RUNS,
        },
        "limits": read_yaml(FILE)["limits"],
        **tables,
    }
    write_text(options.output, _HEADER + yaml.safe_dump(content, sort_keys=False, default_flow_style=None, width=110))
    return 0
