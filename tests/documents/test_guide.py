"""The public guide's snippets run as printed, one behind the other, and what it says about them holds.

The guide is outside the repository; its snippets are read from there, and paths, device and the size of the run are
the only things that are filled in. All of it runs in one process of its own, which reports what it saw.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.training_runs import write_scan

pytest.importorskip("tensordict", reason="the memory map is a TensorDict; pip install tensordict")

PACKAGE = Path(__file__).parents[2] / "ptycho_torch"

SMALLER = """
ModelConfig().add("n_filters_scale", 1)
TrainingConfig().add("max_epochs", 1)
"""
"""What makes the run quick, before the snippet that trains."""

REPORT = """
import json
import lightning.pytorch as pl
import torch
from pathlib import Path
from ptycho_torch.config_params import Settings
from ptycho_torch.dset_loader_pt_mmap import PtychoDataset, TensorDictDataLoader

seen = {"default_trains_on": TrainingConfig().get("device")}
seen["map"] = len(list(Path("data/memmap").glob("*/manifest.json"))) == 1

dataset = PtychoDataset(ptycho_dir, probe_dir)
seen["taken_up_again"] = not dataset.map.reason
seen["remade_because"] = PtychoDataset(ptycho_dir, probe_dir, remake_map=True).map.reason
dataset = PtychoDataset(ptycho_dir, probe_dir)
scanned = np.load(Path(ptycho_dir) / "a.npz")["probeGuess"]
seen["probe_of_the_folder"] = bool(np.array_equal(dataset.probes[0, 0].numpy(), PROBE))
seen["probe_of_the_scan"] = bool(np.array_equal(dataset.probes[0, 0].numpy(), scanned))

loader = TensorDictDataLoader(dataset, 4)
batch = next(iter(loader))
images, coords, probe, scale = batch
seen["shapes"] = [list(tensor.shape) for tensor in (images, coords, probe, scale)]

model = train.PtychoPINN.for_dataset(dataset)
trainer = train.make_trainer(Settings.current().training, Path("training_outputs"), progress=False)
seen["is_a_lightning_module"] = isinstance(model, pl.LightningModule)
seen["clips_at"] = [model.clip.limit, TrainingConfig().get("gradient_clip_val")]
predicted = trainer.predict(model, loader)
seen["predicted"] = [sum(len(each.objects) for each in predicted), len(dataset)]
with torch.no_grad():
    model.eval()
    diffraction = model(images, coords, probe, scale)
    model.predict = True
    objects = model(images, coords, probe, scale)
    seen["predict_gives_objects"] = [not diffraction.is_complex(), objects.is_complex(), list(objects.shape)]
    seen["forward_predict_agrees"] = bool(torch.equal(objects, model.forward_predict(images, coords)))
    last = torch.cat([each.objects for each in predicted])[: len(objects)]
    seen["trainer_agrees"] = bool(torch.allclose(last, objects, atol=1e-5))

try:
    TrainingConfig().add("max_epoch", 3)
except Exception as err:
    seen["unknown_setting"] = str(err)
print("SEEN" + json.dumps(seen))
"""

TRACKED = """
import mlflow

client = mlflow.MlflowClient("sqlite:///mlruns/mlflow.db")
experiment = client.get_experiment_by_name("PtychoPINN vanilla")
(run,) = client.search_runs([experiment.experiment_id])
seen["metrics"] = sorted(run.data.metrics)
seen["parameters"] = sorted(run.data.params)
seen["files"] = sorted(file.path for file in client.list_artifacts(run.info.run_id, "checkpoints"))
train.print_auto_logged_info(run)
print("SEEN" + json.dumps(seen))
"""


def snippets(guide: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", guide.read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.fixture(scope="module")
def guide(shared: Path) -> Path:
    return shared / "spec" / "workflow_guide.md"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("guide")


@pytest.fixture(scope="module")
def output(guide: Path, folder: Path) -> str:
    """What the guide's snippets, the smaller size and the report print."""
    write_scan(folder / "scans" / "a.npz", patterns=24)
    probe = np.exp(-(np.add.outer(np.square(np.arange(64) - 32), np.square(np.arange(64) - 30)) / 300)) + 0.1j
    (folder / "probes").mkdir()
    np.savez(folder / "probes" / "probe.npz", probeGuess=probe.astype(np.complex64))
    *configure, launch = snippets(guide)
    code = "\n".join([*configure, SMALLER, launch])
    filled = {
        '"/path/to/diffraction_npz"': repr(str(folder / "scans")),
        '"/path/to/probe_npz"': repr(str(folder / "probes")),
    }
    if not torch.cuda.is_available():
        filled['"cuda"'] = '"cpu"'
    for printed, real in filled.items():
        assert printed in code
        code = code.replace(printed, real)
    code += "\nimport numpy as np\nPROBE = np.load('probes/probe.npz')['probeGuess']\n" + REPORT
    if importlib.util.find_spec("mlflow"):
        code += TRACKED
    (folder / "snippets.py").write_text(code, encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    result = subprocess.run(
        [sys.executable, "-W", "error::UserWarning:ptycho_torch", "snippets.py"],
        cwd=folder,
        env=environment | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def seen(output: str) -> dict[str, Any]:
    *_, last = [line for line in output.splitlines() if line.startswith("SEEN")]
    return dict(json.loads(last.removeprefix("SEEN")))


def test_the_guide_has_the_snippets_that_are_run(guide: Path) -> None:
    configure, launch = snippets(guide)
    assert "set_settings" in configure
    assert "train.main(ptycho_dir, probe_dir)" in launch


def test_training_memory_maps_the_scans_where_the_guide_says(seen: dict[str, Any]) -> None:
    assert seen["map"]
    assert seen["taken_up_again"]


def test_remake_map_builds_the_map_anew(seen: dict[str, Any]) -> None:
    assert seen["remade_because"]


def test_probes_come_from_the_companion_folder(seen: dict[str, Any]) -> None:
    assert seen["probe_of_the_folder"]
    assert not seen["probe_of_the_scan"]


def test_the_loader_yields_images_coords_probe_and_scale(seen: dict[str, Any]) -> None:
    assert seen["shapes"] == [[4, 4, 64, 64], [4, 4, 1, 2], [4, 4, 64, 64], [4]]


def test_the_model_is_a_lightning_module_trained_with_gradient_clipping(seen: dict[str, Any]) -> None:
    assert seen["is_a_lightning_module"]
    clips_at, setting = seen["clips_at"]
    assert clips_at == setting > 0


def test_predict_and_forward_predict_give_complex_objects(seen: dict[str, Any]) -> None:
    assert seen["predict_gives_objects"] == [True, True, [4, 1, 64, 64]]
    assert seen["forward_predict_agrees"]


def test_the_trainer_predicts_with_the_same_loader(seen: dict[str, Any]) -> None:
    predicted, groups = seen["predicted"]
    assert predicted == groups
    assert seen["trainer_agrees"]


def test_training_leaves_its_files(seen: dict[str, Any], folder: Path) -> None:
    for name in ("checkpoints/last.ckpt", "checkpoints/best.ckpt", "history.json", "history.png"):
        assert (folder / "training_outputs" / name).is_file(), name


def test_a_run_is_recorded_under_the_guide_s_experiment(seen: dict[str, Any], output: str) -> None:
    pytest.importorskip("mlflow", reason="training is not tracked without it; pip install 'ptycho-torch[mlflow]'")
    assert {"train_loss", "val_loss"} <= set(seen["metrics"])
    assert {"training.max_epochs", "training.devices", "training.gradient_clip_val"} <= set(seen["parameters"])
    assert "checkpoints/last.ckpt" in seen["files"]
    assert "artifacts: [" in output


def test_the_settings_that_the_guide_adjusts_are_settings() -> None:
    from ptycho_torch.config_params import Settings

    changed = Settings().override({"max_epochs": 2, "devices": 2, "gradient_clip_val": 0.5, "probe_dir_get": True})
    assert (changed.training.max_epochs, changed.training.devices, changed.training.gradient_clip_val) == (2, 2, 0.5)


def test_an_unknown_setting_gets_the_nearest_name(seen: dict[str, Any]) -> None:
    assert "did you mean 'max_epochs'?" in seen["unknown_setting"]


def test_helper_refers_to_reassembly() -> None:
    text = ast.get_docstring(ast.parse((PACKAGE / "helper.py").read_text(encoding="utf-8")))
    assert "ptycho_torch.reconstruction.reassembly" in (text or "")
    assert importlib.util.find_spec("ptycho_torch.reconstruction.reassembly") is not None


def test_every_document_that_the_guide_names_is_there(guide: Path) -> None:
    tags = re.findall(r"<doc-ref[^>]*>([^<]+)</doc-ref>", guide.read_text(encoding="utf-8"))
    named = [tag for tag in tags if tag != "..."]
    assert named
    for tag in named:
        assert (PACKAGE.parent / tag).is_file(), tag
