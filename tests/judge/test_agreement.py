"""The comparison of named arrays says what differs, and which common mistake explains it."""

from __future__ import annotations

import numpy as np
import pytest

from conformance.judge.agreement import assert_agrees

IMAGES = np.random.default_rng(0).standard_normal((2, 6, 6, 4))


def test_arrays_within_the_limit_agree() -> None:
    assert_agrees({"a": IMAGES, "name": np.array("x")}, {"a": IMAGES * (1 + 1e-14), "name": np.array("x")}, 1e-12)


@pytest.mark.parametrize("found", [{"a": IMAGES + 1e-9}, {}, {"a": IMAGES[:1]}, {"a": IMAGES * np.nan}])
def test_another_array_does_not_agree(found: dict[str, np.ndarray]) -> None:
    with pytest.raises(AssertionError, match="1 of 1 differ"):
        assert_agrees({"a": IMAGES}, found, 1e-12)


def test_other_texts_do_not_agree() -> None:
    with pytest.raises(AssertionError, match="first difference at flat index 1: z, expected y"):
        assert_agrees({"names": np.array(["x", "y"])}, {"names": np.array(["x", "z"])})


def test_nothing_is_no_agreement() -> None:
    with pytest.raises(AssertionError, match="nothing was compared"):
        assert_agrees({}, {"a": IMAGES})


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (lambda array: array.swapaxes(1, 2), "spatial transpose"),
        (lambda array: array[:, ::-1], "spatial flip of y"),
        (lambda array: -array, "sign"),
        (lambda array: 2 * array, "factor 2"),
        (lambda array: np.roll(array, 1, 2), "one-pixel shift in x"),
    ],
)
def test_a_common_mistake_is_named(change: object, cause: str) -> None:
    assert callable(change)
    with pytest.raises(AssertionError, match=f"looks like: {cause}"):
        assert_agrees({"a": IMAGES, "b": IMAGES[:1]}, {"a": change(IMAGES), "b": change(IMAGES[:1])}, 1e-12)
