"""The loss of a batch with bad pixels, as a step of training computes it, and its gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from conformance.hypotheses import Hypothesis
from conformance.oracle_operations import central_square, normalise_probe
from conformance.oracle_training import (
    LossOfBatch,
    Predicted,
    loss_of_batch,
    shares_of_good_pixels,
)
from conformance.step import FLOAT64, Outcome, Step, StepBench

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

        def wave(*shape: int) -> np.ndarray:
            return np.asarray(rng.standard_normal(shape) + 1j * rng.standard_normal(shape))

        scans, masks = np.array([1, 0, 1]), rng.random((2, *side)) > np.array([0.1, 0.3])[:, None, None]
        bright = np.where(masks[scans][:, None], 1.0, 5.0)
        return cls(
            images=bright * rng.uniform(0.1, 2.0, shape),
            offsets_px=rng.uniform(-3, 3, (BATCH, CHANNELS, 1, 2)),
            probes=wave(2, 1, *side),
            masks=masks,
            scans=scans,
            predicted=Predicted(wave(BATCH, 1, *side), rng.uniform(0.1, 3.0, shape), rng.uniform(0.1, 9.0, shape)),
        )

    @property
    def good(self) -> np.ndarray:
        """(B, 1, N, N) good pixels of each group."""
        return np.asarray(self.masks[self.scans][:, None])

    def normalised_probes(self, scans: np.ndarray) -> np.ndarray:
        """Return the (B, C, 1, N, N) probe of every pattern."""
        probes = np.array([normalise_probe(probe, PROBE_SCALE) for probe in self.probes[:, 0]])
        return np.repeat(probes[scans][:, None, None], CHANNELS, axis=1)

    def loss(
        self,
        good: np.ndarray | None = None,
        *,
        shares: np.ndarray | None = None,
        measured: np.ndarray | None = None,
        whole_object: bool = False,
    ) -> LossOfBatch:
        """Return the loss, with other good pixels, shares or measurement than its own where they are given."""
        shape = self.images.shape
        return loss_of_batch(
            self.predicted,
            self.images * SCALE if measured is None else measured,
            shares_of_good_pixels(self.good if good is None else good, shape) if shares is None else shares,
            LOSS_WEIGHTS,
            None if whole_object else central_square(SIDE_PX),
        )


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


def _masked_loss(_: StepBench) -> Outcome:
    """The loss of a batch and its gradient by the prediction, with bad pixels that differ from scan to scan."""
    batch = _Masked.drawn()
    good = batch.good
    nothing = np.where(good, batch.images, np.nan)
    cases = {
        "bright bad pixels": (batch.images, batch.masks, batch.loss()),
        "bad pixels that are no number": (nothing, batch.masks, batch.loss()),
        "no good pixel": (batch.images, np.zeros_like(batch.masks), batch.loss(np.zeros_like(good))),
        "no mask": (batch.images, None, batch.loss(np.ones_like(good))),
    }
    expected: dict[str, np.ndarray] = {}
    found: dict[str, np.ndarray] = {}
    for case, (images, masks, right) in cases.items():
        probe = np.zeros(0) if masks is None else batch.normalised_probes(batch.scans)
        expected |= _named_loss(case, right)
        expected |= {f"{case}: input": images * SCALE, f"{case}: offsets": batch.offsets_px, f"{case}: probe": probe}
        found |= _masked_step(batch, case, images, masks)
    return Outcome(expected, found, FLOAT64, lambda: _mistakes_with_masks(batch, cases))


def _mistakes_with_masks(
    batch: _Masked, cases: Mapping[str, tuple[np.ndarray, np.ndarray | None, LossOfBatch]]
) -> Iterator[Hypothesis]:
    def hypothesis(name: str, mistaken: Callable[[np.ndarray, np.ndarray], LossOfBatch]) -> Hypothesis:
        """Make one mistake, (measured, good pixels) → loss, in every case."""
        gives: dict[str, np.ndarray] = {}
        for case, (images, masks, _) in cases.items():
            good = np.ones_like(batch.good) if masks is None else masks[batch.scans][:, None]
            gives |= _named_loss(case, mistaken(images * SCALE, good))
        return Hypothesis(name, gives)

    def with_shares(name: str, shares: Callable[[np.ndarray], np.ndarray]) -> Hypothesis:
        """Weigh the pixels in another way, given the (B, 1, N, N) good ones."""

        def mistaken(measured: np.ndarray, good: np.ndarray) -> LossOfBatch:
            with np.errstate(invalid="ignore"):
                each = np.broadcast_to(shares(good), shape)
            return batch.loss(shares=each, measured=measured)

        return hypothesis(name, mistaken)

    shape = batch.images.shape
    size = batch.images.size
    yield with_shares("mask of bad pixels ignored", lambda good: np.full(shape, 1 / size))
    yield with_shares(
        "good pixels counted once, and not in every channel", lambda good: good / np.maximum(good.sum(), 1)
    )
    yield with_shares("mean over all pixels, bad ones as zeros", lambda good: good / size)
    yield with_shares("sum in place of mean over good pixels", lambda good: good.astype(np.float64))
    yield with_shares("no good pixel divides by zero", lambda good: good / np.float64(CHANNELS * good.sum()))
    yield with_shares(
        "mean over groups of the mean over each group's good pixels",
        lambda good: good / (BATCH * CHANNELS * np.maximum(good.sum(axis=(-2, -1), keepdims=True), 1)),
    )
    yield hypothesis(
        "measurement masked, prediction not",
        lambda measured, good: batch.loss(np.ones_like(good), measured=np.where(good, measured, 0)),
    )
    yield hypothesis(
        "bad pixels of the prediction counted",
        lambda measured, good: batch.loss(
            shares=np.full(shape, 1 / max(CHANNELS * int(good.sum()), 1)), measured=np.where(good, measured, 0)
        ),
    )
    for name, likelihood in (("mask reaches the likelihood alone", True), ("mask reaches the amplitude alone", False)):
        yield hypothesis(name, partial(_half_masked, batch, likelihood=likelihood))
    yield hypothesis("good and bad pixels exchanged", lambda measured, good: batch.loss(~good, measured=measured))
    for name, scans in (
        ("mask of another scan", 1 - batch.scans),
        ("mask of the first scan for all", np.zeros_like(batch.scans)),
        ("mask of the first group for all", np.full_like(batch.scans, batch.scans[0])),
    ):
        yield Hypothesis(name, _named_loss("bright bad pixels", batch.loss(batch.masks[scans][:, None])))
    for name, changed in (
        ("amplitude weighted as the likelihood", {"mae_weight": LOSS_WEIGHTS["nll_weight"]}),
        ("likelihood weighted as the amplitude", {"nll_weight": LOSS_WEIGHTS["mae_weight"]}),
        ("object weighted as the likelihood", {"realspace_weight": LOSS_WEIGHTS["nll_weight"]}),
        ("weights of the terms ignored", {"nll_weight": 1.0, "mae_weight": 1.0, "realspace_weight": 1.0}),
    ):
        yield hypothesis(name, partial(_weighted, batch, changed))
    yield hypothesis("measurement not scaled", lambda measured, good: batch.loss(good, measured=measured / SCALE))
    yield hypothesis("measurement scaled twice", lambda measured, good: batch.loss(good, measured=measured * SCALE))
    yield hypothesis(
        "object outside its central square counts (probe_big ignored)",
        lambda measured, good: batch.loss(good, measured=measured, whole_object=True),
    )
    masked = [case for case, (_, masks, _) in cases.items() if masks is not None]
    for name, probe in (
        ("the network's probe for those of the scans", np.zeros(0)),
        ("probe of another scan", batch.normalised_probes(1 - batch.scans)),
        ("probe not normalised", np.repeat(batch.probes[batch.scans][:, None], CHANNELS, axis=1)),
    ):
        yield Hypothesis(name, {f"{case}: probe": probe for case in masked})
    yield Hypothesis("input not scaled", {f"{case}: input": images for case, (images, _, _) in cases.items()})


def _weighted(batch: _Masked, changed: Mapping[str, float], measured: np.ndarray, good: np.ndarray) -> LossOfBatch:
    """Return the loss with other weights of its terms."""
    shares = shares_of_good_pixels(good, batch.images.shape)
    return loss_of_batch(batch.predicted, measured, shares, {**LOSS_WEIGHTS, **changed}, central_square(SIDE_PX))


def _half_masked(batch: _Masked, measured: np.ndarray, good: np.ndarray, likelihood: bool) -> LossOfBatch:
    """Return the loss of which one term alone sees the mask."""
    masked, bare = (batch.loss(each, measured=measured) for each in (good, np.ones_like(good)))
    first, second = (masked, bare) if likelihood else (bare, masked)
    (total, nll, _, realspace), mae = first.terms, second.terms[2]
    total += LOSS_WEIGHTS["mae_weight"] * (mae - first.terms[2])
    by = Predicted(first.by.image, second.by.amplitude, first.by.intensity)
    return LossOfBatch(np.array([total, nll, mae, realspace]), by)


MASKED_LOSS: tuple[Step, ...] = (
    Step("optimiser.masked_loss", ("STEP-OPTIMISER", "BATCH-05", "LOSS"), _masked_loss, ("lightning", "tensordict")),
)
