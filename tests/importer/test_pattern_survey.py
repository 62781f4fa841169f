"""One pass over the patterns: whatever way the counts are added, they are those of the definition."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tqdm import tqdm

from ptycho_torch.importer.pattern_survey import survey
from ptycho_torch.importer.pattern_values import ValueReader, ValueRules

DTYPES = ("uint8", "uint16", "uint32", "int16", "int32", "float32", "float64")


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(DTYPES), st.integers(0, 2**16), st.booleans(), st.booleans(), st.booleans(), st.booleans(),
    st.sampled_from(["auto", "keep", None, 50.0]),
)  # fmt: skip
def test_counts_are_those_of_the_definition(
    dtype: str, seed: int, masked: bool, dark: bool, full: bool, negative: bool, saturated: float | str | None
) -> None:
    draw = np.random.default_rng(seed)
    patterns = draw.integers(0, 90, (7, 4, 5)).astype(dtype)
    largest = np.iinfo(dtype).max if patterns.dtype.kind in "iu" else 2.0**32 - 1
    if full:
        patterns[draw.integers(7), 1, 2] = largest
        patterns[:, 3, 3] = largest
    if negative and patterns.dtype.kind != "u":
        patterns[3, 0, 0] = -4
    bad = draw.random((4, 5)) < 0.2 if masked else None
    background = np.full((4, 5), 2, np.float32) if dark else None
    rules = ValueRules(Path("scan.h5"), "data", counts=True, bad_pixels=bad, dark=background)
    found = survey(lambda: iter([patterns[:3], patterns[3:]]), (4, 5), rules, saturated, tqdm(disable=True))  # type: ignore[arg-type]
    wide, top = patterns.astype(np.float64), rules.top(patterns.dtype)
    expected = np.where((wide >= 0) & (wide < top) & ~(False if bad is None else bad), wide, 0)
    expected = np.maximum(expected - (0 if background is None else background), 0)
    np.testing.assert_array_equal(found.counts, expected.sum(axis=0))
    np.testing.assert_array_equal(found.totals, expected.sum(axis=(1, 2)))
    limit = {"auto": top, "keep": np.inf, None: np.inf}.get(saturated, saturated)  # type: ignore[arg-type]
    over = (wide >= limit).any(axis=0) & ~(wide >= top).all(axis=0) & ~(False if bad is None else bad)
    np.testing.assert_array_equal(found.saturated, over)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("largest", [90, 2**15 - 2, 2**26 + 1])
def test_the_root_is_that_of_the_counts_to_float32(dtype: str, largest: int) -> None:
    """Whole numbers above 2^24 are more than float32 holds; their root has to be taken of the number itself."""
    bits = np.dtype(dtype)
    largest = min(largest, np.iinfo(dtype).max - 1) if bits.kind in "iu" else largest
    counts = np.random.default_rng(1).integers(0, largest, (3, 4, 4), endpoint=True).astype(dtype)
    counts[0, 0, 0] = largest
    expected = np.sqrt(counts.astype(np.float64)).astype(np.float32)
    reader = ValueReader(ValueRules(Path("scan.h5"), "data", counts=True), slice(0, 4), slice(0, 4))
    amplitude = reader.amplitude(0, counts.copy())
    assert amplitude.dtype == np.float32
    np.testing.assert_allclose(amplitude, expected, rtol=2**-23)
