"""How many photons a pattern holds: what a scan says of it, and whether its patterns are roots of counts at all.

The TensorFlow reference normalises what it simulates, and keeps the photon number as JSON in ``_metadata`` of the scan.
Its training obeys that number.

Clauses NPZ-02 and PREP-02 of <doc-ref type="contract">specs/data_contracts.md</doc-ref>.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

import numpy as np

from ptycho_torch.data.scan_arrays import Members
from ptycho_torch.errors import DataContractError, one_line

METADATA = "_metadata"

PATTERNS_LOOKED_AT = 16

_MOST_COUNTS = 32
_WHOLE_TO = 0.04
"""A square of at most 32 counts is this near to a whole number, in half precision too; other numbers rarely are."""

_SHARE_OF_COUNTS = 0.5


@dataclass(frozen=True)
class StatedPhotons:
    """What a scan says of its photon number.

    Attributes:
        nphotons: mean counts of a pattern, or None where the scan does not say it.
        note: what was found in ``_metadata``, as a line for people; empty where there is none.
    """

    nphotons: float | None
    note: str = ""


def stated_photons(npz: Members) -> StatedPhotons:
    """Read the photon number in ``_metadata`` of a scan, without unpickling; what cannot be read is noted.

    The number stands at the top or under ``physics_parameters``, and the reference takes them in this order.
    """
    if METADATA not in npz:
        return StatedPhotons(None)
    try:
        stated = json.loads(npz.read_text(METADATA))
    except DataContractError as err:
        return StatedPhotons(None, f"{METADATA!r} is not read ({err.found})")
    except (ValueError, RecursionError) as err:
        return StatedPhotons(None, f"{METADATA!r} is no JSON ({one_line(str(err))})")
    physics = stated.get("physics_parameters") if isinstance(stated, dict) else None
    for place in (stated, physics):
        if isinstance(place, dict) and "nphotons" in place:
            return _checked(place["nphotons"])
    return StatedPhotons(None, f"{METADATA!r} says no nphotons")


def _checked(found: object) -> StatedPhotons:
    if isinstance(found, int | float) and not isinstance(found, bool) and 0 < found < math.inf:
        return StatedPhotons(float(found), f"nphotons = {found:.6g} ({METADATA!r}, read without unpickling)")
    return StatedPhotons(
        None, f"{METADATA!r} says nphotons = {one_line(repr(found))}, which is no count, and is not used"
    )


def are_counts(amplitude: np.ndarray) -> bool | None:
    """Say whether patterns are roots of counts; None where the patterns are too bright to tell.

    Squares of roots of counts are whole numbers. Only squares of at most 32 are looked at, where rounding leaves them
    near to whole numbers.

    Args:
        amplitude: (n, N, N) of a few patterns.

    >>> are_counts(np.sqrt([[[0.0, 1.0], [5.0, 2.0]]])), are_counts(np.sqrt([[[0.0, 1.1], [5.4, 0.2]]]))
    (True, False)
    """
    squares = np.square(amplitude, dtype=np.float64)
    low = squares[(squares > 0) & (squares <= _MOST_COUNTS)]
    if not len(low):
        return None
    whole = np.round(low)
    return bool(((whole > 0) & (np.abs(low - whole) <= _WHOLE_TO)).mean() >= _SHARE_OF_COUNTS)


def normalised_notice(nphotons: float) -> str:
    """Return what to tell where patterns are no roots of counts and nobody says the photon number."""
    return (
        f"nphotons = {nphotons:.6g} is the mean of Σ amplitude², and these patterns are no √counts: their squares are "
        "no whole numbers. If they are normalised, this is not the photon number, and the Poisson loss is that of "
        "another dose. Give the mean counts of a pattern: --nphotons NUMBER (nphotons in a settings file)."
    )
