"""``python -m conformance study``: what takes hours, shows progress, and can be gone on with."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ptycho_torch.commands.arguments import whole

if TYPE_CHECKING:
    from conformance.provenance.evidence import Evidence

_TAKES = {"training": ("output", "pairs", "points", "backend"), "clean": ("output", "runs", "device")}
"""What each study takes beside ``--evidence``."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    parser.add_argument(
        "study",
        choices=tuple(_TAKES),
        help="training: train both backends from scratch in pairs, and test that they end alike (hours); "
        "clean: judge fresh draws of a right network: false alarms, and how much of each budget is used (an hour)",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="PATH",
        help="folder of the trainings (default study), or log of the clean runs (default study/clean.jsonl); a study "
        "that was interrupted resumes there",
    )
    parser.add_argument("--evidence", type=Path, metavar="DIR", help="folder to write the numbers to, as evidence")
    training = parser.add_argument_group("study training")
    training.add_argument("--pairs", type=whole, help="trainings of each backend at each point (default 20)")
    training.add_argument(
        "--points",
        type=lambda text: text.split(","),
        metavar="NAME,NAME",
        help="train only at these: n64_g1, n64_g2, n128_g2",
    )
    training.add_argument(
        "--backend",
        choices=("torch", "keras"),
        help="train only this backend; what --points or --backend leave out can be trained in the same folder by "
        "another process at once, and without them all is judged",
    )
    clean = parser.add_argument_group("study clean")
    clean.add_argument("--runs", type=whole, help="draws, those of the log included (default 1000)")
    clean.add_argument("--device", choices=("cpu", "cuda"), help="where the network runs (default cpu)")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # noqa: T201 - a command shows its progress


def run(options: argparse.Namespace) -> int:
    """Run one study; return 0 if its goals are met, else 1.

    Raises:
        StudyError: an argument of the other study.
        PtychoError: the study cannot be run, or not gone on with.
    """
    from conformance.errors import StudyError

    for study, names in _TAKES.items():
        for name in set(names) - set(_TAKES[options.study]):
            if getattr(options, name) is not None:
                raise StudyError(f"--{name} belongs to `study {study}`; leave it out of `study {options.study}`.")
    return _training(options) if options.study == "training" else _clean(options)


def _training(options: argparse.Namespace) -> int:
    from conformance.errors import StudyError
    from conformance.session.study import BACKENDS, NEEDED_PAIRS, POINTS, as_evidence, run_study

    pairs, points = options.pairs or NEEDED_PAIRS, options.points or tuple(POINTS)
    for name in set(points) - set(POINTS):
        raise StudyError(f"There is no point {name!r}. Choose among {', '.join(POINTS)}.")
    backends = (options.backend,) if options.backend else BACKENDS
    outcomes = run_study(options.output or Path("study"), pairs, _say, points, backends)
    if options.points or options.backend:
        _say("trained what was asked for; without --points and --backend all is judged")
        return 0
    return _told(as_evidence(outcomes, f"python -m conformance study training --pairs {pairs}"), options.evidence)


def _clean(options: argparse.Namespace) -> int:
    from conformance.session.clean import clean_study

    device = options.device or "cpu"
    study = clean_study(options.runs or 1000, options.output or Path("study/clean.jsonl"), device=device, progress=_say)
    for line in study.describe():
        print(line)  # noqa: T201 - the command's answer
    command = f"python -m conformance study clean --runs {study.runs} --device {device}"
    return _told(study.evidence(command, device), options.evidence)


def _told(evidence: Evidence, folder: Path | None) -> int:
    """Print the numbers beside their goals, and keep them where it was asked for; return 1 where one is missed."""
    from conformance.provenance.evidence import write_evidence

    for name, number in evidence.numbers.items():
        goal = evidence.goals.get(name)
        verdict = "" if goal is None else f"  {'missed' if name in evidence.missed else 'met'}: {goal}"
        print(f"{name:45} {number:12.6g}{verdict}")  # noqa: T201 - the command's answer
    for name, values in evidence.values.items():
        print(f"{name}: {', '.join(f'{value:.6g}' for value in values)}")  # noqa: T201
    if folder is not None:
        print(f"wrote {write_evidence(folder, evidence)}")  # noqa: T201
    return 1 if evidence.missed else 0
