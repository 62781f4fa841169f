"""The commands beside ``pytest conformance``: ``python -m conformance``."""

from __future__ import annotations

from collections.abc import Sequence

from ptycho_torch.commands import cli
from ptycho_torch.commands.cli import Command, Program

CONFORMANCE = Program(
    "python -m conformance",
    "Commands beside `pytest conformance`: decide from reports, verify converted models, measure, record.",
    "python -m conformance clauses FORWARD-FORCED",
    {
        "clauses": Command(
            "conformance.provenance.clauses",
            "list every clause of the specification with the tests that judge it; fails where one has none",
            "python -m conformance clauses FORWARD-FORCED",
        ),
        "gate": Command(
            "conformance.commands.gate",
            "decide from the reports of all devices whether a release may go out, or a change be merged",
            "python -m conformance gate cpu/parity.json cuda/parity.json -o sign-off.json --page release.html",
        ),
        "reproduce": Command(
            "conformance.commands.reproduce",
            "write a failure of a report as a short program that needs PyTorch, NumPy and ptycho_torch only",
            "python -m conformance reproduce cpu/parity.json n64_g2_base merged -o repro.py",
        ),
        "signed": Command(
            "conformance.commands.signed",
            "was this installation signed off for release, and is it what was signed off?",
            "python -m conformance signed",
        ),
        "history": Command(
            "conformance.commands.history",
            "list many reports by time: verdicts, shares of budgets, and what their environments do not share",
            "python -m conformance history reports -o history.html",
        ),
        "verify": Command(
            "conformance.commands.verify",
            "hold a converted model against its archive and what the reference recorded (minutes); fails where it is "
            "not the same",
            "python -m conformance verify wts.h5.zip --scan scan.npz -o certificate",
        ),
        "record": Command(
            "conformance.commands.record",
            "record a bundle: what a reference computes, for machines without TensorFlow (about a minute)",
            "python -m conformance record -o n64_g1.npz --graph n64_g1",
        ),
        "study": Command(
            "conformance.commands.study",
            "measure what takes hours: both backends trained from scratch, or clean runs of the suite",
            "python -m conformance study clean --runs 1000",
        ),
        "calibrate": Command(
            "conformance.commands.calibrate",
            "measure what float32 costs the TensorFlow reference, stage by stage (minutes; needs TensorFlow)",
            "python -m conformance calibrate -o specs/measured.yaml",
        ),
        "calibrate-training": Command(
            "conformance.commands.envelope",
            "record how far float32 takes Keras from the truth in ten updates (minutes; needs TensorFlow)",
            "python -m conformance calibrate-training",
        ),
        "document": Command(
            "conformance.commands.document",
            "write specs/data_contracts.md from its YAML, and the numbers of docs/conformance.md from evidence",
            "python -m conformance document",
        ),
    },
)
"""Every command, in the order in which one uses them."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code, and say in one line on standard error why it failed."""
    return cli.main(arguments, CONFORMANCE)
