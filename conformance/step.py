"""A step outside the network, held against the oracle alone.

A step is judged as a stage of the network is: it gets what is right, by computation or from the step before, gives
something, and that is held against plain NumPy. So the first step that fails is the one that is wrong, and known
mistakes name its cause.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar, cast

import numpy as np

from conformance.causes import Cause, explain
from conformance.hypotheses import Arrays, Hypothesis, mistakes_everywhere
from conformance.judge import Errors, Verdict, deviation, errors
from ptycho_torch.errors import PtychoError

Made = TypeVar("Made")

FLOAT64 = 1e-12
"""Limit of a step whose numbers are float64: those of sums of some thousand terms, each rounded at 2.2e-16."""

SINGLE, DOUBLE = 2e-7, 1e-12
"""How far a mistake made in float32, and in float64, may be from the same mistake made by the oracle."""

RAISED = (RuntimeError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError, OSError, PtychoError)
"""What a broken step raises. Anything else is no verdict about the step and ends the run."""


@dataclass(frozen=True)
class Outcome:
    """What a step gave, beside what it should have given.

    Attributes:
        expected: name → array; numbers are compared as numbers, everything else for equality.
        found: name → array; a name that is missing is a failure.
        limit: largest scale-free e of a number; 0 asks for equality.
        mistakes: what known mistakes would give, under names of ``expected``; a function where that is much work.
    """

    expected: Arrays
    found: Arrays
    limit: float = 0.0
    mistakes: Sequence[Hypothesis] | Callable[[], Iterable[Hypothesis]] = ()

    def known_mistakes(self) -> Iterable[Hypothesis]:
        """Return the mistakes."""
        return self.mistakes() if callable(self.mistakes) else self.mistakes


@dataclass(frozen=True)
class Step:
    """One step.

    Attributes:
        id: area and name, ``data.offsets``; the id of its test.
        clauses: ids of the clauses that say what it does.
        run: does it.
        needs: modules that it imports and that a bare installation may lack.
    """

    id: str
    clauses: tuple[str, ...]
    run: Callable[[StepBench], Outcome]
    needs: tuple[str, ...] = ()

    @property
    def area(self) -> str:
        """``configuration``, ``bridge``, ``data``, ``forward`` or ``optimiser``."""
        return self.id.partition(".")[0]

    @property
    def behind_network(self) -> bool:
        """Whether a wrong network spoils the step; what comes before the network spoils that."""
        return self.area == "optimiser"


@dataclass(frozen=True)
class StepReport:
    """What became of one step.

    Attributes:
        step: which.
        verdicts: by name.
        cause: the known mistake that explains it, if it failed; None if none does.
        error: what it raised; empty if nothing.
    """

    step: Step
    verdicts: Mapping[str, Verdict] = field(default_factory=dict)
    cause: Cause | None = None
    error: str = ""

    @property
    def passed(self) -> bool:
        """Whether every verdict holds."""
        return not self.error and bool(self.verdicts) and all(verdict.passed for verdict in self.verdicts.values())

    @property
    def cause_name(self) -> str:
        """The known mistake that explains a failure, or that there is none; empty if nothing failed."""
        if self.passed:
            return ""
        return self.cause.name if self.cause else "no known cause"

    def explain(self) -> str:
        """Say what became of it in one line."""
        what = f"step {self.step.id}"
        if self.passed:
            return f"passed  {what}"
        failed = [verdict.explain() for verdict in self.verdicts.values() if not verdict.passed]
        why = self.error or (failed[0] if failed else "nothing was compared")
        cause = f"; cause: {self.cause_name}"
        return f"FAILED  {what}{cause}; {why}"


class StepBench:
    """Runs steps on demand and keeps what was found; what several steps need is made once."""

    def __init__(self) -> None:
        self.reports: dict[str, StepReport] = {}
        self._made: dict[object, object] = {}

    def once(self, make: Callable[[], Made]) -> Made:
        """Return what a function makes, the same for every step that asks."""
        if make not in self._made:
            self._made[make] = make()
        return cast(Made, self._made[make])

    @property
    def failed(self) -> list[StepReport]:
        """Return the steps that failed, in the order in which they were judged."""
        return [report for report in self.reports.values() if not report.passed]

    def report(self, step: Step) -> StepReport:
        """Judge a step."""
        if step.id not in self.reports:
            self.reports[step.id] = judge_step(step, self)
        return self.reports[step.id]


def judge_step(step: Step, bench: StepBench) -> StepReport:
    """Run a step and judge it; a step that raises has failed."""
    try:
        outcome = step.run(bench)
    except RAISED as err:
        return StepReport(step, error=f"{type(err).__name__}: {err}".splitlines()[0])
    verdicts = {name: _verdict(step, name, outcome) for name in outcome.expected}
    failed = [name for name, verdict in verdicts.items() if not verdict.passed]
    return StepReport(step, verdicts, _cause(outcome, failed) if failed else None)


def _verdict(step: Step, name: str, outcome: Outcome) -> Verdict:
    expected, found = outcome.expected[name], outcome.found.get(name)
    budget = Errors(outcome.limit, np.inf)
    if not np.issubdtype(expected.dtype, np.inexact):
        same = found is not None and found.shape == expected.shape and np.array_equal(found, expected)
        difference = Errors(0.0, 0.0) if same else Errors(np.inf, np.inf)
        return Verdict(step.id, name, None, difference, budget, "" if same else _difference(found, expected))
    measured = deviation(_number(found), _wide(expected))
    return Verdict(step.id, name, None, errors([measured]), budget, measured.mismatch)


def _wide(array: np.ndarray) -> np.ndarray:
    return array.astype(np.result_type(array, np.float64))


def _number(found: np.ndarray | None) -> np.ndarray | None:
    return None if found is None else _wide(found)


def _difference(found: np.ndarray | None, expected: np.ndarray) -> str:
    if found is None:
        return "missing"
    if found.shape != expected.shape:
        return f"shape {found.shape}, expected {expected.shape}"
    first = int(np.flatnonzero((found != expected).ravel())[0])
    return f"first difference at flat index {first}: {found.flat[first]!s}, expected {expected.flat[first]!s}"


def _cause(outcome: Outcome, failed: Sequence[str]) -> Cause | None:
    """Name the mistake that explains every part that failed, or at least the first."""
    if any(name not in outcome.found for name in failed):
        return None
    cause = _cause_of(outcome, failed)
    return _cause_of(outcome, failed[:1]) if cause is None and len(failed) > 1 else cause


def _cause_of(outcome: Outcome, failed: Sequence[str]) -> Cause | None:
    if not all(np.issubdtype(outcome.expected[name].dtype, np.number) for name in failed):
        return _cause_of_texts(outcome, failed)
    found = {name: np.asarray(_number(outcome.found[name])) for name in failed}
    expected = {name: _wide(outcome.expected[name]) for name in failed}
    single = any(outcome.found[name].dtype in (np.float32, np.complex64) for name in failed)
    budgets = {name: Errors(max(outcome.limit, SINGLE if single else DOUBLE), np.inf) for name in failed}
    return explain(found, expected, budgets, itertools.chain(outcome.known_mistakes(), mistakes_everywhere(expected)))


def _cause_of_texts(outcome: Outcome, failed: Sequence[str]) -> Cause | None:
    for mistake in outcome.known_mistakes():
        if all(name in mistake.gives and np.array_equal(mistake.gives[name], outcome.found[name]) for name in failed):
            return Cause(mistake.name, 0.0)
    return None
