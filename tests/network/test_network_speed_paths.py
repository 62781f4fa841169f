"""What makes the network fast changes nothing but rounding: doublings left out, autocast, and Adam in place."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from conformance.cases.draws import GRAPHS
from ptycho_torch import helper
from ptycho_torch.model import PtychoNet, Upsample
from ptycho_torch.optim import KerasAdam

SMALL = tuple(name for name, graph in GRAPHS.items() if graph.N == 64)
# A gradient is a sum of many terms that nearly cancel, and a ReLU within rounding of its kink may flip.
FORWARD = {torch.float64: 1e-12, torch.float32: 2e-6}


def build(graph: str, dtype: torch.dtype = torch.float64) -> PtychoNet:
    return PtychoNet(GRAPHS[graph], generator=torch.Generator().manual_seed(0), dtype=dtype)


def inputs(network: PtychoNet, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    C, N = network.settings.C, network.settings.N
    amplitude = network.settings.intensity_scale * torch.rand(2, C, N, N, generator=generator, dtype=torch.float64)
    return amplitude.to(dtype), torch.randn(2, C, 1, 2, generator=generator, dtype=torch.float64).to(dtype)


@contextlib.contextmanager
def doublings_seen(network: PtychoNet) -> Iterator[list[Tensor]]:
    """Hook every doubling, so that each is computed."""
    seen: list[Tensor] = []
    ups = [module for module in network.modules() if isinstance(module, Upsample)]
    handles = [up.register_forward_hook(lambda _, __, output: seen.append(output)) for up in ups]
    yield seen
    for handle in handles:
        handle.remove()


def run(network: PtychoNet, dtype: torch.dtype) -> dict[str, Tensor]:
    amplitude, offsets = inputs(network, dtype)
    kept: list[Tensor] = []
    handle = network.patches.register_forward_hook(lambda _, __, output: kept.append(output))
    prediction = network(amplitude, offsets)
    handle.remove()
    # A linear functional of the patches, in place of the loss: the Poisson loss of an untrained network has pixels of
    # next to no light, where rounding grows a hundred thousand times.
    weights = torch.randn(2, *prediction.object.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    patches = torch.view_as_real(kept[0])
    loss = (patches.mean(1) * weights.to(dtype)[:, :, 0].permute(1, 2, 3, 0)).sum()
    names, parameters = zip(*((n, p) for n, p in network.named_parameters() if p.requires_grad), strict=True)
    gradients = torch.autograd.grad(loss, parameters)
    return {"object": prediction.object.detach(), "amplitude": prediction.amplitude.detach()} | dict(
        zip(names, gradients, strict=True)
    )


def distance(ours: Tensor, theirs: Tensor) -> float:
    return ((ours - theirs).norm() / theirs.norm().clamp_min(1e-300)).item()


@pytest.mark.parametrize("graph", SMALL)
def test_a_doubling_left_out_is_only_rounding_away(graph: str) -> None:
    """Forward and gradients; a hook on the doublings brings them back."""
    network = build(graph)
    fast = run(network, torch.float64)
    with doublings_seen(network) as seen:
        plain = run(network, torch.float64)
    assert len(seen) == sum(isinstance(module, Upsample) for module in network.modules())
    errors = {name: distance(fast[name], plain[name]) for name in plain}
    assert max(errors.values()) < 1e-12, errors
    assert max(errors.values()) > 0, "the two ways are one, so nothing was compared"


@pytest.mark.parametrize("graph", ["n64_g1", "n64_g2", "n64_g1_nopad"])
def test_in_float32_too(graph: str) -> None:
    network = build(graph, torch.float32)
    with torch.no_grad():
        fast = network(*inputs(network, torch.float32))
        with doublings_seen(network):
            plain = network(*inputs(network, torch.float32))
    assert distance(fast.object, plain.object) < 2e-6
    assert distance(fast.amplitude, plain.amplitude) < 2e-6


@pytest.mark.parametrize("shape", [(2, 3, 4, 6), (1, 1, 1, 1), (3, 5, 7, 2)])
def test_convolve_doubled_is_doubling_then_convolving(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(2)
    features = torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
    kernel = torch.randn(4, shape[1], 3, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(4, generator=generator, dtype=torch.float64, requires_grad=True)
    ours = helper.convolve_doubled(features, kernel, bias)
    doubled = torch.nn.functional.interpolate(features, scale_factor=2.0, mode="nearest")
    theirs = torch.nn.functional.conv2d(doubled, kernel, bias, padding=1)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    cotangent = torch.randn(ours.shape, generator=generator, dtype=torch.float64)
    for mine, expected in zip(
        torch.autograd.grad(ours, (features, kernel, bias), cotangent),
        torch.autograd.grad(theirs, (features, kernel, bias), cotangent),
        strict=True,
    ):
        torch.testing.assert_close(mine, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("graph", ["n64_g1", "n64_g2"])
def test_convolutions_stay_channels_last(graph: str) -> None:
    network = build(graph, torch.float32)
    formats = {}
    for name in ("normalized_input", "encoder.0.conv1", "encoder.2.pool", "decoder_amp.0.conv1", "decoder_amp.1.conv1"):
        network.get_submodule(name).register_forward_hook(
            lambda _, __, output, name=name: formats.update({name: output.stride(1)})
        )
    network(*inputs(network, torch.float32))
    assert set(formats.values()) == {1}


@pytest.mark.parametrize("graph", ["n64_g1", "n64_g2", "n64_g1_nopad", "n64_g2_small_probe"])
def test_autocast_leaves_physics_in_float32(graph: str) -> None:
    network = build(graph, torch.float32)
    given = inputs(network, torch.float32)
    dtypes = {}
    physics = ("patches", "merged", "object", "views", "exit_wave", "amplitude", "predicted_intensity")
    with torch.no_grad():
        expected = network(*given)
        for name in (*physics, "encoder.0.conv1"):
            network.get_submodule(name).register_forward_hook(
                lambda _, __, output, name=name: dtypes.update({name: output.dtype})
            )
        with torch.autocast("cpu", torch.bfloat16):
            found = network(*given)
            again = network.reconstruct(*given)
    assert dtypes.pop("encoder.0.conv1") == torch.bfloat16
    assert set(dtypes.values()) == {torch.float32, torch.complex64}
    assert found.amplitude.dtype == found.intensity.dtype == torch.float32
    assert torch.equal(found.object, again)
    # bfloat16 has eight bits, and some of fifteen convolutions' roundings add up.
    assert 0 < distance(found.object, expected.object) < 0.03
    # The physics itself is exact: the patches decide everything behind them.
    with torch.no_grad():
        patches = network.patches
        handle = patches.register_forward_hook(lambda _, __, output: kept.append(output))
        kept: list[Tensor] = []
        with torch.autocast("cpu", torch.bfloat16):
            found = network(*given)
        handle.remove()
        canvas = network.merged(kept[0], given[1])
        torch.testing.assert_close(network.object(canvas), found.object, rtol=0, atol=0)


def test_training_under_autocast_gives_float32_gradients() -> None:
    network = build("n64_g2", torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found = run(network, torch.float32)
    expected = run(network, torch.float32)
    assert all(found[name].dtype == expected[name].dtype for name in expected)
    assert distance(found["encoder.0.conv1.weight"], expected["encoder.0.conv1.weight"]) < 0.3


def test_adam_follows_the_formula_for_every_parameter() -> None:
    generator = torch.Generator().manual_seed(3)
    shapes = [(5,), (3, 4, 3, 3), ()]
    parameters = [torch.nn.Parameter(torch.randn(s, generator=generator, dtype=torch.float64)) for s in shapes]
    expected = [p.detach().numpy().copy() for p in parameters]
    m, v = [np.zeros(s) for s in shapes], [np.zeros(s) for s in shapes]
    optimiser = KerasAdam(parameters)
    for t in range(1, 6):
        for i, p in enumerate(parameters):
            p.grad = torch.randn(p.shape, generator=generator, dtype=torch.float64)
            g = p.grad.numpy()
            m[i] = m[i] + 0.1 * (g - m[i])
            v[i] = v[i] + 0.001 * (g**2 - v[i])
            expected[i] = expected[i] - 1e-3 * np.sqrt(1 - 0.999**t) / (1 - 0.9**t) * m[i] / (np.sqrt(v[i]) + 1e-7)
        optimiser.step()
    for p, e in zip(parameters, expected, strict=True):
        np.testing.assert_allclose(p.detach().numpy(), e, rtol=1e-14, atol=1e-15)
