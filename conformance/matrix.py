"""The fault matrix: every seeded fault against the checks of the suite.

A run with a fault looks at the steps outside the network first and then at the network, as ``pytest conformance`` does.
The first step or stage that fails is what the report would name. What does not call what is wrong is left out: it does
the same as without the fault, and passes.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from conformance.bench import Remembering
from conformance.calibrate import reference_runs
from conformance.causes import cause_of, ranked_stages
from conformance.draws import GRAPHS, draw_case
from conformance.evidence import Evidence, Goal, measured_here
from conformance.faults import all_faults
from conformance.gains import Gains, widest
from conformance.measured import load_measured
from conformance.parity import Measurement, judge
from conformance.reach import Codes, called_by, may_change, reaches
from conformance.seeding import Fault
from conformance.step import StepBench
from conformance.steps import all_steps
from conformance.torch_subject import TorchSubject
from conformance.truth import Truth

REPLAY, LIVE = "replay", "live"
"""Where the envelope of the reference comes from: the specification, or Keras that runs here."""

GOALS = {"detected": 0.98, "right stage first": 0.90, "cause named": 0.80}
SEED, BATCH, MODES = 7, 2, 2
TOP = 3


@dataclass(frozen=True)
class Finding:
    """What one run with a fault came to.

    Attributes:
        fault: what was seeded.
        dtype: of the network.
        envelope: ``replay`` or ``live``.
        named: the steps and stages that failed, the first named first; at most three.
        cause: what the report calls it; empty if no known mistake explains it.
        error: what the network raised; empty if nothing.
    """

    fault: Fault
    dtype: str
    envelope: str
    named: tuple[str, ...]
    cause: str
    error: str = ""

    @property
    def detected(self) -> bool:
        """Whether anything failed."""
        return bool(self.named or self.error)

    @property
    def first(self) -> bool:
        """Whether the right stage is named first."""
        return self.named[:1] == (self.fault.stage,)

    @property
    def among_first(self) -> bool:
        """Whether the right stage is among the first three."""
        return self.fault.stage in self.named

    @property
    def cause_named(self) -> bool:
        """Whether the cause is named; of a fault that has a name."""
        return self.fault.cause is not None and self.fault.cause in self.cause

    @property
    def as_it_should(self) -> bool:
        """Whether the right stage is named first, and the cause if it has a name."""
        return self.first and (self.cause_named or self.fault.cause is None)

    def describe(self) -> str:
        """Say what became of the fault in one line."""
        verdict = "missed" if not self.detected else "named" if self.first else "elsewhere"
        where = " → ".join(self.named) or "nothing"
        cause = self.cause or "no known cause"
        wanted = "" if self.fault.cause is None or self.cause_named else f", expected {self.fault.cause}"
        what = f"{self.fault.name} at {self.fault.stage}"
        return f"{verdict:<9} {self.fault.area:<13} {self.dtype} {self.envelope}  {what}: {where}; {cause}{wanted}"


@cache
def measurement(graph: str) -> Measurement:
    """Return the drawn case on which faults of a graph are looked for: odd probes, two groups, two modes."""
    case = dataclasses.replace(draw_case(GRAPHS[graph], SEED, batch=BATCH, modes=MODES), name=f"faults/{graph}")
    return Measurement(Truth(case), load_measured().limits)


@cache
def _gains(graph: str, envelope: str) -> Gains:
    spec = load_measured().gains
    if envelope == REPLAY:
        return spec
    from conformance.keras_subject import KerasSubject

    runs = reference_runs(measurement(graph), KerasSubject(GRAPHS[graph], "float32"))
    return widest(runs).widened_when_forced(spec)


@cache
def _calls_of_network(graph: str, dtype: str) -> Codes:
    """Return what the measurements of a network call that nothing is wrong with."""
    return called_by(lambda: measurement(graph).of(Remembering(TorchSubject("cpu", dtype))))


def look_for(fault: Fault, dtypes: Sequence[str], envelopes: Sequence[str]) -> Iterator[Finding]:
    """Seed a fault and judge everything that it can change; yield a finding for each dtype and envelope.

    Args:
        fault: what is seeded.
        dtypes: of the network.
        envelopes: ``replay``, ``live`` or both. Float64 needs none, and counts once.
    """
    here, limits = measurement(fault.graph), load_measured().limits
    truth = here.truth
    # What is right is computed before anything is wrong: truth, condition and envelopes.
    for dtype in dtypes:
        here.condition.free(dtype)
        here.condition.forced(dtype)
    gains = {envelope: _gains(fault.graph, envelope) for envelope in envelopes}
    reached = [step for step in all_steps() if may_change(step, fault)]
    network = {dtype: reaches(fault, _calls_of_network(fault.graph, dtype)) for dtype in dtypes}
    with warnings.catch_warnings(), fault.seeded():
        # What a broken network warns of is no finding: its numbers are.
        warnings.simplefilter("ignore")
        steps = StepBench()
        for step in reached:
            steps.report(step)
        before = [report for report in steps.failed if not report.step.behind_network]
        behind = [report for report in steps.failed if report.step.behind_network]
        for dtype in dtypes:
            subject = Remembering(TorchSubject("cpu", dtype))
            measured = here.of(subject) if network[dtype] else {}
            stage_of = {key: quantity.stage for key, quantity in measured.items()}
            for envelope in envelopes if dtype == "float32" else envelopes[:1]:
                verdicts = judge(measured, gains[envelope].envelope, limits, dtype)
                ranked = list(ranked_stages(verdicts, stage_of, truth.oracle.inputs))
                ids = [[report.step.id for report in reports] for reports in (before, behind)]
                named = (*ids[0], *ranked, *ids[1])[:TOP]
                if ranked and not before:
                    cause = cause_of(truth, subject.last_forced, verdicts, ranked[0])
                else:
                    cause = next((report.cause for report in (*before, *behind)), None)
                yield Finding(fault, dtype, envelope, named, cause.name if cause else "", subject.error)


@dataclass(frozen=True)
class Matrix:
    """All findings of a run over the catalogue."""

    findings: tuple[Finding, ...]

    def of(self, dtype: str, envelope: str) -> list[Finding]:
        """Return the findings of one total."""
        return [each for each in self.findings if (each.dtype, each.envelope) == (dtype, envelope)]

    def rates(self, dtype: str, envelope: str) -> dict[str, float]:
        """Return the shares that the goals are about, and the number of faults."""
        chosen = self.of(dtype, envelope)
        named = [each for each in chosen if each.fault.cause is not None]
        return {
            "faults": float(len(chosen)),
            "detected": _share(chosen, lambda each: each.detected),
            "right stage first": _share(chosen, lambda each: each.first),
            "right stage among three": _share(chosen, lambda each: each.among_first),
            "faults with a named cause": float(len(named)),
            "cause named": _share(named, lambda each: each.cause_named),
        }

    @property
    def rows(self) -> list[tuple[str, str]]:
        """Dtype and envelope of each total."""
        return list(dict.fromkeys((each.dtype, each.envelope) for each in self.findings))

    @property
    def missed_goals(self) -> list[str]:
        """Say which goal was missed, and by how much."""
        return [
            f"{dtype}, {envelope}: {name} {found[name]:.1%}, goal {goal:.0%}"
            for dtype, envelope in self.rows
            for found in [self.rates(dtype, envelope)]
            for name, goal in GOALS.items()
            if found[name] < goal
        ]

    def describe(self) -> Iterator[str]:
        """Yield every fault that is not named as it should be, then the totals."""
        yield from (each.describe() for each in self.findings if not each.as_it_should)
        for area in dict.fromkeys(each.fault.area for each in self.findings):
            mine = [each for each in self.findings if each.fault.area == area]
            first = sum(each.first for each in mine)
            names = {each.fault.name for each in mine}
            yield f"  {area:<13} {len(names):>3} faults, {first} of {len(mine)} runs name the stage first"
        goals = {name: f"(goal ≥ {goal:.0%})" for name, goal in GOALS.items()}
        for dtype, envelope in self.rows:
            found = self.rates(dtype, envelope)
            yield (
                f"{dtype}, {envelope}: {found['faults']:.0f} faults; detected {found['detected']:.1%} "
                f"{goals['detected']}, right stage first {found['right stage first']:.1%} "
                f"{goals['right stage first']}, among the first three {found['right stage among three']:.1%}; cause "
                f"named {found['cause named']:.1%} of {found['faults with a named cause']:.0f} with a name "
                f"{goals['cause named']}"
            )

    def evidence(self, command: str) -> list[Evidence]:
        """Return the totals as evidence, one for each dtype and envelope."""
        names = {
            "faults": "faults",
            "detected": "detected",
            "right stage first": "stage_first",
            "right stage among three": "stage_among_three",
            "faults with a named cause": "faults_with_cause",
            "cause named": "cause_named",
        }
        found = []
        for dtype, envelope in self.rows:
            rates = self.rates(dtype, envelope)
            found.append(
                measured_here(
                    "faults",
                    command,
                    {names[name]: value for name, value in rates.items()},
                    goals={names[name]: Goal(at_least=goal) for name, goal in GOALS.items()},
                    meanings={new: name for name, new in names.items()},
                    case=f"{dtype}_{envelope}",
                    notes=tuple(each.describe() for each in self.of(dtype, envelope) if not each.as_it_should),
                )
            )
        return found


def _share(findings: Sequence[Finding], holds: Callable[[Finding], bool]) -> float:
    return sum(map(holds, findings)) / len(findings) if findings else 1.0


def run_matrix(
    dtypes: Sequence[str], envelopes: Sequence[str], progress: Callable[[str], None] = lambda line: None
) -> Matrix:
    """Look for every fault of the catalogue."""
    findings: list[Finding] = []
    catalogue = all_faults()
    for number, fault in enumerate(catalogue, 1):
        found = list(look_for(fault, dtypes, envelopes))
        findings += found
        progress(f"{number}/{len(catalogue)} {found[0].describe()}")
    return Matrix(tuple(findings))
