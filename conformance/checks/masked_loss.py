"""The loss of a batch with bad pixels, as a step of training computes it, and its gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from conformance.checks.light import draw_wave
from conformance.judge.agreement import FLOAT64, Compared
from conformance.oracle.operations import central_square, normalise_probe
from conformance.oracle.training import (
    LossOfBatch,
    Predicted,
    loss_of_batch,
    shares_of_good_pixels,
)

if TYPE_CHECKING:
    import torch


BATCH, CHANNELS, SIDE_PX = 3, 4, 16
LOSS_WEIGHTS = {"nll_weight": 0.7, "mae_weight": 0.3, "realspace_weight": 0.5, "tv_weight": 0.01}
SCALE, PROBE_SCALE = 1.7, 3.0


@dataclass(frozen=True)
class _Masked:
    """A batch of two scans that differ in probe and bad pixels, and what a network might predict of it.

    Attributes:
        images: (B, C, N, N) normalised amplitude; bad pixels are brighter than all others.
        offsets_px: (B, C, 1, 2).
        probes: (2, 1, N, N) of the scans.
        masks: (2, N, N) good pixels of the scans.
        scans: (B,) number of the scan of each group.
        predicted: where the losses are taken; amplitude and intensity are drawn apart, so that each shows.
    """

    images: np.ndarray
    offsets_px: np.ndarray
    probes: np.ndarray
    masks: np.ndarray
    scans: np.ndarray
    predicted: Predicted

    @classmethod
    def drawn(cls) -> _Masked:
        rng = np.random.default_rng(4)
        shape, side = (BATCH, CHANNELS, SIDE_PX, SIDE_PX), (SIDE_PX, SIDE_PX)
        scans, masks = np.array([1, 0, 1]), rng.random((2, *side)) > np.array([0.1, 0.3])[:, None, None]
        bright = np.where(masks[scans][:, None], 1.0, 5.0)
        return cls(
            images=bright * rng.uniform(0.1, 2.0, shape),
            offsets_px=rng.uniform(-3, 3, (BATCH, CHANNELS, 1, 2)),
            probes=draw_wave(rng, 2, 1, *side),
            masks=masks,
            scans=scans,
            predicted=Predicted(
                draw_wave(rng, BATCH, 1, *side), rng.uniform(0.1, 3.0, shape), rng.uniform(0.1, 9.0, shape)
            ),
        )

    @property
    def good(self) -> np.ndarray:
        """(B, 1, N, N) good pixels of each group."""
        return np.asarray(self.masks[self.scans][:, None])

    @property
    def normalised_probes(self) -> np.ndarray:
        """(B, C, 1, N, N) probe of every pattern."""
        probes = np.array([normalise_probe(probe, PROBE_SCALE) for probe in self.probes[:, 0]])
        return np.repeat(probes[self.scans][:, None, None], CHANNELS, axis=1)

    def loss(self, good: np.ndarray) -> LossOfBatch:
        """Return the loss with (B, 1, N, N) good pixels."""
        shares = shares_of_good_pixels(good, self.images.shape)
        return loss_of_batch(self.predicted, self.images * SCALE, shares, LOSS_WEIGHTS, central_square(SIDE_PX))


def _named_loss(case: str, loss: LossOfBatch) -> dict[str, np.ndarray]:
    return {
        f"{case}: loss": loss.terms[0],
        f"{case}: by intensity": loss.by.intensity,
        f"{case}: by amplitude": loss.by.amplitude,
        f"{case}: by object": loss.by.image,
        f"{case}: training terms": loss.terms,
        f"{case}: validation terms": loss.terms,
    }


def _masked_step(batch: _Masked, case: str, images: np.ndarray, masks: np.ndarray | None) -> dict[str, np.ndarray]:
    """Return what the real steps of a batch give in front of a network whose prediction is given."""
    import torch

    from ptycho_torch.config_params import Settings
    from ptycho_torch.dset_loader_pt_mmap import PtychoBatch
    from ptycho_torch.model import Prediction
    from ptycho_torch.train import PtychoPINN

    one_probe = masks is None
    settings = Settings().override(
        {
            "gridsize": 2, "n_filters_scale": 1, "intensity_scale": SCALE, "probe_scale": PROBE_SCALE,
            "probe_big": False, "precision": "64-true", **LOSS_WEIGHTS,
        }
    )  # fmt: skip
    module = PtychoPINN(settings, statistics={"probe_modes": 1, "one_probe": one_probe})
    drawn = batch.predicted
    leaves = [torch.from_numpy(each).requires_grad_() for each in (drawn.image, drawn.amplitude, drawn.intensity)]
    heard: list[np.ndarray] = []

    class Network(torch.nn.Module):
        def __init__(self, settings: object) -> None:
            super().__init__()
            self.settings = settings

        def forward(
            self, amplitude: torch.Tensor, offsets_px: torch.Tensor, probe: torch.Tensor | None = None
        ) -> Prediction:
            heard[:] = [
                np.zeros(0) if each is None else each.detach().numpy() for each in (amplitude, offsets_px, probe)
            ]
            return Prediction(*leaves)

    module.add_module("network", Network(module.network.settings))
    given = PtychoBatch(
        images=torch.from_numpy(images),
        coords=torch.from_numpy(batch.offsets_px),
        scale=torch.full((BATCH,), 0.3),
        centres=torch.zeros(BATCH, 1, 1, 2, dtype=torch.float64),
        indices=torch.arange(BATCH * CHANNELS, dtype=torch.int32).view(BATCH, CHANNELS),
        groups=torch.arange(BATCH),
        experiment_ids=torch.from_numpy(batch.scans),
        probes=torch.from_numpy(batch.probes),
        probe_ids=torch.from_numpy(batch.scans),
        masks=None if masks is None else torch.from_numpy(masks),
    )
    found: dict[str, np.ndarray] = {}
    loss = module.training_step(given)
    gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
    found[f"{case}: loss"] = loss.detach().numpy()
    for name, leaf, gradient in zip(("object", "amplitude", "intensity"), leaves, gradients, strict=True):
        found[f"{case}: by {name}"] = (torch.zeros_like(leaf) if gradient is None else gradient).detach().numpy()
    module.validation_step(given)
    for part, name in (("train", "training"), ("val", "validation")):
        means = module._mean(part)
        order = (f"{part}_loss", f"poisson_{part}_loss", f"mae_{part}_loss", f"realspace_{part}_loss")
        found[f"{case}: {name} terms"] = np.array([means[each] for each in order])
    return found | dict(zip((f"{case}: {name}" for name in ("input", "offsets", "probe")), heard, strict=True))


def masked_loss() -> Compared:
    """The loss of a batch and its gradient by the prediction, with bad pixels that differ from scan to scan."""
    batch = _Masked.drawn()
    good = batch.good
    nothing = np.where(good, batch.images, np.nan)
    cases = {
        "bright bad pixels": (batch.images, batch.masks, batch.loss(good)),
        "bad pixels that are not finite": (nothing, batch.masks, batch.loss(good)),
        "no good pixel": (batch.images, np.zeros_like(batch.masks), batch.loss(np.zeros_like(good))),
        "no mask": (batch.images, None, batch.loss(np.ones_like(good))),
    }
    expected: dict[str, np.ndarray] = {}
    found: dict[str, np.ndarray] = {}
    for case, (images, masks, right) in cases.items():
        probe = np.zeros(0) if masks is None else batch.normalised_probes
        expected |= _named_loss(case, right)
        expected |= {f"{case}: input": images * SCALE, f"{case}: offsets": batch.offsets_px, f"{case}: probe": probe}
        found |= _masked_step(batch, case, images, masks)
    return Compared(expected, found, FLOAT64)
