"""Masks of detectors as bit fields: what each bit says, and which bits make a pixel bad.

Clause CXI-01 of <doc-ref type="contract">specs/data_contracts.md</doc-ref>. CXI: Maia, Nature Methods 9, 854 (2012);
NeXus: the field ``pixel_mask`` of NXdetector, where bits from 16 on never make a pixel bad on their own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Literal

import numpy as np

_CXI_NAMES = (
    "invalid", "saturated", "hot", "dead", "shadowed", "in the peak mask", "to be ignored", "bad",
    "out of resolution", "missing", "noisy", "artefact corrected", "has signal", "peak", "background corrected",
)  # fmt: skip
_NEXUS_NAMES = ("gap", "dead", "under-responding", "over-responding", "noisy", "bit 5", "cluster", "bit 7", "user mask")


@dataclasses.dataclass(frozen=True)
class Bits:
    """The meaning of a mask.

    Attributes:
        bad: the bits that make a pixel bad; the others are remarks on good pixels.
        names: of the bits, from 0 on.
    """

    bad: int
    names: tuple[str, ...]

    def name(self, bit: int) -> str:
        """Return what a bit says."""
        return self.names[bit] if bit < len(self.names) else f"bit {bit}"


CXI = Bits(0xFFFFFFFFFFFFFFFF & ~0x7800, _CXI_NAMES)
"""Bits 11 to 14 say that the pixel was corrected or has signal: its number is good."""

NEXUS = Bits(0xFFFF, _NEXUS_NAMES)

CONVENTIONS: Mapping[str, Bits] = MappingProxyType({"CXI": CXI, "NeXus": NEXUS})

MaskBits = int | Literal["zero"]
"""The bits that make a pixel bad, or ``zero``: a pixel of 0 is bad and all others are good."""


@dataclasses.dataclass(frozen=True)
class Mask:
    """A mask that was read.

    Attributes:
        bad: (H, W) bool.
        words: what it says, for people.
    """

    bad: np.ndarray
    words: str


def read_mask(frames: Iterator[np.ndarray], convention: str, bits: MaskBits | None) -> Mask:
    """Read a mask, or one for each pattern: what is bad in one is bad in all.

    Args:
        frames: (n, H, W) numbers or flags, some at a time, at least one.
        convention: a key of ``CONVENTIONS``.
        bits: in place of those of the convention.
    """
    meaning = CONVENTIONS[convention]
    field: np.ndarray | None = None
    zero: np.ndarray | None = None
    for chunk in frames:
        # Of numbers with a fraction, and of NaN, only whether they are 0 can be told.
        whole = chunk if chunk.dtype.kind in "iu" else (chunk != 0).astype(np.uint8)
        some = np.bitwise_or.reduce(whole.astype(f"u{whole.dtype.itemsize}"), axis=0).astype(np.uint64)
        dark = (chunk == 0).any(axis=0)
        field = some if field is None else field | some
        zero = dark if zero is None else zero | dark
    assert field is not None
    assert zero is not None
    if bits == "zero":
        return Mask(zero, f"bad pixels: {int(zero.sum())}, those of value 0, as you say")
    bad = (field & (meaning.bad if bits is None else bits)) != 0
    words = f"bad pixels: {int(bad.sum())} ({_count(field[bad], meaning)})" if bad.any() else "no bad pixels"
    remarked = (field != 0) & ~bad
    if remarked.any():
        words += f"; good with a remark: {int(remarked.sum())} ({_count(field[remarked], meaning)})"
    return Mask(bad, words)


def _count(field: np.ndarray, meaning: Bits) -> str:
    counts = ((bit, int(((field >> bit) & 1).sum())) for bit in range(64))
    return ", ".join(f"{meaning.name(bit)} {count}" for bit, count in counts if count)
