"""Whole runs by ``train.main``: what settings decide of every update, what a run leaves, and how it resumes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conformance.judge.agreement import assert_agrees
from conformance.oracle.optimisers import Rule
from conformance.oracle.training import Plateau, epochs_before_stop, exponential_rates, plateau_rates
from ptycho_torch import train
from ptycho_torch.errors import CheckpointError, ConfigError
from ptycho_torch.training.checkpoint import KEY, read_checkpoint
from tests.support.run_witness import Case, Run, Scans, changed, weights_of
from tests.support.scan_scenes import write_scans
from tests.support.training_runs import draw_two_scans

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::UserWarning:lightning", "ignore::FutureWarning:lightning"),
]

NO_TERM = {"nll_weight": 0.0, "mae_weight": 0.0, "realspace_weight": 0.0, "tv_weight": 0.0}
PLATEAU, PATIENCE = Plateau(0.6, 1, 0.02, 0.001), 2

# None of their settings is a default, and no two have the same.
OWN = Case(
    {
        "loss_function": "MAE", "learning_rate": 0.02, "adam_beta1": 0.8, "batch_size": 4, "validation_fraction": 0.35,
        "seed": 3, "scheduler": "ReduceLROnPlateau", "plateau_factor": PLATEAU.factor,
        "plateau_patience": PLATEAU.patience, "plateau_threshold": PLATEAU.threshold, "plateau_min_lr": PLATEAU.least,
        "gradient_clip_val": 0.02, "gradient_clip_algorithm": "norm", "early_stop_patience": PATIENCE,
        "early_stop_monitor": "val_loss", "max_epochs": 7, "checkpoint_every_n_steps": 2,
    },
    Rule("keras_adam", 0.02, beta_1=0.8),
    {**NO_TERM, "mae_weight": 1.0},
    clip=(0.02, "norm"),
)  # fmt: skip
SHARED = Case(
    {
        "mae_weight": 0.3, "realspace_weight": 0.5, "tv_weight": 0.01, "optimizer": "adam", "learning_rate": 0.005,
        "adam_eps": 1e-3, "batch_size": 5, "validation_fraction": 0.0, "seed": 4, "scheduler": "Exponential",
        "lr_gamma": 0.7, "gradient_clip_val": 0.05, "gradient_clip_algorithm": "value", "early_stop_patience": None,
        "accumulate_grad_batches": 2, "intensity_scale_trainable": True, "probe_trainable": True, "probe_big": False,
        "max_epochs": 3,
    },
    Rule("adam", 0.005, epsilon=1e-3),
    {"nll_weight": 1.0, "mae_weight": 0.3, "realspace_weight": 0.5, "tv_weight": 0.01},
    clip=(0.05, "value"),
    probe_big=False,
    accumulate=2,
    one_probe=True,
)  # fmt: skip
TUNED = Case(
    {
        "optimizer": "adamw", "learning_rate": 0.003, "adam_beta2": 0.9, "weight_decay": 0.2, "batch_size": 3,
        "validation_fraction": 0.25, "validation_selection": "last", "seed": 5, "scheduler": "Default",
        "gradient_clip_val": None, "early_stop_patience": 9, "probe_big": False, "max_epochs": 2,
    },
    Rule("adamw", 0.003, beta_2=0.9, decay=0.2),
    {**NO_TERM, "nll_weight": 1.0},
    probe_big=False,
)  # fmt: skip

each_run = pytest.mark.parametrize("name", ["own", "shared", "tuned"])


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Scans:
    return Scans.at(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def own(scans: Scans) -> Run:
    """Two scans, each lit by its own probe."""
    return scans.run(OWN, scans.root / "own")


@pytest.fixture(scope="module")
def shared_probe(scans: Scans) -> Run:
    """Two scans with one probe, which is trained."""
    return scans.run(SHARED, scans.root / "shared")


@pytest.fixture(scope="module")
def tuned(scans: Scans, shared_probe: Run) -> Run:
    """A run that starts from the weights of the one before."""
    return scans.run(TUNED, scans.root / "tuned", start_from=shared_probe.result.checkpoint)


@pytest.fixture
def trained(name: str, request: pytest.FixtureRequest) -> Run:
    found: Run = request.getfixturevalue({"shared": "shared_probe"}.get(name, name))
    return found


def batches_of(run: Run, scans: Scans) -> tuple[list[np.ndarray], int, int]:
    """Return the groups that loaders feed in as many epochs as ran, and the batches of an epoch of either kind."""
    training, validation = train.loaders(scans.dataset(run.case), run.case.settings().training)
    fed = [batch.groups.numpy() for _ in run.result.history["learning_rate"] for batch in training]
    return fed, len(training), 0 if validation is None else len(validation)


@pytest.mark.parity_clause("RUN-01")
@each_run
def test_every_batch_and_update_is_what_settings_and_data_ask_for(trained: Run, scans: Scans, name: str) -> None:
    """Input and probe of each batch, the gradient of its loss, clipping, optimiser and what is trained."""
    assert trained.witness.wrong == []
    fed, batches, _ = batches_of(trained, scans)
    assert [groups.tolist() for groups in trained.witness.fed] == [groups.tolist() for groups in fed]
    # No epoch has the order of another.
    firsts = range(0, len(fed), batches)
    assert len({tuple(np.concatenate(fed[first : first + batches])) for first in firsts}) == len(firsts)


@pytest.mark.parity_clause("RUN-01")
@each_run
def test_a_run_starts_from_its_seed_or_from_a_checkpoint(
    trained: Run, scans: Scans, shared_probe: Run, name: str
) -> None:
    settings = trained.case.settings()
    module = train.PtychoPINN.for_dataset(scans.dataset(trained.case), settings)
    right = weights_of(module.network.state_dict())
    if name == "tuned":
        # Probe and scale are those of the data all the same.
        start = shared_probe.left["weights"]
        right |= {key: start[key] for key in right if key not in ("probe_parts", "log_scale")}
        assert not np.array_equal(right["probe_parts"], start["probe_parts"][:1])
    assert_agrees(right, trained.witness.weights[0])


@pytest.mark.parity_clause("RUN-01")
@each_run
def test_the_history_has_the_means_and_the_rates_of_the_epochs(trained: Run, scans: Scans, name: str) -> None:
    history, witness = trained.result.history, trained.witness
    _, batches, validated = batches_of(trained, scans)
    names = {"total": 0, "poisson": 1, "mae": 2, "realspace": 3} if name == "shared" else {"total": 0}
    right = {}
    for part, count in (("train", batches), ("val", validated)):
        for term, place in names.items() if count else ():
            key = f"{part}_loss" if term == "total" else f"{term}_{part}_loss"
            right[key] = witness.means(part, count)[:, place]
    losses, epochs = history.get("val_loss", history["train_loss"]), len(history["train_loss"])
    right["learning_rate"] = np.array(
        {
            "own": plateau_rates(losses, 0.02, PLATEAU),
            "shared": exponential_rates(epochs, 0.005, 0.7),
            "tuned": [0.003] * epochs,
        }[name]
    )
    assert history.keys() == right.keys()
    assert_agrees(right, {key: np.array(values) for key, values in history.items()}, 1e-6)
    ends = {"own": epochs_before_stop([*losses, -np.inf], PATIENCE), "shared": 3, "tuned": 2}
    assert epochs == ends[name]
    assert json.loads(trained.left["history.json"]) == history
    assert read_checkpoint(trained.result.checkpoint).history == history


def test_the_first_run_tells_the_settings_apart(own: Run) -> None:
    """It ends early by the validation loss, with a lowered rate, and its best epoch is neither first nor last."""
    history = own.result.history
    losses, epochs = history["val_loss"], len(history["val_loss"])
    assert epochs < 7
    assert epochs_before_stop([*history["train_loss"], -np.inf], PATIENCE) != epochs
    assert history["learning_rate"][-1] < 0.02
    assert int(np.argmin(losses)) not in (0, epochs - 1, int(np.argmin(history["train_loss"])))


@pytest.mark.parity_clause("RUN-01")
@each_run
def test_checkpoints_hold_the_weights_of_their_update(trained: Run, scans: Scans, name: str) -> None:
    witness, case = trained.witness, trained.case
    epochs = len(trained.result.history["learning_rate"])
    updates = -(-batches_of(trained, scans)[1] // case.accumulate)
    every = case.chosen.get("checkpoint_every_n_steps", 0)
    steps = [s for s in range(1, epochs * updates + 1) if s % updates == 0 or (every and s % every == 0)]
    assert [content["global_step"] for content in trained.last] == steps
    inside = [content[KEY] for content in trained.last]
    assert [each["finished"] for each in inside] == [step == steps[-1] for step in steps]
    assert [len(each["history"].get("learning_rate", ())) for each in inside] == [step // updates for step in steps]
    for step, content in zip(steps, trained.last, strict=True):
        state = {key.removeprefix("network."): each for key, each in content["state_dict"].items()}
        assert_agrees(witness.weights[step], weights_of(state))
    losses = trained.result.history.get("val_loss", trained.result.history["train_loss"])
    best = (int(np.argmin(losses)) + 1) * updates
    assert_agrees(witness.weights[best], weights_of(trained.left["best.ckpt"]))
    for whose in ("weights", "last.ckpt"):
        found = {key: np.asarray(each) for key, each in trained.left[whose].items()}
        assert_agrees(witness.weights[-1], found)


# ------------------------------------------------------------------------------------------------------ resuming


def assert_same(resumed: Run, whole: Run, number: int) -> None:
    """Compare what two runs left, and what the resumed one wrote after version ``number`` of ``last.ckpt``."""
    for name, right in whole.left.items():
        found = resumed.left[name]
        if isinstance(right, str) or name == "history":
            assert found == right, name
        else:
            assert_agrees(
                {key: np.asarray(each) for key, each in right.items()},
                {key: np.asarray(each) for key, each in found.items()},
            )
    again, before = resumed.last, whole.last[number + 1 :]
    assert [each["global_step"] for each in again] == [each["global_step"] for each in before]
    for ours, theirs in zip(again, before, strict=True):
        assert_agrees(weights_of(theirs["state_dict"]), weights_of(ours["state_dict"]))


@pytest.mark.parity_clause("RUN-02")
@pytest.mark.parametrize("how", ["after an epoch", "within an epoch", "after the last epoch"])
def test_a_resumed_run_leaves_what_the_uninterrupted_one_does(own: Run, scans: Scans, how: str) -> None:
    """Bit by bit, also the checkpoint of the best epoch, which may lie before the interruption."""
    epochs = [len(content[KEY]["history"].get("learning_rate", ())) for content in own.last]
    ends = [number for number in range(len(epochs)) if number == 0 or epochs[number] > epochs[number - 1]]
    number = {"after an epoch": ends[-2], "within an epoch": ends[-1] - 1, "after the last epoch": ends[-1]}[how]
    own.left  # noqa: B018 - read before its folder is put back
    resumed = scans.run(OWN, scans.root / "own", resume=own.put_back(number))
    assert_same(resumed, own, number)


@pytest.mark.parity_clause("RUN-02")
def test_a_run_that_had_fewer_epochs_resumes_with_the_settings_of_its_checkpoint(
    shared_probe: Run, scans: Scans
) -> None:
    short = scans.run(changed(SHARED, max_epochs=2), scans.root / "more")
    resumed = scans.run(SHARED, scans.root / "more", resume=short.result.checkpoint, settings=None, max_epochs=3)
    assert_same(resumed, shared_probe, 1)


def _of(change: dict[str, Any] | None) -> dict[str, dict[str, Any]]:
    """Return the scans, the second one with some members changed, or without it."""
    first, second = draw_two_scans().items()
    return dict([first] if change is None else [first, (second[0], second[1] | change)])


SECOND = draw_two_scans()["scan_1"]
REFUSED: dict[str, tuple[type[Exception], str, dict[str, Any], Any]] = {
    "another rate": (CheckpointError, r"learning_rate = 0\.02, now 0\.25", {"learning_rate": 0.25}, "same"),
    "another network": (CheckpointError, "n_filters_scale = 1", {"n_filters_scale": 2}, "same"),
    "other groups": (CheckpointError, "group_seed = 0", {"group_seed": 5}, "same"),
    "fewer scans": (CheckpointError, "scans = ", {}, None),
    "other positions": (CheckpointError, "positions_sum_px = ", {}, {"xcoords": SECOND["xcoords"] + 0.5}),
    "other counts": (CheckpointError, "nphotons = ", {}, {"diff3d": 2 * SECOND["diff3d"]}),
}


@pytest.mark.parity_clause("RUN-02")
@pytest.mark.parametrize("what", REFUSED)
def test_another_run_is_not_resumed(own: Run, scans: Scans, tmp_path: Path, what: str) -> None:
    error, words, chosen, change = REFUSED[what]
    options = {}
    if change != "same":
        options = {"ptycho_dir": write_scans(tmp_path / "scans", _of(change)), "data_dir": tmp_path / "map"}
    with pytest.raises(error, match=words):
        scans.run(changed(OWN, **chosen), tmp_path / "refused", resume=own.written("last")[0], **options)


@pytest.mark.parity_clause("RUN-02")
def test_a_run_starts_or_resumes_and_takes_weights_of_its_own_network(own: Run, scans: Scans, tmp_path: Path) -> None:
    path = own.written("last")[0]
    with pytest.raises(ConfigError, match="start_from"):
        scans.run(OWN, tmp_path / "both", resume=path, start_from=path)
    with pytest.raises(CheckpointError, match="not those of this network"):
        scans.run(changed(OWN, n_filters_scale=2), tmp_path / "wide", start_from=path)
