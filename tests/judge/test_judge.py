"""The judge itself: what it must let through, and the ways of being wrong that other comparers miss."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from conformance.judge.rules import (
    NONE,
    ONE_ULP,
    SMALL,
    UNIT_ROUNDOFF,
    Deviation,
    Errors,
    Limits,
    Verdict,
    compare,
    deviation,
    errors,
    float32_budget,
    float64_budget,
    rounding,
    share_of,
)

LIMITS = Limits(e_factor=4.0, m_factor=16.0, float64_floor=1e-12, condition_factor=4.0)
TRUTH = np.random.default_rng(0).standard_normal((3, 5, 7, 4))


def verdict(values: np.ndarray | None, truth: np.ndarray = TRUTH, budget: float = 1e-6) -> Verdict:
    found = deviation(values, truth)
    return Verdict("FORWARD-FREE", "stage", None, errors([found]), Errors(budget, 16 * budget), found.mismatch)


def test_equal_values_pass() -> None:
    assert verdict(TRUTH.copy()).passed
    assert verdict(TRUTH.copy()).share == 0


def test_errors_are_rms_and_maximum_in_units_of_the_truth() -> None:
    values = TRUTH.copy()
    values[1, 2, 3, 0] += 0.5
    rms = math.sqrt((TRUTH**2).mean())
    assert compare(values, TRUTH) == Errors(
        pytest.approx(0.5 / math.sqrt(TRUTH.size) / rms, rel=1e-12), pytest.approx(0.5 / rms, rel=1e-12)
    )


@pytest.mark.parametrize("power", [-60, -7, 0, 12, 60])
def test_powers_of_two_change_no_error(power: int) -> None:
    values = TRUTH + 1e-5 * np.random.default_rng(1).standard_normal(TRUTH.shape)
    assert compare(values * 2.0**power, TRUTH * 2.0**power) == compare(values, TRUTH)
    assert rounding(TRUTH * 2.0**power, "float32") == rounding(TRUTH, "float32")


def test_squares_neither_overflow_nor_vanish() -> None:
    assert compare(TRUTH * 1e-200 * (1 + 1e-3), TRUTH * 1e-200).e == pytest.approx(1e-3, rel=1e-9)
    assert compare(TRUTH * 1e200 * (1 + 1e-3), TRUTH * 1e200).e == pytest.approx(1e-3, rel=1e-9)


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (lambda x: None, "missing"),
        (lambda x: x[:2], "shape"),
        (lambda x: x.transpose(0, 2, 1, 3), "shape"),
        (lambda x: x.astype(complex), "dtype"),
        (lambda x: np.where(x > 2, np.nan, x), "non-finite"),
        (lambda x: np.where(x > 2, np.inf, x), "non-finite"),
    ],
)
def test_what_cannot_be_compared_fails_and_says_why(wrong: object, why: str) -> None:
    result = verdict(wrong(TRUTH.copy()))  # type: ignore[operator]
    assert not result.passed
    assert why in result.reason


def test_nan_on_both_sides_at_the_same_place_is_equal() -> None:
    truth = TRUTH.copy()
    truth[0, 0, 0, 0] = np.nan
    assert verdict(truth.copy(), truth).passed
    truth_with_infinity = TRUTH.copy()
    truth_with_infinity[0, 0, 0, 0] = np.inf
    assert not verdict(truth, truth_with_infinity).passed
    assert not verdict(-truth_with_infinity, truth_with_infinity).passed


@pytest.mark.parametrize(
    "change", [lambda x: -x, lambda x: x[::-1], lambda x: x[..., ::-1], lambda x: np.sort(x, None).reshape(x.shape)]
)
def test_means_and_norms_do_not_hide_signs_and_permutations(change: object) -> None:
    values = change(TRUTH)  # type: ignore[operator]
    assert np.linalg.norm(values) == pytest.approx(np.linalg.norm(TRUTH))
    assert not verdict(values).passed


def test_a_complex_value_is_judged_as_one_number() -> None:
    truth = TRUTH * np.exp(1j)
    assert not verdict(truth.conj(), truth).passed
    # A phase of −π and one of +π are the same number.
    near = np.full(100, -1 + 0j)
    assert verdict(near * np.exp(1e-9j), near * np.exp(-1e-9j)).passed


def test_where_the_truth_is_zero_only_zero_passes() -> None:
    zero = np.zeros((4, 4))
    assert verdict(zero, zero).passed
    almost = zero.copy()
    almost[0, 0] = 1e-30
    assert not verdict(almost, zero).passed


def test_a_tiny_tensor_gets_no_mercy() -> None:
    assert not verdict(np.array(1e-9), np.array(2e-9)).passed


def test_nan_in_budget_or_error_fails() -> None:
    assert not Verdict("C", "s", None, Errors(math.nan, 0.0), Errors(1.0, 1.0)).passed
    assert not Verdict("C", "s", None, Errors(0.1, 0.1), Errors(math.nan, 1.0)).passed
    assert not Verdict("C", "s", None, Errors(0.1, 0.1), Errors(0.0, 1.0)).passed


def test_both_root_mean_square_and_maximum_count() -> None:
    budget = Errors(1e-6, 1e-5)
    assert Verdict("C", "s", None, Errors(1e-6, 1e-5), budget).passed
    assert not Verdict("C", "s", None, Errors(1.01e-6, 1e-6), budget).passed
    assert not Verdict("C", "s", None, Errors(1e-7, 1.01e-5), budget).passed


def test_the_float32_budget_follows_the_worse_of_reference_and_condition() -> None:
    assert float32_budget(Errors(1.0, 2.0), Errors(3.0, 1.0), LIMITS) == Errors(12.0, 32.0)


def test_the_float64_budget_is_the_floor_or_the_condition() -> None:
    assert float64_budget(Errors(1e-14, 1.0), LIMITS).e == 1e-12
    ill = float64_budget(Errors(3e-11, 1.0), LIMITS)
    assert ill.e == 1.2e-10
    assert math.isinf(ill.m)


def test_one_mismatch_spoils_a_pool() -> None:
    assert errors([Deviation(np.zeros(3)), Deviation(np.empty(0), "missing")]) == Errors(math.inf, math.inf)
    pooled = errors([Deviation(np.array([3.0])), Deviation(np.array([0.0, 0.0, 0.0]))])
    assert pooled == Errors(1.5, 3.0)


def test_units_of_rounding_are_those_of_the_formats() -> None:
    for name in ("float32", "float64"):
        assert ONE_ULP[name] == np.finfo(name).eps
        assert UNIT_ROUNDOFF[name] == np.finfo(name).eps / 2
    assert (ONE_ULP["tf32"], ONE_ULP["bfloat16"]) == (2.0**-10, 2.0**-7)
    assert (UNIT_ROUNDOFF["tf32"], UNIT_ROUNDOFF["bfloat16"]) == (2.0**-11, 2.0**-8)
    assert SMALL == 64


def test_the_rounding_of_a_result_is_its_largest_value_s() -> None:
    truth = np.array([1.0, -3.0, np.inf, 0.0])
    rms = math.sqrt(10 / 3)
    assert rounding(truth, "float32") == Errors(2.0**-24, pytest.approx(2.0**-24 * 3 / rms))
    assert rounding(np.zeros(3), "float32") == NONE
    assert rounding(np.array([]), "float64") == NONE


def test_samples_are_measured_in_the_scale_of_the_whole() -> None:
    found = deviation(np.array([1.0, 3.0]), np.array([1.0, 2.0]), scale=4.0)
    assert found.values.tolist() == [0.0, 0.25]
    assert deviation(np.array([0.0, 1.0]), np.array([0.0, 0.0])).mismatch == "not zero where the truth is"
    assert deviation(np.zeros(2), np.zeros(2)).values.tolist() == [0.0, 0.0]


def test_errors_of_nothing_are_none() -> None:
    assert errors([]) == NONE
    assert errors([Deviation(np.empty(0))]) == NONE


def test_the_place_of_a_value_that_is_no_number_is_named() -> None:
    truth = np.ones((2, 3))
    wrong = truth.copy()
    wrong[1, 1] = np.nan
    assert deviation(wrong, truth).mismatch == "non-finite values differ, first at flat index 4"
    both, other = truth.copy(), truth.copy()
    both[0, 0], other[0, 0] = np.inf, -np.inf
    assert deviation(both, other).mismatch == "non-finite values of different kind"
    same = both.copy()
    same[0, 1] = 2
    found = deviation(same, both)
    assert found.mismatch == ""
    assert found.values.tolist() == [1.0, 0.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("used", "allowed", "share"),
    [
        *((1.0, 2.0, 0.5), (0.0, 0.0, 0.0), (1.0, 0.0, math.inf), (5.0, math.inf, 0.0), (0.0, 1.0, 0.0)),
        *((math.nan, 1.0, math.inf), (math.inf, math.inf, 0.0), (math.nan, math.inf, 0.0)),
    ],
)  # fmt: skip
def test_the_share_of_a_budget(used: float, allowed: float, share: float) -> None:
    assert share_of(used, allowed) == share


def test_a_verdict_says_what_was_measured() -> None:
    failed = Verdict("LOSS", "free", Errors(1e-3, 1), Errors(2e-3, 4e-3), Errors(1e-2, 2e-2), "why")
    assert failed.explain() == ("LOSS free: e = 0.002, m = 0.004; budget e = 0.01, m = 0.02; reference e = 0.001 (why)")
    assert not failed.passed
    assert failed.share == math.inf
    within = dataclasses.replace(failed, reason="")
    assert within.passed
    assert within.share == pytest.approx(0.2)
