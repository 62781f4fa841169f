"""``python -m conformance study``: what takes hours, shows progress, and can be gone on with."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from conformance.evidence import Evidence


def add_arguments(commands: Any) -> None:
    """Add ``study`` to the commands of ``python -m conformance``."""
    study = commands.add_parser(
        "study",
        help="measure what takes hours: training end to end, and clean runs of the suite",
        epilog="example: python -m conformance study clean --runs 1000",
    )
    kinds = study.add_subparsers(dest="study", required=True)
    training = kinds.add_parser(
        "training",
        help="train both backends from scratch, several seeds each, and compare where they end (hours)",
        epilog="example: python -m conformance study training --seeds 5 -o study",
    )
    training.add_argument("--seeds", type=int, default=5, help="trainings of each backend (default 5)")
    training.add_argument("--epochs", type=int, help="of each training (default: enough for the reference)")
    training.add_argument("--backend", choices=("torch", "keras"), help="train this backend alone")
    training.add_argument(
        "-o", "--output", type=Path, default=Path("study"), help="folder; a study that was broken off goes on there"
    )
    training.add_argument("--evidence", type=Path, help="folder to write training-study-cpu.json to")
    clean = kinds.add_parser(
        "clean",
        help="judge fresh draws of a right network: false alarms, and how much of each budget is used (an hour)",
        epilog="example: python -m conformance study clean --runs 1000 -o study/clean.jsonl",
    )
    clean.add_argument("--runs", type=_count, default=1000, help="draws, those of the log included (default 1000)")
    clean.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("study/clean.jsonl"),
        help="log, a line for each draw; a study that was broken off goes on there",
    )
    clean.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where the network runs (default cpu)")
    clean.add_argument("--evidence", type=Path, help="folder to write clean-cpu.json to")


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return number


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # noqa: T201 - a command shows its progress


def run(options: argparse.Namespace) -> int:
    """Run one study; return 0 if its goals are met, else 1."""
    return _training(options) if options.study == "training" else _clean(options)


def _training(options: argparse.Namespace) -> int:
    from conformance.study import BACKENDS, EPOCHS, as_evidence, run_study

    epochs = EPOCHS if options.epochs is None else options.epochs
    backends = BACKENDS if options.backend is None else (options.backend,)
    outcomes = run_study(options.output, options.seeds, epochs, _say, backends)
    if options.backend is not None:
        return 0
    command = f"python -m conformance study training --seeds {options.seeds} --epochs {epochs}"
    return _told(as_evidence(outcomes, command), options.evidence)


def _clean(options: argparse.Namespace) -> int:
    from conformance.clean import clean_study

    study = clean_study(options.runs, options.output, device=options.device, progress=_say)
    for line in study.describe():
        print(line)  # noqa: T201 - the command's answer
    command = f"python -m conformance study clean --runs {study.runs} --device {options.device}"
    return _told(study.evidence(command, options.device), options.evidence)


def _told(evidence: Evidence, folder: Path | None) -> int:
    """Print the numbers beside their goals, and keep them where it was asked for; return 1 where one is missed."""
    from conformance.evidence import write_evidence

    for name, number in evidence.numbers.items():
        goal = evidence.goals.get(name)
        verdict = "" if goal is None else f"  {'missed' if name in evidence.missed else 'met'}: {goal}"
        print(f"{name:36} {number:12.6g}{verdict}")  # noqa: T201 - the command's answer
    if folder is not None:
        print(write_evidence(folder, evidence))  # noqa: T201
    return 1 if evidence.missed else 0
