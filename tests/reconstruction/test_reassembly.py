"""Whole objects from patches: any batches, any frame, nothing mixed."""

from __future__ import annotations

import doctest
import inspect
import tracemalloc
from typing import get_args

import numpy as np
import pytest
import torch

from conformance.recordings.bundle import RECORDINGS
from conformance.recordings.operations import read_operations
from ptycho_torch import helper
from ptycho_torch.errors import DataContractError
from ptycho_torch.reconstruction import reassembly
from ptycho_torch.reconstruction.reassembly import ExperimentStitcher, Stitched, Stitcher, Weighting

each_weighting = pytest.mark.parametrize("weighting", get_args(Weighting))


def draw_patches(n: int, N: int, seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.standard_normal((n, N, N)) + 1j * rng.standard_normal((n, N, N)))


def draw_positions(n: int, width: float, height: float, seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.uniform(-0.5, 0.5, (n, 2)) * [width, height] + [211.3, -47.8])


def smooth_object(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return an object that bilinear interpolation follows to about 1e-3, unlike in both directions."""
    return torch.polar(1 + 0.3 * torch.cos(x / 17 + y / 29), 0.8 * torch.sin(x / 23) + 0.5 * torch.cos(y / 19 - x / 41))


def stitch(
    patches: torch.Tensor, positions: torch.Tensor, crop: int, weighting: Weighting, batch: int = 10**6
) -> Stitched:
    stitcher = Stitcher(positions, patches.shape[-1], crop, weighting)
    for first in range(0, len(patches), batch):
        stitcher.add(patches[first : first + batch], positions[first : first + batch])
    return stitcher.result()


def two_passes(
    patches: np.ndarray, positions: np.ndarray, crop: int, weighting: str, stitched: Stitched
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return mean, coverage and disagreement from the equations, patch by patch on the whole canvas."""
    n, N, _ = patches.shape
    height, width = stitched.object.shape
    x0, y0 = stitched.origin_px
    weights, values = np.zeros((n, height, width)), np.zeros((n, height, width), complex)
    for k in range(n):
        start = (N - crop) // 2
        lines = []
        for origin, length, centre in ((x0, width, positions[k, 0]), (y0, height, positions[k, 1])):
            u = origin + np.arange(length) - (centre - N / 2 + start)
            tent = np.maximum(0, 1 - np.abs(u[:, None] - np.arange(crop)))  # (length, crop)
            cover = tent.sum(1)
            hann = np.where((u > -0.5) & (u < crop - 0.5), np.sin(np.pi * (u + 0.5) / crop) ** 2, 0)
            lines.append((tent / np.maximum(cover, 1e-300)[:, None], cover if weighting == "uniform" else hann))
        (tent_x, weight_x), (tent_y, weight_y) = lines
        weights[k] = weight_y[:, None] * weight_x
        values[k] = tent_y @ patches[k, start : start + crop, start : start + crop] @ tent_x.T
    total = weights.sum(0)
    safe = np.where(total > 0, total, 1)
    mean = (weights * values).sum(0) / safe
    return mean, total, np.sqrt((weights * abs(values - mean) ** 2).sum(0) / safe)


@pytest.mark.parametrize("crop", [20, 32])
def test_stitching_is_the_reference(crop: int) -> None:
    """The reference computes in float32: its recording is within 2e-5 of the truth."""
    arrays = read_operations(RECORDINGS / "ops_1.npz")
    patches = torch.from_numpy(arrays["stitch.patches"][..., 0])
    positions = torch.from_numpy(arrays["stitch.offsets"].reshape(-1, 2))
    recorded = arrays[f"stitch.out.M{crop}"][..., 0]
    found = reassembly.stitch_patches(patches, positions, crop)
    assert found.dtype == patches.dtype
    np.testing.assert_allclose(found.numpy(), recorded, atol=2e-5 * np.abs(recorded).max(), rtol=0)


@each_weighting
@pytest.mark.parametrize("batch", [1, 16, 64])
def test_batches_do_not_matter(weighting: Weighting, batch: int) -> None:
    patches, positions = draw_patches(150, 16), draw_positions(150, 40, 25)
    whole, parts = (stitch(patches, positions, 12, weighting, size) for size in (150, batch))
    # Patches are added in their order, so that not even the rounding differs.
    torch.testing.assert_close(parts.object, whole.object, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(parts.coverage, whole.coverage, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(parts.disagreement, whole.disagreement, rtol=1e-12, atol=1e-12)
    assert parts.origin_px == whole.origin_px


@each_weighting
@pytest.mark.parametrize(("N", "crop"), [(16, 16), (16, 10), (15, 8), (4, 2)])
def test_sums_in_one_pass_are_the_equations_in_two(weighting: Weighting, N: int, crop: int) -> None:
    patches, positions = draw_patches(40, N), draw_positions(40, 30, 12)
    found = stitch(patches, positions, crop, weighting)
    mean, coverage, disagreement = two_passes(patches.numpy(), positions.numpy(), crop, weighting, found)
    np.testing.assert_allclose(found.coverage, coverage, atol=1e-10)
    # Barely covered pixels amplify rounding; a weight above 1e-3 leaves 1e-16 / 1e-3 · |v|, and the floor 1e-6.
    seen = coverage > 1e-3
    np.testing.assert_allclose(found.object.numpy()[seen], mean[seen], atol=1e-5 if weighting == "uniform" else 1e-10)
    np.testing.assert_allclose(found.disagreement.numpy()[seen], disagreement[seen], atol=1e-6)


def test_coverage_is_known_in_float32_wherever_the_object_is() -> None:
    beside = [0.5 - distance for distance in (1e-15, 1e-11, 1e-5)]
    positions = torch.tensor([beside, beside], dtype=torch.float64).mT
    for position in positions[:, None]:
        found = stitch(torch.ones(1, 8, 8, dtype=torch.complex128), position, 8, "smooth")
        assert torch.equal(found.coverage.float() > 0, found.object != 0)


@each_weighting
def test_equal_patches_agree(weighting: Weighting) -> None:
    positions = draw_positions(60, 30, 30)
    found = stitch(torch.full((60, 16, 16), 3 - 2j, dtype=torch.complex128), positions, 16, weighting)
    seen = found.coverage > 1e-3
    torch.testing.assert_close(found.object[seen], torch.full_like(found.object[seen], 3 - 2j), rtol=1e-5, atol=0)
    assert not found.disagreement.any()
    assert not found.object[found.coverage == 0].any()


def test_no_coverage_is_exactly_zero() -> None:
    positions = torch.tensor([[0.0, 0.0], [40.25, 3.5]])
    for weighting in get_args(Weighting):
        found = stitch(draw_patches(2, 16), positions, 16, weighting)
        gap = found.coverage == 0
        assert gap.sum() > 100
        assert not found.object[gap].any()
        assert not found.disagreement[gap].any()
        assert found.object.isfinite().all()


@pytest.mark.parametrize(("weighting", "tolerance"), [("uniform", 0.03), ("smooth", 0.002)])
def test_patches_cut_from_an_object_give_that_object_in_its_frame(weighting: Weighting, tolerance: float) -> None:
    """Twice bilinear errs by 2 · max |f''| / 8 a direction, 0.002 of 1 here.

    Uniform weights trust the pixel before a border too, which is up to one pixel beside the truth.
    """
    rows, columns = torch.meshgrid(
        torch.arange(140, dtype=torch.float64), torch.arange(220, dtype=torch.float64), indexing="ij"
    )
    positions = torch.from_numpy(np.random.default_rng(3).uniform([40, 40], [180, 100], (200, 2)))
    patches = helper.cut_patches(smooth_object(columns, rows), positions, 32)
    right = stitch(patches, positions, 24, weighting)
    # The offsets' sign is the reference's defect REF-04; canvas and mean position are the same with both.
    mirrored = stitch(patches, 2 * positions.mean(0) - positions, 24, weighting)
    errors = []
    for found in (right, mirrored):
        (x, y), (height, width) = found.origin_px, found.object.shape
        expected = smooth_object(x + torch.arange(width)[None, :], y + torch.arange(height)[:, None])
        seen = found.coverage > 0.5
        assert seen.sum() > 8000
        errors.append(((found.object - expected).abs()[seen].max().item(), found.disagreement[seen].max().item()))
    assert max(errors[0]) < tolerance
    assert min(errors[1]) > 0.3


def test_smooth_canvases_fit_the_positions_and_lie_on_whole_pixels() -> None:
    positions = torch.tensor([[10.3, 7.0], [90.0, 8.75], [55.5, 7.5]], dtype=torch.float64)
    found = stitch(draw_patches(3, 16), positions, 12, "smooth")
    assert found.origin_px == (10 - 6, 7 - 6)
    assert found.object.shape == (2 + 12, 80 + 12)
    corners = Stitcher(torch.stack([positions.amin(0), positions.amax(0)]), 16, 12, "smooth")
    corners.add(draw_patches(3, 16), positions)
    torch.testing.assert_close(corners.result().object, found.object)


def test_uniform_canvases_are_square_around_the_mean() -> None:
    positions = torch.tensor([[10.0, 7.0], [13.0, 7.5]], dtype=torch.float64)
    found = stitch(draw_patches(2, 16), positions, 12, "uniform")
    assert found.object.shape == (16, 16)
    assert found.origin_px == (11.5 - 6 - 2, 7.25 - 6 - 2)


def test_smooth_weights_hide_the_borders_of_patches() -> None:
    """A patch that differs by 1 steps by 1 at its border with uniform weights alone."""
    positions = torch.tensor([[0.0, 0.0], [8.3, 0.0]], dtype=torch.float64)
    patches = torch.ones(2, 32, 32, dtype=torch.complex128)
    patches[1] = 2
    steps = {
        weighting: stitch(patches, positions, 32, weighting).object.real[16, 2:36].diff().abs().max().item()
        for weighting in get_args(Weighting)
    }
    assert steps["uniform"] > 0.3
    assert steps["smooth"] < 0.1


def test_experiments_never_mix() -> None:
    positions = {7: draw_positions(20, 30, 10, seed=1), 2: draw_positions(20, 12, 40, seed=2)}
    patches = {7: draw_patches(20, 16, seed=3), 2: draw_patches(20, 16, seed=4)}
    stitcher = ExperimentStitcher(positions, 16, 12, "smooth")
    order = torch.from_numpy(np.random.default_rng(5).permutation(40))
    mixed = [torch.cat([parts[7], parts[2]])[order] for parts in (patches, positions)]
    experiments = torch.tensor([7] * 20 + [2] * 20)[order]
    for some in order.argsort().split(9):
        stitcher.add(mixed[0][some], mixed[1][some], experiments[some])
    results = stitcher.results()
    assert list(results) == [7, 2]
    for experiment, found in results.items():
        alone = stitch(patches[experiment], positions[experiment], 12, "smooth")
        torch.testing.assert_close(found.object, alone.object, rtol=1e-12, atol=1e-12)
        assert found.origin_px == alone.origin_px


def test_precision_of_patches_does_not_limit_the_sums() -> None:
    patches, positions = draw_patches(30, 16).to(torch.complex64), draw_positions(30, 9, 9).float()
    assert reassembly.stitch_patches(patches, positions, 12).dtype == torch.complex64
    found = stitch(patches, positions, 12, "smooth")
    assert found.object.dtype == torch.complex128
    torch.testing.assert_close(
        found.object, stitch(patches.to(torch.complex128), positions.double(), 12, "smooth").object
    )


def test_a_patch_that_is_no_number_shows() -> None:
    patches = draw_patches(2, 16)
    patches[0, 8, 8] = torch.nan
    found = stitch(patches, torch.zeros(2, 2), 16, "smooth")
    assert found.object[8, 8].isnan()
    assert found.disagreement[8, 8].isnan()
    assert found.object.isfinite().sum() > 200


def test_memory_does_not_grow_with_the_number_of_patches() -> None:
    """Torch's memory is its own, so that what is alive at once is counted by the largest chunk."""
    chunks: list[int] = []
    place = reassembly._place

    def counted(crops: torch.Tensor, fractions: torch.Tensor, weighting: Weighting) -> torch.Tensor:
        chunks.append(len(crops))
        return place(crops, fractions, weighting)

    positions = draw_positions(700, 5, 5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reassembly, "_place", counted)
        stitcher = Stitcher(positions, 8, 8, "smooth")
        tracemalloc.start()
        for _ in range(3):
            stitcher.add(draw_patches(1, 8).expand(700, 8, 8), positions)
        kept, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert max(chunks) == 64
    assert sum(chunks) == 2100
    assert kept < 500_000
    assert {name for name, held in vars(stitcher).items() if isinstance(held, torch.Tensor)} == {"_anchor", "_sums"}


one = torch.zeros(1, 2)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: Stitcher(one, 16, 11, "smooth"), "even number"),
        (lambda: Stitcher(one, 16, 18, "smooth"), "even number"),
        (lambda: Stitcher(torch.zeros(0, 2), 16, 16, "smooth"), "at least one"),
        (lambda: Stitcher(torch.tensor([[0.0, torch.nan]]), 16, 16, "smooth"), "not finite.*row 0"),
        (lambda: Stitcher(torch.tensor([[0.0, 0.0], [1e5, 1e5]]), 16, 16, "smooth"), "100016 × 100016.*unit"),
        (lambda: Stitcher(torch.tensor([[0.0, 0.0], [1e5, 1.0]]), 16, 16, "uniform"), "drop stray ones"),
        (lambda: Stitcher(one, 16, 16, "smooth").result(), "No patch"),
        (lambda: Stitcher(one, 16, 16, "smooth").add(draw_patches(1, 8), one), r"expected \(n, 16, 16\)"),
        (lambda: Stitcher(one, 16, 16, "smooth").add(draw_patches(1, 16), one + 0.5), "outside the canvas"),
        (lambda: Stitcher(one, 16, 16, "uniform").add(draw_patches(1, 16), one - 0.5), "outside the canvas"),
        (
            lambda: inspect.unwrap(Stitcher.add)(Stitcher(one, 16, 16, "smooth"), draw_patches(2, 16), one),
            "for 2 patches",
        ),
        (
            lambda: ExperimentStitcher({1: one}, 16, 16, "smooth").add(draw_patches(1, 16), one, torch.tensor([2])),
            r"experiment 2.*\[1\]",
        ),
        (
            lambda: inspect.unwrap(ExperimentStitcher.add)(
                ExperimentStitcher({1: one}, 16, 16, "smooth"), draw_patches(1, 16), one, torch.tensor([1, 1])
            ),
            "2 numbers",
        ),
    ],
)
def test_wrong_data_is_refused_in_words(wrong: object, message: str) -> None:
    with pytest.raises(DataContractError, match=message):
        wrong()  # type: ignore[operator]


def test_examples_hold() -> None:
    failed, tried = doctest.testmod(reassembly)
    assert (failed, tried > 0) == (0, True)
