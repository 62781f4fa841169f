"""Naming the cause: which known mistake, made on purpose in the truth, gives what the candidate gave?

A stage that fails when it is fed with the truth is computed again by the oracle, each time with one mistake that
people make. The first mistake with which the candidate agrees, within the budget of its verdict, is the cause that a
report names. Mistakes are tried in the order in which they are listed, simple ones first. Nothing of this runs unless
something failed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from conformance.cases.case import ForcedRun
from conformance.judge.measure import (
    BACKWARD_FORCED,
    BACKWARD_FREE,
    FORWARD_FORCED,
    FORWARD_FREE,
    GRADIENT_FORCED,
    LOSS,
    Key,
)
from conformance.judge.mistakes.arrays import Arrays, Hypothesis
from conformance.judge.mistakes.backward import backward_mistakes, loss_mistakes
from conformance.judge.mistakes.forward import forward_mistakes
from conformance.judge.rules import Errors, Verdict, compare, share_of
from conformance.judge.truth import Truth

SLACK = 4.0
"""A mistaken stage may be conditioned worse than the right one: how much wider than its budget agreement may be."""


@dataclass(frozen=True)
class Cause:
    """A mistake that explains a failure.

    Attributes:
        name: the mistake, for example ``missing fftshift``.
        e: scale-free error of the candidate once the truth makes the same mistake.
    """

    name: str
    e: float

    def __str__(self) -> str:
        return f"{self.name} (with it, e = {self.e:.1e})"


def explain(
    found: Arrays, expected: Arrays, budgets: Mapping[str, Errors], mistakes: Iterable[Hypothesis]
) -> Cause | None:
    """Return the first mistake that gives what was found; None if no known one does.

    Args:
        found: what the candidate gave, by name; all of it has to be explained.
        expected: what is right.
        budgets: how far each may be off.
        mistakes: each with what it gives under the same names.
    """
    for mistake in mistakes:
        gives, where = mistake.gives, mistake.where
        agreed = [_agreement(found[name], gives.get(name), budgets[name], where) for name in found]
        if None in agreed:
            continue
        # A mistake that changes nothing here, as a flip of something symmetric, explains nothing.
        if any(_agreement(gives[name], expected[name], budgets[name], where) is None for name in found):
            return Cause(mistake.name, max(each for each in agreed if each is not None))
    return None


def _agreement(
    found: np.ndarray, given: np.ndarray | None, budget: Errors, where: np.ndarray | None = None
) -> float | None:
    """Return the error of ``found`` against ``given``; None if that is outside the budget."""
    if given is None or found.shape != given.shape or (np.iscomplexobj(found) and not np.iscomplexobj(given)):
        return None
    if where is not None:
        found, given = found[where], given[where]
    finite = np.isfinite(given)
    if not np.array_equal(np.isfinite(found), finite):
        return None
    wide = found[finite].astype(np.complex128 if np.iscomplexobj(given) else np.float64)
    errors = compare(wide, given[finite])
    used = max(share_of(errors.e, SLACK * budget.e), share_of(errors.m, SLACK * budget.m))
    return errors.e if used <= 1 else None


def cause_of(truth: Truth, run: ForcedRun, verdicts: Mapping[Key, Verdict], stage: str) -> Cause | None:
    """Name the cause of the first failing stage.

    Args:
        truth: of the case.
        run: what the candidate gave, fed with the truth.
        verdicts: of the case.
        stage: the first failing one, ``loss`` for the losses.
    """
    if stage == "loss":
        failed = _failed(verdicts, (LOSS,), list(truth.losses), prefix="forced.")
        if failed or not verdicts.get((LOSS, "forced"), _PASSED).passed:
            return _cause_of_losses(truth, run, verdicts)
    else:
        verdict = verdicts[FORWARD_FORCED, stage]
        if not verdict.passed:
            values = run.stages.get(stage)
            if values is None:
                return None
            expected = {stage: truth.stages[stage]}
            return explain({stage: values}, expected, {stage: verdict.budget}, forward_mistakes(truth, stage, values))
    return _cause_of_gradient(truth, run, verdicts, stage)


_PASSED = Verdict("", "", None, Errors(0.0, 0.0), Errors(1.0, 1.0))


def _failed(
    verdicts: Mapping[Key, Verdict], clauses: Sequence[str], names: Iterable[str], prefix: str = ""
) -> dict[str, Verdict]:
    return {
        name: verdict
        for name in names
        for clause in clauses
        if (verdict := verdicts.get((clause, prefix + name))) is not None and not verdict.passed
    }


def _cause_of_losses(truth: Truth, run: ForcedRun, verdicts: Mapping[Key, Verdict]) -> Cause | None:
    pooled = verdicts.get((LOSS, "forced"))
    found = {name: np.array(value, dtype=np.float64) for name, value in run.losses.items()}
    expected = {name: np.array(value) for name, value in truth.losses.items()}
    budgets = {name: verdicts[LOSS, f"forced.{name}"].budget if pooled is None else pooled.budget for name in expected}
    if set(found) != set(expected):
        return None
    return explain(found, expected, budgets, loss_mistakes(truth))


def _cause_of_gradient(truth: Truth, run: ForcedRun, verdicts: Mapping[Key, Verdict], stage: str) -> Cause | None:
    """Explain what comes back from a stage whose output is right."""
    if stage == "loss":
        pulled = truth.oracle.loss_pullback(truth.stages, truth.network_input, truth.loss_weights)
        by_weight: dict[str, np.ndarray] = {}
    else:
        pulled, by_weight = truth.pullback(stage, truth.own_branches)
    expected = {f"{stage}<-{name}": array for name, array in pulled.items()} | by_weight
    found = {f"{stage}<-{name}": array for name, array in run.pulled.get(stage, {}).items()}
    found |= {name: run.gradients[name] for name in by_weight if name in run.gradients}
    failed = _failed(verdicts, (BACKWARD_FORCED, GRADIENT_FORCED), expected)
    strangers = [name for name in found if name not in expected]
    if strangers:
        return Cause(f"reads {', '.join(name.partition('<-')[2] for name in strangers)} too", float("nan"))
    if failed and not any(name in found for name in failed):
        return Cause("gradient cut off", 0.0)
    if not failed or any(name not in found for name in failed):
        return None
    budgets = {name: verdict.budget for name, verdict in failed.items()}
    # A small bias is judged in the pool of its kernel, and may be what spoils it.
    for name in list(budgets):
        bias = name.removesuffix("kernel") + "bias"
        if name in by_weight and bias in found and (GRADIENT_FORCED, bias) not in verdicts:
            budgets[bias] = budgets[name]
    named = {name: found[name] for name in budgets}
    return explain(named, expected, budgets, backward_mistakes(truth, stage, expected, named))


def fed_with_truth(verdicts: Mapping[Key, Verdict]) -> dict[Key, Verdict]:
    """Return the verdicts of stages that were fed with the truth: by them the first failing stage is named."""
    clauses = (FORWARD_FORCED, BACKWARD_FORCED, GRADIENT_FORCED)
    # One pool of losses in float32, each alone in float64.
    return {
        (clause, name): each
        for (clause, name), each in verdicts.items()
        if clause in clauses or (clause == LOSS and name.startswith("forced"))
    }


def ranked_stages(
    verdicts: Mapping[Key, Verdict], stage_of: Mapping[Key, str], inputs: Mapping[str, Sequence[str]]
) -> Iterator[str]:
    """Yield every stage that failed, the most telling first: fed with the truth in order, then running free.

    Args:
        verdicts: of a case.
        stage_of: the stage of each.
        inputs: stage id → ids of the stages that feed it, in the order of the forward pass.
    """
    order = list(inputs)
    readers = {stage: [reader for reader in order if stage in inputs[reader]] for stage in order}
    seen: set[str] = set()
    forward = [stage for stage in order if not verdicts.get((FORWARD_FORCED, stage), _PASSED).passed]
    failing: dict[str, set[str]] = {}
    for key, verdict in verdicts.items():
        if not verdict.passed:
            failing.setdefault(key[0], set()).add(stage_of[key])
    forced_losses = any(
        clause == LOSS and name.startswith("forced") and not verdict.passed
        for (clause, name), verdict in verdicts.items()
    )
    backward = failing.get(BACKWARD_FORCED, set()) | failing.get(GRADIENT_FORCED, set())
    rest = set().union(*failing.values())
    free_forward, free_backward = failing.get(FORWARD_FREE, set()), failing.get(BACKWARD_FREE, set())
    ranking = [*forward, *(["loss"] if forced_losses else [])]
    ranking += [stage for stage in ["loss", *reversed(order)] if stage in backward]
    ranking += [stage for stage in order if stage in free_forward]
    # A cotangent that is wrong while those of all readers are right: the readers' own derivatives are wrong.
    ranking += [
        reader
        for stage in reversed(order)
        if stage in free_backward and not free_backward & set(readers[stage])
        for reader in readers[stage]
    ]
    ranking += [stage for stage in [*order, "loss", *sorted(rest)] if stage in rest]
    for stage in ranking:
        if stage not in seen:
            seen.add(stage)
            yield stage
