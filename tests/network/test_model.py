"""The network as a user meets it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from conformance.cases.draws import GRAPHS
from ptycho_torch.config_params import NetworkSettings
from ptycho_torch.data.probe import default_probe, normalise_probe
from ptycho_torch.errors import DataContractError
from ptycho_torch.model import PtychoNet, Stage

SETTINGS = GRAPHS["n64_g2"]


def build(settings: NetworkSettings = SETTINGS, probe: torch.Tensor | None = None) -> PtychoNet:
    return PtychoNet(settings, probe, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def inputs(settings: NetworkSettings, batch: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    shape = (batch, settings.C, settings.N, settings.N)
    amplitude = torch.rand(shape, generator=generator, dtype=torch.float64)
    return amplitude, torch.randn(batch, settings.C, 1, 2, generator=generator, dtype=torch.float64)


def test_networks_of_different_settings_live_together() -> None:
    """What one network says does not depend on which others were made or run."""
    alone = build()(*inputs(SETTINGS)).object
    others = [build(settings) for settings in (GRAPHS["n64_g1"], GRAPHS["n64_g2_mask_blur"])]
    network = build()
    for other in others:
        other(*inputs(other.settings))
    torch.testing.assert_close(network(*inputs(SETTINGS)).object, alone, rtol=0, atol=0)


def test_reconstruct_is_the_object_of_the_forward_pass() -> None:
    network = build()
    assert torch.equal(network.reconstruct(*inputs(SETTINGS)), network(*inputs(SETTINGS)).object)


def test_a_probe_of_each_pattern_may_be_given() -> None:
    network = build()
    amplitude, offsets = inputs(SETTINGS)
    own = network(amplitude, offsets).amplitude
    repeated = network.probe.detach().expand(2, 4, 1, 64, 64)
    torch.testing.assert_close(network(amplitude, offsets, repeated).amplitude, own)
    doubled = network(amplitude, offsets, torch.cat([repeated, repeated], dim=2)).amplitude
    torch.testing.assert_close(doubled, own * 2**0.5)


def test_a_trainable_probe_gets_a_gradient_and_a_frozen_one_none() -> None:
    for trainable in (True, False):
        settings = dataclasses.replace(SETTINGS, probe_trainable=trainable, intensity_scale_trainable=trainable)
        network = build(settings)
        network(*inputs(SETTINGS)).intensity.sum().backward()
        assert (network.probe_parts.grad is not None) is trainable
        assert (network.log_scale.grad is not None) is trainable


def test_without_a_probe_the_default_one_is_used() -> None:
    expected = normalise_probe(default_probe(64), 4.0)
    np.testing.assert_allclose(build().probe.detach()[0].real, expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("amplitude", "offsets"),
    [
        ((2, 1, 64, 64), (2, 4, 1, 2)),
        ((2, 4, 64, 64), (2, 1, 2, 4)),
        ((2, 4, 32, 32), (2, 4, 1, 2)),
        ((2, 4, 64, 64), (1, 4, 1, 2)),
    ],
)
def test_inputs_of_another_shape_are_refused(amplitude: tuple[int, ...], offsets: tuple[int, ...]) -> None:
    network = PtychoNet(SETTINGS)
    with pytest.raises(DataContractError, match=r"takes amplitude \(B, 4, 64, 64\)"):
        network._check(torch.zeros(amplitude), torch.zeros(offsets))


def test_inputs_that_would_be_misread_are_refused() -> None:
    network, (amplitude, offsets) = build(), inputs(SETTINGS)
    with pytest.raises(DataContractError, match=r"torch\.float64 and its amplitude in torch\.float32"):
        network._check(amplitude.float(), offsets)
    with pytest.raises(DataContractError, match="A probe is complex"):
        network._check(amplitude, offsets, torch.ones(4, 3, 1, 64, 64, dtype=torch.complex128))
    with pytest.raises(DataContractError, match="B ≥ 1"):
        network._check(amplitude[:0], offsets[:0])


def test_an_offset_that_is_no_number_shows() -> None:
    amplitude, offsets = inputs(SETTINGS)
    offsets[0, 0, 0, 0] = torch.nan
    prediction = build()(amplitude, offsets)
    assert prediction.object[0].isnan().all()
    assert prediction.object[1].isfinite().all()


def test_a_probe_of_another_side_is_refused() -> None:
    with pytest.raises(DataContractError, match="side 32 but N = 64"):
        build(probe=torch.ones(32, 32))


def test_half_precision_is_refused() -> None:
    with pytest.raises(TypeError, match=r"float32 or torch\.float64"):
        PtychoNet(SETTINGS, dtype=torch.float16)


@pytest.mark.parametrize("graph", GRAPHS)
def test_every_module_that_computes_is_a_stage(graph: str) -> None:
    """So no step can hide between the clauses."""
    network = PtychoNet(GRAPHS[graph])
    leaves = [module for module in network.modules() if not list(module.children())]
    assert all(isinstance(module, Stage) for module in leaves)
    assert len(network.stage_ids()) == len(leaves)


def test_weights_are_named_as_clauses_and_survive_saving() -> None:
    network, other = build(), build(dataclasses.replace(SETTINGS))
    state = network.state_dict()
    assert {"encoder.0.conv1.weight", "decoder_phase.outer.head.bias", "log_scale", "probe_parts"} <= set(state)
    other.load_state_dict(state)
    assert torch.equal(other(*inputs(SETTINGS)).object, network(*inputs(SETTINGS)).object)


def test_the_lightning_module_goes_by_the_name_that_ptychodus_looks_for() -> None:
    from ptycho_torch import model
    from ptycho_torch.training.lightning_module import PtychoPINN

    assert model.PtychoPINN_Lightning is PtychoPINN
    with pytest.raises(AttributeError, match="PtychoPINN_Other"):
        model.PtychoPINN_Other  # noqa: B018
