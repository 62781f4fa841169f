"""One pass over the patterns before they are converted: where the light is, which are dark, and which pixels run over.

<doc-ref type="contract">specs/data_contracts.md</doc-ref>
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Literal

import numpy as np
from scipy.ndimage import rank_filter
from tqdm import tqdm

from ptycho_torch.importer.pattern_values import GAP, LARGEST_AMPLITUDE, ValueRules
from ptycho_torch.importer.raw_scan import Passes

_NARROWER = 0.5
"""Light that is so much narrower about the corner than about the middle is centred there; background widens both."""
_LEAST_PATTERNS = 3
"""In fewer patterns a bright pixel may hold any number by chance."""

_NEIGHBOURS = np.array([[1, 1, 1], [1, 0, 1], [1, 1, 1]], bool)
_LARGEST_COUNTS = LARGEST_AMPLITUDE**2


@dataclasses.dataclass(frozen=True)
class Survey:
    """What one pass has found.

    Attributes:
        counts: (H, W) Σ counts of all patterns; 0 where there is no measurement.
        totals: (n,) Σ counts of each pattern.
        saturated: (H, W) bool: pixels that run over in some pattern.
    """

    counts: np.ndarray
    totals: np.ndarray
    saturated: np.ndarray


def survey(
    passes: Passes,
    shape: tuple[int, int],
    rules: ValueRules,
    saturated: float | Literal["auto", "keep"] | None,
    bar: tqdm,
) -> Survey:
    """Look at all patterns once.

    Args:
        passes: starts a pass over them.
        shape: (H, W).
        rules: what becomes of their numbers.
        saturated: from which value on a pixel has run over; ``auto`` is 2^b − 1.
        bar: shows how far it is.
    """
    counts, over, always = np.zeros(shape), np.zeros(shape, bool), np.ones(shape, bool)
    unmeasured = rules.bad_pixels
    if rules.gaps is not None:
        unmeasured = rules.gaps if unmeasured is None else unmeasured | rules.gaps
    totals = []
    with bar:
        for chunk in passes():
            top = rules.top(chunk.dtype)
            limit = top if saturated == "auto" else math.inf if saturated in (None, "keep") else float(saturated)
            # A minimum or maximum that is NaN compares as False.
            least = 0 if chunk.dtype.kind == "u" else chunk.min()
            if rules.counts and rules.dark is None and least >= 0 and chunk.max() < min(top, limit, _LARGEST_COUNTS):
                light, brightness = _sums(chunk, unmeasured)
                always[:] = False
            else:
                light, brightness, hits, beyond = _careful_sums(chunk, rules, unmeasured, top, limit)
                over |= hits
                always &= beyond
            counts += light
            totals.append(brightness)
            bar.update(len(chunk))
    if unmeasured is not None:
        over &= ~unmeasured
    # What holds no measurement in any pattern is dead, and is found as such later.
    return Survey(counts, np.concatenate(totals), over & ~always)


def _sums(chunk: np.ndarray, unmeasured: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Return (H, W) and (n,) Σ counts of patterns in which every other number is a measurement."""
    wide = np.uint64 if chunk.dtype.kind in "ub" else np.int64 if chunk.dtype.kind == "i" else np.float64
    light, brightness = chunk.sum(axis=0, dtype=wide), chunk.sum(axis=(1, 2), dtype=wide)
    if unmeasured is not None:
        brightness = brightness - chunk[:, unmeasured].sum(axis=1, dtype=wide)
        light[unmeasured] = 0
    return light.astype(np.float64), brightness.astype(np.float64)


def _careful_sums(
    chunk: np.ndarray, rules: ValueRules, unmeasured: np.ndarray | None, top: float, limit: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return (H, W) and (n,) Σ counts, and (H, W) which pixels reach the limit in one pattern, and the top in all."""
    measured = (chunk >= 0) & (chunk < top) & (chunk <= _LARGEST_COUNTS)
    if unmeasured is not None:
        measured[:, unmeasured] = False
    values = np.where(measured, chunk, 0).astype(np.float64)
    if not rules.counts:
        values = np.square(values)
    if rules.dark is not None:
        values = np.maximum(values - rules.dark, 0)
    over, beyond = np.asarray(chunk >= limit), np.asarray(chunk >= top)
    # A pattern without any measurement says nothing of its pixels.
    over[beyond.all(axis=(1, 2))] = False
    hits, always = np.asarray(over.any(axis=0)), np.asarray(beyond.all(axis=0))
    return values.sum(axis=0), values.sum(axis=(1, 2)), hits, always


def find_gaps(passes: Passes, bad_pixels: np.ndarray | None) -> tuple[np.ndarray | None, Passes]:
    """Find pixels that hold ``GAP`` in every pattern, of a type that holds more; return them, or None, and the passes.

    All patterns are looked at only where the first ones have such pixels; else they begin the next pass.
    """
    begun = passes()
    first = next(begun)
    gaps = np.asarray((first == GAP).all(axis=0))
    if bad_pixels is not None:
        gaps &= ~bad_pixels
    if not gaps.any():
        # A stream out of an HDF5 file must be read to its end, so it cannot be given up here.
        waiting = [itertools.chain([first], begun)]
        return None, lambda: waiting.pop() if waiting else passes()
    count = len(first)
    for chunk in begun:
        gaps &= (chunk == GAP).all(axis=0)
        count += len(chunk)
    return gaps if gaps.any() and count >= _LEAST_PATTERNS else None, passes


def corner_centred(light: np.ndarray) -> bool:
    """Say whether (H, W) light lies about the corner [0, 0], as an FFT leaves it, and not about the middle.

    Pixels that outshine all but two of their neighbours are taken for no brighter than those: a few hot ones, with
    nothing around them, are no light.

    >>> corner_centred(np.eye(1, 64).T * np.eye(1, 64))
    True
    """
    smooth = np.minimum(light, rank_filter(light, rank=-3, footprint=_NEIGHBOURS, mode="wrap"))
    light = smooth if smooth.any() else light
    total = float(light.sum())
    if not 0 < total < math.inf:
        return False
    return _spread(np.fft.fftshift(light)) < _NARROWER * _spread(light)


def _spread(light: np.ndarray) -> float:
    """Return Σ light·r², r from the middle."""
    rows, columns = (np.arange(side) - side // 2 for side in light.shape)
    return float(light.sum(axis=1) @ rows**2 + light.sum(axis=0) @ columns**2)
