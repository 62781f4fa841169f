"""What people and machines read: the table in the terminal, and the same as JSON."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conformance.bench import Bench, CaseReport
from conformance.json_files import as_text, write_text
from conformance.judge import Errors, Verdict
from conformance.machine import versions
from conformance.parity import (
    BACKWARD_FORCED,
    BACKWARD_FREE,
    FORWARD_FORCED,
    FORWARD_FREE,
    GRADIENT_FORCED,
    GRADIENT_FREE,
    LOSS,
    TRAIN,
    Key,
    worst,
)

SCHEMA_VERSION = 1
_COLUMNS = (
    ("forward", FORWARD_FREE),
    ("forced", FORWARD_FORCED),
    ("backward", BACKWARD_FREE),
    ("forced", BACKWARD_FORCED),
    ("gradient", GRADIENT_FREE),
    ("forced", GRADIENT_FORCED),
)


def headline(report: CaseReport) -> str:
    """Say in one line what became of a case."""
    what = f"{report.planned.name} on {report.device} in {report.dtype}"
    if report.error:
        what += f" ({report.error.splitlines()[0]})"
    if report.first_failing is not None:
        return f"FAILED  {what}: first failing teacher-forced stage: {report.first_failing}"
    failed = [verdict for verdict in report.verdicts.values() if not verdict.passed]
    if failed:
        return f"FAILED  {what}: every stage alone holds; {failed[0].explain()}"
    most = worst(report.verdicts)
    assert most is not None
    use = f"most of a budget used: {most.share:.0%}, {most.clause} {most.stage}"
    return f"passed  {what}: {len(report.verdicts)} verdicts; {use}"


def table(report: CaseReport) -> Iterator[str]:
    """Yield the lines of one case's table: a row a stage, the share of each budget used in percent."""
    yield headline(report)
    yield f"        reference: {report.reference}; run-to-run spread {report.run_to_run:.1e}; {report.seconds:.1f} s"
    names = "".join(f"{name:>10}" for name, _ in _COLUMNS)
    yield f"  {'stage':<30}{'e reference':>12}{'e candidate':>12}{names}   (share of budget)"
    for stage in dict.fromkeys(report.stage_of.values()):
        if stage in ("loss", "train", "recording"):
            continue
        (forward,) = report.of(FORWARD_FREE, stage)
        reference = f"{forward.reference.e:.1e}" if forward.reference else "-"
        shares = "".join(f"{_share(report.of(clause, stage)):>10}" for _, clause in _COLUMNS)
        yield f"  {stage:<30}{reference:>12}{forward.candidate.e:>12.1e}{shares}"
    for stage, clause in (("loss", LOSS), ("train", TRAIN)):
        verdicts = report.of(clause, stage)
        if verdicts:
            most = max(verdicts, key=lambda verdict: verdict.share)
            reference = f"{most.reference.e:.1e}" if most.reference else "-"
            name = f"{stage} ({most.stage})"
            yield f"  {name:<30}{reference:>12}{most.candidate.e:>12.1e}{_share(verdicts):>10}"


def _share(verdicts: Iterable[Verdict]) -> str:
    shares = [math.inf if verdict.reason else verdict.share for verdict in verdicts]
    if not shares:
        return ""
    most = max(shares)
    if math.isinf(most):
        return "wrong"
    return f"{most:.0%}" if most < 100 else f"{most:.0e}×"


def _errors(errors: Errors | None) -> dict[str, float | None] | None:
    if errors is None:
        return None
    return {name: value if math.isfinite(value) else None for name, value in (("e", errors.e), ("m", errors.m))}


def _verdicts(verdicts: Mapping[Key, Verdict], stage_of: Mapping[Key, str]) -> list[dict[str, Any]]:
    return [
        {
            "clause": verdict.clause,
            "stage": stage_of.get(key, verdict.stage),
            "quantity": verdict.stage,
            "reference": _errors(verdict.reference),
            "candidate": _errors(verdict.candidate),
            "budget": _errors(verdict.budget),
            "share": verdict.share if math.isfinite(verdict.share) else None,
            "passed": verdict.passed,
            "reason": verdict.reason,
        }
        for key, verdict in verdicts.items()
    ]


@dataclass(frozen=True)
class Outcome:
    """What became of all tests of the run, those that the bench knows nothing of too.

    Attributes:
        exit_status: of pytest; 0 if nothing failed.
        passed: number of tests.
        skipped: number of tests.
        failed: ids of tests.
        notes: measured numbers that belong to no single stage.
    """

    exit_status: int
    passed: int
    skipped: int
    failed: tuple[str, ...]
    notes: tuple[str, ...]


def as_json(bench: Bench, outcome: Outcome) -> dict[str, Any]:
    """Return everything that was found. An unbounded budget, or an infinite error, is null.

    A run in which nothing was tested has not passed.
    """
    return {
        "schema": SCHEMA_VERSION,
        "passed": outcome.exit_status == 0 and outcome.passed > 0,
        "versions": versions(),
        "tests": dataclasses.asdict(outcome),
        "recordings": [{"case": name, "verdicts": _verdicts(verdicts, {})} for name, verdicts in bench.records.items()],
        "cases": [
            {
                "case": report.planned.name,
                "kind": report.planned.kind,
                "device": report.device,
                "dtype": report.dtype,
                "reference": report.reference,
                "passed": report.passed,
                "headline": headline(report),
                "error": report.error,
                "first_failing_stage": report.first_failing,
                "run_to_run": report.run_to_run,
                "seconds": report.seconds,
                "verdicts": _verdicts(report.verdicts, report.stage_of),
            }
            for report in bench.reports.values()
        ],
    }


def write_report(directory: Path, bench: Bench, outcome: Outcome) -> tuple[Path, Path]:
    """Write ``parity.json`` and ``parity.txt``, each whole or not at all; return their paths."""
    directory.mkdir(parents=True, exist_ok=True)
    tests = f"{outcome.passed} passed, {len(outcome.failed)} failed, {outcome.skipped} skipped"
    parts = [*("\n".join(table(report)) for report in bench.reports.values()), "\n".join([*outcome.notes, tests])]
    text = "\n\n".join(parts) + "\n"
    return (
        write_text(directory / "parity.json", as_text(as_json(bench, outcome))),
        write_text(directory / "parity.txt", text),
    )
