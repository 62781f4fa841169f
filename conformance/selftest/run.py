"""Put mistakes and rewrites into the product, one after the other, and judge what each changes."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from conformance.cases.draws import GRAPHS, draw_case
from conformance.checks.table import CHECKS, checked
from conformance.errors import DocumentError
from conformance.judge.causes import cause_of, ranked_stages
from conformance.judge.measure import Measurement, judge
from conformance.judge.measured import load_measured
from conformance.judge.truth import Truth
from conformance.provenance.evidence import Evidence, Goal, measured_here
from conformance.report.reproduction import ran, reproduction
from conformance.selftest.fault import Fault
from conformance.selftest.network import NETWORK
from conformance.selftest.outside import OUTSIDE
from conformance.selftest.rewrites import REWRITES
from conformance.session.bench import Remembering
from conformance.subjects.torch import TorchSubject
from conformance.suite import DTYPES

SEED, BATCH, MODES = 7, 2, 2
GOALS = {"detected": 0.98, "stage_first": 0.90, "cause_named": 0.80, "rewrites_passed": 1.0}
MEANINGS = {
    "faults": "mistakes in network, bridge, data, configuration and training",
    "detected": "detected",
    "network": "of them in the network, each in float64 and float32",
    "stage_first": "of those in the network, the right stage is named first",
    "cause_named": "of those in the network, the right cause is named",
    "rewrites": "equivalent rewrites of the network",
    "rewrites_passed": "of them, no verdict changes",
}


@dataclass(frozen=True)
class Finding:
    """What one mistake, or one rewrite, came to.

    Attributes:
        fault: what was put in.
        dtype: of the network; empty outside of it.
        named: stages that failed, the first named first; outside the network, the check if it failed.
        cause: that the report names; empty if none.
        error: what the network raised; empty if nothing.
    """

    fault: Fault
    dtype: str
    named: tuple[str, ...]
    cause: str = ""
    error: str = ""

    @property
    def detected(self) -> bool:
        """Whether anything failed."""
        return bool(self.named or self.error)

    @property
    def first(self) -> bool:
        """Whether the right place is named first."""
        return self.named[:1] == (self.fault.where,)

    @property
    def cause_named(self) -> bool:
        """Whether the right cause is named; always true outside the network, where none is asked for."""
        return self.fault.cause in self.cause

    def describe(self) -> str:
        """Return one line for people."""
        where = " → ".join(self.named[:3]) or "nothing"
        wanted = "" if self.cause_named else f", expected {self.fault.cause}"
        error = f" ({self.error})" if self.error else ""
        what = f"{self.fault.name} at {self.fault.where or 'no stage'} {self.dtype}".rstrip()
        return f"{what}: {where}; {self.cause or 'no known cause'}{wanted}{error}"


@cache
def measurement(graph: str) -> Measurement:
    """Return the drawn case on which mistakes are looked for: odd probes, two groups, two modes."""
    case = dataclasses.replace(draw_case(GRAPHS[graph], SEED, batch=BATCH, modes=MODES), name=f"selftest/{graph}")
    return Measurement(Truth(case), load_measured().limits)


def in_network(fault: Fault, dtypes: Sequence[str] = DTYPES, device: str = "cpu") -> Iterator[Finding]:
    """Put a mistake, or a rewrite, into the network on a device; yield a finding for each dtype."""
    here, measured = measurement(fault.graph), load_measured()
    for dtype in dtypes:
        # What is right is computed before anything is wrong.
        here.condition.free(dtype)
        here.condition.forced(dtype)
        with warnings.catch_warnings(), fault.seeded():
            # What a broken network warns of is no finding: its numbers are.
            warnings.simplefilter("ignore")
            subject = Remembering(TorchSubject(device, dtype))
            found = here.of(subject)
        stage_of = {key: quantity.stage for key, quantity in found.items()}
        verdicts = judge(found, measured.gains.envelope, measured.limits, dtype)
        ranked = tuple(ranked_stages(verdicts, stage_of, here.truth.oracle.inputs))
        cause = cause_of(here.truth, subject.last_forced, verdicts, ranked[0]) if ranked else None
        yield Finding(fault, dtype, ranked, cause.name if cause else "", subject.error)


def outside(fault: Fault) -> Finding:
    """Make a mistake outside the network, and run the check that has to fail."""
    check = CHECKS[fault.where]
    with warnings.catch_warnings(), fault.seeded():
        warnings.simplefilter("ignore")
        found = checked(check)
    return Finding(fault, "", () if found.passed else (check.id,), found.cause.name if found.cause else "")


def reproduced(fault: Fault) -> str:
    """Return the program that fails with a mistake in the network and ends without it.

    Raises:
        DocumentError: no program shows the mistake, or it fails without it too.
    """
    with warnings.catch_warnings(), fault.seeded():
        warnings.simplefilter("ignore")
        script = reproduction(GRAPHS[fault.graph], fault.where)
    try:
        ran(script)
    except Exception as err:
        raise DocumentError(f"{fault.name}: the program fails in the right network, too: {err!r}") from err
    return script


def run(progress: Callable[[str], None] = lambda line: None) -> tuple[dict[str, float], list[str]]:
    """Go through all mistakes and rewrites.

    Returns:
        The numbers of ``MEANINGS``, and a line for each finding that is not as it should be.
    """
    findings: list[Finding] = []
    for fault in (*OUTSIDE, *NETWORK):
        some = [outside(fault)] if fault in OUTSIDE else list(in_network(fault))
        findings += some
        for each in some:
            progress(each.describe())
    rewritten = [each for rewrite in REWRITES for each in in_network(rewrite)]
    network = [each for each in findings if each.dtype]
    changed = {each.fault.name for each in rewritten if each.detected}
    numbers = {
        "faults": float(len(OUTSIDE) + len(NETWORK)),
        "detected": _share(findings, lambda each: each.detected),
        "network": float(len(NETWORK)),
        "stage_first": _share(network, lambda each: each.first),
        "cause_named": _share(network, lambda each: each.cause_named),
        "rewrites": float(len(REWRITES)),
        "rewrites_passed": 1 - len(changed) / len(REWRITES),
    }
    wrong = [each for each in findings if not (each.first and each.cause_named)]
    return numbers, [each.describe() for each in (*wrong, *(each for each in rewritten if each.detected))]


def _share(findings: Sequence[Finding], holds: Callable[[Finding], bool]) -> float:
    return sum(map(holds, findings)) / len(findings)


def evidence(numbers: dict[str, float], notes: Sequence[str], command: str) -> Evidence:
    """Return the numbers of a run as evidence."""
    goals = {name: Goal(at_least=goal) for name, goal in GOALS.items()}
    return measured_here("faults", command, numbers, goals=goals, meanings=MEANINGS, notes=notes)
