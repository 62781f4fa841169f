"""The part of each convolution follows from the graph, whatever the layers are called; a graph that is not the
reference's is refused with the layer that is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from ptycho_tf_bridge.archives.keras_graph import MAX_INPUTS, MAX_LAYERS, find_roles, read_graph
from ptycho_tf_bridge.errors import ArchiveError
from ptycho_tf_bridge.weights import weight_table
from ptycho_torch.config_params import NetworkSettings
from tests.support.archives.reference_archives import Graph

FULL = NetworkSettings(N=64, gridsize=2, n_filters_scale=1)
Entries = list[dict[str, Any]]


@pytest.mark.parametrize("first_number", [0, 44])
@pytest.mark.parametrize(
    "settings",
    [
        FULL,
        NetworkSettings(N=64, gridsize=1, n_filters_scale=1, amp_activation="swish"),
        NetworkSettings(N=64, gridsize=2, n_filters_scale=1, probe_big=False),
        NetworkSettings(N=64, gridsize=2, n_filters_scale=1, pad_object=False, amp_activation="relu"),
        NetworkSettings(N=128, gridsize=3, n_filters_scale=2, shared_amplitude_head=True),
        NetworkSettings(N=256, gridsize=1, n_filters_scale=1, object_big=False, amp_activation="softplus"),
    ],
    ids=["full", "g1", "centre", "unpadded", "shared", "n256"],
)
def test_every_convolution_has_its_part(settings: NetworkSettings, first_number: int) -> None:
    graph = Graph(settings, first_number)
    roles = find_roles(read_graph(graph.config(), "config.json"))
    assert roles.convolutions == graph.names
    assert set(roles.convolutions) == {entry.stage for entry in weight_table(settings)}
    assert roles.amp_activation == settings.amp_activation
    assert roles.masks_border is (True if settings.pad_object and settings.probe_big else None)
    assert roles.canvas_px == settings.canvas_px


def test_a_graph_without_the_mask_says_so() -> None:
    graph = Graph(FULL, masked=False)
    assert find_roles(read_graph(graph.config(), "config.json")).masks_border is False


def by_kind(entries: Entries, kind: str) -> Entries:
    return [entry for entry in entries if entry["class_name"] == kind]


def rename(entry: dict[str, Any], name: str, value: Any) -> None:
    entry["config"][name] = value


def swap_inputs(entries: Entries) -> None:
    (join,) = by_kind(entries, "CombineComplexLayer")
    join["inbound_nodes"][0]["args"][0].reverse()


def bypass(entries: Entries, kind: str) -> None:
    """Let whatever reads the first layer of a kind read what that layer reads."""
    layer = by_kind(entries, kind)[0]
    source = layer["inbound_nodes"][0]["args"][0]["config"]["keras_history"][0]
    text = json.dumps(entries).replace(f'"keras_history": ["{layer["name"]}"', f'"keras_history": ["{source}"')
    entries[:] = json.loads(text)


def wrong_slice(entries: Entries) -> None:
    slices = by_kind(entries, "GetItem")
    slices[0]["inbound_nodes"][0]["args"][1][1]["config"] = {"start": None, "stop": 4, "step": None}


def second_call(entries: Entries) -> None:
    conv = by_kind(entries, "Conv2D")[3]
    conv["inbound_nodes"] *= 2


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (swap_inputs, "the phase is 1·sigmoid"),
        (wrong_slice, "reads channels"),
        (second_call, "called 2 times"),
        (lambda e: bypass(e, "MaxPooling2D"), "stand"),
        (lambda e: bypass(e, "UpSampling2D"), "stand"),
        (lambda e: bypass(e, "ActivationLayer"), "layers of activation"),
        (lambda e: rename(by_kind(e, "Conv2D")[2], "activation", "gelu"), "activation of"),
        (lambda e: rename(by_kind(e, "Conv2D")[2], "strides", [2, 2]), "strides of"),
        (lambda e: rename(by_kind(e, "Conv2D")[-1], "activation", "relu"), "activation of"),
        (lambda e: rename(by_kind(e, "MaxPooling2D")[0], "pool_size", [3, 3]), "pool_size of"),
        (lambda e: rename(by_kind(e, "UpSampling2D")[0], "interpolation", "bilinear"), "interpolation of"),
        (lambda e: rename(by_kind(e, "ActivationLayer")[1], "scale", 3.0), "the phase is 3·tanh"),
        (lambda e: rename(by_kind(e, "ActivationLayer")[1], "scale", {}), "not as Keras writes it"),
        (lambda e: rename(by_kind(e, "CombineComplexLayer")[0], "use_polar", False), "real and imaginary"),
        (lambda e: by_kind(e, "IntensityScaler")[0].update(class_name="BatchNormalization"), "BatchNormalization"),
        (lambda e: by_kind(e, "CombineComplexLayer")[0].update(class_name="Concatenate"), "expected one such layer"),
        (lambda e: e.pop(4), "which is not there"),
        (lambda e: e.append(e[3]), "the name of another one"),
        (lambda e: e.extend({**e[0], "name": str(k)} for k in range(MAX_LAYERS)), "layers; the reference has 59"),
        (lambda e: e[3]["inbound_nodes"][0]["args"].extend(e[3]["inbound_nodes"][0]["args"] * MAX_INPUTS), "reads 17"),
        (lambda e: e[3].pop("config"), "no functional model"),
        (lambda e: e[3].update(inbound_nodes=7), "no functional model"),
    ],
)
def test_a_foreign_graph_is_refused(edit: Callable[[Entries], None], words: str) -> None:
    graph = Graph(FULL)
    edit(graph.entries)
    with pytest.raises(ArchiveError, match=words) as caught:
        find_roles(read_graph(graph.config(), "a.keras: config.json"))
    assert str(caught.value).startswith("a.keras: config.json: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b'{"config": {"layers": [], "output_layers": []}}',
        b"[" * 100_000,
        b'{"config": 3}',
    ],
    ids=repr,
)
def test_no_graph_is_an_error(content: bytes) -> None:
    with pytest.raises(ArchiveError, match=r"config\.json"):
        find_roles(read_graph(content, "config.json"))


def test_a_graph_that_runs_in_circles_ends() -> None:
    graph = Graph(FULL)
    first = by_kind(graph.entries, "Conv2D")[0]
    last = by_kind(graph.entries, "Conv2D")[5]
    first["inbound_nodes"][0]["args"][0]["config"]["keras_history"][0] = last["name"]
    with pytest.raises(ArchiveError, match="reads"):
        find_roles(read_graph(graph.config(), "config.json"))
