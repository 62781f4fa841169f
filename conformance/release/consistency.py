"""Where a report contradicts itself, and which tests it lacks.

A report is a file that anyone can edit, and its digest can be computed again. So whatever it says twice is compared:
tests with verdicts, verdicts with their numbers, counts with what they count. Its list of tests is compared with what
pytest collects from the sources here.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from conformance.provenance.clauses import collect
from conformance.provenance.digest import spec_digest
from conformance.provenance.json_files import sealed
from conformance.report.difference import case_key
from conformance.report.results import OUTCOMES

Report = Mapping[str, Any]
Tests = Mapping[str, Sequence[str]]
"""Id of a test → the clauses that it judges."""

Collect = Callable[[str], Tests]
"""Tier → tests, those with a device on ``cpu``."""

_JUDGED = ("test_network.py::test_stage[", "test_network.py::test_variant[")
_RECORDED = "test_network.py::test_recording["
_STEP = "test_steps.py::test_step["
_ALL_STAGES = "test_network.py::test_stage[all_stages-"
"""How the one test begins that stands for a whole case where the package of the reference is missing."""

_ROUNDED = 1e-9
"""A share is a quotient of numbers that the report has; more than this is no rounding."""


@cache
def collected(tier: str) -> Tests:
    """Return the tests of the suite that is here, as pytest collects them (seconds).

    Raises:
        DocumentError: they cannot be collected.
    """
    return collect(tier, suite_only=True)


def contradictions(report: Report) -> Iterator[str]:
    """Say where a report says two things about one fact, or was changed after it was written."""
    if report.get("digest") != sealed(report)["digest"]:
        yield "has no digest of its content, or another one: it was changed after it was written."
    if report["spec_digest"] != spec_digest():
        yield "is valid for another specification than the one that is here."
    results, named = report["results"], [each["device"] for each in report["devices"]]
    for outcome in OUTCOMES:
        count = sum(result["outcome"] == outcome for result in results)
        if report["tests"][outcome] != count:
            yield f"contradicts itself: {report['tests'][outcome]} tests {outcome}, and a list of {count}."
    if report["passed"] == report["headline"].startswith("FAILED"):
        yield f"contradicts itself: passed is {report['passed']}, and the headline {report['headline'][:80]!r}."
    yield from _twice("test", [result["test"] for result in results])
    yield from _twice("device", named)
    yield from _twice("case", [" ".join(case_key(case)) for case in report["cases"]])
    yield from _twice("recording", [each["case"] for each in report["recordings"]])
    for each in report["devices"]:
        if (each["driver"] is None) != (each["device"] == "cpu"):
            yield f"contradicts itself: {each['device']} with driver {each['driver']}."
    strangers = {each["device"] for each in (*results, *report["cases"])} - {"", *named}
    if strangers:
        yield f"contradicts itself: judged on {', '.join(sorted(strangers))}, with devices {', '.join(named)}."
    yield from _of_verdicts(report)
    yield from _of_tests(report)


def _twice(what: str, names: Sequence[str]) -> Iterator[str]:
    yield from (f"contradicts itself: {what} {name} is there twice." for name, n in Counter(names).items() if n > 1)


def _of_verdicts(report: Report) -> Iterator[str]:
    """Compare what cases say with their verdicts, and verdicts with their numbers."""
    for case in report["cases"]:
        where = " ".join(case_key(case))
        holds = all(each["passed"] for each in case["verdicts"])
        if case["passed"] and not (holds and not case["error"] and case["first_failing_stage"] is None):
            yield f"contradicts itself: {where} passed, with a verdict, an error or a stage that failed."
        if report["passed"] and not case["passed"]:
            yield f"contradicts itself: the run passed, and {where} did not."
    for case in (*report["cases"], *report["recordings"]):
        for verdict in case["verdicts"]:
            name = f"{case['case']}: {verdict['clause']} {verdict['quantity']}"
            budget, share = verdict["budget"], verdict["share"]
            if budget is None or budget["e"] is None or (budget["m"] is None and case.get("dtype") == "float32"):
                yield f"{name} has no budget."
            elif share is not None and not math.isclose(share, _used(verdict), rel_tol=_ROUNDED):
                yield f"{name} contradicts itself: {share:.3g} budgets used, and {_used(verdict):.3g} by its numbers."


def _used(verdict: Mapping[str, Any]) -> float:
    """Return the share of its budget that a verdict's own numbers give."""
    pairs = [(verdict["candidate"][each], verdict["budget"][each]) for each in ("e", "m")]
    wide = [(math.inf if used is None else used, allowed) for used, allowed in pairs if allowed is not None]
    return max((0.0 if used == 0 else used / allowed if allowed else math.inf for used, allowed in wide), default=0.0)


def _of_tests(report: Report) -> Iterator[str]:
    """Compare the tests of the network and of the steps with the verdicts that they tell of."""
    shown = {(*case_key(case), v["clause"], v["stage"]) for case in report["cases"] for v in case["verdicts"]}
    shown |= {(each["case"], "", "", v["clause"], "") for each in report["recordings"] for v in each["verdicts"]}
    steps = {each["step"]: each["passed"] for each in report.get("steps", ())}
    for result in report["results"]:
        test, outcome = result["test"], result["outcome"]
        if outcome == "skipped":
            continue
        if test.startswith((*_JUDGED, _RECORDED)):
            stage = result["stage"] if test.startswith(_JUDGED) else ""
            if (*case_key(result), (*result["clauses"], "")[0], stage) not in shown:
                yield f"contradicts itself: {test} {outcome}, and no verdict was found."
        if test.startswith(_STEP):
            step = test.removeprefix(_STEP).removesuffix("]")
            if steps.get(step) != (outcome == "passed"):
                yield f"contradicts itself: {test} {outcome}, and its step did not."


def not_run(tests: Tests, there: Mapping[str, Sequence[str]], device: str, may_skip: tuple[str, ...]) -> Iterator[str]:
    """Say which tests were not run on a device, function by function, and which claim other clauses.

    Args:
        tests: of the suite.
        there: those of the reports, with their clauses.
        device: of the reports; tests are the same on every device.
        may_skip: how the ids of tests begin whose absence is no gap.
    """
    absent = {each.removeprefix(_ALL_STAGES).removesuffix("]") for each in there if each.startswith(_ALL_STAGES)}
    wanted: dict[str, list[str]] = {}
    missing: dict[str, list[str]] = {}
    for here, clauses in tests.items():
        test = re.sub(r"(?<=[\[-])cpu(?=[\]-])", device, here)
        function, _, parameters = test.partition("[")
        # A dash stands for what no option chose, and one test for a reference that is not installed.
        if parameters.startswith(("-", "all_stages-")) or test.startswith(may_skip):
            continue
        wanted.setdefault(function, []).append(test)
        if test in there:
            if tuple(there[test]) != tuple(clauses):
                yield f"{test} says that it judges {', '.join(there[test])}; it judges {', '.join(clauses)}."
        elif not any(f"-{case}-{device}-" in test for case in absent):
            missing.setdefault(function, []).append(test)
    for function, tests_missing in missing.items():
        count = f"{len(tests_missing)} of {len(wanted[function])} tests"
        yield f"{function}: {count} were not run, {tests_missing[0]} among them."
