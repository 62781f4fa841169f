"""Many reports, oldest first: what each says, how much of a budget it used, and what its environment does not share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conformance.errors import DocumentError
from conformance.report.difference import environment_difference, in_words, share_of
from conformance.report.page import line_chart, render, share_text
from conformance.report.results import read_report

Report = Mapping[str, Any]


@dataclass(frozen=True)
class Entry:
    """One report of a history.

    Attributes:
        path: of its file.
        report: what it holds.
        shares: ``DEVICE DTYPE`` → largest share of a budget; infinite where something could not be compared.
        environment: what differs from the report before it, in one line; empty if nothing does.
    """

    path: Path
    report: Report
    shares: Mapping[str, float]
    environment: str

    def __str__(self) -> str:
        """Return one line for people."""
        state = "passed" if self.report["passed"] else "FAILED"
        shares = ", ".join(f"{name} {share_text(share)}" for name, share in self.shares.items())
        stages = dict.fromkeys(case["first_failing_stage"] for case in self.report["cases"])
        wrong = ", ".join(stage for stage in stages if stage)
        parts = (shares, f"first wrong: {wrong}" if wrong else "", self.environment)
        return "; ".join(filter(None, (f"{self.report['created_utc']}  {state}  {self.path}", *parts)))


def read_history(folder: Path) -> tuple[list[Entry], list[str]]:
    """Read every report below a folder; return them by time, and why other JSON files are none.

    Raises:
        DocumentError: there is no report.
    """
    reports, others = [], []
    for path in sorted(folder.rglob("*.json")):
        try:
            reports.append((path, read_report(path)))
        except DocumentError as err:
            others.append(str(err))
    if not reports:
        raise DocumentError(
            f"{folder}: found no report; expected parity.json files, in any folders below. A run writes one: "
            "pytest conformance --parity-report DIR"
        )
    reports.sort(key=lambda each: str(each[1]["created_utc"]))
    entries, before = [], reports[0][1]
    for path, report in reports:
        entries.append(Entry(path, report, _shares(report), in_words(environment_difference(before, report))))
        before = report
    return entries, others


def _shares(report: Report) -> dict[str, float]:
    found: dict[str, float] = {}
    for case in report["cases"]:
        name = f"{case['device']} {case['dtype']}"
        share = max(map(share_of, case["verdicts"]), default=0.0)
        found[name] = max(found.get(name, 0.0), share)
    return found


def history_page(entries: Sequence[Entry]) -> str:
    """Return the history as a page with one picture: the largest share of a budget of each device and dtype."""
    names = sorted({name for entry in entries for name in entry.shares})
    lines: dict[str, list[float | None]] = {name: [entry.shares.get(name) for entry in entries] for name in names}
    lines |= {"budget": [1.0] * len(entries)} if names else {}
    picture = line_chart([entry.report["created_utc"][:10] for entry in entries], lines, "share of a budget")
    title = f"History of {len(entries)} report{'s' if len(entries) > 1 else ''}"
    sections = {"shares": "Share of the budget", "reports": "Reports"}
    return render("history", title=title, sections=sections, picture=picture, entries=entries, names=names)
