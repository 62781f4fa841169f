"""Scans in memory: the same groups, batches, training and objects as the same scans in files, bit for bit."""

from __future__ import annotations

import json
import pickle
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ptycho_torch import train
from ptycho_torch.config_params import DataSettings, Settings
from ptycho_torch.data.scan import open_scan
from ptycho_torch.data.scan_arrays import ScanArrays
from ptycho_torch.dset_loader_pt_mmap import PtychoDataset, TensorDictDataLoader
from ptycho_torch.errors import ConfigError, DataContractError
from ptycho_torch.inference import infer, reconstruct
from ptycho_torch.reconstruction.products import read_reconstruction
from tests.support.scan_files import draw_scan, tables_of, write_scan
from tests.support.training_runs import SMALL
from tests.support.training_runs import write_scan as write_real_scan

GROUPS = DataSettings(N=16, gridsize=2, K=5, n_subsample=2)
RUN = Settings().override(SMALL | {"gridsize": 2, "max_epochs": 1, "N": 64})


def batches(dataset: PtychoDataset) -> list[dict[str, torch.Tensor]]:
    loader = TensorDictDataLoader(dataset, 7, shuffle=True, seed=3)
    return [
        {field.name: value for field in fields(batch) if (value := getattr(batch, field.name)) is not None}
        for batch in loader
    ]


def test_two_scans_give_the_tables_and_batches_of_their_files(tmp_path: Path) -> None:
    scans = [draw_scan(seed=1), draw_scan(M=17, seed=2, modes=3)]
    scans[1]["bad_pixels"] = np.eye(16, dtype=bool)
    for number, scan in enumerate(scans):
        write_scan(tmp_path / "scans" / f"{number}.npz", scan)
    before = [{key: array.copy() for key, array in scan.items()} for scan in scans]
    filed = PtychoDataset(tmp_path / "scans", data_dir=tmp_path / "map", settings=GROUPS)
    held = PtychoDataset.from_arrays(*scans, settings=GROUPS)
    ours, theirs = tables_of(held.map), tables_of(filed.map)
    for table, columns in theirs.items():
        for name, column in columns.items():
            np.testing.assert_array_equal(ours[table][name], column, err_msg=f"{table}/{name}")
    for batch, expected in zip(batches(held), batches(filed), strict=True):
        assert batch.keys() == expected.keys()
        assert all(torch.equal(batch[name], expected[name]) for name in expected)
    assert held.names == ("scan-0", "scan-1")
    assert held.derived() == filed.derived()
    # The caller's arrays are as they were; bad pixels are set to 0 in a copy.
    for scan, kept in zip(scans, before, strict=True):
        assert all(np.array_equal(scan[key], kept[key]) for key in kept)


@pytest.mark.parametrize("dtype", ["float64", "float16", ">f4"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_any_type_and_order_of_patterns_gives_those_of_the_file(tmp_path: Path, dtype: str, order: Any) -> None:
    scan = draw_scan()
    scan["diff3d"] = np.asarray(scan["diff3d"], dtype=dtype, order=order)
    write_scan(tmp_path / "scan.npz", scan)
    filed = PtychoDataset(tmp_path / "scan.npz", data_dir=tmp_path / "map", settings=GROUPS)
    assert torch.equal(PtychoDataset.from_arrays(scan, settings=GROUPS).amplitude, filed.amplitude)


def test_a_run_and_its_object_are_those_of_the_file(tmp_path: Path) -> None:
    path = write_real_scan(tmp_path / "scans" / "scan.npz", patterns=12)
    with np.load(path) as file:
        scan = dict(file)
    filed = train.main(
        path, settings=RUN, output_dir=tmp_path / "filed", data_dir=tmp_path / "map", reconstruct=False, progress=False
    )
    dataset = PtychoDataset.from_arrays(scan, settings=RUN.data)
    held = train.main(dataset, settings=RUN, output_dir=tmp_path / "held", progress=False)
    theirs, ours = filed.module.network.state_dict(), held.module.network.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    (written,) = infer(
        filed.checkpoint, path, output_dir=tmp_path / "objects", data_dir=tmp_path / "map", progress=False
    )
    found = reconstruct(held.module, scan, progress=False)[0]
    np.testing.assert_array_equal(found.object.numpy().astype(np.complex64), written.reconstruction.object)
    assert found.origin_px == written.reconstruction.origin_px
    (path,) = held.reconstructions
    assert path.name == "scan-0.npz"
    np.testing.assert_array_equal(read_reconstruction(path).object, written.reconstruction.object)


def test_nothing_stays_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    dataset = PtychoDataset.from_arrays(draw_scan(), settings=GROUPS)
    assert not list(tmp_path.iterdir())
    assert dataset[0].images.isfinite().all()
    assert "map in memory" in repr(dataset)


def test_a_map_that_is_to_stay_is_used_again_until_an_array_changes(tmp_path: Path) -> None:
    scan = draw_scan()
    PtychoDataset.from_arrays(scan, settings=GROUPS, data_dir=tmp_path)
    assert PtychoDataset.from_arrays(scan, settings=GROUPS, data_dir=tmp_path).map.reason == ""
    scan["diff3d"][0, 0, 0] += 1
    assert "diff3d has changed" in PtychoDataset.from_arrays(scan, settings=GROUPS, data_dir=tmp_path).map.reason


def test_a_dataset_of_arrays_travels_to_another_process() -> None:
    dataset = PtychoDataset.from_arrays(ScanArrays("star", draw_scan()), settings=GROUPS)
    there = pickle.loads(pickle.dumps(dataset))
    assert there.names == ("star",)
    assert torch.equal(there[0:4].images, dataset[0:4].images)


def test_the_photon_number_of_metadata_is_read() -> None:
    text = json.dumps({"nphotons": 5e4})
    for stored in (np.array(text), np.array(text, dtype=object)):
        dataset = PtychoDataset.from_arrays(draw_scan() | {"_metadata": stored}, settings=GROUPS)
        assert dataset.stated_nphotons == (5e4,)


@pytest.mark.parametrize(
    ("change", "clause"),
    [
        ({"xcoords": None}, "SCAN-06"),
        ({"ycoords": np.zeros(3)}, "SCAN-06"),
        ({"diff3d": np.full((24, 16, 16), -1.0)}, "SCAN-04"),
        ({"diff3d": np.arange(24 * 256).reshape(24, 16, 16)}, "SCAN-05"),
        ({"probeGuess": np.array([None])}, "NPZ-02"),
    ],
)
def test_arrays_break_the_clauses_that_files_break(change: dict[str, Any], clause: str) -> None:
    scan = {key: array for key, array in (draw_scan() | change).items() if array is not None}
    with pytest.raises(DataContractError, match=r"^star: ") as caught:
        PtychoDataset.from_arrays(ScanArrays("star", scan), settings=GROUPS)
    assert caught.value.clause == clause


def test_open_scan_reads_arrays() -> None:
    scan = draw_scan(modes=2)
    found = open_scan(ScanArrays("star", scan))
    np.testing.assert_array_equal(found.positions_px, np.stack([scan["xcoords"], scan["ycoords"]], axis=1))
    assert found.probe is not None
    assert found.probe.shape == (2, 16, 16)


def test_what_does_not_go_together_is_refused(tmp_path: Path) -> None:
    dataset = PtychoDataset.from_arrays(draw_scan(), settings=GROUPS)
    with pytest.raises(ConfigError, match="data settings of the run"):
        train.main(dataset, settings=RUN, output_dir=tmp_path / "run", K=3)
    with pytest.raises(ConfigError, match="leave out probe_dir"):
        train.main(dataset, settings=RUN, output_dir=tmp_path / "run", remake_map=True)
    with pytest.raises(ConfigError, match="different names"):
        PtychoDataset.from_arrays(settings=GROUPS)
    with pytest.raises(ConfigError, match="different names"):
        PtychoDataset.from_arrays(*[ScanArrays("star", draw_scan())] * 2, settings=GROUPS)
    with pytest.raises(ConfigError, match="probe_dir belongs to scans in files"):
        PtychoDataset((ScanArrays("star", draw_scan()),), tmp_path, settings=GROUPS)
