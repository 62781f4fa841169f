"""Runs that are killed, requeued, stopped and resumed: nothing is lost, and nothing of one run gets into another."""

from __future__ import annotations

import _pickle
import json
import os
import pickle
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.training_runs import SMALL, write_scan

pytest.importorskip("lightning", reason="training needs lightning; pip install lightning")
pytest.importorskip("tensordict", reason="the memory map is a TensorDict; pip install tensordict")

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint, Timer

from ptycho_torch import inference, train
from ptycho_torch.commands import cli
from ptycho_torch.config_params import Settings
from ptycho_torch.dset_loader_pt_mmap import PtychoDataset
from ptycho_torch.errors import CheckpointError, ConfigError
from ptycho_torch.files import folders, npz_writer
from ptycho_torch.training import checkpoint_file
from ptycho_torch.training.checkpoint import KEY, read_checkpoint
from ptycho_torch.training.checkpoint_file import read_content, run_of, write_content
from ptycho_torch.training.interruption import RunInterrupted
from ptycho_torch.training.run_state import own_checkpoint, read_state

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::UserWarning:lightning", "ignore::FutureWarning:lightning"),
]

QUICK = SMALL | {"batch_size": 2, "max_epochs": 2, "validation_fraction": 0.2, "checkpoint_every_n_steps": 1}
"""10 training groups in 5 batches, and 2 validation groups."""


class PowerCut(BaseException):
    """The machine goes away."""


class At(Callback):
    """Does something before a batch, or behind it, or while it validates."""

    def __init__(self, epoch: int, batch: int, do: Callable[[Any], object], when: str = "before") -> None:
        self.at, self.do, self.when = (epoch, batch), do, when

    def _look(self, when: str, trainer: Any, batch: int) -> None:
        if self.when == when and (trainer.current_epoch, batch) == self.at:
            self.do(trainer)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self._look("before", trainer, batch_idx)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._look("after", trainer, batch_idx)

    def on_validation_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, *_: Any) -> None:
        self._look("validating", trainer, batch_idx)


def cut_power(_: Any) -> None:
    raise PowerCut


def stop(trainer: Any) -> None:
    trainer.should_stop = True


def get(number: int) -> Callable[[Any], object]:
    return lambda _: os.kill(os.getpid(), number)


def settings_of(overrides: dict[str, Any]) -> Settings:
    return Settings().override(QUICK | overrides)


def run(folder: Path, scan: Path, *callbacks: Callback, **keywords: Any) -> train.TrainingResult:
    settings = settings_of(keywords.pop("overrides", {}))
    own = {"reconstruct": False, "progress": False, "settings": settings, "data_dir": scan.parent / "map"}
    return train.main(scan, output_dir=folder, callbacks=callbacks, **own | keywords)


def last(folder: Path) -> Path:
    return folder / "checkpoints" / "last.ckpt"


def state_of(folder: Path) -> str:
    state = read_state(folder)
    assert state is not None
    return state.state


def assert_same(first: Path, second: Path) -> None:
    """Weights, optimiser and history of the last checkpoints, and what ``history.json`` says."""
    ours, theirs = read_content(last(first)), read_content(last(second))
    for part in ("state_dict", "optimizer_states", "lr_schedulers"):
        one, two = (torch.utils._pytree.tree_flatten(content[part]) for content in (ours, theirs))
        assert one[1] == two[1]
        for a, b in zip(one[0], two[0], strict=True):
            assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b, part
    assert ours[KEY]["history"] == theirs[KEY]["history"]
    assert (first / "history.json").read_bytes() == (second / "history.json").read_bytes()


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scan(tmp_path_factory.mktemp("scans") / "a.npz", patterns=12)


@pytest.fixture(scope="module")
def wholes(scan: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Folders of runs that nothing has interrupted, one for each choice of settings."""
    made: dict[str, Path] = {}

    def whole(**overrides: Any) -> Path:
        key = json.dumps(overrides, sort_keys=True)
        if key not in made:
            made[key] = tmp_path_factory.mktemp("whole")
            run(made[key], scan, overrides=overrides)
        return made[key]

    return whole


# ---------------------------------------------------------------------------------------------- one run, one identity


def cut_run_without_main(folder: Path, scan: Path, epoch: int, batch: int, **overrides: Any) -> None:
    """Begin a run in a folder that is not asked about, with parts of ``train.main``."""
    settings = settings_of(overrides)
    dataset = PtychoDataset(scan, data_dir=scan.parent / "map", settings=settings.data)
    module = train.PtychoPINN.for_dataset(dataset, settings)
    training, validation = train.loaders(dataset, settings.training)
    trainer = train.make_trainer(
        settings.training, folder, validate=True, callbacks=[At(epoch, batch, cut_power)], progress=False
    )
    with pytest.raises(PowerCut):
        trainer.fit(module, training, validation)


def test_what_an_older_run_left_is_neither_taken_up_nor_lost(scan: Path, tmp_path: Path) -> None:
    run(tmp_path, scan, overrides={"max_epochs": 1})
    older = {path.relative_to(tmp_path): path.read_bytes() for path in folders.run_files(tmp_path)}
    cut_run_without_main(tmp_path, scan, 0, 3, seed=7)
    assert {path: (tmp_path / "replaced-1" / path).read_bytes() for path in older} == older
    assert not (tmp_path / "checkpoints" / "best.ckpt").exists()
    result = run(tmp_path, scan, resume=last(tmp_path), settings=settings_of({"seed": 7}))
    assert run_of(result.best_checkpoint) == run_of(result.checkpoint) == read_state(tmp_path).run  # type: ignore[union-attr]
    assert len(read_checkpoint(result.best_checkpoint).history["val_loss"]) <= 2
    whole = run(tmp_path / "whole", scan, overrides={"seed": 7})
    assert_same(tmp_path, whole.checkpoint.parents[1])
    assert result.best_checkpoint.read_bytes() != older[Path("checkpoints/best.ckpt")]


@pytest.mark.parametrize("score", ["none yet", "of the other run"])
def test_a_best_checkpoint_of_another_run_is_no_match(scan: Path, tmp_path: Path, score: str) -> None:
    """It lies beside the checkpoint to resume, as older versions left it, and its loss is lower than any."""
    other = run(tmp_path / "other", scan, overrides={"max_epochs": 1, "seed": 5})
    content = read_content(other.best_checkpoint)
    content[KEY]["history"]["val_loss"][-1] = -1e9
    with pytest.raises(PowerCut):
        run(tmp_path / "run", scan, At(*((0, 3) if score == "none yet" else (1, 3)), cut_power))
    write_content(tmp_path / "run" / "checkpoints" / "best.ckpt", content)
    result = run(tmp_path / "run", scan, resume=last(tmp_path / "run"))
    assert run_of(result.best_checkpoint) == run_of(result.checkpoint)


def test_a_run_killed_before_its_first_checkpoint_begins_anew(
    scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(PowerCut):
        run(tmp_path / "run", scan, At(0, 0, cut_power))
    assert (own_checkpoint(tmp_path / "run"), state_of(tmp_path / "run")) == (None, "failed")
    # What another run has left there is not taken up either.
    other = run(tmp_path / "other", scan, overrides={"max_epochs": 1, "seed": 5})
    for name in ("last.ckpt", "best.ckpt"):
        (tmp_path / "run" / "checkpoints").mkdir(exist_ok=True)
        shutil.copy(other.checkpoint.with_name(name), tmp_path / "run" / "checkpoints" / name)
    assert own_checkpoint(tmp_path / "run") is None
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in QUICK.items() if not isinstance(value, bool)]
    command = ["train", str(scan), "-o", str(tmp_path / "run"), "--data-dir", str(scan.parent / "map"), *flags]
    assert cli.main([*command, "--no-tracking", "--no-reconstruct", "--no-progress", "--resume", "auto"]) == 0
    assert state_of(tmp_path / "run") == "finished"
    assert (tmp_path / "run" / "replaced-1" / "checkpoints" / "last.ckpt").read_bytes() == other.checkpoint.read_bytes()
    assert run_of(last(tmp_path / "run")) != run_of(other.checkpoint)


def test_lightning_s_own_requeueing_finds_no_other_run(
    scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wholes: Callable[..., Path]
) -> None:
    """Under SLURM Lightning resumes the newest hpc_ckpt in its folder by itself, whatever run it is of."""
    other = run(tmp_path / "other", scan, overrides={"max_epochs": 1, "seed": 5})
    (tmp_path / "run").mkdir()
    shutil.copy(other.checkpoint, tmp_path / "run" / "hpc_ckpt_1.ckpt")
    for name, value in {"NTASKS": 1, "PROCID": 0, "LOCALID": 0, "NODEID": 0, "JOB_ID": 7, "JOB_NAME": "job"}.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    monkeypatch.setenv("SLURM_NODELIST", "localhost")
    with pytest.raises(ConfigError, match="holds a run already"):
        run(tmp_path / "run", scan)
    run(tmp_path / "run", scan, overwrite=True)
    assert_same(tmp_path / "run", wholes())


def test_a_checkpoint_of_another_run_is_not_resumed_into_a_run(scan: Path, tmp_path: Path) -> None:
    run(tmp_path / "run", scan, overrides={"max_epochs": 1})
    other = run(tmp_path / "other", scan, overrides={"max_epochs": 1})
    inside = tmp_path / "run" / "kept" / "last.ckpt"
    inside.parent.mkdir()
    shutil.copy(other.checkpoint, inside)
    before = last(tmp_path / "run").read_bytes()
    with pytest.raises(CheckpointError, match="into another output_dir"):
        run(tmp_path / "run", scan, resume=inside, overrides={"max_epochs": 2})
    assert last(tmp_path / "run").read_bytes() == before


def test_run_json_follows_the_run(scan: Path, tmp_path: Path) -> None:
    seen: list[Any] = []
    looks = [
        At(0, 0, lambda _: seen.append(read_state(tmp_path))),
        At(1, 0, lambda _: seen.append(read_state(tmp_path))),
    ]
    result = run(tmp_path, scan, *looks)
    first, second, end = (*seen, read_state(tmp_path))
    assert (first.state, first.epochs, first.updates, first.history) == ("running", 0, 0, {})
    assert (second.state, second.epochs, second.updates) == ("running", 1, 5)
    assert end is not None
    assert (end.state, end.epochs, end.updates, end.history) == ("finished", 2, 10, result.history)
    assert first.run == second.run == end.run == run_of(result.checkpoint)
    assert first.settings == end.settings
    assert read_state(tmp_path / "no folder") is None
    (tmp_path / "run.json").write_text('{"format": 1, "run": 3}')
    assert read_state(tmp_path) is None


# ---------------------------------------------------------------------------------- whole or absent, and not a pickle


def test_a_checkpoint_is_whole_whenever_it_is_looked_at(scan: Path, tmp_path: Path) -> None:
    path, errors, looks = last(tmp_path), list[Exception](), 0
    over = threading.Event()

    def look() -> None:
        nonlocal looks
        while not over.is_set():
            if not path.exists():
                continue
            try:
                read_content(path)
                looks += 1
            except Exception as err:
                errors.append(err)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        run(tmp_path, scan)
    finally:
        over.set()
        thread.join()
    assert errors == []
    assert looks > 5


@pytest.mark.parametrize("where", ["writing", "fsync"])
def test_what_breaks_a_save_leaves_the_checkpoint_before(
    scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wholes: Callable[..., Path], where: str
) -> None:
    """Nothing is staged elsewhere, so that TMPDIR may be on another file system, or full, or not there."""
    monkeypatch.setenv("TMPDIR", str(tmp_path / "no such folder"))
    monkeypatch.setattr("tempfile.tempdir", None)
    target, saves = tmp_path / "run", 0

    def broken(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            nonlocal saves
            if sys._getframe(1).f_globals["__name__"] in (npz_writer.__name__, "pathlib"):
                saves += 1
                if saves > 20:
                    raise PowerCut
            return original(*arguments)

        return call

    save = checkpoint_file.replacing

    def torn(path: Path, **names: Any) -> Any:
        nonlocal saves
        saves += 1
        if saves > 4:
            path.with_name(".0123456789abcdef.part").write_bytes(b"torn")
            raise PowerCut
        return save(path, **names)

    with monkeypatch.context() as patch:
        if where == "writing":
            patch.setattr(checkpoint_file, "replacing", torn)
        else:
            patch.setattr(os, "fsync", broken(os.fsync))
        with pytest.raises(PowerCut):
            run(target, scan)
    assert read_checkpoint(last(target)).settings == settings_of({})
    run(target, scan, resume=last(target))
    assert_same(target, wholes())
    assert not list(target.rglob("*.part"))


def refuse(*_: Any, **__: Any) -> Any:
    raise AssertionError("something is unpickled")


@pytest.fixture
def _no_pickle(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (pickle, _pickle):
        for name in ("Unpickler", "load", "loads"):
            monkeypatch.setattr(module, name, refuse)
    monkeypatch.setattr(pickle, "_Unpickler", refuse)
    monkeypatch.setattr(torch, "load", refuse)
    monkeypatch.setattr(torch.serialization, "load", refuse)


@pytest.mark.usefixtures("_no_pickle")
def test_nothing_is_unpickled_wherever_a_checkpoint_is_read(scan: Path, tmp_path: Path) -> None:
    with pytest.raises(PowerCut):
        run(tmp_path / "run", scan, At(1, 2, cut_power))
    result = run(tmp_path / "run", scan, resume=last(tmp_path / "run"))
    assert run(tmp_path / "run", scan, resume=last(tmp_path / "run")).history == result.history
    run(tmp_path / "tuned", scan, start_from=result.checkpoint, overrides={"max_epochs": 1})
    module = train.PtychoPINN.load_from_checkpoint(result.checkpoint, map_location="cpu")
    assert module.history == train.PtychoPINN.from_checkpoint(tmp_path / "run").history
    inference.infer(result.checkpoint, scan, output_dir=tmp_path / "out", data_dir=scan.parent / "map", progress=False)
    from ptycho_tf_bridge.commands.config import run as config_command  # noqa: F401 - reads by read_checkpoint
    from ptycho_tf_bridge.export import export

    export(result.checkpoint, tmp_path / "wts.h5.zip")
    # A Trainer and a ModelCheckpoint of one's own.
    data = train.PtychoDataModule(scan, settings=settings_of({}), data_dir=scan.parent / "map")
    keeper = ModelCheckpoint(tmp_path / "kept", save_top_k=-1, every_n_train_steps=2)
    names: dict[str, Any] = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "max_epochs": 2}
    pl.Trainer(**names, callbacks=[keeper]).fit(train.PtychoPINN.for_dataset(data.dataset, settings_of({})), data)
    (path,) = (tmp_path / "kept").glob("*step=4.ckpt")
    other = train.PtychoPINN.for_dataset(data.dataset, settings_of({}))
    trainer = pl.Trainer(**names, enable_checkpointing=False)
    trainer.fit(other, datamodule=data, ckpt_path=path)
    assert other.history["train_loss"] == result.history["train_loss"]
    trainer.validate(other, datamodule=data, ckpt_path=path, verbose=False)
    assert len(trainer.predict(other, datamodule=data, ckpt_path=path)) > 0  # type: ignore[arg-type]


def test_a_pickle_is_refused_with_what_converts_it(scan: Path, tmp_path: Path, capsys: Any) -> None:
    result = run(tmp_path / "run", scan, overrides={"max_epochs": 1})
    content = read_content(result.checkpoint)
    del content[KEY]["run"]
    content[KEY]["sums"] = {"train": torch.ones(5, dtype=torch.float64)}
    old, new = tmp_path / "old.ckpt", tmp_path / "new.ckpt"
    torch.save(content, old)
    with pytest.raises(CheckpointError, match=r"is a pickle.*convert-checkpoint .*old\.ckpt -o NEW\.ckpt --trust"):
        read_checkpoint(old)
    assert cli.main(["convert-checkpoint", str(old), "-o", str(new)]) == 1
    assert "If you know who made the file, give --trust" in capsys.readouterr().err
    assert not new.exists()
    assert cli.main(["convert-checkpoint", str(old), "-o", str(new), "--trust"]) == 0
    assert "CVE-2025-32434" in capsys.readouterr().err
    found = read_checkpoint(new)
    assert found.run is None
    for name, weight in read_checkpoint(result.checkpoint).weights.items():
        assert torch.equal(found.weights[name], weight)
    assert read_content(new)[KEY]["sums"]["train"].shape == (1, 5)
    torch.save(content, old, _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match="is a pickle"):
        read_checkpoint(old)
    torch.save({"weights": torch.ones(1)}, old)
    assert cli.main(["convert-checkpoint", str(old), "-o", str(tmp_path / "no.ckpt"), "--trust"]) == 1
    old.write_bytes(pickle.dumps(Path("x")))
    assert cli.main(["convert-checkpoint", str(old), "-o", str(tmp_path / "no.ckpt"), "--trust"]) == 1
    assert not (tmp_path / "no.ckpt").exists()


def test_a_tree_comes_back_as_it_was(tmp_path: Path) -> None:
    shared = torch.arange(6.0)
    tree = {
        "numbers": [1, -2.5, True, None, float("inf"), float("-inf"), 2**70],
        "nan": float("nan"),
        ("a", 1): {0: "keys that are no text", "$tensor": "and one that looks like a tensor"},
        "tuple": (1, (2, [3])),
        "tensors": {"a/b": shared, "a": {"b": shared.view(2, 3).T}, "0d": torch.tensor(3), "none": torch.zeros(0, 4)},
        "complex": torch.randn(3, dtype=torch.complex64).conj(),
        "channels last": torch.arange(120.0).reshape(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "kinds": [torch.ones(2, dtype=kind) for kind in (torch.bfloat16, torch.float64, torch.int64, torch.bool)],
        "array": np.arange(4).reshape(2, 2),
        "scalar": np.float32(0.1),
        "path": Path("a"),
    }
    write_content(tmp_path / "a.ckpt", tree)
    found = read_content(tmp_path / "a.ckpt")
    assert found["numbers"] == tree["numbers"]
    assert np.isnan(found["nan"])
    assert found["a", 1] == tree["a", 1]
    assert found["tuple"] == tree["tuple"]
    for name, tensor in tree["tensors"].items():
        if isinstance(tensor, dict):
            assert torch.equal(found["tensors"][name]["b"], tensor["b"])
        else:
            assert torch.equal(found["tensors"][name], tensor)
    assert torch.equal(found["complex"], tree["complex"])
    assert [(one.dtype, one.tolist()) for one in found["kinds"]] == [(one.dtype, one.tolist()) for one in tree["kinds"]]
    assert torch.equal(found["channels last"], tree["channels last"])
    assert found["channels last"].stride() == tree["channels last"].stride()
    assert found["array"].tolist() == [[0, 1], [2, 3]]
    assert (found["scalar"], found["path"]) == (float(np.float32(0.1)), "a")
    with pytest.raises(CheckpointError, match="'a/b' is a set"):
        write_content(tmp_path / "b.ckpt", {"a": {"b": {1}}})
    assert not (tmp_path / "b.ckpt").exists()


def damaged(content: bytes) -> Iterator[bytes]:
    length = int.from_bytes(content[:8], "little")
    yield b""
    yield content[:7]
    yield content[: length // 2]
    yield content[:-1]
    yield b"\xff" * 8 + content[8:]
    yield content[:8] + b"[" * length
    yield content.replace(b'\\"$tensor\\":\\"state_dict/network.', b'\\"$tensor\\":\\"state_dict/nothing.', 1)
    yield content.replace(b'\\"epoch\\":', b'\\"Epoch\\":', 1)
    yield b"\x01" * 1000


def test_a_damaged_checkpoint_is_an_error_that_names_it(scan: Path, tmp_path: Path) -> None:
    result = run(tmp_path / "run", scan, overrides={"max_epochs": 1})
    path = tmp_path / "x.ckpt"
    for content in damaged(result.checkpoint.read_bytes()):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"x\.ckpt"):
            read_checkpoint(path)
    deep: Any = 1
    for _ in range(100):
        deep = [deep]
    write_content(path, {KEY: deep})
    with pytest.raises(CheckpointError, match="levels"):
        read_content(path)


# ------------------------------------------------------------------------------------------------------ exact resuming


@pytest.mark.parametrize(
    ("overrides", "moments"),
    [
        ({"accumulate_grad_batches": 3}, [(0, 4), (1, 1)]),
        ({"accumulate_grad_batches": 4, "scheduler": "Exponential", "validation_fraction": 0.0}, [(0, 3), (1, 0)]),
        ({"scheduler": "WarmupCosine", "early_stop_patience": 1, "optimizer": "adam"}, [(1, 3)]),
    ],
)
def test_a_run_without_power_ends_as_if_nothing_had_happened(
    scan: Path,
    tmp_path: Path,
    wholes: Callable[..., Path],
    overrides: dict[str, Any],
    moments: list[tuple[int, int]],
) -> None:
    for number, moment in enumerate(moments):
        folder = tmp_path / str(number)
        with pytest.raises(PowerCut):
            run(folder, scan, At(*moment, cut_power), overrides=overrides)
        path = own_checkpoint(folder)
        run(folder, scan, resume=path, overrides=overrides, overwrite=path is None)
        assert_same(folder, wholes(**overrides))


def test_the_last_step_of_an_epoch_averages_the_gradients_that_it_has(
    scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[torch.Tensor] = []
    singles: list[torch.Tensor] = []

    def seen(module: Any, *_: Any, **__: Any) -> None:
        steps.append(torch.cat([parameter.grad.flatten().clone() for parameter in module.network.parameters()]))

    def by_hand(module: Any, batch: Any, number: int = 0) -> torch.Tensor:
        loss: torch.Tensor = step(module, batch, number)
        gradients = torch.autograd.grad(loss, list(module.network.parameters()), retain_graph=True)
        singles.append(torch.cat([gradient.flatten() for gradient in gradients]))
        return loss

    step = train.PtychoPINN.training_step
    monkeypatch.setattr(train.PtychoPINN, "configure_gradient_clipping", seen)
    monkeypatch.setattr(train.PtychoPINN, "training_step", by_hand)
    trainable = {"accumulate_grad_batches": 3, "max_epochs": 1, "probe_trainable": True}
    run(tmp_path, scan, overrides=trainable | {"intensity_scale_trainable": True})
    assert (len(steps), len(singles)) == (2, 5)
    for found, parts in zip(steps, (singles[:3], singles[3:]), strict=True):
        torch.testing.assert_close(found, torch.stack(parts).mean(0), rtol=1e-4, atol=1e-5 * float(found.abs().max()))


@pytest.mark.parametrize(("moment", "accumulate"), [((0, 1), 1), ((1, 2), 2), ((1, 4), 1)])
def test_a_budget_is_not_the_end_of_a_run(
    scan: Path, tmp_path: Path, wholes: Callable[..., Path], moment: tuple[int, int], accumulate: int
) -> None:
    overrides = {"max_epochs": 3, "accumulate_grad_batches": accumulate, "early_stop_patience": 5}
    first = run(tmp_path, scan, At(*moment, stop, "after"), overrides=overrides)
    assert len(first.history["train_loss"]) == moment[0] + 1
    assert state_of(tmp_path) == "stopped by budget"
    assert not read_checkpoint(first.checkpoint).finished
    run(tmp_path, scan, resume=first.checkpoint, overrides=overrides)
    assert state_of(tmp_path) == "finished"
    assert_same(tmp_path, wholes(**overrides))


def test_lightning_s_timer_is_a_budget(scan: Path, tmp_path: Path, wholes: Callable[..., Path]) -> None:
    run(tmp_path, scan, Timer({"microseconds": 1}))
    assert state_of(tmp_path) == "stopped by budget"
    run(tmp_path, scan, resume=last(tmp_path))
    assert_same(tmp_path, wholes())


def test_early_stopping_is_the_end_of_a_run(scan: Path, tmp_path: Path) -> None:
    rule = EarlyStopping("train_loss", min_delta=1e9, patience=1, mode="min")
    overrides = {"max_epochs": 9, "early_stop_patience": None}
    result = run(tmp_path, scan, rule, overrides=overrides)
    assert len(result.history["train_loss"]) == 2
    assert state_of(tmp_path) == "finished"
    again = run(tmp_path, scan, resume=last(tmp_path), overrides=overrides)
    assert again.history == result.history


@pytest.mark.parametrize("steps", [3, 8])
def test_a_trainer_of_one_s_own_goes_on_behind_max_steps(scan: Path, tmp_path: Path, steps: int) -> None:
    settings = settings_of({"scheduler": "Exponential", "accumulate_grad_batches": 1})
    data = train.PtychoDataModule(scan, settings=settings, data_dir=scan.parent / "map")
    names: dict[str, Any] = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False}
    keeper = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=1)
    whole = train.PtychoPINN.for_dataset(data.dataset, settings)
    pl.Trainer(**names, max_epochs=2, enable_checkpointing=False).fit(whole, datamodule=data)
    part = train.PtychoPINN.for_dataset(data.dataset, settings)
    pl.Trainer(**names, max_steps=steps, callbacks=[keeper]).fit(part, datamodule=data)
    resumed = train.PtychoPINN.for_dataset(data.dataset, settings)
    trainer = pl.Trainer(**names, max_epochs=2, enable_checkpointing=False)
    trainer.fit(resumed, datamodule=data, ckpt_path=tmp_path / f"step={steps}.ckpt")
    assert trainer.global_step == 10
    for name, weight in whole.network.state_dict().items():
        assert torch.equal(resumed.network.state_dict()[name], weight), name


# ------------------------------------------------------------------------------- resumed with something else: the table


def test_fewer_epochs_than_done_train_nothing(scan: Path, tmp_path: Path, caplog: Any) -> None:
    with pytest.raises(PowerCut):
        run(tmp_path, scan, At(2, 2, cut_power), overrides={"max_epochs": 3, "scheduler": "Default"})
    before = last(tmp_path).read_bytes()
    result = run(tmp_path, scan, resume=last(tmp_path), overrides={"max_epochs": 1, "scheduler": "Default"})
    assert "has done 2 epochs and stands within another, and max_epochs = 1 asks for no more" in caplog.text
    assert (last(tmp_path).read_bytes(), len(result.history["train_loss"])) == (before, 2)
    assert state_of(tmp_path) == "finished"
    # Nothing is lost: with the epochs that it had, the run ends as it would have.
    result = run(tmp_path, scan, resume=last(tmp_path), overrides={"max_epochs": 3, "scheduler": "Default"})
    whole = run(tmp_path / "whole", scan, overrides={"max_epochs": 3, "scheduler": "Default"})
    assert_same(tmp_path, whole.checkpoint.parents[1])


@pytest.mark.parametrize("scheduler", ["Exponential", "WarmupCosine"])
def test_more_epochs_go_on_with_the_schedule_of_them(
    scan: Path, tmp_path: Path, wholes: Callable[..., Path], caplog: Any, scheduler: str
) -> None:
    overrides = {"scheduler": scheduler, "lr_warmup_epochs": 1}
    shutil.copytree(wholes(**overrides), tmp_path / "run")
    result = run(tmp_path / "run", scan, resume=last(tmp_path / "run"), overrides=overrides | {"max_epochs": 4})
    whole = wholes(**overrides | {"max_epochs": 4})
    rates = json.loads((whole / "history.json").read_text())["learning_rate"]
    assert result.history["learning_rate"][2:] == rates[2:]
    if scheduler == "WarmupCosine":
        assert "the learning rate follows the schedule of 4 epochs from here on" in caplog.text
    else:
        assert "learning rate follows" not in caplog.text
        assert_same(tmp_path / "run", whole)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"batch_size": 3}, r"batch_size = 2, now 3"),
        ({"accumulate_grad_batches": 2}, "accumulate_grad_batches = 1, now 2"),
        ({"scheduler": "Default"}, "scheduler"),
    ],
)
def test_other_settings_are_refused(
    scan: Path, tmp_path: Path, wholes: Callable[..., Path], change: dict[str, Any], expected: str
) -> None:
    shutil.copytree(wholes(), tmp_path / "run")
    with pytest.raises(CheckpointError, match=expected):
        run(tmp_path / "run", scan, resume=last(tmp_path / "run"), overrides=change | {"max_epochs": 3})


def test_workers_and_intervals_change_nothing(scan: Path, tmp_path: Path, wholes: Callable[..., Path]) -> None:
    with pytest.raises(PowerCut):
        run(tmp_path, scan, At(0, 3, cut_power))
    run(tmp_path, scan, resume=last(tmp_path), overrides={"num_workers": 2, "checkpoint_every_n_steps": 3})
    assert_same(tmp_path, wholes())


@pytest.mark.parametrize("moment", [(1, 0), (0, 3)], ids=["behind an epoch", "within one"])
def test_other_devices_go_on_with_a_notice_or_are_refused(
    scan: Path, tmp_path: Path, caplog: Any, moment: tuple[int, int]
) -> None:
    """The checkpoint says that two processes wrote it; here is one."""
    with pytest.raises(PowerCut):
        run(tmp_path, scan, At(*moment, cut_power))
    content = read_content(last(tmp_path))
    content[KEY]["settings"]["training"]["devices"] = 2
    for loader in content["loops"]["fit_loop"]["state_dict"]["combined_loader"]:
        loader["world_size"] = 2
    write_content(last(tmp_path), content)
    if moment == (0, 3):
        with pytest.raises(ConfigError, match="world_size = 2; this one has 1"):
            run(tmp_path, scan, resume=last(tmp_path))
    else:
        run(tmp_path, scan, resume=last(tmp_path))
        assert "devices = 1, and was 2: training continues, but its weights will not be bit by bit" in caplog.text


# -------------------------------------------------------------------------------------------------------------- signals


@pytest.fixture
def _outlives_signals(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A signal that training does not take, and a second one from outside, fail the test; they would end pytest."""

    def end(code: int) -> None:
        raise AssertionError(f"os._exit({code}): a second signal came")

    monkeypatch.setattr(os, "_exit", end)
    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1")]
    before = [signal.signal(number, lambda *_: None) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.usefixtures("_outlives_signals")
@pytest.mark.parametrize(
    ("number", "where", "overrides"),
    [
        ("SIGTERM", (0, 1, "before"), {}),
        ("SIGINT", (0, 2, "before"), {"accumulate_grad_batches": 2}),
        ("SIGUSR1", (0, 0, "before"), {"checkpoint_every_n_steps": 0}),
        ("SIGUSR1", (0, 0, "validating"), {}),
        ("SIGTERM", (1, 4, "before"), {}),
        ("SIGTERM", (0, 3, "after"), {"accumulate_grad_batches": 3, "checkpoint_every_n_steps": 0}),
    ],
)
def test_a_signal_ends_a_run_that_goes_on_exactly(
    scan: Path,
    tmp_path: Path,
    wholes: Callable[..., Path],
    number: str,
    where: tuple[int, int, str],
    overrides: dict[str, Any],
) -> None:
    epoch, batch, when = where
    before = {name: signal.getsignal(getattr(signal, name)) for name in ("SIGTERM", "SIGINT", "SIGUSR1")}
    with pytest.raises(RunInterrupted) as caught:
        run(tmp_path, scan, At(epoch, batch, get(getattr(signal, number)), when), overrides=overrides)
    assert caught.value.code == 128 + getattr(signal, number)
    assert {name: signal.getsignal(getattr(signal, name)) for name in before} == before
    assert state_of(tmp_path) == "interrupted"
    run(tmp_path, scan, resume=last(tmp_path), overrides=overrides)
    assert state_of(tmp_path) == "finished"
    assert_same(tmp_path, wholes(**overrides))


@pytest.mark.usefixtures("_outlives_signals")
def test_a_second_signal_ends_at_once(scan: Path, tmp_path: Path) -> None:
    def twice(_: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(AssertionError, match=r"os\._exit\(130\)"):
        run(tmp_path, scan, At(0, 1, twice))


@pytest.mark.usefixtures("_outlives_signals")
def test_handlers_of_the_user_are_called_too(scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: seen.append(number))
    try:
        with pytest.raises(RunInterrupted):
            run(tmp_path, scan, At(0, 1, get(signal.SIGTERM)))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen == [signal.SIGTERM]


def scontrol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make this a SLURM job, whose ``scontrol`` notes in ``asked`` what it is asked for."""
    tools = tmp_path / "bin"
    tools.mkdir()
    tool = tools / "scontrol"
    tool.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    return tool


@pytest.mark.usefixtures("_outlives_signals")
@pytest.mark.parametrize(("array", "job"), [(False, "77"), (True, "70_3")])
def test_slurm_is_asked_to_requeue(
    scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any, array: bool, job: str
) -> None:
    tool = scontrol(tmp_path, monkeypatch)
    if array:
        monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "70")
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    with pytest.raises(RunInterrupted):
        run(tmp_path / "run", scan, At(0, 1, get(signal.SIGUSR1)))
    assert (tmp_path / "asked").read_text() == f"requeue {job}\n"
    assert f"SLURM job {job} is requeued" in caplog.text
    tool.write_text("#!/bin/sh\necho not allowed >&2; exit 1\n")
    with pytest.raises(RunInterrupted):
        run(tmp_path / "run", scan, At(0, 3, get(signal.SIGUSR1)), resume=last(tmp_path / "run"))
    assert "could not be requeued (not allowed)" in caplog.text


def test_the_command_says_how_to_go_on_and_its_exit_code_why(scan: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    flags = ["--no-tracking", "--no-reconstruct", "--gridsize", "1", "--n-filters-scale", "1", "--batch-size", "2"]
    command = [sys.executable, "-m", "ptycho_torch", "train", str(scan), "-o", str(folder), "--resume", "auto"]
    command += ["--data-dir", str(tmp_path / "map"), "--max-epochs", "4000", "--checkpoint-every-n-steps", "1", *flags]
    env = os.environ | {"OMP_NUM_THREADS": "1"}

    def start() -> subprocess.Popen[str]:
        before = last(folder).stat().st_mtime_ns if last(folder).exists() else 0
        process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
        deadline = time.monotonic() + 100
        while not (last(folder).exists() and last(folder).stat().st_mtime_ns > before):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        return process

    process = start()
    process.terminate()
    _, err = process.communicate()
    assert process.returncode == 143
    (line,) = [line for line in err.splitlines() if "resume" in line]
    assert line.startswith(f"interrupted; resume with: ptycho-torch train {scan} -o {folder}")
    assert state_of(folder) == "interrupted"
    process = start()
    # A second signal does not wait for anything.
    process.send_signal(signal.SIGSTOP)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGCONT)
    process.communicate()
    assert process.returncode in (130, 143)


@pytest.mark.usefixtures("_outlives_signals")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 138)])
def test_a_signal_outside_of_training_has_its_exit_code_too(
    scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, number: int, code: int
) -> None:
    monkeypatch.setattr(train, "PtychoDataModule", lambda *_, **__: os.kill(os.getpid(), number))
    before = signal.getsignal(number)
    assert cli.main(["train", str(scan), "-o", str(tmp_path / "run"), "--no-tracking"]) == code
    assert "interrupted before the first checkpoint" in capsys.readouterr().err
    assert signal.getsignal(number) is before


@pytest.mark.usefixtures("_outlives_signals")
@pytest.mark.parametrize(
    ("flags", "words"),
    [(["--resume", "auto"], "the run resumes when SLURM starts"), ([], "script needs: ptycho-torch train")],
)
def test_a_job_is_requeued_outside_of_training_too(
    scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, flags: list[str], words: str
) -> None:
    """A memory map of a large scan takes longer to build than SLURM waits."""
    scontrol(tmp_path, monkeypatch)
    monkeypatch.setattr(train, "PtychoDataModule", lambda *_, **__: os.kill(os.getpid(), signal.SIGUSR1))
    assert cli.main(["train", str(scan), "-o", str(tmp_path / "run"), "--no-tracking", *flags]) == 138
    assert (tmp_path / "asked").read_text() == "requeue 77\n"
    assert words in capsys.readouterr().err
