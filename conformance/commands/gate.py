"""``python -m conformance gate``: merge the reports of all devices and decide."""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from conformance.release.gate import Decision

GRANTED, REFUSED, CPU_ONLY = 0, 1, 3
"""Exit codes: granted; a failure, or a file that cannot be read; nothing failed, but there is no CUDA evidence."""

_URI = "MLFLOW_TRACKING_URI"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    parser.description = (
        "Merge the reports of all devices and decide by a policy: nothing failed, nothing required was skipped, and "
        "everything is valid for the sources that are here."
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
    parser.add_argument(
        "--signed", type=Path, metavar="FILE", help="fail unless this sign-off is what is decided now from these files"
    )


def run(options: argparse.Namespace) -> int:
    """Decide, print the decision, write what was asked for, and return the exit code."""
    for path in options.reports:
        # A path that cannot be opened is named before PyTorch loads.
        path.open("rb").close()
    from conformance.provenance.evidence import EVIDENCE, committed_evidence, write_evidence
    from conformance.provenance.json_files import write_json, write_text
    from conformance.release import gate
    from conformance.release.policy import read_policy
    from conformance.release.sign_off import disagreements, read_sign_off, sign_off
    from conformance.report.results import read_report
    from conformance.report.run_page import report_page

    policy = read_policy(options.policy)
    inputs = [gate.read_input(path) for path in options.reports]
    previous = read_report(options.previous) if options.previous else None
    before = read_sign_off(options.signed) if options.signed else None
    evidence = committed_evidence(options.evidence or EVIDENCE)
    decision = gate.decide(inputs, policy, evidence, evidence_folder=options.evidence or gate.EVIDENCE_FOLDER)
    signed = sign_off(decision, inputs, policy, evidence)
    print(*_answer(decision, details=options.verbose), sep="\n")  # noqa: T201 - what the command is for
    written = []
    if options.keep:
        written += [write_evidence(options.keep, each) for each in gate.shown(inputs, policy)]
    if options.output:
        written.append(write_json(options.output, signed))
    if options.page:
        reports = [one.report for one in inputs]
        page = report_page(reports, previous, template="gate", title="Release gate", decision=decision, signed=signed)
        written.append(write_text(options.page, page))
    for path in written:
        print(f"wrote {path}")  # noqa: T201
    if os.environ.get(_URI):
        _publish(signed, options.page)
    if before and (changed := [f"{options.signed}: {each}" for each in disagreements(before, signed)]):
        print(*changed, sep="\n")  # noqa: T201
        return REFUSED
    if decision.is_granted:
        return GRANTED
    return CPU_ONLY if decision.verdict == gate.CPU_ONLY else REFUSED


def _answer(decision: Decision, *, details: bool) -> Iterator[str]:
    """Yield the verdict, the command that mends most of what stands against it, and with ``details`` all of it."""
    yield decision.headline
    if not decision.remedies:
        return
    first, *others = sorted(decision.remedies, key=lambda each: len(decision.remedies[each]), reverse=True)
    objections = [*decision.violations, *decision.pending]
    yield f"To mend {len(decision.remedies[first])} of {len(objections)} objections: {_typed(first)}"
    if details:
        yield from (f"To mend {len(decision.remedies[each])} more: {_typed(each)}" for each in others)
        yield from (f"  {each}" for each in objections)
    else:
        rest = f"; {len(others)} more commands mend the others" if others else ""
        yield f"-v lists every objection{rest}"


def _typed(remedy: tuple[str, str]) -> str:
    return " ".join(filter(None, remedy))


def _publish(signed: Mapping[str, Any], page: Path | None) -> None:
    """Make an MLflow run of the decision; a store that is away is a warning."""
    from conformance.provenance.json_files import write_json
    from ptycho_torch.training.tracking import record_run

    with tempfile.TemporaryDirectory() as folder:
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
            files=[write_json(Path(folder) / "sign-off.json", signed), *([page] if page else [])],
        )
    if run_id:
        print(f"MLflow run {run_id}")  # noqa: T201


_LONGEST_TAG = 500
