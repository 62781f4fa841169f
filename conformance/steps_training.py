"""Training, step by step: the loss of a batch, updates, clipping, learning rates, its end, what a checkpoint keeps."""

from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from conformance.hypotheses import Hypothesis
from conformance.oracle import Moments, keras_adam
from conformance.oracle_operations import central_square, default_probe, normalise_probe
from conformance.oracle_training import (
    BEST,
    WAIT,
    LossOfBatch,
    Plateau,
    Predicted,
    clipped,
    epochs_before_stop,
    exponential_rates,
    loss_of_batch,
    plateau_rates,
    shares_of_good_pixels,
    warmup_cosine_rates,
)
from conformance.step import Outcome, Step, StepBench
from conformance.training import TrainingRun, starting_point, train_truth
from conformance.training_runs import training_run

if TYPE_CHECKING:
    import torch

    from ptycho_torch.train import PtychoPINN

FLOAT64 = 1e-12
TRAINED = 1e-10
"""Limit of a few updates of a whole network: that of clause TRAIN-STATE."""

STEPS, SIZE, RATE = 10, 60, 1e-3
BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-7

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


def _half_masked(batch: _Masked, measured: np.ndarray, good: np.ndarray, likelihood: bool) -> LossOfBatch:
    """Return the loss of which one term alone sees the mask."""
    masked, bare = (batch.loss(each, measured=measured) for each in (good, np.ones_like(good)))
    first, second = (masked, bare) if likelihood else (bare, masked)
    (total, nll, _, realspace), mae = first.terms, second.terms[2]
    total += LOSS_WEIGHTS["mae_weight"] * (mae - first.terms[2])
    by = Predicted(first.by.image, second.by.amplitude, first.by.intensity)
    return LossOfBatch(np.array([total, nll, mae, realspace]), by)


Update = Callable[[np.ndarray, np.ndarray, int], np.ndarray]
"""(first moment, second moment, step) → change of the weight."""


def _gradients() -> list[np.ndarray]:
    """Draw gradients, many of them so small that ε counts."""
    rng = np.random.default_rng(0)
    return [10.0 ** rng.uniform(-9, 0, SIZE) * rng.standard_normal(SIZE) for _ in range(STEPS)]


def _changes(update: Update, *, beta_1: float = BETA_1, beta_2: float = BETA_2) -> dict[str, np.ndarray]:
    """Take steps with another rule, and return what the step of the oracle returns."""
    first, second, change = np.zeros(SIZE), np.zeros(SIZE), np.zeros(SIZE)
    found = {}
    for step, gradient in enumerate(_gradients(), 1):
        first = beta_1 * first + (1 - beta_1) * gradient
        second = beta_2 * second + (1 - beta_2) * gradient**2
        change = change - update(first, second, step)
        if step in (1, STEPS):
            found[f"change after {step}"] = change
    return found


def _rate(step: int, beta_1: float = BETA_1, beta_2: float = BETA_2) -> float:
    return RATE * math.sqrt(1 - beta_2**step) / (1 - beta_1**step)


def _wrong_updates() -> Iterator[Hypothesis]:
    def root(second: np.ndarray, step: int) -> np.ndarray:
        return np.asarray(np.sqrt(second / (1 - BETA_2**step)))

    rules: dict[str, Update] = {
        "Adam ε form (ε behind the bias correction)": lambda m, v, t: (
            RATE / (1 - BETA_1**t) * m / (root(v, t) + EPSILON)
        ),
        "ε missing": lambda m, v, t: _rate(t) * np.divide(m, np.sqrt(v), out=np.zeros_like(m), where=v > 0),
        "ε inside the root": lambda m, v, t: _rate(t) * m / np.sqrt(v + EPSILON),
        "ε of PyTorch (1e-8)": lambda m, v, t: _rate(t) * m / (np.sqrt(v) + 1e-8),
        "missing bias correction": lambda m, v, t: RATE * m / (np.sqrt(v) + EPSILON),
        "missing bias correction of the first moment": lambda m, v, t: (
            RATE * math.sqrt(1 - BETA_2**t) * m / (np.sqrt(v) + EPSILON)
        ),
        "missing bias correction of the second moment": lambda m, v, t: (
            RATE / (1 - BETA_1**t) * m / (np.sqrt(v) + EPSILON)
        ),
        "root missing": lambda m, v, t: _rate(t) * m / (v + EPSILON),
        "gradient descent without moments": lambda m, v, t: RATE * m,
    }  # fmt: skip
    for name, rule in rules.items():
        yield Hypothesis(name, _changes(rule))
    right: Update = lambda m, v, t: _rate(t) * m / (np.sqrt(v) + EPSILON)  # noqa: E731 - one of the rules
    yield Hypothesis("decay of the first moment for that of the second", _changes(right, beta_2=BETA_1))
    yield Hypothesis("β₁ and 1 − β₁ exchanged", _changes(right, beta_1=1 - BETA_1))
    yield Hypothesis("β₂ and 1 − β₂ exchanged", _changes(right, beta_2=1 - BETA_2))
    yield Hypothesis(
        "β₁ and β₂ exchanged",
        _changes(lambda m, v, t: _rate(t, BETA_2, BETA_1) * m / (np.sqrt(v) + EPSILON), beta_1=BETA_2, beta_2=BETA_1),
    )


def _updates(_: StepBench) -> Outcome:
    """Ten updates by the real optimiser, from gradients that are given."""
    import torch

    from ptycho_torch.optim import KerasAdam

    start = np.random.default_rng(1).standard_normal(SIZE)
    parameter = torch.nn.Parameter(torch.from_numpy(start.copy()))
    optimiser = KerasAdam([parameter], lr=RATE, betas=(BETA_1, BETA_2), eps=EPSILON)
    weights: Mapping[str, np.ndarray] = {"w": start}
    state: Moments = {}
    expected, given = {}, {}
    for step, gradient in enumerate(_gradients(), 1):
        weights, state = keras_adam(weights, {"w": gradient}, state, step, RATE, BETA_1, BETA_2, EPSILON)
        parameter.grad = torch.from_numpy(gradient)
        optimiser.step()
        if step in (1, STEPS):
            expected[f"change after {step}"] = weights["w"] - start
            given[f"change after {step}"] = parameter.detach().numpy() - start
    return Outcome(expected, given, FLOAT64, _wrong_updates)


def _clipping(_: StepBench) -> Outcome:
    """Gradients clipped by the function that training uses: above the limit, below it, and small ones."""
    import torch

    from conformance.torch_training import small_module

    module = small_module()
    rng = np.random.default_rng(2)
    gradients = {"a": rng.standard_normal((3, 4)), "b": 3 * rng.standard_normal(7)}
    norm = math.sqrt(sum(float((each**2).sum()) for each in gradients.values()))
    cases = {
        "norm": (gradients, 0.5 * norm, "norm"),
        "below": (gradients, 2 * norm, "norm"),
        "small": ({name: 1e-4 * each for name, each in gradients.items()}, 2e-5 * norm, "norm"),
        "value": (gradients, 0.7, "value"),
    }
    expected: dict[str, np.ndarray] = {}
    given: dict[str, np.ndarray] = {}
    wrong: dict[str, dict[str, np.ndarray]] = {}
    for case, (each, limit, algorithm) in cases.items():
        tensors = {
            name: torch.nn.Parameter(torch.zeros(array.shape, dtype=torch.float64)) for name, array in each.items()
        }
        for name, tensor in tensors.items():
            tensor.grad = torch.from_numpy(each[name].copy())
        module.configure_gradient_clipping(torch.optim.SGD(tensors.values()), limit, algorithm)
        other = "value" if algorithm == "norm" else "norm"
        length = math.sqrt(sum(float((array**2).sum()) for array in each.values()))
        alone = {name: clipped({name: array}, limit, algorithm)[name] for name, array in each.items()}
        for name, array in clipped(each, limit, algorithm).items():
            key = f"{case} {name}"
            gradient = tensors[name].grad
            expected[key], given[key] = array, np.zeros_like(array) if gradient is None else gradient.numpy()
            by_torch = each[name] * min(1.0, limit / (length + 1e-6)) if algorithm == "norm" else array
            for mistake, result in (
                ("clipped by the other algorithm", clipped(each, limit, other)[name]),
                ("every tensor clipped alone", alone[name]),
                ("1e-6 in the denominator", by_torch),
                ("not clipped", each[name]),
                ("scaled up to the limit too", each[name] * limit / length if algorithm == "norm" else array),
            ):
                wrong.setdefault(mistake, {})[key] = result
    return Outcome(expected, given, FLOAT64, [Hypothesis(name, gives) for name, gives in wrong.items()])


@cache
def _run() -> TrainingRun:
    run = training_run("clip_norm", batch=1)
    return dataclasses.replace(run, batches=run.batches[:2])


@cache
def _trained(clip: float | None, algorithm: str, reverse: bool, repeat: bool) -> dict[str, np.ndarray]:
    """Return what the oracle's training does to every weight; it is the same whatever the candidate does."""
    run = _run()
    batches = run.batches[:1] * len(run.batches) if repeat else run.batches[:: -1 if reverse else 1]
    changed = dataclasses.replace(run, batches=batches, clip=clip, clip_algorithm=algorithm)
    return _change(train_truth(changed).states[-1].weights)


def _change(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: weights[name].astype(np.float64) - start for name, start in starting_point(_run()).items()}


def _training(_: StepBench) -> Outcome:
    """Two updates of the network by the real Trainer, on different batches, with clipping."""
    from conformance.torch_training import train_torch

    run = _run()

    def mistakes() -> Iterator[Hypothesis]:
        yield Hypothesis("not clipped", _trained(None, "norm", False, False))
        yield Hypothesis("clipped by the other algorithm", _trained(run.clip, "value", False, False))
        yield Hypothesis("batches in reverse order", _trained(run.clip, "norm", True, False))
        yield Hypothesis("the first batch alone", _trained(run.clip, "norm", False, True))

    found = train_torch(run, dtype="float64")
    return Outcome(_trained(run.clip, "norm", False, False), _change(found.states[-1].weights), TRAINED, mistakes)


CURVES: Mapping[str, Sequence[float]] = {
    "plateaus": (8.0, 7.0, 7.2, 7.1, 6.9, 6.95, 6.96, 6.97, 6.98, 6.91, 6.92, 6.93, *([6.8] * 7), 5.0),
    "steps above the threshold": tuple(5 - 1.5e-4 * epoch for epoch in range(10)),
    "steps below the threshold": tuple(1 - 1e-5 * epoch for epoch in range(8)),
}
"""Losses of epochs: plateaus and ties, and small steps on both sides of a threshold that is absolute."""

PLATEAU = Plateau(factor=0.5, patience=2, threshold=1e-4, least=1e-4)


def _plateau(_: StepBench) -> Outcome:
    from conformance.torch_training import rates_of_epochs

    def rates(plateau: Plateau, curves: Mapping[str, Sequence[float]] = CURVES) -> dict[str, np.ndarray]:
        return {name: np.array(plateau_rates(losses, RATE, plateau)) for name, losses in curves.items()}

    def mistakes() -> Iterator[Hypothesis]:
        for name, plateau in (
            ("patience one epoch longer", dataclasses.replace(PLATEAU, patience=3)),
            ("patience one epoch shorter", dataclasses.replace(PLATEAU, patience=1)),
            ("threshold ignored", dataclasses.replace(PLATEAU, threshold=0.0)),
            ("lowest rate ignored", dataclasses.replace(PLATEAU, least=0.0)),
            ("factor applied twice", dataclasses.replace(PLATEAU, factor=PLATEAU.factor**2)),
        ):
            yield Hypothesis(name, rates(plateau))
        # loss < best·(1 − threshold), where the rule has loss < best − threshold.
        relative = dataclasses.replace(PLATEAU, threshold=-math.log1p(-PLATEAU.threshold))
        logarithms = {name: np.log(losses).tolist() for name, losses in CURVES.items()}
        yield Hypothesis("relative threshold", rates(relative, logarithms))
        yield Hypothesis("rate never lowered", {name: np.full(len(losses), RATE) for name, losses in CURVES.items()})
        late = {name: np.array([RATE, *found[:-1]]) for name, found in rates(PLATEAU).items()}
        yield Hypothesis("lowered one epoch late", late)

    found = {
        name: np.array(rates_of_epochs(losses, "ReduceLROnPlateau", rate=RATE, plateau=PLATEAU))
        for name, losses in CURVES.items()
    }
    return Outcome(rates(PLATEAU), found, FLOAT64, mistakes)


def _schedules(_: StepBench) -> Outcome:
    from conformance.torch_training import rates_of_epochs

    epochs, gamma, warmup, least = 12, 0.9, 3, 0.05
    losses = [1.0] * epochs
    expected = {
        "Exponential": np.array(exponential_rates(epochs, RATE, gamma)),
        "WarmupCosine": np.array(warmup_cosine_rates(epochs, RATE, warmup, least)),
        "Default": np.full(epochs, RATE),
    }
    given = {
        "Exponential": np.array(rates_of_epochs(losses, "Exponential", rate=RATE, gamma=gamma)),
        "WarmupCosine": np.array(rates_of_epochs(losses, "WarmupCosine", rate=RATE, warmup=warmup, least_ratio=least)),
        "Default": np.array(rates_of_epochs(losses, "Default", rate=RATE)),
    }

    def cosine(warmup: int = warmup, least: float = least) -> dict[str, np.ndarray]:
        return {"WarmupCosine": np.array(warmup_cosine_rates(epochs, RATE, warmup, least))}

    late = [RATE, *exponential_rates(epochs - 1, RATE, gamma)]
    mistakes = [
        Hypothesis("warm-up one epoch shorter", cosine(warmup=warmup - 1)),
        Hypothesis("warm-up one epoch longer", cosine(warmup=warmup + 1)),
        Hypothesis("warm-up ignored", cosine(warmup=0)),
        Hypothesis("falls to zero", cosine(least=0.0)),
        Hypothesis("lowered one epoch late", {"Exponential": np.array(late)}),
        Hypothesis("lowered twice an epoch", {"Exponential": np.array(exponential_rates(epochs, RATE, gamma**2))}),
        Hypothesis(
            "rate never lowered", {name: np.full(epochs, RATE) for name in ("Exponential", "WarmupCosine")}
        ),
    ]  # fmt: skip
    return Outcome(expected, given, FLOAT64, mistakes)


def _stopping(_: StepBench) -> Outcome:
    from conformance.torch_training import epochs_run

    curves: tuple[Sequence[float], ...] = (
        *CURVES.values(),
        (3.0, 2.0, 2.5, 2.4, 2.3, 2.2, 1.0),
        (2.0, 2.0, 2.0, 2.0),
        (5.0, 4.0, 3.0, 2.0),
    )
    patiences = (1, 2, 3, 5)

    def ends(change: Callable[[int], int] = lambda patience: patience, slack: float = 0.0) -> np.ndarray:
        return np.array(
            [[epochs_before_stop(_held(curve, slack), max(change(each), 1)) for each in patiences] for curve in curves]
        )

    never = np.array([[len(curve)] * len(patiences) for curve in curves])
    mistakes = [
        Hypothesis("patience one epoch longer", {"epochs": ends(lambda patience: patience + 1)}),
        Hypothesis("patience one epoch shorter", {"epochs": ends(lambda patience: patience - 1)}),
        Hypothesis("small improvements do not count", {"epochs": ends(slack=1e-2)}),
        Hypothesis("small improvements do not count", {"epochs": ends(slack=1e-3)}),
        Hypothesis("training is never stopped", {"epochs": never}),
    ]
    found = np.array([[epochs_run(curve, patience) for patience in patiences] for curve in curves])
    return Outcome({"epochs": ends()}, {"epochs": found}, 0.0, mistakes)


def _held(losses: Sequence[float], slack: float) -> list[float]:
    """Return losses in which an improvement by no more than ``slack`` is none."""
    best, held = math.inf, []
    for loss in losses:
        if loss < best - slack or not slack:
            best = min(best, loss)
            held.append(loss)
        else:
            held.append(max(loss, best))
    return held


def _add_loss(module: PtychoPINN, part: str, loss: float, samples: int) -> None:
    """Let the module take note of the loss of a batch."""
    import torch

    from ptycho_torch.losses import LossTerms

    value, zero = torch.tensor(float(loss), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    module._add(part, LossTerms(value, value, zero, zero), int(samples))


def _epoch_loss(_: StepBench) -> Outcome:
    """The loss of an epoch is the mean over its own samples, the last and smaller batch included."""
    from conformance.torch_training import small_module

    losses = {
        "train_loss": np.array([[4.0, 1.0, 7.0], [3.0, 2.0, 0.5], [0.25, 1.5, 2.5]]),
        "val_loss": np.array([[5.0, 8.0], [6.0, 1.0], [2.0, 9.0]]),
    }
    sizes = {"train_loss": np.array([16, 16, 5]), "val_loss": np.array([16, 3])}
    module = small_module()
    noted: dict[str, list[float]] = {"train_loss": [], "val_loss": []}
    for epoch in range(3):
        for name, batches in losses.items():
            part = name.removesuffix("_loss")
            if part == "val":
                # What an interrupted validation left.
                _add_loss(module, part, 100.0, 7)
                module.on_validation_epoch_start()
            for loss, size in zip(batches[epoch], sizes[name], strict=True):
                _add_loss(module, part, loss, size)
            noted[name].append(module._mean(part)[name])

    def of_epochs(mean: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> dict[str, np.ndarray]:
        return {name: np.asarray(mean(batches, sizes[name])) for name, batches in losses.items()}

    def mean(batches: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        return np.asarray((batches * sizes).sum(axis=1) / sizes.sum())

    def until(number: int) -> np.ndarray:
        return np.arange(1, number + 1)

    mistakes = [
        Hypothesis("mean over batches for mean over samples", of_epochs(lambda each, _: each.mean(axis=1))),
        Hypothesis("the last batch alone", of_epochs(lambda each, _: each[:, -1])),
        Hypothesis("the last, smaller batch left out", of_epochs(lambda each, _: each[:, :-1].mean(axis=1))),
        Hypothesis("sum in place of mean", of_epochs(lambda each, size: (each * size).sum(axis=1))),
        Hypothesis(
            "mean over all epochs so far",
            of_epochs(lambda each, size: np.cumsum(mean(each, size)) / until(len(each))),
        ),
        Hypothesis("sum over all epochs so far", of_epochs(lambda each, size: np.cumsum(mean(each, size)))),
        Hypothesis("the epoch before", of_epochs(lambda each, size: np.roll(mean(each, size), 1))),
    ]
    left = (mean(losses["val_loss"], sizes["val_loss"]) * 19 + 700) / 26
    mistakes.append(Hypothesis("what an interrupted validation left counts", {"val_loss": left}))
    found = {name: np.array(values) for name, values in noted.items()}
    return Outcome(of_epochs(mean), found, FLOAT64, mistakes)


INTERRUPTIONS = (1, 3, 6, 7, 10, 14)
"""Epochs behind which a run over a curve of 20 is interrupted, each in a run of its own."""

PATIENT = dataclasses.replace(PLATEAU, patience=3)
"""Waits for up to two epochs where a run may be interrupted."""


def _reloaded(content: dict[str, Any]) -> dict[str, Any]:
    """Write a checkpoint and read it as training does."""
    import torch

    file = io.BytesIO()
    torch.save(content, file)
    file.seek(0)
    found: dict[str, Any] = torch.load(file, weights_only=True)
    return found


def _resumed_module(
    module: PtychoPINN, optimiser: torch.optim.Optimizer, *, optimiser_first: bool = False
) -> tuple[PtychoPINN, torch.optim.Optimizer]:
    """Return a new module and a new optimiser that go on with a checkpoint, made in either order."""
    from conformance.torch_training import small_module

    content: dict[str, Any] = {"optimizer": optimiser.state_dict()}
    module.on_save_checkpoint(content)
    content, other = _reloaded(content), small_module()
    other.settings = module.settings
    if optimiser_first:
        fresh = other.configure_optimizers()
        other.on_load_checkpoint(content)
    else:
        other.on_load_checkpoint(content)
        fresh = other.configure_optimizers()
    fresh.load_state_dict(content["optimizer"])
    return other, fresh


def _run_epochs(module: PtychoPINN, optimiser: torch.optim.Optimizer, losses: Sequence[float]) -> Iterator[float]:
    """Let epochs with these validation losses pass, and yield the rate of each behind it."""
    for loss in losses:
        rate = float(optimiser.param_groups[0]["lr"])
        optimiser.step()
        module._note({"train_loss": 0.0, "val_loss": loss})
        module.on_train_epoch_end()
        yield rate


def _resumed_runs(
    losses: Sequence[float], chosen: Mapping[str, Any], *, optimiser_first: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Return the rate of every epoch, and the history of losses, of runs that are interrupted and go on."""
    from conformance.torch_training import small_module
    from ptycho_torch.config_params import Settings

    module = small_module()
    module.settings = Settings().override({"max_epochs": len(losses), "learning_rate": RATE, **chosen})
    optimiser = module.configure_optimizers()
    rates, histories, so_far = [], [], []
    for epoch, rate in enumerate(_run_epochs(module, optimiser, losses), 1):
        so_far.append(rate)
        if epoch in INTERRUPTIONS:
            other, fresh = _resumed_module(module, optimiser, optimiser_first=optimiser_first)
            rates.append([*so_far, *_run_epochs(other, fresh, losses[epoch:])])
            noted = other.history.get("val_loss", [])[: len(losses)]
            histories.append([*noted, *[np.nan] * (len(losses) - len(noted))])
    return np.array(rates), np.array(histories)


def _resumed_updates(behind: int) -> np.ndarray:
    """Return the change of the weight after ten updates, by an optimiser that is made anew behind one."""
    import torch

    from ptycho_torch.optim import KerasAdam

    def made(weight: torch.Tensor) -> tuple[torch.nn.Parameter, KerasAdam]:
        # Another rate, that of the checkpoint has to win.
        parameter = torch.nn.Parameter(weight.detach().clone())
        return parameter, KerasAdam([parameter], lr=7 * RATE, betas=(0.5, 0.6), eps=0.1)

    parameter = torch.nn.Parameter(torch.zeros(SIZE, dtype=torch.float64))
    optimiser = KerasAdam([parameter], lr=RATE, betas=(BETA_1, BETA_2), eps=EPSILON)
    for step, gradient in enumerate(_gradients(), 1):
        parameter.grad = torch.from_numpy(gradient)
        optimiser.step()
        if step == behind:
            saved = _reloaded(optimiser.state_dict())
            parameter, optimiser = made(parameter)
            optimiser.load_state_dict(saved)
    return parameter.detach().numpy()


FIRST_MOMENT, SECOND_MOMENT, STEPS_TAKEN = "first moment", "second moment", "steps taken"


def _updates_forgetting(behind: int, forgets: Sequence[str] = ()) -> np.ndarray:
    """Return the change after ten updates of the oracle, which forgets some of its state behind one."""
    weights: Mapping[str, np.ndarray] = {"w": np.zeros(SIZE)}
    state: Moments = {}
    taken = 0
    for step, gradient in enumerate(_gradients(), 1):
        taken += 1
        weights, state = keras_adam(weights, {"w": gradient}, state, taken, RATE, BETA_1, BETA_2, EPSILON)
        if step == behind:
            first, second = state["w"]
            state = {"w": (first * (FIRST_MOMENT not in forgets), second * (SECOND_MOMENT not in forgets))}
            taken *= STEPS_TAKEN not in forgets
    return weights["w"]


def _resumed_epochs(losses: Sequence[float], patience: int) -> list[int]:
    """Return how many epochs run where the callback of another Trainer takes over, behind each epoch in turn."""
    import torch
    from lightning.pytorch.trainer.states import TrainerFn

    from conformance.torch_training import small_module
    from ptycho_torch import train
    from ptycho_torch.config_params import Settings

    chosen = {"early_stop_patience": patience, "device": "cpu", "validation_fraction": 0.0}
    settings, module = Settings().override(chosen), small_module()

    def run_from(start: int, state: dict[str, Any] | None) -> tuple[int, list[dict[str, Any]]]:
        """Return the last epoch that runs, and the state behind each that does not stop."""
        states: list[dict[str, Any]] = []
        with train.quiet_lightning():
            trainer = train.make_trainer(settings.training, Path(), validate=False, progress=False)
        trainer.state.fn = TrainerFn.FITTING
        callback = trainer.early_stopping_callback
        assert callback is not None
        if state is not None:
            callback.load_state_dict(state)
        for epoch, loss in enumerate(losses[start:], start + 1):
            trainer.callback_metrics["train_loss"] = torch.tensor(loss)
            callback.on_train_epoch_end(trainer, module)
            if trainer.should_stop:
                return epoch, states
            states.append(_reloaded(callback.state_dict()))
        return len(losses), states

    return [run_from(epoch, state)[0] for epoch, state in enumerate(run_from(0, None)[1], 1)]


def _interrupted_epoch(losses: np.ndarray, sizes: np.ndarray, behind: int) -> dict[str, float]:
    """Return the means of an epoch that is interrupted behind a batch."""
    from conformance.torch_training import small_module

    module = small_module()
    optimiser = module.configure_optimizers()
    for number, (loss, size) in enumerate(zip(losses, sizes, strict=True), 1):
        _add_loss(module, "train", loss, size)
        if number == behind:
            module, optimiser = _resumed_module(module, optimiser)
    return module._mean("train")


STOPPING: Sequence[float] = (3.0, 2.0, 2.5, 2.4, 1.9, 2.2, 2.1, 1.95, 1.0)
"""A curve over which training with a patience of 3 stops behind epoch 8."""


def _resumed(_: StepBench) -> Outcome:
    """What is interrupted and goes on from a checkpoint, in new objects, ends as if nothing had happened."""
    curve, patience = CURVES["plateaus"], 3
    epochs, gamma, warmup, least = len(curve), 0.9, 6, 0.05
    batches, sizes = np.array([4.0, 1.0, 7.0]), np.array([16, 16, 5])
    chosen: dict[str, dict[str, Any]] = {
        "ReduceLROnPlateau": {
            "plateau_factor": PATIENT.factor,
            "plateau_patience": PATIENT.patience,
            "plateau_threshold": PATIENT.threshold,
            "plateau_min_lr": PATIENT.least,
        },
        "Exponential": {"lr_gamma": gamma},
        "WarmupCosine": {"lr_warmup_epochs": warmup, "lr_min_ratio": least},
    }
    plain = {
        "ReduceLROnPlateau": plateau_rates(curve, RATE, PATIENT),
        "Exponential": exponential_rates(epochs, RATE, gamma),
        "WarmupCosine": warmup_cosine_rates(epochs, RATE, warmup, least),
    }
    expected: dict[str, np.ndarray] = {}
    found: dict[str, np.ndarray] = {}
    for first in (False, True):
        for scheduler, right in plain.items():
            key = f"{scheduler}, optimiser made first" if first else scheduler
            settings = {"scheduler": scheduler, **chosen[scheduler]}
            found[key], found[f"losses with {key}"] = _resumed_runs(curve, settings, optimiser_first=first)
            expected[key] = np.array([right] * len(INTERRUPTIONS))
            expected[f"losses with {key}"] = np.array([curve] * len(INTERRUPTIONS))
    last = epochs_before_stop(STOPPING, patience)
    ends, updates = range(1, last), range(1, STEPS)
    expected |= {
        "early stopping": np.full(len(ends), last),
        "updates": np.array([_updates_forgetting(STEPS)] * len(updates)),
        "loss of an interrupted epoch": np.full(2, (batches * sizes).sum() / sizes.sum()),
    }
    found |= {
        "early stopping": np.array(_resumed_epochs(STOPPING, patience)),
        "updates": np.array([_resumed_updates(behind) for behind in updates]),
        "loss of an interrupted epoch": np.array(
            [_interrupted_epoch(batches, sizes, behind)["train_loss"] for behind in (1, 2)]
        ),
    }

    def either_way(rates: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {**rates, **{f"{name}, optimiser made first": each for name, each in rates.items()}}

    def mistakes() -> Iterator[Hypothesis]:
        cosine = plain["WarmupCosine"]
        again = [[*cosine[: behind + 1], *cosine[1 : epochs - behind]] for behind in INTERRUPTIONS]
        for name, forgets in (
            ("epochs without improvement (wait) forgotten", (WAIT,)),
            ("lowest loss (best) forgotten", (BEST,)),
            ("state of the schedule forgotten", (BEST, WAIT)),
        ):
            rates = [
                plateau_rates(curve, RATE, PATIENT, interrupted_behind=behind, forgets=forgets)
                for behind in INTERRUPTIONS
            ]
            stops = [
                epochs_before_stop(STOPPING, patience, interrupted_behind=behind, forgets=forgets) for behind in ends
            ]
            # Without the lowest loss the next one is it, however long there was none.
            cosines = {"WarmupCosine": np.array(again)} if len(forgets) == 2 else {}
            yield Hypothesis(name, either_way({"ReduceLROnPlateau": np.array(rates), **cosines}))
            yield Hypothesis(f"{name} by early stopping", {"early stopping": np.array(stops)})
        for forgotten in (
            (FIRST_MOMENT,),
            (SECOND_MOMENT,),
            (STEPS_TAKEN,),
            (FIRST_MOMENT, SECOND_MOMENT),
            (FIRST_MOMENT, SECOND_MOMENT, STEPS_TAKEN),
        ):
            changes = np.array([_updates_forgetting(behind, forgotten) for behind in updates])
            yield Hypothesis(f"{' and '.join(forgotten)} of the optimiser forgotten", {"updates": changes})
        short = [[*curve[behind:], *[np.nan] * behind] for behind in INTERRUPTIONS]
        histories = {f"losses with {scheduler}": np.array(short) for scheduler in plain}
        yield Hypothesis("history before the interruption forgotten", either_way(histories))
        rest = [(batches[behind:] * sizes[behind:]).sum() / sizes[behind:].sum() for behind in (1, 2)]
        yield Hypothesis("batches before the interruption forgotten", {"loss of an interrupted epoch": np.array(rest)})

    return Outcome(expected, found, FLOAT64, mistakes)


def _of_module(module: PtychoPINN) -> dict[str, np.ndarray]:
    """Return what a module starts with."""
    import torch

    state = {name: each.detach().double().numpy() for name, each in module.network.state_dict().items()}
    probe, log_scale = state.pop("probe_parts"), state.pop("log_scale")
    return {
        "weights": np.concatenate([state[name].ravel() for name in sorted(state)]),
        "probe": np.asarray(torch.view_as_complex(torch.from_numpy(probe)).numpy()),
        "log_scale": log_scale,
        "scale of the input": np.array(module.scale),
    }


TRAINED_BY = 0.3
"""What training has added to every weight of a checkpoint, and to ln of its scale."""


def _start_from(_: StepBench) -> Outcome:
    """A new run takes the weights of a checkpoint, and probe and scale of its own; a prediction takes all of it."""
    import tempfile

    import torch

    from ptycho_torch import checkpoint, train
    from ptycho_torch.config_params import Settings

    rng = np.random.default_rng(6)
    scales = {"checkpoint": 2.5, "new run": 7.25}
    probes = {name: rng.standard_normal((64, 64)) + 1j * rng.standard_normal((64, 64)) for name in scales}
    modules: dict[str, PtychoPINN] = {}
    for seed, (name, scale) in enumerate(scales.items()):
        chosen = {"n_filters_scale": 1, "gridsize": 2, "intensity_scale": scale, "probe_scale": PROBE_SCALE}
        settings = Settings().override({**chosen, "precision": "64-true", "seed": seed})
        modules[name] = train.PtychoPINN(settings, probe=torch.from_numpy(probes[name]))
    old, new = modules["checkpoint"], modules["new run"]
    drawn = _of_module(old)["weights"].copy()
    with torch.no_grad():
        # What training has done to it, its scale among it.
        for name, each in old.network.named_parameters():
            each.add_(0 if name == "probe_parts" else TRAINED_BY)
    before = {name: _of_module(module) for name, module in modules.items()}

    def physics(name: str) -> dict[str, np.ndarray]:
        return {
            "probe": normalise_probe(probes[name], PROBE_SCALE)[None],
            "log_scale": np.array(math.log(scales[name]) + (TRAINED_BY if name == "checkpoint" else 0)),
            "scale of the input": np.array(scales[name]),
        }

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "old.ckpt"
        checkpoint.write_checkpoint(
            path, old.settings, old.network.settings, old.statistics, old.network.state_dict(), overwrite=False
        )
        train._start_from(new, checkpoint.read_checkpoint(path))
        loaded = train.PtychoPINN.from_checkpoint(path)
    weights = {name: each["weights"] for name, each in before.items()}
    expected = {"weights": weights["checkpoint"], **physics("new run")}
    whole = {"weights": weights["checkpoint"], **physics("checkpoint")}
    expected |= {f"{name}, for prediction": each for name, each in whole.items()}
    found = _of_module(new) | {f"{name}, for prediction": each for name, each in _of_module(loaded).items()}

    def mistakes() -> Iterator[Hypothesis]:
        theirs = physics("checkpoint")
        for what, names in (
            ("probe", ("probe",)),
            ("scale", ("log_scale",)),
            ("probe and scale", ("probe", "log_scale")),
        ):
            yield Hypothesis(f"{what} of the checkpoint kept", {name: theirs[name] for name in names})
        yield Hypothesis("weights of the checkpoint not taken", {"weights": weights["new run"]})
        raw = {name: probes[name][None] / PROBE_SCALE for name in probes}
        yield Hypothesis("probe not normalised", {"probe": raw["new run"], "probe, for prediction": raw["checkpoint"]})
        rest = {f"{name}, for prediction": each for name, each in physics("new run").items()}
        yield Hypothesis("probe and scale of another run", rest)
        untrained = np.array(math.log(scales["checkpoint"]))
        yield Hypothesis("scale before training", {"log_scale, for prediction": untrained})
        default = {"weights": drawn, "probe": normalise_probe(default_probe(64), 4.0)[None], "log_scale": untrained}
        nothing = {f"{name}, for prediction": each.astype(whole[name].dtype) for name, each in default.items()}
        yield Hypothesis("nothing of the checkpoint loaded", {"weights": weights["new run"], **nothing})

    return Outcome(expected, found, FLOAT64, mistakes)


def _step(name: str, run: Callable[[StepBench], Outcome], *clauses: str) -> Step:
    return Step(f"optimiser.{name}", ("STEP-OPTIMISER", *clauses), run, ("lightning", "tensordict"))


OPTIMISER: tuple[Step, ...] = (
    _step("masked_loss", _masked_loss, "BATCH-05", "LOSS"),
    _step("updates", _updates, "TRAIN-STATE"),
    _step("clipping", _clipping, "TRAIN-STATE"),
    _step("plateau", _plateau, "TRAIN-RATE"),
    _step("schedules", _schedules, "TRAIN-RATE"),
    _step("stopping", _stopping, "TRAIN-STOP"),
    _step("epoch_loss", _epoch_loss),
    _step("resumed", _resumed, "TRAIN-RATE", "TRAIN-STOP", "TRAIN-STATE"),
    _step("start_from", _start_from, "REF-02", "WEIGHT-01"),
    _step("training", _training, "TRAIN-STATE"),
)
"""The parts of training first, then training itself."""
