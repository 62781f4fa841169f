"""The whole graph on the ``meta`` device: a tensor made on any other device fails, as it would on CUDA."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from conformance.draws import GRAPHS
from ptycho_torch import helper, model
from ptycho_torch.config_params import LossWeights, NetworkSettings
from ptycho_torch.losses import total_loss
from ptycho_torch.model import PtychoNet
from ptycho_torch.optim import KerasAdam

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


def test_the_seed_decides_the_weights_on_every_device() -> None:
    settings = GRAPHS["n64_g1"]
    one, two = (PtychoNet(settings, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    other = PtychoNet(settings, generator=torch.Generator().manual_seed(4))
    name = "encoder.0.conv1.weight"
    assert torch.equal(one.get_parameter(name), two.get_parameter(name))
    assert not torch.equal(one.get_parameter(name), other.get_parameter(name))
    assert isinstance(one.get_submodule("encoder.0.conv1"), model.Stage)
