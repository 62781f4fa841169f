"""What has changed from one report to the next."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from conformance.suite import TIERS

CHANGED_BY = 1.25
"""A share of a budget that grew or shrank by more than this factor is told."""

WORTH_TELLING = 0.05
"""Smaller shares lie so far below their budget that a change says nothing."""

Report = Mapping[str, Any]
Cell = tuple[str, str, str, str]
"""(stage, judgement clause, device, dtype)."""


@dataclass(frozen=True)
class Change:
    """A cell whose largest share of a budget has changed; infinite where nothing could be compared."""

    cell: Cell
    before: float
    now: float


@dataclass(frozen=True)
class Difference:
    """What is different in a report from an earlier one.

    Attributes:
        environment: what a verdict may depend on → (before, now): versions, devices, threads, CPU features, flags, and
            the candidate.
        broken: tests that fail now and did not before.
        repaired: tests that failed before and do not now.
        gone: tests that are no longer there, of a tier that the later run has too.
        new: tests that were not there.
        shares: changes of the largest share, those that grew most first.
    """

    environment: Mapping[str, tuple[str | None, str | None]]
    broken: tuple[str, ...]
    repaired: tuple[str, ...]
    gone: tuple[str, ...]
    new: tuple[str, ...]
    shares: tuple[Change, ...]


def difference(previous: Report, report: Report) -> Difference:
    """Compare a report with an earlier one; tests are the same where their ids are."""
    before, now = _outcomes(previous), _outcomes(report)
    both = [test for test in now if test in before]
    wider = TIERS.index(previous["tier"]) > TIERS.index(report["tier"])
    return Difference(
        environment=environment_difference(previous, report),
        broken=tuple(test for test in both if now[test] == "failed" != before[test]),
        repaired=tuple(test for test in both if before[test] == "failed" != now[test]),
        gone=() if wider else tuple(test for test in before if test not in now),
        new=tuple(test for test in now if test not in before),
        shares=tuple(sorted(_changes(previous, report), key=_growth, reverse=True)),
    )


def environment_difference(previous: Report, report: Report) -> dict[str, tuple[str | None, str | None]]:
    """Return what two reports were made with that is not the same, as name → (before, now)."""
    before, now = _environment(previous), _environment(report)
    # Reports of older releases say nothing of threads, features and flags.
    both = "environment" in previous and "environment" in report
    names = sorted({*before, *now} if both else {*before, *now}.difference(_told(previous), _told(report)))
    return {name: (before.get(name), now.get(name)) for name in names if before.get(name) != now.get(name)}


def _told(report: Report) -> Mapping[str, str]:
    told: Mapping[str, str] = report.get("environment", {})
    return told


def _environment(report: Report) -> dict[str, str | None]:
    devices = {each["device"]: " ".join(filter(None, (each["name"], each["driver"]))) for each in report["devices"]}
    judged = report.get("candidate", {"name": None, "sha256": ""})
    candidate = None if judged["name"] is None else f"{judged['name']} {judged['sha256'][:_SHOWN_DIGITS]}"
    return {**report["versions"], **devices, **_told(report), "candidate": candidate}


def in_words(found: Mapping[str, tuple[str | None, str | None]]) -> str:
    """Return a difference of environments in one line.

    >>> in_words({"threads": ("2", "8"), "torch": ("2.6.0", None)})
    'threads 2 → 8; torch 2.6.0 → none'
    """
    return "; ".join(f"{name} {before or 'none'} → {now or 'none'}" for name, (before, now) in found.items())


_SHOWN_DIGITS = 12


def told(previous: Report, report: Report) -> str:
    """Say in one line which verdicts differ, and then what the environments do not share; empty where none differs."""
    found = difference(previous, report)
    parts = [
        f"{len(tests)} {what}, {tests[0]} first"
        for what, tests in (("tests fail that did not", found.broken), ("failed and do not now", found.repaired))
        if tests
    ]
    if not parts:
        return ""
    environment = in_words(found.environment) or "no difference is known"
    return f"since {previous['created_utc']}: {'; '.join(parts)}. Environment: {environment}"


def _outcomes(report: Report) -> dict[str, str]:
    return {result["test"]: result["outcome"] for result in report["results"]}


def share_of(verdict: Mapping[str, Any]) -> float:
    """Return the share of a verdict in a report; infinite where nothing could be compared."""
    share: float | None = verdict["share"]
    return math.inf if share is None or verdict["reason"] else float(share)


def _changes(previous: Report, report: Report) -> Iterator[Change]:
    # Other draws have other shares, so only cases that both have are compared.
    both = {case_key(case) for case in previous["cases"]} & {case_key(case) for case in report["cases"]}
    before, now = _largest_shares(previous, both), _largest_shares(report, both)
    for cell in now.keys() & before.keys():
        change = Change(cell, before[cell], now[cell])
        if max(change.before, change.now) >= WORTH_TELLING and abs(_growth(change)) > math.log(CHANGED_BY):
            yield change


def _largest_shares(report: Report, cases: Collection[tuple[str, str, str]]) -> dict[Cell, float]:
    found: dict[Cell, float] = {}
    for case in report["cases"]:
        for verdict in case["verdicts"] if case_key(case) in cases else ():
            cell = (verdict["stage"], verdict["clause"], case["device"], case["dtype"])
            found[cell] = max(found.get(cell, 0.0), share_of(verdict))
    return found


def case_key(case: Mapping[str, Any]) -> tuple[str, str, str]:
    """Return what a report knows a case by."""
    return (case["case"], case["device"], case["dtype"])


def _growth(change: Change) -> float:
    """Return the logarithm of the factor by which the share grew; both infinite is no change."""
    smallest = 1e-9
    if change.before == change.now:
        return 0.0
    return math.log(max(change.now, smallest)) - math.log(max(change.before, smallest))
