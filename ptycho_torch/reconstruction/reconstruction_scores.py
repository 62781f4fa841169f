"""What is known of a reconstruction whose object is not known: for the terminal, a JSON file and the picture.

Fields of the file: <doc-ref type="guide">docs/workflows/pytorch.md</doc-ref>.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ptycho_torch.errors import DataContractError
from ptycho_torch.reconstruction.diffraction_scores import DiffractionScores, MeasuredPatterns, score_diffraction
from ptycho_torch.reconstruction.half_split import KIND, LEAST_SIDE_PX, HalfSplit
from ptycho_torch.reconstruction.products import Reconstruction
from ptycho_torch.reconstruction.rings import RingCorrelation, describe_resolution

if TYPE_CHECKING:
    from ptycho_torch.dset_loader_pt_mmap import PtychoDataset

LARGEST_DISAGREEMENT = 1.0
"""Where overlapping patches differ by more than the object varies, the object is not a picture of anything."""


@dataclasses.dataclass(frozen=True)
class ReconstructionScores:
    """Scores without a known object.

    Attributes:
        contrast: ``Reconstruction.contrast`` over ``Reconstruction.mean_modulus``.
        disagreement: ``Reconstruction.relative_disagreement``.
        half_split: agreement of two halves of the groups; None where they were not stitched apart.
        diffraction: how well object and probe predict the measured patterns, or why that cannot be said.
        pixel_size_m: side of an object pixel, or None.
    """

    contrast: float
    disagreement: float
    half_split: HalfSplit | None
    diffraction: DiffractionScores | str
    pixel_size_m: float | None = None

    def numbers(self) -> dict[str, Any]:
        """Return all of it, ready for JSON but for numbers that are not finite."""
        scored = isinstance(self.diffraction, DiffractionScores)
        return {
            "contrast": self.contrast,
            "disagreement_over_contrast": self.disagreement,
            "half_split": None if self.half_split is None else self._half_split(self.half_split),
            "diffraction": self.diffraction.numbers() if isinstance(self.diffraction, DiffractionScores) else None,
            "no_diffraction_because": None if scored else self.diffraction,
        }

    @classmethod
    def from_numbers(cls, numbers: Mapping[str, Any], pixel_size_m: float | None) -> ReconstructionScores:
        """Return scores from what ``numbers`` says, as ``infer`` has written it.

        Raises:
            KeyError: a name that is missing.
            TypeError: a value of another kind.
            ValueError: likewise.
        """
        split, diffraction = numbers["half_split"], numbers["diffraction"]
        fields = [field.name for field in dataclasses.fields(DiffractionScores)]
        return cls(
            contrast=_number(numbers["contrast"]),
            disagreement=_number(numbers["disagreement_over_contrast"]),
            half_split=None if split is None else _read_half_split(split),
            diffraction=(
                str(numbers["no_diffraction_because"])
                if diffraction is None
                else DiffractionScores(**{name: diffraction[name] for name in fields})
            ),
            pixel_size_m=pixel_size_m,
        )

    def _half_split(self, split: HalfSplit) -> dict[str, Any]:
        rings, size = split.rings, self.pixel_size_m
        return {
            "kind": KIND,
            "groups": split.groups,
            "patterns_in_both": split.patterns_in_both,
            "side_px": split.side_px,
            "half_bit_per_px": None if rings is None else rings.half_bit_per_px,
            "half_bit_resolution_px": None if rings is None else rings.half_bit_resolution_px,
            "half_bit_resolution_m": None if rings is None or size is None else rings.half_bit_resolution_px * size,
            "frequencies_per_px": None if rings is None else rings.frequencies_per_px.tolist(),
            "curve": None if rings is None else rings.curve.tolist(),
            "half_bit": None if rings is None else rings.half_bit.tolist(),
        }

    def describe(self) -> tuple[str, ...]:
        """Return lines for the terminal."""
        disagreement = "unknown" if math.isnan(self.disagreement) else f"{self.disagreement:.3g}"
        rows = [("contrast", f"{self.contrast:.3g}; overlapping patches disagree by {disagreement} of it")]
        if isinstance(self.diffraction, DiffractionScores):
            rows += self.diffraction.describe()
        else:
            rows.append(("diffraction", f"none: {self.diffraction}"))
        if self.half_split is not None:
            rows.append(("half-split resolution", self.resolution()))
            both = self.half_split.patterns_in_both
            rows.append(("", f"({KIND}; {both:.0%} of the patterns in both:"))
            rows.append(("", "consistency, not accuracy, and optimistic)"))
        return tuple(f"{name:<22}{text}" for name, text in rows)

    def resolution(self) -> str:
        """Return the half-split resolution for people, or why there is none."""
        if self.half_split is None or self.half_split.rings is None:
            return f"none: the halves share no covered square of {LEAST_SIDE_PX} px"
        if self.disagreement > LARGEST_DISAGREEMENT:
            return "none: overlapping patches disagree by more than the object's contrast"
        rings = self.half_split.rings
        return describe_resolution(rings.half_bit_resolution_px, self.pixel_size_m, "the half-bit curve")


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _read_half_split(numbers: Mapping[str, Any]) -> HalfSplit:
    rings = None
    if numbers["curve"] is not None:
        # The file has the crossing of the half-bit curve only.
        rings = RingCorrelation(
            frequencies_per_px=np.array(numbers["frequencies_per_px"], np.float64),
            curve=np.array(numbers["curve"], np.float64),
            half_bit=np.array(numbers["half_bit"], np.float64),
            frc50_per_px=math.nan,
            frc1over7_per_px=math.nan,
            half_bit_per_px=_number(numbers["half_bit_per_px"]),
            resolution_px=math.nan,
            half_bit_resolution_px=_number(numbers["half_bit_resolution_px"]),
        )
    first, second = numbers["groups"]
    return HalfSplit((int(first), int(second)), float(numbers["patterns_in_both"]), int(numbers["side_px"]), rings)


def score_reconstruction(
    reconstruction: Reconstruction, half_split: HalfSplit | None, dataset: PtychoDataset, number: int
) -> ReconstructionScores:
    """Score a reconstruction of a scan of a dataset, by the number of the scan.

    Raises:
        ConfigError: settings in the provenance that are not possible.
    """
    level, disagreement = reconstruction.mean_modulus, reconstruction.relative_disagreement
    contrast = reconstruction.contrast / level if level > 0 else math.nan
    diffraction: DiffractionScores | str
    try:
        diffraction = score_diffraction(reconstruction, MeasuredPatterns.of_dataset(dataset, number))
    except DataContractError as err:
        diffraction = str(err)
    if half_split is not None and half_split.rings is not None and disagreement > LARGEST_DISAGREEMENT:
        half_split = dataclasses.replace(half_split, rings=half_split.rings.without_resolution())
    return ReconstructionScores(contrast, disagreement, half_split, diffraction, reconstruction.pixel_size_m)
