"""Patches to whole object (reference page §6)."""

import math

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from ptycho_torch.errors import DataContractError
from ptycho_torch.helper import shift_matrix

_CHUNK = 512
"""Patches placed at once: bounds the memory, whatever the number of patches."""


def stitch_patches(
    patches: Complex[Tensor, "n N N"], positions_px: Float[Tensor, "n 2"], crop_px: int
) -> Complex[Tensor, "H H"]:
    """Average the central squares of patches at their positions.

    canvas = Σ T(crop, r − r̄) / (1e-9 + Σ T(1, r − r̄))    [reference page §6]

    The canvas is centred on the mean position and reaches ceil(max |r − r̄|) pixels beyond the crop on each
    side, one more if that is odd. Pixels that no patch covers are zero.

    Args:
        patches: object patches.
        positions_px: absolute (x, y) of each patch.
        crop_px: M, side of the central square that is used; even.

    Raises:
        DataContractError: lengths differ, or ``crop_px`` is odd or larger than the patch.
    """
    n, N, _ = patches.shape
    if positions_px.shape != (n, 2) or n == 0:
        raise DataContractError(
            f"positions_px has shape {tuple(positions_px.shape)} for {n} patches; expected ({n}, 2) and at least one."
        )
    if crop_px % 2 or not 0 < crop_px <= N:
        raise DataContractError(f"crop_px = {crop_px}; expected an even number from 2 to the patch side {N}.")
    offsets = positions_px - positions_px.mean(0)
    margin = math.ceil(float(offsets.abs().max()))
    margin += margin % 2
    side = crop_px + 2 * margin
    start = (N - crop_px) // 2
    crops = patches[:, start : start + crop_px, start : start + crop_px]
    # One spare pixel takes the zero weight of whole-pixel offsets at the far edge.
    total = patches.new_zeros((side + 1, side + 1))
    count = torch.zeros_like(total.real)
    for first in range(0, n, _CHUNK):
        _place(total, count, crops[first : first + _CHUNK], offsets[first : first + _CHUNK], margin)
    return (total / (count + 1e-9))[:side, :side]


def _place(total: Tensor, count: Tensor, crops: Tensor, offsets: Tensor, margin: int) -> None:
    """Add crops to ``total`` and their coverage to ``count``, each at margin + offset."""
    n, M, _ = crops.shape
    whole = torch.floor(offsets)
    fraction = (offsets - whole).to(crops.real.dtype)
    along_x = shift_matrix(fraction[:, 0], M + 1, M)
    along_y = shift_matrix(fraction[:, 1], M + 1, M)
    placed = torch.complex(along_y @ crops.real @ along_x.mT, along_y @ crops.imag @ along_x.mT)
    covered = along_y.sum(-1)[:, :, None] * along_x.sum(-1)[:, None, :]
    window = torch.arange(M + 1, device=crops.device)
    columns = (whole[:, 0].long() + margin)[:, None] + window
    rows = (whole[:, 1].long() + margin)[:, None] + window
    where = (rows[:, :, None].expand(n, M + 1, M + 1), columns[:, None, :].expand(n, M + 1, M + 1))
    total.index_put_(where, placed, accumulate=True)
    count.index_put_(where, covered, accumulate=True)
