"""The specification against all that claims to follow it: recordings, oracle, and the taps of both sides."""

from __future__ import annotations

import dataclasses
import importlib
import itertools
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch

from conformance.oracle.network import Constants, Oracle
from conformance.spec.loader import (
    NETWORK_INPUT,
    StageClause,
    load_defects,
    load_stages,
    missing_and_unexpected,
)
from ptycho_tf_bridge import backend, keras_reference
from ptycho_tf_bridge.layout import LAYOUTS
from ptycho_tf_bridge.weights import tensorflow_shapes
from ptycho_torch.config_params import AmplitudeActivation, NetworkSettings
from ptycho_torch.model import PtychoNet
from ptycho_torch.model import Stage as TorchStage

pytestmark = pytest.mark.parity_clause("SPEC")

HERE = Path(__file__).parent
RECORDING = HERE / "recordings" / "n64_g2_base.npz"

OTHERS = (
    NetworkSettings(n_filters_scale=1, gridsize=2, shared_amplitude_head=True),
    NetworkSettings(n_filters_scale=1, gridsize=3, offset=3, max_position_jitter=4),
)

GRAPHS = tuple(
    NetworkSettings(
        N=N,
        gridsize=gridsize,
        n_filters_scale=1,
        object_big=object_big,
        probe_big=probe_big,
        pad_object=pad_object,
    )
    for N, gridsize, object_big, probe_big, pad_object in itertools.product(
        (64, 128, 256), (1, 2, 3), (True, False), (True, False), (True, False)
    )
)
"""Every graph that the network can have, but for the filter scale."""

SMALL_GRAPHS = (
    *(graph for graph in GRAPHS if graph.N == 64 and graph.gridsize == 2),
    *OTHERS,
    NetworkSettings(N=128, n_filters_scale=1),
    NetworkSettings(N=256, n_filters_scale=1),
)
"""The graphs that are also run, to see their shapes."""


def _name(settings: NetworkSettings) -> str:
    flags = (name for name in ("object_big", "probe_big", "pad_object") if getattr(settings, name))
    name = "-".join((f"n{settings.N}", f"g{settings.gridsize}", *flags))
    others = {
        "shared": settings.shared_amplitude_head,
        "wide": settings.n_filters_scale > 1,
        "o3": settings.offset == 3,
    }
    return "-".join((name, *(other for other, holds in others.items() if holds)))


def test_recorded_values_are_real_or_complex_as_specified() -> None:
    with np.load(RECORDING) as recording:
        recorded = {
            key.removeprefix("stage/"): "complex" if np.iscomplexobj(values) else "real"
            for key, values in recording.items()
            if key.startswith("stage/")
        }
    stages = load_stages().expand(NetworkSettings(N=64, gridsize=2, n_filters_scale=1))
    assert {stage.id: stage.dtype for stage in stages} == recorded


@pytest.mark.parametrize("settings", GRAPHS, ids=_name)
def test_weights_of_the_spec_are_those_of_the_weight_table(settings: NetworkSettings) -> None:
    specified = {weight for stage in load_stages().expand(settings) for weight in stage.weights}
    assert specified == set(tensorflow_shapes(settings))


@pytest.mark.parametrize("settings", SMALL_GRAPHS, ids=_name)
def test_layouts_join_the_shapes_of_both_sides(settings: NetworkSettings) -> None:
    for stage in load_stages().expand(settings):
        tensorflow_array = np.zeros(stage.shape_tensorflow(3, 2), np.float32)
        torch_array = LAYOUTS[stage.layout].to_torch(tensorflow_array, channels=settings.C)
        assert torch_array.shape == stage.shape_torch(3, 2), stage.id


@pytest.mark.parametrize(
    "settings", [*GRAPHS, *OTHERS, *(dataclasses.replace(each, n_filters_scale=2) for each in OTHERS)], ids=_name
)
def test_oracle_is_wired_as_specified(settings: NetworkSettings) -> None:
    oracle = Oracle(dataclasses.asdict(settings))
    stages = load_stages().expand(settings)
    assert not missing_and_unexpected((stage.id for stage in stages), oracle.stages)
    assert {stage.id: stage.inputs for stage in stages} == {
        stage: tuple(inputs) for stage, inputs in oracle.inputs.items()
    }
    assert {stage.id: stage.shape_tensorflow(3, 2) for stage in stages} == {
        stage: oracle.node(stage).shape(3, 2) for stage in oracle.stages
    }


@pytest.mark.parametrize("pad_object", [True, False])
@pytest.mark.parametrize("amp_activation", ["relu", "softplus"])
def test_oracle_has_the_kinks_of_the_spec(amp_activation: AmplitudeActivation, pad_object: bool) -> None:
    settings = NetworkSettings(n_filters_scale=1, amp_activation=amp_activation, pad_object=pad_object)
    draw = np.random.default_rng(0)
    weights = {name: draw.normal(size=shape) for name, shape in tensorflow_shapes(settings).items()}
    constants = Constants.of(weights, np.zeros((1, 1, 2, 1)), np.ones((64, 64), np.complex128), 1.0)
    oracle, network_input = Oracle(dataclasses.asdict(settings)), draw.random((1, 64, 64, 1))
    values = {NETWORK_INPUT: network_input} | dict(oracle.forward(network_input, constants))
    for stage in load_stages().expand(settings):
        kink = oracle.node(stage.id).branch([values[read] for read in stage.inputs], values[stage.id])
        assert (kink is None) == (stage.branch == "none"), stage.id


def _net(settings: NetworkSettings, modes: int = 1) -> PtychoNet:
    return PtychoNet(settings, probe=torch.ones(modes, settings.N, settings.N, dtype=torch.complex64))


@pytest.mark.parametrize("settings", GRAPHS, ids=_name)
def test_torch_taps_are_the_stages_of_the_spec(settings: NetworkSettings) -> None:
    net = _net(settings)
    stages = load_stages().expand(settings)
    assert not missing_and_unexpected((stage.id for stage in stages), net.stage_ids())
    for stage in stages:
        kind = type(net.get_submodule(stage.id))
        assert f"{kind.__module__}.{kind.__qualname__}" == stage.clause.torch, stage.id


@pytest.mark.parametrize("settings", SMALL_GRAPHS, ids=_name)
def test_torch_shapes_are_those_of_the_spec(settings: NetworkSettings) -> None:
    net, found = _net(settings, modes=2), dict[str, tuple[tuple[int, ...], str]]()

    def note(stage: str, output: torch.Tensor) -> None:
        found[stage] = (tuple(output.shape), "complex" if output.is_complex() else "real")

    for name, module in net.named_modules():
        if isinstance(module, TorchStage):
            module.register_forward_hook(lambda _module, _inputs, output, name=name: note(name, output))
    with torch.no_grad():
        net(torch.ones(3, settings.C, settings.N, settings.N), torch.zeros(3, settings.C, 1, 2))
    stages = load_stages().expand(settings)
    assert found == {stage.id: (stage.shape_torch(3, 2), stage.dtype) for stage in stages}


@pytest.mark.skipif(not backend.is_available(), reason="needs TensorFlow; pip install 'ptycho-torch[tf]'")
@pytest.mark.parametrize("settings", SMALL_GRAPHS, ids=_name)
def test_keras_taps_are_the_stages_of_the_spec(settings: NetworkSettings) -> None:
    model = keras_reference.build_reference(settings, np.ones((2, settings.N, settings.N), np.complex64))
    tapped: list[tuple[str, tuple[int, ...], str]] = []

    def tap(stage: str, output: object) -> object:
        values = np.asarray(output)
        tapped.append((stage, values.shape, "complex" if np.iscomplexobj(values) else "real"))
        return output

    amplitude = np.ones((3, settings.N, settings.N, settings.C), np.float32)
    keras_reference.run_stages(model, amplitude, np.zeros((3, 1, 2, settings.C), np.float32), tap)
    stages = load_stages().expand(settings)
    assert not missing_and_unexpected((stage.id for stage in stages), [stage for stage, _, _ in tapped])
    specified = {stage.id: (stage.shape_tensorflow(3, 2), stage.dtype) for stage in stages}
    assert {stage: (shape, dtype) for stage, shape, dtype in tapped} == specified


def _resolve(dotted: str) -> object:
    """Import the module of a dotted path and return what the path names in it."""
    module, name = dotted.rsplit(".", 1)
    return getattr(importlib.import_module(module), name)


@pytest.mark.parametrize(
    "clause",
    [pytest.param(each, id=each.id, marks=pytest.mark.parity_clause(each.id)) for each in load_stages().stages],
)
def test_clause_names_what_implements_it(clause: StageClause) -> None:
    paths = {clause.torch, clause.keras}
    paths |= {path for variant in clause.variants for path in (variant.torch, variant.keras) if path}
    assert all(callable(_resolve(path)) for path in paths)


@pytest.mark.parametrize("amp_activation", get_args(AmplitudeActivation))
@pytest.mark.parametrize("pad_object", [True, False])
def test_only_a_relu_head_has_a_kink(amp_activation: AmplitudeActivation, pad_object: bool) -> None:
    settings = NetworkSettings(amp_activation=amp_activation, pad_object=pad_object)
    head = "activation" if pad_object else "output"
    stages = {stage.id: stage for stage in load_stages().expand(settings)}
    amp, phase = stages[f"decoder_amp.{head}"], stages[f"decoder_phase.{head}"]
    assert (amp.activation, amp.branch) == (amp_activation, "relu" if amp_activation == "relu" else "none")
    assert (phase.activation, phase.branch) == ("pi_tanh", "none")


def test_every_defect_has_its_test_or_a_reason() -> None:
    for defect in load_defects():
        if defect.test is None:
            assert defect.reason, defect.id
            continue
        path, function = defect.test.removeprefix("conformance/").split("::")
        assert f"def {function}(" in (HERE / path).read_text(encoding="utf-8"), defect.id
