"""What people and machines read of one run: the table in the terminal, and the same as JSON and as a page."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from conformance.judge.measure import (
    BACKWARD_FORCED,
    BACKWARD_FREE,
    FORWARD_FORCED,
    FORWARD_FREE,
    GRADIENT_FORCED,
    GRADIENT_FREE,
    LOSS,
    NETWORK_CLAUSES,
    TRAIN,
    Key,
    worst,
)
from conformance.judge.rules import Errors, Verdict
from conformance.provenance.digest import numerical_digest, spec_digest
from conformance.provenance.evidence import now_utc
from conformance.provenance.json_files import finite, read_json, sealed, write_json, write_text
from conformance.provenance.machine import device_name, driver, environment, versions
from conformance.report.page import share_text
from conformance.report.run_page import report_page
from conformance.session.bench import MISSING, PARTS, Bench, CaseReport
from conformance.subjects.candidate import Origin
from conformance.subjects.package import ReferencePackage

SCHEMA = "report.json"
SCHEMA_VERSION = 2
LARGEST_BYTES = 64 << 20
"""A report of tier ``study`` has a few megabytes."""

_LONGEST_TEXT = 10_000
_LONGEST_LINE = 500
_NAMED = 5

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
        what += f" ({report.error.splitlines()[0][:_LONGEST_LINE]})"
    if report.first_failing is not None:
        cause = f"; cause: {report.cause}" if report.cause else ""
        how = "" if FORWARD_FORCED in report.not_given else "teacher-forced "
        return f"FAILED  {what}: first failing {how}stage: {report.first_failing}{cause}"
    if report.error:
        free = f": running free the first wrong stage is {report.first_free}" if report.first_free else ""
        return f"FAILED  {what}{free}"
    lacks = _lacks(report)
    if lacks and report.first_free is None:
        return f"FAILED  {what}: every stage that was given holds; {lacks}"
    if report.failed:
        stage = report.first_free
        told = [each for key, each in report.verdicts.items() if report.stage_of[key] == stage and not each.passed]
        where = "" if stage is None else f"; running free the first is {stage}"
        also = f"; {lacks}" if lacks else ""
        return f"FAILED  {what}: every stage alone holds{where}; {(told or report.failed)[0].explain()}{also}"
    most = worst(report.verdicts)
    assert most is not None
    use = f"most of a budget used: {most.share:.0%}, {most.clause} {most.stage}"
    lacks = f"; not given: {', '.join(report.not_given)}" if report.not_given else ""
    return f"passed  {what}: {len(report.verdicts)} verdicts; {use}; run-to-run spread {report.run_to_run:.1e}{lacks}"


def _lacks(report: CaseReport) -> str:
    """Say what a candidate offers in part: ``FreeRun.cotangents lacks object``; empty if nothing is missing."""
    lacking: dict[str, list[str]] = {}
    for verdict in report.failed:
        if verdict.reason == MISSING and verdict.clause in NETWORK_CLAUSES:
            part = PARTS.get(verdict.clause, "FreeRun.stages")
            if verdict.clause == LOSS and verdict.stage.startswith("forced"):
                part = "ForcedRun.losses"
            # In float32 the losses are one quantity without names.
            name = verdict.stage.partition(".")[2] or "a loss" if verdict.clause == LOSS else verdict.stage
            lacking.setdefault(part, []).append(name)
    return "; ".join(
        f"{part} lacks {', '.join(names[:_NAMED])}" + (f" and {len(names) - _NAMED} more" if names[_NAMED:] else "")
        for part, names in lacking.items()
    )


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
    found = list(verdicts)
    if any(verdict.reason == MISSING for verdict in found):
        return MISSING
    return share_text(max(verdict.share for verdict in found)) if found else ""


def written_errors(errors: Errors | None) -> dict[str, float | None] | None:
    """Return errors as reports have them."""
    return None if errors is None else {"e": finite(errors.e), "m": finite(errors.m)}


def _verdicts(verdicts: Mapping[Key, Verdict], stage_of: Mapping[Key, str]) -> list[dict[str, Any]]:
    return [
        {
            "clause": verdict.clause,
            "stage": stage_of.get(key, verdict.stage),
            "quantity": verdict.stage,
            "reference": written_errors(verdict.reference),
            "candidate": written_errors(verdict.candidate),
            "budget": written_errors(verdict.budget),
            "share": finite(verdict.share),
            "passed": verdict.passed,
            "reason": verdict.reason,
        }
        for key, verdict in verdicts.items()
    ]


def _case(report: CaseReport) -> dict[str, Any]:
    return {
        "case": report.planned.name,
        "kind": report.planned.kind,
        "settings": dataclasses.asdict(report.planned.settings),
        "device": report.device,
        "dtype": report.dtype,
        "reference": report.reference,
        "passed": report.passed,
        "headline": headline(report),
        "error": report.error[:_LONGEST_TEXT],
        "first_failing_stage": report.first_failing,
        "cause": report.cause,
        "run_to_run": finite(report.run_to_run),
        "seconds": report.seconds,
        "places": [
            {
                "clause": clause,
                "quantity": quantity,
                "stage": report.stage_of[clause, quantity],
                "shape": list(place.shape),
                "index": list(place.index),
                "axes": list(place.axes),
                "deviation": finite(place.deviation),
                # A picture needs no more than 256 steps.
                "cells": np.rint(255 * np.clip(place.cells / (place.deviation or 1), 0, 1)).astype(int).tolist(),
            }
            for (clause, quantity), place in report.places.items()
        ],
        "verdicts": _verdicts(report.verdicts, report.stage_of),
    }


@dataclass(frozen=True)
class Result:
    """What became of one test of the suite.

    Attributes:
        test: file and test id, for example ``test_operations.py::test_operation[blur-cpu-float32]``.
        outcome: ``passed``, ``failed`` or ``skipped``.
        clauses: ids of the clauses that it judges.
        stage: stage id, ``loss`` or ``train``; empty where it speaks of no stage.
        case: name of the case; empty where it speaks of none.
        device: torch device; empty where none runs.
        dtype: of the candidate; empty where none runs.
        reason: why it failed or was skipped; empty otherwise.
        seconds: time it took.
    """

    test: str
    outcome: str
    clauses: tuple[str, ...]
    stage: str = ""
    case: str = ""
    device: str = ""
    dtype: str = ""
    reason: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """What became of the run as a whole, tests that the bench knows nothing of too.

    Attributes:
        exit_status: of pytest; 0 if nothing failed.
        results: of the tests, in the order in which they ran.
        deselected: number of tests that options left out.
        notes: measured numbers that belong to no single stage.
        tier: ``quick``, ``full`` or ``study``.
        devices: torch devices that were judged.
        command: the command line.
        digests: of the numerical sources and of the specification when the run began; None takes those of now.
        package: of the reference that was driven live; None for none.
        candidate: who was judged; None for this package's own network.
    """

    exit_status: int
    results: tuple[Result, ...]
    deselected: int = 0
    notes: tuple[str, ...] = ()
    tier: str = "quick"
    devices: tuple[str, ...] = ("cpu",)
    command: str = ""
    digests: tuple[str, str] | None = None
    package: ReferencePackage | None = None
    candidate: Origin | None = None

    def count(self, outcome: str) -> int:
        """Return how many tests had an outcome."""
        return sum(result.outcome == outcome for result in self.results)

    @property
    def passed(self) -> bool:
        """Whether something was tested, and nothing failed."""
        return self.exit_status == 0 and self.count("passed") > 0 and not self.count("failed")


def run_headline(bench: Bench, outcome: Outcome) -> str:
    """Say in one line what became of the run: of a failure, the stage that most of the failing cases name first."""
    counts = ", ".join(f"{outcome.count(state)} {state}" for state in OUTCOMES if outcome.count(state))
    if outcome.passed:
        return f"passed: {counts}"
    # What comes before the network spoils it too, and a wrong network spoils what comes after it.
    before = [each for each in bench.failed_checks if not each.check.is_after_network]
    if before:
        return f"{before[0].explain()} ({counts})"
    failing = [report for report in bench.reports.values() if not report.passed]
    forced = [report for report in failing if report.first_failing is not None]
    if forced:
        return f"{headline(_most_named(forced))} ({counts})"
    if bench.failed_checks:
        return f"{bench.failed_checks[0].explain()} ({counts})"
    if failing:
        return f"{headline(_most_named(failing))} ({counts})"
    failed = [result for result in outcome.results if result.outcome == "failed"]
    if failed:
        reason = failed[0].reason.partition("\n")[0][:_LONGEST_LINE]
        return f"FAILED  {', '.join(failed[0].clauses)}: {failed[0].test}{': ' if reason else ''}{reason} ({counts})"
    return f"FAILED  pytest ended with status {outcome.exit_status} ({counts or 'no test ran'})"


def _most_named(failing: Sequence[CaseReport]) -> CaseReport:
    """Return a case with the stage that most cases name first; where a cause was found, it is told with the stage."""
    named = [report.first_failing or report.first_free for report in failing]
    stage = Counter(named).most_common(1)[0][0]
    chosen = [report for report, each in zip(failing, named, strict=True) if each == stage]
    return max(chosen, key=lambda report: bool(report.cause))


OUTCOMES = ("failed", "passed", "skipped")


def as_json(bench: Bench, outcome: Outcome) -> dict[str, Any]:
    """Return everything that was found. An unbounded budget, or an infinite error, is null.

    A run in which nothing was tested has not passed.
    """
    numerical, specified = outcome.digests or (numerical_digest(), spec_digest())
    return {
        "schema": SCHEMA_VERSION,
        "created_utc": now_utc(),
        "command": outcome.command,
        "tier": outcome.tier,
        "devices": [
            {"device": device, "name": device_name(device), "driver": driver(device)} for device in outcome.devices
        ],
        "passed": outcome.passed,
        "headline": run_headline(bench, outcome),
        "numerical_digest": numerical,
        "spec_digest": specified,
        "versions": versions(),
        "environment": environment(),
        **({} if outcome.package is None else {"package": dataclasses.asdict(outcome.package)}),
        **({} if outcome.candidate is None else {"candidate": dataclasses.asdict(outcome.candidate)}),
        "tests": {
            "exit_status": outcome.exit_status,
            **{state: outcome.count(state) for state in OUTCOMES},
            "deselected": outcome.deselected,
            "notes": list(outcome.notes),
        },
        "results": [dataclasses.asdict(result) for result in outcome.results],
        "recordings": [{"case": name, "verdicts": _verdicts(verdicts, {})} for name, verdicts in bench.records.items()],
        "cases": [_case(report) for report in bench.reports.values()],
        "steps": [
            {"step": each.check.id, "passed": each.passed, "cause": each.cause_name, "text": each.explain()}
            for each in bench.checks.values()
        ],
    }


def read_report(path: Path) -> dict[str, Any]:
    """Read a report that ``pytest conformance --parity-report`` wrote.

    Raises:
        DocumentError: it cannot be read, is too large, does not follow ``specs/schema/report.schema.json``, or was
            changed after it was written.
    """
    return read_json(path, SCHEMA, largest_bytes=LARGEST_BYTES)


def write_report(
    directory: Path, bench: Bench, outcome: Outcome, previous: Mapping[str, Any] | None = None
) -> list[Path]:
    """Write ``parity.json``, ``parity.txt`` and ``parity.html``, each whole or not at all; return their paths.

    Args:
        directory: of the files.
        bench: what was judged.
        outcome: of the run.
        previous: an earlier report to show the difference to.
    """
    content = sealed(as_json(bench, outcome))
    tests = ", ".join(f"{outcome.count(state)} {state}" for state in ("passed", "failed", "skipped"))
    parts = [*("\n".join(table(report)) for report in bench.reports.values()), "\n".join([*outcome.notes, tests])]
    return [
        write_json(directory / "parity.json", content),
        write_text(directory / "parity.txt", "\n\n".join([content["headline"], *parts]) + "\n"),
        write_text(directory / "parity.html", report_page([content], previous)),
    ]
