"""A whole training as a plain loop: batches in order, a small network, clipping, schedule and optimiser in NumPy.

The network stands in for the real one, whose stages are judged elsewhere: a few operations that depend on every input,
on every weight, and on the settings that training decides by.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from conformance.oracle import Moments
from conformance.oracle_operations import central_square, intensity_scale
from conformance.oracle_optimisers import Rule, updated
from conformance.oracle_training import (
    LossOfBatch,
    Plateau,
    Predicted,
    clipped,
    epochs_before_stop,
    exponential_rates,
    loss_of_batch,
    plateau_rates,
    shares_of_good_pixels,
)
from conformance.steps_light import normalised
from ptycho_torch.config_params import NetworkSettings
from ptycho_torch.model import Prediction


class StandIn(nn.Module):
    """A network of four weights for each channel, with the face of ``PtychoNet``.

    z = w₀ + w₁·x·e^{−ln s} + w₂·(o_x − 2·o_y)/10, p = Σ|P|²: amplitude e^{ln s}·√p·σ(z), object mean_c σ(z)·e^{i·w₃·z}.

    Args:
        settings: as ``PtychoNet`` has them.
        probe: (M, N, N), used as it is.
        generator: source of the initial weights.
        dtype: float32 or float64.
    """

    def __init__(
        self,
        settings: NetworkSettings,
        probe: Tensor,
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.settings = settings
        drawn = torch.empty(4, settings.C, dtype=torch.float64).uniform_(-1, 1, generator=generator)
        self.weight = nn.Parameter(drawn.to(dtype))
        self.log_scale = nn.Parameter(
            torch.tensor(np.log(settings.intensity_scale), dtype=dtype), settings.intensity_scale_trainable
        )
        complex_dtype = torch.complex128 if dtype == torch.float64 else torch.complex64
        parts = torch.view_as_real(probe.detach().to(complex_dtype)).clone()
        self.probe_parts = nn.Parameter(parts, settings.probe_trainable)

    def forward(self, scaled_amplitude: Tensor, offsets_px: Tensor, probe: Tensor | None = None) -> Prediction:
        """Predict object and diffraction."""
        modes = torch.view_as_complex(self.probe_parts) if probe is None else probe
        illumination = modes.abs().square().sum(-3).sqrt()
        weight = self.weight[:, None, :, None, None]
        moved = (offsets_px[..., 0] - 2 * offsets_px[..., 1])[..., None] / 10
        z = weight[0] + weight[1] * scaled_amplitude * (-self.log_scale).exp() + weight[2] * moved
        amplitude = self.log_scale.exp() * illumination * torch.sigmoid(z)
        image = torch.polar(torch.sigmoid(z), weight[3] * z).mean(1, keepdim=True)
        return Prediction(object=image, amplitude=amplitude, intensity=amplitude.square())


@dataclass(frozen=True)
class TrainingData:
    """Groups, and the order in which they are fed.

    Attributes:
        images: (L, C, N, N) normalised amplitude of every group.
        offsets_px: (L, C, 1, 2).
        probes: (E, M, N, N) of each scan, as measured.
        good_pixels: (E, N, N).
        scans: (L,) number of the scan of each group.
        epochs: for each epoch, the groups of each batch of training.
        validation: the groups of each batch of validation.
        nphotons: mean counts of a pattern.
    """

    images: np.ndarray
    offsets_px: np.ndarray
    probes: np.ndarray
    good_pixels: np.ndarray
    scans: np.ndarray
    epochs: Sequence[Sequence[np.ndarray]]
    validation: Sequence[np.ndarray]
    nphotons: float


@dataclass(frozen=True)
class Plan:
    """How the plain loop trains.

    Attributes:
        rule: the optimiser.
        weights_of_loss: of the likelihood, the amplitude, the object, and the total variation in that.
        seed: of the initial weights.
        start: trained weights to begin with, by name; probe and scale are those of the data all the same.
        epochs: how many, unless it ends early.
        scheduler: ``Default``, ``Exponential`` or ``ReduceLROnPlateau``.
        gamma: of ``Exponential``.
        plateau: of ``ReduceLROnPlateau``.
        clip: limit of the gradients; None does not clip.
        clip_algorithm: ``norm`` or ``value``.
        accumulate: batches whose gradients are averaged before an update.
        patience: epochs without improvement of the loss that is watched; None never ends early.
        watched: ``val_loss`` or ``train_loss``, by early stopping.
        probe_scale: see ``steps_light.normalised``.
        probe_big: whether the object counts beyond its central square.
        probe_of_scan: whether each scan is lit by its own probe; else the network's own, that of the first scan, is.
        trainable: of ``log_scale`` and ``probe_parts``, those that are trained.
    """

    rule: Rule
    weights_of_loss: Mapping[str, float]
    seed: int = 0
    start: Mapping[str, np.ndarray] | None = None
    epochs: int = 1
    scheduler: str = "Default"
    gamma: float = 1.0
    plateau: Plateau = field(default_factory=lambda: Plateau(0.5, 2, 1e-4, 1e-4))
    clip: float | None = None
    clip_algorithm: str = "norm"
    accumulate: int = 1
    patience: int | None = None
    watched: str = "train_loss"
    probe_scale: float = 4.0
    probe_big: bool = True
    probe_of_scan: bool = False
    trainable: tuple[str, ...] = ()


@dataclass(frozen=True)
class PlainRun:
    """What the plain loop found.

    Attributes:
        history: name → value of each epoch.
        terms: ``train`` and ``val`` → (epochs, batches, 4) total, likelihood, amplitude, object of each batch.
        sizes: ``train`` and ``val`` → groups of each batch.
        untrained: validation loss before the first epoch; NaN without validation.
        weights: (updates + 1, n) all weights, before the first update and behind each.
        rates: learning rate of each epoch.
    """

    history: Mapping[str, np.ndarray]
    terms: Mapping[str, np.ndarray]
    sizes: Mapping[str, np.ndarray]
    untrained: float
    weights: np.ndarray
    rates: Sequence[float]

    @property
    def epochs(self) -> int:
        """How many ran."""
        return len(self.rates)

    @property
    def updates_of_epoch(self) -> int:
        """How many updates an epoch has."""
        return (len(self.weights) - 1) // self.epochs


class _Loop:
    """The state of a training in between."""

    def __init__(self, data: TrainingData, plan: Plan) -> None:
        self.data, self.plan = data, plan
        N, C = data.images.shape[-1], data.images.shape[1]
        self.scale = intensity_scale(data.nphotons, N=N)
        settings = NetworkSettings(N=N, gridsize=round(C**0.5), intensity_scale=self.scale)
        self.probes = [normalised(modes.astype(np.complex128), plan.probe_scale) for modes in data.probes]
        self.network = StandIn(
            dataclasses.replace(
                settings,
                intensity_scale_trainable="log_scale" in plan.trainable,
                probe_trainable="probe_parts" in plan.trainable,
            ),
            torch.from_numpy(self.probes[0]),
            generator=torch.Generator().manual_seed(plan.seed),
            dtype=torch.float64,
        )
        for name, array in (plan.start or {}).items():
            self.network.get_parameter(name).data = torch.from_numpy(array.copy())
        self.mask = None if plan.probe_big else central_square(N)
        self.parameters = {name: each for name, each in self.network.named_parameters() if each.requires_grad}
        self.moments: Moments = {}
        self.steps = 0

    @property
    def trained(self) -> np.ndarray:
        """All that is trained, one behind the other."""
        return flat({name: each.detach().numpy() for name, each in self.network.named_parameters()})

    def predict(self, groups: np.ndarray) -> tuple[Prediction, LossOfBatch]:
        """Return the prediction of a batch, its loss, and the gradient by the prediction."""
        data, plan = self.data, self.plan
        measured = data.images[groups] * self.scale
        probe = None
        if plan.probe_of_scan:
            modes = np.stack([self.probes[scan] for scan in data.scans[groups]])  # (B, M, N, N)
            probe = torch.from_numpy(np.repeat(modes[:, None], measured.shape[1], axis=1))
        found = self.network(torch.from_numpy(measured), torch.from_numpy(data.offsets_px[groups]), probe)
        said = Predicted(*(each.detach().numpy() for each in (found.object, found.amplitude, found.intensity)))
        good = shares_of_good_pixels(data.good_pixels[data.scans[groups]][:, None], measured.shape)
        return found, loss_of_batch(said, measured, good, plan.weights_of_loss, self.mask)

    def update(self, batches: Sequence[np.ndarray], rate: float) -> list[np.ndarray]:
        """Update once, by the mean of the gradients of some batches; return the terms of each."""
        terms = []
        summed = {name: torch.zeros_like(each) for name, each in self.parameters.items()}
        for name, each in self.parameters.items():
            each.grad = summed[name]
        for groups in batches:
            found, loss = self.predict(groups)
            terms.append(loss.terms)
            by = (loss.by.image, loss.by.amplitude, loss.by.intensity)
            torch.autograd.backward(
                [found.object, found.amplitude, found.intensity],
                [torch.from_numpy(np.asarray(each) / self.plan.accumulate) for each in by],
            )
        gradients = {name: each.numpy().copy() for name, each in summed.items()}
        gradients = clipped(gradients, self.plan.clip, self.plan.clip_algorithm)
        weights = {name: each.detach().numpy().copy() for name, each in self.parameters.items()}
        self.steps += 1
        after, self.moments = updated(self.plan.rule, weights, gradients, self.moments, self.steps, rate)
        for name, each in self.parameters.items():
            each.data = torch.from_numpy(np.asarray(after[name]))
        return terms

    def validate(self) -> np.ndarray:
        """Return the (batches, 4) terms of the validation groups."""
        return np.array([self.predict(groups)[1].terms for groups in self.data.validation])


def flat(weights: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return weights by name as one array."""
    return np.concatenate([np.asarray(weights[name], np.float64).ravel() for name in sorted(weights)])


def mean_of(terms: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return the mean over the samples of (batches, 4) terms."""
    return np.asarray((terms * sizes[:, None]).sum(axis=0) / sizes.sum())


def rate_of(plan: Plan, epoch: int, losses: Sequence[float]) -> float:
    """Return the learning rate of an epoch, behind epochs with these losses."""
    rate = plan.rule.rate
    match plan.scheduler:
        case "Exponential":
            return exponential_rates(epoch + 1, rate, plan.gamma)[-1]
        case "ReduceLROnPlateau":
            return plateau_rates([*losses, 0.0], rate, plan.plateau)[-1]
        case _:
            return rate


def train_plainly(data: TrainingData, plan: Plan) -> PlainRun:
    """Train, and note what a run says about itself."""
    loop = _Loop(data, plan)
    sizes = {"train": np.array([len(each) for each in data.epochs[0]]), "val": np.array([*map(len, data.validation)])}
    untrained = float(mean_of(loop.validate(), sizes["val"])[0]) if data.validation else np.nan
    terms: dict[str, list[np.ndarray]] = {"train": [], "val": []}
    rates: list[float] = []
    watched: dict[str, list[float]] = {"train_loss": [], "val_loss": []}
    weights = [loop.trained]
    for epoch in range(plan.epochs):
        rates.append(rate_of(plan, epoch, watched["val_loss"] or watched["train_loss"]))
        found: list[np.ndarray] = []
        batches = data.epochs[epoch]
        for first in range(0, len(batches), plan.accumulate):
            found += loop.update(batches[first : first + plan.accumulate], rates[-1])
            weights.append(loop.trained)
        terms["train"].append(np.array(found))
        if data.validation:
            terms["val"].append(loop.validate())
        for part, each in terms.items():
            if each:
                watched[f"{part}_loss"].append(float(mean_of(each[-1], sizes[part])[0]))
        # With one more epoch that is better than all, what stops is the patience and not the end of the curve.
        if plan.patience and epochs_before_stop([*watched[plan.watched], -np.inf], plan.patience) == epoch + 1:
            break
    stacked = {part: np.array(each) for part, each in terms.items() if each}
    return PlainRun(history_of(plan, stacked, sizes, rates), stacked, sizes, untrained, np.array(weights), rates)


def history_of(
    plan: Plan, terms: Mapping[str, np.ndarray], sizes: Mapping[str, np.ndarray], rates: Sequence[float]
) -> dict[str, np.ndarray]:
    """Return the history of a run: losses, the terms of a loss of several, and the rate of each epoch."""
    found: dict[str, np.ndarray] = {}
    named = {"poisson": "nll_weight", "mae": "mae_weight", "realspace": "realspace_weight"}
    used = [(place, name) for place, (name, key) in enumerate(named.items(), 1) if plan.weights_of_loss[key]]
    for part, each in terms.items():
        means = np.array([mean_of(epoch, sizes[part]) for epoch in each])
        found[f"{part}_loss"] = means[:, 0]
        if len(used) > 1:
            found |= {f"{name}_{part}_loss": means[:, place] for place, name in used}
    return found | {"learning_rate": np.array(rates)}
