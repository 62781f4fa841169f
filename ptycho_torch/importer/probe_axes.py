"""Probes as other programs lay out their axes, brought to (modes, H, W).

<doc-ref type="contract">specs/data_contracts.md</doc-ref>
"""

from __future__ import annotations

import dataclasses

import numpy as np

from ptycho_torch.data.scan import MAX_MODES


@dataclasses.dataclass(frozen=True)
class ProbeAxes:
    """How the axes of a stored probe lie.

    Attributes:
        shape: as stored.
        modes_last: whether the modes lie along the last axis.
        variations: length of an axis in front, of probes that vary from pattern to pattern (OPR); 1 without one.
        note: what a user should know, or empty.
    """

    shape: tuple[int, ...]
    modes_last: bool = False
    variations: int = 1
    note: str = ""

    def arranged(self, stored: np.ndarray) -> np.ndarray:
        """Return (H, W) or (modes, H, W) of what is stored; of several variations the first."""
        if self.modes_last:
            stored = np.moveaxis(stored, -1, 0)
        return stored[0] if stored.ndim == 4 else stored


def probe_axes(shape: tuple[int, ...], H: int, W: int) -> ProbeAxes | None:
    """Recognise the axes of a probe for patterns of H × W, or return None where it is none.

    (H, W), (modes, H, W), (variations, modes, H, W), and (H, W, modes) where nothing else fits.

    >>> probe_axes((64, 64, 3), 64, 64).modes_last
    True
    """
    if shape == (H, W):
        return ProbeAxes(shape)
    if len(shape) == 3 and shape[1:] == (H, W) and 1 <= shape[0] <= MAX_MODES:
        return ProbeAxes(shape)
    if len(shape) == 3 and shape[:2] == (H, W) and 1 <= shape[2] <= MAX_MODES:
        note = f"axes {shape} are taken for (rows, columns, modes)" if shape[2] > 1 else ""
        return ProbeAxes(shape, modes_last=True, note=note)
    if len(shape) == 4 and shape[2:] == (H, W) and shape[0] >= 1 and 1 <= shape[1] <= MAX_MODES:
        note = f"the first of {shape[0]} variations (OPR) is taken, the others are left out" if shape[0] > 1 else ""
        return ProbeAxes(shape, variations=shape[0], note=note)
    return None
