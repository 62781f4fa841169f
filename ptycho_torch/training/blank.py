"""Recognise a blank object: the network's prediction does not depend on which pattern it is given.

The loss alone does not show it. A constant object predicts the patterns of the empty beam, which is most of the counts,
and the loss falls to that level within an epoch. What to do about one:
<doc-ref type="guide">docs/workflows/pytorch.md</doc-ref>.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ptycho_torch.data.probe import normalise_probe
from ptycho_torch.helper import central_mask

if TYPE_CHECKING:
    from ptycho_torch.dset_loader_pt_mmap import PtychoBatch, PtychoDataset
    from ptycho_torch.training.lightning_module import PtychoPINN

LEAST_CORRELATION = 0.1
"""Objects whose patterns correlate less are blank. After training with too low a clip, 0.02 was found."""

CERTAIN_CORRELATION = 0.3
"""Objects whose patterns correlate more are not blank. True objects were found at 0.38 (0.05 rad, 1e5 counts a pattern)
and more, and trained ones from 0.5 on."""

LEAST_GAIN = 0.02
"""Between the two, objects are blank whose error is not smaller by this part than that of a constant object. Networks
before training were found up to a correlation of 0.14, with a gain below 0.01."""

MOST_DISAGREEMENT = 1.7
"""Overlapping patches that differ by more than this times the contrast of the object do not show one object."""

CHECKED_PATTERNS = 64
"""Patterns of a scan that a check looks at."""

_GROUPS_AT_ONCE = 16

_BOUND = 0.01
"""Distance to a bound of the amplitude's activation within which its gradient is all but zero."""

ADVICE = (
    "Try more epochs (--max-epochs), the defaults of clipping, batch size and learning rate, and look at positions, "
    "probe and orientation with ptycho-torch check-data; docs/blank_object.md has more."
)
"""What helps against a blank object."""


@dataclasses.dataclass(frozen=True)
class ObjectCheck:
    """How the object of a scan compares with a constant one.

    Attributes:
        pattern_correlation: see ``compare``; 0 for a constant object, 1 for the true one without noise.
        diffraction_error: likewise, of the predicted patterns.
        constant_error: likewise, of the patterns of a constant object.
        contrast: RMS deviation of the object from its mean over the magnitude of that mean, where the probe shines.
        saturated: part of the amplitude that lies at a bound of its activation.
        disagreement: ``Reconstruction.relative_disagreement``; None before the patches are stitched, and of a constant
            object.
    """

    pattern_correlation: float
    diffraction_error: float
    constant_error: float
    contrast: float
    saturated: float
    disagreement: float | None = None

    @property
    def is_blank(self) -> bool:
        """Whether the object explains the patterns no better than a constant object does."""
        gains = self.diffraction_error <= (1 - LEAST_GAIN) * self.constant_error
        # A value that is not finite counts as blank.
        return not self.pattern_correlation >= (LEAST_CORRELATION if gains else CERTAIN_CORRELATION)

    @property
    def is_inconsistent(self) -> bool:
        """Whether overlapping patches show different objects."""
        return self.disagreement is not None and not self.disagreement <= MOST_DISAGREEMENT

    def describe(self) -> str:
        """Return the numbers that the verdict rests on, as a part of a sentence."""
        return (
            f"diffraction error {100 * self.diffraction_error:.3g} %, of a constant object "
            f"{100 * self.constant_error:.3g} %; correlation with what differs between patterns "
            f"{self.pattern_correlation:.2f}"
        )

    def warning(self) -> str | None:
        """Return in one line what is wrong and what to try; None where the object is neither blank nor inconsistent."""
        if self.is_blank:
            saturated = ""
            if self.saturated > 0.5:
                saturated = f" {100 * self.saturated:.0f} % of the amplitude is at a bound of amp_activation."
            return f"the object is blank ({self.describe()}).{saturated} {ADVICE}"
        if self.is_inconsistent:
            return (
                f"overlapping patches differ by {self.disagreement:.1f} times the contrast of the object, so they do "
                "not show one object. Try more epochs, and look at the positions, their unit and orientation with "
                "ptycho-torch check-data."
            )
        return None

    def numbers(self) -> dict[str, float | bool | None]:
        """Return verdicts and values, ready for JSON; values that are not finite become None."""
        values = {
            name: value if value is None or math.isfinite(value) else None
            for name, value in dataclasses.asdict(self).items()
        }
        return {"blank": self.is_blank, "inconsistent": self.is_inconsistent, **values}

    def with_disagreement(self, relative: float) -> ObjectCheck:
        """Return the check with ``Reconstruction.relative_disagreement``; NaN, of a constant object, leaves it out."""
        return self if math.isnan(relative) else dataclasses.replace(self, disagreement=relative)


def compare(
    measured: Float[Tensor, "P N N"],
    predicted: Float[Tensor, "P N N"],
    constant: Float[Tensor, "P N N"],
    good_pixels: Bool[Tensor, "*P N N"] | None = None,
) -> tuple[float, float, float]:
    """Compare amplitudes of patterns with those that were measured and with those of a constant object.

    pattern_correlation = Σ (a − ā)·(b − b̄) / √(Σ |a − ā|² · Σ |b − b̄|²) over all patterns, a measured and b predicted
    amplitude of a pattern, each over its own norm, and ā, b̄ their means over the patterns. So neither the brightness
    of a pattern nor an error that all patterns share, of probe or detector, counts. It is 0 where the predicted
    patterns are all the same.

    error = min over s of Σ (s·b − a)² / Σ a², one s for all patterns.

    Args:
        measured: amplitude of patterns of one scan.
        predicted: likewise, at any scale.
        constant: of a constant object under the same probe, at any scale.
        good_pixels: True where a pixel counts.

    Returns:
        Pattern correlation, error of the prediction, error of the constant object.
    """
    a, b, c = (each.to(torch.float64) for each in (measured, predicted, constant.expand_as(measured)))
    if good_pixels is not None:
        a, b, c = (torch.where(good_pixels, each, 0) for each in (a, b, c))
    from_mean_a, from_mean_b = _from_mean(a), _from_mean(b)
    size = (from_mean_a.square().sum() * from_mean_b.square().sum()).sqrt()
    # Patterns that are all alike differ by rounding.
    correlation = (from_mean_a * from_mean_b).sum() / size if size > 1e-12 * len(a) else size.new_zeros(())
    return float(correlation), _error(b, a), _error(c, a)


def _from_mean(amplitude: Tensor) -> Tensor:
    norm = torch.linalg.vector_norm(amplitude, dim=(1, 2), keepdim=True)
    unit: Tensor = amplitude / norm.clamp_min(torch.finfo(amplitude.dtype).tiny)
    return unit - unit.mean(0)


def _error(amplitude: Tensor, measured: Tensor) -> float:
    """Return Σ (s·amplitude − measured)² / Σ measured² at the best s."""
    scale = (amplitude * measured).sum() / amplitude.square().sum().clamp_min(torch.finfo(amplitude.dtype).tiny)
    return float((scale * amplitude - measured).square().sum() / measured.square().sum())


def checked_groups(dataset: PtychoDataset, groups: Tensor | None = None) -> Tensor:
    """Return groups to check, spread over those given: of each scan as many as hold ``CHECKED_PATTERNS``.

    Args:
        dataset: of the groups.
        groups: (L,) numbers to choose from; None for all.
    """
    groups = torch.arange(len(dataset)) if groups is None else groups
    scans = dataset.experiment_ids[groups]
    count = math.ceil(CHECKED_PATTERNS / dataset.settings.C)
    chosen = []
    for scan in scans.unique():
        own = groups[scans == scan]
        chosen.append(own[torch.linspace(0, len(own) - 1, min(count, len(own))).round().long()])
    return torch.cat(chosen)


@torch.no_grad()
def check_objects(module: PtychoPINN, dataset: PtychoDataset, groups: Tensor | None = None) -> dict[int, ObjectCheck]:
    """Check the objects that a network predicts for some groups.

    Args:
        module: on any device; it is not changed.
        dataset: of the groups.
        groups: (L,) numbers of ``checked_groups``; None chooses them of all.

    Returns:
        Check by number of the scan.
    """
    groups = checked_groups(dataset) if groups is None else groups
    scans = dataset.experiment_ids[groups]
    return {int(scan): _check(module, dataset, groups[scans == scan]) for scan in scans.unique()}


def _check(module: PtychoPINN, dataset: PtychoDataset, groups: Tensor) -> ObjectCheck:
    device = module.network.log_scale.device
    parts = [_look_at(module, dataset[some].to(device)) for some in groups.split(_GROUPS_AT_ONCE)]
    measured, predicted, constant = (
        torch.cat(each).flatten(0, 1) for each in zip(*(part[0] for part in parts), strict=True)
    )
    mask = dataset[groups[:1]].good_pixels
    correlation, error, constant_error = compare(measured, predicted, constant, None if mask is None else mask[0, 0])
    squares = torch.stack([part[1] for part in parts]).sum(0)
    return ObjectCheck(
        pattern_correlation=correlation,
        diffraction_error=error,
        constant_error=constant_error,
        contrast=float((squares[0] / squares[1]).sqrt()) if squares[1] > 0 else 0.0,
        saturated=float(squares[2] / len(groups)),
    )


def _look_at(module: PtychoPINN, batch: PtychoBatch) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
    """Return measured, predicted and constant amplitude (B, C, N, N), and sums over groups for ``ObjectCheck``."""
    network = module.network
    dtype = network.log_scale.dtype
    probe = _probe(module, batch)
    measured, coords = (batch.images * module.scale).to(dtype), batch.coords.to(dtype)
    patches = network.predict_patches(measured)
    views = network.views(network.merged(patches, coords), coords)
    predicted = network.amplitude(network.exit_wave(views, probe))
    constant = network.amplitude(network.exit_wave(torch.ones_like(views), probe))
    light = probe.abs().square().sum(-3)
    light = light / light.sum((-2, -1), keepdim=True)
    mean = (light * views).sum((-2, -1), keepdim=True)
    variance = (light * (views - mean).abs().square()).sum((-2, -1))
    centre = central_mask(network.settings.N, device=views.device, dtype=views.real.dtype) > 0
    amplitude = patches.abs()[..., centre]
    at_bound = amplitude < _BOUND
    if network.settings.amp_activation == "sigmoid":
        at_bound |= amplitude > 1 - _BOUND
    sums = torch.stack(
        [variance.sum(), mean.abs().square().sum(), at_bound.to(variance.dtype).flatten(1).mean(1).sum()]
    )
    return (measured.cpu(), predicted.cpu(), constant.cpu()), sums.cpu()


def _probe(module: PtychoPINN, batch: PtychoBatch) -> Tensor:
    """Return the probe as the network has it, (M, N, N), or (B, 1, M, N, N) where each scan has its own."""
    if module.statistics["one_probe"]:
        return module.network.probe
    given = batch.probes[batch.probe_ids, None].to(module.network.probe.dtype)
    return normalise_probe(given, module.settings.model.probe_scale)
