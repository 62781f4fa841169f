"""Runs by ``ptycho_torch.train.main`` that are interrupted and go on, and those that may not."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from conformance.hypotheses import Hypothesis
from conformance.small_runs import run_main
from conformance.step import Outcome, Step, StepBench
from conformance.steps_map_tables import write_scans
from conformance.steps_runs import EACH_TIME, EPOCHS, UPDATES, Judged, Runs, left

KEPT = (
    "history of train_loss", "history of val_loss", "history of learning_rate", "what the history has",
    "history.json says the same", "last.ckpt says the same", "weights", "weights in last.ckpt at the end",
    "weights in best.ckpt",
)  # fmt: skip
"""What a run that was interrupted has to leave as if it had not been."""

WRITTEN = (UPDATES, EACH_TIME)
"""What it has to do once more, behind the checkpoint that it goes on from."""


@dataclasses.dataclass(frozen=True)
class _GoesOn:
    """A run that goes on.

    Attributes:
        whole: the same run without an interruption.
        behind: versions of ``last.ckpt`` up to the one that it goes on from.
        found: what it left.
    """

    whole: Judged
    behind: int
    found: Mapping[str, np.ndarray]

    def expected(self) -> dict[str, np.ndarray]:
        """Return what it should leave."""
        whole = self.whole.found
        kept = {name: whole[name] for name in KEPT if name in whole}
        return kept | {name: whole[name][self.behind :] for name in WRITTEN}

    def ended_at_once(self) -> dict[str, np.ndarray]:
        """Return what is left without any training."""
        if self.behind == len(self.whole.found[UPDATES]):
            return self.expected()
        weights = self.whole.found[EACH_TIME][self.behind - 1]
        epochs = self.whole.found[EPOCHS][self.behind - 1]
        left = {
            name: each[:epochs] if name.startswith("history of") else each for name, each in self.expected().items()
        }
        nothing = {name: each[:0] for name, each in left.items() if name in WRITTEN}
        return {**left, **nothing, "weights": weights, "weights in last.ckpt at the end": weights}

    def begun_anew(self) -> dict[str, np.ndarray]:
        """Return what is left by a run from its first epoch on."""
        return self.expected() | {name: self.whole.found[name] for name in WRITTEN}

    def best_of_the_rest(self) -> dict[str, np.ndarray]:
        """Return what is left where ``best.ckpt`` is chosen among the epochs behind the interruption."""
        plain = self.whole.plain
        losses = plain.history.get("val_loss", plain.history["train_loss"])
        epochs = int(self.whole.found[EPOCHS][self.behind - 1])
        if epochs == plain.epochs:
            return self.expected()
        best = (epochs + int(np.argmin(losses[epochs:])) + 1) * plain.updates_of_epoch
        (version,) = np.flatnonzero(self.whole.found[UPDATES] == best)
        return self.expected() | {"weights in best.ckpt": self.whole.found[EACH_TIME][version]}


def _going_on(runs: Runs) -> dict[str, _GoesOn]:
    """Go on from a checkpoint within an epoch, behind one, behind the last, and of a run that had fewer epochs."""
    own, shared = runs.own, runs.shared
    ends = np.flatnonzero(own.found[UPDATES] % own.plain.updates_of_epoch == 0)
    found = {}
    versions = {
        "behind an epoch": ends[-2],
        "within an epoch": ends[-1] - 1,
        "behind the last": ends[-1],
    }
    for how, number in versions.items():
        again = run_main(runs.scans, own.case, own.real.output, resume=own.real.put_back(number))
        found[how] = _GoesOn(own, int(number) + 1, left(again))
    fewer, folder = 2, runs.scans.root / "more_epochs"
    short = run_main(
        runs.scans, dataclasses.replace(shared.case, chosen={**shared.case.chosen, "max_epochs": fewer}), folder
    )
    # Without settings, those of the checkpoint count.
    more: dict[str, Any] = {"settings": None, "max_epochs": shared.case.settings.training.max_epochs}
    again = run_main(runs.scans, shared.case, folder, resume=short.result.checkpoint, **more)
    return found | {"more epochs": _GoesOn(shared, fewer, left(again))}


def _resumed_runs(bench: StepBench) -> Outcome:
    """Let runs go on, and find what the run without an interruption left, bit by bit."""
    runs = bench.once(Runs)
    going = _going_on(runs)

    def of_runs(leaves: Callable[[_GoesOn], Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
        return {f"{how}: {name}": each for how, run in going.items() for name, each in leaves(run).items()}

    refused = _refused(runs)
    expected = of_runs(_GoesOn.expected) | {f"refused: {what}": np.array(right) for what, (right, _) in refused.items()}
    found = of_runs(lambda run: run.found) | {f"refused: {what}": np.array(said) for what, (_, said) in refused.items()}
    mistakes = [
        Hypothesis("training ended at once", of_runs(_GoesOn.ended_at_once)),
        Hypothesis("training begun anew", of_runs(_GoesOn.begun_anew)),
        Hypothesis("best.ckpt by the epochs behind the interruption", of_runs(_GoesOn.best_of_the_rest)),
        Hypothesis("nothing is refused", {f"refused: {what}": np.array("nothing") for what in refused}),
    ]
    return Outcome(expected, found, 0.0, mistakes)


def _refused(runs: Runs) -> dict[str, tuple[str, str]]:
    """Return for what cannot go on: which error should be raised and what it names, and which is."""
    from ptycho_torch.errors import PtychoError

    own, root = runs.own, runs.scans.root
    checkpoint = own.real.put_back(0)
    first, second = runs.scans.scans.items()
    moved = {**second[1], "xcoords": second[1]["xcoords"] + 0.5}
    brighter = {**second[1], "diff3d": 2 * second[1]["diff3d"]}
    attempts: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
        "another rate": ("CheckpointError: learning_rate = 1.0", {"learning_rate": 0.25}, {}),
        "another network": ("CheckpointError: n_filters_scale = 1", {"n_filters_scale": 2}, {}),
        "other groups": ("CheckpointError: group_seed = 0", {"group_seed": 5}, {}),
        "fewer scans": ("CheckpointError: scans = ", {}, _written(root / "fewer", [first])),
        "other positions": (
            "CheckpointError: positions_sum_px = ", {}, _written(root / "moved", [first, (second[0], moved)])
        ),
        "other counts": ("CheckpointError: nphotons = ", {}, _written(root / "counts", [first, (second[0], brighter)])),
        "a new run at once": ("ConfigError: start_from", {}, {"start_from": checkpoint}),
    }  # fmt: skip
    found = {}
    for what, (error, changed, named) in attempts.items():
        word = error.partition(": ")[2]
        case = dataclasses.replace(own.case, chosen={**own.case.chosen, **changed})
        try:
            run_main(runs.scans, case, root / "refused", resume=checkpoint, **named)
            said = "nothing"
        except PtychoError as err:
            said = f"{type(err).__name__}: {word if word in str(err) else err}"
        found[what] = error, said
    return found


def _written(folder: Path, scans: Iterable[tuple[str, Mapping[str, np.ndarray]]]) -> dict[str, Any]:
    """Write scans, and return what a run of them is given."""
    folder.mkdir(parents=True)
    write_scans(folder / "scans", dict(scans))
    return {"ptycho_dir": folder / "scans", "data_dir": folder / "map"}


RESUMED_RUNS: tuple[Step, ...] = (
    Step("optimiser.resumed_run", ("RUN-02",), _resumed_runs, ("lightning", "tensordict")),
)
