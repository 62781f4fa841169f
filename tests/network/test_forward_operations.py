"""Operations of the forward model: properties, and the oracle of the conformance suite."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conformance.oracle import operations as oracle
from ptycho_torch import helper
from ptycho_torch.data import probe, scaling
from ptycho_torch.errors import DataContractError
from ptycho_torch.reconstruction import reassembly

offsets = st.floats(-30, 30, allow_nan=False)
# Unwrapped: a user has no shape checker between.
stitch = inspect.unwrap(reassembly.stitch_patches)


def draw(*shape: int, seed: int = 0, complex_: bool = True) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    real = rng.standard_normal(shape)
    return torch.from_numpy(real + 1j * rng.standard_normal(shape) if complex_ else real)


@settings(max_examples=60, deadline=None)
@given(dx=offsets, dy=offsets)
def test_translation_is_the_oracles(dx: float, dy: float) -> None:
    images, offset = draw(2, 17, 23), torch.tensor([[dx, dy], [dy, dx]], dtype=torch.float64)
    expected = oracle.translate(images.numpy(), offset.numpy())
    np.testing.assert_allclose(helper.translate(images, offset).numpy(), expected, atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(dx=st.integers(-8, 8), dy=st.integers(-8, 8))
def test_whole_pixels_move_content_to_larger_x_and_y(dx: int, dy: int) -> None:
    image = torch.zeros(1, 21, 21, dtype=torch.float64)
    image[0, 10, 10] = 1
    moved = helper.translate(image, torch.tensor([[dx, dy]], dtype=torch.float64))
    assert moved[0, 10 + dy, 10 + dx] == 1
    assert moved.sum() == 1


@settings(max_examples=40, deadline=None)
@given(dx=offsets, dy=offsets)
def test_gradient_is_the_adjoint(dx: float, dy: float) -> None:
    images = draw(1, 16, 16, complex_=False).requires_grad_()
    cotangent, offset = draw(1, 16, 16, seed=1, complex_=False), torch.tensor([[dx, dy]], dtype=torch.float64)
    (found,) = torch.autograd.grad(helper.translate(images, offset), images, cotangent)
    expected = oracle.translate_adjoint(cotangent.numpy(), offset.numpy())
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-12)


def test_merging_then_cutting_shows_each_position_its_own_patch() -> None:
    """Patches cut from one object at their positions merge back to that object where all of them overlap."""
    whole = draw(1, 90, 90).real + 2
    positions = torch.tensor([[[[-3.0, 1.0]], [[2.0, -4.0]], [[4.0, 3.0]], [[-3.0, 0.0]]]], dtype=torch.float64)
    patches = helper.cut_patches(whole[0].to(torch.complex128), positions[0, :, 0] + 45, 64)[None]
    o = helper.relative_offsets(positions)
    merged = helper.merge_patches(patches, o, 80)
    object_ = helper.trim_canvas(merged, 64)[0, 0, 26:38, 26:38]
    expected = whole[0, 45 - 6 : 45 + 6, 45 - 6 : 45 + 6] * 4 / (4 + helper.MERGE_FLOOR)
    np.testing.assert_allclose(object_.real, expected, rtol=1e-12)
    views = helper.extract_views(merged, o, 64)
    np.testing.assert_allclose(views[0, :, 32, 32], patches[0, :, 32, 32] * 4 / (4 + helper.MERGE_FLOOR), rtol=1e-12)


def test_total_counts_survive_propagation() -> None:
    wave = draw(2, 3, 2, 64, 64)
    counts = helper.diffract(wave).square().sum(dim=(-2, -1))
    torch.testing.assert_close(counts, wave.abs().square().sum(dim=(2, 3, 4)))
    assert not helper.diffract(torch.zeros_like(wave)).any()


def test_incoherent_modes_add_in_intensity() -> None:
    wave = draw(1, 2, 3, 64, 64)
    single = [helper.diffract(wave[:, :, [mode]]).square() for mode in range(3)]
    torch.testing.assert_close(helper.diffract(wave).square(), sum(single))


@pytest.mark.parametrize("sigma", [0.3, 0.8, 5.0])
def test_smoothing_keeps_constants_and_is_the_oracles(sigma: float) -> None:
    torch.testing.assert_close(helper.smooth(torch.ones(2, 9, 9), sigma), torch.ones(2, 9, 9))
    images = draw(2, 9, 11)
    np.testing.assert_allclose(helper.smooth(images, sigma), oracle.smooth(images.numpy(), sigma), atol=1e-14)


def test_stitching_does_not_depend_on_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    patches, positions = draw(11, 64, 64), 30 * torch.rand(11, 2, dtype=torch.float64)
    whole = reassembly.stitch_patches(patches, positions, 20)
    monkeypatch.setattr(reassembly, "_CHUNK", 3)
    torch.testing.assert_close(reassembly.stitch_patches(patches, positions, 20), whole, rtol=1e-12, atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 6), crop=st.sampled_from([2, 20, 64]), reach=st.sampled_from([0.0, 0.5, 3.0, 17.3]))
def test_stitching_is_the_oracles(n: int, crop: int, reach: float) -> None:
    patches = draw(n, 64, 64)
    positions = torch.from_numpy(reach * np.random.default_rng(n).uniform(-1, 1, (n, 2)).round(1))
    expected = oracle.stitch(patches.numpy(), positions.numpy(), crop)
    found = reassembly.stitch_patches(patches, positions, crop)
    covered = np.abs(expected) < 1e6
    np.testing.assert_allclose(found.numpy()[covered], expected[covered], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: stitch(draw(2, 64, 64), torch.zeros(3, 2), 20), "2 patches"),
        (lambda: stitch(draw(2, 64, 64), torch.zeros(2, 2), 21), "even number"),
        (lambda: stitch(draw(2, 64, 64), torch.zeros(2, 2), 66), "even number"),
        (lambda: probe.as_modes(torch.zeros(3, 4)), r"\(N, N\) or \(modes, N, N\)"),
        (lambda: probe.normalise_probe(torch.zeros(64, 64)), "zero inside the central disk"),
        (lambda: scaling.normalisation_factor(torch.zeros(3, 64, 64)), "every diffraction pattern is zero|Every"),
        (lambda: scaling.intensity_scale(0.0, 64), "above 0"),
    ],
)
def test_wrong_data_is_refused_in_words(wrong: object, message: str) -> None:
    with pytest.raises(DataContractError, match=message):
        wrong()  # type: ignore[operator]


def test_normalised_amplitude_has_the_reference_energy() -> None:
    amplitude = 37 * torch.rand(5, 4, 64, 64)
    normalised = amplitude * scaling.normalisation_factor(amplitude)
    assert normalised.square().sum(dim=(-2, -1)).mean().item() == pytest.approx(1024, rel=1e-6)
    assert scaling.intensity_scale(1e6, 64) == pytest.approx(scaling.intensity_scale_of(1e6, normalised), rel=1e-6)


def test_probe_modes_share_one_factor() -> None:
    modes = draw(3, 64, 64)
    normalised = probe.normalise_probe(modes, 4.0)
    ratio = normalised / modes
    torch.testing.assert_close(ratio, torch.full_like(ratio, ratio[0, 0, 0]))
    one = probe.normalise_probe(modes[0], 4.0)
    assert (one.abs() * probe.disk_mask(64)).mean().item() == pytest.approx(0.25)
