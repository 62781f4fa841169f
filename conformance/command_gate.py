"""``python -m conformance gate``: merge the reports of all devices and decide."""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from conformance.gate import Decision

GRANTED, REFUSED, CPU_ONLY = 0, 1, 3
"""Exit codes: granted; a failure, or a file that cannot be read; nothing failed, but there is no CUDA evidence."""

_URI = "MLFLOW_TRACKING_URI"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    parser.description = (
        "Merge the reports of all devices and decide by a policy: nothing failed, nothing required was skipped, no "
        "waiver expired, and everything holds for the sources that are here."
    )
    parser.epilog = (
        "exit codes: 0 granted; 1 failed, or a file cannot be read; 2 the command line is wrong; 3 CPU only: nothing\n"
        f"failed, but there is no CUDA evidence\n\n{parser.epilog}"
    )
    parser.add_argument(
        "reports", nargs="+", type=Path, metavar="REPORT", help="parity.json of a run with --parity-report"
    )
    parser.add_argument(
        "--policy",
        default="release",
        metavar="FILE",
        help="policy, or release (default) or merge for those that come with the package",
    )
    parser.add_argument(
        "--evidence", type=Path, metavar="DIR", help="folder of evidence (default: that of the package)"
    )
    parser.add_argument(
        "--keep",
        type=Path,
        metavar="DIR",
        help="keep as evidence what the reports show on a GPU, for decisions where none is at hand",
    )
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="write the signed-off decision as JSON")
    parser.add_argument(
        "--page", type=Path, metavar="FILE", help="write one HTML page of all reports with the decision"
    )
    parser.add_argument(
        "--previous", type=Path, metavar="REPORT", help="show the difference to this report in the page"
    )
    parser.add_argument("--by", metavar="NAME", help="who decides (default: the user)")


def run(options: argparse.Namespace) -> int:
    """Decide, print the decision, write what was asked for, and return the exit code."""
    for path in options.reports:
        # A path that cannot be opened is named before PyTorch loads.
        path.open("rb").close()
    from conformance.evidence import EVIDENCE, committed_evidence, write_evidence
    from conformance.gate import CPU_ONLY as ONLY_CPU
    from conformance.gate import EVIDENCE_FOLDER, decide, read_input, shown
    from conformance.policy import read_policy
    from conformance.report import read_report
    from conformance.sign_off import sign_off, write_sign_off

    policy = read_policy(options.policy)
    inputs = [read_input(path) for path in options.reports]
    previous = read_report(options.previous) if options.previous else None
    evidence = committed_evidence(options.evidence or EVIDENCE)
    decision = decide(inputs, policy, evidence, evidence_folder=options.evidence or EVIDENCE_FOLDER)
    signed = sign_off(decision, inputs, policy, evidence, decided_by=options.by)
    lines = [decision.headline, *(f"  {each}" for each in (*decision.violations, *decision.pending))]
    if decision.remedies:
        lines += ["To mend it:", *(f"  {' '.join(filter(None, each))}" for each in decision.remedies)]
    print(*lines, sep="\n")  # noqa: T201 - what the command is for
    if options.keep:
        for each in shown(inputs, policy):
            print(f"wrote {write_evidence(options.keep, each)}")  # noqa: T201
    if options.output:
        print(f"wrote {write_sign_off(options.output, signed)}")  # noqa: T201
    if options.page:
        print(f"wrote {_write_page(options.page, [one.report for one in inputs], previous, signed, decision)}")  # noqa: T201
    if os.environ.get(_URI):
        _publish(signed, options.page)
    if decision.is_granted:
        return GRANTED
    return CPU_ONLY if decision.verdict == ONLY_CPU else REFUSED


def _write_page(
    path: Path,
    reports: list[Mapping[str, Any]],
    previous: Mapping[str, Any] | None,
    signed: Mapping[str, Any],
    decision: Decision,
) -> Path:
    from conformance.json_files import write_text
    from conformance.report_page import report_page

    state = "passed" if decision.is_granted else "failed" if decision.violations else "skipped"
    opening = {"state": state, "verdict": _verdict(decision, signed["policy"]), "remedies": decision.remedies}
    page = report_page(reports, previous, template="gate", title="Release gate", signed=signed, **opening)
    return write_text(path, page)


def _verdict(decision: Decision, policy: Mapping[str, Any]) -> str:
    if decision.is_granted:
        return f"Gate: {decision.verdict} granted. All that {policy['file']} requires was shown."
    number = len(decision.violations) or len(decision.pending)
    things = "1 thing stands" if number == 1 else f"{number} things stand"
    if decision.violations:
        return f"Gate: {policy['grants']} refused. {things} against it."
    return f"Gate: {policy['grants']} not granted yet. Nothing failed, but the checks on a GPU are missing."


def _publish(signed: Mapping[str, Any], shown: Path | None) -> None:
    """Make an MLflow run of the decision; a store that is away is a warning."""
    from conformance.sign_off import write_sign_off
    from ptycho_torch.tracking import record_run

    with tempfile.TemporaryDirectory() as folder:
        files = [write_sign_off(Path(folder) / "sign-off.json", signed), *([shown] if shown else [])]
        run_id = record_run(
            "conformance",
            f"gate {signed['decided_utc']}",
            parameters={
                "policy": signed["policy"]["file"],
                "numerical_digest": signed["numerical_digest"],
                "decided_by": signed["decided_by"],
            },
            metrics={
                "granted": float(signed["granted"]),
                "violations": float(len(signed["violations"])),
                "pending": float(len(signed["pending"])),
            },
            tags={"verdict": signed["verdict"], "headline": signed["headline"][:_LONGEST_TAG]},
            files=files,
        )
    if run_id:
        print(f"MLflow run {run_id}")  # noqa: T201


_LONGEST_TAG = 500
