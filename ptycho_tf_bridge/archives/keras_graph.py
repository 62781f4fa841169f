"""The graph of a Keras 3 model, read from its ``config.json``: which convolution plays which part.

Layer names carry running numbers that depend on what else a session built, so no name is read. A convolution's part
follows from where it stands: what both decoders share is the encoder, the first input of the complex object is the
amplitude, and so on.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ptycho_tf_bridge.errors import ArchiveError
from ptycho_torch.errors import breaking

MAX_LAYERS = 400
"""The reference has 59 and at most twice as many; the time to follow a graph grows as the square."""

MAX_INPUTS = 16
"""Of one layer; the reference's have one or two."""

_MAX_DEPTH = 64

_TENSOR, _SLICE = _PARTS = ("__keras_tensor__", "__slice__")
_CONVOLUTION = "Conv2D"
_COMPLEX = "CombineComplexLayer"
_PASSES: Mapping[str, Mapping[str, Any]] = {
    "MaxPooling2D": {"pool_size": [2, 2], "strides": [2, 2]},
    "UpSampling2D": {"size": [2, 2], "interpolation": "nearest"},
}
_CONVOLVES: Mapping[str, Any] = {
    "kernel_size": [3, 3],
    "strides": [1, 1],
    "padding": "same",
    "dilation_rate": [1, 1],
    "groups": 1,
    "use_bias": True,
    "data_format": "channels_last",
}
_ACTIVATIONS = ("ActivationLayer", "Activation")
_BORDERS = ("CenterMaskLayer", "Cropping2D")
"""Layers that keep the outer path away from the centre; the second is what this project exports."""

_KNOWN = {
    *_PASSES,
    *_ACTIVATIONS,
    *_BORDERS,
    "Add",
    "InputLayer",
    "IntensityScaler",
    "Multiply",
    "Rescaling",
    "Subtract",
    "ZeroPadding2D",
}


@dataclass(frozen=True)
class Layer:
    """One entry of the graph.

    Attributes:
        name: of this model only.
        kind: class name.
        config: its constructor's arguments.
        inputs: names of the layers that it reads, in order.
        operation: whether it is a bare operation of Keras, such as a slice, and no layer.
        slices: first and last index of each slice among the arguments that it is called with.
    """

    name: str
    kind: str
    config: Mapping[str, Any]
    inputs: tuple[str, ...]
    operation: bool
    slices: tuple[tuple[Any, Any], ...]


@dataclass(frozen=True)
class Graph:
    """A functional model.

    Attributes:
        where: file and member, for errors.
        layers: by name, in the order of the file.
        outputs: names of the layers whose outputs the model returns.
    """

    where: str
    layers: Mapping[str, Layer]
    outputs: tuple[str, ...]

    def of_kind(self, kind: str) -> list[Layer]:
        """Return the layers of one class, in the order of the file."""
        return [layer for layer in self.layers.values() if layer.kind == kind]

    @property
    def policies(self) -> tuple[str, ...]:
        """Names of the dtype policies of layers that compute in other real numbers than float32, sorted."""
        names = {_policy(layer.config.get("dtype")) for layer in self.layers.values()}
        return tuple(sorted(names - {"", "float32", "complex64"}))


@dataclass(frozen=True)
class Roles:
    """What the graph says about the network.

    Attributes:
        convolutions: stage id → layer name.
        amp_activation: of the amplitude head.
        masks_border: whether the outer path is kept away from the centre; None where there is no outer path.
        canvas_px: side of a group's canvas, or None where the graph does not say it.
    """

    convolutions: Mapping[str, str]
    amp_activation: str
    masks_border: bool | None
    canvas_px: int | None


# ----------------------------------------------------------------------------------------------------------- reading


@breaking("FILE-04")
def read_graph(content: bytes, where: str) -> Graph:
    """Read ``config.json`` of a functional Keras 3 model.

    Raises:
        ArchiveError: no such model.
    """
    try:
        model = json.loads(content)
        config = model["config"]
        entries, outputs = config["layers"], config["output_layers"]
        layers = {layer.name: layer for layer in map(_layer, entries[: MAX_LAYERS + 1])}
        # A single output may stand without a list around it.
        ends = [outputs] if outputs and isinstance(outputs[0], str) else outputs
        names = tuple(str(end[0]) for end in ends)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as err:
        raise ArchiveError(
            f"{where}: no functional model of Keras 3 ({type(err).__name__}: {str(err)[:100]}). Archives of the "
            "reference hold one."
        ) from err
    if len(entries) > MAX_LAYERS:
        raise ArchiveError(f"{where}: {len(entries)} layers; the reference has 59, and at most {MAX_LAYERS} are read.")
    if len(layers) != len(entries):
        raise ArchiveError(f"{where}: {len(entries) - len(layers)} layers have the name of another one.")
    missing = ({name for layer in layers.values() for name in layer.inputs} | set(names)) - set(layers)
    if missing:
        raise ArchiveError(f"{where}: a layer reads {sorted(missing)[0]!r}, which is not there.")
    return Graph(where, layers, names)


def _layer(entry: Mapping[str, Any]) -> Layer:
    nodes = entry["inbound_nodes"]
    if len(nodes) > 1:
        raise ValueError(f"{entry['name']!r} is called {len(nodes)} times")
    call = [nodes[0].get("args"), nodes[0].get("kwargs")] if nodes else []
    parts = [(part["class_name"], part["config"]) for part in _dictionaries(call) if part.get("class_name") in _PARTS]
    inputs = tuple(str(config["keras_history"][0]) for kind, config in parts if kind == _TENSOR)
    if len(inputs) > MAX_INPUTS:
        raise ValueError(f"{str(entry['name'])[:40]!r} reads {len(inputs)} layers, and at most {MAX_INPUTS} are read")
    return Layer(
        name=str(entry["name"]),
        kind=str(entry["class_name"]),
        config=dict(entry["config"]),
        inputs=inputs,
        operation=".ops" in str(entry.get("module")),
        slices=tuple((config.get("start"), config.get("stop")) for kind, config in parts if kind == _SLICE),
    )


def _policy(dtype: Any) -> str:
    """Return the name of a dtype policy, which Keras writes as a name or as an object with it; empty for neither."""
    config = dtype.get("config") if isinstance(dtype, Mapping) else None
    name = config.get("name") if isinstance(config, Mapping) else dtype
    return name if isinstance(name, str) else ""


def _dictionaries(value: Any, depth: int = 0) -> Iterator[Mapping[str, Any]]:
    """Yield every dictionary among the arguments of a call."""
    if depth > _MAX_DEPTH:
        raise ValueError("arguments are nested too deeply")
    if isinstance(value, Mapping):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from _dictionaries(each, depth + 1)


# ------------------------------------------------------------------------------------------------------------- roles


@breaking("FILE-04")
def find_roles(graph: Graph) -> Roles:
    """Say which convolution is which stage, and what the graph does beside convolving.

    Raises:
        ArchiveError: the graph is not the reference's; it names the layer.
    """
    try:
        return _roles(graph)
    except ArchiveError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as err:
        raise ArchiveError(f"{graph.where}: a layer is not as Keras writes it ({type(err).__name__}: {err}).") from err


def _roles(graph: Graph) -> Roles:
    ends = _ends(graph)
    chains = {decoder: _chains(graph, end) for decoder, end in ends.items()}
    first, second = chains["amp"][0], chains["phase"][0]
    shared = next((k for k, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), 0)
    if shared % 2 or not 6 <= shared <= 10:
        raise ArchiveError(
            f"{graph.where}: amplitude and phase share their first {shared} convolutions; the reference's encoders "
            "have 6, 8 or 10. This is another architecture."
        )
    convolutions = {f"encoder.{k // 2}.conv{k % 2 + 1}": first[k] for k in range(shared)}
    for decoder, branches in chains.items():
        convolutions |= _decoder(graph, f"decoder_{decoder}", branches, shared)
    _check_convolutions(graph, convolutions)
    _check_paths(graph, convolutions, ends)
    return Roles(
        convolutions=convolutions,
        amp_activation=_activations(graph, convolutions, ends),
        masks_border=_masks_border(graph, ends)
        if {"decoder_amp.central", "decoder_amp.outer.head"} <= set(convolutions)
        else None,
        canvas_px=_canvas(graph),
    )


def _ends(graph: Graph) -> dict[str, str]:
    """Return the layers with amplitude and phase of the patches: the inputs of the complex object, or two outputs."""
    joins = graph.of_kind(_COMPLEX)
    ends = joins[0].inputs if len(joins) == 1 else graph.outputs
    if len(joins) > 1 or len(ends) != 2:
        raise ArchiveError(
            f"{graph.where}: {len(joins)} layers {_COMPLEX} and {len(graph.outputs)} outputs; expected one such layer, "
            "which joins amplitude and phase."
        )
    if joins and joins[0].config.get("use_polar", True) is not True:
        raise ArchiveError(
            f"{graph.where}: {joins[0].name!r} joins real and imaginary part; expected amplitude and phase."
        )
    return dict(zip(("amp", "phase"), ends, strict=True))


def _above(graph: Graph, name: str) -> tuple[list[Layer], list[str]]:
    """Return what lies between a layer and the convolutions next above it, the layer included, and those.

    Both are in the order in which they are met.
    """
    between: list[Layer] = []
    convolutions: list[str] = []
    waiting, seen = [name], {name}
    while waiting:
        layer = graph.layers[waiting.pop(0)]
        if layer.kind == _CONVOLUTION:
            convolutions.append(layer.name)
            continue
        between.append(layer)
        new = dict.fromkeys(each for each in layer.inputs if each not in seen)
        seen.update(new)
        waiting += new
    return between, convolutions


def _chains(graph: Graph, end: str) -> list[tuple[str, ...]]:
    """Return the convolutions before each head of a decoder, first to last, for the one or two heads above ``end``."""
    heads = _above(graph, end)[1]
    if len(heads) not in (1, 2):
        raise ArchiveError(f"{graph.where}: {len(heads)} convolutions end in {end!r}; expected one or two.")
    chains = []
    for head in heads:
        chain = [head]
        while above := [each for name in graph.layers[chain[0]].inputs for each in _above(graph, name)[1]]:
            if len(above) > 1 or above[0] in chain:
                raise ArchiveError(
                    f"{graph.where}: {chain[0]!r} reads {len(above)} convolutions; in the reference each reads one."
                )
            chain.insert(0, above[0])
        chains.append(tuple(chain))
    return chains


def _decoder(graph: Graph, prefix: str, chains: list[tuple[str, ...]], shared: int) -> dict[str, str]:
    """Name the convolutions of a decoder."""
    trunk = shared - 2  # two for each block, and one block fewer than the encoder has
    found = {f"{prefix}.{k // 2}.conv{k % 2 + 1}": name for k, name in enumerate(chains[0][shared : shared + trunk])}
    tails = sorted((chain[shared + trunk :] for chain in chains), key=len)
    lengths = [len(tail) for tail in tails]
    if lengths not in ([1], [3], [1, 3]) or len({chain[: shared + trunk] for chain in chains}) > 1:
        raise ArchiveError(
            f"{graph.where}: {prefix} ends in branches of {lengths} convolutions; expected one for the centre, three "
            "for the border, or both."
        )
    for tail in tails:
        names = ("central",) if len(tail) == 1 else ("outer.conv1", "outer.conv2", "outer.head")
        found |= {f"{prefix}.{name}": layer for name, layer in zip(names, tail, strict=True)}
    return found


def _check_convolutions(graph: Graph, convolutions: Mapping[str, str]) -> None:
    others = [layer.name for layer in graph.of_kind(_CONVOLUTION) if layer.name not in set(convolutions.values())]
    if others:
        raise ArchiveError(f"{graph.where}: convolution {others[0]!r} plays no part in the object.")
    for stage, name in convolutions.items():
        is_head = stage.endswith((".central", ".outer.head"))
        expected = {**_CONVOLVES, "activation": "linear" if is_head else "relu"}
        _check_config(graph, graph.layers[name], expected, stage)


def _check_paths(graph: Graph, convolutions: Mapping[str, str], ends: Mapping[str, str]) -> None:
    """Check what stands before each convolution, and before the ends."""
    for stage, name in convolutions.items():
        (source,) = graph.layers[name].inputs
        between, _ = _above(graph, source)
        kinds = {layer.kind for layer in between if layer.kind in _PASSES}
        if kinds != _expected_passes(stage):
            raise ArchiveError(
                f"{graph.where}: before {name!r} ({stage}) stand {sorted(kinds)}, expected "
                f"{sorted(_expected_passes(stage))}."
            )
        for layer in between:
            _check_layer(graph, layer, stage)
    for decoder, end in ends.items():
        for layer in _above(graph, end)[0]:
            _check_layer(graph, layer, f"decoder_{decoder}.output")


def _expected_passes(stage: str) -> set[str]:
    part, _, last = stage.rpartition(".")
    if part.startswith("encoder"):
        return {"MaxPooling2D"} if last == "conv1" and part != "encoder.0" else set()
    if last == "conv1" and part.endswith(".0"):
        return {"MaxPooling2D"}
    return {"UpSampling2D"} if last in ("conv1", "head", "central") else set()


def _check_layer(graph: Graph, layer: Layer, stage: str) -> None:
    if layer.kind not in _KNOWN and not layer.operation:
        raise ArchiveError(
            f"{graph.where}: layer {layer.name!r} of class {layer.kind} on the way to {stage} is none of the "
            "reference's, so its network is not known here."
        )
    if layer.kind in _PASSES:
        _check_config(graph, layer, _PASSES[layer.kind], stage)
    if layer.kind == "GetItem":
        _check_slice(graph, layer, stage)


def _check_config(graph: Graph, layer: Layer, expected: Mapping[str, Any], stage: str) -> None:
    for name, value in expected.items():
        found = layer.config.get(name, value)
        if found != value:
            raise ArchiveError(
                f"{graph.where}: {name} of {layer.name!r} ({stage}) is {found!r}, the reference has {value!r}."
            )


def _check_slice(graph: Graph, layer: Layer, stage: str) -> None:
    """Check that the centre is made of all channels but the last four, and the border of those."""
    found, expected = list(layer.slices), [(-4, None) if ".outer." in stage else (None, -4)]
    # Some versions of Keras write slices in another way, and then the shapes of the kernels have to do.
    if found and found != expected:
        raise ArchiveError(f"{graph.where}: {layer.name!r} ({stage}) reads channels {found}; expected {expected}.")


def _activations(graph: Graph, convolutions: Mapping[str, str], ends: Mapping[str, str]) -> str:
    """Return the amplitude's activation, having checked the phase's: π·tanh."""
    found = {}
    for decoder, end in ends.items():
        names = (f"decoder_{decoder}.{part}" for part in ("central", "outer.head"))
        head = next(convolutions[name] for name in names if name in convolutions)
        found[decoder] = _activation(graph, end, head)
    (amplitude, factor), (phase, radians) = found["amp"], found["phase"]
    if phase != "tanh" or not math.isclose(radians, math.pi, rel_tol=1e-6):
        raise ArchiveError(f"{graph.where}: the phase is {radians:g}·{phase}; the reference has π·tanh.")
    if factor != 1:
        raise ArchiveError(f"{graph.where}: the amplitude is {factor:g}·{amplitude}; expected a factor of 1.")
    return amplitude


def _activation(graph: Graph, end: str, head: str) -> tuple[str, float]:
    """Return name and factor of what follows a head and nothing else; the border has an activation of its own."""
    following = [layer for layer in _above(graph, end)[0] if _above(graph, layer.name)[1] == [head]]
    found = [layer for layer in following if layer.kind in _ACTIVATIONS]
    if len(found) != 1:
        raise ArchiveError(f"{graph.where}: {len(found)} layers of activation follow the head {head!r}; expected one.")
    config = found[0].config
    name = str(config.get("activation_name", config.get("activation")))
    factors = [float(layer.config["scale"]) for layer in following if layer.kind == "Rescaling"]
    return ("swish" if name == "silu" else name), float(config.get("scale", 1)) * math.prod(factors)


def _masks_border(graph: Graph, ends: Mapping[str, str]) -> bool:
    return all(any(layer.kind in _BORDERS for layer in _above(graph, end)[0]) for end in ends.values())


def _canvas(graph: Graph) -> int | None:
    sizes = [layer.config.get("padded_size") for layer in graph.of_kind("ReassemblePatchesLayer")]
    return sizes[0] if len(sizes) == 1 and isinstance(sizes[0], int) else None
