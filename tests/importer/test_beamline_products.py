"""Objects of scans as beamlines write them: every pattern has its position, every scan of a file its object."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from ptycho_torch import train
from ptycho_torch.commands.cli import main
from ptycho_torch.config_params import DataSettings, Settings
from ptycho_torch.dset_loader_pt_mmap import PtychoDataset
from ptycho_torch.errors import ConfigError, DataContractError
from ptycho_torch.inference import infer
from ptycho_torch.reconstruction.products import read_reconstruction
from tests.support.scenes import GEOMETRY, PIXEL_M, Arrays, draw_scene, write

QUICK = Settings().override({"max_epochs": 1, "tracking": False, "device": "cpu", "batch_size": 16})

GROUPS: dict[str, dict[str, Any]] = {
    "each point with neighbours": {},
    "several groups a point": {"n_subsample": 3},
    "one pattern a group": {"gridsize": 1},
    "the reference's draw, of fewer points": {"group_sampler": "reference", "n_groups": 20, "K": 4},
    "the reference's oversampling": {
        "group_sampler": "reference", "n_groups": 100, "enable_oversampling": True, "K": 7,
    },
    "in sequence": {"group_sampler": "reference", "sequential_sampling": True, "n_groups": 30, "K": 4},
}  # fmt: skip


@pytest.fixture(scope="module")
def scene() -> Arrays:
    return draw_scene(6) | GEOMETRY


def product_of(path: Path) -> dict[str, np.ndarray]:
    with h5py.File(path) as product:
        found = {name: np.asarray(product[name]) for name in product}
        pixel = product["object"].attrs["pixel_width_m"]
    return found | {"pixel": np.asarray(pixel)}


def check_positions(product: dict[str, np.ndarray], scan: Arrays, reconstruction: Path, numbers: np.ndarray) -> None:
    """One position a pattern, index = number of the pattern, in metres about the centre of the object."""
    np.testing.assert_array_equal(product["probe_position_indexes"], numbers)
    made = read_reconstruction(reconstruction)
    height, width = made.object.shape
    for name, axis, length in (("x", 0, width), ("y", 1, height)):
        expected = (scan[f"{name}coords"][numbers] - made.origin_px[axis] - length / 2) * float(product["pixel"])
        # Metres of the order of 1e-6 in float64.
        np.testing.assert_allclose(product[f"probe_position_{name}_m"], expected, rtol=0, atol=1e-17)


@pytest.mark.parametrize("name", GROUPS)
def test_a_product_has_the_position_of_every_pattern(name: str, scene: Arrays, tmp_path: Path) -> None:
    path = write(tmp_path / "scan.npz", scene)
    folders = {"output_dir": tmp_path / "run", "data_dir": tmp_path / "map"}
    result = train.main(path, settings=QUICK.override(GROUPS[name]), progress=False, **folders)  # type: ignore[arg-type]
    (ours,) = result.reconstructions
    check_positions(product_of(ours.with_suffix(".h5")), scene, ours, np.arange(36))
    (inferred,) = infer(result.checkpoint, path, output_dir=tmp_path / "out", data_dir=tmp_path / "map", progress=False)
    names = {file.name for file in (tmp_path / "run" / "reconstructions").iterdir()}
    assert names == {file.name for file in (tmp_path / "out").iterdir()}
    assert "scan.h5" in names
    assert (
        read_reconstruction(ours).pixel_size_m
        == read_reconstruction(inferred.npz).pixel_size_m
        == pytest.approx(PIXEL_M)
    )


@pytest.mark.parametrize(
    ("N", "settings", "pixel_m"),
    [
        (128, {"detector_crop": True}, 2 * PIXEL_M / 2),
        (128, {"detector_bin": 2}, PIXEL_M / 2),
        (256, {"detector_crop": True, "detector_bin": 2}, 2 * PIXEL_M / 4),
        (128, {"N": 128}, PIXEL_M / 2),
    ],
    ids=["cut", "binned", "cut and binned", "as they are"],
)
def test_the_object_pixel_grows_where_frames_are_cut_and_stays_where_they_are_binned(
    N: int, settings: dict[str, Any], pixel_m: float, tmp_path: Path
) -> None:
    """λ·z / (N·p) of frames of 64 pixels is ``PIXEL_M``; twice as many pixels see half of it."""
    scan = draw_scene(4, N) | GEOMETRY
    path = write(tmp_path / "scan.npz", scan)
    result = train.main(
        path, settings=QUICK.override({"gridsize": 1, **settings}), output_dir=tmp_path / "run", progress=False,
        data_dir=tmp_path / "map",
    )  # fmt: skip
    (made,) = result.reconstructions
    assert read_reconstruction(made).pixel_size_m == pytest.approx(pixel_m, rel=1e-12)
    product = product_of(made.with_suffix(".h5"))
    assert float(product["pixel"]) == pytest.approx(pixel_m, rel=1e-12)
    # In metres the positions are what they were, whatever the pixels are.
    px = PIXEL_M * 64 / N
    for name in ("x", "y"):
        metres = product[f"probe_position_{name}_m"]
        expected = scan[f"{name}coords"] * px
        np.testing.assert_allclose(metres - metres[0], expected - expected[0], rtol=0, atol=1e-15)


def test_a_scan_of_unknown_geometry_has_no_product_of_training(scene: Arrays, tmp_path: Path) -> None:
    path = write(tmp_path / "scan.npz", {key: scene[key] for key in scene if key not in GEOMETRY})
    result = train.main(path, settings=QUICK, output_dir=tmp_path / "run", data_dir=tmp_path / "map", progress=False)
    (made,) = result.reconstructions
    assert read_reconstruction(made).pixel_size_m is None
    assert not made.with_suffix(".h5").exists()


def test_ptychodus_reads_a_product(scene: Arrays, tmp_path: Path) -> None:
    """The reader of the package `ptychodus` finds patterns, positions, probe and object where they are."""
    # Warnings are errors here, and ptychodus may bring some of its own.
    reason = "ptychodus is absent; pip install --no-deps ptychodus==1.7.0"
    ptychodus = pytest.importorskip("ptychodus.api.io", reason=reason, exc_type=ImportError)
    path = write(tmp_path / "scan.npz", scene)
    result = train.main(
        path, settings=QUICK.override({"n_subsample": 2}), output_dir=tmp_path / "run", data_dir=tmp_path / "map",
        progress=False,
    )  # fmt: skip
    (made,) = result.reconstructions
    product = ptychodus.load_product(made.with_suffix(".h5"))
    ours = read_reconstruction(made)
    np.testing.assert_array_equal(product.probe_positions.get_indexes(), np.arange(36))
    np.testing.assert_array_equal(product.object_.get_array()[0], ours.object)
    np.testing.assert_array_equal(np.squeeze(product.probes.get_array()), ours.probe)
    assert product.metadata.detector_distance_m == pytest.approx(1.6)
    # 12.398 keV is one ångström.
    assert product.metadata.photon_energy_eV == pytest.approx(12398.4198 / 1.2)
    # Their pixels count from the middle of the first one: the corner of a patch is (N − 1) / 2 before its middle.
    geometry = product.object_.get_geometry()
    for axis, name in enumerate("xy"):
        middle = getattr(geometry, f"map_probe_positions_to_object_{name}_px")(product.probe_positions)
        corner = scene[f"{name}coords"] - 32 - ours.origin_px[axis]
        np.testing.assert_allclose(middle - 31.5, corner, rtol=0, atol=1e-9)


# --------------------------------------------------------------------------------------------------- several scans


def two_scans(indices: tuple[int, int] = (0, 1), *, interleaved: bool = False) -> Arrays:
    """Return a file of two scans of different objects at the same stage positions."""
    first, second = draw_scene(6), draw_scene(6, seed=9)
    both = {key: np.concatenate([first[key], second[key]]) for key in ("diff3d", "xcoords", "ycoords")}
    both |= {"probeGuess": first["probeGuess"], "scan_index": np.repeat(indices, 36)}
    if interleaved:
        order = np.random.default_rng(0).permutation(72)
        both |= {key: both[key][order] for key in ("diff3d", "xcoords", "ycoords", "scan_index")}
    return both


@pytest.mark.parametrize("sampler", [{}, {"group_sampler": "without_centre"}, {"group_sampler": "reference", "K": 4}])
@pytest.mark.parametrize("indices", [(0, 1), (7, -3)])
@pytest.mark.parametrize("interleaved", [False, True])
def test_a_group_is_of_one_scan(
    sampler: dict[str, Any], indices: tuple[int, int], interleaved: bool, tmp_path: Path
) -> None:
    scan = two_scans(indices, interleaved=interleaved)
    path = write(tmp_path / "scan.npz", scan)
    dataset = PtychoDataset(path, data_dir=tmp_path / "map", settings=DataSettings(**sampler))
    of_groups = scan["scan_index"][dataset.nn_indices.numpy()]  # (L, C)
    assert (of_groups == of_groups[:, :1]).all()
    assert dataset.names == tuple(f"scan_{index}.npz" for index in sorted(indices))
    np.testing.assert_array_equal(np.array(sorted(indices))[dataset.experiment_ids.numpy()], of_groups[:, 0])
    for number, index in enumerate(sorted(indices)):
        rows = np.flatnonzero(scan["scan_index"] == index)
        np.testing.assert_array_equal(dataset.rows[number], rows)
        np.testing.assert_array_equal(dataset.pattern_numbers(number), rows)
        mean = np.square(scan["diff3d"][rows], dtype=np.float64).sum(axis=(1, 2)).mean()
        # Every pattern is in about as many groups of its scan.
        assert float(dataset.scale[number]) == pytest.approx(32 / np.sqrt(mean), rel=0.02)


def test_groups_of_one_scan_are_those_that_it_has_in_a_file_of_its_own(tmp_path: Path) -> None:
    scan = two_scans()
    path = write(tmp_path / "both" / "scan.npz", scan)
    both = PtychoDataset(path, data_dir=tmp_path / "map", settings=DataSettings())
    for number in (0, 1):
        own = {key: array[number * 36 : number * 36 + 36] if len(array) == 72 else array for key, array in scan.items()}
        alone = PtychoDataset(
            write(tmp_path / f"{number}" / "scan.npz", own), data_dir=tmp_path / f"map{number}", settings=DataSettings()
        )
        groups = both.experiment_ids == number
        np.testing.assert_array_equal(both.nn_indices[groups].numpy() - 36 * number, alone.nn_indices.numpy())
        np.testing.assert_array_equal(both.centres_px[groups], alone.centres_px)


def test_each_scan_of_a_file_gives_its_own_object(tmp_path: Path) -> None:
    scans = tmp_path / "scans"
    scan = two_scans((2, 5), interleaved=True) | GEOMETRY
    write(scans / "b.npz", scan)
    write(scans / "a.npz", draw_scene(6, seed=3))
    result = train.main(scans, settings=QUICK, output_dir=tmp_path / "run", data_dir=tmp_path / "map", progress=False)
    assert [path.name for path in result.reconstructions] == ["a.npz", "b_2.npz", "b_5.npz"]
    for index in (2, 5):
        made = tmp_path / "run" / "reconstructions" / f"b_{index}.npz"
        # The index is the number in the file, also where a file holds several scans.
        check_positions(product_of(made.with_suffix(".h5")), scan, made, np.flatnonzero(scan["scan_index"] == index))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "b_5.json").write_text("mine")
    with pytest.raises(ConfigError, match=r"b_5\.json is there already"):
        infer(result.checkpoint, scans, output_dir=tmp_path / "out", data_dir=tmp_path / "map")


def test_two_scans_of_one_name_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "scans" / "b.npz", two_scans((2, 5)))
    write(tmp_path / "scans" / "b_5.npz", draw_scene(6))
    with pytest.raises(DataContractError, match=r"both be called b_5\.npz"):
        PtychoDataset(tmp_path / "scans", data_dir=tmp_path / "map", settings=DataSettings())


def test_a_scan_that_is_too_short_is_named(tmp_path: Path) -> None:
    scan = two_scans()
    scan["scan_index"][-2:] = 4
    with pytest.raises(DataContractError, match=r"2 patterns of scan_index 4.*`--gridsize 1`"):
        PtychoDataset(write(tmp_path / "scan.npz", scan), data_dir=tmp_path / "map", settings=DataSettings())


# ------------------------------------------------------------------------------------------------- small matters


def test_plot_draws_the_scores_that_infer_wrote(scene: Arrays, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ptycho_torch.commands import plot as command_plot
    from ptycho_torch.reconstruction import pictures

    path = write(tmp_path / "scan.npz", scene)
    result = train.main(path, settings=QUICK, output_dir=tmp_path / "run", data_dir=tmp_path / "map", progress=False)
    (made,) = result.reconstructions
    told = {}
    monkeypatch.setattr(pictures, "plot_reconstruction", lambda *_, scores=None: told.update(scores=scores))
    assert main(["plot", str(made), "-o", str(tmp_path / "pictures")]) == 0
    (inferred,) = infer(result.checkpoint, path, output_dir=tmp_path / "out", data_dir=tmp_path / "map", progress=False)
    assert told["scores"].describe() == inferred.scores.describe()
    assert command_plot._scores(tmp_path / "elsewhere.npz", read_reconstruction(made)) is None
    made.with_suffix(".json").write_text("[1]")
    with pytest.raises(DataContractError, match=r"scan\.json: no scores of scan\.npz"):
        command_plot._scores(made, read_reconstruction(made))


@pytest.mark.parametrize(("progress", "shown"), [(False, False), (True, True)])
def test_the_bar_of_the_memory_map_obeys(
    progress: bool, shown: bool, scene: Arrays, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    PtychoDataset(
        write(tmp_path / "scan.npz", scene), data_dir=tmp_path / "map", settings=DataSettings(), progress=progress
    )
    assert ("memory map" in capsys.readouterr().err) == shown
