"""What the suite is made of: its tiers and rows, and how its tests are called.

It imports neither torch nor the rest of the suite: every pytest run of the environment loads it.
"""

from __future__ import annotations

from pathlib import Path

import pytest

TIERS = ("quick", "full", "study")
DTYPES = ("float64", "float32")
"""Rows of the network as it is."""

OURS = "conformance.subjects.torch:TorchSubject"
"""The default candidate: MODULE:FACTORY."""

VARIANTS = ("float32-contiguous", "float32-compiled", "bf16", "tf32")


def clauses_of(item: pytest.Item) -> tuple[str, ...]:
    """Return the ids of the clauses that a test judges."""
    return tuple(dict.fromkeys(clause for mark in item.iter_markers("parity_clause") for clause in mark.args))


def short_id(nodeid: str) -> str:
    """Return the id of a test from its file on, wherever the suite is installed."""
    path, _, name = nodeid.partition("::")
    return f"{Path(path).name}::{name}"
