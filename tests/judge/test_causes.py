"""Naming causes: the simplest mistake that explains, and none where none does."""

from __future__ import annotations

import numpy as np
import pytest

from conformance.checks.table import Check, Checked, checked
from conformance.judge.agreement import Compared
from conformance.judge.causes import explain
from conformance.judge.mistakes.arrays import (
    OFFSETS,
    Hypothesis,
    array_mistakes,
    fitted,
    fitted_factor,
    permuted,
    rounded,
)
from conformance.judge.rules import Errors

BUDGET = Errors(1e-12, 1e-11)
RNG = np.random.default_rng(0)
IMAGES = RNG.standard_normal((3, 6, 6, 4)) + 1j * RNG.standard_normal((3, 6, 6, 4))


def cause_of(found: np.ndarray, expected: np.ndarray = IMAGES) -> str:
    mistakes = [Hypothesis(name, {"it": change(expected)}) for name, change in array_mistakes(expected)]
    cause = explain({"it": found}, {"it": expected}, {"it": BUDGET}, [*mistakes, *fitted("it", expected, found)])
    return "" if cause is None else cause.name


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda x: x[:, :, ::-1], "spatial flip of x"),
        (lambda x: x[:, ::-1], "spatial flip of y"),
        (lambda x: x[:, ::-1, ::-1], "spatial flip of x and y"),
        (lambda x: x.swapaxes(1, 2), "spatial transpose"),
        (lambda x: np.roll(x, 1, 1), "one-pixel shift in y"),
        (lambda x: np.concatenate([np.zeros_like(x[:, :, :1]), x[:, :, :-1]], axis=2), "one-pixel shift in x"),
        (lambda x: np.fft.fftshift(x, axes=(1, 2)), "missing fftshift"),
        (np.conj, "conjugation"),
        (np.negative, "sign"),
        (lambda x: 2 * x, "factor 2"),
        (lambda x: 3.25 * x, "a constant factor of 3.25"),
        (lambda x: x[..., ::-1], "channel order reversed"),
        (lambda x: x[..., [2, 0, 3, 1]], "channels permuted"),
        (lambda x: x[[1, 2, 0]], "batch permuted"),
        (lambda x: x.transpose(0, 3, 1, 2).reshape(x.shape), "channels-last/first mix-up"),
        (np.zeros_like, "nothing comes through (all zero)"),
        (lambda x: x + 0.1 * np.abs(x), ""),
    ],
)
def test_mistakes_with_arrays_are_named(change: object, name: str) -> None:
    assert cause_of(change(IMAGES)) == name  # type: ignore[operator]


def test_intensity_for_amplitude_is_named() -> None:
    amplitude = np.abs(IMAGES)
    assert cause_of(amplitude**2, amplitude) == "intensity for amplitude"
    assert cause_of(np.sqrt(amplitude), amplitude) == "amplitude for intensity"


def test_a_mistake_that_changes_nothing_explains_nothing() -> None:
    even = IMAGES + IMAGES[:, :, ::-1]
    assert cause_of(even, even) == ""
    assert cause_of(1.5 * even, even) == "a constant factor of 1.5"


def test_the_simplest_mistake_is_preferred() -> None:
    both = [Hypothesis("first", {"it": 2 * IMAGES}), Hypothesis("second", {"it": 2 * IMAGES})]
    cause = explain({"it": 2 * IMAGES}, {"it": IMAGES}, {"it": BUDGET}, both)
    assert cause is not None
    assert (cause.name, cause.e) == ("first", 0.0)


def test_every_part_has_to_be_explained() -> None:
    expected = {"a": IMAGES, "b": IMAGES[..., :1]}
    half = Hypothesis("half", {"a": -IMAGES})
    whole = Hypothesis("whole", {"a": -IMAGES, "b": -IMAGES[..., :1]})
    found = {name: -array for name, array in expected.items()}
    budgets = dict.fromkeys(expected, BUDGET)
    assert explain(found, expected, budgets, [half]) is None
    cause = explain(found, expected, budgets, [half, whole])
    assert cause is not None
    assert cause.name == "whole"


def test_values_that_are_no_numbers_have_to_be_at_the_same_places() -> None:
    found = IMAGES.copy()
    found[0, 0, 0, 0] = np.nan
    mistake = Hypothesis("sign", {"it": -IMAGES})
    assert explain({"it": -found}, {"it": IMAGES}, {"it": BUDGET}, [mistake]) is None
    holey = Hypothesis("sign with holes", {"it": -found})
    cause = explain({"it": -found}, {"it": IMAGES}, {"it": BUDGET}, [holey])
    assert cause is not None


def test_elements_that_a_mistake_leaves_open_do_not_count() -> None:
    where = np.zeros(IMAGES.shape, bool)
    where[:, :3] = True
    found = np.where(where, -IMAGES, 5.0)
    assert explain({"it": found}, {"it": IMAGES}, {"it": BUDGET}, [Hypothesis("sign", {"it": -IMAGES})]) is None
    there = Hypothesis("sign", {"it": -IMAGES}, where)
    assert explain({"it": found}, {"it": IMAGES}, {"it": BUDGET}, [there]) is not None


def test_orders_and_factors_are_fitted() -> None:
    assert permuted(IMAGES, IMAGES[..., :2], -1) is None
    assert permuted(IMAGES, IMAGES[..., [0, 0, 1, 2]], -1) is None
    assert fitted_factor(np.zeros(3), np.ones(3)) == 1
    assert fitted_factor(IMAGES, 1j * IMAGES) == pytest.approx(1j)


def test_rounding_keeps_so_many_bits() -> None:
    assert rounded(np.array([1 + 2.0**-10, 1 + 2.0**-12, -3.0]), 11).tolist() == [1 + 2.0**-10, 1.0, -3.0]
    assert rounded(np.array([(1 + 2.0**-12) * (1 + 1j)]), 8).tolist() == [1 + 1j]


def test_offset_mistakes_differ() -> None:
    offsets = RNG.uniform(-4, 4, (2, 1, 2, 4))
    seen: list[np.ndarray] = []
    for name, change in OFFSETS:
        changed = change(offsets)
        assert changed.shape == offsets.shape, name
        assert not np.array_equal(changed, offsets), name
        assert not any(np.array_equal(changed, other) for other in seen), name
        seen.append(changed)


NUMBERS = np.array([1.0, -2.0, 3.5])


def became(expected: object, found: object, limit: float = 0.0) -> Checked:
    compared = Compared({"it": np.asarray(expected)}, {} if found is None else {"it": np.asarray(found)}, limit)
    return checked(Check("data.it", ("STEP-DATA",), lambda: compared))


@pytest.mark.parametrize(
    ("expected", "found", "passes"),
    [
        (NUMBERS, NUMBERS, True),
        (NUMBERS, NUMBERS.astype(np.float32), True),
        (NUMBERS, NUMBERS * (1 + 1e-9), False),
        (NUMBERS, NUMBERS[:2], False),
        (NUMBERS, None, False),
        (np.arange(3), np.arange(3), True),
        (np.arange(3), np.array([0, 1, 1]), False),
        ("text", "text", True),
        ("text", "other", False),
    ],
)
def test_a_check_is_judged_by_equality_where_no_rounding_is_allowed(
    expected: object, found: object, passes: bool
) -> None:
    report = became(expected, found)
    assert report.passed == passes
    assert report.explain().startswith("passed" if passes else "FAILED")


def test_a_check_may_round_as_far_as_its_limit() -> None:
    assert became(NUMBERS, NUMBERS * (1 + 1e-7), 2e-7).passed
    assert not became(NUMBERS, NUMBERS * (1 + 1e-6), 2e-7).passed


def test_a_check_that_raises_has_failed_with_the_error() -> None:
    def broken() -> Compared:
        raise ValueError("no such thing")

    report = checked(Check("data.it", ("STEP-DATA",), broken))
    assert not report.passed
    assert "ValueError: no such thing" in report.explain()


def test_a_check_that_compares_nothing_has_failed() -> None:
    assert not checked(Check("data.it", ("STEP-DATA",), lambda: Compared({}, {}))).passed


PLACES = RNG.uniform(-9, 9, (7, 3, 2))
PROBES = RNG.standard_normal((3, 5, 5)) + 1j * RNG.standard_normal((3, 5, 5))


@pytest.mark.parametrize(
    ("expected", "found", "cause"),
    [
        (NUMBERS, -NUMBERS, "sign"),
        (NUMBERS, NUMBERS, ""),
        (NUMBERS, NUMBERS[[0, 2, 1]] ** 3, "no known cause"),
        (NUMBERS, 1.7 * NUMBERS, "a constant factor of 1.7"),
        (NUMBERS, NUMBERS[::-1], "order reversed"),
        (NUMBERS, np.roll(NUMBERS, 1), "one off in order"),
        (PLACES, PLACES[..., ::-1], "swapped x/y"),
        (PLACES, PLACES * [1, -1], "sign of y"),
        (PLACES, np.round(PLACES), "rounded to whole numbers"),
        (PROBES, PROBES.swapaxes(1, 2), "spatial transpose"),
        (PROBES, PROBES.conj(), "conjugation"),
        (PROBES, np.broadcast_to(PROBES[:1], PROBES.shape), "the first for all"),
        (np.array([[3, 1, 2]]), np.array([[1, 2, 3]]), "sorted"),
        ("set", "default", "no known cause"),
    ],
)
def test_the_common_mistake_behind_a_failed_check_is_named(expected: object, found: object, cause: str) -> None:
    assert became(expected, found).cause_name == cause
