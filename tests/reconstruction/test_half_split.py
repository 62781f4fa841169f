"""Two halves of the groups: which pattern is where, what they share, and that the whole is their sum."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ptycho_torch.reconstruction import half_split
from ptycho_torch.reconstruction.half_split import covered_square, half_of_groups, split_patterns
from ptycho_torch.reconstruction.reassembly import ExperimentStitcher, HalfStitcher, Stitched, Weighting

N, CROP = 16, 12


def test_halves_of_patterns_are_random_equal_and_the_same_every_time() -> None:
    halves = split_patterns(1001)
    assert halves.sum() == 500
    np.testing.assert_array_equal(halves, split_patterns(1001))
    # No order of the scan is in it: neither blocks nor every other one.
    assert 150 < (halves[1:] == halves[:-1]).sum() < 850
    assert 400 < (halves[:-2] == halves[2:]).sum() < 600


def test_a_group_is_in_the_half_of_most_of_its_patterns() -> None:
    groups = np.array([[0, 0, 0, 1], [1, 1, 1, 0], [1, 0, 0, 1], [0, 1, 1, 0]], bool)
    assert half_of_groups(groups).tolist() == [False, True, True, False]
    assert half_of_groups(np.array([[True], [False]])).tolist() == [True, False]


def test_the_square_is_a_largest_one_and_covered() -> None:
    covered = np.zeros((90, 140), bool)
    covered[5:60, 3:50] = True
    covered[10:85, 60:131] = True
    covered[40, 95] = covered[12, 70] = False
    rows, columns = covered_square(covered) or (slice(0), slice(0))
    side = rows.stop - rows.start
    assert side == columns.stop - columns.start == 47
    assert covered[rows, columns].all()
    assert covered_square(covered[:30]) is None
    assert covered_square(np.zeros((50, 50), bool)) is None


def test_a_large_square_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(half_split, "MOST_SIDE_PX", 40)
    rows, columns = covered_square(np.ones((100, 90), bool)) or (slice(0), slice(0))
    assert (rows.stop - rows.start, columns.stop - columns.start) == (39, 39)


# Stitching.


def patches_of(noise: float, *, C: int = 1, count: int = 1200, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Draw patches of one object, each with noise of its own."""
    draw = np.random.default_rng(seed)
    image = draw.standard_normal((70, 70)) + 1j * draw.standard_normal((70, 70))
    places = draw.integers(0, 70 - N, (count, 2))
    patches = np.stack([image[y : y + N, x : x + N] for x, y in places])
    patches = patches + noise * (draw.standard_normal(patches.shape) + 1j * draw.standard_normal(patches.shape))
    groups = np.stack([(np.arange(count) + 2 * step) % count for step in range(C)], axis=1)
    experiments = np.arange(count) % 2
    arrays = (patches, (places + N / 2).astype(float), experiments, groups)
    return tuple(map(torch.from_numpy, arrays))


def stitch(noise: float, weighting: Weighting = "smooth", C: int = 1, at_once: int = 137) -> dict[int, Stitched]:
    patches, positions, experiments, groups = patches_of(noise, C=C)

    def stitcher() -> ExperimentStitcher:
        return ExperimentStitcher({e: positions[experiments == e] for e in (0, 1)}, N, CROP, weighting)

    both = HalfStitcher(stitcher(), stitcher(), torch.from_numpy(split_patterns(len(patches))))
    for first in range(0, len(patches), at_once):
        some = slice(first, first + at_once)
        both.add(patches[some], positions[some], experiments[some], groups[some])
    return both.results()


@pytest.mark.parametrize("weighting", ["smooth", "uniform"])
def test_the_whole_is_that_of_one_stitcher(weighting: Weighting) -> None:
    patches, positions, experiments, _ = patches_of(0.3)
    whole = ExperimentStitcher({e: positions[experiments == e] for e in (0, 1)}, N, CROP, weighting)
    whole.add(patches, positions, experiments)
    for experiment, found in stitch(0.3, weighting).items():
        expected = whole.results()[experiment]
        assert found.origin_px == expected.origin_px
        for name in ("object", "coverage", "disagreement"):
            torch.testing.assert_close(getattr(found, name), getattr(expected, name))


def test_halves_without_noise_agree_and_halves_of_noise_do_not() -> None:
    for found in stitch(0.0).values():
        split = found.half_split
        assert split is not None
        assert split.rings is not None
        assert sum(split.groups) == 600
        assert split.groups[0] > 200 < split.groups[1]
        assert split.patterns_in_both == 0
        assert split.rings.half_bit_resolution_px == 2
        np.testing.assert_allclose(split.rings.curve[2:20], 1, atol=1e-6)
    for found in stitch(30.0).values():
        assert found.half_split is not None
        assert found.half_split.rings is not None
        assert math.isnan(found.half_split.rings.half_bit_resolution_px)


def test_patterns_of_both_halves_are_told() -> None:
    halves = split_patterns(1200)
    _, _, experiments, groups = patches_of(0, C=3)
    for experiment, found in stitch(0.1, C=3).items():
        mine = groups[experiments == experiment].numpy()
        which = half_of_groups(halves[mine])
        first, second = (set(mine[which == half].ravel().tolist()) for half in (False, True))
        assert found.half_split is not None
        assert 0.2 < found.half_split.patterns_in_both < 1
        assert found.half_split.patterns_in_both == pytest.approx(len(first & second) / len(first | second))


def test_halves_that_share_too_little_are_not_compared() -> None:
    patches, positions, experiments, groups = (each[:2] for each in patches_of(0.1))
    stitchers = [ExperimentStitcher({0: positions}, N, CROP, "smooth") for _ in range(2)]
    both = HalfStitcher(*stitchers, torch.tensor([False, False]))
    both.add(patches, positions, 0 * experiments, groups)
    (found,) = both.results().values()
    assert found.half_split is not None
    assert found.half_split.rings is None
    assert (found.half_split.groups, found.half_split.side_px) == ((2, 0), 0)
