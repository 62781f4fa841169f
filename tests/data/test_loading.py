"""Batches as training takes them: whole epochs, in order or shuffled, split and resumed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np
import pytest
import torch

from conformance.judge.agreement import FLOAT32, assert_agrees
from ptycho_torch.config_params import TrainingSettings
from ptycho_torch.dset_loader_pt_mmap import GroupSampler, PtychoBatch, PtychoDataset, TensorDictDataLoader
from ptycho_torch.training.data_module import loaders
from tests.support.scan_scenes import PLAIN, draw_unlike_scans, found_tables, write_scans

SIZE = 5


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PtychoDataset:
    """66 groups of three scans, with probes of 1, 2 and 3 modes."""
    root = tmp_path_factory.mktemp("loading")
    scans = write_scans(root / "scans", draw_unlike_scans())
    return PtychoDataset(scans, data_dir=root / "map", settings=dataclasses.replace(PLAIN, n_subsample=2))


@pytest.fixture(scope="module")
def one_scan(tmp_path_factory: pytest.TempPathFactory) -> PtychoDataset:
    """A scan in a map of its own, with a probe of one mode."""
    root = tmp_path_factory.mktemp("one")
    scans = write_scans(root / "scans", {"a": draw_unlike_scans()["a_second"]})
    return PtychoDataset(scans, data_dir=root / "map", settings=PLAIN)


def order(batches: Iterable[PtychoBatch]) -> np.ndarray:
    """Return the numbers of the groups in the order in which batches have them."""
    return np.concatenate([batch.groups.numpy() for batch in batches])


def lengths(groups: int, size: int) -> list[int]:
    return [size] * (groups // size) + [groups % size] * bool(groups % size)


@pytest.mark.parity_clause("STEP-DATA", "BATCH-01", "BATCH-02", "BATCH-03", "BATCH-04")
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("whose", ["dataset", "one_scan"])
def test_an_epoch_holds_what_the_map_does(whose: str, workers: int, request: pytest.FixtureRequest) -> None:
    dataset: PtychoDataset = request.getfixturevalue(whose)
    table = found_tables(dataset)
    # All batches of an epoch are held: none may be in memory that another was given.
    loader = TensorDictDataLoader(dataset, SIZE, shuffle=True, seed=3, num_workers=workers)
    batches, groups = list(loader), np.concatenate([each.numpy() for each in loader.batch_sampler.batches(0)])
    scan, rows = table["experiment_id"][groups], table["nn_indices"][groups]
    scale = table["scale"][scan].astype(np.float64)
    modes = np.repeat(table["probe"][scan][:, None], 4, axis=1)  # (B, C, modes, N, N)
    right = {
        "images": table["amplitude"][rows] * scale[:, None, None, None],
        "coords": table["coords_relative"][groups][:, :, None],
        "probe": modes[:, :, 0] if modes.shape[2] == 1 else modes,
        "scale": scale,
    }
    # Training takes a batch apart in the same way.
    unpacked = zip(right, zip(*batches, strict=True), strict=True)
    found = {part: np.concatenate([each.numpy() for each in those]) for part, those in unpacked}
    right |= {"groups": groups, "patterns": rows, "good pixels": table["good_pixels"][scan][:, None]}
    found |= {
        "groups": order(batches),
        "patterns": np.concatenate([batch.indices.numpy() for batch in batches]).astype(np.int64),
        "good pixels": np.concatenate([np.asarray(batch.good_pixels) for batch in batches]),
    }
    assert_agrees(right, found, FLOAT32)


@pytest.mark.parity_clause("STEP-DATA")
@pytest.mark.parametrize(("count", "size", "processes"), [(21, 3, 2), (3, 1, 8)], ids=["odd", "fewer than processes"])
def test_the_last_batch_of_several_processes_is_filled_with_the_first_groups(
    count: int, size: int, processes: int
) -> None:
    """None of them waits for the others."""
    groups = np.arange(100, 100 + count)

    def sampler(rank: int, world_size: int, batch: int) -> GroupSampler:
        return GroupSampler(torch.from_numpy(groups), batch, shuffle=True, seed=5, rank=rank, world_size=world_size)

    single = np.concatenate([each.numpy() for each in sampler(0, 1, size * processes)])
    parts = [[each.numpy() for each in sampler(rank, processes, size)] for rank in range(processes)]
    together = np.concatenate([np.concatenate(batches) for batches in zip(*parts, strict=True)])
    np.testing.assert_array_equal(together, np.resize(single, -(-count // processes) * processes))


SPLIT = TrainingSettings(batch_size=6, seed=4, num_workers=2, validation_fraction=0.2, device="cpu")


@pytest.mark.parity_clause("STEP-DATA")
@pytest.mark.parametrize("selection", ["random", "last"])
def test_loaders_of_training_keep_validation_groups_apart(dataset: PtychoDataset, selection: str) -> None:
    settings = dataclasses.replace(SPLIT, validation_selection=selection)
    count, kept = len(dataset), int(np.floor(0.8 * len(dataset)))
    training, validation = loaders(dataset, settings)
    other, other_validation = loaders(dataset, dataclasses.replace(settings, seed=5))
    assert validation is not None
    assert other_validation is not None
    epochs = [list(training) for _ in range(2)]
    first, second = map(order, epochs)
    kept_back = order(validation)
    assert sorted(first) == sorted(second) == np.setdiff1d(np.arange(count), kept_back).tolist()
    for another in (np.asarray(training.batch_sampler.groups), second, order(other)):
        assert not np.array_equal(first, another)
    np.testing.assert_array_equal(first, order(loaders(dataset, settings)[0]))
    np.testing.assert_array_equal(kept_back, order(validation))
    assert [len(batch.groups) for batch in epochs[0]] == lengths(kept, 6)
    assert [len(batch.groups) for batch in validation] == lengths(count - kept, 6)
    assert (training.num_workers, validation.num_workers) == (2, 2)
    if selection == "last":
        assert kept_back.tolist() == order(other_validation).tolist() == list(range(kept, count))
    else:
        assert sorted(kept_back) != list(range(kept, count))
        assert kept_back.tolist() != order(other_validation).tolist()


@pytest.mark.parity_clause("STEP-DATA")
def test_without_a_share_for_validation_all_groups_train(dataset: PtychoDataset) -> None:
    whole, none = loaders(dataset, dataclasses.replace(SPLIT, validation_fraction=0.0))
    assert none is None
    assert sorted(order(whole)) == list(range(len(dataset)))
