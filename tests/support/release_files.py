"""Reports and evidence that show all that a release asks for, made in memory."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from conformance.provenance.clauses import catalogue, collect
from conformance.provenance.digest import numerical_digest, spec_digest
from conformance.provenance.evidence import Evidence, measured_here
from conformance.provenance.json_files import sealed
from conformance.release.gate import Decision, Input, decide
from conformance.release.policy import Policy, Requirement, read_policy
from conformance.report.results import OUTCOMES
from conformance.suite import DTYPES

NOW = datetime.now(UTC)
RELEASE = read_policy("release")
CPU, CUDA = RELEASE.devices
STAGES = [clause for clause, entry in catalogue().items() if entry.file == "stages.yaml" and clause[0].islower()]
STAGE = "merged"
STEP = "data.path"
FUNCTIONS = (
    "test_spec.py::test_every_stage[n64]",
    "test_training.py::test_state[clip]",
    f"test_steps.py::test_step[{STEP}]",
)

LARGE = "test_spec.py::test_every_stage[n256]"
"""A test that tier quick leaves out."""


def result(test: str, clauses: Sequence[str], outcome: str = "passed", **about: str) -> dict[str, Any]:
    empty = {"stage": "", "case": "", "device": "", "dtype": "", "reason": ""}
    return {"test": test, "outcome": outcome, "clauses": list(clauses), "seconds": 0.1, **empty, **about}


def verdict(share: float = 0.2, clause: str = "FORWARD-FREE", **change: Any) -> dict[str, Any]:
    return {
        "clause": clause,
        "stage": STAGE,
        "quantity": STAGE,
        "reference": None,
        "candidate": {"e": share * 1e-6, "m": 0.0},
        "budget": {"e": 1e-6, "m": 1e-5},
        "share": share,
        "passed": share <= 1,
        "reason": "",
    } | change


def results(device: str, tier: str) -> list[dict[str, Any]]:
    """Every test of a tier, as if there were few."""
    found = [result(test, CPU.clauses["any"]) for test in (*FUNCTIONS, *([] if tier == "quick" else [LARGE]))]
    for dtype in DTYPES:
        for clause in CPU.clauses[dtype]:
            name = f"test_network.py::test_stage[{STAGE}-{clause}-case-{device}-{dtype}]"
            found.append(result(name, (clause, *STAGES), stage=STAGE, case="case", device=device, dtype=dtype))
    return [*found, result("test_network.py::test_recording[REFERENCE-case]", ("REFERENCE",), case="case")]


def collected(tier: str) -> Mapping[str, Sequence[str]]:
    """What pytest would collect."""
    return {each["test"]: each["clauses"] for each in results("cpu", tier)}


def report(requirement: Requirement) -> dict[str, Any]:
    """A report that shows all that is required of a device."""
    device = requirement.device
    found = results(device, requirement.tier)
    return complete(
        {
            "schema": 2,
            "created_utc": NOW.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "command": "pytest conformance",
            "tier": requirement.tier,
            "devices": [{"device": device, "name": "a device", "driver": None if device == "cpu" else "NVIDIA 1"}],
            "passed": True,
            "headline": f"passed: {len(found)} passed",
            "numerical_digest": numerical_digest(),
            "spec_digest": spec_digest(),
            "versions": {"torch": "2"},
            "tests": {"exit_status": 0, "deselected": 0, "notes": []},
            "results": found,
            "recordings": [{"case": "case", "verdicts": [verdict(clause="REFERENCE")]}],
            "steps": [{"step": STEP, "passed": True, "cause": "", "text": f"passed  step {STEP}"}],
            "cases": [
                {
                    "case": "case",
                    "kind": "bundle",
                    "device": device,
                    "dtype": dtype,
                    "reference": "recorded",
                    "passed": True,
                    "headline": "passed",
                    "error": "",
                    "first_failing_stage": None,
                    "cause": "",
                    "run_to_run": 0.0,
                    "seconds": 1.0,
                    "places": [],
                    "verdicts": [verdict(clause=clause) for clause in CPU.clauses[dtype]],
                }
                for dtype in reversed(DTYPES)
            ],
        }
    )


def complete(found: dict[str, Any]) -> dict[str, Any]:
    """Count the tests again and seal, as who writes a report does."""
    counts = {outcome: sum(each["outcome"] == outcome for each in found["results"]) for outcome in OUTCOMES}
    return sealed(found | {"tests": found["tests"] | counts})


def of(requirement: Requirement, change: Callable[[dict[str, Any]], object] = lambda _: None) -> Input:
    found = report(requirement)
    change(found)
    return Input(Path(f"{requirement.device}/parity.json"), "0" * 64, complete(found))


def measured(policy: Policy = RELEASE) -> list[Evidence]:
    """Evidence that just reaches its goals."""
    return [
        measured_here(each.kind, "python -m conformance clauses", numbers, goals=each.goals)
        for each in policy.evidence
        for numbers in [{n: g.at_least if g.at_most is None else g.at_most for n, g in each.goals.items()}]
    ]


def decided(
    change: Callable[[dict[str, Any]], object] = lambda _: None,
    *,
    evidence: list[Evidence] | None = None,
    cuda: bool = True,
) -> Decision:
    """The decision about a release whose CPU report was changed."""
    return decided_from([of(CPU, change), *([of(CUDA)] if cuda else [])], evidence)


def decided_from(
    inputs: Sequence[Input],
    evidence: list[Evidence] | None = None,
    policy: Policy = RELEASE,
) -> Decision:
    """The decision about reports, with all evidence if none is given."""
    found = measured() if evidence is None else evidence
    return decide(inputs, policy, found, now=NOW, tests=collected)


def whole_report(requirement: Requirement) -> dict[str, Any]:
    """A report of all the tests that the suite really has in a tier, for gates that collect them."""
    found, cases, recordings, steps = report(requirement), {}, {}, []
    parts = re.compile(r"\[(?:(?P<stage>[^-\]]+)-)?(?P<clause>[A-Z0-9]+(?:-(?:FREE|FORCED))?)-(?P<case>.+)\]")
    rows = []
    for test, clauses in collect(requirement.tier, suite_only=True).items():
        about = {}
        if test.startswith("test_network.py::test_stage[") and (match := parts.search(test)):
            case, device, dtype = match["case"].rsplit("-", 2)
            about = {"stage": match["stage"], "case": case, "device": device, "dtype": dtype}
            same = cases.setdefault((case, dtype), found["cases"][0] | {"case": case, "dtype": dtype, "verdicts": []})
            same["verdicts"].append(verdict(clause=match["clause"], stage=match["stage"]))
        elif test.startswith("test_network.py::test_recording[") and (match := parts.search(test)):
            about = {"case": match["case"]}
            recordings.setdefault(match["case"], []).append(verdict(clause=match["clause"]))
        elif test.startswith("test_steps.py::test_step["):
            step = test.partition("[")[2][:-1]
            steps.append({"step": step, "passed": True, "cause": "", "text": step})
        elif any(f"{dtype}" in test for dtype in DTYPES) or set(clauses) & {"INVARIANCE", "FLOAT64"}:
            about = {"device": requirement.device, "dtype": "float64" if "FLOAT64" in clauses else "float32"}
        skipped = test.partition("[")[2].startswith("-")
        rows.append(result(test, clauses, "skipped" if skipped else "passed", **about))
    told = [{"case": case, "verdicts": verdicts} for case, verdicts in recordings.items()]
    return complete(found | {"results": rows, "cases": [*cases.values()], "recordings": told, "steps": steps})
