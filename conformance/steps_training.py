"""Training, step by step: updates, clipping, learning rates, its end, the loss of an epoch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from conformance.hypotheses import Hypothesis
from conformance.oracle import Moments, keras_adam
from conformance.oracle_training import (
    Plateau,
    clipped,
    epochs_before_stop,
    exponential_rates,
    plateau_rates,
    warmup_cosine_rates,
)
from conformance.step import FLOAT64, Outcome, Step, StepBench
from conformance.training import TrainingRun, starting_point, train_truth
from conformance.training_runs import training_run

if TYPE_CHECKING:
    from ptycho_torch.train import PtychoPINN

TRAINED = 1e-10
"""Limit of a few updates of a whole network: that of clause TRAIN-STATE."""

STEPS, SIZE, RATE = 10, 60, 1e-3
BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-7

Update = Callable[[np.ndarray, np.ndarray, int], np.ndarray]
"""(first moment, second moment, step) → change of the weight."""


def draw_gradients() -> list[np.ndarray]:
    """Draw gradients, many of them so small that ε counts."""
    rng = np.random.default_rng(0)
    return [10.0 ** rng.uniform(-9, 0, SIZE) * rng.standard_normal(SIZE) for _ in range(STEPS)]


def _changes(update: Update, *, beta_1: float = BETA_1, beta_2: float = BETA_2) -> dict[str, np.ndarray]:
    """Take steps with another rule, and return what the step of the oracle returns."""
    first, second, change = np.zeros(SIZE), np.zeros(SIZE), np.zeros(SIZE)
    found = {}
    for step, gradient in enumerate(draw_gradients(), 1):
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
        "bias correction one step late": lambda m, v, t: _rate(t + 1) * m / (np.sqrt(v) + EPSILON),
        "first moment of the whole gradient (1 − β₁ missing)": lambda m, v, t: (
            _rate(t) * m / (1 - BETA_1) / (np.sqrt(v) + EPSILON)
        ),
        "second moment of the whole gradient (1 − β₂ missing)": lambda m, v, t: (
            _rate(t) * m / (np.sqrt(v / (1 - BETA_2)) + EPSILON)
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
    for step, gradient in enumerate(draw_gradients(), 1):
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
    "improvement that float32 does not see": (1.0, *([1 - 1e-4 - 1e-8] * 5), 0.9, *([0.9 - 1e-4 - 1e-8] * 5)),
}
"""Losses of epochs: plateaus and ties, and small steps on both sides of a threshold that is absolute."""

PLATEAU = Plateau(factor=0.5, patience=2, threshold=1e-4, least=1e-4)


def _plateau(_: StepBench) -> Outcome:
    from conformance.torch_training import rates_of_epochs

    def rates(plateau: Plateau, curves: Mapping[str, Sequence[float]] = CURVES) -> dict[str, np.ndarray]:
        return {name: np.array(plateau_rates(losses, RATE, plateau)) for name, losses in curves.items()}

    def mistakes() -> Iterator[Hypothesis]:
        yield Hypothesis("compared in float64", {name: _compared_exactly(losses) for name, losses in CURVES.items()})
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


def _compared_exactly(losses: Sequence[float]) -> np.ndarray:
    """Return the rates of a schedule that sees every improvement beyond the threshold, however small."""
    rates, best, wait = [RATE], math.inf, 0
    for loss in losses[:-1]:
        better = loss + PLATEAU.threshold < best
        best, wait = (loss, 0) if better else (best, wait + 1)
        lowered = wait >= PLATEAU.patience and rates[-1] > PLATEAU.least
        rates.append(max(rates[-1] * PLATEAU.factor, PLATEAU.least) if lowered else rates[-1])
        wait = 0 if lowered else wait
    return np.array(rates)


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

    longer = warmup_cosine_rates(epochs + 1, RATE, warmup, least)
    whole = [RATE * (epoch + 1) / warmup for epoch in range(warmup)]
    from_zero = [RATE * epoch / warmup for epoch in range(warmup)]
    late = [RATE, *exponential_rates(epochs - 1, RATE, gamma)]
    mistakes = [
        Hypothesis("warm-up one epoch shorter", cosine(warmup=warmup - 1)),
        Hypothesis("warm-up one epoch longer", cosine(warmup=warmup + 1)),
        Hypothesis("warm-up ignored", cosine(warmup=0)),
        Hypothesis(
            "warm-up ends at the whole rate",
            {"WarmupCosine": np.array([*whole, *expected["WarmupCosine"][warmup:]])},
        ),
        Hypothesis(
            "warm-up begins at zero", {"WarmupCosine": np.array([*from_zero, *expected["WarmupCosine"][warmup:]])}
        ),
        Hypothesis("falls to zero", cosine(least=0.0)),
        Hypothesis("cosine one epoch longer", {"WarmupCosine": np.array(longer[:epochs])}),
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


def add_loss(module: PtychoPINN, part: str, loss: float, samples: int) -> None:
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
                add_loss(module, part, 100.0, 7)
                module.on_validation_epoch_start()
            for loss, size in zip(batches[epoch], sizes[name], strict=True):
                add_loss(module, part, loss, size)
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


def _step(name: str, run: Callable[[StepBench], Outcome], *clauses: str) -> Step:
    return Step(f"optimiser.{name}", ("STEP-OPTIMISER", *clauses), run, ("lightning", "tensordict"))


OPTIMISER: tuple[Step, ...] = (
    _step("updates", _updates, "TRAIN-STATE"),
    _step("clipping", _clipping, "TRAIN-STATE"),
    _step("plateau", _plateau, "TRAIN-RATE"),
    _step("schedules", _schedules, "TRAIN-RATE"),
    _step("stopping", _stopping, "TRAIN-STOP"),
    _step("epoch_loss", _epoch_loss),
    _step("training", _training, "TRAIN-STATE"),
)
"""The parts of training first, then training itself."""
