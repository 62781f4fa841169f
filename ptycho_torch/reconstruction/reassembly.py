"""Patches to whole objects (docs/reference_model.md §6), as they arrive, in memory that their number does not change.

<doc-ref type="guide">docs/workflows/pytorch.md</doc-ref>
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Complex, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from ptycho_torch.errors import DataContractError
from ptycho_torch.reconstruction.half_split import HalfSplit, compare_halves, covered_square, half_of_groups

Weighting = Literal["uniform", "smooth"]

STITCH_FLOOR = 1e-9
"""Added to the uniform count of patches at each pixel, as the reference does."""

REFERENCE_CROP_PX = 20
"""M of the reference's inference, for ``uniform``."""

_CHUNK = 64
"""Patches placed at once: bounds the memory, whatever the number of patches."""

_MOST_PIXELS = 2**28
"""Largest canvas, 16384² pixels: its sums take 8 GiB."""

_LEAST_WEIGHT = 1e-12
"""Smaller smooth weights along an axis are zero: their products would vanish in a float32 coverage."""

_ROUNDING = 1e-14
"""Variances below this part of the mean square are rounding of float64 sums, and count as zero."""


@dataclass(frozen=True)
class Stitched:
    """A whole object in float64.

    Attributes:
        object: transmission; 0 where no patch reaches.
        coverage: Σ w, sum of the weights of all patches at each pixel.
        disagreement: weighted RMS deviation of the patches from their mean at each pixel; 0 where only one reaches.
        origin_px: (x, y) of object[0, 0] in the frame of the positions, where a patch at (x, y) has its pixel
            (row j, column i) at (row y − N/2 + j, column x − N/2 + i).
        half_split: agreement of two halves of the groups, of ``HalfStitcher``.
    """

    object: Complex[Tensor, "H W"]
    coverage: Float[Tensor, "H W"]
    disagreement: Float[Tensor, "H W"]
    origin_px: tuple[float, float]
    half_split: HalfSplit | None = None


class Stitcher:
    """Average the central squares of patches at their positions, batch after batch.

    object = Σ w·v / Σ w,    disagreement² = (Σ w·|v|² − |Σ w·v|² / Σ w) / Σ w

    over the patches that reach a pixel; v is the patch there, bilinear between its pixels. All sums are float64
    and patches are added one by one in their order, so that neither batch sizes nor threads matter.

    Weights w(x)·w(y), at u = x − (first pixel of the central square), which has M pixels:

    - ``uniform``: 1 on the square, falling to 0 over the pixel beyond it, so that w·v = T(crop, r) and
      w = T(1, r). Σ w gets 1e-9 added in the object, and the canvas is the reference's: square, centred on the
      mean position, with ceil(max |r − r̄|) pixels beyond the crop on each side, one more if that is odd
      [docs/reference_model.md §6].
    - ``smooth``: sin²(π·(u + ½) / M) for −½ < u < M − ½ and 0 elsewhere (a Hann window), so that no border of a
      patch shows. The canvas is the smallest one that holds every square, on whole pixels of the positions' frame
      (for even N).

    Args:
        positions_px: (x, y) of all patches that will come. For ``smooth`` two corners of their bounding box do.
        patch_px: N, side of the patches.
        crop_px: M, side of the central square that is used; even.
        weighting: see above.
        device: where the sums live.

    Raises:
        DataContractError: no positions, or one that is not finite; an odd or too large crop; a canvas of more than
            2²⁸ pixels.

    >>> stitcher = Stitcher(torch.tensor([[0.0, 0.0], [3.0, 0.0]]), patch_px=4, crop_px=4, weighting="smooth")
    >>> stitcher.add(torch.ones(2, 4, 4, dtype=torch.complex64), torch.tensor([[0.0, 0.0], [3.0, 0.0]]))
    >>> stitched = stitcher.result()
    >>> stitched.object.shape, stitched.origin_px
    (torch.Size([4, 7]), (-2.0, -2.0))
    """

    def __init__(
        self,
        positions_px: Float[Tensor, "n 2"],
        patch_px: int,
        crop_px: int,
        weighting: Weighting,
        *,
        device: torch.device | str = "cpu",
    ) -> None:
        if crop_px % 2 or not 0 < crop_px <= patch_px:
            raise DataContractError(
                f"crop_px = {crop_px}; expected an even number from 2 to the patch side {patch_px}."
            )
        if len(positions_px) == 0:
            raise DataContractError("positions_px is empty; a canvas needs at least one position.")
        positions = _finite(positions_px)
        if weighting == "uniform":
            anchor = positions.mean(0)
            margin = math.ceil(float((positions - anchor).abs().max()))
            margin += margin % 2
            self._margin_px = (margin, margin)
            width = height = crop_px + 2 * margin
        else:
            anchor = torch.zeros(2, dtype=torch.float64)
            (left, top), (right, bottom) = positions.amin(0).tolist(), positions.amax(0).tolist()
            self._margin_px = (-math.floor(left), -math.floor(top))
            width, height = math.ceil(right) - math.floor(left) + crop_px, math.ceil(bottom) - math.floor(top) + crop_px
        if width * height > _MOST_PIXELS:
            raise DataContractError(
                f"The positions ask for a canvas of {width} × {height} pixels; expected at most {_MOST_PIXELS} pixels. "
                "Positions are in object pixels: check their unit, drop stray ones, or stitch the scan in parts."
            )
        self.patch_px, self.crop_px, self.weighting = patch_px, crop_px, weighting
        self._anchor = anchor
        self._start = (patch_px - crop_px) // 2
        # Re Σ w·v, Im Σ w·v, Σ w, Σ w·|v|²
        self._sums = torch.zeros((4, height, width), dtype=torch.float64, device=device)
        self._added = 0

    @property
    def origin_px(self) -> tuple[float, float]:
        """(x, y) of the canvas's first pixel in the frame of the positions."""
        corner = self._start - self.patch_px / 2
        x, y = (float(anchor) + corner - margin for anchor, margin in zip(self._anchor, self._margin_px, strict=True))
        return x, y

    def add(self, patches: Complex[Tensor, "n N N"], positions_px: Float[Tensor, "n 2"]) -> None:
        """Add patches, of any device and precision, at their positions.

        Raises:
            DataContractError: lengths differ, patches of another side, or a position that the canvas was not made for.
        """
        n, *sides = patches.shape
        if positions_px.shape != (n, 2):
            raise DataContractError(
                f"positions_px has shape {tuple(positions_px.shape)} for {n} patches; expected ({n}, 2)."
            )
        if sides != [self.patch_px, self.patch_px]:
            raise DataContractError(
                f"patches has shape {tuple(patches.shape)}; expected (n, {self.patch_px}, {self.patch_px}) as the "
                "stitcher was made for. Make another stitcher for patches of another side."
            )
        offsets = _finite(positions_px) - self._anchor
        whole = torch.floor(offsets)
        fractions = offsets - whole
        _, height, width = self._sums.shape
        M, last = self.crop_px, torch.tensor([width, height]) - self.crop_px
        corners = whole + torch.tensor(self._margin_px)
        outside = ((corners < 0) | (torch.ceil(offsets) - whole + corners > last)).any(1)
        if outside.any():
            x, y = positions_px[int(outside.nonzero()[0])].tolist()
            raise DataContractError(
                f"The patch at ({x}, {y}) reaches outside the canvas of {width} × {height} pixels from "
                f"{self.origin_px}. Make the stitcher with the positions of all patches that will come."
            )
        cropped = patches.detach()[:, self._start : self._start + M, self._start : self._start + M]
        places = corners.long().tolist()
        for first in range(0, n, _CHUNK):
            some = slice(first, first + _CHUNK)
            placed = _place(cropped[some].to(self._sums.device), fractions[some].to(self._sums.device), self.weighting)
            for terms, (x, y) in zip(placed, places[some], strict=True):
                # The canvas ends where the last row or column would get the zero weight of a whole-pixel offset.
                window = self._sums[:, y : y + M + 1, x : x + M + 1]
                window += terms[:, : window.shape[1], : window.shape[2]]
        self._added += n

    @property
    def added(self) -> int:
        """Number of patches so far."""
        return self._added

    @property
    def covered(self) -> Bool[Tensor, "H W"]:
        """True where a patch reaches."""
        covered: Tensor = self._sums[2] > 0
        return covered

    def cut(self, rows: slice, columns: slice) -> Complex[Tensor, "h w"]:
        """Return a part of the object of the patches so far, all of it covered."""
        real, imaginary, weight = self._sums[:3, rows, columns]
        part: Tensor = torch.complex(real, imaginary) / weight
        return part

    def absorb(self, other: "Stitcher") -> None:
        """Add all patches of a stitcher that was made with the same arguments."""
        self._sums += other._sums
        self._added += other._added

    def result(self) -> Stitched:
        """Return the object of the patches so far; more may be added afterwards.

        Raises:
            DataContractError: no patch was added.
        """
        if self._added == 0:
            raise DataContractError("No patch was added, so there is no object. Add patches first.")
        total, weight, square = torch.complex(self._sums[0], self._sums[1]), self._sums[2], self._sums[3]
        covered = weight > 0
        divisor = torch.where(covered, weight, 1.0)
        variance = square - total.abs().square() / divisor
        # The other way round, a patch that is not finite would agree with everything.
        variance = torch.where(variance <= _ROUNDING * square, 0.0, variance / divisor)
        return Stitched(
            object=total / (weight + STITCH_FLOOR if self.weighting == "uniform" else divisor),
            coverage=weight.clone(),
            disagreement=variance.sqrt(),
            origin_px=self.origin_px,
        )


class ExperimentStitcher:
    """Keep one ``Stitcher`` for each experiment, so that their objects never mix.

    Args:
        positions_px: (x, y) of all patches that will come, by number of the experiment; each in its own frame.
        patch_px: N, side of the patches.
        crop_px: M, side of the central square that is used; even.
        weighting: of ``Stitcher``.
        device: where the sums live.

    Attributes:
        stitchers: by number of the experiment.

    Raises:
        DataContractError: of ``Stitcher``.
    """

    def __init__(
        self,
        positions_px: Mapping[int, Float[Tensor, "_ 2"]],
        patch_px: int,
        crop_px: int,
        weighting: Weighting,
        *,
        device: torch.device | str = "cpu",
    ) -> None:
        self.stitchers = {
            experiment: Stitcher(positions, patch_px, crop_px, weighting, device=device)
            for experiment, positions in positions_px.items()
        }

    def add(
        self, patches: Complex[Tensor, "n N N"], positions_px: Float[Tensor, "n 2"], experiments: Int[Tensor, "n"]
    ) -> None:
        """Add patches at their positions, each to the object of its experiment.

        Raises:
            DataContractError: lengths differ, an experiment without positions, or as ``Stitcher.add``.
        """
        if not len(patches) == len(positions_px) == len(experiments):
            raise DataContractError(
                f"{len(patches)} patches, {len(positions_px)} positions and {len(experiments)} numbers of "
                "experiments; expected one of each for every patch."
            )
        present = torch.unique(experiments).tolist()
        for experiment in present:
            if experiment not in self.stitchers:
                raise DataContractError(
                    f"A patch belongs to experiment {experiment}, and the stitcher was made for "
                    f"{sorted(self.stitchers)}. Make it with the positions of every experiment."
                )
        for experiment in present:
            chosen = experiments == experiment
            self.stitchers[experiment].add(
                patches[chosen.to(patches.device)], positions_px[chosen.to(positions_px.device)]
            )

    def results(self) -> dict[int, Stitched]:
        """Return the object of each experiment.

        Raises:
            DataContractError: an experiment got no patch.
        """
        return {experiment: stitcher.result() for experiment, stitcher in self.stitchers.items()}


class HalfStitcher:
    """Stitch two halves of the groups apart, compare them, and add them up to the whole objects.

    The halves share no group, and no pattern where groups have one pattern; see
    ``ptycho_torch.reconstruction.half_split.split_patterns``.

    Args:
        first: stitcher of the first half, made for the positions of all groups.
        second: stitcher of the second half, made alike.
        halves: half of each pattern, by its number.
    """

    def __init__(self, first: ExperimentStitcher, second: ExperimentStitcher, halves: Bool[Tensor, "M"]) -> None:
        self._stitchers, self._halves = (first, second), halves
        self._seen = torch.zeros((2, len(halves)), dtype=torch.bool)
        self._scan = torch.full((len(halves),), -1, dtype=torch.int32)

    def add(
        self,
        patches: Complex[Tensor, "n N N"],
        positions_px: Float[Tensor, "n 2"],
        experiments: Int[Tensor, "n"],
        patterns: Int[Tensor, "n C"],
    ) -> None:
        """Add patches at their positions, each to the object of its experiment and half.

        Args:
            patches: of any device and precision.
            positions_px: (x, y) of each.
            experiments: number of each.
            patterns: numbers of the patterns that each was predicted from.

        Raises:
            DataContractError: as ``ExperimentStitcher.add``.
        """
        patterns = patterns.long()
        second = torch.from_numpy(half_of_groups(self._halves[patterns].numpy()))
        self._scan[patterns] = experiments.int()[:, None].expand(patterns.shape)
        for half, stitcher in enumerate(self._stitchers):
            chosen = second == half
            if bool(chosen.any()):
                self._seen[half, patterns[chosen].flatten()] = True
                stitcher.add(patches[chosen.to(patches.device)], positions_px[chosen], experiments[chosen])

    def absorb(self, other: "HalfStitcher") -> None:
        """Add all patches of a stitcher that was made with the same arguments."""
        for ours, theirs in zip(self._stitchers, other._stitchers, strict=True):
            for experiment, stitcher in ours.stitchers.items():
                stitcher.absorb(theirs.stitchers[experiment])
        self._seen |= other._seen
        self._scan = torch.maximum(self._scan, other._scan)

    def results(self) -> dict[int, Stitched]:
        """Return the object of each experiment; nothing can be added afterwards.

        Raises:
            DataContractError: an experiment got no patch.
        """
        found = {}
        for experiment, first in self._stitchers[0].stitchers.items():
            second = self._stitchers[1].stitchers[experiment]
            half_split = self._compare(experiment, first, second)
            first.absorb(second)
            found[experiment] = replace(first.result(), half_split=half_split)
        return found

    def _compare(self, experiment: int, first: Stitcher, second: Stitcher) -> HalfSplit:
        used = self._seen[:, self._scan == experiment]
        both = float(used.all(0).double().mean()) if used.shape[1] else 0.0
        groups = (first.added, second.added)
        square = covered_square((first.covered & second.covered).numpy(force=True))
        if square is None:
            return HalfSplit(groups, both, 0, None)
        objects = (each.cut(*square).numpy(force=True) for each in (first, second))
        return compare_halves(*objects, groups=groups, patterns_in_both=both)


def stitch_patches(
    patches: Complex[Tensor, "n N N"], positions_px: Float[Tensor, "n 2"], crop_px: int
) -> Complex[Tensor, "H H"]:
    """Average the central squares of patches at their positions, as the reference does.

    canvas = Σ T(crop, r − r̄) / (1e-9 + Σ T(1, r − r̄))    [docs/reference_model.md §6]

    Pixels that no patch covers are zero. See ``Stitcher`` with uniform weights.

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
    stitcher = Stitcher(positions_px, N, crop_px, "uniform", device=patches.device)
    stitcher.add(patches, positions_px)
    return stitcher.result().object.to(patches.dtype)


def _finite(positions_px: Float[Tensor, "n 2"]) -> Float[Tensor, "n 2"]:
    """Return positions as float64 on the CPU, where whole pixels are counted."""
    positions = positions_px.detach().to("cpu", torch.float64)
    strange = ~positions.isfinite().all(1)
    if strange.any():
        raise DataContractError(
            f"positions_px has {int(strange.sum())} rows that are not finite, the first is row "
            f"{int(strange.nonzero()[0])}; expected pixels. Drop those patches or repair the scan."
        )
    return positions


def _place(
    crops: Complex[Tensor, "n M M"], fractions_px: Float[Tensor, "n 2"], weighting: Weighting
) -> Float[Tensor, "n 4 out out"]:
    """Shift crops by fractions of a pixel and return the terms of the four sums, one row and column larger."""
    M = crops.shape[-1]
    fx, fy = fractions_px[:, 0, None], fractions_px[:, 1, None]  # (n, 1)
    images = torch.stack([crops.real, crops.imag], dim=1).to(torch.float64)  # (n, 2, M, M)
    fx4, fy4 = fx[:, :, None, None], fy[:, :, None, None]
    images = (1 - fx4) * pad(images, (0, 1)) + fx4 * pad(images, (1, 0))
    images = (1 - fy4) * pad(images, (0, 0, 0, 1)) + fy4 * pad(images, (0, 0, 1, 0))  # (n, 2, M+1, M+1)
    along_x, gain_x = _weights(fx, M, weighting)
    along_y, gain_y = _weights(fy, M, weighting)
    images *= (gain_y[:, :, None] * gain_x[:, None, :])[:, None]
    weight = along_y[:, :, None] * along_x[:, None, :]
    square = images.square().sum(1) / torch.where(weight > 0, weight, 1.0)
    return torch.cat([images, weight[:, None], square[:, None]], dim=1)


def _weights(
    fraction_px: Float[Tensor, "n 1"], M: int, weighting: Weighting
) -> tuple[Float[Tensor, "n out"], Float[Tensor, "n out"]]:
    """Return w along one axis, and w over the share of the bilinear neighbours that lie inside the crop."""
    u = torch.arange(M + 1, device=fraction_px.device) - fraction_px  # (n, M+1)
    inside = torch.minimum(1 + u, M - u).clamp(0, 1)
    if weighting == "uniform":
        return inside, torch.ones_like(inside)
    window = torch.sin(torch.pi / M * (u + 0.5)).square()
    weight = torch.where((u > -0.5) & (u < M - 0.5) & (window > _LEAST_WEIGHT), window, 0.0)
    return weight, weight / torch.where(weight > 0, inside, 1.0)
