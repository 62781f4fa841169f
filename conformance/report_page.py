"""A run, or the runs of several devices, as one HTML page."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from conformance import page
from conformance.clauses import Entry, catalogue
from conformance.difference import Difference, difference, share_of
from conformance.page import Content, Html, Series, badge, element, escape, margin_bar, section, table
from conformance.parity import (
    BACKWARD_FORCED,
    BACKWARD_FREE,
    FORWARD_FORCED,
    FORWARD_FREE,
    GRADIENT_FORCED,
    GRADIENT_FREE,
)

Report = Mapping[str, Any]
Column = tuple[str, str]
"""(device, dtype); both are empty for tests that run on none."""

_STAGE_CLAUSES = (FORWARD_FREE, FORWARD_FORCED, BACKWARD_FREE, BACKWARD_FORCED, GRADIENT_FREE, GRADIENT_FORCED)
_PICTURES = 9
_LISTED = 40


_EMPTY = "got empty parameter set"
"""How pytest excuses a test that has no case in a run: there was nothing to judge."""

GLOSSARY = {
    "Candidate": "the PyTorch network of this package, which is judged.",
    "Reference": "the TensorFlow network, run live or recorded in a file.",
    "Truth": "the same network computed in float64 by NumPy code that shares nothing with the candidate.",
    "float32, float64": "numbers of 7 and of 16 decimal digits. Users run float32, where both networks round; float64 "
    "leaves rounding out, so that it shows differences of meaning.",
    "Stage": "one operation of the network, for example one convolution. Stages have names from input to loss.",
    "Case": "one network with its input: a recording, a fresh draw, or a scan.",
    "Clause": "one rule of the specification. A test names the clauses that it checks.",
    "Error (e, m)": "how far a result is from the truth: e is the root mean square of the difference, m the largest "
    "difference, both in units of the root mean square of the truth.",
    "Budget": "the largest error that a clause allows. It follows from the error of the reference and from rounding.",
    "Share of a budget": "error divided by budget. Up to 100% passes, more fails.",
    "End to end (FREE)": "every stage gets what the network itself computed before, so errors add up.",
    "Fed with the truth (FORCED, teacher-forced)": "every stage gets the exact input, so an error belongs to that "
    "stage only. The first stage that fails this way is the one to look at.",
    "Gradient, backward": "derivative of the loss by the weights, and by what each stage passes on.",
    "Run-to-run spread": "largest difference between two equal runs on the same device.",
    "Recording": "a file with what the TensorFlow network computed at every stage.",
    "Waiver": "a failure that is known and excused, by a named person, within bounds, until a date.",
    "Skipped": "not checked in this run; the reason is given.",
}
"""Terms of the page, in the order in which a reader needs them."""


def report_page(
    reports: Sequence[Report],
    previous: Report | None = None,
    *,
    opening: Sequence[Content] = (),
    title: str = "Is the PyTorch network the TensorFlow network?",
) -> Html:
    """Return the page.

    Args:
        reports: one for each run; their columns stand side by side.
        previous: an earlier report, to show the difference of the first one to.
        opening: stands before everything else, with a verdict of its own; empty for the verdicts of the reports.
        title: of the page.
    """
    parts: list[tuple[str, str, Iterable[Content]]] = [
        ("failures", "What failed", _failures(reports)),
        ("clauses", "Clauses by device", _matrix(reports)),
        ("margins", "Margins by stage", _margins(reports)),
        ("growth", "Error along the network", _growth(reports)),
        ("places", "Where the largest deviations are", _places(reports)),
        ("waivers", "Waivers", _waivers(reports)),
        ("difference", "Difference to the previous report", _difference(reports[0], previous)),
        ("skipped", "What was not checked", _skipped(reports)),
        ("runs", "Runs", _runs(reports)),
        ("terms", "Terms", [page.terms(GLOSSARY)]),
    ]
    sections = [(identifier, title, list(content)) for identifier, title, content in parts]
    shown = [(identifier, title, content) for identifier, title, content in sections if content]
    return page.page(
        title,
        *(opening or [page.verdict(_state(report), _verdict(report, len(reports) > 1)) for report in reports]),
        *(each for report in reports for each in _closest_call(report)),
        page.navigation({identifier: title for identifier, title, _ in shown}),
        *(section(identifier, title, *content) for identifier, title, content in shown),
    )


def _verdict(report: Report, with_devices: bool) -> str:
    return f"{_devices(report)}: {sentence(report)}" if with_devices else sentence(report)


def _devices(report: Report) -> str:
    return ", ".join(each["device"] for each in report["devices"])


def _state(report: Report) -> str:
    if not report["passed"]:
        return "failed"
    return "waived" if report["tests"]["waived"] else "passed"


def sentence(report: Report) -> str:
    """Say in one sentence, for people who do not know the suite, what a run has shown."""
    tests = report["tests"]
    judged = tests["passed"] + tests["failed"] + tests["waived"]
    if not judged:
        return f"Nothing was shown: the run ended before any check (pytest ended with status {tests['exit_status']})."
    checks = f"{judged:,} check{'s' if judged > 1 else ''}"
    if report["passed"]:
        closest = _largest_share(report)
        if closest is None:
            return f"{checks} passed; the network itself was not among them."
        excused = f", {tests['waived']} of them excused by a waiver" if tests["waived"] else ""
        partial = "As far as it was checked, the" if tests["deselected"] else "The"
        call = f"{max(closest[0], 0.01):.0%}".replace("%", " %")
        return (
            f"{partial} PyTorch network is the TensorFlow network: {checks}{excused}, closest call "
            f"{'less than ' if closest[0] < 0.01 else ''}{call} of its budget."
        )
    counted = f"{tests['failed']:,} of {checks} failed"
    step = next((each for each in report["steps"] if report["headline"].startswith(each["text"])), None)
    if step is not None and not step["passed"]:
        return f"{counted}; the first wrong step is {step['step']}, which is not part of the network."
    wrong = [case for case in report["cases"] if not case["passed"]]
    first = [case for case in wrong if case["first_failing_stage"]]
    if first:
        cause = f", probably because of: {first[0]['cause']}" if first[0]["cause"] else ""
        stage = first[0]["first_failing_stage"]
        return f"The PyTorch network is not the TensorFlow network: {counted}; the first wrong stage is {stage}{cause}."
    if wrong:
        return f"The PyTorch network was not shown to be the TensorFlow network: {counted}, but no stage by itself."
    if tests["failed"]:
        agrees = "the network itself agrees" if report["cases"] else "the network itself was not checked"
        clauses = next(each["clauses"] for each in report["results"] if each["outcome"] == "failed")
        return f"{counted}, the first of clause {', '.join(clauses)}; {agrees}."
    return f"{checks} passed, but the run did not end well (pytest ended with status {tests['exit_status']})."


Closest = tuple[float, Mapping[str, Any], Mapping[str, Any]]


def _largest_share(report: Report) -> Closest | None:
    """Return the largest share of a budget that no waiver excuses, with its verdict and case; None without cases."""
    found = [
        (share_of(each), each, case) for case in report["cases"] for each in case["verdicts"] if not each["waived"]
    ]
    return max(found, key=lambda each: each[0]) if found else None


def _closest_call(report: Report) -> Iterator[Content]:
    """Say where the closest call is, and the headline of the terminal for those who know the suite."""
    closest = _largest_share(report)
    if closest is not None and report["passed"]:
        _, verdict, case = closest
        where = f"{case['case']} on {case['device']} in {case['dtype']}"
        yield element(
            "p", f"Closest call: {verdict['quantity']}, clause {verdict['clause']}, case {where}.", class_="soft"
        )
    yield element(
        "p", f"{_devices(report)}, {report['created_utc']}: ", element("code", report["headline"]), class_="soft"
    )


def _told(report: Report) -> list[Mapping[str, Any]]:
    """Return the results of a report without the tests that had no case."""
    return [each for each in report["results"] if not each["reason"].startswith(_EMPTY)]


def _failures(reports: Sequence[Report]) -> Iterator[Content]:
    cases = [case for report in reports for case in report["cases"] if not case["passed"]]
    if cases:
        named = ("case", "device", "dtype", "first_failing_stage", "cause")
        headers = ("case", "device", "dtype", "first failing stage, fed with the truth", "cause")
        yield table(headers, [[case[name] or "–" for name in named] for case in cases])
    failed = [result for report in reports for result in report["results"] if result["outcome"] == "failed"]
    if failed:
        rows = [(element("code", each["test"]), each["reason"] or "–") for each in failed[:_LISTED]]
        more = f"{len(failed) - _LISTED} more failed." if len(failed) > _LISTED else ""
        yield page.details(f"{len(failed)} failed tests", table(("test", "why"), rows, caption=more), is_open=not cases)


# ------------------------------------------------------------------------------------------------------------ matrix


def _columns(results: Iterable[Mapping[str, Any]]) -> list[Column]:
    found = {(result["device"], result["dtype"]) for result in results}
    return sorted(found, key=lambda column: (not column[0], column[0], column[1] != "float64", column[1]))


def _column_title(column: Column) -> str:
    return " ".join(part for part in column if part) or "any device"


def _matrix(reports: Sequence[Report]) -> Iterator[Content]:
    results = [result for report in reports for result in _told(report)]
    columns = _columns(results)
    cells: dict[str, dict[Column, list[str]]] = {}
    for result in results:
        for clause in result["clauses"]:
            column = (result["device"], result["dtype"])
            cells.setdefault(clause, {}).setdefault(column, []).append(result["outcome"])
    if not cells:
        return
    known = catalogue()
    order = list(known)
    yield element(
        "p",
        "How many checks of each clause passed. A word says where one did not, or where nothing was checked. A click "
        "on a clause shows its text and equation.",
    )
    groups: dict[str, list[str]] = {}
    for clause in cells:
        groups.setdefault(_group(clause, known), []).append(clause)
    for name, clauses in sorted(groups.items(), key=lambda group: (group[0] != _JUDGEMENTS, group[0] != _STAGES)):
        # A column in which no clause of the group was judged would only be empty.
        used = [column for column in columns if any(column in cells[clause] for clause in clauses)]
        clauses = sorted(clauses, key=lambda clause: order.index(clause) if clause in known else len(order))
        rows = [
            (_clause(clause, known), *(_cell(cells[clause].get(column, [])) for column in used)) for clause in clauses
        ]
        whole = table(("clause", *map(_column_title, used)), rows)
        broken = any("failed" in outcomes for clause in clauses for outcomes in cells[clause].values())
        summary = f"{name} ({len(clauses)})"
        yield page.details(summary, whole, is_open=name == _JUDGEMENTS or broken)


_JUDGEMENTS, _STAGES = "Judgements", "Stages of the network"
_FILES = {
    "data_contracts.yaml": "Data contract",
    "reference_defects.yaml": "Known defects of the reference",
    "divergences.yaml": "Divergences of the reference",
    "configuration.yaml": "Configuration",
}


def _group(clause: str, known: Mapping[str, Entry]) -> str:
    file = known[clause].file if clause in known else "of another specification"
    if file == "stages.yaml":
        return _STAGES if clause[0].islower() else _JUDGEMENTS
    return _FILES.get(file, f"Clauses {file.removesuffix('.yaml')}")


def _clause(clause: str, known: Mapping[str, Entry]) -> Html:
    if clause not in known:
        return element("code", clause)
    entry = known[clause]
    equations = [element("p", element("code", equation)) for equation in entry.equations]
    title = Html(element("code", clause) + element("span", f" {entry.title}", class_="soft"))
    text = [element("p", entry.text)] if entry.text else []
    return page.details(title, *text, *equations) if text or equations else title


def _cell(outcomes: Sequence[str]) -> Html:
    counts = {state: outcomes.count(state) for state in ("passed", "failed", "waived", "skipped")}
    if not outcomes:
        return badge("none", "–")
    if counts["failed"]:
        return badge("failed", f"{counts['failed']} of {len(outcomes)} failed")
    if counts["waived"]:
        return badge("waived", f"{counts['waived']} of {len(outcomes)} waived")
    if not counts["passed"]:
        return badge("skipped", f"{counts['skipped']} skipped")
    if counts["skipped"]:
        return Html(badge("passed", f"{counts['passed']} hold") + escape(f", {counts['skipped']} skipped"))
    return badge("passed", f"{counts['passed']} hold" if counts["passed"] > 1 else "holds")


# ----------------------------------------------------------------------------------------------------------- margins


def _cases(reports: Sequence[Report]) -> list[Mapping[str, Any]]:
    return [case for report in reports for case in report["cases"]]


def _margins(reports: Sequence[Report]) -> Iterator[Content]:
    cases = _cases(reports)
    if not cases:
        return
    yield element(
        "p",
        "For each stage, the largest share of its budget that any case used. A full bar is the whole budget; beyond "
        "it, the stage fails.",
    )
    titles = _stage_titles(reports)
    columns = _columns(cases)
    for column in columns:
        chosen = [case for case in cases if (case["device"], case["dtype"]) == column]
        worst: dict[str, tuple[float, Mapping[str, Any], str]] = {}
        for case in chosen:
            for verdict in case["verdicts"]:
                found = (share_of(verdict), verdict, case["case"])
                if found[0] >= worst.get(verdict["stage"], (-1.0,))[0]:
                    worst[verdict["stage"]] = found
        rows = [
            (
                Html(escape(stage) + element("span", titles.get(stage, ""), class_="soft")),
                margin_bar(share, _state_of(verdict)),
                page.line(verdict["clause"]),
                page.line(_also(verdict, stage)),
                case,
            )
            for stage, (share, verdict, case) in worst.items()
        ]
        cases_word = f"{len(chosen)} case" + ("s" if len(chosen) > 1 else "")
        whole = table(("stage", "share of the budget", "clause", "quantity", "case"), rows)
        largest = max(share for share, _, _ in worst.values())
        summary = f"{_column_title(column)}: {cases_word}, at most {page.share_text(largest)} of a budget"
        yield page.details(summary, whole, is_open=column[1] != "float64" or largest > 1)


def _stage_titles(reports: Sequence[Report]) -> dict[str, str]:
    """Return stage → title of the stage, as the specification has it, for the stages that tests name."""
    known = catalogue()
    return {
        result["stage"]: known[clause].title
        for report in reports
        for result in report["results"]
        for clause in result["clauses"]
        if result["stage"] and clause in known and _group(clause, known) == _STAGES
    }


def _state_of(verdict: Mapping[str, Any]) -> str:
    if verdict["passed"]:
        return "passed"
    return "waived" if verdict["waived"] else "failed"


def _also(verdict: Mapping[str, Any], stage: str) -> str:
    return "" if verdict["quantity"] == stage else str(verdict["quantity"])


# ------------------------------------------------------------------------------------------------------------ growth


def _growth(reports: Sequence[Report]) -> Iterator[Content]:
    charts: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for case in _cases(reports):
        charts.setdefault((case["case"], case["dtype"]), []).append(case)
    drawn = [(name, dtype, cases) for (name, dtype), cases in charts.items() if _free(cases[0])]
    if not drawn:
        return
    yield element(
        "p",
        "Each side runs from the input on its own numbers, so errors add up from left to right. Root mean square of "
        "the deviation from the truth, in units of the truth's own.",
    )
    opened = next((position for position, each in enumerate(drawn) if each[1] == "float32"), 0)
    for position, (name, dtype, cases) in enumerate(drawn):
        stages = [verdict["stage"] for verdict in _free(cases[0])]
        lines = [Series(f"PyTorch on {case['device']}", _values(case, stages, "candidate")) for case in cases]
        reference = Series("TensorFlow", _values(cases[0], stages, "reference"))
        if any(reference.values):
            lines.append(reference)
        lines.append(Series("budget", _values(cases[0], stages, "budget"), is_limit=True))
        title = f"{name} in {dtype}"
        chart = page.line_chart(f"Error along the network, {title}", stages, lines, unit="e")
        yield page.details(title, chart, is_open=position == opened)


def _free(case: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [verdict for verdict in case["verdicts"] if verdict["clause"] == FORWARD_FREE]


def _values(case: Mapping[str, Any], stages: Sequence[str], whose: str) -> list[float | None]:
    """Return the e of each stage: of the ``candidate``, the ``reference`` or the ``budget``."""
    by_stage = {verdict["stage"]: verdict[whose] for verdict in _free(case)}
    return [errors["e"] if (errors := by_stage.get(stage)) else None for stage in stages]


# ------------------------------------------------------------------------------------------------------------ places


def _places(reports: Sequence[Report]) -> Iterator[Content]:
    found = []
    for case in _cases(reports):
        shares = {(each["clause"], each["quantity"]): share_of(each) for each in case["verdicts"]}
        found += [(shares.get((place["clause"], place["quantity"]), 0.0), case, place) for place in case["places"]]
    # In float64 every deviation is rounding, unless something fails.
    found = [each for each in found if each[1]["dtype"] == "float32" or each[0] > 1]
    worst = sorted(found, key=lambda each: each[0], reverse=True)
    cards = [_card(*each) for each in worst[:_PICTURES] if len({len(row) for row in each[2]["cells"]}) == 1]
    if cards:
        yield element(
            "p",
            "The quantities that used most of a budget. White is no deviation, dark is the largest; a pattern at an "
            "edge or along an axis is a hint at the cause, even noise is rounding.",
        )
        yield element("div", *cards, class_="cards")


def _card(share: float, case: Mapping[str, Any], place: Mapping[str, Any]) -> Html:
    what = f"{place['clause']} {place['quantity']}"
    where = f"{case['case']}, {case['device']} {case['dtype']}"
    deviation = place["deviation"]
    size = "no number" if deviation is None else f"{deviation:.1e}"
    axes = " × ".join(str(place["shape"][axis]) for axis in place["axes"] if axis < len(place["shape"]))
    caption = Html(
        element("strong", what)
        + escape(
            f" {where}: {page.share_text(share)} of the budget. Largest at {tuple(place['index'])} of "
            f"{tuple(place['shape'])}, {size} of the RMS. Shown: {axes}."
        )
    )
    picture = page.heat_map(
        np.array(place["cells"], dtype=np.float64), f"map of deviations, {what}, {where}", largest=255
    )
    return page.figure(picture, caption)


# ------------------------------------------------------------------------------------- waivers, difference, skipped


def _waivers(reports: Sequence[Report]) -> Iterator[Content]:
    waivers = [waiver for case in _cases(reports) for waiver in case["waivers"]]
    if not waivers:
        yield element("p", "None applies to these runs.", class_="soft")
        return
    rows = [
        (
            element("code", "-".join(each[name] for name in ("stage", "clause", "case", "device", "dtype"))),
            badge("waived" if each["state"] == "holds" else "failed", each["state"]),
            "wrong" if each["share"] is None else f"{each['share']:.3g}",
            f"{each['at_least']:g} … {each['at_most']:g}",
            page.line(each["expires"]),
            page.line(each["owner"]),
            each["reason"],
        )
        for each in waivers
    ]
    yield table(("test", "state", "budgets used", "bounds", "expires", "owner", "reason"), rows)


def _difference(report: Report, previous: Report | None) -> Iterator[Content]:
    if previous is None:
        return
    found = difference(previous, report)
    yield element("p", f"Against the report of {previous['created_utc']}: {previous['headline']}")
    yield from _changed_tests(found)
    if found.shares:
        rows = [
            (
                change.cell[0],
                change.cell[1],
                _column_title(change.cell[2:]),
                page.number(page.share_text(change.before)),
                page.number(page.share_text(change.now)),
            )
            for change in found.shares[:_LISTED]
        ]
        yield table(("stage", "clause", "device", "before", "now"), rows, caption="Largest share of a budget.")
    if found.versions:
        changed = [(name, before or "–", now or "–") for name, (before, now) in found.versions.items()]
        yield table(("version of", "before", "now"), changed)
    if not (found.shares or found.broken or found.repaired or found.gone or found.new or found.versions):
        yield element("p", "Nothing has changed.")


def _changed_tests(found: Difference) -> Iterator[Content]:
    for title, tests in (
        ("fail now and did not before", found.broken),
        ("failed before and do not now", found.repaired),
        ("are no longer there", found.gone),
        ("are new", found.new),
    ):
        if tests:
            listed = [element("li", element("code", test)) for test in tests[:_LISTED]]
            more = [element("li", f"… and {len(tests) - _LISTED} more")] if len(tests) > _LISTED else []
            yield page.details(f"{len(tests)} tests {title}", element("ul", *listed, *more))


def _skipped(reports: Sequence[Report]) -> Iterator[Content]:
    by_reason: dict[str, list[str]] = {}
    for report in reports:
        for result in _told(report):
            if result["outcome"] == "skipped":
                by_reason.setdefault(result["reason"] or "no reason was given", []).append(result["test"])
    if by_reason:
        rows = [
            (reason, page.number(str(len(tests))), element("code", tests[0])) for reason, tests in by_reason.items()
        ]
        yield table(("reason", "tests", "for example"), rows)
    deselected = sum(report["tests"]["deselected"] for report in reports)
    if deselected:
        yield element("p", f"Options left {deselected} tests out.")


# -------------------------------------------------------------------------------------------------------------- runs


def _runs(reports: Sequence[Report]) -> Iterator[Content]:
    for report in reports:
        tests = report["tests"]
        devices = "; ".join(
            " ".join(part for part in (each["device"], f"({each['name']})", each["driver"]) if part)
            for each in report["devices"]
        )
        versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items() if version)
        rows: list[Sequence[Content]] = [
            ("command", element("code", report["command"])),
            ("when", report["created_utc"]),
            ("tier", report["tier"]),
            ("devices", devices),
            ("versions", versions),
            ("tests", ", ".join(f"{tests[state]} {state}" for state in ("passed", "failed", "waived", "skipped"))),
            ("numerical sources", element("code", report["numerical_digest"])),
            ("specification", element("code", report["spec_digest"])),
        ]
        yield table(("", ""), rows)
        notes = tests["notes"]
        if notes:
            listed = element("ul", *(element("li", note) for note in notes))
            yield page.details(f"{len(notes)} measured numbers that belong to no single stage", listed)
        for case in report["cases"]:
            yield page.details(f"{case['case']} on {case['device']} in {case['dtype']}", *_case(case))


def _case(case: Mapping[str, Any]) -> Iterator[Content]:
    spread = "unknown" if case["run_to_run"] is None else f"{case['run_to_run']:.1e}"
    yield element("p", f"Reference: {case['reference']}; run-to-run spread {spread}; {case['seconds']:.1f} s.")
    shares: dict[str, dict[str, float]] = {}
    for verdict in case["verdicts"]:
        row = shares.setdefault(verdict["stage"], {})
        row[verdict["clause"]] = max(row.get(verdict["clause"], 0.0), share_of(verdict))
    found = {clause for row in shares.values() for clause in row}
    clauses = [clause for clause in _STAGE_CLAUSES if clause in found] + sorted(found - set(_STAGE_CLAUSES))
    rows = [
        (stage, *(page.number(page.share_text(row[clause]) if clause in row else "") for clause in clauses))
        for stage, row in shares.items()
    ]
    yield table(("stage", *clauses), rows, caption="Share of each budget.")
