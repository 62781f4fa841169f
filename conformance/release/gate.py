"""The gate: reports, evidence and a policy in, one decision out.

A report is believed only as far as it agrees with itself (``consistency``) and with the sources that are here.
Everything that stands against a release is listed. What is only missing because no CUDA device was at hand is pending.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from conformance.provenance.clauses import catalogue
from conformance.provenance.digest import file_digest, numerical_digest
from conformance.provenance.evidence import Evidence, Goal
from conformance.release.consistency import Collect, collected, contradictions, not_run
from conformance.release.policy import EvidenceRequirement, Policy, Requirement
from conformance.report.difference import share_of
from conformance.report.results import read_report
from conformance.suite import TIERS

EVIDENCE_FOLDER = "conformance/evidence"
"""Where evidence is kept, from the root folder of the repository."""

_EVIDENCE_COMMANDS = {
    "faults": "python -m conformance.selftest --evidence {folder}",
    "clean": "python -m conformance study clean --runs 1000 --evidence {folder}",
    "mutation": "python benchmarks/mutation.py --evidence {folder}",
    "training": "python -m conformance study training --evidence {folder}",
    "replay": "python benchmarks/suite.py --evidence {folder}",
    "capture": "python benchmarks/capture.py --evidence {folder}",
}
"""Kind of evidence → the command that measures and keeps it."""

FAILED, CPU_ONLY = "failed", "CPU only"
"""Verdicts beside what the policy grants."""

_CLOCK_SKEW = timedelta(hours=1)
_TIME = "%Y-%m-%dT%H:%M:%SZ"


@dataclass(frozen=True)
class Input:
    """One report file.

    Attributes:
        path: the file.
        digest: SHA-256 of the file.
        report: what it holds.
    """

    path: Path
    digest: str
    report: Mapping[str, Any]

    @property
    def devices(self) -> tuple[str, ...]:
        """The torch devices that were judged."""
        return tuple(each["device"] for each in self.report["devices"])


class Objection(str):
    """What stands against a release, in one sentence.

    Attributes:
        first: what a person has to do before the command is of use; empty where nothing is.
        command: shows what is missing; empty where no command can.
    """

    first: str
    command: str

    def __new__(cls, text: str, command: str = "", first: str = "") -> Objection:
        """Return the sentence with the way to mend it."""
        made = super().__new__(cls, text)
        made.command, made.first = command, first
        return made


_REPAIR = "After the repair:"
_LISTED = 10

Complaint = tuple[str, str]
"""(what is wrong, what a person has to do first)."""


@dataclass(frozen=True)
class Decision:
    """What the gate says.

    Attributes:
        verdict: what the policy grants, ``CPU only``, or ``failed``.
        headline: the reason in one line.
        violations: everything that stands against it.
        pending: what has to be shown on CUDA and was not.
    """

    verdict: str
    headline: str
    violations: tuple[Objection, ...]
    pending: tuple[Objection, ...]

    @property
    def is_granted(self) -> bool:
        """Whether the gate is open."""
        return self.verdict not in (FAILED, CPU_ONLY)

    @property
    def remedies(self) -> Mapping[tuple[str, str], tuple[Objection, ...]]:
        """(what a person does first, command) → what these mend; both may be empty, but not at once."""
        found: dict[tuple[str, str], tuple[Objection, ...]] = {}
        for each in (*self.violations, *self.pending):
            key = (each.first, each.command)
            found[key] = (*found.get(key, ()), each)
        return found


def read_input(path: Path) -> Input:
    """Read a report.

    Raises:
        DocumentError: as ``read_report``.
    """
    return Input(path, file_digest(path), read_report(path))


def decide(
    inputs: Sequence[Input],
    policy: Policy,
    evidence: Sequence[Evidence],
    *,
    now: datetime | None = None,
    evidence_folder: Path | str = EVIDENCE_FOLDER,
    tests: Collect = collected,
) -> Decision:
    """Decide.

    Args:
        inputs: reports of all devices.
        policy: what has to be shown.
        evidence: measurements that are kept.
        now: the time, with UTC; None takes the clock.
        evidence_folder: to which the commands that measure evidence again write it.
        tests: collects the tests of a tier.
    """
    now = datetime.now(UTC) if now is None else now
    violations = [each for one in inputs for each in _of_report(one, policy, now)]
    pending: list[Objection] = []
    for requirement in policy.devices:
        is_shown = any(requirement.device in one.devices for one in inputs)
        against = violations if is_shown or requirement.device != "cuda" else pending
        against += _of_device(requirement, inputs, evidence, evidence_folder, tests, now)
    for each in policy.evidence:
        against = violations if each.device != "cuda" else pending
        against += _of_evidence(each, evidence, evidence_folder, now)
    if violations:
        return Decision(FAILED, _headline(inputs, violations), tuple(violations), tuple(pending))
    if pending:
        return Decision(CPU_ONLY, f"CPU only: all that was shown holds; {pending[0]}", (), tuple(pending))
    required = " and ".join(each.device for each in policy.devices)
    return Decision(policy.grants, f"{policy.grants}: {required} hold to {policy.file}", (), ())


def _headline(inputs: Sequence[Input], violations: Sequence[Objection]) -> str:
    """Return what the failed report says itself, which names the stage; else the first violation."""
    failed = [one.report for one in inputs if not one.report["passed"]]
    named = [report for report in failed if any(case["first_failing_stage"] for case in report["cases"])]
    return str((named or failed)[0]["headline"]) if failed else f"FAILED  {violations[0]}"


def _suite_command(devices: Sequence[str], tier: str, folder: Path | str) -> str:
    """Return the command that judges again and writes its report into a folder."""
    device = f" --parity-device {devices[0]}" if len(devices) == 1 else ""
    return f"pytest conformance{device} --parity-tier {tier} --parity-report {shlex.quote(str(folder))}"


# ------------------------------------------------------------------------------------------------------- one report


def _of_report(one: Input, policy: Policy, now: datetime) -> list[Objection]:
    # A report that is made again is to be one that the policy takes.
    tiers = [one.report["tier"], *(each.tier for each in policy.devices if each.device in one.devices)]
    again = _suite_command(one.devices, max(tiers, key=TIERS.index), one.path.parent)
    twofold = list(contradictions(one.report))
    complaints = [*_of_run(one.report, policy, now), *_of_tests(one.report)]
    complaints += [(text, "") for text in twofold[:_LISTED]]
    if len(twofold) > _LISTED:
        complaints.append((f"{len(twofold) - _LISTED} more contradictions.", ""))
    complaints += [(text, _REPAIR) for case in one.report["cases"] for text in _of_case(case)]
    for recording in one.report["recordings"]:
        wrong = [each for each in recording["verdicts"] if not _holds(each)]
        complaints += [(f"recording {recording['case']}: {_name(each)} does not hold.", _REPAIR) for each in wrong]
    return [Objection(f"{one.path}: {text}", again, first) for text, first in complaints]


def _of_run(report: Mapping[str, Any], policy: Policy, now: datetime) -> Iterator[Complaint]:
    if "candidate" in report:
        yield f"it judges {report['candidate']['name']}, and not the network of this package.", ""
    if report["numerical_digest"] != numerical_digest():
        yield "stale: it is valid for other numerical sources than those that are here; run the suite again.", ""
    age = _age(report["created_utc"], now)
    if age is None:
        yield f"{report['created_utc']} is no time.", ""
        return
    if age > timedelta(days=policy.largest_age_days):
        yield f"{age.days} days old; {policy.file} allows {policy.largest_age_days:g}.", ""
    if age < -_CLOCK_SKEW:
        late = f"was written at {report['created_utc']}, which has not come yet; check the clocks."
        yield late, "With the clocks set:"


def _age(created_utc: str, now: datetime) -> timedelta | None:
    """Return how long ago something was written; None where the text is no time."""
    try:
        return now - datetime.strptime(created_utc, _TIME).replace(tzinfo=UTC)
    except ValueError:
        return None


def _of_tests(report: Mapping[str, Any]) -> Iterator[Complaint]:
    failed = [result["test"] for result in report["results"] if result["outcome"] == "failed"]
    yield from ((f"{test} failed.", _REPAIR) for test in failed[:_LISTED])
    if len(failed) > _LISTED:
        yield f"{len(failed) - _LISTED} more tests failed.", _REPAIR
    status = report["tests"]["exit_status"]
    if not report["passed"] and not failed:
        yield f"the run did not pass (pytest ended with status {status}).", ""
    if report["passed"] != (status == 0 and report["tests"]["passed"] > 0):
        yield f"contradicts itself: passed is {report['passed']}, with exit status {status}.", ""


def _holds(verdict: Mapping[str, Any]) -> bool:
    """Return True if a verdict holds by its own numbers, whatever it says."""
    return verdict["passed"] and share_of(verdict) <= 1


def _name(verdict: Mapping[str, Any]) -> str:
    return f"{verdict['clause']} {verdict['quantity']}"


def _of_case(case: Mapping[str, Any]) -> Iterator[str]:
    where = f"{case['case']} on {case['device']} in {case['dtype']}"
    if case["error"]:
        yield f"{where}: raised {case['error'].splitlines()[0]}"
    wrong = [each for each in case["verdicts"] if not _holds(each)]
    if len(wrong) > _LISTED:
        yield f"{where}: {len(wrong)} verdicts do not hold, these among them:"
    for verdict in wrong[:_LISTED]:
        if verdict["passed"]:
            yield f"{where}: {_name(verdict)} contradicts itself: passed, with {share_of(verdict):.3g} budgets used."
        else:
            yield f"{where}: {_name(verdict)} does not hold."


# -------------------------------------------------------------------------------------------------------- one device


def _of_device(
    requirement: Requirement,
    inputs: Sequence[Input],
    evidence: Sequence[Evidence],
    folder: Path | str,
    tests: Collect,
    now: datetime,
) -> list[Objection]:
    device = requirement.device
    mine = [one for one in inputs if device in one.devices]
    first = "" if device == "cpu" else f"On a machine with a {device.upper()} device:"
    again = _suite_command((device,), requirement.tier, mine[0].path.parent if mine else device)
    if not mine and requirement.or_evidence is not None:
        wanted = EvidenceRequirement(requirement.or_evidence, device, _SHOWN_GOALS)
        wanting = _of_evidence(wanted, evidence, folder, now)
        complaints = [f"no report of {device}, and {each}" for each in wanting[:1]]
    else:
        complaints = list(_of_requirement(requirement, mine, tests))
    return [Objection(text, again, first) for text in complaints]


def _of_requirement(requirement: Requirement, inputs: Sequence[Input], tests: Collect) -> Iterator[str]:
    """Yield what the reports of a device lack."""
    device = requirement.device
    large_enough = [one for one in inputs if TIERS.index(one.report["tier"]) >= TIERS.index(requirement.tier)]
    if not large_enough:
        tiers = f"; there is one of tier {inputs[0].report['tier']}" if inputs else ""
        yield f"no report of {device} of tier {requirement.tier}{tiers}."
        return
    for one in large_enough:
        if one.report["tests"]["deselected"]:
            yield f"{one.path}: options left {one.report['tests']['deselected']} tests out; run the whole suite."
    outcomes = _merged(large_enough, device)
    yield from _unjudged(requirement, outcomes)
    for (test, _, _), (outcome, clauses) in outcomes.items():
        needed = sorted(requirement.required & set(clauses))
        if outcome == "skipped" and needed and not test.startswith(requirement.may_skip):
            yield f"{device}: {test} was skipped, and {', '.join(needed)} is required."
    there = {test: clauses for (test, _, _), (_, clauses) in outcomes.items()}
    yield from (f"{device}: {each}" for each in not_run(tests(requirement.tier), there, device, requirement.may_skip))


Outcomes = dict[tuple[str, str, str], tuple[str, tuple[str, ...]]]
"""(test, device, dtype) → (outcome, clauses)."""


def _merged(inputs: Sequence[Input], device: str) -> Outcomes:
    """Return what became of each test of a device; of two runs the failure counts, and a skip counts least."""
    order = ("skipped", "passed", "failed")
    found: Outcomes = {}
    for one in inputs:
        for result in one.report["results"]:
            if result["device"] in ("", device):
                key = (result["test"], result["device"], result["dtype"])
                before = found.get(key, ("skipped", ()))[0]
                found[key] = (max(before, result["outcome"], key=order.index), tuple(result["clauses"]))
    return found


def _unjudged(requirement: Requirement, outcomes: Outcomes) -> Iterator[str]:
    """Say which clause has no test that ran; every stage of the network has to be judged in every dtype, too."""
    stages = [clause for clause, entry in catalogue().items() if entry.file == "stages.yaml" and clause[0].islower()]
    for dtype, clauses in requirement.clauses.items():
        judged = {
            clause
            for (_, device, of), (outcome, named) in outcomes.items()
            for clause in named
            if outcome != "skipped" and (dtype == "any" or (device, of) == (requirement.device, dtype))
        }
        where = requirement.device if dtype == "any" else f"{requirement.device} {dtype}"
        for clause in (*clauses, *(stages if dtype != "any" else ())):
            if clause not in judged:
                yield f"{where}: nothing judged clause {clause}, which is required."


# ---------------------------------------------------------------------------------------------------------- evidence


_SHOWN_GOALS = {"tests_passed": Goal(at_least=1), "verdicts": Goal(at_least=1), "largest_share": Goal(at_most=1)}
"""What evidence that stands in for a report has to reach."""


def shown(inputs: Sequence[Input], policy: Policy, *, tests: Collect = collected) -> Iterator[Evidence]:
    """Yield evidence of what reports show on devices that need not be at hand for every decision.

    Only reports of a device that show all that the policy asks of it are evidence; `tests` collects those of a tier.
    """
    now = datetime.now(UTC)
    for requirement in policy.devices:
        device = requirement.device
        mine = [one for one in inputs if device in one.devices]
        if requirement.or_evidence is None or not mine or list(_of_requirement(requirement, mine, tests)):
            continue
        if any(_of_report(one, policy, now) for one in mine):
            continue
        last = max((one.report for one in mine), key=lambda report: str(report["created_utc"]))
        cases = [case for one in mine for case in one.report["cases"] if case["device"] == device]
        verdicts = [each for case in cases for each in case["verdicts"]]
        outcomes = [outcome for outcome, _ in _merged(mine, device).values()]
        named = next(each for each in last["devices"] if each["device"] == device)
        yield Evidence(
            kind=requirement.or_evidence,
            device=device,
            device_name=named["name"],
            driver=named["driver"],
            command=f"pytest conformance --parity-device {device} --parity-tier {last['tier']} --parity-report out",
            **{name: last[name] for name in ("versions", "created_utc", "numerical_digest", "spec_digest")},
            numbers={
                "tests_passed": outcomes.count("passed"),
                "verdicts": len(verdicts),
                "largest_share": max(map(share_of, verdicts), default=0.0),
                "run_to_run": max((float(case["run_to_run"] or 0) for case in cases), default=0.0),
            },
            goals=_SHOWN_GOALS,
            meanings={
                "tests_passed": "tests that passed",
                "verdicts": "judged quantities",
                "largest_share": "largest share of a budget",
                "run_to_run": "largest difference between two equal runs",
            },
        )


def _of_evidence(
    wanted: EvidenceRequirement, evidence: Sequence[Evidence], folder: Path | str, now: datetime
) -> list[Objection]:
    command = _EVIDENCE_COMMANDS.get(wanted.kind, "").format(folder=shlex.quote(str(folder)))
    mine = [each for each in evidence if (each.kind, each.device) == (wanted.kind, wanted.device)]
    complaints = [] if mine else [(f"no evidence of kind {wanted.kind} for {wanted.device}.", "")]
    for each in mine:
        about = f"evidence {each.name}"
        if not each.is_fresh():
            complaints.append(
                (f"{about} is stale: it is valid for other numerical sources; run again: {each.command}", "")
            )
        age = _age(each.created_utc, now)
        if age is None or age < -_CLOCK_SKEW:
            complaints.append((f"{about} was written at {each.created_utc}, which has not come yet.", ""))
        if (each.driver is None) != (each.device == "cpu"):
            complaints.append((f"{about} contradicts itself: {each.device} with driver {each.driver}.", ""))
        missed = {name: each.goals[name] for name in each.missed}
        for name, goal in wanted.goals.items():
            if name not in each.numbers:
                complaints.append((f"{about} has no number {name}; the goal is {goal}.", ""))
            elif not goal.is_met(each.numbers[name]):
                missed[name] = goal
        for name, goal in missed.items():
            complaints.append((f"{about}: {name} is {each.numbers[name]:g}; the goal is {goal}.", _REPAIR))
    return [Objection(text, command, first) for text, first in complaints]
