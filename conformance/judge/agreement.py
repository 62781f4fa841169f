"""Compare named arrays with what they should be, and guess which common mistake explains a difference."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from conformance.judge.causes import Cause, explain
from conformance.judge.mistakes.arrays import (
    Hypothesis,
    factor_name,
    fitted_factor,
    mistakes_everywhere,
    plain_mistakes,
)
from conformance.judge.rules import UNIT_ROUNDOFF, Errors, Verdict, deviation, errors
from conformance.oracle.operations import wide

FLOAT64 = 1e-12
"""Limit for float64 numbers: sums of some thousand terms, each rounded at 2.2e-16."""

FLOAT32 = 4 * UNIT_ROUNDOFF["float32"]
"""Limit from amplitude to normalised input, and from position to offset: float32 roundings, and one to spare."""

SINGLE, DOUBLE = 2e-7, 1e-12
"""How far a mistake made in float32, or in float64, may be from the same mistake made by the oracle."""

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Compared:
    """What a check expects beside what it found.

    Attributes:
        expected: name → array; numbers are compared as numbers, everything else for equality.
        found: name → array; names that are not expected are ignored.
        limit: largest scale-free e of a number; 0 asks for equality.
    """

    expected: Arrays
    found: Arrays
    limit: float = 0.0


def assert_agrees(expected: Arrays, found: Arrays, limit: float = 0.0) -> None:
    """Assert that every expected array was found.

    Args:
        expected: name → array. Numbers are compared by their scale-free error e, everything else for equality.
        found: name → array; names that are not expected are ignored.
        limit: largest e of a number; 0 asks for equality.

    Raises:
        AssertionError: an array is missing or differs; lists each, and the common mistake that explains all of them.
    """
    verdicts = compare_arrays(expected, found, limit)
    failed = [verdict for verdict in verdicts.values() if not verdict.passed]
    if not expected:
        raise AssertionError("nothing was compared")
    if failed:
        cause = common_mistake(expected, found, limit)
        named = [f"looks like: {cause}"] if cause else []
        raise AssertionError(
            "\n".join(
                [f"{len(failed)} of {len(verdicts)} differ", *named, *(f"  {verdict.explain()}" for verdict in failed)]
            )
        )


def compare_arrays(expected: Arrays, found: Arrays, limit: float = 0.0, case: str = "") -> dict[str, Verdict]:
    """Return a verdict for each expected array. Arguments as for `assert_agrees`; `case` names the verdicts."""
    return {name: _verdict(case, name, array, found.get(name), limit) for name, array in expected.items()}


def common_mistake(expected: Arrays, found: Arrays, limit: float = 0.0) -> Cause | None:
    """Return the common array mistake that explains every difference, or at least the first; None if none does."""
    failed = [name for name, verdict in compare_arrays(expected, found, limit).items() if not verdict.passed]
    if not failed or not all(name in found and np.issubdtype(expected[name].dtype, np.number) for name in failed):
        return None
    cause = _mistake(expected, found, limit, failed)
    return _mistake(expected, found, limit, failed[:1]) if cause is None and len(failed) > 1 else cause


def _mistake(expected: Arrays, found: Arrays, limit: float, names: list[str]) -> Cause | None:
    right = {name: wide(expected[name]) for name in names}
    wrong = {name: wide(found[name]) for name in names}
    single = any(found[name].dtype in (np.float32, np.complex64) for name in names)
    budgets = {name: Errors(max(limit, SINGLE if single else DOUBLE), np.inf) for name in names}
    return explain(wrong, right, budgets, _common_mistakes(right, wrong))


def _common_mistakes(right: Arrays, wrong: Arrays) -> Iterator[Hypothesis]:
    yield from mistakes_everywhere(right, plain_mistakes)
    factor = fitted_factor(*(next(iter(arrays.values())) for arrays in (right, wrong)))
    yield Hypothesis(factor_name(factor), {name: factor * array for name, array in right.items()})


def _verdict(case: str, name: str, expected: np.ndarray, found: np.ndarray | None, limit: float) -> Verdict:
    budget = Errors(limit, np.inf)
    if not np.issubdtype(expected.dtype, np.inexact):
        same = found is not None and found.shape == expected.shape and np.array_equal(found, expected)
        difference = Errors(0.0, 0.0) if same else Errors(np.inf, np.inf)
        return Verdict(case, name, None, difference, budget, "" if same else _difference(found, expected))
    measured = deviation(None if found is None else wide(found), wide(expected))
    return Verdict(case, name, None, errors([measured]), budget, measured.mismatch)


def _difference(found: np.ndarray | None, expected: np.ndarray) -> str:
    if found is None:
        return "missing"
    if found.shape != expected.shape:
        return f"shape {found.shape}, expected {expected.shape}"
    first = int(np.flatnonzero((found != expected).ravel())[0])
    return f"first difference at flat index {first}: {found.flat[first]!s}, expected {expected.flat[first]!s}"
