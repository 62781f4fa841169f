"""Prediction in several processes: the objects are those of one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ptycho_torch import inference
from ptycho_torch.config_params import Settings
from ptycho_torch.dset_loader_pt_mmap import PtychoDataset
from ptycho_torch.errors import ConfigError, DataContractError
from ptycho_torch.train import PtychoPINN
from ptycho_torch.training.checkpoint import write_checkpoint
from tests.support.training_runs import SMALL, write_scan


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A folder with two scans and a checkpoint of a network that was never trained."""
    for seed, name in enumerate(("a", "b")):
        write_scan(tmp_path / f"scans/{name}.npz", seed=seed, patterns=11)
    settings = Settings().override(SMALL)
    dataset = PtychoDataset(tmp_path / "scans", data_dir=tmp_path / "map", settings=settings.data, progress=False)
    torch.manual_seed(3)
    module = PtychoPINN.for_dataset(dataset, settings)
    write_checkpoint(
        tmp_path / "last.ckpt", module.settings, module.network.settings, module.statistics,
        module.network.state_dict(), overwrite=False,
    )  # fmt: skip
    return tmp_path


def infer(run: Path, name: str, scans: str = "scans", **options: object) -> dict[str, inference.InferenceResult]:
    results = inference.infer(
        run / "last.ckpt", run / scans, output_dir=run / name, data_dir=run / "map", batch_size=4, device="cpu",
        progress=False, **options,
    )  # fmt: skip
    return {result.name: result for result in results}


def test_two_processes_give_the_objects_of_one(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "plot_reconstruction", lambda *_, **__: None)
    monkeypatch.setattr(inference, "write_images", lambda *_, **__: ())
    module = PtychoPINN.from_checkpoint(run / "last.ckpt")
    dataset = PtychoDataset(run / "scans", data_dir=run / "map", settings=module.settings.data, progress=False)
    one = inference.reconstruct(module, dataset, batch_size=4, device="cpu", progress=False)
    two = infer(run, "two", devices=2)
    assert two.keys() == {"a", "b"}
    for ours, theirs in zip(one.values(), two.values(), strict=True):
        for field in ("object", "coverage", "disagreement"):
            expected, found = getattr(ours, field).numpy(), getattr(theirs.reconstruction, field)
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * np.abs(expected).max(), err_msg=field)
        assert theirs.reconstruction.origin_px == ours.origin_px
        assert ours.half_split is not None
        assert theirs.scores.numbers()["half_split"]["groups"] == ours.half_split.groups


@pytest.mark.parametrize("devices", [0, -1])
def test_fewer_than_one_process_is_refused(run: Path, devices: int) -> None:
    with pytest.raises(ConfigError, match=f"devices = {devices}; expected 1 or more"):
        infer(run, "none", devices=devices)


def test_more_processes_than_gpus_are_refused(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match="devices = 2, but PyTorch sees 1 CUDA"):
        inference.infer(run / "last.ckpt", run / "scans", output_dir=run / "none", device="cuda", devices=2)


@pytest.mark.parity_clause("PRODUCT-02")
def test_cxi_without_a_geometry_is_refused_before_anything_is_predicted(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inference, "_predicted", lambda *_: pytest.fail("it predicted"))
    with pytest.raises(DataContractError, match="PRODUCT-02"):
        infer(run, "none", cxi=True)


def test_cxi_is_written_beside_the_product(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "plot_reconstruction", lambda *_, **__: None)
    monkeypatch.setattr(inference, "write_images", lambda *_, **__: ())
    geometry = {"wavelength_m": 1e-10, "detector_distance_m": 2.0, "detector_pixel_m": 5e-5}
    (result,) = infer(run, "metres", "scans/a.npz", cxi=True, **geometry).values()
    assert (result.cxi, result.product) == (run / "metres/a_object.cxi", run / "metres/a.h5")
    assert (run / "metres/a_object.cxi").is_file()
    # Without the flag no file of another object stays.
    (result,) = infer(run, "metres", "scans/a.npz", overwrite=True, **geometry).values()
    assert result.cxi is None
    assert not (run / "metres/a_object.cxi").exists()
