"""The photon number of a scan: read from the reference's ``_metadata`` without unpickling, or asked for by name."""

from __future__ import annotations

import dataclasses
import json
import logging
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ptycho_torch import check, inference
from ptycho_torch.config_params import DataSettings
from ptycho_torch.data.photons import are_counts, stated_photons
from ptycho_torch.data.scan import examine, open_scan
from ptycho_torch.data.scan_arrays import ScanArrays
from ptycho_torch.dset_loader_pt_mmap import PtychoDataset
from ptycho_torch.errors import ConfigError
from ptycho_torch.files.npz import NpzFile
from tests.support.scan_files import write_scan
from tests.support.scenes import draw_scene

SETTINGS = DataSettings(N=16, gridsize=2)


def metadata(content: Any) -> np.ndarray:
    """As the reference writes it: JSON in an array of one object, which NumPy pickles."""
    return np.array(json.dumps(content, indent=2), dtype=object)


def of_reference(nphotons: Any = 1e9) -> np.ndarray:
    return metadata({"schema_version": "1.0.0", "physics_parameters": {"nphotons": nphotons, "gridsize": 1}})


def scan(folder: Path, name: str = "scan.npz", *, counts: bool = False, **members: Any) -> Path:
    """A scan of normalised amplitude, or of roots of counts, with more members."""
    rng = np.random.default_rng(3)
    path = folder / name
    drawn = write_scan(path, M=12, N=16, seed=1)
    measured = np.sqrt(rng.poisson(3.0, (12, 16, 16))) if counts else rng.uniform(0.01, 2, (12, 16, 16))
    np.savez_compressed(path, **(drawn | {"diff3d": measured.astype(np.float32)} | members))  # type: ignore[arg-type]
    return path


def dataset(folder: Path, path: Path, settings: DataSettings = SETTINGS) -> PtychoDataset:
    return PtychoDataset(path, data_dir=folder / "map", settings=settings)


# --------------------------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize(
    ("content", "number"),
    [
        (of_reference(), 1e9),
        (of_reference(250), 250.0),
        (metadata({"nphotons": 5e4, "physics_parameters": {"nphotons": 1e9}}), 5e4),
        (np.array(json.dumps({"nphotons": 5e4})), 5e4),
    ],
)
def test_the_number_is_read(content: np.ndarray, number: float, tmp_path: Path) -> None:
    path = scan(tmp_path, _metadata=content)
    assert stated_photons(NpzFile(path)).nphotons == number
    assert open_scan(path).nphotons == number
    (finding,) = (each for each in examine(path).findings if each.clause == "NPZ-02")
    assert finding.state == "notice"
    assert f"nphotons = {number:.6g}" in finding.text


def test_the_reference_s_own_writer_is_read(tmp_path: Path) -> None:
    module = pytest.importorskip("ptycho.metadata", reason="the TensorFlow reference (package ptycho) is not installed")
    from ptycho.config.config import ModelConfig, TrainingConfig

    with np.load(scan(tmp_path)) as file:
        members = dict(file)
    config = TrainingConfig(model=ModelConfig(N=64), nphotons=123456.0)
    stated = module.MetadataManager.create_metadata(config, "simulate.py", buffer=20, seed=np.int64(3))
    module.MetadataManager.save_with_metadata(str(tmp_path / "its.npz"), members, stated)
    assert stated_photons(NpzFile(tmp_path / "its.npz")).nphotons == 123456.0


class LeavesTrace:
    """Makes a folder when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return self.trace.mkdir, ()


@pytest.mark.parametrize("place", ["alone", "in a list"])
def test_nothing_is_unpickled(place: str, tmp_path: Path) -> None:
    hostile = LeavesTrace(tmp_path / "trace")
    content = np.array(hostile, object) if place == "alone" else np.array([["{}", hostile]], object)
    path = scan(tmp_path, _metadata=content)
    stated = stated_photons(NpzFile(path))
    assert stated.nphotons is None
    assert "is not read" in stated.note
    assert not (tmp_path / "trace").exists()
    with np.load(path, allow_pickle=True) as file:
        file["_metadata"]
    assert (tmp_path / "trace").exists()


@pytest.mark.parametrize(
    ("content", "note"),
    [
        (np.array("{", object), "is no JSON"),
        (np.array("[" * 100_000, object), "'_metadata' is"),
        (np.array([1, 2], object), "is not read"),
        (np.arange(3), "is not read"),
        (metadata([1, 2]), "says no nphotons"),
        (metadata({"physics_parameters": 3}), "says no nphotons"),
        (of_reference(-1.0), "nphotons = -1.0, which is no count"),
        (of_reference("1e9"), "which is no count"),
        (of_reference(True), "which is no count"),
        (of_reference(float("nan")), "which is no count"),
    ],
)
def test_what_is_no_number_is_noted_and_not_used(content: np.ndarray, note: str, tmp_path: Path) -> None:
    path = scan(tmp_path, _metadata=content)
    stated = stated_photons(NpzFile(path))
    assert stated.nphotons is None
    assert note in stated.note
    assert stated.note.isprintable()
    assert examine(path).passed


# ---------------------------------------------------------------------------------------------------------- counts


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("mean", [0.05, 3.0, 400.0])
def test_roots_of_counts_are_known(dtype: Any, mean: float) -> None:
    counts = np.random.default_rng(0).poisson(mean * np.random.default_rng(1).exponential(1, (4, 16, 16)))
    assert are_counts(np.sqrt(counts).astype(dtype)) is True


@pytest.mark.parametrize("scale", [1e-3, 0.1, 0.77, 2.6])
def test_normalised_patterns_are_known(scale: float) -> None:
    counts = np.random.default_rng(0).poisson(3.0, (4, 16, 16))
    assert are_counts(scale * np.sqrt(counts)) is False


def test_patterns_that_are_bright_everywhere_tell_nothing() -> None:
    assert are_counts(np.full((2, 8, 8), 100.25)) is None


# --------------------------------------------------------------------------------------------------------- commands


def test_training_takes_the_number_of_the_scan_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    derived = dataset(tmp_path, scan(tmp_path, _metadata=of_reference())).derived()
    assert (derived.nphotons, derived.nphotons_source) == (1e9, "of _metadata in the scan")
    assert "nphotons = 1e+09 (of _metadata in the scan)" in derived.describe()
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_given_number_wins_and_the_scan_s_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = DataSettings(N=16, gridsize=2, nphotons=5e4)
    derived = dataset(tmp_path, scan(tmp_path, _metadata=of_reference()), settings).derived()
    assert (derived.nphotons, derived.nphotons_source) == (5e4, "as given")
    assert "nphotons = 50000 as given, not 1e+09 of its _metadata" in caplog.text


def test_normalised_patterns_without_a_number_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    dataset(tmp_path, scan(tmp_path)).derived()
    assert "--nphotons" in caplog.text
    assert "no √counts" in caplog.text
    caplog.clear()
    dataset(tmp_path, scan(tmp_path, counts=True)).derived()
    dataset(tmp_path, scan(tmp_path), DataSettings(N=16, gridsize=2, nphotons=5e4)).derived()
    assert "--nphotons" not in caplog.text


def test_scans_of_several_doses_have_their_mean_over_groups(tmp_path: Path) -> None:
    folder = tmp_path / "scans"
    folder.mkdir()
    for name, number in (("a.npz", 1e5), ("b.npz", 3e5)):
        scan(folder, name, _metadata=of_reference(number))
    derived = dataset(tmp_path, folder).derived()
    assert (derived.nphotons, derived.nphotons_source) == (2e5, "of _metadata in 2 of 2 scans")
    counted = scan(folder, "b.npz", counts=True)
    mean = np.square(np.load(counted)["diff3d"], dtype=np.float64).sum(axis=(1, 2)).mean()
    derived = dataset(tmp_path, folder, DataSettings(N=16, gridsize=1)).derived()
    assert derived.nphotons == pytest.approx((1e5 + mean) / 2)
    assert derived.nphotons_source == "of _metadata in 1 of 2 scans"


def test_check_data_takes_the_number_or_asks_for_it(tmp_path: Path) -> None:
    known = check.judge(scan(tmp_path, "known.npz", _metadata=of_reference()))
    assert any("nphotons = 1e+09 (of _metadata in the scan)" in line for line in known.numbers)
    assert not any("--nphotons" in hint.text for hint in known.hints)
    asked = check.judge(scan(tmp_path, "asked.npz"))
    assert any("--nphotons" in hint.text for hint in asked.hints)
    assert not any("--nphotons" in hint.text for hint in check.judge(scan(tmp_path, "counts.npz", counts=True)).hints)


@pytest.mark.parametrize(
    ("stated", "trained", "told"), [(1e9, 7524.0, True), (1e9, 1.001e9, False), (None, 5e4, False)]
)
def test_inference_takes_the_number_of_the_scan(
    stated: float | None, trained: float, told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    module: Any = types.SimpleNamespace(statistics={"nphotons": trained})
    data: Any = types.SimpleNamespace(stated_nphotons=(stated,), names=("scan.npz",))
    number, source = inference._photons(module, data, 0)
    assert number == (trained if stated is None else stated)
    assert ("_metadata" in source) == (stated is not None)
    assert ("the model was trained for" in caplog.text) == told


# ---------------------------------------------------------------------------------------------- groups of inference


def test_inference_draws_the_groups_that_are_asked_for() -> None:
    trained = DataSettings(group_sampler="reference", n_groups=7, sequential_sampling=True)
    assert inference._with_groups(trained, [], None, None, None) == trained
    drawn = inference._with_groups(trained, [], 45, 80, 9)
    # In sequence, the seed would decide nothing.
    assert (drawn.group_seed, drawn.n_groups, drawn.K, drawn.sequential_sampling) == (45, 80, 9, False)


def test_a_number_of_groups_is_refused_where_every_point_has_its_own() -> None:
    assert inference._with_groups(DataSettings(), [], 45, None, None).group_seed == 45
    with pytest.raises(ConfigError, match=r"n_groups = 80: this model has group_sampler = 'with_centre'"):
        inference._with_groups(DataSettings(), [], None, 80, None)


def test_a_scan_with_fewer_points_than_the_checkpoint_has_groups_gets_one_of_each_point(
    caplog: pytest.LogCaptureFixture,
) -> None:
    scene = ScanArrays("new", draw_scene(5, 32))
    trained = DataSettings(N=32, group_sampler="reference", n_groups=26)
    drawn = inference._with_groups(trained, [scene], None, None, None)
    assert drawn.n_groups is None
    assert "new: 25 scan points, and the checkpoint draws n_groups = 26" in caplog.text
    assert len(PtychoDataset.from_arrays(scene, settings=drawn)) == 25
    caplog.clear()
    # What was given by hand stays, and so does what fits or may draw points again.
    assert inference._with_groups(trained, [scene], None, 26, None).n_groups == 26
    fits = dataclasses.replace(trained, n_groups=25)
    again = dataclasses.replace(trained, enable_oversampling=True)
    assert inference._with_groups(fits, [scene], None, None, None) == fits
    assert inference._with_groups(again, [scene], None, None, None) == again
    assert not caplog.text
