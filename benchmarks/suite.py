"""What the suite itself costs: replay without TensorFlow, and the full tier; and does a replay give the same again?

    python benchmarks/suite.py --evidence conformance/evidence

The numbers are wall seconds of whole commands, so the machine has to be quiet. The replay runs once with one thread and
once with two; its verdicts, to the last bit, have to be the same.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import conformance
from conformance.provenance.digest import numerical_digest
from conformance.provenance.evidence import Goal, measured_here, write_evidence
from conformance.recordings.bundle import RECORDINGS

ROOT = Path(__file__).parents[1]
REPLAY_SECONDS, FULL_SECONDS, BUNDLE_MB = 60, 600, 5
"""What the replay and the full tier may take on two cores, and how large a bundle may be."""


def run_suite(folder: Path, arguments: Sequence[str], threads: int | None = None) -> tuple[float, dict[str, Any]]:
    """Return the wall seconds of ``pytest conformance`` and its report.

    Args:
        folder: for the report.
        arguments: of the suite.
        threads: of the linear algebra; None leaves them to it.
    """
    variables = dict(os.environ) | ({} if threads is None else {"OMP_NUM_THREADS": str(threads)})
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "conformance", *arguments]
    started = time.perf_counter()
    subprocess.run(
        [*command, "--parity-report", str(folder)], cwd=ROOT, env=variables, check=False, stdout=subprocess.DEVNULL
    )
    seconds = time.perf_counter() - started
    report: dict[str, Any] = json.loads((folder / "parity.json").read_text(encoding="utf-8"))
    if not report["passed"]:
        raise SystemExit(f"error: {report['headline']}; run `pytest conformance {' '.join(arguments)}`")
    if report["numerical_digest"] != numerical_digest():
        raise SystemExit(
            f"error: the suite ran on other sources than those of {Path(conformance.__path__[0])}; install the package "
            "anew from this checkout."
        )
    return seconds, report


def verdicts(report: dict[str, Any]) -> list[Any]:
    """Return every verdict of a report: a test's outcome, and each number that it stands on."""
    judged = [(each["case"], each["dtype"], each["verdicts"]) for each in report["cases"]]
    judged += [(each["case"], "", each["verdicts"]) for each in report["recordings"]]
    return [
        *((each["test"], each["outcome"]) for each in report["results"]),
        *((case, dtype, verdict) for case, dtype, found in judged for verdict in found),
    ]


def main() -> int:
    """Measure, print, and return 1 where a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--evidence", type=Path, metavar="DIR", help="folder to write the numbers to, as evidence")
    parser.add_argument("--reports", type=Path, metavar="DIR", help="keep the reports there; full/ is one for the gate")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = options.reports or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        replay = ("--parity-reference", "recorded")
        seconds, one = run_suite(folder / "one", replay, threads=1)
        again, two = run_suite(folder / "two", replay, threads=2)
        print(f"replay: {seconds:.0f} s with one thread, {again:.0f} s with two", flush=True)
        full, report = run_suite(folder / "full", ("--parity-tier", "full"))
        print(f"tier full: {full:.0f} s, {report['tests']['passed']} tests passed")
    first, second = verdicts(one), verdicts(two)
    evidence = measured_here(
        "replay",
        "python benchmarks/suite.py",
        {
            "replay_seconds": max(seconds, again),
            "replay_verdicts": len(first),
            "replay_verdicts_that_differ": sum(a != b for a, b in zip(first, second, strict=True)),
            "largest_bundle_mb": max(path.stat().st_size for path in RECORDINGS.glob("*.npz")) / 1e6,
            "tier_full_seconds": full,
            "tier_full_tests": report["tests"]["passed"],
        },
        goals={
            "replay_seconds": Goal(at_most=REPLAY_SECONDS),
            "replay_verdicts_that_differ": Goal(at_most=0),
            "largest_bundle_mb": Goal(at_most=BUNDLE_MB),
            "tier_full_seconds": Goal(at_most=FULL_SECONDS),
        },
        meanings={
            "replay_seconds": "pytest conformance --parity-reference recorded, without TensorFlow (s)",
            "replay_verdicts": "test outcomes and numbers of a replay",
            "replay_verdicts_that_differ": "of those, between one thread and two",
            "largest_bundle_mb": "largest embedded recording (MB)",
            "tier_full_seconds": "pytest conformance --parity-tier full (s)",
            "tier_full_tests": "tests of the full tier that passed",
        },
        notes=[f"On {os.cpu_count()} cores."],
    )
    for name, number in evidence.numbers.items():
        goal = evidence.goals.get(name)
        print(f"{name:30} {number:10.6g}{'' if goal is None else '  missed' if name in evidence.missed else '  met'}")
    if options.evidence is not None:
        print(f"wrote {write_evidence(options.evidence, evidence)}")
    return 1 if evidence.missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
