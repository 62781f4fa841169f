"""Groups of neighbouring patterns: the reference's number for number, and what holds for every sampler."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import KDTree, cKDTree

from ptycho_torch.config_params import DataSettings
from ptycho_torch.data import grouping
from ptycho_torch.data.grouping import group_file, group_scan, reference_groups
from ptycho_torch.dset_loader_pt_mmap import PtychoDataset
from ptycho_torch.errors import DataContractError
from tests.support.scan_files import write_scan

# ------------------------------------------------------------------------------------------------- the reference


@pytest.fixture(scope="module")
def recorded(shared: Path) -> dict[str, np.ndarray]:
    with np.load(shared / "goldens" / "groups_1.npz", allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def reference_settings(case: dict[str, Any]) -> DataSettings:
    """Our settings for the arguments that the reference was called with."""
    values = {name: value for name, value in case.items() if name not in ("nsamples", "seed")}
    return DataSettings(group_sampler="reference", n_groups=case["nsamples"], group_seed=case["seed"], **values)


@pytest.fixture(scope="module")
def real_datasets(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, PtychoDataset]:
    with np.load(shared / "goldens" / "groups_1.npz", allow_pickle=False) as file:
        cases = json.loads(str(file["cases"]))
    scan = shared / "data" / "siemens_star_n64.npz"
    # One folder for all: each case changes the groups alone, and whoever has an older map open keeps it.
    folder = tmp_path_factory.mktemp("map")
    return {
        number: PtychoDataset(scan, data_dir=folder, settings=reference_settings(case))
        for number, case in enumerate(cases)
    }


@pytest.mark.parametrize("number", range(6))
def test_groups_are_those_of_the_reference_index_for_index(recorded: dict[str, np.ndarray], number: int) -> None:
    case = json.loads(str(recorded["cases"]))[number]
    positions = np.stack([recorded["xcoords"], recorded["ycoords"]], axis=1)
    np.testing.assert_array_equal(group_scan(positions, reference_settings(case)), recorded[f"{number}/nn_indices"])


@pytest.mark.parametrize("number", range(6))
def test_coordinates_of_groups_are_those_of_the_reference(
    recorded: dict[str, np.ndarray], real_datasets: dict[int, PtychoDataset], number: int
) -> None:
    batch = real_datasets[number][:]
    np.testing.assert_array_equal(batch.indices.numpy(), recorded[f"{number}/nn_indices"])
    theirs_relative = recorded[f"{number}/coords_relative"].transpose(0, 3, 1, 2)  # (B, C, 1, 2)
    # float64 positions of some hundred pixels, rounded once to float32 after the difference.
    np.testing.assert_allclose(batch.coords.numpy(), theirs_relative, rtol=1e-6, atol=1e-12)
    theirs_centres = recorded[f"{number}/coords_offsets"].transpose(0, 3, 1, 2)  # (B, 1, 1, 2)
    np.testing.assert_allclose(batch.centres.numpy(), theirs_centres, rtol=1e-14)


@pytest.mark.parametrize("number", range(6))
def test_normalised_images_are_those_of_the_reference(
    recorded: dict[str, np.ndarray], real_datasets: dict[int, PtychoDataset], number: int
) -> None:
    batch = real_datasets[number][:]
    # Both sides sum float32 amplitudes; their orders of summation differ.
    np.testing.assert_allclose(batch.scale.numpy(), recorded[f"{number}/scale"], rtol=1e-6)
    images = batch.images.numpy().astype(np.float64)
    ours = [images.sum(), np.square(images).sum(), images[-1, -1, 3, 5]]
    np.testing.assert_allclose(ours, recorded[f"{number}/X_checksum"], rtol=1e-6)


def raster(side: int, step: float = 8.0) -> np.ndarray:
    """Positions on an exact raster, where most points have several that are equally near."""
    return np.stack(np.meshgrid(np.arange(side) * step, np.arange(side) * step), axis=-1).reshape(-1, 2)


def neighbours_of_reference(positions: np.ndarray, K: int) -> np.ndarray:
    """The K + 1 points that the reference finds for each point: SciPy's cKDTree as it comes, with leaves of 16."""
    return np.asarray(cKDTree(positions, leafsize=16).query(positions, k=K + 1)[1])


@pytest.mark.parametrize(("side", "K"), [(15, 4), (15, 6), (20, 6), (7, 11)])
def test_of_equally_near_points_those_of_the_reference_are_taken(side: int, K: int) -> None:
    positions = raster(side)
    draw = np.random.RandomState(45)
    seeds = draw.choice(side**2, side, replace=False)
    expected = [draw.choice(neighbours_of_reference(positions, K)[seed, 1:], 4, replace=False) for seed in seeds]
    np.testing.assert_array_equal(reference_groups(positions, C=4, K=K, n_groups=side, seed=45), expected)
    # The test is one of ties: a tree of other leaves finds other points.
    other = cKDTree(positions, leafsize=10).query(positions, k=K + 1)[1]
    assert (np.sort(other, axis=1) != np.sort(neighbours_of_reference(positions, K), axis=1)).any()


@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize("n_groups", [40, 300])
def test_oversampling_takes_its_seed_points_as_the_reference_does(sequential: bool, n_groups: int) -> None:
    positions = np.random.default_rng(0).uniform(0, 60, (36, 2))
    draw, needed = np.random.RandomState(7), 2 * math.ceil(n_groups / math.comb(5, 4))
    # All points stand in order and nothing is drawn for them; in sequence the first ones do.
    seeds = np.arange(min(needed, 36)) if sequential or needed >= 36 else draw.choice(36, needed, replace=False)
    found = [itertools.combinations(neighbours_of_reference(positions, 5)[seed, 1:], 4) for seed in seeds]
    pool = np.array(list(itertools.chain.from_iterable(found))[: 2 * n_groups])
    expected = pool[draw.choice(len(pool), n_groups, replace=len(pool) < n_groups)]
    ours = reference_groups(positions, C=4, K=5, n_groups=n_groups, seed=7, sequential=sequential, oversampling=True)
    np.testing.assert_array_equal(ours, expected)


def test_oversampling_leaves_the_point_out_where_enough_others_are_there() -> None:
    positions = np.random.default_rng(0).random((5, 2))
    groups = reference_groups(positions, C=4, K=9, n_groups=8, seed=1, oversampling=True)
    # Each group is all points but its own, and two points were drawn.
    assert {10 - sum(row) for row in groups.tolist()} <= set(np.random.RandomState(1).choice(5, 2, replace=False))
    everyone = reference_groups(positions[:4], C=4, K=9, n_groups=8, seed=1, oversampling=True)
    np.testing.assert_array_equal(np.sort(everyone, axis=1), np.tile(np.arange(4), (8, 1)))


def test_the_mean_of_a_group_is_rounded_as_the_reference_rounds_it(tmp_path: Path) -> None:
    path = tmp_path / "scan.npz"
    members = write_scan(path, M=30, N=8, seed=0)
    chosen = DataSettings(N=8, gridsize=3, K=10, group_sampler="reference")
    batch = PtychoDataset(path, data_dir=tmp_path / "map", settings=chosen)[:]
    for axis, key in enumerate(("xcoords", "ycoords")):
        inside = members[key][batch.indices.numpy()]  # (L, C), added up in NumPy's order of a contiguous axis
        centres = np.mean(inside, axis=1)
        np.testing.assert_array_equal(batch.centres.numpy()[:, 0, 0, axis], centres)
        offsets = (centres[:, None] - inside).astype(np.float32)
        np.testing.assert_array_equal(batch.coords.numpy()[:, :, 0, axis], offsets)


def test_neighbours_are_those_of_the_corrected_positions_whichever_are_trained_on(tmp_path: Path) -> None:
    path = tmp_path / "scan.npz"
    members = write_scan(path, M=30, N=8, seed=0)
    nominal = np.random.default_rng(5).uniform(0, 50, (2, 30))
    members = write_scan(path, members | {"xcoords_start": nominal[0], "ycoords_start": nominal[1]})
    corrected = np.stack([members["xcoords"], members["ycoords"]], axis=1)
    for sampler, searched in (("reference", corrected), ("with_centre", nominal.T)):
        chosen = DataSettings(N=8, group_sampler=sampler, position_source="nominal")  # type: ignore[arg-type]
        batch = PtychoDataset(path, data_dir=tmp_path / "map", settings=chosen)[:]
        np.testing.assert_array_equal(batch.indices.numpy(), group_scan(searched, chosen))
        np.testing.assert_allclose(batch.centres.numpy()[:, 0, 0], nominal.T[batch.indices.numpy()].mean(axis=1))


# ---------------------------------------------------------------------------------------------- every sampler


@st.composite
def scans(draw: st.DrawFn) -> tuple[np.ndarray, DataSettings]:
    """Positions on a coarse lattice, so that ties and shared places are common, and settings that fit them."""
    gridsize = draw(st.integers(1, 3))
    sampler: Any = draw(st.sampled_from(["with_centre", "without_centre", "reference"]))
    C = gridsize**2
    M = draw(st.integers(C + 1, C + 25))
    places = draw(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=M, max_size=M))
    K = draw(st.integers(C, C + 8))
    drawn = C - 1 if sampler == "with_centre" else C
    subsets = 1 if C == 1 else math.comb(min(K, M - 1), drawn)
    n_subsample = 1 if sampler == "reference" else draw(st.integers(1, min(subsets, 6)))
    seed = draw(st.integers(0, 2**32 - 1))
    found = DataSettings(
        gridsize=gridsize, K=K, n_subsample=n_subsample, group_sampler=sampler, group_seed=seed
    )  # fmt: skip
    return np.array(places, np.float64) / 4, found


@given(scans())
@settings(max_examples=150, deadline=None)
def test_a_row_holds_different_points_of_the_scan(drawn: tuple[np.ndarray, DataSettings]) -> None:
    positions, wanted = drawn
    groups = group_scan(positions, wanted)
    assert groups.shape == (len(positions) * wanted.n_subsample, wanted.C)
    assert groups.min() >= 0
    assert groups.max() < len(positions)
    assert (np.diff(np.sort(groups, axis=1), axis=1) > 0).all()


@given(scans())
@settings(max_examples=150, deadline=None)
def test_members_are_among_the_nearest_neighbours_of_the_point(drawn: tuple[np.ndarray, DataSettings]) -> None:
    positions, wanted = drawn
    if wanted.group_sampler == "reference":
        wanted = dataclasses.replace(wanted, group_sampler="without_centre")
    if wanted.C == 1 or math.comb(min(wanted.K, len(positions) - 1), wanted.C) == 0:
        return
    groups = group_scan(positions, wanted).reshape(len(positions), wanted.n_subsample, wanted.C)
    with_centre = wanted.group_sampler == "with_centre"
    for point, rows in enumerate(groups):
        distance = np.square(positions - positions[point]).sum(axis=1)
        farthest = np.sort(np.delete(distance, point))[: wanted.K][-1]
        for row in rows:
            others = row[1:] if with_centre else row
            assert not with_centre or row[0] == point
            assert point not in others
            assert (distance[others] <= farthest).all()
            assert (np.diff(distance[others]) >= 0).all()
        assert len({tuple(sorted(row)) for row in rows}) == wanted.n_subsample


@given(scans())
@settings(max_examples=50, deadline=None)
def test_the_seed_decides_the_groups(drawn: tuple[np.ndarray, DataSettings]) -> None:
    positions, wanted = drawn
    np.testing.assert_array_equal(group_scan(positions, wanted), group_scan(positions.copy(), wanted))


@pytest.mark.parametrize("sampler", ["with_centre", "without_centre", "reference"])
def test_another_seed_gives_other_groups(sampler: Any) -> None:
    positions = np.random.default_rng(0).uniform(0, 50, (40, 2))
    first, second = (
        group_scan(positions, DataSettings(group_sampler=sampler, K=8, group_seed=seed)) for seed in (1, 2)
    )
    # Of 56 or 70 subsets two seeds choose the same one now and then, and not at most points.
    assert (np.sort(first, axis=1) != np.sort(second, axis=1)).any(axis=1).mean() > 0.8


@pytest.mark.parametrize(("sampler", "drawn"), [("with_centre", 3), ("without_centre", 4)])
def test_as_many_groups_as_there_are_subsets_reach_every_subset(sampler: Any, drawn: int) -> None:
    positions = np.random.default_rng(3).uniform(0, 50, (30, 2))
    K, total = 6, math.comb(6, drawn)
    groups = group_scan(positions, DataSettings(K=K, n_subsample=total, group_sampler=sampler))
    for point, rows in enumerate(groups.reshape(30, total, 4)):
        distance = np.hypot(*(positions - positions[point]).T)
        neighbours = np.argsort(distance)[1 : K + 1]
        expected = {frozenset(subset) for subset in itertools.combinations(neighbours, drawn)}
        assert {frozenset(row[4 - drawn :]) for row in rows} == expected


def test_rows_stand_in_scan_order() -> None:
    positions = np.random.default_rng(0).uniform(0, 50, (20, 2))
    groups = group_scan(positions, DataSettings(n_subsample=3))
    np.testing.assert_array_equal(groups[:, 0], np.repeat(np.arange(20), 3))


def test_scans_beyond_one_block_of_points_have_the_groups_of_their_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grouping, "_POINTS_AT_ONCE", 7)
    positions = np.random.default_rng(0).uniform(0, 50, (30, 2))
    groups = group_scan(positions, DataSettings(K=3, n_subsample=1))
    # K = C − 1 leaves nothing to draw: the three nearest, whatever the block.
    distance = np.hypot(*(positions[:, None] - positions).transpose(2, 0, 1))
    np.testing.assert_array_equal(groups, np.argsort(distance, axis=1)[:, :4])


def test_patterns_that_all_share_one_place_make_groups() -> None:
    for sampler in ("with_centre", "without_centre"):
        groups = group_scan(np.zeros((20, 2)), DataSettings(K=5, n_subsample=2, group_sampler=sampler))
        assert all(len(set(row)) == 4 for row in groups)
        points = np.repeat(np.arange(20), 2)
        assert ((groups == points[:, None]).sum(axis=1) == (sampler == "with_centre")).all()


def test_a_scan_of_c_points_is_one_set_of_groups() -> None:
    positions = np.array([[0.0, 0], [1, 0], [0, 3], [7, 7]])
    groups = group_scan(positions, DataSettings())
    np.testing.assert_array_equal(np.sort(groups, axis=1), np.tile(np.arange(4), (4, 1)))
    np.testing.assert_array_equal(groups[:, 0], np.arange(4))


@pytest.mark.parametrize("sampler", ["with_centre", "without_centre", "reference"])
def test_fewer_points_than_a_group_holds_are_refused(sampler: Any) -> None:
    with pytest.raises(DataContractError) as caught:
        group_scan(np.random.default_rng(0).random((3, 2)), DataSettings(group_sampler=sampler))
    assert caught.value.clause == "GROUP-01"


@pytest.mark.parametrize(
    "wanted",
    [
        DataSettings(K=2),
        DataSettings(K=3, n_subsample=2),
        DataSettings(K=3, group_sampler="without_centre"),
        DataSettings(K=6, n_subsample=16, group_sampler="without_centre"),
        DataSettings(gridsize=1, n_subsample=2),
        DataSettings(K=3, group_sampler="reference"),
        DataSettings(K=6, group_sampler="reference", n_groups=31),
        DataSettings(K=6, group_sampler="reference", n_groups=31, enable_oversampling=True, neighbor_pool_size=3),
        # Oversampling is allowed here but not needed, so K decides and the pool does not.
        DataSettings(K=2, group_sampler="reference", n_groups=10, enable_oversampling=True, neighbor_pool_size=8),
    ],
    ids=str,
)
def test_more_groups_than_there_are_is_refused(wanted: DataSettings) -> None:
    with pytest.raises(DataContractError) as caught:
        group_scan(np.random.default_rng(0).random((30, 2)), wanted)
    assert caught.value.clause == "GROUP-02"


def test_a_small_scan_counts_the_neighbours_that_are_there() -> None:
    with pytest.raises(DataContractError, match=r"K = 4 of 5 points"):
        group_scan(np.random.default_rng(0).random((5, 2)), DataSettings(K=50, n_subsample=5))


def test_a_pool_smaller_than_a_group_does_not_matter_where_nothing_is_oversampled() -> None:
    positions = np.random.default_rng(0).random((30, 2))
    plain = reference_groups(positions, C=4, K=6, n_groups=30, seed=1)
    allowed = reference_groups(positions, C=4, K=6, n_groups=30, seed=1, oversampling=True, pool_size=3)
    np.testing.assert_array_equal(plain, allowed)


def test_the_reference_counts_the_point_itself_where_there_are_no_more_than_k_points() -> None:
    # REF-08: the nearest of the points found is left out only where more than K are there.
    positions = np.random.default_rng(0).random((5, 2))
    everyone = reference_groups(positions, C=5, K=5, n_groups=5, seed=1)
    np.testing.assert_array_equal(np.sort(everyone, axis=1), np.tile(np.arange(5), (5, 1)))
    others = reference_groups(positions, C=4, K=4, n_groups=5, seed=1)
    assert (others != np.arange(5)[:, None]).all()


def test_oversampled_groups_are_different_subsets_until_there_are_no_more() -> None:
    positions = np.random.default_rng(0).random((30, 2))
    groups = reference_groups(positions, C=4, K=7, n_groups=200, seed=1, oversampling=True)
    assert groups.shape == (200, 4)
    assert all(len(set(row)) == 4 for row in groups)
    few = reference_groups(positions, C=4, K=4, n_groups=100, seed=1, oversampling=True)
    # 30 points with one subset each: only drawing with replacement gives 100.
    assert few.shape == (100, 4)
    assert len(np.unique(few, axis=0)) <= 30


# ------------------------------------------------------------------------------------------------------- draws


@pytest.mark.parametrize(("K", "size"), [(1, 0), (1, 1), (5, 2), (7, 3), (8, 8), (9, 4), (12, 1)])
def test_ranks_are_one_to_one_with_subsets(K: int, size: int) -> None:
    ranks = np.arange(math.comb(K, size))
    subsets = grouping._subset(ranks, K, size)
    assert {tuple(subset) for subset in subsets.tolist()} == set(itertools.combinations(range(K), size))
    assert len(subsets) == math.comb(K, size)


def test_subsets_of_nearly_all_of_many_neighbours_can_be_drawn() -> None:
    # 5050 subsets, while 101 choose 50 is far beyond 64 bits.
    ranks = np.array([0, 1, 2500, math.comb(101, 99) - 1])
    subsets = grouping._subset(ranks, 101, 99)
    assert len({tuple(subset) for subset in subsets.tolist()}) == 4
    assert (np.diff(subsets, axis=1) > 0).all()
    np.testing.assert_array_equal(subsets[-1], np.arange(2, 101))
    # The rank in colexicographic order, in whole numbers of any size.
    found = [sum(math.comb(element, place + 1) for place, element in enumerate(row)) for row in subsets.tolist()]
    assert found == ranks.tolist()


def test_more_subsets_than_64_bits_count_are_refused() -> None:
    with pytest.raises(DataContractError, match="fewer than 2⁶²"):
        group_scan(np.random.default_rng(0).random((200, 2)), DataSettings(gridsize=7, K=120))


@given(st.integers(1, 40), st.data())
def test_ranks_of_one_point_are_different_and_in_range(total: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, total))
    ranks = grouping._distinct_ranks(np.random.RandomState(data.draw(st.integers(0, 99))), 7, count, total)
    assert ranks.min() >= 0
    assert ranks.max() < total
    assert (np.diff(np.sort(ranks, axis=1), axis=1) > 0).all()


@pytest.mark.parametrize(("total", "count"), [(6, 2), (6, 3), (5, 4), (10, 1)])
def test_every_set_of_ranks_is_equally_likely(total: int, count: int) -> None:
    sets = {subset: number for number, subset in enumerate(itertools.combinations(range(total), count))}
    draws = 20000
    ranks = np.sort(grouping._distinct_ranks(np.random.RandomState(0), draws, count, total), axis=1)
    seen = np.bincount([sets[tuple(row)] for row in ranks.tolist()], minlength=len(sets))
    expected = draws / len(sets)
    chi_square = (np.square(seen - expected) / expected).sum()
    freedom = len(sets) - 1
    # Mean f and variance 2f of χ²; six deviations are never seen by chance, and the seed is fixed.
    assert chi_square < freedom + 6 * math.sqrt(2 * freedom)


def test_subsets_are_drawn_evenly_around_points() -> None:
    positions, K = np.random.default_rng(0).uniform(0, 50, (4000, 2)), 6
    groups = group_scan(positions, DataSettings(K=K))
    _, neighbours = KDTree(positions).query(positions, k=K + 1)
    chosen = (neighbours[:, 1:, None] == groups[:, None, 1:]).any(axis=2)  # (M, K)
    counts = np.unique(chosen @ 2 ** np.arange(K), return_counts=True)[1]
    assert len(counts) == math.comb(K, 3)
    # χ² of 19 degrees of freedom, bounded as above.
    expected = len(positions) / len(counts)
    assert (np.square(counts - expected) / expected).sum() < 19 + 6 * math.sqrt(2 * 19)


@pytest.mark.parametrize(("indices", "told"), [([0, 0, 0], False), ([0, 0, 0, 7, 7, 7], True)])
def test_a_scan_too_small_is_called_by_its_number_where_the_file_has_others(indices: list[int], told: bool) -> None:
    scan: Any = types.SimpleNamespace(path=Path("scan.npz"), scan_index=np.array(indices))
    with pytest.raises(DataContractError, match="3 patterns") as caught:
        group_file(scan, np.zeros((len(indices), 2)), DataSettings(N=64, gridsize=2))
    assert ("of scan_index 0" in str(caught.value)) is told
