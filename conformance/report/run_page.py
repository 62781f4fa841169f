"""A run, or the runs of several devices, as one HTML page: the values of ``templates/report.html.j2``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from conformance.judge.measure import FORWARD_FREE, NETWORK_CLAUSES
from conformance.provenance.clauses import Entry, catalogue
from conformance.report.difference import difference, share_of
from conformance.report.page import colour_map, line_chart, render
from conformance.report.reproduction import failing_stages, reproduce_command
from conformance.session.bench import GIVES_NO

Report = Mapping[str, Any]
Values = dict[str, Any]
Column = tuple[str, str]
"""(device, dtype); both are empty for tests that run on none."""

_PICTURES = 9
_LISTED = 40

_EMPTY = "got empty parameter set"
"""How pytest excuses a test that has no case in a run: there was nothing to judge."""

_SECTIONS = {
    "failures": "What failed",
    "clauses": "Clauses by device",
    "margins": "Margins by stage",
    "growth": "Error along the network",
    "places": "Where the largest deviations are",
    "difference": "Difference to the previous report",
    "skipped": "What was not checked",
    "runs": "Runs",
    "terms": "Terms",
}


def report_page(
    reports: Sequence[Report],
    previous: Report | None = None,
    *,
    template: str = "report",
    title: str = "",
    **more: Any,
) -> str:
    """Return the page.

    Args:
        reports: one for each run; their columns stand side by side.
        previous: an earlier report, to show the difference of the first one to.
        template: ``report``, or one that extends it.
        title: of the page; empty asks whether the candidate is the TensorFlow network.
        more: what the template needs beside the reports.
    """
    cases = [case for report in reports for case in report["cases"]]
    results = [each for report in reports for each in report["results"] if not each["reason"].startswith(_EMPTY)]
    parts: Values = {
        "failures": _failures(reports, results),
        "clauses": list(_matrix(results)),
        "margins": list(_margins(cases, results)),
        "growth": list(_growth(cases)),
        "places": list(_places(cases)),
        "difference": None if previous is None else _difference(previous, reports[0]),
        "skipped": _skipped(reports, results),
        "runs": [_run(report) for report in reports],
    }
    title = title or f"Is {candidate_name(reports[0])} the TensorFlow network?"
    sections = {name: shown for name, shown in _SECTIONS.items() if parts.get(name, True)}
    return render(template, title=title, sections=sections, listed=_LISTED, **parts, **more)


def candidate_name(report: Report) -> str:
    """Say who was judged."""
    return str(report["candidate"]["name"]) if "candidate" in report else "the PyTorch network"


def _begins(who: str) -> str:
    """Return a name as the beginning of a sentence; names of modules keep their letters."""
    return who if ":" in who else who[0].upper() + who[1:]


def sentence(report: Report) -> str:
    """Say in one sentence, for people who do not know the suite, what a run has shown."""
    tests = report["tests"]
    judged = tests["passed"] + tests["failed"]
    if not judged:
        return f"Nothing was shown: the run ended before any check (pytest ended with status {tests['exit_status']})."
    checks = f"{judged:,} check{'s' if judged > 1 else ''}"
    if report["passed"]:
        closest = _largest_share(report)
        if closest is None:
            return f"{checks} passed; the network itself was not among them."
        # A candidate of others may leave out what it does not offer.
        partial = tests["deselected"] or ("candidate" in report and tests["skipped"])
        who = f"As far as it was checked, {candidate_name(report)}" if partial else _begins(candidate_name(report))
        call = f"{max(closest[0], 0.01):.0%}".replace("%", " %")
        reasons = (each["reason"] for each in report["results"] if each["outcome"] == "skipped")
        parts = ", ".join(dict.fromkeys(each.removeprefix(GIVES_NO) for each in reasons if each.startswith(GIVES_NO)))
        return (
            f"{who} is the TensorFlow network: {checks}, closest call "
            f"{'less than ' if closest[0] < 0.01 else ''}{call} of its budget."
            f"{f' Not offered, and so not judged: {parts}.' if parts else ''}"
        )
    who = _begins(candidate_name(report))
    counted = f"{tests['failed']:,} of {checks} failed"
    step = next((each for each in report["steps"] if report["headline"].startswith(each["text"])), None)
    if step is not None and not step["passed"]:
        return f"{counted}; the first wrong step is {step['step']}, which is not part of the network."
    wrong = [case for case in report["cases"] if not case["passed"]]
    first = [case for case in wrong if case["first_failing_stage"]]
    if first:
        cause = f", probably because of: {first[0]['cause']}" if first[0]["cause"] else ""
        stage = first[0]["first_failing_stage"]
        return f"{who} is not the TensorFlow network: {counted}; the first wrong stage is {stage}{cause}."
    raised = next((case["error"].splitlines()[0] for case in wrong if case["error"]), "")
    if raised:
        return f"{who} was not shown to be the TensorFlow network: {counted}; it could not be judged: {raised}."
    if wrong:
        return f"{who} was not shown to be the TensorFlow network: {counted}, but no stage by itself."
    if tests["failed"]:
        agrees = "the network itself agrees" if report["cases"] else "the network itself was not checked"
        clauses = next(each["clauses"] for each in report["results"] if each["outcome"] == "failed")
        return f"{counted}, the first of clause {', '.join(clauses)}; {agrees}."
    return f"{checks} passed, but the run did not end well (pytest ended with status {tests['exit_status']})."


def _largest_share(report: Report) -> tuple[float, Values, Values] | None:
    """Return the largest share of a budget, with its verdict and case; None without cases."""
    found = ((share_of(each), each, case) for case in report["cases"] for each in case["verdicts"])
    return max(found, key=lambda each: each[0], default=None)


def _run(report: Report) -> Values:
    closest = _largest_share(report) if report["passed"] else None
    call = ""
    if closest is not None:
        _, verdict, case = closest
        where = f"{case['case']} on {case['device']} in {case['dtype']}"
        call = f"{verdict['quantity']}, clause {verdict['clause']}, case {where}"
    return {
        "report": report,
        "sentence": sentence(report),
        "state": "passed" if report["passed"] else "failed",
        "closest": call,
        "devices": ", ".join(each["device"] for each in report["devices"]),
        "machines": "; ".join(
            " ".join(part for part in (each["device"], f"({each['name']})", each["driver"]) if part)
            for each in report["devices"]
        ),
        "versions": ", ".join(f"{name} {version}" for name, version in report["versions"].items() if version),
        "cases": [_case(case) for case in report["cases"]],
    }


def _case(case: Values) -> Values:
    shares: dict[str, dict[str, float]] = {}
    for verdict in case["verdicts"]:
        row = shares.setdefault(verdict["stage"], {})
        row[verdict["clause"]] = max(row.get(verdict["clause"], 0.0), share_of(verdict))
    found = {clause for row in shares.values() for clause in row}
    clauses = [each for each in NETWORK_CLAUSES if each in found] + sorted(found.difference(NETWORK_CLAUSES))
    return {"case": case, "shares": shares, "clauses": clauses}


def _failures(reports: Sequence[Report], results: Sequence[Values]) -> Values | None:
    failed = [(report, case) for report in reports for case in report["cases"] if not case["passed"]]
    # A program of this package says nothing of another candidate.
    ours = [case for report, case in failed if "candidate" not in report]
    shown = [(case["case"], stage) for case in ours for stage in failing_stages(case)[:1]]
    found = {
        "cases": [case for _, case in failed],
        "errors": list(dict.fromkeys(case["error"] for _, case in failed if case["error"])),
        "commands": [reproduce_command("parity.json", *each) for each in dict.fromkeys(shown)],
        "tests": [result for result in results if result["outcome"] == "failed"],
    }
    return found if any(found.values()) else None


def _pattern(clause: str) -> str:
    """Return a regular expression of the clauses that one of the catalogue stands for, ``encoder.{i}.conv1``."""
    return r"\w+".join(re.escape(part) for part in re.split(r"\{\w+\}", clause))


def _skipped(reports: Sequence[Report], results: Sequence[Values]) -> Values | None:
    reasons: dict[str, list[str]] = {}
    for result in results:
        if result["outcome"] == "skipped":
            reasons.setdefault(result["reason"] or "no reason was given", []).append(result["test"])
    deselected = sum(report["tests"]["deselected"] for report in reports)
    of_others = all("candidate" in report for report in reports)
    if not reasons and not deselected:
        return None
    # A file that options made needless is not even read, so none of its tests is counted as left out.
    ran = {result["test"].partition("::")[0] for result in results}
    judged = {clause for result in results if result["outcome"] != "skipped" for clause in result["clauses"]}
    known = catalogue()
    # Of another candidate only its network is judged.
    clauses = [each for each in known if not of_others or each in NETWORK_CLAUSES or _group(each, known) == _STAGES]
    return {
        "reasons": reasons,
        "deselected": deselected,
        "of_others": of_others,
        "files": sorted(path.name for path in Path(__file__).parents[1].glob("test_*.py") if path.name not in ran),
        "clauses": [
            each
            for each in clauses
            if each not in judged and not any(map(re.compile(_pattern(each)).fullmatch, judged))
        ],
        "of_clauses": len(clauses),
    }


def _difference(previous: Report, report: Report) -> Values:
    found = difference(previous, report)
    tests = {
        "fail now and did not before": found.broken,
        "failed before and do not now": found.repaired,
        "are no longer there": found.gone,
        "are new": found.new,
    }
    return {"previous": previous, "tests": tests, "shares": found.shares, "environment": found.environment}


# ------------------------------------------------------------------------------------------------------------ matrix

_JUDGEMENTS, _STAGES = "Judgements", "Stages of the network"
_FILES = {
    "data_contracts.yaml": "Data contract",
    "reference_defects.yaml": "Known defects of the reference",
    "divergences.yaml": "Divergences of the reference",
    "configuration.yaml": "Configuration",
}


def _columns(results: Iterable[Values]) -> list[Column]:
    found = {(result["device"], result["dtype"]) for result in results}
    return sorted(found, key=lambda column: (not column[0], column[0], column[1] != "float64", column[1]))


def _column_title(column: Column) -> str:
    return " ".join(filter(None, column)) or "any device"


def _matrix(results: Sequence[Values]) -> Iterator[Values]:
    known = catalogue()
    order = list(known)
    columns = _columns(results)
    groups: dict[str, dict[str, dict[Column, list[str]]]] = {}
    for result in results:
        for clause in result["clauses"]:
            cells = groups.setdefault(_group(clause, known), {}).setdefault(clause, {})
            cells.setdefault((result["device"], result["dtype"]), []).append(result["outcome"])
    for name, clauses in sorted(groups.items(), key=lambda group: (group[0] != _JUDGEMENTS, group[0] != _STAGES)):
        # A column in which no clause of the group was judged would only be empty.
        used = [column for column in columns if any(column in cells for cells in clauses.values())]
        outcomes = [each for cells in clauses.values() for judged in cells.values() for each in judged]
        yield {
            "name": name,
            "columns": list(map(_column_title, used)),
            "is_open": name == _JUDGEMENTS or "failed" in outcomes,
            "rows": [
                {
                    "clause": clause,
                    "entry": known.get(clause),
                    "cells": [_cell(clauses[clause].get(column, [])) for column in used],
                }
                for clause in sorted(clauses, key=lambda each: order.index(each) if each in known else len(order))
            ],
        }


def _group(clause: str, known: Mapping[str, Entry]) -> str:
    file = known[clause].file if clause in known else "of another specification"
    if file == "stages.yaml":
        return _STAGES if clause[0].islower() else _JUDGEMENTS
    return _FILES.get(file, f"Clauses {file.removesuffix('.yaml')}")


def _cell(outcomes: Sequence[str]) -> tuple[str, str, str]:
    """Return (state, what is said of it, what is added)."""
    count = outcomes.count
    if not outcomes:
        return "none", "–", ""
    if count("failed"):
        return "failed", f"{count('failed')} of {len(outcomes)} failed", ""
    if not count("passed"):
        return "skipped", f"{count('skipped')} skipped", ""
    if count("skipped"):
        return "passed", f"{count('passed')} hold", f", {count('skipped')} skipped"
    return "passed", f"{count('passed')} hold" if count("passed") > 1 else "holds", ""


# ------------------------------------------------------------------------------------------------ the network's cases


def _margins(cases: Sequence[Values], results: Sequence[Values]) -> Iterator[Values]:
    known = catalogue()
    titles = {
        result["stage"]: known[clause].title
        for result in results
        for clause in result["clauses"]
        if result["stage"] and clause in known and _group(clause, known) == _STAGES
    }
    for column in _columns(cases):
        chosen = [case for case in cases if (case["device"], case["dtype"]) == column]
        worst: dict[str, Values] = {}
        for case in chosen:
            for verdict in case["verdicts"]:
                stage, share = verdict["stage"], share_of(verdict)
                if stage not in worst or share >= worst[stage]["share"]:
                    state = "passed" if verdict["passed"] else "failed"
                    about = {"title": titles.get(stage, ""), "verdict": verdict, "case": case["case"]}
                    worst[stage] = {"stage": stage, "share": share, "state": state, **about}
        largest = max((row["share"] for row in worst.values()), default=0.0)
        yield {
            "title": _column_title(column),
            "cases": len(chosen),
            "largest": largest,
            "is_open": column[1] != "float64" or largest > 1,
            "rows": list(worst.values()),
        }


def _growth(cases: Sequence[Values]) -> Iterator[Values]:
    charts: dict[tuple[str, str], list[Values]] = {}
    for case in cases:
        charts.setdefault((case["case"], case["dtype"]), []).append(case)
    is_open = True
    for (name, dtype), same in charts.items():
        stages = [verdict["stage"] for verdict in same[0]["verdicts"] if verdict["clause"] == FORWARD_FREE]
        if not stages:
            continue
        lines = {f"PyTorch on {case['device']}": _errors(case, stages, "candidate") for case in same}
        lines |= {"TensorFlow": _errors(same[0], stages, "reference"), "budget": _errors(same[0], stages, "budget")}
        picture = line_chart(stages, {name: line for name, line in lines.items() if any(line)}, "e")
        # In float64 every error is rounding, so the first chart of float32 is the one to see.
        yield {"title": f"{name} in {dtype}", "picture": picture, "is_open": is_open and dtype == "float32"}
        is_open = is_open and dtype != "float32"


def _errors(case: Values, stages: Sequence[str], whose: str) -> list[float | None]:
    """Return the e of each stage: of the ``candidate``, the ``reference`` or the ``budget``."""
    found = {each["stage"]: each[whose] for each in case["verdicts"] if each["clause"] == FORWARD_FREE}
    return [errors["e"] if (errors := found.get(stage)) else None for stage in stages]


def _places(cases: Sequence[Values]) -> Iterator[Values]:
    found = []
    for case in cases:
        shares = {(each["clause"], each["quantity"]): share_of(each) for each in case["verdicts"]}
        for place in case["places"]:
            share = shares.get((place["clause"], place["quantity"]), 0.0)
            # In float64 every deviation is rounding, unless something fails.
            if (case["dtype"] == "float32" or share > 1) and len({len(row) for row in place["cells"]}) == 1:
                is_first = place["stage"] == case["first_failing_stage"]
                found.append((is_first, share, case, place))
    for _, share, case, place in sorted(found, key=lambda each: each[:2], reverse=True)[:_PICTURES]:
        deviation, shape = place["deviation"], place["shape"]
        yield {
            "what": f"{place['clause']} {place['quantity']}",
            "where": f"{case['case']}, {case['device']} {case['dtype']}",
            "share": share,
            "index": tuple(place["index"]),
            "shape": tuple(shape),
            "size": "not finite" if deviation is None else f"{deviation:.1e}",
            "axes": " × ".join(str(shape[axis]) for axis in place["axes"] if axis < len(shape)),
            "picture": colour_map(np.array(place["cells"], dtype=np.float64), 0, 255, "Blues"),
        }
