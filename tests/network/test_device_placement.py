"""The whole graph on the ``meta`` device: a tensor made on any other device fails, as it would on CUDA."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from conformance.cases.draws import GRAPHS
from ptycho_torch import helper, model
from ptycho_torch.config_params import LossWeights, NetworkSettings, Settings
from ptycho_torch.dset_loader_pt_mmap import PtychoBatch
from ptycho_torch.losses import total_loss
from ptycho_torch.model import PtychoNet
from ptycho_torch.optim import KerasAdam
from ptycho_torch.reconstruction.reassembly import Stitcher
from ptycho_torch.train import PtychoPINN

ALL_LOSSES = LossWeights(nll_weight=1, mae_weight=1, realspace_weight=1, tv_weight=1, realspace_mae_weight=1)


def train_once(settings: NetworkSettings, device: str) -> PtychoNet:
    """Take one step with every loss, a mask of bad pixels and trainable physics."""
    settings = dataclasses.replace(settings, intensity_scale_trainable=True, probe_trainable=True)
    network = PtychoNet(settings, device=device)
    amplitude = torch.rand(2, settings.C, settings.N, settings.N, device=device)
    offsets = torch.rand(2, settings.C, 1, 2, device=device)
    prediction = network(amplitude, offsets)
    terms = total_loss(
        prediction.object,
        prediction.amplitude,
        prediction.intensity,
        amplitude,
        ALL_LOSSES,
        probe_big=settings.probe_big,
        good_pixels=torch.ones(settings.N, settings.N, dtype=torch.bool, device=device),
        target_object=torch.zeros_like(prediction.object),
    )
    terms.total.backward()
    KerasAdam(network.parameters()).step()
    return network


@pytest.mark.parametrize("graph", GRAPHS)
def test_every_tensor_is_made_on_the_device_of_its_inputs(graph: str) -> None:
    network = train_once(GRAPHS[graph], "meta")
    tensors = [*network.parameters(), *network.buffers()]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.fixture
def a_mask_made_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    original = helper._central_line

    def wrong(N: int, *, device: torch.device | None, dtype: torch.dtype) -> torch.Tensor:
        return original(N, device=torch.device("cpu"), dtype=dtype)

    monkeypatch.setattr(helper, "_central_line", wrong)


@pytest.mark.usefixtures("a_mask_made_on_the_cpu")
def test_a_tensor_on_the_wrong_device_is_seen() -> None:
    with pytest.raises(RuntimeError, match=r"device|Meta|meta"):
        train_once(GRAPHS["n64_g2"], "meta")


def lightning_module(graph: str) -> PtychoPINN:
    """Return the module that users train, on the ``meta`` device, with every loss that a batch can have."""
    settings = Settings().override({"nll_weight": 1.0, "mae_weight": 0.5, "realspace_weight": 0.1, "tv_weight": 0.1})
    # Probes of scans are looked at for being dark, and values of ``meta`` cannot be.
    statistics = {"probe_modes": 2, "one_probe": True}
    network = dataclasses.asdict(GRAPHS[graph])
    return PtychoPINN(settings, network, statistics=statistics).to("meta")


def batch_on(device: str, settings: NetworkSettings) -> PtychoBatch:
    """Return a batch of two groups of two scans, each with a mask of bad pixels and a probe of its own."""
    B, C, N = 2, settings.C, settings.N
    return PtychoBatch(
        images=torch.rand(B, C, N, N),
        coords=torch.rand(B, C, 1, 2),
        scale=torch.ones(B),
        centres=torch.zeros(B, 1, 1, 2, dtype=torch.float64),
        indices=torch.zeros(B, C, dtype=torch.int32),
        groups=torch.arange(B),
        experiment_ids=torch.arange(B),
        probes=torch.rand(2, 2, N, N, dtype=torch.complex64),
        probe_ids=torch.arange(B),
        masks=torch.ones(2, N, N, dtype=torch.bool),
    ).to(device)


@pytest.mark.parametrize("graph", ["n64_g1", "n64_g2", "n64_g2_mask_blur"])
def test_a_training_step_stays_on_the_device(graph: str) -> None:
    module, batch = lightning_module(graph), batch_on("meta", GRAPHS[graph])
    loss = module.training_step(batch)
    loss.backward()
    KerasAdam(module.parameters()).step()
    module.validation_step(batch)
    assert loss.device.type == "meta"
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    assert {parameter.grad.device.type for parameter in trained if parameter.grad is not None} == {"meta"}


@pytest.mark.parametrize("graph", ["n64_g1", "n64_g2", "n64_g2_mask_blur"])
def test_reconstruction_stays_on_the_device(graph: str) -> None:
    """The sums of the stitcher, too; positions are of the CPU, since they decide how large the canvas is."""
    predicted = lightning_module(graph).predict_step(batch_on("meta", GRAPHS[graph]))
    assert {each.device.type for each in (predicted.objects, predicted.centres_px)} == {"meta"}
    positions = torch.tensor([[0.0, 0.0], [3.5, -2.0]])
    stitcher = Stitcher(positions, patch_px=64, crop_px=32, weighting="smooth", device="meta")
    stitcher.add(predicted.objects[:, 0], positions)
    assert stitcher.result().object.device.type == "meta"


@pytest.mark.usefixtures("a_mask_made_on_the_cpu")
def test_a_training_step_with_a_tensor_on_the_wrong_device_is_seen() -> None:
    module = lightning_module("n64_g2")
    with pytest.raises(RuntimeError, match=r"device|Meta|meta"):
        module.training_step(batch_on("meta", GRAPHS["n64_g2"]))


def test_a_batch_left_on_the_cpu_is_seen() -> None:
    module = lightning_module("n64_g2")
    with pytest.raises(RuntimeError, match=r"device|Meta|meta"):
        module.predict_step(batch_on("cpu", GRAPHS["n64_g2"]))


def test_the_seed_decides_the_weights_on_every_device() -> None:
    settings = GRAPHS["n64_g1"]
    one, two = (PtychoNet(settings, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    other = PtychoNet(settings, generator=torch.Generator().manual_seed(4))
    name = "encoder.0.conv1.weight"
    assert torch.equal(one.get_parameter(name), two.get_parameter(name))
    assert not torch.equal(one.get_parameter(name), other.get_parameter(name))
    assert isinstance(one.get_submodule("encoder.0.conv1"), model.Stage)
