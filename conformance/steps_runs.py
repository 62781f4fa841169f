"""Whole runs by ``ptycho_torch.train.main``, judged by what they leave."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from conformance.hypotheses import Hypothesis
from conformance.oracle_optimisers import Rule
from conformance.oracle_training import Plateau
from conformance.small_runs import PROBE_SCALE, WHOLE, RealRun, RunCase, SmallScans, run_main, training_data
from conformance.step import Outcome, Step, StepBench

if TYPE_CHECKING:
    import torch

    from conformance.plain_training import PlainRun, Plan, TrainingData

OWN, SHARED, TUNED = "own probes", "one probe", "fine-tuned"
UPDATES, EACH_TIME, EPOCHS = (
    "updates behind which last.ckpt is written", "last.ckpt, each time", "epochs in last.ckpt"
)  # fmt: skip
EVERY, ACCUMULATED = 2, 2
"""Updates between checkpoints of the first run, and batches of an update of the second."""


def _cases() -> dict[str, RunCase]:
    """Return the runs: none of their settings is a default, and no two have the same."""
    from conformance.plain_training import Plan

    own = {
        "loss_function": "MAE", "learning_rate": 1.0, "adam_beta1": 0.8, "batch_size": 4, "validation_fraction": 0.35,
        "seed": 3, "scheduler": "ReduceLROnPlateau", "plateau_factor": 0.6, "plateau_patience": 1,
        "plateau_threshold": 0.02, "plateau_min_lr": 0.01, "gradient_clip_val": 0.02,
        "gradient_clip_algorithm": "norm", "early_stop_patience": 2,
        "early_stop_monitor": "val_loss", "max_epochs": 7, "checkpoint_every_n_steps": EVERY,
    }  # fmt: skip
    shared = {
        "mae_weight": 0.3, "realspace_weight": 0.5, "tv_weight": 0.01, "optimizer": "adam", "learning_rate": 0.05,
        "adam_eps": 1e-3, "batch_size": 5, "validation_fraction": 0.0, "seed": 4, "scheduler": "Exponential",
        "lr_gamma": 0.7, "gradient_clip_val": 0.05, "gradient_clip_algorithm": "value", "early_stop_patience": None,
        "accumulate_grad_batches": ACCUMULATED, "intensity_scale_trainable": True, "probe_trainable": True,
        "probe_big": False, "max_epochs": 3,
    }  # fmt: skip
    tuned = {
        "optimizer": "adamw", "learning_rate": 0.03, "adam_beta2": 0.9, "weight_decay": 0.2, "batch_size": 3,
        "validation_fraction": 0.25, "validation_selection": "last", "seed": 5, "scheduler": "Default",
        "gradient_clip_val": None, "early_stop_patience": 9, "max_epochs": 2,
    }  # fmt: skip
    alone = {"nll_weight": 0.0, "mae_weight": 0.0, "realspace_weight": 0.0, "tv_weight": 0.0}
    return {
        OWN: RunCase(
            own,
            Plan(
                Rule("keras_adam", 1.0, beta_1=0.8), {**alone, "mae_weight": 1.0}, seed=3, epochs=7,
                scheduler="ReduceLROnPlateau", plateau=Plateau(0.6, 1, 0.02, 0.01), clip=0.02, patience=2,
                watched="val_loss", probe_scale=PROBE_SCALE, probe_of_scan=True,
            ),
        ),
        SHARED: RunCase(
            shared,
            Plan(
                Rule("adam", 0.05, epsilon=1e-3),
                {"nll_weight": 1.0, "mae_weight": 0.3, "realspace_weight": 0.5, "tv_weight": 0.01}, seed=4, epochs=3,
                scheduler="Exponential", gamma=0.7, clip=0.05, clip_algorithm="value", accumulate=ACCUMULATED,
                probe_scale=PROBE_SCALE, probe_big=False, trainable=("log_scale", "probe_parts"),
            ),
            one_probe=True,
        ),
        TUNED: RunCase(
            tuned,
            Plan(
                Rule("adamw", 0.03, beta_2=0.9, decay=0.2), {**alone, "nll_weight": 1.0}, seed=5, epochs=2,
                probe_scale=PROBE_SCALE, probe_of_scan=True, patience=9,
            ),
        ),
    }  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Judged:
    """A run beside the plain loop.

    Attributes:
        case: its settings.
        data: what it is fed with.
        plan: how the plain loop trains.
        plain: what that gave.
        real: what the run left.
        found: the same, read from its files when it had ended.
    """

    case: RunCase
    data: TrainingData
    plan: Plan
    plain: PlainRun
    real: RealRun
    found: Mapping[str, np.ndarray]

    def trained(self, data: TrainingData | None = None, plan: Plan | None = None) -> Judged:
        """Return the run beside a plain loop that is fed with other data, or trains in another way."""
        from conformance.plain_training import train_plainly

        if data is None and plan == self.plan:
            return self
        data, plan = data or self.data, plan or self.plan
        return dataclasses.replace(self, data=data, plan=plan, plain=train_plainly(data, plan))


class Runs:
    """The runs, each made on first use."""

    def __init__(self) -> None:
        self.scans = SmallScans()
        self.cases = _cases()

    def _judge(self, name: str, plan: Plan | None = None, **named: Any) -> Judged:
        from conformance.plain_training import train_plainly

        case = self.cases[name]
        plan = plan or case.plan
        real = run_main(self.scans, case, self.scans.root / name.replace(" ", "_"), **named)
        data = training_data(self.scans, case)
        return Judged(case, data, plan, train_plainly(data, plan), real, left(real))

    @cached_property
    def own(self) -> Judged:
        """Two scans, each lit by its own probe."""
        return self._judge(OWN)

    @cached_property
    def shared(self) -> Judged:
        """Two scans with one probe, which is trained."""
        return self._judge(SHARED)

    @cached_property
    def tuned(self) -> Judged:
        """A run that starts from the weights of the second: no run before it trained these scans with their probes."""
        start = self.shared.real.written("last")[-1]
        weights = {"weight": weights_in(start)["weight"]}
        plan = dataclasses.replace(self.cases[TUNED].plan, start=weights)
        return self._judge(TUNED, plan, start_from=start)


def weights_in(path: Path) -> dict[str, np.ndarray]:
    """Return the weights of a checkpoint, by name."""
    from ptycho_torch.checkpoint import read_checkpoint

    return {name: each.double().numpy() for name, each in read_checkpoint(path).weights.items()}


def left(run: RealRun) -> dict[str, np.ndarray]:
    """Return what a run left: in what it returned, in its files, and in every checkpoint while it ran."""
    from conformance.plain_training import flat
    from ptycho_torch.checkpoint import KEY, read_checkpoint
    from ptycho_torch.checkpoint_file import read_content

    result = run.result
    versions = [read_content(path) for path in run.written("last")]
    inside = [version[KEY] for version in versions]
    written = json.loads((run.output / "history.json").read_text())
    state = flat({name: each.double().numpy() for name, each in result.module.network.state_dict().items()})
    newest, no_groups = read_checkpoint(result.checkpoint), np.zeros(0, np.int64)
    return {
        **{f"history of {name}": np.array(values) for name, values in result.history.items()},
        "what the history has": np.array(", ".join(sorted(result.history))),
        "history.json says the same": np.array(written == result.history),
        "last.ckpt says the same": np.array(newest.history == result.history),
        "groups that are fed": np.concatenate([no_groups, *run.fed]),
        "lengths of batches": np.array([len(groups) for groups in run.fed]),
        "weights": state,
        UPDATES: np.array([version["global_step"] for version in versions], np.int64),
        EACH_TIME: np.array([flat(_of_network(version["state_dict"])) for version in versions]).reshape(-1, state.size),
        "last.ckpt says that training has ended": np.array([int(each["finished"]) for each in inside]),
        EPOCHS: np.array([len(each["history"].get("learning_rate", ())) for each in inside]),
        "weights in last.ckpt at the end": flat(weights_in(result.checkpoint)),
        "weights in best.ckpt": flat(weights_in(result.best_checkpoint)),
    }


def _of_network(state: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name.removeprefix("network."): each.double().numpy() for name, each in state.items()}


def _should_leave(judged: Judged) -> dict[str, np.ndarray]:
    """Return what a run leaves that trains as the plain loop does."""
    case, plain = judged.case, judged.plain
    fed = [groups for epoch in judged.data.epochs[: plain.epochs] for groups in epoch]
    updates, every = plain.updates_of_epoch, case.settings.training.checkpoint_every_n_steps
    total = plain.epochs * updates
    steps = [step for step in range(1, total + 1) if step % updates == 0 or (every and step % every == 0)]
    watched = plain.history.get("val_loss", plain.history["train_loss"])
    return {
        **{f"history of {name}": values for name, values in plain.history.items()},
        "what the history has": np.array(", ".join(sorted(plain.history))),
        "history.json says the same": np.array(True),
        "last.ckpt says the same": np.array(True),
        "groups that are fed": np.concatenate(fed),
        "lengths of batches": np.array([*map(len, fed)]),
        "weights": plain.weights[-1],
        UPDATES: np.array(steps),
        EACH_TIME: plain.weights[steps],
        "last.ckpt says that training has ended": np.array([int(step == total) for step in steps]),
        EPOCHS: np.array([step // updates for step in steps]),
        "weights in last.ckpt at the end": plain.weights[-1],
        "weights in best.ckpt": plain.weights[(int(np.argmin(watched)) + 1) * updates],
    }


def _of_cases(
    cases: Mapping[str, Judged], leaves: Callable[[Judged], Mapping[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    return {f"{name}: {what}": each for name, judged in cases.items() for what, each in leaves(judged).items()}


def _whole_runs(bench: StepBench) -> Outcome:
    """Train by ``main``, three times with other settings, and by a plain loop over the same batches."""
    runs = bench.once(Runs)
    cases = {OWN: runs.own, SHARED: runs.shared, TUNED: runs.tuned}
    return Outcome(
        _of_cases(cases, _should_leave),
        _of_cases(cases, lambda judged: judged.found),
        WHOLE,
        lambda: _wrong_runs(cases),
    )


def _wrong_runs(cases: Mapping[str, Judged]) -> Iterator[Hypothesis]:
    for what, change in _WRONGLY_LEFT.items():

        def leaves(judged: Judged, change: _Left = change) -> dict[str, np.ndarray]:
            return {**_should_leave(judged), **change(judged)}

        yield Hypothesis(what, _of_cases(cases, leaves))
    for what, replaced in _WRONG_PLANS.items():

        def trained(judged: Judged, replaced: _Change = replaced) -> dict[str, np.ndarray]:
            return _should_leave(judged.trained(plan=replaced(judged.plan)))

        yield Hypothesis(what, _of_cases(cases, trained))

    def first_again(judged: Judged) -> dict[str, np.ndarray]:
        data = dataclasses.replace(judged.data, epochs=[judged.data.epochs[0]] * len(judged.data.epochs))
        return _should_leave(judged.trained(data))

    yield Hypothesis("batches of the first epoch in every epoch", _of_cases(cases, first_again))


_Left = Callable[["Judged"], Mapping[str, np.ndarray]]
_Change = Callable[["Plan"], "Plan"]


def _best(choose: Callable[[PlainRun], int]) -> _Left:
    """Keep the weights of another epoch, counted from 0, in ``best.ckpt``."""

    def left(judged: Judged) -> dict[str, np.ndarray]:
        plain = judged.plain
        return {"weights in best.ckpt": plain.weights[(choose(plain) + 1) * plain.updates_of_epoch]}

    return left


def _noted_twice(judged: Judged) -> dict[str, np.ndarray]:
    """Note the loss behind the last batch but one and behind the last."""
    from conformance.plain_training import history_of

    plan, plain = judged.plan, judged.plain
    terms, sizes = plain.terms["train"], plain.sizes["train"]
    before = history_of(plan, {"train": terms[:, :-1]}, {"train": sizes[:-1]}, plain.rates)
    behind = history_of(plan, {"train": terms[:, -1:]}, {"train": sizes[-1:]}, plain.rates)
    return {f"history of {name}": np.stack([before[name], behind[name]], axis=1).ravel() for name in before}


def _validated_before(judged: Judged) -> dict[str, np.ndarray]:
    plain = judged.plain
    if "val_loss" not in plain.history:
        return {}
    return {"history of val_loss": np.insert(plain.history["val_loss"], 0, plain.untrained)}


def _ended(said: Callable[[np.ndarray], np.ndarray]) -> _Left:
    """Change which version of ``last.ckpt`` says that training has ended."""
    name = "last.ckpt says that training has ended"
    return lambda judged: {name: said(_should_leave(judged)[name])}


_WRONGLY_LEFT: Mapping[str, _Left] = {
    "loss noted behind the last batch but one as well": _noted_twice,
    "validation before the first epoch counts": _validated_before,
    "best.ckpt by the training loss": _best(lambda plain: int(np.argmin(plain.history["train_loss"]))),
    "best.ckpt by the highest loss": _best(
        lambda plain: int(np.argmax(plain.history.get("val_loss", plain.history["train_loss"])))
    ),
    "best.ckpt is the last": _best(lambda plain: plain.epochs - 1),
    "best.ckpt is the first": _best(lambda plain: 0),
    "every last.ckpt says that training has ended": _ended(np.ones_like),
    "no last.ckpt says that training has ended": _ended(np.zeros_like),
}
_WRONG_PLANS: Mapping[str, _Change] = {
    "likelihood counts beside any loss": lambda plan: dataclasses.replace(
        plan, weights_of_loss={**plan.weights_of_loss, "nll_weight": 1.0}
    ),
    "likelihood in place of any loss": lambda plan: dataclasses.replace(
        plan, weights_of_loss={**plan.weights_of_loss, "nll_weight": 1.0, "mae_weight": 0.0}
    ),
    "first weights of seed 0": lambda plan: dataclasses.replace(plan, seed=0),
    "weights of the checkpoint not taken": lambda plan: dataclasses.replace(plan, start=None),
    "the first scan's probe for all": lambda plan: dataclasses.replace(plan, probe_of_scan=False),
    "not clipped": lambda plan: dataclasses.replace(plan, clip=None),
    "clipped by the norm, whatever was chosen": lambda plan: dataclasses.replace(plan, clip_algorithm="norm"),
    "rate never lowered": lambda plan: dataclasses.replace(plan, scheduler="Default"),
    "ends early by the training loss": lambda plan: dataclasses.replace(plan, watched="train_loss"),
    "never ends early": lambda plan: dataclasses.replace(plan, patience=None),
    "patience one epoch longer": lambda plan: dataclasses.replace(
        plan, patience=None if plan.patience is None else plan.patience + 1
    ),
    "patience one epoch shorter": lambda plan: dataclasses.replace(
        plan, patience=None if plan.patience is None else plan.patience - 1
    ),
    "an update behind every batch": lambda plan: dataclasses.replace(plan, accumulate=1),
    "object counts beyond its central square": lambda plan: dataclasses.replace(plan, probe_big=True),
    "probe and scale never trained": lambda plan: dataclasses.replace(plan, trainable=()),
    "probe not scaled": lambda plan: dataclasses.replace(plan, probe_scale=1.0),
    "keras_adam whatever was chosen": lambda plan: dataclasses.replace(
        plan, rule=dataclasses.replace(plan.rule, name="keras_adam")
    ),
}  # fmt: skip


RUNS: tuple[Step, ...] = (Step("optimiser.run", ("RUN-01",), _whole_runs, ("lightning", "tensordict")),)
