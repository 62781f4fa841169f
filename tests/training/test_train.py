"""Training: what a step computes, what a checkpoint keeps, and that an interruption changes nothing."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.training_runs import SMALL, write_scan

pytest.importorskip("lightning", reason="training needs lightning; pip install lightning")
pytest.importorskip("tensordict", reason="the memory map is a TensorDict; pip install tensordict")

from ptycho_torch import inference, simulate, train
from ptycho_torch.config_params import Settings
from ptycho_torch.data.specimens import draw_specimen
from ptycho_torch.dset_loader_pt_mmap import PtychoDataset, TensorDictDataLoader
from ptycho_torch.errors import CheckpointError, ConfigError, TrainingError
from ptycho_torch.files import folders
from ptycho_torch.simulate import choose_probe, plan_positions
from ptycho_torch.training.checkpoint import KEY, read_checkpoint
from ptycho_torch.training.checkpoint_file import read_content, write_content

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::UserWarning:lightning", "ignore::FutureWarning:lightning"),
]

SCRIPT = ("-m", "tests.support.training_runs")


def small(**overrides: Any) -> Settings:
    return Settings().override(SMALL | overrides)


def run(folder: Path, scans: Path, **keywords: Any) -> train.TrainingResult:
    overrides = keywords.pop("overrides", {})
    keywords.setdefault("settings", small(**overrides))
    return train.main(
        scans, output_dir=folder, data_dir=folder / "map", progress=False, **({"reconstruct": False} | keywords)
    )


def weights(path: Path) -> dict[str, torch.Tensor]:
    return dict(read_checkpoint(path).weights)


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scan(tmp_path_factory.mktemp("scans") / "a.npz")


def test_training_lowers_the_loss_and_leaves_what_it_promises(scan: Path, tmp_path: Path) -> None:
    result = run(tmp_path, scan, reconstruct=True)
    losses = result.history["train_loss"]
    assert len(losses) == 3
    assert losses[-1] < losses[0]
    assert json.loads((tmp_path / "history.json").read_text()) == result.history
    assert result.history.keys() == {"train_loss", "val_loss", "learning_rate"}
    assert (tmp_path / "history.png").stat().st_size > 1000
    (reconstruction,) = result.reconstructions
    assert reconstruction == tmp_path / "reconstructions" / "a.npz"
    content = read_checkpoint(result.checkpoint)
    assert content.finished
    assert content.settings == result.module.settings
    assert same(dict(content.weights), dict(result.module.network.state_dict()))
    assert read_checkpoint(result.best_checkpoint).history["val_loss"][-1] == min(result.history["val_loss"])


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"optimizer": "adam", "scheduler": "WarmupCosine", "lr_warmup_epochs": 1},
        {"optimizer": "adamw", "weight_decay": 0.01, "scheduler": "Exponential", "accumulate_grad_batches": 2},
        {"scheduler": "Default", "precision": "64-true", "intensity_scale_trainable": True, "probe_trainable": True},
        {"loss_function": "MAE", "precision": "bf16-mixed", "realspace_weight": 0.1, "tv_weight": 1e-4},
    ],
    ids=["defaults", "adam-cosine", "adamw-accumulate", "float64-all-trainable", "mae-bf16-tv"],
)
def test_resuming_from_any_checkpoint_gives_the_weights_of_an_uninterrupted_run(
    scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: dict[str, Any]
) -> None:
    kept: list[Path] = []
    save = train.pl.Trainer.save_checkpoint

    def saving(trainer: Any, path: Any, *arguments: Any, **keywords: Any) -> None:
        save(trainer, path, *arguments, **keywords)
        if Path(path).name == "last.ckpt":
            kept.append(shutil.copy(path, tmp_path / f"{len(kept)}.ckpt"))

    settings = {"checkpoint_every_n_steps": 2, **overrides}
    with monkeypatch.context() as patch:
        patch.setattr(train.pl.Trainer, "save_checkpoint", saving)
        whole = run(tmp_path / "whole", scan, overrides=settings)
    assert len(kept) >= 5
    # Not in order, one in the middle of an epoch and one at its end.
    for number in (1, 2, len(kept) - 2):
        resumed = run(tmp_path / "again", scan, overrides=settings, resume=kept[number], overwrite=True)
        assert same(weights(resumed.checkpoint), weights(whole.checkpoint)), kept[number].name
        assert resumed.history == whole.history


def test_a_run_that_was_killed_goes_on_to_the_same_weights(scan: Path, tmp_path: Path) -> None:
    overrides = {"checkpoint_every_n_steps": 1, "max_epochs": 4}
    whole = run(tmp_path / "whole", scan, overrides=overrides)
    folder = tmp_path / "killed"
    arguments = {"ptycho_dir": str(scan), "output_dir": str(folder), "data_dir": str(folder / "map")}
    last = folder / "checkpoints" / "last.ckpt"
    process = subprocess.Popen(
        [sys.executable, *SCRIPT, json.dumps(arguments | {"overrides": overrides})],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + 100
    while not (last.exists() and read_checkpoint(last).epoch >= 1):
        assert process.poll() is None, "training ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not read_checkpoint(last).finished
    resumed = run(folder, scan, overrides=overrides, resume=last)
    assert same(weights(resumed.checkpoint), weights(whole.checkpoint))
    assert resumed.history == whole.history


def test_two_processes_give_the_result_of_one(tmp_path: Path) -> None:
    # Rounding grows a hundred to a million times in 20 steps, the more the less the patterns are those of an object.
    draw = np.random.default_rng(0)
    plan = plan_positions("raster", 40, 64, draw, step_px=8)
    scan = tmp_path / "a.npz"
    specimen = draw_specimen("lines", (plan.size_px, plan.size_px), draw)
    probe = simulate.scale_probe(specimen, choose_probe("default", 64), plan.positions_px, 1e6)
    simulate.write_scan(scan, specimen, probe, plan.positions_px, draw)
    common = {"precision": "64-true", "validation_fraction": 0.0, "max_epochs": 2, "early_stop_patience": None}
    common["gradient_clip_val"] = None
    within = tmp_path / "within" / "checkpoints" / "last.ckpt"
    for name, processes, more in (
        ("one", 1, {}),
        ("two", 2, {}),
        ("within", 2, {"stay_within_the_epoch": True}),
        ("resumed", 2, {"resume": str(within)}),
    ):
        folder = tmp_path / name
        overrides = common | {"devices": processes, "batch_size": 4 // processes, "checkpoint_every_n_steps": 17}
        overrides |= {"strategy": "ddp"} if processes > 1 else {}
        arguments = {"ptycho_dir": str(scan), "output_dir": str(folder), "data_dir": str(folder / "map")}
        subprocess.run(
            [sys.executable, *SCRIPT, json.dumps(arguments | {"overrides": overrides} | more)],
            check=True,
            timeout=200,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
    assert read_content(within)["global_step"] == 17
    resumed = read_checkpoint(tmp_path / "resumed" / "checkpoints" / "last.ckpt")
    uninterrupted = read_checkpoint(tmp_path / "two" / "checkpoints" / "last.ckpt")
    assert same(dict(resumed.weights), dict(uninterrupted.weights))
    np.testing.assert_allclose(resumed.history["train_loss"], uninterrupted.history["train_loss"], rtol=1e-12)
    one, two = (read_content(tmp_path / name / "checkpoints" / "last.ckpt") for name in ("one", "two"))
    assert one["global_step"] == two["global_step"] == 20
    for name, value in one["state_dict"].items():
        torch.testing.assert_close(two["state_dict"][name], value, rtol=0, atol=1e-10)
    np.testing.assert_allclose(two[KEY]["history"]["train_loss"], one[KEY]["history"]["train_loss"], rtol=1e-10)


def test_a_folder_with_a_run_is_refused_before_any_work(
    scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(tmp_path / "run", scan, overrides={"max_epochs": 1})
    before = {path: path.read_bytes() for path in folders.run_files(tmp_path / "run")}
    assert {path.name for path in before} == {"last.ckpt", "best.ckpt", "history.json", "history.png", "run.json"}
    with monkeypatch.context() as patch:
        patch.setattr(PtychoDataset, "__init__", None)
        with pytest.raises(ConfigError, match=r"run holds a run already .*resume = .*overwrite = True"):
            run(tmp_path / "run", scan)
        with pytest.raises(ConfigError, match="leave one of them out"):
            run(tmp_path / "run", scan, resume=first.checkpoint, overwrite=True)
        # The checkpoint of another run would take this one's place.
        other = tmp_path / "other.ckpt"
        shutil.copy(first.checkpoint, other)
        with pytest.raises(ConfigError, match="holds a run already"):
            run(tmp_path / "run", scan, resume=other)
        with pytest.raises(ConfigError, match="there can be no such folder"):
            run(other / "run", scan)
    assert {path: path.read_bytes() for path in folders.run_files(tmp_path / "run")} == before


def test_nothing_of_a_run_that_is_overwritten_is_left(scan: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run(folder, scan, overrides={"max_epochs": 1})
    for name in ("checkpoints/epoch=7.ckpt", "reconstructions/a.npz", "reconstructions/other_phase.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"of the old run")
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="leave none for training"):
        run(folder, scan, overrides={"validation_fraction": 0.99}, overwrite=True)
    # What cannot train removes nothing.
    assert (folder / "reconstructions" / "a.npz").is_file()
    second = run(folder, scan, overrides={"max_epochs": 2}, overwrite=True)
    assert len(second.history["train_loss"]) == 2
    assert sorted(path.name for path in folders.run_files(folder)) == [
        "best.ckpt", "history.json", "history.png", "last.ckpt", "run.json",
    ]  # fmt: skip
    assert len(read_checkpoint(second.best_checkpoint).history["val_loss"]) <= 2
    assert (folder / "notes.txt").read_text() == "mine"


def test_inference_takes_the_map_of_training_and_looks_at_its_outputs_first(
    scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = train.main(scan, output_dir="run", progress=False, reconstruct=False, settings=small(max_epochs=1))
    place = folders.map_folder(scan)
    maps = Path("data/memmap")
    assert [path.resolve() for path in maps.iterdir() if path.is_dir()] == [place.resolve()]
    assert json.loads((maps / "manifest.json").read_text()) == {"maps": {place.name: str(scan.resolve())}}
    manifest = (place / "manifest.json").read_bytes()

    def infer(**names: Any) -> Any:
        return inference.infer(result.checkpoint, scan, output_dir="objects", progress=False, **names)

    infer(cxi=True, wavelength_m=1e-10, detector_distance_m=2.0, detector_pixel_m=75e-6)
    assert (place / "manifest.json").read_bytes() == manifest
    assert sorted(path.name for path in Path("objects").iterdir()) == [
        f"a{ending}" for ending in sorted(folders.RESULT_ENDINGS)
    ]
    with monkeypatch.context() as patch:
        patch.setattr(inference.PtychoPINN, "from_checkpoint", None)
        for name in ("a.npz", "a_phase.png"):
            Path(name).mkdir()
            Path(name, name).touch()
            with pytest.raises(ConfigError, match=f"{name}/{name} is there already"):
                inference.infer(result.checkpoint, scan, output_dir=name, progress=False)
    # The product of the old object would be taken for the new one's: nothing says its geometry.
    infer(overwrite=True)
    assert not Path("objects/a.h5").exists()
    assert not Path("objects/a_object.cxi").exists()
    shutil.copy(scan, "objects/a.npz")
    with pytest.raises(ConfigError, match="is an input of this command"):
        inference.infer(result.checkpoint, "objects/a.npz", output_dir="objects", overwrite=True, progress=False)


def test_a_finished_run_is_not_trained_any_further(scan: Path, tmp_path: Path) -> None:
    first = run(tmp_path, scan)
    before = weights(first.checkpoint)
    again = run(tmp_path, scan, resume=first.checkpoint)
    assert same(dict(again.module.network.state_dict()), before)
    assert again.history == first.history
    early = {"max_epochs": 9, "learning_rate": 1e-30, "early_stop_patience": 1, "scheduler": "Default"}
    ended = run(tmp_path / "early", scan, overrides=early)
    assert len(ended.history["train_loss"]) < 9
    assert run(tmp_path / "early", scan, resume=ended.checkpoint, overrides=early).history == ended.history
    longer = run(tmp_path, scan, resume=first.checkpoint, overrides={"max_epochs": 4})
    assert len(longer.history["train_loss"]) == 4


@pytest.mark.parametrize("moved", [False, True], ids=["into another folder", "where the folder has another name"])
def test_the_best_epochs_before_an_interruption_stay_the_best(scan: Path, tmp_path: Path, moved: bool) -> None:
    first = run(tmp_path / "first", scan, overrides={"max_epochs": 2})
    # A loss that no epoch reaches, where the run and its best checkpoint remember it.
    content, lowest = read_content(first.checkpoint), read_content(first.best_checkpoint)
    for state in content["callbacks"].values():
        if "best_model_score" in state:
            state["best_model_score"] = torch.tensor(-1e9)
    lowest[KEY]["history"]["val_loss"][-1] = -1e9
    write_content(first.checkpoint, content)
    write_content(first.best_checkpoint, lowest)
    best = first.best_checkpoint.read_bytes()
    if moved:
        (tmp_path / "first").rename(tmp_path / "renamed")
    source = tmp_path / ("renamed" if moved else "first") / "checkpoints" / "last.ckpt"
    resumed = run(tmp_path / ("renamed" if moved else "second"), scan, overrides={"max_epochs": 3}, resume=source)
    assert resumed.best_checkpoint.read_bytes() == best
    assert len(resumed.history["val_loss"]) == 3


def test_a_checkpoint_alone_leaves_the_best_to_the_epochs_behind_it(scan: Path, tmp_path: Path) -> None:
    first = run(tmp_path / "first", scan, overrides={"max_epochs": 1})
    first.best_checkpoint.unlink()
    resumed = run(tmp_path / "second", scan, overrides={"max_epochs": 2}, resume=first.checkpoint)
    assert len(read_checkpoint(resumed.best_checkpoint).history["val_loss"]) == 2


def test_objects_do_not_depend_on_the_batch(scan: Path, tmp_path: Path) -> None:
    settings = small(gridsize=2)
    dataset = PtychoDataset(scan, data_dir=tmp_path / "map", settings=dataclasses.replace(settings.data, n_subsample=4))
    assert len(dataset) == 80
    module = train.PtychoPINN.for_dataset(dataset, settings).eval()
    trainer = train.make_trainer(settings.training, tmp_path, progress=False)
    objects = {}
    for batch_size in (1, 16, 64):
        predictions = trainer.predict(module, TensorDictDataLoader(dataset, batch_size))
        assert predictions is not None
        objects[batch_size] = torch.cat([each.objects for each in predictions])
        assert objects[batch_size].shape == (80, 1, 64, 64)
    scale = float(objects[1].abs().max())
    # 1.3e-6 was found: sums in another order, divided by next to nothing where the border of one patch alone reaches.
    for batch_size in (16, 64):
        torch.testing.assert_close(objects[batch_size], objects[1], rtol=0, atol=2e-6 * scale)


def test_a_loss_that_is_no_number_ends_training_with_advice(
    scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(module: train.PtychoPINN, batch: Any, batch_idx: int = 0) -> torch.Tensor:
        terms = module._loss(batch)
        terms = dataclasses.replace(terms, total=terms.total * float("nan"))
        module._add("train", terms, 1)
        return terms.total

    monkeypatch.setattr(train.PtychoPINN, "training_step", broken)
    with pytest.raises(TrainingError, match="learning_rate"):
        run(tmp_path, scan)


def test_a_device_that_is_not_there_is_named(scan: Path, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    with pytest.raises(ConfigError, match="sees no CUDA device"):
        run(tmp_path, scan, overrides={"device": "cuda"})


def test_an_unknown_option_gets_the_nearest_name(scan: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'max_epochs'"):
        train.main(scan, output_dir=tmp_path, max_epoch=3)


@pytest.mark.parametrize("damage", ["absent", "empty", "cut", "foreign", "code", "format"])
def test_a_checkpoint_that_cannot_be_read_is_named(scan: Path, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "x.ckpt"
    result = run(tmp_path, scan, overrides={"max_epochs": 1})
    content = result.checkpoint.read_bytes()
    match damage:
        case "empty":
            path.write_bytes(b"")
        case "cut":
            path.write_bytes(content[: len(content) // 2])
        case "foreign":
            torch.save({"state_dict": {}}, path)
        case "code":
            torch.save({KEY: Path("a")}, path)
        case "format":
            saved = read_content(result.checkpoint)
            saved[KEY]["format"] = 99
            write_content(path, saved)
    with pytest.raises(CheckpointError, match=r"x\.ckpt"):
        read_checkpoint(path)


def test_lightning_s_own_loader_reads_a_checkpoint(scan: Path, tmp_path: Path) -> None:
    result = run(tmp_path, scan, overrides={"max_epochs": 1})
    module = train.PtychoPINN.load_from_checkpoint(result.checkpoint, weights_only=True)
    assert same(dict(module.network.state_dict()), weights(result.checkpoint))
    assert same(
        dict(train.PtychoPINN.from_checkpoint(result.checkpoint).network.state_dict()), weights(result.checkpoint)
    )
