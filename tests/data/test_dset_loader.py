"""Batches of groups: what they hold, which probe goes with which scan, and how an epoch runs."""

from __future__ import annotations

import dataclasses
import itertools
import math
import pickle
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ptycho_torch import losses
from ptycho_torch.config_params import DataConfig, DataSettings, data_config_default
from ptycho_torch.contracts.contract import load_contract
from ptycho_torch.dset_loader_pt_mmap import GroupSampler, PtychoBatch, PtychoDataset, TensorDictDataLoader
from ptycho_torch.errors import ConfigError, DataContractError
from tests.support.scan_files import Arrays, draw_scan, write_scan

N = 16
SETTINGS = DataSettings(N=N)


def make(place: Path, *scans: Arrays, settings: DataSettings = SETTINGS, **options: Any) -> PtychoDataset:
    """Write scans a.npz, b.npz, … and open their dataset."""
    for name, scan in zip("abcdef", scans, strict=False):
        write_scan(place / "scans" / f"{name}.npz", scan)
    return PtychoDataset(place / "scans", data_dir=place / "map", settings=settings, **options)


def tensors_of(batch: PtychoBatch) -> dict[str, torch.Tensor]:
    names = [field.name for field in dataclasses.fields(batch)]
    names += ["probe", "good_pixels"]
    return {name: value for name in names if (value := getattr(batch, name)) is not None}


def assert_same_batch(first: PtychoBatch, second: PtychoBatch) -> None:
    ours, theirs = tensors_of(first), tensors_of(second)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


def with_bad_pixels(scan: Arrays, *pixels: tuple[int, int], value: float = np.nan) -> Arrays:
    bad = np.zeros(scan["diff3d"].shape[1:], np.uint8)
    patterns = scan["diff3d"].copy()
    for pixel in pixels:
        bad[pixel] = 1
        patterns[(slice(None), *pixel)] = value
    return scan | {"diff3d": patterns, "bad_pixels": bad}


# -------------------------------------------------------------------------------------------------- one batch

SCANS: dict[str, list[Arrays]] = {
    "one scan": [draw_scan()],
    "one scan with a mode axis": [draw_scan(modes=1)],
    "one scan of three modes": [draw_scan(modes=3)],
    "three scans": [draw_scan(seed=1), draw_scan(M=15, seed=2), draw_scan(M=31, seed=3)],
    "scans of one and two modes": [draw_scan(seed=1), draw_scan(seed=2, modes=2)],
    "a scan with bad pixels": [draw_scan(seed=1), with_bad_pixels(draw_scan(seed=2), (3, 5))],
}


@pytest.mark.parametrize("gridsize", [1, 2, 3])
@pytest.mark.parametrize("name", SCANS)
def test_a_batch_has_the_shapes_and_types_of_the_contract(tmp_path: Path, name: str, gridsize: int) -> None:
    scans = SCANS[name]
    dataset = make(tmp_path, *scans, settings=DataSettings(N=N, gridsize=gridsize, K=9))
    modes = max(1 if scan["probeGuess"].ndim == 2 else len(scan["probeGuess"]) for scan in scans)
    everywhere = np.linspace(0, len(dataset) - 1, 10).astype(int)
    batch = dataset[everywhere]
    letters = {"B": 10, "C": gridsize**2, "N": N}
    for field in load_contract().tensors["grouped"]["fields"]:
        found = getattr(batch, field["name"])
        if field["name"] == "good_pixels" and not any("bad_pixels" in scan for scan in scans):
            assert found is None
            continue
        shape = [letters.get(each) or int(each) for each in field["shape"].split()]
        if field["name"] == "probe" and modes > 1:
            shape.insert(2, modes)
        assert list(found.shape) == shape, field["name"]
        assert str(found.dtype) == f"torch.{field['dtype']}", field["name"]
    images, coords, probe, scale = batch
    for ours, name_of_field in ((images, "images"), (coords, "coords"), (probe, "probe"), (scale, "scale")):
        assert torch.equal(ours, getattr(batch, name_of_field))


@pytest.mark.parametrize("name", SCANS)
def test_each_group_holds_the_patterns_and_the_probe_of_its_scan(tmp_path: Path, name: str) -> None:
    scans = SCANS[name]
    dataset = make(tmp_path, *scans)
    patterns = np.concatenate([np.nan_to_num(scan["diff3d"]) for scan in scans])
    owner = np.repeat(np.arange(len(scans)), [len(scan["diff3d"]) for scan in scans])
    modes = max(1 if scan["probeGuess"].ndim == 2 else len(scan["probeGuess"]) for scan in scans)
    batch = dataset[torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0))]
    for group in range(len(dataset)):
        rows, number = batch.indices[group].numpy(), int(batch.experiment_ids[group])
        assert (owner[rows] == number).all()
        assert torch.equal(batch.scale[group], dataset.scale[number])
        # One multiplication in float32, and nothing else.
        np.testing.assert_array_equal(batch.images[group].numpy(), patterns[rows] * dataset.scale[number].numpy())
        expected = scans[number]["probeGuess"].reshape(-1, N, N)
        expected = np.pad(expected, ((0, modes - len(expected)), (0, 0), (0, 0)))
        for channel in range(4):
            np.testing.assert_array_equal(batch.probe[group, channel].numpy(), expected[0] if modes == 1 else expected)


@pytest.mark.parametrize("name", ["three scans", "scans of one and two modes", "a scan with bad pixels"])
def test_a_batch_of_some_scans_is_a_part_of_the_batch_of_all(tmp_path: Path, name: str) -> None:
    dataset = make(tmp_path, *SCANS[name])
    whole = dataset[:]
    for number in range(len(SCANS[name])):
        chosen = whole.experiment_ids == number
        part = dataset[whole.groups[chosen]]
        for field, tensor in tensors_of(part).items():
            if field not in ("probes", "probe_ids", "masks"):
                assert torch.equal(tensor, tensors_of(whole)[field][chosen]), field
        # Only the probe of this scan travels along.
        assert len(part.probes) == 1


def test_coordinates_are_minus_the_positions_about_their_mean_with_x_first(tmp_path: Path) -> None:
    scan = draw_scan(M=4)
    scan["xcoords"], scan["ycoords"] = np.array([50.0, 60.0, 50.0, 52.0]), np.array([7.0, 7.0, 10.0, 8.0])
    batch = make(tmp_path, scan)[:]
    np.testing.assert_array_equal(batch.centres[:, 0, 0].numpy(), np.tile([53.0, 8.0], (4, 1)))
    expected = {0: (3.0, 1.0), 1: (-7.0, 1.0), 2: (3.0, -2.0), 3: (1.0, 0.0)}
    for group in range(4):
        for channel in range(4):
            assert tuple(batch.coords[group, channel, 0].tolist()) == expected[int(batch.indices[group, channel])]


def test_positions_of_the_real_scan_are_column_and_row_of_its_object(shared: Path, tmp_path: Path) -> None:
    path = shared / "data" / "siemens_star_n64.npz"
    dataset = PtychoDataset(path, data_dir=tmp_path, settings=DataSettings(gridsize=1, normalize=False))
    with np.load(path) as scan:
        known_object = scan["objectGuess"]

    def residual(column: int, row: int) -> float:
        predicted, measured = [], []
        for group in range(0, len(dataset), 16):
            batch = dataset[group]
            position = (batch.centres - batch.coords)[0, 0, 0]
            x, y = (int(position[axis].round()) for axis in (column, row))
            patch = known_object[y - 32 : y + 32, x - 32 : x + 32]
            if patch.shape == (64, 64):
                wave = np.fft.fftshift(np.fft.fft2(batch.probe[0, 0].numpy() * patch)) / 64
                predicted.append(np.abs(wave))
                measured.append(batch.images[0, 0].numpy())
        assert len(measured) > 10
        difference = np.stack(predicted) - np.stack(measured)
        return float(np.square(difference).sum() / np.square(measured).sum())

    # Positions are rounded to whole pixels here, which alone costs some percent.
    assert residual(0, 1) < 0.1
    assert residual(1, 0) > 2 * residual(0, 1)


@pytest.mark.parametrize("groups", [1, 3, 4])
def test_a_batch_is_a_tuple_of_four_however_many_groups_it_has(tmp_path: Path, groups: int) -> None:
    batch = make(tmp_path, draw_scan())[:groups]
    images, coords, probe, scale = batch
    assert len(batch) == 4
    assert len(images) == groups
    assert batch[0] is images is batch.images
    assert batch[1] is coords
    assert torch.equal(batch[2], probe)
    assert batch[-1] is scale
    assert len(batch[:2]) == 2
    with pytest.raises(IndexError):
        batch[4]


@pytest.mark.parametrize("name", ["one scan", "a scan with bad pixels"])
def test_a_batch_moves_as_a_whole(tmp_path: Path, name: str) -> None:
    batch = make(tmp_path, *SCANS[name])[:]
    moved = batch.to("meta")
    assert isinstance(moved, PtychoBatch)
    assert {tensor.device.type for tensor in tensors_of(moved).values()} == {"meta"}
    assert {name: tensor.dtype for name, tensor in tensors_of(moved).items()} == {
        name: tensor.dtype for name, tensor in tensors_of(batch).items()
    }
    assert batch.images.device.type == "cpu"
    assert_same_batch(batch.to(torch.device("cpu"), non_blocking=True), batch)


@pytest.mark.parametrize(
    ("arguments", "keywords"),
    [
        ((torch.float64,), {}),
        (("cpu", torch.float32), {}),
        ((), {"dtype": torch.float16}),
        ((torch.zeros(1, dtype=torch.float64),), {}),
        ((), {"other": torch.zeros(1, dtype=torch.float64)}),
    ],
)
def test_a_batch_takes_no_other_number_type(
    tmp_path: Path, arguments: tuple[Any, ...], keywords: dict[str, Any]
) -> None:
    batch = make(tmp_path, draw_scan())[:2]
    with pytest.raises(TypeError, match="device"):
        batch.to(*arguments, **keywords)


def test_a_probe_that_all_groups_share_takes_no_memory_for_each(tmp_path: Path) -> None:
    batch = make(tmp_path, draw_scan())[:]
    assert batch.probe.shape == (24, 4, N, N)
    assert batch.probe.untyped_storage().nbytes() == N * N * 8


@pytest.mark.parametrize("bright", [np.nan, np.inf, -3.0, 1e12])
def test_bad_pixels_of_a_file_have_no_part_in_the_loss(tmp_path: Path, bright: float) -> None:
    pixels = ((3, 5), (0, 0), (15, 8))
    clean = draw_scan(seed=2)
    dataset = make(tmp_path, draw_scan(seed=1), with_bad_pixels(clean, *pixels, value=bright))
    batch = dataset[:]
    assert batch.good_pixels is not None
    masks = batch.good_pixels.expand(-1, 4, -1, -1)
    assert masks[:24].all()
    assert masks[24].logical_not().nonzero()[:, 1:].unique(dim=0).tolist() == sorted(map(list, pixels))
    assert (batch.images[~masks] == 0).all()
    # What bad pixels hold is left out of the normalisation.
    energy = batch.images[24:].double().square().sum(dim=(2, 3)).mean()
    assert energy.item() == pytest.approx((N / 2) ** 2, rel=1e-6)
    predicted = (batch.images.square() + 0.5).requires_grad_()
    loss = losses.poisson_nll(predicted, batch.images, batch.good_pixels)
    loss.backward()
    assert predicted.grad is not None
    assert torch.count_nonzero(predicted.grad[~masks]) == 0
    assert torch.count_nonzero(predicted.grad[masks]) == masks.sum()
    spoiled = torch.where(masks, batch.images, 1e9)
    assert losses.poisson_nll(predicted, spoiled, batch.good_pixels).item() == loss.item()
    assert losses.poisson_nll(predicted, spoiled).item() != loss.item()
    x, i = batch.images[masks].double(), predicted[masks].double()
    assert loss.item() == pytest.approx((i - x.square() * i.log()).mean().item(), rel=1e-5)


# ------------------------------------------------------------------------------------------------ which groups


def test_groups_are_chosen_as_from_a_sequence(tmp_path: Path) -> None:
    dataset = make(tmp_path, draw_scan(), draw_scan(M=9, seed=1))
    numbers = list(range(33))
    for index in (slice(None), slice(3, 9), slice(None, None, -1), slice(-5, None), slice(30, 99), slice(20, 2, -4),
                  slice(5, 5), slice(5, 3), slice(99, 120), slice(2, 9, -1)):  # fmt: skip
        batch = dataset[index]
        assert batch.groups.tolist() == numbers[index]
        assert batch.images.shape == (len(numbers[index]), 4, N, N)
    one: Any
    for one in (0, 32, -1, -33, np.int64(4), torch.tensor(7)):
        assert dataset[one].groups.tolist() == [numbers[int(one)]]
    for several in ([3, 1, 1], np.array([-1, 5]), torch.tensor([2, 0], dtype=torch.int32), (4, 2), []):
        assert dataset[several].groups.tolist() == [numbers[int(each)] for each in several]


@pytest.mark.parametrize(
    "index", [24, -25, [0, 24], 1.0, True, [True, False], torch.zeros(2, 2, dtype=torch.int64), 1j], ids=str
)
def test_a_group_that_is_not_there_is_an_index_error(tmp_path: Path, index: Any) -> None:
    dataset = make(tmp_path, draw_scan())
    with pytest.raises(IndexError):
        dataset[index]


def test_a_dataset_can_be_iterated_group_by_group(tmp_path: Path) -> None:
    dataset: Any = make(tmp_path, draw_scan(M=7))
    assert [batch.groups.tolist() for batch in dataset] == [[number] for number in range(7)]


@pytest.mark.parity_clause("STEP-DATA")
@pytest.mark.parametrize("n", [1, 2, 19, 20, 21, 39, 40, 100, 512, 1001])
def test_validation_is_the_last_part_as_the_reference_splits_it(n: int) -> None:
    dataset = object.__new__(PtychoDataset)
    dataset._nn_indices = torch.zeros(n, 4)
    training, validation = dataset.validation_split()
    assert validation.tolist() == list(range(math.floor(0.95 * n), n))
    assert torch.cat([training, validation]).tolist() == list(range(n))
    mixed_training, mixed_validation = dataset.validation_split(shuffle_seed=3)
    assert len(mixed_validation) == len(validation)
    assert sorted(torch.cat([mixed_training, mixed_validation]).tolist()) == list(range(n))
    assert torch.equal(mixed_validation, dataset.validation_split(shuffle_seed=3)[1])
    if n > 500:
        assert set(mixed_validation.tolist()) != set(validation.tolist())
        assert set(mixed_validation.tolist()) != set(dataset.validation_split(shuffle_seed=4)[1].tolist())
    assert len(dataset.validation_split(0.0)[1]) == 0


@pytest.mark.parametrize("fraction", [-0.1, 1.0, 2.0, math.nan])
def test_a_fraction_that_leaves_no_training_is_refused(fraction: float) -> None:
    with pytest.raises(ConfigError, match="validation fraction"):
        object.__new__(PtychoDataset).validation_split(fraction)


# -------------------------------------------------------------------------------------------------- which probe


@pytest.fixture
def two_scans(tmp_path: Path) -> Path:
    for number, name in enumerate(("left", "right")):
        write_scan(tmp_path / "scans" / f"{name}.npz", seed=number)
        (tmp_path / "by stem").mkdir(exist_ok=True)
        np.savez(tmp_path / "by stem" / f"{name}.npz", probe=np.full((N, N), 10 + number, np.complex64))
    (tmp_path / "by stem" / "unused.npz").write_bytes(b"whatever")
    (tmp_path / "one").mkdir()
    np.savez(tmp_path / "one" / "any name.npz", probe=np.full((2, N, N), 7j, np.complex64))
    return tmp_path


def probes_of(place: Path, probe_dir: Path | None = None, **options: Any) -> np.ndarray:
    """Probe of the first channel of a group of each scan."""
    defaults: dict[str, Any] = {"settings": SETTINGS, "data_dir": place / "map"}
    options = defaults | options
    return PtychoDataset(place / "scans", probe_dir, **options)[[0, 24]].probe[:, 0].numpy()


def own_probes() -> np.ndarray:
    return np.stack([draw_scan(seed=0)["probeGuess"], draw_scan(seed=1)["probeGuess"]])


def test_a_given_probe_serves_every_scan(two_scans: Path) -> None:
    given_probe = np.random.default_rng(0).random((N, N)) * (1 - 2j)
    expected = np.broadcast_to(given_probe.astype(np.complex64), (2, N, N))
    np.testing.assert_array_equal(probes_of(two_scans, probe=given_probe), expected)
    as_tensor = torch.from_numpy(given_probe).requires_grad_()
    np.testing.assert_array_equal(probes_of(two_scans, probe=as_tensor), expected)
    for turned in (given_probe[::-1], given_probe.T, torch.from_numpy(given_probe).mT):
        mirrored = np.asarray(turned, np.complex64)
        np.testing.assert_array_equal(probes_of(two_scans, probe=turned), np.broadcast_to(mirrored, (2, N, N)))


def test_probe_dir_get_false_takes_the_probe_of_each_scan_and_says_so(
    two_scans: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = probes_of(two_scans, two_scans / "by stem", settings=DataSettings(N=N, probe_dir_get=False))
    np.testing.assert_array_equal(found, own_probes())
    assert "probe_dir_get is False" in caplog.text


def test_two_sources_of_the_probe_are_refused(two_scans: Path) -> None:
    with pytest.raises(ConfigError, match="give one of them"):
        probes_of(two_scans, two_scans / "one", probe=np.ones((N, N)))


def test_a_scan_without_a_probe_file_of_its_stem_is_refused(two_scans: Path) -> None:
    (two_scans / "by stem" / "right.npz").unlink()
    with pytest.raises(DataContractError, match=r"no probe right\.npz"):
        probes_of(two_scans, two_scans / "by stem")


def test_settings_that_are_not_given_are_those_of_the_process(tmp_path: Path, data_config: DataConfig) -> None:
    data_config.set_settings({"N": N, "gridsize": 3, "K": 8})
    write_scan(tmp_path / "scans" / "a.npz")
    dataset = PtychoDataset(tmp_path / "scans", data_dir=tmp_path / "map")
    data_config.add("gridsize", 1)
    assert dataset.settings.gridsize == 3
    assert dataset[0].images.shape == (1, 9, N, N)


# ------------------------------------------------------------------------------------------------------ an epoch


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PtychoDataset:
    """50 groups of two scans, one of which has bad pixels."""
    place = tmp_path_factory.mktemp("loader")
    return make(place, draw_scan(M=30), with_bad_pixels(draw_scan(M=20, seed=1), (3, 5)))


def groups_of(batches: Iterator[PtychoBatch] | TensorDictDataLoader) -> list[list[int]]:
    return [batch.groups.tolist() for batch in batches]


@pytest.mark.parity_clause("STEP-DATA")
@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("batch_size", [1, 7, 10, 50, 64])
def test_an_epoch_yields_each_group_once(dataset: PtychoDataset, shuffle: bool, workers: int, batch_size: int) -> None:
    loader = TensorDictDataLoader(dataset, batch_size, shuffle=shuffle, num_workers=workers)
    batches = groups_of(loader)
    assert len(batches) == len(loader) == math.ceil(50 / batch_size)
    assert [len(batch) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
    flat = list(itertools.chain(*batches))
    assert sorted(flat) == list(range(50))
    assert (flat == list(range(50))) != shuffle


def test_a_dataset_travels_to_another_process_without_its_patterns(dataset: PtychoDataset) -> None:
    pickled = pickle.dumps(dataset)
    assert len(pickled) < 2000
    again = pickle.loads(pickled)
    assert again.map.reason == ""
    for ours, theirs in zip(dataset[[0, 49]], again[[0, 49]], strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parity_clause("STEP-DATA")
def test_each_epoch_is_shuffled_anew_and_the_seed_repeats_them(dataset: PtychoDataset) -> None:
    loader = TensorDictDataLoader(dataset, 8, shuffle=True, seed=5)
    epochs = [groups_of(loader) for _ in range(4)]
    assert len({str(epoch) for epoch in epochs}) == 4
    again = TensorDictDataLoader(dataset, 8, shuffle=True, seed=5)
    assert [groups_of(again) for _ in range(4)] == epochs
    other = TensorDictDataLoader(dataset, 8, shuffle=True, seed=6)
    assert groups_of(other) not in epochs


def test_shuffled_places_are_all_equally_likely(dataset: PtychoDataset) -> None:
    loader = TensorDictDataLoader(dataset, 50, shuffle=True)
    sampler = loader.batch_sampler
    firsts = np.array([next(sampler.batches(epoch))[:25].numpy() for epoch in range(400)])
    seen = np.bincount(firsts.ravel(), minlength=50)
    # 200 expected, a deviation of 10; the seed is fixed.
    assert np.abs(seen - 200).max() < 50


def test_any_number_of_workers_gives_the_same_batches(dataset: PtychoDataset) -> None:
    loaders = [TensorDictDataLoader(dataset, 7, shuffle=True, num_workers=workers) for workers in (0, 1, 3)]
    for _ in range(2):
        for first, *rest in zip(*loaders, strict=True):
            for other in rest:
                assert_same_batch(first, other)


def test_a_last_smaller_batch_can_be_left_out(dataset: PtychoDataset) -> None:
    for workers in (0, 2):
        loader = TensorDictDataLoader(dataset, 16, drop_last=True, num_workers=workers)
        assert len(loader) == 3
        assert [len(batch) for batch in groups_of(loader)] == [16, 16, 16]


def test_the_loader_draws_from_the_groups_it_is_given(dataset: PtychoDataset) -> None:
    training, validation = dataset.validation_split()
    loader = TensorDictDataLoader(dataset, 16, groups=training, shuffle=True)
    assert sorted(itertools.chain(*groups_of(loader))) == training.tolist()
    assert groups_of(TensorDictDataLoader(dataset, 2, groups=validation)) == [[47, 48], [49]]
    with pytest.raises(IndexError):
        TensorDictDataLoader(dataset, 16, groups=torch.tensor([50]))


@given(
    n=st.integers(1, 60),
    batch_size=st.integers(1, 9),
    world_size=st.integers(1, 5),
    shuffle=st.booleans(),
    drop_last=st.booleans(),
)
@settings(deadline=None)
def test_processes_share_the_groups_and_have_as_many_batches_of_the_same_size(
    n: int, batch_size: int, world_size: int, shuffle: bool, drop_last: bool
) -> None:
    numbers = torch.arange(100, 100 + n)
    ranks = []
    for rank in range(world_size):
        sampler = GroupSampler(
            numbers, batch_size, shuffle=shuffle, drop_last=drop_last, rank=rank, world_size=world_size
        )
        batches = list(sampler.batches(3))
        assert len(batches) == len(sampler)
        ranks.append(batches)
    for together in zip(*ranks, strict=True):
        assert len({len(batch) for batch in together}) == 1
        assert 1 <= len(together[0]) <= batch_size
    seen = torch.cat([batch for batches in ranks for batch in batches] or [numbers[:0]]).tolist()
    assert set(seen) <= set(numbers.tolist())
    if drop_last:
        assert len(seen) == len(set(seen)) == n // (batch_size * world_size) * batch_size * world_size
    else:
        assert set(seen) == set(numbers.tolist())
        # Only what fills the last batch up is there twice.
        assert len(seen) - n == -n % (batch_size * world_size) % world_size


def test_one_global_batch_is_the_batch_of_one_process_cut_in_parts(dataset: PtychoDataset) -> None:
    alone = groups_of(TensorDictDataLoader(dataset, 20, shuffle=True, rank=0, world_size=1))
    parts = [groups_of(TensorDictDataLoader(dataset, 10, shuffle=True, rank=rank, world_size=2)) for rank in range(2)]
    assert [first + second for first, second in zip(*parts, strict=True)] == alone


def test_rank_and_number_of_processes_come_from_torch(dataset: PtychoDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = TensorDictDataLoader(dataset, 5)
    for name, answer in (("is_initialized", True), ("get_rank", 1), ("get_world_size", 2)):
        monkeypatch.setattr(torch.distributed, name, lambda answer=answer: answer)
    assert len(loader) == 5
    assert groups_of(loader)[0] == [5, 6, 7, 8, 9]


@pytest.mark.parity_clause("STEP-DATA")
@pytest.mark.parametrize("workers", [0, 3])
@pytest.mark.parametrize("done", [0, 1, 3, 6, 7])
def test_a_saved_position_goes_on_with_exactly_the_batches_that_remain(
    dataset: PtychoDataset, workers: int, done: int
) -> None:
    def fresh() -> TensorDictDataLoader:
        return TensorDictDataLoader(dataset, 8, shuffle=True, seed=2, num_workers=workers)

    loader = fresh()
    groups_of(loader)  # Epoch 0 in full.
    expected = groups_of(loader)
    after = groups_of(loader)
    loader = fresh()
    groups_of(loader)
    epoch = iter(loader)
    for _ in range(done):
        next(epoch)
    state = loader.state_dict()
    restored = fresh()
    restored.load_state_dict(state)
    assert restored.state_dict() == state
    assert groups_of(restored) == expected[done:]
    assert groups_of(restored) == after
    # The loader that was saved goes on as if nothing had been.
    assert groups_of(epoch) == expected[done:]
    assert groups_of(loader) == after


def test_a_position_survives_a_framework_that_names_the_epoch(dataset: PtychoDataset) -> None:
    loader = TensorDictDataLoader(dataset, 8, shuffle=True)
    expected = groups_of(loader)
    loader.set_epoch(0)
    epoch = iter(loader)
    next(epoch)
    state = loader.state_dict()
    for number, remaining in ((0, expected[1:]), (4, None)):
        restored = TensorDictDataLoader(dataset, 8, shuffle=True)
        restored.load_state_dict(state)
        restored.set_epoch(number)
        found = groups_of(restored)
        # Another epoch than the saved one starts at its beginning.
        assert len(found) == (7 if remaining is None else 6)
        assert remaining is None or found == remaining


def test_a_finished_epoch_is_saved_as_the_start_of_the_next(dataset: PtychoDataset) -> None:
    loader = TensorDictDataLoader(dataset, 8, shuffle=True)
    groups_of(loader)
    state = loader.state_dict()
    assert (state["epoch"], state["batch"]) == (1, 0)
    restored = TensorDictDataLoader(dataset, 8, shuffle=True)
    restored.load_state_dict(state)
    assert groups_of(restored) == groups_of(loader)


def test_a_position_is_plain_numbers(dataset: PtychoDataset) -> None:
    assert {type(value) for value in TensorDictDataLoader(dataset).state_dict().values()} <= {int, bool}


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"batch_size": 9}, "batch_size = 8"),
        ({"shuffle": False}, "shuffle = True"),
        ({"seed": 1}, "seed = 0"),
        ({"drop_last": True}, "drop_last = False"),
        ({"groups": torch.arange(49)}, "groups = 50"),
        ({"rank": 0, "world_size": 2}, "world_size = 1"),
    ],
)
def test_a_position_of_another_loader_is_refused(dataset: PtychoDataset, options: dict[str, Any], name: str) -> None:
    state = TensorDictDataLoader(dataset, 8, shuffle=True).state_dict()
    other = TensorDictDataLoader(dataset, **({"batch_size": 8, "shuffle": True} | options))
    before = groups_of(other)
    other.set_epoch(0)
    with pytest.raises(ConfigError, match=name):
        other.load_state_dict(state)
    assert groups_of(other) == before


@pytest.mark.parametrize(
    "change", [{"epoch": -1}, {"batch": -1}, {"batch": 8}, {"epoch": "one"}, {"batch": None}, {"epoch": 1.5}], ids=str
)
def test_a_position_that_no_epoch_has_is_refused(dataset: PtychoDataset, change: dict[str, Any]) -> None:
    loader = TensorDictDataLoader(dataset, 8)
    with pytest.raises(ConfigError, match="position"):
        loader.load_state_dict(loader.state_dict() | change)
    for state in ({}, {name: value for name, value in loader.state_dict().items() if name not in change}):
        with pytest.raises(ConfigError):
            loader.load_state_dict(state)


@pytest.mark.parametrize("workers", [0, 3])
def test_an_epoch_that_is_broken_off_is_followed_by_a_whole_new_one(dataset: PtychoDataset, workers: int) -> None:
    whole = TensorDictDataLoader(dataset, 8, shuffle=True, num_workers=workers)
    epochs = [groups_of(whole) for _ in range(2)]
    broken = TensorDictDataLoader(dataset, 8, shuffle=True, num_workers=workers)
    for batch in broken:
        assert batch.groups.tolist() == epochs[0][0]
        break
    assert groups_of(broken) == epochs[1]


def test_an_epoch_that_was_restored_and_is_named_again_starts_at_its_beginning(dataset: PtychoDataset) -> None:
    loader = TensorDictDataLoader(dataset, 8, shuffle=True)
    expected = groups_of(loader)
    state = loader.state_dict() | {"epoch": 0, "batch": 3}
    loader.load_state_dict(state)
    assert next(iter(loader)).groups.tolist() == expected[3]
    loader.set_epoch(0)
    assert groups_of(loader) == expected


def test_an_epoch_can_be_named(dataset: PtychoDataset) -> None:
    loader = TensorDictDataLoader(dataset, 8, shuffle=True)
    epochs = [groups_of(loader) for _ in range(4)]
    loader.set_epoch(2)
    assert groups_of(loader) == epochs[2]
    assert groups_of(loader) == epochs[3]


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_an_error_in_a_worker_reaches_the_consumer(
    dataset: PtychoDataset, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    gather = dataset.gather

    def failing(groups: torch.Tensor, images: torch.Tensor, *, single_thread: bool) -> PtychoBatch:
        if 20 in groups:
            raise ValueError("a page that cannot be read")
        # A worker that brought threads of its own would slow down whoever trains.
        assert single_thread is (workers > 0)
        return gather(groups, images, single_thread=single_thread)

    monkeypatch.setattr(dataset, "gather", failing)
    threads = threading.active_count()
    epoch = iter(TensorDictDataLoader(dataset, 8, num_workers=workers))
    assert [next(epoch).groups[0].item() for _ in range(2)] == [0, 8]
    with pytest.raises(ValueError, match="a page that cannot be read"):
        next(epoch)
    assert list(epoch) == []
    assert threading.active_count() == threads


def test_workers_end_with_the_epoch(dataset: PtychoDataset) -> None:
    threads = threading.active_count()
    loader = TensorDictDataLoader(dataset, 4, num_workers=3)
    epoch = iter(loader)
    next(epoch)
    assert threading.active_count() > threads
    epoch.close()  # type: ignore[attr-defined]
    assert threading.active_count() == threads
    groups_of(loader)
    assert threading.active_count() == threads


def test_workers_gather_no_more_than_a_few_batches_ahead(
    dataset: PtychoDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken, gather = list[int](), dataset.gather

    def counted(groups: torch.Tensor, images: torch.Tensor, *, single_thread: bool) -> PtychoBatch:
        taken.append(len(groups))
        return gather(groups, images, single_thread=single_thread)

    monkeypatch.setattr(dataset, "gather", counted)
    epoch = iter(TensorDictDataLoader(dataset, 1, num_workers=2))
    next(epoch)
    epoch.close()  # type: ignore[attr-defined] - a generator, which waits for its workers here
    assert 1 <= len(taken) <= 2 * 2 + 1


@pytest.mark.parametrize("num_workers", [0, 2])
def test_memory_is_used_again_but_never_while_a_view_of_it_lives(dataset: PtychoDataset, num_workers: int) -> None:
    loader = TensorDictDataLoader(dataset, 5, num_workers=num_workers)
    places = [batch.images.data_ptr() for batch in loader]
    assert len(set(places)) < len(places)
    corners = [(batch.groups, batch.images[0, 0, :2]) for batch in loader]  # Each keeps its batch's memory.
    for groups, corner in corners:
        assert torch.equal(corner, dataset[groups].images[0, 0, :2])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 0}, "batch_size = 0"),
        ({"num_workers": -1}, "num_workers = -1"),
        ({"rank": 2, "world_size": 2}, "rank = 2 of world_size = 2"),
        ({"rank": -1, "world_size": 2}, "rank = -1"),
        ({"rank": 0}, "world_size = None"),
        ({"world_size": 2}, "rank = None"),
        ({"world_size": 0, "rank": 0}, "world_size = 0"),
        ({"seed": -1}, "seed = -1"),
        ({"seed": 2**32}, "seed = 4294967296"),
    ],
)
def test_a_loader_that_cannot_be_is_refused(dataset: PtychoDataset, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        TensorDictDataLoader(dataset, **options)


# --------------------------------------------------------------------------------------------------- data settings


@pytest.fixture
def data_config() -> Iterator[DataConfig]:
    """The settings of the process, put back afterwards."""
    before = dataclasses.asdict(DataConfig().snapshot())
    DataConfig().set_settings(data_config_default)
    yield DataConfig()
    DataConfig().set_settings(before)


def test_there_is_one_set_of_data_settings(data_config: DataConfig) -> None:
    assert DataConfig() is data_config
    data_config.add("K", 9)
    assert DataConfig().get("K") == 9
    assert DataConfig().snapshot().K == 9


def test_a_snapshot_stays_as_it_was_taken(data_config: DataConfig) -> None:
    snapshot = data_config.snapshot()
    data_config.add("K", 9)
    assert snapshot.K == 6
    with pytest.raises(dataclasses.FrozenInstanceError):
        snapshot.K = 5  # type: ignore[misc]


def test_settings_are_replaced_as_a_whole(data_config: DataConfig) -> None:
    data_config.add("K", 9)
    given_settings = {"gridsize": 3, "N": 128}
    data_config.set_settings(given_settings)
    assert (data_config.get("gridsize"), data_config.get("N"), data_config.get("K")) == (3, 128, 6)
    assert given_settings == {"gridsize": 3, "N": 128}
    given_settings["N"] = 32
    assert data_config.get("N") == 128


def test_an_unknown_setting_gets_the_nearest_one_that_exists(data_config: DataConfig) -> None:
    for act in (
        lambda: data_config.add("nsubsample", 2),
        lambda: data_config.get("n_sub_sample"),
        lambda: data_config.set_settings({"N": 128, "n_subsamples": 2}),
    ):
        with pytest.raises(ConfigError, match="did you mean 'n_subsample'"):
            act()
    assert data_config.snapshot() == DataSettings()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"N": 63}, "even number"),
        ({"N": 0}, "expected 2 or more"),
        ({"N": 64.0}, "expected int"),
        ({"K": 0}, "expected 1 or more"),
        ({"gridsize": True}, "expected int"),
        ({"n_subsample": 0}, "expected 1 or more"),
        ({"group_sampler": "nearest"}, "with_centre, without_centre, reference"),
        ({"group_sampler": ["reference"]}, "choose one of"),
        ({"group_seed": -1}, "2³² − 1"),
        ({"group_seed": 2**32}, "2³² − 1"),
        ({"n_groups": 5}, "belongs to group_sampler = 'reference'"),
        ({"sequential_sampling": True}, "belongs to group_sampler = 'reference'"),
        ({"enable_oversampling": True}, "belongs to group_sampler = 'reference'"),
        ({"neighbor_pool_size": 7}, "belongs to group_sampler = 'reference'"),
        ({"group_sampler": "reference", "n_subsample": 2}, "takes n_groups"),
        ({"group_sampler": "reference", "n_groups": 0}, "expected 1 or more, or None"),
        ({"nphotons": 0.0}, "above 0"),
        ({"nphotons": math.inf}, "not a finite number"),
        ({"normalize": 1}, "expected bool"),
        ({"detector_bin": 0}, "expected 1 or more"),
        ({"detector_flip": "sideways"}, "none, vertical, horizontal, both"),
        ({"detector_centre_row_px": -1}, "expected 0 or more"),
        ({"position_source": "guess"}, "corrected, nominal"),
    ],
)
def test_a_value_that_does_not_fit_changes_nothing(data_config: DataConfig, wrong: dict[str, Any], words: str) -> None:
    data_config.set_settings({"N": 32, "K": 9})
    before = data_config.snapshot()
    given_settings = dict(wrong)
    with pytest.raises(ConfigError, match=words):
        data_config.set_settings(given_settings)
    assert given_settings == wrong
    if len(wrong) == 1:
        ((name, value),) = wrong.items()
        with pytest.raises(ConfigError, match=words):
            data_config.add(name, value)
    assert data_config.snapshot() is before


def test_the_defaults_are_listed_and_cannot_be_changed(data_config: DataConfig) -> None:
    assert dict(data_config_default) == dataclasses.asdict(DataSettings())
    with pytest.raises(TypeError):
        data_config_default["N"] = 128  # type: ignore[index]
