"""Known defects of the reference: each test shows what the reference does and what this project does.

The clauses, with everything that was recorded, are in ``specs/reference_defects.yaml``.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from conformance.cases.draws import draw_case
from conformance.oracle import operations as oracle_operations
from conformance.session.bench import NO_TENSORFLOW
from conformance.spec.loader import load_defects
from conformance.subjects.torch import TorchSubject
from ptycho_tf_bridge import backend
from ptycho_tf_bridge.weights import tensorflow_shapes
from ptycho_torch import helper, losses
from ptycho_torch.config_params import NetworkSettings
from ptycho_torch.errors import ConfigError
from ptycho_torch.model import PtychoNet
from ptycho_torch.optim import KerasAdam

SETTINGS = NetworkSettings(N=64, gridsize=2, n_filters_scale=1, intensity_scale=30.0)


def recorded(defect_id: str) -> Any:
    """Return what was seen on the reference."""
    (found,) = (defect.recorded for defect in load_defects() if defect.id == defect_id)
    return found


@pytest.mark.parity_clause("REF-01")
def test_ref_01_one_object_per_group() -> None:
    """The reference folds a batch of 64 patches or more into one object; here every group keeps its own."""
    seen = recorded("REF-01")
    groups, batch, patches = seen["groups"], seen["batch"], seen["gridsize"] ** 2
    sizes = [min(batch, groups - start) for start in range(0, groups, batch)]
    folded = [1 if size * patches >= seen["patches_per_call_from"] else size for size in sizes]
    assert sum(folded) == seen["objects_returned"], "the rule does not explain the recording"

    network = PtychoNet(SETTINGS, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    amplitude = torch.rand(groups, 4, 64, 64, generator=generator, dtype=torch.float64)
    offsets = helper.relative_offsets(4 * torch.rand(groups, 4, 1, 2, generator=generator, dtype=torch.float64))
    with torch.no_grad():
        together = network.reconstruct(amplitude, offsets)
        alone = torch.cat([network.reconstruct(amplitude[[i]], offsets[[i]]) for i in (0, groups - 1)])
    assert together.shape[0] == groups
    torch.testing.assert_close(together[[0, groups - 1]], alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parity_clause("REF-02")
def test_ref_02_scale_and_probe_train_when_asked() -> None:
    """The reference's saved network holds only convolutions; here scale and probe train when asked, else not."""
    assert len(tensorflow_shapes(SETTINGS)) == recorded("REF-02")["weights_of_the_network"]
    moved = {}
    for trainable in (True, False):
        settings = dataclasses.replace(SETTINGS, intensity_scale_trainable=trainable, probe_trainable=trainable)
        network = PtychoNet(settings, generator=torch.Generator().manual_seed(0))
        before = network.log_scale.detach().clone(), network.probe_parts.detach().clone()
        amplitude = torch.rand(1, 4, 64, 64, generator=torch.Generator().manual_seed(1))
        optimiser = KerasAdam(p for p in network.parameters() if p.requires_grad)
        prediction = network(amplitude, torch.zeros(1, 4, 1, 2))
        losses.poisson_nll(prediction.intensity, amplitude).backward()
        optimiser.step()
        moved[trainable] = (
            not torch.equal(before[0], network.log_scale.detach()),
            not torch.equal(before[1], network.probe_parts.detach()),
        )
    assert moved == {True: (True, True), False: (False, False)}


@pytest.mark.parity_clause("REF-02")
@pytest.mark.skipif(not backend.is_available(), reason=NO_TENSORFLOW)
def test_ref_02_keras_tracks_neither_scale_nor_probe() -> None:
    """Our Keras model shows the reference's behaviour, and the intended one when asked."""
    from ptycho_tf_bridge.keras_reference import build_reference

    probe = np.ones((64, 64), np.complex64)
    as_is, intended = (build_reference(SETTINGS, probe, trainable_physics=trainable) for trainable in (False, True))
    convolutions = recorded("REF-02")["weights_of_the_network"]
    assert len(as_is.trainable_weights) == convolutions + recorded("REF-02")["weights_of_these_layers"]
    assert len(intended.trainable_weights) > convolutions


@pytest.mark.parity_clause("REF-03")
def test_ref_03_odd_padding_is_a_config_error() -> None:
    """The reference fails deep inside a reshape; here the settings are refused, or the floor split is honoured."""
    seen = recorded("REF-03")
    odd = {name: seen[name] for name in ("gridsize", "offset", "max_position_jitter")}
    with pytest.raises(ConfigError, match=r"odd.*REF-03.*change offset or max_position_jitter"):
        NetworkSettings(N=64, **odd)
    settings = NetworkSettings(N=64, object_big=False, n_filters_scale=1, **odd)
    total = (seen["gridsize"] - 1) * seen["offset"] + seen["max_position_jitter"]
    assert settings.canvas_px == 64 + 2 * (total // 2)
    views = PtychoNet(settings)(torch.rand(1, 4, 64, 64), torch.zeros(1, 4, 1, 2))
    assert views.amplitude.shape == (1, 4, 64, 64)


@pytest.mark.parity_clause("REF-04")
def test_ref_04_ground_truth_is_cut_at_its_position() -> None:
    """The reference cuts at 2r̄ − r and misses every point object; cut at r, each is in the centre of its patch."""
    seen = recorded("REF-04")
    positions = np.array([[40.0, 41.0], [46.0, 38.0], [43.0, 47.0], [37.0, 45.0]])
    mirrored = 2 * positions.mean(axis=0) - positions
    image = torch.zeros(90, 90, dtype=torch.complex128)
    for x, y in positions.astype(int):
        image[y, x] = 1
    ours = helper.cut_patches(image, torch.from_numpy(positions), 64)
    theirs = oracle_operations.ground_truth_patches(image.numpy(), mirrored, 64)
    assert int((ours[:, 32, 32].abs() > 0.5).sum()) == seen["point_objects"]
    assert int((np.abs(theirs[:, 32, 32]) > 0.5).sum()) == seen["centres_hit"]
    flipped = oracle_operations.ground_truth_patches(image.numpy(), 2 * positions.mean(axis=0) - mirrored, 64)
    assert int((np.abs(flipped[:, 32, 32]) > 0.5).sum()) == seen["centres_hit_with_the_sign_flipped"]


def _reference_nll(predicted: np.ndarray, measured: np.ndarray) -> np.ndarray:
    """I − I₀·ln I as it stands, without care for zeros."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(predicted - measured * np.log(predicted))


@pytest.mark.parity_clause("REF-05")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ref_05_dark_pixels_stay_finite(dtype: torch.dtype) -> None:
    """NaN and infinity of the reference are finite here, and every finite value is the same."""
    seen = recorded("REF-05")
    assert np.isnan(_reference_nll(np.array(0.0), np.array(0.0))) == (seen["nll_when_both_are_zero"] == "nan")
    dark = _reference_nll(np.array(0.0), np.array(4.0))
    assert np.isposinf(dark) == (seen["nll_when_only_the_prediction_is_zero"] == "inf")

    tiny = torch.finfo(dtype).tiny
    intensity = torch.tensor([0.0, 0.0, tiny, 1e-12, 0.3, 7.0, 4e5], dtype=dtype)
    amplitude = torch.tensor([0.0, 2.0, 600.0, 1.0, 0.0, 2.5, 610.0], dtype=dtype)
    for predicted, measured in zip(intensity, amplitude, strict=True):
        leaf = predicted.reshape(1, 1, 1, 1).clone().requires_grad_()
        loss = losses.poisson_nll(leaf, measured.reshape(1, 1, 1, 1))
        loss.backward()
        assert leaf.grad is not None
        assert torch.isfinite(loss)
        assert torch.isfinite(leaf.grad).all()
        theirs = _reference_nll(predicted.double().numpy(), measured.double().numpy() ** 2)
        if np.isfinite(theirs):
            np.testing.assert_allclose(loss.detach().double(), theirs, rtol=4 * torch.finfo(dtype).eps)

    wave = torch.zeros(1, 1, 1, 64, 64, dtype=dtype.to_complex(), requires_grad=True)
    helper.diffract(wave).sum().backward()
    assert wave.grad is not None
    assert torch.count_nonzero(wave.grad) == 0


@pytest.mark.parity_clause("REF-06")
def test_ref_06_real_space_losses_see_both_parts() -> None:
    """The reference's total variation is that of the real part; here it is of both, and the MAE runs."""
    seen = recorded("REF-06")
    rng = np.random.default_rng(0)
    image = rng.standard_normal((2, 1, 64, 64)) + 1j * rng.standard_normal((2, 1, 64, 64))
    target = rng.standard_normal((2, 1, 64, 64)) + 1j * rng.standard_normal((2, 1, 64, 64))

    def variation(part: np.ndarray) -> float:
        return float((np.diff(part, axis=-1) ** 2).sum() + (np.diff(part, axis=-2) ** 2).sum())

    # An object whose imaginary part is as small, beside the real one, as the recorded numbers say.
    gap = seen["tv_of_real_and_imaginary_part"] - seen["tv_of_the_reference"]
    faint = image.real + 1j * image.imag * np.sqrt(gap / seen["tv_of_the_reference"])
    theirs = variation(faint.real)
    ratio = losses.total_variation(torch.from_numpy(faint)).item() / theirs
    assert ratio == pytest.approx(seen["tv_of_real_and_imaginary_part"] / seen["tv_of_the_reference"], abs=1e-6)

    ours = losses.total_variation(torch.from_numpy(image)).item()
    assert ours == pytest.approx(variation(image.real) + variation(image.imag), rel=1e-12)
    assert ours != pytest.approx(variation(image.real), rel=1e-3)
    mae = losses.object_mae(torch.from_numpy(image), torch.from_numpy(target)).item()
    modulus = np.abs(np.abs(image) - np.abs(target)).mean()
    assert mae == pytest.approx(modulus + np.abs(np.angle(image) - np.angle(target)).mean(), rel=1e-12)


@pytest.mark.parity_clause("REF-07")
def test_ref_07_a_sample_does_not_depend_on_its_batch() -> None:
    """The reference centres offsets over the batch; here a sample alone is the sample in a batch."""
    seen = recorded("REF-07")
    case = draw_case(SETTINGS, 5)
    shift = np.array([0.7, -0.4]).reshape(1, 1, 2, 1).astype(np.float32)
    off_centre = case.offsets_px.copy()
    off_centre[:1] += shift
    for offsets, limit in ((off_centre, 1e-12), (case.offsets_px, 1e-12)):
        mates = dataclasses.replace(case, offsets_px=offsets)
        alone = dataclasses.replace(mates, offsets_px=offsets[:1], diffraction=case.diffraction[:1])
        subject = TorchSubject("cpu", "float64")
        together, single = subject.free(mates).stages["object"][:1], subject.free(alone).stages["object"]
        assert np.linalg.norm(together - single) / np.linalg.norm(single) <= limit

    def centred(offsets: np.ndarray) -> np.ndarray:
        return np.asarray(offsets - offsets.mean(axis=(0, 1, 3), keepdims=True))

    def merged_by_reference(offsets: np.ndarray) -> np.ndarray:
        theirs = dataclasses.replace(case, offsets_px=centred(offsets).astype(np.float64))
        return np.asarray(TorchSubject("cpu", "float64").free(theirs).stages["object"][0])

    def change(offsets: np.ndarray) -> float:
        mine = TorchSubject("cpu", "float64").free(dataclasses.replace(case, offsets_px=offsets)).stages["object"][0]
        return float(np.linalg.norm(merged_by_reference(offsets) - mine) / np.linalg.norm(mine))

    assert change(off_centre) > seen["relative_change_by_batch_mates"]
    # Float32 leaves up to 1.2e-7 pixels of a group's mean, and the object varies by about itself over a pixel.
    assert change(case.offsets_px) < 100 * seen["relative_change_with_centred_offsets"]
