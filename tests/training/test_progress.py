"""Progress of training: a bar in a terminal, a line an epoch elsewhere, and the history on disk as it goes."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch.callbacks import Callback, Timer

from tests.support.training_runs import SMALL, write_scan

pytest.importorskip("lightning", reason="training needs lightning; pip install lightning")
pytest.importorskip("tensordict", reason="the memory map is a TensorDict; pip install tensordict")

from ptycho_torch import train
from ptycho_torch.config_params import Settings
from ptycho_torch.dset_loader_pt_mmap import PtychoDataset
from ptycho_torch.training import progress, training_callbacks
from ptycho_torch.training.data_module import PtychoDataModule
from ptycho_torch.training.training_callbacks import TrainingLog

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning", "ignore::FutureWarning:lightning")


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scan(tmp_path_factory.mktemp("scans") / "a.npz")


def run(folder: Path, scan: Path, **keywords: Any) -> train.TrainingResult:
    overrides = keywords.pop("overrides", {})
    keywords = {"reconstruct": False, "settings": Settings().override(SMALL | overrides)} | keywords
    return train.main(scan, output_dir=folder, data_dir=folder / "map", **keywords)


# --------------------------------------------------------------------------------------------------------- on the way


def test_without_a_terminal_every_epoch_has_its_line(
    scan: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    result = run(tmp_path, scan)
    out, err = capfd.readouterr()
    assert out == ""
    first = err.splitlines()[0]
    parameters = sum(each.numel() for each in result.module.network.parameters())
    assert re.fullmatch(
        r"training on 1 scan, 20 patterns, 20 groups, 2 of them for validation: 3 epochs, 5 batches of 4 each; "
        rf"{parameters:,} parameters, on cpu; results go to {re.escape(str(tmp_path))}",
        first,
    )
    lines = [line for line in err.splitlines() if line.startswith("epoch") and "blank" not in line]
    assert len(lines) == 3
    for number, line in enumerate(lines):
        values = [f"{result.history[name][number]:.6g}" for name in ("train_loss", "val_loss", "learning_rate")]
        assert line.startswith(
            f"epoch {number + 1}/3: loss {values[0]}, validation loss {values[1]}, learning rate {values[2]}; "
        )
        assert re.search(r"; \d[\d.a-z ]* s", line)
    assert all(" left" in line for line in lines[:2])
    assert " left" not in lines[2]
    assert 0 < result.seconds < 300


def test_progress_that_is_not_wanted_is_not_shown(
    scan: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path, scan, progress=False, reconstruct=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert "epoch 1/3: loss" not in err
    assert "training on" not in err
    assert "%" not in err.replace("diffraction error", "").partition("training")[2]


def test_the_bar_shows_epoch_losses_and_learning_rate(
    scan: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    result = run(tmp_path, scan, progress=True, reconstruct=True, overrides={"max_epochs": 2})
    out, err = capfd.readouterr()
    assert out == ""
    bars = err.replace("\r", "\n").splitlines()
    # 18 groups in batches of 4 are 5 updates an epoch.
    last = [bar for bar in bars if bar.startswith("training, epoch 2/2")][-1]
    assert "10/10" in last
    assert f"validation loss {result.history['val_loss'][1]:.5g}" in last
    assert "learning rate 0.001" in last
    assert re.search(r"loss -?[\d.]+", last)
    assert any(bar.startswith("predicting") for bar in bars)
    assert not any("epoch 1/2: loss" in bar for bar in bars)


def test_a_bar_that_resumes_counts_from_where_the_run_stood(
    scan: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    first = run(tmp_path, scan, progress=False, overrides={"max_epochs": 1})
    capfd.readouterr()
    run(tmp_path, scan, progress=True, resume=first.checkpoint, overrides={"max_epochs": 2})
    bars = capfd.readouterr().err.replace("\r", "\n").splitlines()
    counts = [re.search(r"(\d+)/10 ", bar) for bar in bars if bar.startswith("training")]
    assert next(count[1] for count in counts if count) == "5"


def test_the_first_line_says_who_chose_the_epochs_and_what_is_done_already(scan: Path, tmp_path: Path) -> None:
    settings = Settings().override(SMALL | {"validation_fraction": 0.0})
    data = PtychoDataModule(scan, settings=settings, data_dir=tmp_path)
    module = train.PtychoPINN.for_dataset(data.dataset, settings)
    asked = train._start_line(data, module, Path("run"), 0, 3)
    assert ": 3 epochs, " in asked
    assert "validation" not in asked
    assert ": 3 epochs (--max-epochs N for another number) after 2 done, " in train._start_line(
        data, module, Path("run"), 2, None
    )


@pytest.mark.parametrize("terminal", [True, False])
def test_bars_need_a_terminal_unless_asked_for(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    streams = SimpleNamespace(isatty=lambda: True), SimpleNamespace(isatty=lambda: terminal)
    monkeypatch.setattr(progress, "sys", SimpleNamespace(stdout=streams[0], stderr=streams[1]))
    assert [progress.shows_bars(wanted) for wanted in (None, True, False)] == [terminal, True, False]


def test_the_time_that_is_left_ends_with_the_first_limit() -> None:
    log = TrainingLog(Path(), lines=True)
    log._first_update = 100
    timer = Timer(duration={"seconds": 30})
    trainer: Any = SimpleNamespace(estimated_stepping_batches=400, global_step=200, callbacks=[])
    assert log._left_s(trainer, 50.0) == pytest.approx(100)
    trainer.callbacks = [timer]
    assert log._left_s(trainer, 50.0) == pytest.approx(30)
    trainer.estimated_stepping_batches, trainer.callbacks = math.inf, []
    assert log._left_s(trainer, 50.0) is None


# -------------------------------------------------------------------------------------------------------- on the disk


class Reader(Callback):
    """Reads ``history.json`` where each epoch begins."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: list[list[float]] = []

    def on_train_epoch_start(self, *_: Any) -> None:
        self.found.append(json.loads(self.path.read_text())["train_loss"] if self.path.exists() else [])


def fit(folder: Path, scan: Path, *callbacks: Callback) -> train.PtychoPINN:
    settings = Settings().override(SMALL)
    dataset = PtychoDataset(scan, data_dir=folder / "map", settings=settings.data)
    module = train.PtychoPINN.for_dataset(dataset, settings)
    trainer = train.make_trainer(settings.training, folder, callbacks=callbacks, progress=False)
    trainer.fit(module, *train.loaders(dataset, settings.training))
    return module


def test_the_history_is_on_disk_after_every_epoch_and_drawn_at_the_end(
    scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[int] = []
    monkeypatch.setattr(
        training_callbacks, "plot_history", lambda history, path: drawn.append(len(history["train_loss"]))
    )
    reader = Reader(tmp_path / "history.json")
    module = fit(tmp_path, scan, reader)
    losses = module.history["train_loss"]
    assert reader.found == [[], losses[:1], losses[:2]]
    assert json.loads((tmp_path / "history.json").read_text()) == module.history
    # Three epochs of a moment are drawn once.
    assert drawn == [3]


def test_pictures_take_a_small_part_of_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=0.0, drawn=0)

    def draw(history: Any, path: Path) -> None:
        clock.now += 0.4
        clock.drawn += 1

    monkeypatch.setattr(training_callbacks, "time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr(training_callbacks, "plot_history", draw)
    log = TrainingLog(tmp_path, lines=False)
    trainer: Any = SimpleNamespace(is_global_zero=True, global_step=0)
    module: Any = SimpleNamespace(history={"train_loss": []})
    log.on_train_start(trainer, module)
    for _ in range(300):
        clock.now += 1
        module.history["train_loss"].append(1.0)
        log.on_train_epoch_end(trainer, module)
    assert 5 <= clock.drawn <= 0.02 * clock.now / 0.4
    log.on_train_end(trainer, module)
    assert len(json.loads((tmp_path / "history.json").read_text())["train_loss"]) == 300


def test_a_run_that_is_interrupted_leaves_history_and_picture(scan: Path, tmp_path: Path) -> None:
    class Interrupt(Callback):
        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            if trainer.current_epoch == 2:
                raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fit(tmp_path, scan, Interrupt())
    assert len(json.loads((tmp_path / "history.json").read_text())["train_loss"]) == 2
    assert (tmp_path / "history.png").read_bytes().startswith(b"\x89PNG")


def test_the_history_goes_on_where_a_resumed_run_goes_on(scan: Path, tmp_path: Path) -> None:
    first = run(tmp_path / "a", scan, progress=False, overrides={"max_epochs": 1})
    resumed = run(tmp_path / "b", scan, progress=False, resume=first.checkpoint, overrides={"max_epochs": 3})
    assert resumed.history["train_loss"][:1] == first.history["train_loss"]
    assert len(resumed.history["train_loss"]) == 3
    assert json.loads((tmp_path / "b" / "history.json").read_text()) == resumed.history
    # A run that had ended brings its history along, too.
    again = run(tmp_path / "c", scan, progress=False, resume=resumed.checkpoint, overrides={"max_epochs": 3})
    assert json.loads((tmp_path / "c" / "history.json").read_text()) == again.history == resumed.history
    assert (tmp_path / "c" / "history.png").is_file()


def test_only_the_first_process_writes_and_speaks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = TrainingLog(tmp_path, lines=True)
    trainer: Any = SimpleNamespace(
        is_global_zero=False, global_step=1, current_epoch=0, max_epochs=2, estimated_stepping_batches=2, callbacks=[]
    )
    module: Any = SimpleNamespace(history={"train_loss": [1.0]})
    for hook in (log.on_train_start, log.on_train_epoch_end, log.on_train_end):
        hook(trainer, module)
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().err == ""
    trainer.is_global_zero = True
    log.on_train_epoch_end(trainer, module)
    assert capsys.readouterr().err.startswith("epoch 1/2: loss 1; ")
