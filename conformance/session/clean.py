"""Clean runs: fresh draws of a right network, which no clause may call wrong.

They say two things: how often the suite cries wolf, and how much of every budget a right network uses, so that the
factors of the rules are measured numbers.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from conformance.cases.draws import GRAPHS, draw_case
from conformance.errors import StudyError
from conformance.judge.measure import Key, Measurement, judge
from conformance.judge.measured import load_measured
from conformance.judge.rules import Verdict, share_of
from conformance.judge.truth import Truth
from conformance.provenance.digest import numerical_digest
from conformance.provenance.evidence import Evidence, Goal, measured_here
from conformance.subjects.torch import TorchSubject
from conformance.suite import DTYPES

_DRAWS = {64: 4, 128: 2, 256: 1}
TURNS = tuple(name for turn in range(4) for name, graph in GRAPHS.items() if turn < _DRAWS[graph.N])
"""The graphs in turn, those of large patches less often: one of them takes as long as ten others."""

PROGRESS = 10
"""Draws between two lines of progress."""


@dataclass(frozen=True)
class CleanRun:
    """One fresh draw of a right network.

    Attributes:
        graph: name in ``GRAPHS``.
        seed: of the draw.
        modes: probe modes.
        device: torch device.
        dtype: of the candidate.
        verdicts: how many there were.
        alarms: what failed, in words.
        shares: judgement clause → largest share of the budgets of e and of m, each with its quantity.
        code: digest of the numerical sources that it is valid for.
    """

    graph: str
    seed: int
    modes: int
    device: str
    dtype: str
    verdicts: int
    alarms: Sequence[str]
    shares: Mapping[str, Sequence[tuple[float, str]]]
    code: str

    @property
    def case(self) -> str:
        """The call that makes this case again."""
        return f"draw_case(GRAPHS[{self.graph!r}], {self.seed}, batch=1, modes={self.modes})"


def clean_runs(graph: str, seed: int, modes: int, device: str, dtypes: Sequence[str] = DTYPES) -> Iterator[CleanRun]:
    """Draw one case and judge it in each dtype; they share the truth."""
    measured, code = load_measured(), numerical_digest("clean")
    measurement = Measurement(Truth(draw_case(GRAPHS[graph], seed, batch=1, modes=modes)), measured.limits)
    for dtype in dtypes:
        found = measurement.of(TorchSubject(device, dtype))
        verdicts = judge(found, measured.gains.envelope, measured.limits, dtype)
        failed = tuple(verdict.explain() for verdict in verdicts.values() if not verdict.passed)
        yield CleanRun(graph, seed, modes, device, dtype, len(verdicts), failed, _shares(verdicts), code)


def _shares(verdicts: Mapping[Key, Verdict]) -> dict[str, tuple[tuple[float, str], ...]]:
    """Return, for each judgement clause, the largest share of an e budget and of an m budget."""
    largest: dict[str, tuple[tuple[float, str], ...]] = {}
    for (clause, name), verdict in verdicts.items():
        found = tuple(
            (share_of(getattr(verdict.candidate, part), getattr(verdict.budget, part)), name) for part in ("e", "m")
        )
        before = largest.get(clause, ((0.0, ""), (0.0, "")))
        largest[clause] = tuple(max(pair) for pair in zip(before, found, strict=True))
    return largest


@dataclass
class CleanStudy:
    """Many clean runs.

    Attributes:
        runs: number of draws; each is judged in every dtype.
        alarms: draws that raised one, as the call that makes the case again and what failed.
        verdicts: number of verdicts of all runs.
        shares: dtype → judgement clause → largest share of a budget of e and of m, with graph and quantity.
    """

    runs: int = 0
    verdicts: int = 0
    alarms: list[str] = field(default_factory=list)
    shares: dict[str, dict[str, list[tuple[float, str]]]] = field(default_factory=dict)

    def add(self, found: Sequence[CleanRun]) -> None:
        """Count the runs of one draw."""
        self.runs += 1
        for run in found:
            self.verdicts += run.verdicts
            self.alarms += [f"{run.case} in {run.dtype} on {run.device}: {alarm}" for alarm in run.alarms]
            table = self.shares.setdefault(run.dtype, {})
            for clause, pairs in run.shares.items():
                before = table.get(clause, [(0.0, ""), (0.0, "")])
                now = [(share, f"{run.graph} {name}") for share, name in pairs]
                table[clause] = [max(pair) for pair in zip(before, now, strict=True)]

    def largest(self, dtype: str) -> tuple[float, float]:
        """Return the largest share of any e budget and of any m budget."""
        rows = self.shares.get(dtype, {}).values()
        return max((row[0][0] for row in rows), default=0.0), max((row[1][0] for row in rows), default=0.0)

    def describe(self) -> Iterator[str]:
        """Yield the study as lines: alarms, and how much of each budget was used at most."""
        yield f"{self.runs} clean draws, {self.verdicts} verdicts, {len(self.alarms)} false alarms"
        yield from (f"  {alarm}" for alarm in self.alarms)
        limits = load_measured().limits
        for dtype, table in self.shares.items():
            yield f"{dtype}: largest share of a budget"
            for clause, ((e, e_name), (m, m_name)) in sorted(table.items()):
                yield f"  {clause:<16} e {e:6.1%} ({e_name})   m {m:6.1%} ({m_name})"
            e, m = self.largest(dtype)
            if dtype == "float32":
                yield (
                    f"  a right network needs a factor of {e * limits.e_factor:.2f} of the {limits.e_factor:g} for e, "
                    f"and {m * limits.m_factor:.2f} of the {limits.m_factor:g} for m"
                )

    def evidence(self, command: str, device: str) -> Evidence:
        """Return the numbers of the study, ready to be kept."""
        limits = load_measured().limits
        e, m = self.largest("float32")
        return measured_here(
            "clean",
            command,
            {
                "runs": self.runs,
                "verdicts": self.verdicts,
                "false_alarms": len(self.alarms),
                "e_factor_needed": e * limits.e_factor,
                "m_factor_needed": m * limits.m_factor,
            },
            device=device,
            goals={
                "runs": Goal(at_least=1000),
                "false_alarms": Goal(at_most=0),
                "e_factor_needed": Goal(at_most=limits.e_factor),
                "m_factor_needed": Goal(at_most=limits.m_factor),
            },
            meanings={
                "runs": "fresh draws of a right network, each judged in float64 and float32",
                "verdicts": "verdicts of all draws",
                "false_alarms": "verdicts that call a right network wrong",
                "e_factor_needed": "e factor of the float32 rule that would have passed every draw",
                "m_factor_needed": "m factor of the float32 rule that would have passed every draw",
            },
            notes=tuple(self.alarms),
        )


def clean_study(
    runs: int, log: Path, *, device: str = "cpu", progress: Callable[[str], None] = lambda line: None
) -> CleanStudy:
    """Judge fresh draws over all graphs in turn; go on where a log ends.

    Args:
        runs: draws in all, those of the log included.
        log: a line of JSON for each draw, appended as soon as it is judged.
        device: torch device.
        progress: called with a line now and then.

    Raises:
        StudyError: the log cannot be read, or its draws were judged by other code or on another device.
    """
    study = CleanStudy()
    for found in _read(log, device):
        if study.runs < runs:
            study.add(found)
    if study.runs:
        progress(f"{study.runs} draws taken from {log}")
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as file:
        while study.runs < runs:
            number = study.runs
            seed, modes = secrets.randbits(32), 1 + number % 2
            found = list(clean_runs(TURNS[number % len(TURNS)], seed, modes, device))
            file.write(json.dumps([asdict(run) for run in found]) + "\n")
            file.flush()
            study.add(found)
            if study.runs % PROGRESS == 0 or study.runs == runs:
                e, m = study.largest("float32")
                progress(
                    f"{study.runs}/{runs} draws, {len(study.alarms)} false alarms; float32 uses at most {e:.0%} of an "
                    f"e budget, {m:.0%} of an m budget"
                )
    return study


def _read(log: Path, device: str) -> Iterator[list[CleanRun]]:
    if not log.exists():
        return
    code = numerical_digest("clean")
    for number, line in enumerate(log.read_text(encoding="utf-8").splitlines(), 1):
        try:
            found = [
                CleanRun(**{**run, "shares": {name: tuple(map(tuple, row)) for name, row in run["shares"].items()}})
                for run in json.loads(line)
            ]
        except (ValueError, TypeError, KeyError, AttributeError) as err:
            raise StudyError(
                f"{log}, line {number}: no clean run ({type(err).__name__}: {err}). Remove the line, or give another "
                "log."
            ) from err
        if any((run.code, run.device) != (code, device) for run in found):
            raise StudyError(
                f"{log}, line {number}: was judged by other code than is here, or on another device than {device}; "
                "begin the study anew with another log."
            )
        yield found
